"""Taking over PyG models, and checkpoints on disk, good and bad."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt import testing
from hiermt.io.files import atomic_write

pyg = pytest.importorskip("hiermt.testing.pyg", reason="the model to take over needs torch-geometric")
pytest.importorskip("safetensors")

VARIANTS: list[dict[str, Any]] = [
    {},
    {"conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
    {"use_gat": False},
    {"conv_layers": 3, "edge_dim": None},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_seed_gives_the_weights_of_pyg(variant: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = pyg.HierarchicalMT(5, 7, 3, **variant).state_dict()
    next_of_theirs = torch.rand(3)
    torch.manual_seed(3)
    ours = hiermt.TGCN_HierarchicalMT(5, 7, 3, **variant).state_dict()
    assert torch.equal(torch.rand(3), next_of_theirs)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source", ["module", "state_dict", "pt", "safetensors"])
def test_everything_is_inferred(variant: dict[str, Any], source: str, tmp_path: Path) -> None:
    theirs = pyg.HierarchicalMT(5, 7, 3, **variant)
    given: Any = theirs if source == "module" else theirs.state_dict()
    if source == "pt":
        torch.save(given, tmp_path / "model.pt")
        given = tmp_path / "model.pt"
    elif source == "safetensors":
        from safetensors.torch import save_file

        save_file(given, tmp_path / "model.safetensors")
        given = str(tmp_path / "model.safetensors")
    ours = hiermt.from_reference(given, verbose=False)
    edge_index, edge_weight = testing.stock_graph(20, 60)
    weight = None if variant.get("edge_dim", 1) is None else edge_weight
    x = torch.randn(20, 6, 5)
    for found, wanted in zip(ours(x.transpose(1, 2), edge_index, weight), theirs(x, edge_index, weight), strict=True):
        testing.assert_close(found, wanted)


def test_a_module_shares_its_parameters() -> None:
    theirs = pyg.HierarchicalMT(5, 7).double()
    ours = hiermt.from_reference(theirs, layout="NTF", verbose=False)
    mine = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert mine[name] is parameter
    edge_index, edge_weight = testing.stock_graph(20, 60)
    signal, direction = ours(torch.randn(20, 6, 5).double(), edge_index, edge_weight)
    (signal.sum() + direction.sum()).backward()
    assert theirs.signal_head.weight.grad is not None


def test_a_bare_backbone_keeps_its_activation() -> None:
    theirs = pyg.Backbone(5, 3, 7)
    theirs.out.append(torch.nn.Sigmoid())
    ours = hiermt.from_reference(theirs, layout="NTF", verbose=False)
    assert isinstance(ours, hiermt.TGCN)
    edges = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    testing.assert_close(ours(x, *edges), theirs(x, *edges))


def test_says_what_it_inferred(capsys: pytest.CaptureFixture[str]) -> None:
    hiermt.from_reference(pyg.HierarchicalMT(5, 7))
    out = capsys.readouterr().out
    for part in ("TGCN_HierarchicalMT", "in_channels=5", "hidden_size=7", "conv_layers=2", "layout='NFT'"):
        assert part in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("signal_head.bias"), "missing signal_head.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown extra"),
        (
            lambda s: s.update({"signal_head.weight": s["signal_head.weight"].t().contiguous()}),
            r"signal_head.weight has shape \[7, 2\], expected \[2, 7\]",
        ),
        (
            lambda s: s.update({"tgcn_backbone.cells.0.gcn.convs.0.att": torch.zeros(1, 4, 7)}),
            r"only one head, \[1, 1, H\], is supported",
        ),
        (
            lambda s: s.update({"tgcn_backbone.cells.0.gcn.convs.0.lin_edge.weight": torch.zeros(7, 3)}),
            "reads 3 edge features",
        ),
        (lambda s: s.clear(), "no cells"),
    ],
)
def test_refuses_with_a_list_what_it_cannot_map(change: Any, message: str) -> None:
    state = dict(pyg.HierarchicalMT(5, 7).state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        hiermt.from_reference(state, verbose=False)
    with pytest.raises(TypeError, match="source"):
        hiermt.from_reference(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        ({"negative_slope": 0.5}, "negative_slope=0.5"),
        ({"add_self_loops": False}, "add_self_loops=False"),
        ({"fill_value": 1.0}, "fill_value=1.0"),
        ({"dropout": 0.5}, "dropout=0.5"),
        ({"aggr": "mean"}, "aggr="),
        ({"flow": "target_to_source"}, "flow="),
    ],
)
def test_refuses_attributes_that_change_the_mathematics(conv: dict[str, Any], message: str) -> None:
    from torch_geometric.nn import GATv2Conv

    theirs = pyg.HierarchicalMT(5, 7)
    theirs.tgcn_backbone.cells[0].gcn.convs[0] = GATv2Conv(5, 7, edge_dim=1, **conv)
    with pytest.raises(ValueError, match=message):
        hiermt.from_reference(theirs, verbose=False)


def test_refuses_an_activation_that_two_heads_do_not_have() -> None:
    theirs = pyg.HierarchicalMT(5, 7)
    theirs.tgcn_backbone.out.append(torch.nn.Tanh())
    with pytest.raises(ValueError, match="Tanh"):
        hiermt.from_reference(theirs, verbose=False)


def test_tied_weights_stay_tied() -> None:
    from torch_geometric.nn import GATv2Conv

    theirs = pyg.HierarchicalMT(5, 7)
    conv = GATv2Conv(5, 7, edge_dim=1, share_weights=True)
    theirs.tgcn_backbone.cells[0].gcn.convs[0] = conv
    ours = hiermt.from_reference(theirs, verbose=False)
    assert isinstance(ours, hiermt.TGCN_HierarchicalMT)
    mine = ours.tgcn_backbone.cells[0].gcn.convs[0]
    assert mine.lin_l.weight is mine.lin_r.weight is conv.lin_l.weight


def test_a_folder_keeps_the_dtype_and_refuses_an_activation(tmp_path: Path) -> None:
    hiermt.TGCN(5, 3, 7).double().save_pretrained(tmp_path)
    assert next(hiermt.TGCN.from_pretrained(tmp_path).parameters()).dtype == torch.float64
    with pytest.raises(ValueError, match="output_activation"):
        hiermt.TGCN(5, 3, 7, output_activation=torch.nn.Tanh()).save_pretrained(tmp_path)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path("exploded").touch, ())


@pytest.mark.hostile("weight-file")
def test_pickled_code_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (("torch.pt", torch.save), ("raw.pt", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"a": Bomb()}, tmp_path / name)
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            hiermt.from_reference(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.hostile("weight-file")
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = pyg.HierarchicalMT(5, 7).state_dict()
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(state, path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            hiermt.from_reference(path)
    with pytest.raises(FileNotFoundError):
        hiermt.from_reference(tmp_path / "absent.pt")


def test_save_and_load_give_the_same_model(tmp_path: Path) -> None:
    edges = testing.stock_graph(20, 60)
    x = torch.randn(20, 6, 5)
    for model in (hiermt.TGCN_HierarchicalMT(5, 7, use_gat=True), hiermt.TGCN(5, 3, 7, use_gat=False)):
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        for found, wanted in zip(again(x, *edges), model(x, *edges), strict=True):
            assert torch.equal(found, wanted)
        assert again.config == model.config
        assert type(hiermt.from_reference(tmp_path)) is type(model)


def test_a_folder_gives_way_to_what_is_asked_for(tmp_path: Path) -> None:
    hiermt.TGCN(5, 3, 7, layout="NTF", conv_activation="after").save_pretrained(tmp_path)
    plain = hiermt.from_reference(tmp_path)
    assert (plain.config["layout"], plain.config["conv_activation"]) == ("NTF", "after")
    changed = hiermt.from_reference(tmp_path, layout="NFT", conv_activation="between")
    assert (changed.config["layout"], changed.config["conv_activation"]) == ("NFT", "between")
    assert changed(torch.randn(20, 5, 6), *testing.stock_graph(20, 60)).shape == (20, 3)
    with pytest.raises(ValueError, match="layout"):
        hiermt.from_reference(tmp_path, layout="TNF")


def test_load_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        hiermt.TGCN.from_pretrained(tmp_path)
    hiermt.TGCN_HierarchicalMT(5, 7).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a TGCN_HierarchicalMT, not a TGCN"):
        hiermt.TGCN.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for damaged, message in (
        ({**config, "hidden_size": 9}, "does not fit the model"),
        ({**config, "colour": "red"}, "does not describe"),
        ([], "expected a JSON object"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=message):
            hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)


@pytest.mark.hostile("interrupted-write")
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_save_leaves_the_old_file(
    interruption: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 7)
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise interruption

    monkeypatch.setattr(Path, "write_bytes", fail)
    with torch.no_grad():
        model.signal_head.bias += 1
    with pytest.raises(interruption if isinstance(interruption, type) else type(interruption)):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_write(target) as path:
        path.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"

    def fail() -> None:
        with atomic_write(target) as path:
            path.write_text("two")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "one"
    assert list(target.parent.iterdir()) == [target]
