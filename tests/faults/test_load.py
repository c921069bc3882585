"""Sizes far beyond those of a stock graph, many threads at once, and memory over many steps."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import testing
from hiermt.native import extension
from support.soak import long

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)
pytestmark = pytest.mark.hostile("load")


def outputs(model: hiermt.TGCN_HierarchicalMT, x: Tensor, graph: hiermt.Graph, backend: str) -> list[Tensor]:
    """Logits, and the gradients of x and of the first and last parameter."""
    model.backend = backend
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    logits = model(leaf, graph)
    sum(one.square().mean() for one in logits).backward()
    parameters = list(model.parameters())
    return [*(one.detach() for one in logits), leaf.grad, parameters[0].grad.clone(), parameters[-1].grad.clone()]


def assert_as_the_twin(nodes: int, edges: Tensor, steps: int, channels: int = 2, hidden: int = 4) -> None:
    """In the norm: over so many terms the order of a sum shows in single elements."""
    weight = torch.rand(edges.size(1)) + 0.1
    for use_gat in (True, False):
        model = hiermt.TGCN_HierarchicalMT(channels, hidden, 1, use_gat)
        graph = hiermt.Graph(edges, weight, nodes)
        x = torch.randn(nodes, steps, channels)
        found, expected = (outputs(model, x, graph, backend) for backend in ("native", "reference"))
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7, f"use_gat={use_gat}: result {i}"


@pytest.mark.parametrize("degree", [2_000, long(50_000)])
def test_one_node_with_all_edges(degree: int) -> None:
    star = torch.stack([torch.arange(1, degree + 1), torch.zeros(degree, dtype=torch.int64)])
    assert_as_the_twin(degree + 1, torch.cat([star, star.flip(0)], dim=1), 2)


@pytest.mark.parametrize(("nodes", "edges"), [(5_000, 50_000), long(100_000, 1_000_000)])
def test_a_large_graph(nodes: int, edges: int) -> None:
    assert_as_the_twin(nodes, torch.randint(nodes, (2, edges)), 2)


@pytest.mark.parametrize(("steps", "hidden"), [(2_000, 4), (3, 256)])
def test_long_and_wide(steps: int, hidden: int) -> None:
    edges, _ = testing.stock_graph(12, 30)
    assert_as_the_twin(12, edges, steps, 5, hidden)


@pytest.mark.parametrize(("many", "limit"), [(12_800, 2.0), long(100_000, 1.3)])
def test_the_time_per_node_does_not_grow(many: int, limit: float) -> None:
    """Of a processor, the best of several alternating runs: other work on the machine does not count."""
    model = hiermt.TGCN_HierarchicalMT(13, backend="native").eval()

    def call(nodes: int) -> tuple[Tensor, hiermt.Graph]:
        union = testing.batched(*testing.stock_graph(100), 100, nodes // 100)
        return torch.randn(nodes, 25, 13), hiermt.Graph(*union, nodes)

    calls = {nodes: call(nodes) for nodes in (3_200, many)}
    best = dict.fromkeys(calls, float("inf"))
    with torch.no_grad():
        for _ in range(6):
            for nodes, arguments in calls.items():
                begin = time.process_time()
                model(*arguments)
                best[nodes] = min(best[nodes], (time.process_time() - begin) / nodes)
    ratio = best[many] / best[3_200]
    print(f"processor time per node at {many} nodes: {ratio:.2f} times that at 3,200")
    assert ratio < limit


@pytest.mark.hostile("workers")
@pytest.mark.parametrize("calls", [30, long(10_000)])
def test_threads_on_one_model(calls: int) -> None:
    """Eight threads call one model while another prepares graphs and changes the number of threads."""
    model, x = hiermt.TGCN_HierarchicalMT(5, 8, backend="native").eval(), torch.randn(30, 6, 5)
    edges = testing.stock_graph(30, 90)
    graph, threads, wrong = hiermt.Graph(*edges, 30), torch.get_num_threads(), []
    with torch.no_grad():
        expected = torch.cat(model(x, graph), dim=-1)

    def forward(shared: bool) -> None:
        with torch.no_grad():
            for _ in range(calls):
                found = torch.cat(model(x, graph) if shared else model(x, *edges), dim=-1)
                if not torch.equal(found, expected):
                    wrong.append(found)

    running = [threading.Thread(target=forward, args=(i % 2 == 0,)) for i in range(8)]
    try:
        for thread in running:
            thread.start()
        count = 0
        while any(thread.is_alive() for thread in running):
            count += 1
            torch.set_num_threads(1 + count % 3)
            hiermt.Graph(edges[0].clone(), edges[1].clone(), 30).csr(count % 2, True, torch.float32)
            graph.to("cpu").csr(0, True, torch.float32)
    finally:
        for thread in running:
            thread.join()
        torch.set_num_threads(threads)
    assert not wrong


GROWTH = """
import re, sys, torch, hiermt
from hiermt.testing import stock_graph

torch.set_num_threads(1)
steps, graphs = int(sys.argv[1]), int(sys.argv[2])
model = hiermt.TGCN_HierarchicalMT(5, 8, 1, backend="native")
optimizer, criterion = torch.optim.Adam(model.parameters()), hiermt.MultiTaskLoss()

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

def step(i):
    # Sizes that grow and fall, and a graph that no step before has seen.
    nodes = 20 + i % 40
    edges = stock_graph(nodes, 60, 2, seed=i % graphs)
    labels = torch.randint(2, (nodes,))
    optimizer.zero_grad()
    criterion.terms(*model(torch.randn(nodes, 2 + i % 5, 5), *edges), labels, labels, labels == 1).total.backward()
    optimizer.step()

for i in range(steps // 4):
    step(i)
early = resident()
for i in range(steps // 4, steps):
    step(i)
print(early, resident())
"""


@pytest.mark.hostile("memory")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("steps", "graphs"), [(400, 100), long(10_000, 1_000)])
def test_memory_is_flat_over_many_steps_and_graphs(steps: int, graphs: int) -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH, str(steps), str(graphs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    early, late = map(float, done.stdout.split())
    print(f"{steps} steps, {graphs} graphs: {early:.1f} MB after a quarter, {late:.1f} MB at the end")
    assert late - early < 8


@pytest.mark.hostile("large-index")
@pytest.mark.parametrize("elements", [long(2**31)])
def test_offsets_past_31_bits(elements: int) -> None:
    """A bfloat16 series of more than 2^31 elements, 4.3 GB, of which the last rows are as those of a small call."""
    channels, nodes = 64, 8
    steps = elements // (channels * nodes) + 8
    edges = testing.stock_graph(nodes, 20, 1)
    graph = hiermt.Graph(*edges, nodes)
    x = torch.zeros(nodes, steps, channels, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    tail = torch.randn(nodes, 4, channels).bfloat16()
    x[:, -4:] = tail
    model = hiermt.TGCN_HierarchicalMT(channels, 4, 1, backend="native").bfloat16()
    windows = hiermt.Windows(x, torch.tensor([steps - 4]), 4)
    with torch.no_grad():
        same = hiermt.Windows(tail, torch.tensor([0]), 4)
        for found, expected in zip(model(windows, graph), model(same, graph), strict=True):
            assert torch.equal(found, expected)
