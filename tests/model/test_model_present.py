"""Models with stocks that come and go, against PyG on the subgraph of those that are there, day by day."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt.testing import assert_close, batched, stock_graph
from hiermt.windows import DayRange, Windows
from support import present as oracle

NODES, STEPS, FEATURES, HIDDEN = 12, 6, 5, 7
EDGES = stock_graph(NODES)
VARIANTS: dict[str, dict[str, Any]] = {
    "GATv2": {},
    "one GATv2": {"conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
    "GCN": {"use_gat": False},
}


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def edges_of(options: dict[str, Any], copies: int = 1) -> tuple[Tensor, Tensor | None]:
    index, weight = EDGES
    weight = None if options.get("edge_dim", 1) is None else weight.double()
    return batched(index, weight, NODES, copies) if copies > 1 else (index, weight)


def backbone(backend: str = "auto", cls: Any = hiermt.TGCN, **options: Any) -> Any:
    torch.manual_seed(1)
    args = () if cls is hiermt.TGCN_HierarchicalMT else (3,)
    if cls is hiermt.MultiTaskTGCN:
        args, options = (), {**options, "heads": {"signal": 2, "direction": 2, "regime": 3}}
    sizes = {"hidden_size": HIDDEN, "backend": backend, "layout": "NTF", **options}
    return cls(FEATURES, *args, **sizes).double()


def expected_states(
    model: Any, x: Tensor, present: Tensor, options: dict[str, Any], h: Any = None
) -> tuple[Tensor, list[Tensor]]:
    """The oracle on ``[N, T, F]`` with the parameters of a model."""
    cells = getattr(model, "tgcn_backbone", model).cells
    params = [(cell.gcn.op_parameters(), cell.gates()) for cell in cells]
    layers, between = options.get("conv_layers", 2), options.get("conv_activation", "between") == "between"
    edges = edges_of(options, x.size(0) // NODES)
    return oracle.layers(x, edges, present, params, h, conv_layers=layers, between=between)


def problem(copies: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features, NaN where a stock is absent, and the mask."""
    torch.manual_seed(seed)
    present = oracle.masks(copies * NODES, STEPS, seed)["random"]
    x = torch.randn(copies * NODES, STEPS, FEATURES, dtype=torch.float64)
    return x.masked_fill(~present.unsqueeze(-1), torch.nan), present


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_values_states_and_gradients(options: dict[str, Any], backend: str) -> None:
    model, (x, present) = backbone(backend, **options), problem()
    h = [torch.randn(NODES, HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    leaves = [x.requires_grad_(), *h, *(p for name, p in model.named_parameters() if not name.startswith("out"))]
    y, states = model(x, *edges_of(options), h=h, return_sequence=True, return_state=True, present=present)
    truth, last = expected_states(model, x, present, options, h)
    assert_close(y, model.out(truth))
    for one, other in zip(states, last, strict=True):
        assert_close(one, other)
    seed = torch.randn_like(y)
    got = torch.autograd.grad(y, leaves, seed)
    want = torch.autograd.grad(model.out(truth), leaves, seed)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, gradient=True, scaled=True)
    assert not got[0][~present].any()  # also where x is NaN


@pytest.mark.parametrize("cls", [hiermt.A3TGCN, hiermt.MultiTaskTGCN, hiermt.TGCN_HierarchicalMT])
def test_every_model(cls: Any, backend: str) -> None:
    model, (x, present) = backbone(backend, cls), problem()
    states, _ = expected_states(model, x, present, {})
    y = model(x, *EDGES_DOUBLE, present=present)
    if cls is hiermt.A3TGCN:
        assert_close(y, model.out((states * model.attention(states)).sum(dim=1)))
        assert_close(model.step_weights(x, *EDGES_DOUBLE, present=present), model.attention(states).squeeze(-1))
        return
    features = model.tgcn_backbone.out(states[:, -1])
    if cls is hiermt.MultiTaskTGCN:
        for name, logits in y.items():
            assert_close(logits, getattr(model, f"{name}_head")(features))
        y = y["signal"], y["direction"]
    for logits, head in zip(y, (model.signal_head, model.direction_head), strict=True):
        assert_close(logits, head(features))
    _, _, probabilities = model.decide(x, *EDGES_DOUBLE, present=present)
    assert_close(probabilities, torch.cat([one.softmax(-1) for one in y], dim=-1))


EDGES_DOUBLE = edges_of({})


@pytest.mark.parametrize("layout", ["NTF", "NFT"])
def test_batches(layout: str, backend: str) -> None:
    """A mask of each copy, or one for all."""
    model, graph = backbone(backend, layout=layout), hiermt.Graph(*EDGES_DOUBLE, NODES)
    x, present = problem(copies=3)
    states, _ = expected_states(model, x, present, {})
    batch = x.reshape(3, NODES, STEPS, FEATURES)
    batch = batch if layout == "NTF" else batch.transpose(-1, -2)
    y = model(batch, graph, present=present.reshape(3, NODES, STEPS))
    assert_close(y, model.out(states[:, -1]).reshape(3, NODES, -1))
    one, batch = present[:NODES], batch.nan_to_num(5.0)
    y = model(batch, graph, present=one)
    assert torch.equal(y, model(batch, graph, present=one.expand(3, NODES, STEPS)))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_windows(options: dict[str, Any], backend: str) -> None:
    """The mask of a series, through every way of cutting it."""
    model = backbone(backend, **options)
    graph = hiermt.Graph(*edges_of(options), NODES)
    torch.manual_seed(2)
    present = oracle.masks(NODES, 20)["random"]
    series = torch.randn(NODES, 20, FEATURES, dtype=torch.float64).masked_fill(~present.unsqueeze(-1), torch.nan)
    windows = Windows(series, torch.tensor([3, 11, 4, 3]), STEPS, present)
    x, mask = windows.gather(), windows.gather_present()
    assert mask is not None and mask.shape == x.shape[:-1]
    states, _ = expected_states(model, x.flatten(0, 1), mask.flatten(0, 1), options)
    expected = model.out(states[:, -1]).reshape(4, NODES, -1)
    for one in (windows, windows.shared(), windows.within(DayRange(2, 20, 15)), windows.within(DayRange(0, 20, 20))):
        assert_close(model(one, graph), expected)
    assert_close(model(x, graph, present=mask), expected)


class Doubled(nn.Module):
    """A convolution in place of another."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, *args: Any) -> Any:
        return 2 * self.conv(*args)


@pytest.mark.hostile("absent", "replaced-part")
def test_replaced_parts_get_the_subgraph_of_the_day(backend: str) -> None:
    model, (x, present) = backbone(backend), problem()
    states, _ = expected_states(model, x, present, {})
    model.cells[0].register_forward_hook(lambda module, args, y: y)
    assert_close(model(x, *EDGES_DOUBLE, present=present), model.out(states[:, -1]))
    windows = Windows(x, torch.tensor([0, 1]), STEPS - 1, present)
    graph = hiermt.Graph(*EDGES_DOUBLE, NODES)
    assert_close(model(windows, graph)[1], model(x[:, 1:], graph, present=present[:, 1:]))

    model = backbone(backend)
    model.cells[1].gcn.convs[0] = Doubled(model.cells[1].gcn.convs[0])
    got = model(x, *EDGES_DOUBLE, present=present)
    everyone = torch.ones_like(present)
    assert not torch.allclose(got, backbone(backend)(x.nan_to_num(), *EDGES_DOUBLE, present=present))
    x = x.nan_to_num()
    assert_close(model(x, *EDGES_DOUBLE, present=everyone), model(x, *EDGES_DOUBLE))


def test_replaced_backbone_without_a_mask() -> None:
    class Backbone(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
            return x[:, -1, :HIDDEN]

    model = backbone(cls=hiermt.TGCN_HierarchicalMT)
    model.tgcn_backbone = Backbone()
    x, present = problem()
    with pytest.raises(TypeError, match="present"):
        model(x, *EDGES_DOUBLE, present=present)


def test_all_there_is_no_mask(backend: str) -> None:
    x, present = problem()
    x = x.nan_to_num()
    for options in VARIANTS.values():
        model = backbone(backend, **options)
        edges = edges_of(options)
        assert_close(model(x, *edges, present=torch.ones_like(present)), model(x, *edges))


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "numbers": (torch.ones(NODES, STEPS), TypeError, "present: expected a bool Tensor, got torch.float32"),
    "a list": ([[True] * STEPS] * NODES, TypeError, "present: expected a bool Tensor, got list"),
    "transposed": (torch.ones(STEPS, NODES, dtype=torch.bool), ValueError, r"present: expected shape \[12, 6\]"),
    "a vector": (torch.ones(NODES, dtype=torch.bool), ValueError, r"present: expected shape \[12, 6\], got \[12\]"),
    "with a batch": (torch.ones(1, NODES, STEPS, dtype=torch.bool), ValueError, r"present: expected shape \[12, 6\]"),
    "of features": (torch.ones(NODES, STEPS, FEATURES, dtype=torch.bool), ValueError, "present: expected shape"),
    "elsewhere": (torch.ones(NODES, STEPS, dtype=torch.bool, device="meta"), ValueError, "present on meta"),
}


@pytest.mark.hostile("absent", "messages")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_are_refused_by_name(name: str, backend: str) -> None:
    present, error, message = WRONG[name]
    x, _ = problem()
    for cls in (hiermt.TGCN, hiermt.A3TGCN, hiermt.MultiTaskTGCN, hiermt.TGCN_HierarchicalMT):
        model = backbone(backend, cls)
        with pytest.raises(error, match=message):
            model(x, *EDGES_DOUBLE, present=present)
        if hasattr(model, "decide"):
            with pytest.raises(error, match=message):
                model.decide(x, *EDGES_DOUBLE, present=present)
    model = backbone(backend)
    model.cells[0].register_forward_hook(lambda module, args, y: y)
    with pytest.raises(error, match=message):
        model(x, *EDGES_DOUBLE, present=present)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_of_windows(name: str, backend: str) -> None:
    present, error, message = WRONG[name]
    x, right = problem()
    model, graph = backbone(backend), hiermt.Graph(*EDGES_DOUBLE, NODES)
    with pytest.raises(error, match=message):
        model(Windows(x, torch.tensor([0]), 3, present), graph)
    with pytest.raises(ValueError, match="windows hold the mask of their series"):
        model(Windows(x, torch.tensor([0]), 3), graph, present=right)
