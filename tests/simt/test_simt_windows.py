"""The CUDA kernels of the scan over windows, compiled for the host and held against the twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from simt.cases import DTYPES, Case
from simt.harness import compiler, run
from simt.layers import LayerCase, layer_arguments, layer_both, make_layer
from simt.windows import NAMES, WindowCase, WindowProblem, make_windows, windows_both

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++ on x86-64")

CASES = [
    WindowCase(16),
    WindowCase(8, last=True, channels=1),
    WindowCase(32, starts=(0, 7, 3), steps=7),
    WindowCase(64, starts=(2, 0), days=6, stocks=2),
    WindowCase(5, starts=(10,), last=True),
    WindowCase(16, starts=(13, 0, 0, 5), steps=1),
    WindowCase(16, starts=(4, 4, 4), steps=0),
    WindowCase(16, starts=(0,), days=4, stocks=9),
    # More windows than a warp looks at together, and days that more than four, or none, of them have.
    WindowCase(8, starts=tuple(range(0, 60, 1)) + (70,) * 9, days=80, stocks=1, channels=2),
    # More channels than a warp adds up.
    WindowCase(100, starts=(3, 0), days=8, stocks=2, channels=3),
    WindowCase(23, starts=(3, 0, 1), days=8, stocks=2, channels=3),
    WindowCase(16, initial=True),
    WindowCase(40, starts=(3, 0, 1), days=8, stocks=2, channels=3, initial=True, last=True),
]


def identify(value: object) -> str:
    return str(value).removeprefix("torch.")


@pytest.mark.parametrize(("case", "dtype"), [(c, t) for c in CASES for t in DTYPES], ids=identify)
def test_gated_scan_windows(case: WindowCase, dtype: torch.dtype) -> None:
    windows_both(case, dtype)


@pytest.mark.parametrize(
    "case", [WindowCase(16, starts=()), WindowCase(8, stocks=0), WindowCase(5, starts=(), stocks=0)]
)
def test_nothing_to_scan(case: WindowCase) -> None:
    grads = windows_both(case, torch.float32)[2:]
    assert not any(grad is not None and grad.any() for grad in grads)


def test_without_room_for_the_weights_in_shared_memory() -> None:
    windows_both(WindowCase(40, stocks=2), torch.float32, {"HIERMT_SIMT_SHARED_BYTES": "16384"})


@pytest.mark.parametrize("case", [WindowCase(16, starts=tuple(range(40)), days=50, stocks=2), WindowCase(64, stocks=2)])
def test_every_order_of_threads_gives_the_same_bits(case: WindowCase) -> None:
    first = windows_both(case, torch.float32)
    for order in ("1", "2"):
        again = windows_both(case, torch.float32, {"HIERMT_SIMT_ORDER": order})
        assert all(one is None or torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_tensor_cores() -> None:
    case = WindowCase(40, channels=21, stocks=4)
    exact = windows_both(case, torch.float32)
    rounded = windows_both(case, torch.float32, {"HIERMT_SIMT_TF32": "1"}, torch.bfloat16)
    assert any(not torch.equal(a, b) for a, b in zip(exact, rounded, strict=True))


def test_a_day_of_no_window_counts_for_nothing() -> None:
    case = WindowCase(16)
    clean = windows_both(case, torch.float32)
    used = {day for start in case.starts for day in range(start, start + case.steps)}
    unused = [day for day in range(case.days) if day not in used]
    assert unused
    problem = make_windows(case, torch.float32)
    problem.x[:, unused], problem.g[:, unused] = float("nan"), float("inf")
    found = raw(case, problem.starts, problem)
    assert all(one is None or torch.equal(one, other) for one, other in zip(clean, found, strict=True))
    assert not found[2][:, unused].any() and not found[3][:, unused].any()


def raw(case: WindowCase, starts: Tensor, problem: WindowProblem | None = None) -> list[Tensor | None]:
    """What the kernels make of any starts at all."""
    problem = (make_windows(case, torch.float32) if problem is None else problem)._replace(starts=starts)
    integers, inputs = problem.arguments(case.steps)
    nodes = starts.numel() * case.stocks
    shapes = [((nodes, case.steps, case.hidden), torch.float32), ((nodes, case.hidden), torch.float32), None]
    h, last, _ = run("gated_scan", torch.float32, integers, inputs, shapes)
    grad = torch.randn(h.shape, generator=torch.Generator().manual_seed(2))
    outputs = [(tuple(leaf.shape), torch.float32) for leaf in (problem.x, problem.g, *problem.gates)]
    outputs.insert(2, None)
    return [h, last, *run("gated_scan_backward", torch.float32, integers, [*inputs, h, None, grad, None], outputs)]


@pytest.mark.parametrize("start", [-1, 11, 2**31, 2**40, 2**63 - 1, -(2**63)])
def test_no_start_leads_out_of_the_series(start: int) -> None:
    case = WindowCase(16, starts=(1, 0))
    found = raw(case, torch.tensor([1, start]))
    # The window is taken as the one nearest to it that lies in the series.
    expected = raw(case, torch.tensor([1, 0 if start < 0 else case.days - case.steps]))
    assert all(one is None or torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("wanted", NAMES[:2])
def test_only_the_gradients_asked_for(wanted: str) -> None:
    case = WindowCase(16)
    problem = make_windows(case, torch.float32)
    integers, inputs = problem.arguments(case.steps)
    (h, *_), every = windows_both(case, torch.float32)[:1], windows_both(case, torch.float32)[2:]
    grad = torch.randn(h.shape, generator=torch.Generator().manual_seed(2))
    given = (problem.x, problem.g, None, *problem.gates)
    outputs = [
        (tuple(leaf.shape), torch.float32) if name == wanted and leaf is not None else None
        for name, leaf in zip(NAMES, given, strict=True)
    ]
    alone = run("gated_scan_backward", torch.float32, integers, [*inputs, h, None, grad, None], outputs)
    for name, one, other in zip(NAMES, alone, every, strict=True):
        assert one is None if name != wanted else torch.equal(one, other)


def test_windows_that_share_nothing_are_the_plain_scan() -> None:
    """One window over all days: the same bits forward as the scan of the series."""
    case = WindowCase(16, starts=(0,), days=5, steps=5, stocks=7)
    problem = make_windows(case, torch.float32)
    integers, inputs = problem.arguments(case.steps)
    shape = ((7, 5, 16), torch.float32)
    (h, *_) = run("gated_scan", torch.float32, [*integers[:-2], -1, 0], [*inputs[:-1], None], [shape, None, None])
    assert torch.equal(h, windows_both(case, torch.float32)[0])


# Stack in one launch both ways, forward alone, in none; a series of more days than the windows have together.
LAYERS = [
    LayerCase(Case(hidden=16, steps=9), edge_grad=False, starts=(2, 0, 5), window=4),
    LayerCase(Case(hidden=8, steps=12, channels=3), edge_grad=False, sequence=False, starts=(0, 9), window=2),
    LayerCase(Case(hidden=16, steps=9), starts=(2, 0, 5), window=4),
    LayerCase(Case(hidden=32, steps=6), gat=False, conv_layers=1, between=False, starts=(2, 1), window=4),
    LayerCase(Case(hidden=5, steps=6, layout="strided"), conv_layers=3, starts=(2, 1, 0), window=3),
    LayerCase(Case(hidden=64, steps=5, nodes=5, edges=8), edge_grad=False, starts=(2,), window=3),
    # Every node a part of its own, or the only one.
    LayerCase(Case(hidden=16, steps=6, nodes=5, edges=0), starts=(2, 0), window=3),
    LayerCase(Case(hidden=8, steps=6, nodes=1, edges=0), edge_grad=False, starts=(2, 0), window=3),
    LayerCase(Case(hidden=16, steps=6, nodes=5, edges=0), gat=False, starts=(2, 0), window=3),
    LayerCase(Case(hidden=16, steps=9), edge_grad=False, starts=(2, 0, 5), window=4, initial=True),
    LayerCase(Case(hidden=5, steps=6), gat=False, starts=(2, 1, 0), window=3, initial=True, sequence=False),
]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(c, torch.float32) for c in LAYERS] + [(c, t) for c in LAYERS[:3] for t in DTYPES[1:]],
    ids=identify,
)
def test_layer_over_windows(case: LayerCase, dtype: torch.dtype) -> None:
    layer_both(case, dtype)


def test_every_order_of_threads_gives_the_same_bits_of_a_layer() -> None:
    first = layer_both(LAYERS[0], torch.float32)
    for order in ("1", "2"):
        again = layer_both(LAYERS[0], torch.float32, {"HIERMT_SIMT_ORDER": order})
        assert all(one is None or torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_layer_over_windows_is_two_launches_forward(tmp_path: Path) -> None:
    case, path = LAYERS[0], tmp_path / "launches"
    arguments = layer_arguments(case, make_layer(case, torch.float32))
    shape = (case.nodes, case.steps, case.problem.hidden)
    outputs = [(shape, torch.float32), None, None, None]
    run("tgcn_layer", torch.float32, *arguments, outputs, {"HIERMT_SIMT_LAUNCHES": str(path)})
    assert int(path.read_text()) == 2
