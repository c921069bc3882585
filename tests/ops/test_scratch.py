"""Working memory of the CPU operators: it follows the calls, goes back, and its lack is an exception."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

import hiermt
from hiermt import testing
from hiermt.native import extension
from support import scripts

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not extension.native_status().available, reason="needs the extension"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux"),
]

HEAD = """
import re, resource, torch, hiermt
from hiermt.testing import stock_graph

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

torch.set_num_threads(THREADS)
graph = hiermt.Graph(*stock_graph(100), 100)
model = hiermt.TGCN_HierarchicalMT(13, backend="native")

def forward(steps):
    with torch.no_grad():
        return model(torch.randn(100, steps, 13), graph)

def step(steps):
    model(torch.randn(100, steps, 13), graph)[0].sum().backward()

forward(10), step(10)
start = status("VmRSS")
held = lambda: status("VmRSS") - start
"""


def run(body: str, threads: int = 2) -> list[float]:
    script = HEAD.replace("THREADS", str(threads)) + body
    done = scripts.run(script, ROOT, dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(line) for line in done.stdout.split()]


@pytest.mark.hostile("memory")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("call", "sizes"), [("forward", range(20, 600, 20)), ("step", range(40, 400, 40))])
def test_growing_sizes_hold_what_the_largest_needs(call: str, sizes: range, threads: int) -> None:
    """All of them together would need at least five times as much."""
    growing, small, again = run(
        f"""
sizes = {sizes}
for steps in sizes: {call}(steps)
print(held())
for _ in range(10): {call}(10)
print(held())
for _ in range(3): {call}(max(sizes))
print(held())
""",
        threads,
    )
    # One block, and what malloc keeps of the outputs.
    assert growing < 2 * again + 16
    assert small < 24


def test_one_large_call_gives_back_by_itself() -> None:
    large, small = run(
        "for _ in range(3): forward(8000)\nprint(held())\nfor _ in range(10): forward(10)\nprint(held())"
    )
    assert large > 30
    assert small < 24


def test_release_memory_gives_everything_back_and_calls_go_on() -> None:
    held, released, after, same = run(
        """
expected = forward(10)
for _ in range(3): torch.manual_seed(0); before = forward(4000)
print(held()); print(hiermt.release_memory() / 2**20); print(held())
torch.manual_seed(0); again = forward(4000)
print(all(torch.equal(a, b) for a, b in zip(before, again)) * 1)
"""
    )
    assert released > 20 and after < held - 0.8 * released and same == 1
    assert hiermt.release_memory() >= 0
    assert hiermt.release_memory() == 0


def test_the_same_sizes_again_take_no_memory() -> None:
    (faults,) = run(
        """
for _ in range(4): step(100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8): step(100)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8)
""",
        1,
    )
    assert faults < 1500  # torch's own outputs


@pytest.mark.hostile("workers")
def test_release_while_other_threads_compute() -> None:
    graph, model = hiermt.Graph(*testing.stock_graph(50), 50), hiermt.TGCN_HierarchicalMT(13, backend="native")
    x = torch.randn(50, 25, 13)
    with torch.no_grad():
        expected = model(x, graph)
    right: list[bool] = []

    def work() -> None:
        with torch.no_grad():
            right.extend(
                all(torch.equal(a, b) for a, b in zip(model(x, graph), expected, strict=True)) for _ in range(60)
            )

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        hiermt.release_memory()
    assert len(right) == 180 and all(right)


@pytest.mark.hostile("memory")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["forward", "step"])
def test_out_of_memory_is_an_exception_and_the_next_call_works(call: str, threads: int) -> None:
    failed, worked = run(
        f"""
expected = forward(10)
x = torch.randn(100, 1, 13).expand(100, 400_000, 13)
limit = int(status("VmSize") * 2**20) + 500 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    if "{call}" == "forward":
        with torch.no_grad(): model(x, graph)
    else:
        model(x, graph)[0].sum().backward()
except RuntimeError as error:
    print(int("out of memory" in str(error) and "bytes" in str(error) and "smaller batch" in str(error)))
print(int(forward(10)[0].isfinite().all()))
""",
        threads,
    )
    assert failed == 1 and worked == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hiermt: out of memory: could not allocate 8 bytes (0.0 MiB) on cuda:0 for an output", torch.OutOfMemoryError),
        ("hiermt: out of memory: could not allocate 8 bytes (0.0 MiB) for an output", RuntimeError),
        ("hiermt::decision: h: expected a shape [N, 16], got [4, 8] on cuda:0", RuntimeError),
    ],
)
def test_out_of_memory_on_a_gpu_is_torch_s_own_exception(text: str, kind: type[Exception]) -> None:
    from hiermt.ops import operator

    def fails(*_: object) -> None:
        raise RuntimeError(text)

    with torch.no_grad(), pytest.raises(RuntimeError) as caught:
        operator.call(fails)
    assert type(caught.value) is kind and str(caught.value) == text


@pytest.mark.hostile("memory")
@pytest.mark.parametrize("gigabytes", [0.1, 0.3, 1.0])
def test_out_of_memory_in_the_midst_of_a_call(gigabytes: float) -> None:
    """Wherever the memory ends: in an output, in the tiles of a task, in a gradient."""
    (worked,) = run(
        f"""
limit = int(status("VmSize") * 2**20) + int({gigabytes} * 2**30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
steps, failed = 100, 0
while not failed:
    try: step(steps)
    except RuntimeError as error: failed = 1
    steps *= 2
step(10)
print(int(forward(10)[0].isfinite().all()))
"""
    )
    assert worked == 1
