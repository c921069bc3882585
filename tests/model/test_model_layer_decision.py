"""For inference the two-headed model ends its last layer in the heads, unless something else reads the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import hiermt
from hiermt import functional, testing
from hiermt.native import extension
from support.calls import recorded

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

STOCKS, STEPS, CHANNELS, HIDDEN = 12, 6, 5, 8
Model = hiermt.TGCN_HierarchicalMT
EDGES = testing.stock_graph(STOCKS, 40)
ONE, TWO = ["tgcn_layer", "tgcn_layer_decision"], ["tgcn_layer", "tgcn_layer", "decision"]


def model(dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    torch.manual_seed(0)
    return Model(CHANNELS, HIDDEN, **options).to(dtype).eval()


def edges(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return EDGES[0], EDGES[1].to(dtype)


def operators(run: Callable[[], Any]) -> list[str]:
    return [name for name, *_ in recorded(run) if name != "graph_prepare"]


def same(found: Any, expected: Any) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def inputs(kind: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """x in every form, and what comes with it."""
    there = torch.rand(STOCKS, STEPS) > 0.3
    x = torch.randn(STOCKS, STEPS, CHANNELS, dtype=dtype)
    if kind == "mask":
        return x, {"present": there}
    if kind == "batch":
        return torch.randn(3, STOCKS, STEPS, CHANNELS, dtype=dtype), {}
    if kind == "windows":
        series = torch.randn(STOCKS, 9, CHANNELS, dtype=dtype)
        present = torch.rand(STOCKS, 9) > 0.2
        return hiermt.Windows(series, torch.tensor([3, 0, 2]), STEPS, present), {}
    if kind == "state":
        return x, {"h": torch.randn(2, STOCKS, HIDDEN, dtype=dtype)}
    return x[:, :0] if kind == "no step" else x, {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"use_gat": False}, {"layers_nb": 1, "dropout": 0.5}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "mask", "batch", "windows", "state", "no step"])
def test_the_bits_of_layer_and_heads(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, (x, more) = model(dtype, **options), inputs(kind, dtype)
    more = {name: one[: len(ours.tgcn_backbone.cells)] if name == "h" else one for name, one in more.items()}
    expected = ours(x, *edges(dtype), **more)
    with torch.no_grad():
        count = len(ours.tgcn_backbone.cells)
        assert operators(lambda: ours(x, *edges(dtype), **more)) == ONE[-count:]
        found = ours(x, *edges(dtype), **more)
        assert same(found, expected)
        assert [one.shape for one in found] == [one.shape for one in expected]
        h = ours.tgcn_backbone.last_state(x, *edges(dtype), **more)
        rows = functional.decision(h.flatten(0, -2), ours._head_params(), 0.4)
        *_, probabilities, predictions, confidences = rows
        if "h" not in more:
            assert operators(lambda: ours.decide(x, *edges(dtype), 0.4, **more)) == ONE[-count:]
            decided = ours.decide(x, *edges(dtype), 0.4, **more)
            assert [one.shape for one in decided] == [h.shape[:-1], h.shape[:-1], (*h.shape[:-1], 4)]
            flat = [one.flatten(0, h.dim() - 2) for one in decided]
            assert same(flat, (predictions, confidences, probabilities))


def hooked(model: nn.Module) -> None:
    model.tgcn_backbone.cells[1].register_forward_hook(lambda *_: None)


def hooked_head(model: nn.Module) -> None:
    model.signal_head.register_forward_hook(lambda *_: None)


def own_state(model: nn.Module) -> None:
    class Doubled(hiermt.TGCN):
        def last_state(self, *args: Any) -> Tensor:
            return 2 * super().last_state(*args)

    model.tgcn_backbone.__class__ = Doubled


def own_sequence(model: nn.Module) -> None:
    class Doubled(hiermt.TGCNCell):
        def run_sequence(self, x: Any, graph: Any, params: Any, sequence: bool, *args: Any) -> Tensor:
            return 2 * super().run_sequence(x, graph, params, sequence, *args)

    model.tgcn_backbone.cells[1].__class__ = Doubled


def other_backend(model: nn.Module) -> None:
    model.tgcn_backbone.cells[1].gcn.backend = "reference"


@pytest.mark.hostile("replaced-part")
@pytest.mark.parametrize("change", [hooked, hooked_head, own_state, own_sequence, other_backend])
def test_a_part_of_the_users_takes_part(change: Callable[[nn.Module], None]) -> None:
    ours, x = model(), torch.randn(STOCKS, STEPS, CHANNELS)
    plain = ours(x, *edges())
    change(ours)
    expected = ours(x, *edges())
    if change in (own_state, own_sequence):
        assert not torch.allclose(plain[0], expected[0])
    with torch.no_grad():
        assert "tgcn_layer_decision" not in operators(lambda: ours(x, *edges()))
        assert same(ours(x, *edges()), expected)


def test_what_else_reads_the_state() -> None:
    x = torch.randn(STOCKS, STEPS, CHANNELS)
    ours = model(dropout=0.5)
    frozen = model().requires_grad_(False)
    assert operators(lambda: ours(x, *edges())) == TWO
    assert operators(lambda: frozen(x, *edges())) == ONE
    assert operators(lambda: frozen(x.clone().requires_grad_(), *edges())) == TWO
    with torch.no_grad():
        assert operators(lambda: ours(x, *edges())) == ONE
        assert operators(lambda: ours(x, *edges(), return_state=True)) == TWO
        assert operators(lambda: ours(x, *edges(), return_sequence=True)) == TWO
        assert operators(lambda: ours.train()(x, *edges())) == TWO


def test_a_head_of_another_dtype_is_named() -> None:
    ours, x = model(), torch.randn(STOCKS, STEPS, CHANNELS)
    ours.signal_head.double()
    with torch.no_grad(), pytest.raises(TypeError, match=r"x is torch.float32, params: signal.weight torch.float64"):
        ours(x, *edges())
    with pytest.raises(ValueError, match="threshold"):
        model().decide(x, *edges(), 1.5)


def test_autocast() -> None:
    ours, x = model(), torch.randn(STOCKS, STEPS, CHANNELS)
    with torch.autocast("cpu", torch.bfloat16):
        expected = ours(x, *edges())
        with torch.no_grad():
            assert operators(lambda: ours(x, *edges())) == ONE
            found = ours(x, *edges())
    assert found[0].dtype == torch.bfloat16 and same(found, expected)


@pytest.mark.hostile("compilers")
def test_compiled_and_exported() -> None:
    torch._dynamo.reset()
    ours, x = model(), torch.randn(STOCKS, STEPS, CHANNELS)
    sizes = {0: Dim("n"), 1: Dim("t")}, {1: Dim("e")}, {0: Dim("e")}
    traced: list[str] = []

    def backend(module: Any, example: Any) -> Any:
        traced.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        program = torch.export.export(ours, (x, *edges()), dynamic_shapes=sizes)
        exported = [str(node.target) for node in program.graph.nodes]
        for nodes, steps in ((STOCKS, STEPS), (20, 9)):
            x, graph = torch.randn(nodes, steps, CHANNELS), testing.stock_graph(nodes, 50)
            expected = ours(x, *graph)
            assert same(compiled(x, *graph), expected)
            assert same(program.module()(x, *graph), expected)
    for targets in (traced, exported):
        assert "hiermt.tgcn_layer_decision.default" in targets and "hiermt.decision.default" not in targets
    traced.clear()
    found = compiled(x, *graph)
    assert "hiermt.tgcn_layer_decision.default" not in traced and "hiermt.decision.default" in traced
    assert same(found, expected)
    found[0].sum().backward()
    assert ours.signal_head.weight.grad is not None
