"""Initial states, sequences and last states of the models, against PyG stepped through time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt import testing

pyg = pytest.importorskip("hiermt.testing.pyg", reason="the outside oracle needs torch-geometric")
EDGES = testing.stock_graph(20, 60, isolated=2)
KINDS: dict[str, dict[str, Any]] = {"gatv2": {}, "gcn": {"use_gat": False}}


def states(*lead: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*lead, 7, dtype=dtype) for _ in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_and_sequence_equal_pyg_with_all_gradients(kind: str, dtype: torch.dtype, backend: str) -> None:
    model = hiermt.TGCN(5, 3, 7, backend=backend, layout="NTF", **KINDS[kind]).to(dtype)
    oracle = pyg.Backbone(5, 3, 7, **KINDS[kind]).to(dtype)
    oracle.load_state_dict(model.state_dict())
    x, h = torch.randn(20, 6, 5, dtype=dtype, requires_grad=True), states(20, dtype=dtype)
    for state in h:
        state.requires_grad_()
    edges = EDGES[0], EDGES[1].to(dtype)
    y, last = model(x, *edges, h, return_sequence=True, return_state=True)
    sequence, wanted_last = oracle.run(x, *edges, h)
    found, wanted = [y, *last], [oracle.out(sequence), *wanted_last]
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        testing.assert_close(one, other, message=f"output {i}")
    seeds = [torch.randn_like(one) for one in found]
    gradients = [
        torch.autograd.grad(outputs, [x, *h, *module.parameters()], seeds)
        for outputs, module in ((found, model), (wanted, oracle))
    ]
    for i, (one, other) in enumerate(zip(*gradients, strict=True)):
        testing.assert_close(one, other, gradient=True, scaled=True, message=f"gradient {i}")
    testing.assert_close(model(x, *edges, torch.stack(h)), y[:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_in_pieces_equals_one_pass(kind: str, dtype: torch.dtype, backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 7, backend=backend, layout="NFT", **KINDS[kind]).to(dtype)
    x, edges = torch.randn(3, 20, 5, 9, dtype=dtype), (EDGES[0], EDGES[1].to(dtype))
    *whole, last = model(x, *edges, return_sequence=True, return_state=True)
    h, pieces = None, []
    for piece in x.split([4, 0, 1, 4], dim=-1):
        *logits, h = model(piece, *edges, h, return_sequence=True, return_state=True)
        pieces.append(logits)
    found = [*(torch.cat(head, dim=2) for head in zip(*pieces, strict=True)), *h]
    for one, other in zip(found, [*whole, *last], strict=True):
        if backend == "native":
            assert torch.equal(one, other)
        testing.assert_close(one, other)


def test_windows_take_states_of_their_own(backend: str) -> None:
    model = hiermt.TGCN(5, 3, 7, backend=backend, layout="NTF")
    windows = hiermt.Windows(torch.randn(20, 30, 5), torch.tensor([4, 0, 24]), 6)
    h = states(3, 20)
    y, last = model(windows, *EDGES, h, return_state=True)
    for i, start in enumerate(windows.starts.tolist()):
        series = windows.series[:, start : start + 6]
        one, ends = model(series, *EDGES, [state[i] for state in h], return_state=True)
        testing.assert_close(y[i], one)
        for found, wanted in zip(last, ends, strict=True):
            testing.assert_close(found[i], wanted)


def test_called_cells_take_states(backend: str) -> None:
    """A part that its user replaced is called step by step."""
    model = hiermt.TGCN(5, 3, 7, backend=backend, layout="NTF")
    x, h = torch.randn(2, 20, 4, 5), states(2, 20)
    y, last = model(x, *EDGES, h, return_sequence=True, return_state=True)
    model.cells[1].register_forward_hook(lambda *_: None)
    again, ends = model(x, *EDGES, h, return_sequence=True, return_state=True)
    for one, other in zip([again, *ends], [y, *last], strict=True):
        testing.assert_close(one, other)


class Heads(nn.Module):
    """A backbone of the user's own."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        return x[:, -1]


def test_a_foreign_backbone_is_called_with_three_arguments() -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 7)
    model.tgcn_backbone = Heads()  # type: ignore[assignment]
    assert model(torch.randn(20, 4, 7), *EDGES)[0].shape == (20, 2)


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "number": (ValueError, "h: expected 2 states, one of each cell, got 1", states(20)[:1]),
    "shape": (ValueError, r"h\[1\]: expected a state \[20, 7\], got \[20, 6\]", [*states(20)[:1], torch.zeros(20, 6)]),
    "batch": (ValueError, r"h\[0\]: expected a state \[20, 7\], got \[3, 20, 7\]", states(3, 20)),
    "dtype": (TypeError, r"h\[0\]: x is torch.float32, this state torch.float64", states(20, dtype=torch.float64)),
    "device": (ValueError, r"h\[0\]: x is on cpu, this state on meta", [torch.zeros(20, 7, device="meta")] * 2),
    "one tensor": (ValueError, r"h: .* or one Tensor \[2, 20, 7\], got a Tensor \[20, 7\]", torch.zeros(20, 7)),
    "none inside": (TypeError, r"h\[0\]: expected a Tensor \[20, 7\], got NoneType", [None, None]),
    "other": (TypeError, "h: expected a list of 2 Tensors", 0.5),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_other_states(case: str) -> None:
    error, message, h = BAD[case]
    x = torch.randn(20, 6, 5)
    for model in (hiermt.TGCN(5, 3, 7), hiermt.A3TGCN(5, 3, 7), hiermt.TGCN_HierarchicalMT(5, 7)):
        with pytest.raises(error, match=message):
            model(x, *EDGES, h)


def test_the_cell_refuses_another_state() -> None:
    with pytest.raises(ValueError, match=r"h: expected a state \[20, 7\], got \[19, 7\]"):
        hiermt.TGCNCell(5, 7)(torch.randn(20, 5), *EDGES, torch.zeros(19, 7))


def test_no_step_returns_the_states_before() -> None:
    model, h = hiermt.TGCN(5, 3, 7, layout="NTF"), states(20)
    y, last = model(torch.randn(20, 0, 5), *EDGES, h, return_state=True)
    assert all(torch.equal(one, other) for one, other in zip(last, h, strict=True))
    testing.assert_close(y, model.out(h[-1]))
