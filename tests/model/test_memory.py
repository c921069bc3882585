"""Peak memory of a training step beyond parameters and input, seen from the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hiermt.native import extension

LIMIT_MB = 65

SCRIPT = """
import re, torch, hiermt
from hiermt.testing import batched, stock_graph

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

torch.set_num_threads(2)
criterion = hiermt.MultiTaskLoss()

def step(copies):
    x = torch.randn(100 * copies, 25, 13)
    graph = hiermt.Graph(*batched(*stock_graph(100), 100, copies), 100 * copies)
    model = hiermt.TGCN_HierarchicalMT(13, backend="native")
    labels = torch.randint(0, 2, (100 * copies,))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    graph.csr(0, True, torch.float32)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    criterion.terms(*model(x, graph), labels, labels, labels == 1).total.backward()
    optimizer.step()
    return status("VmHWM") - before

step(1)
print(step(32))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's high-water mark")
def test_training_step_of_3200_nodes() -> None:
    reason = extension.why_not_native("cpu")
    if reason is not None:
        pytest.skip(reason)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    peak = float(done.stdout)
    assert 20 < peak < LIMIT_MB, f"{peak:.1f} MB"
