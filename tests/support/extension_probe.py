"""Runs a copy of the package in a process of its own, and tells what it said and did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hiermt
from support import scripts

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(hiermt.__file__).parent
LIBRARY = "libhiermt.dylib" if sys.platform == "darwin" else "libhiermt.so"
BINARY = PACKAGE / LIBRARY

# Prints the warnings, why native does not run, and a decision: the model works in every case.
PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import hiermt, hiermt.nn
    import torch
    from hiermt.native import extension, info
    model = hiermt.TGCN_HierarchicalMT(3, 4)
    logits = model(torch.zeros(2, 5, 3), torch.tensor([[0], [1]]))
print(json.dumps({
    "warnings": [str(w.message) for w in caught if issubclass(w.category, extension.NativeUnavailableWarning)],
    "reason": extension.why_not_native("cpu"),
    "shape": list(logits[0].shape),
    "info": info.format(info.collect()),
}))
"""


def probe(package: Path, script: str = PROBE, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HIERMT_")}
    return scripts.run(script, package.parent, {**inherited, **environment})


def outcome(package: Path, **environment: str) -> dict:
    done = probe(package, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_fell_back(found: dict, *words: str) -> None:
    assert found["shape"] == [2, 2]
    assert len(found["warnings"]) == 1, found["warnings"]
    for word in words:
        assert word in found["warnings"][0]
    assert "To fix:" in found["warnings"][0]
    assert found["reason"] in found["warnings"][0]
    assert "pure-PyTorch" in found["info"]
    assert found["reason"] in found["info"]
