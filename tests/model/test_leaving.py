"""Ways out of hiermt: the PyG model like one of ours, ONNX through it, saved programs; and forwards without values."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hiermt
from hiermt import testing
from support import scripts

FEATURES, HIDDEN, NODES, STEPS = 3, 5, 12, 4
MODELS: dict[str, Callable[..., nn.Module]] = {
    "gat": lambda **options: hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, **options),
    "gcn": lambda **options: hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, use_gat=False, **options),
    "single": lambda **options: hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, conv_layers=1, edge_dim=None, **options),
    "backbone": lambda **options: hiermt.TGCN(FEATURES, 2, HIDDEN, output_activation=nn.Sigmoid(), **options),
    "attention": lambda **options: hiermt.A3TGCN(FEATURES, 2, HIDDEN, **options),
    "heads": lambda **options: hiermt.MultiTaskTGCN(FEATURES, HIDDEN, heads={"signal": 2, "move": 1}, **options),
}
every_model = pytest.mark.parametrize("name", MODELS)


def arguments(model: Any, nodes: int = NODES, edges: int = 40) -> tuple[Tensor, ...]:
    edge_index, edge_weight = testing.stock_graph(nodes, edges)
    x = torch.randn(nodes, STEPS, FEATURES)
    x = x.mT if model.config["layout"] == "NFT" else x
    return (x, edge_index) if model.config["edge_dim"] is None else (x, edge_index, edge_weight)


def leaves(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, dict):
        return list(outputs.values())
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@every_model
@pytest.mark.parametrize("layout", ["NTF", "NFT"])
def test_like_gives_the_numbers_of_the_model(name: str, layout: str) -> None:
    pyg = pytest.importorskip("hiermt.pyg", exc_type=ImportError)
    model = MODELS[name](layout=layout).double().eval()
    args = [one.double() if one.is_floating_point() else one for one in arguments(model)]
    twin = pyg.like(model)
    assert not twin.training and not set(twin.parameters()) & set(model.parameters())
    for found, expected in zip(leaves(twin(*args)), leaves(model(*args)), strict=True):
        testing.assert_close(found, expected)


def test_like_refuses_what_it_cannot_copy() -> None:
    pyg = pytest.importorskip("hiermt.pyg", exc_type=ImportError)
    with pytest.raises(TypeError, match=r"expected one of TGCN_HierarchicalMT, .* got Linear"):
        pyg.like(nn.Linear(2, 2))

    class Doubled(hiermt.TGCN):
        def forward(self, *args: Any, **options: Any) -> Any:
            return 2 * super().forward(*args, **options)

    with pytest.raises(TypeError, match=r"with its own forward, got Doubled"):
        pyg.like(Doubled(FEATURES, 2, HIDDEN))
    model = MODELS["gat"]()
    model.signal_head = nn.Sequential(nn.Linear(HIDDEN, 2))
    with pytest.raises(RuntimeError, match="signal_head"):
        pyg.like(model)


@pytest.mark.parametrize("name", ["gat", "gcn"])
def test_onnx_runs_the_twin_on_graphs_of_any_size(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pyg = pytest.importorskip("hiermt.pyg", exc_type=ImportError)
    pytest.importorskip("onnx")
    model, file = MODELS[name]().eval(), io.BytesIO()
    names = ("x", "edge_index", "edge_weight")[: len(arguments(model))]
    axes = {name: {int(name == "edge_index"): "nodes" if name == "x" else "edges"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = pyg.like(model)
        torch.onnx.export(twin, arguments(model), file, dynamo=False, input_names=list(axes), dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file.getvalue())
    for nodes, edges in ((NODES, 40), (17, 70)):
        args = arguments(model, nodes, edges)
        found = session.run(None, {key: value.numpy() for key, value in zip(axes, args, strict=True)})
        for one, expected in zip(found, model(*args), strict=True):
            testing.assert_close(torch.from_numpy(one), expected)


@every_model
def test_onnx_of_the_operators_is_refused_by_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch.onnx exports, without its packages: the shapes of an operator are asked for within the export."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    model = MODELS[name](backend="auto").eval()
    if hiermt.native.extension.why_not_native("cpu"):
        pytest.skip("without operators there is nothing to refuse")
    with pytest.raises(NotImplementedError, match=r"^ONNX has no operators of hiermt; .*pyg\.like\(model\)"):
        torch.export.export(model, arguments(model))


def test_a_trace_names_the_way_out() -> None:
    model = MODELS["gat"]().eval()
    with pytest.raises(NotImplementedError, match=r"hiermt\.pyg\.like\(model\)"):
        torch.jit.trace(model, arguments(model))


@every_model
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_forwards_without_values(name: str, kind: str, backend: str) -> None:
    """The shapes and types of every output, on the meta device and under FakeTensorMode, training too."""
    model = MODELS[name](backend="auto" if kind == "meta" else backend)  # there are no kernels for the meta device
    args = arguments(model)
    expected = leaves(model(*args))
    if kind == "meta":
        model = model.to("meta")
        found = leaves(model(*(one.to("meta") for one in args)))
    else:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            found = leaves(model(*(mode.from_tensor(one) for one in args)))
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in expected]
    assert all(one.requires_grad for one in found)
    sum(one.sum() for one in found).backward()


@pytest.fixture
def elsewhere() -> dict[str, str]:
    """An environment whose processes do not import hiermt by themselves."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HIERMT_")}


def test_a_saved_program_says_that_the_import_is_missing(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    if hiermt.native.extension.why_not_native("cpu"):
        pytest.skip("without operators a program needs no import")
    model = MODELS["gat"]().eval()
    torch.export.save(torch.export.export(model, arguments(model)), tmp_path / "model.pt2")
    load = f"import json, torch; torch.export.load({str(tmp_path / 'model.pt2')!r}); print(json.dumps('loaded'))"
    refused = scripts.run(load, tmp_path, elsewhere)
    assert refused.returncode == 1 and "failed to resolve torch.ops.hiermt." in refused.stderr, refused.stderr
    path = str(Path(hiermt.__file__).parents[1])
    loaded = scripts.run(f"import sys; sys.path.insert(0, {path!r}); import hiermt; {load}", tmp_path, elsewhere)
    assert loaded.returncode == 0 and json.loads(loaded.stdout.splitlines()[-1]) == "loaded", loaded.stderr
