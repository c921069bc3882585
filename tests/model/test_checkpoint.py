"""Checkpoints as they come: prefixes, nested entries, other kinds of model; damaged and forged files."""

from __future__ import annotations

import collections
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hiermt
from hiermt import testing
from hiermt.io import checkpoint, state_dicts
from hiermt.training.resume import save_state
from support.checkpoint_models import as_before, assert_equal, model_of
from support.properties import given, settings, st

pytest.importorskip("safetensors")
from safetensors.torch import save_file

EDGES = testing.stock_graph(20, 60)
X = torch.randn(20, 6, 5)


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.net.module.",
    "a.b.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("bare", [False, True])
def test_a_common_prefix_is_taken_off(prefix: str, bare: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = hiermt.TGCN(5, 3, 7) if bare else model_of()
    state = {prefix + key: value for key, value in model.state_dict().items()}
    assert_equal(hiermt.from_reference(state), model)
    assert prefix.replace("_orig_mod.", "") in capsys.readouterr().out


NESTED = ["state_dict", "model_state_dict", "model", "net", "weights", "EMA"]


@pytest.mark.parametrize("entry", NESTED)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_the_entry_that_holds_tensors_is_found(
    entry: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    state = collections.OrderedDict((f"model.module.{key}", value) for key, value in model.state_dict().items())
    content = {"epoch": 3, "optimizer_state_dict": optimizer.state_dict(), entry: state, "loss": torch.zeros(1)}
    torch.save(content, tmp_path / f"file{suffix}")
    assert_equal(hiermt.from_reference(tmp_path / f"file{suffix}"), model)
    assert f"[{entry!r}]" in capsys.readouterr().out
    assert_equal(hiermt.from_reference({"outer": content}, verbose=False), model)


def test_an_averaged_model_counts_beside_its_weights() -> None:
    model = model_of()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert "n_averaged" in averaged.state_dict()
    assert_equal(hiermt.from_reference(averaged.state_dict(), verbose=False), model)


def test_a_training_state_of_ours_is_a_checkpoint(tmp_path: Path) -> None:
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    best = {"best": {"loss": 1.0, "state": model_of().state_dict()}}
    save_state(tmp_path / "state.pt", model, optimizer, [], {"epoch": 1}, best)
    assert_equal(hiermt.from_reference(tmp_path / "state.pt", verbose=False), model)


def test_several_models_are_not_guessed_between() -> None:
    state = model_of().state_dict()
    with pytest.raises(ValueError, match=r"several models.*\['a'\].*\['b'\]"):
        hiermt.from_reference({"a": state, "b": state.copy()})
    pair = {**{f"a.{k}": v for k, v in state.items()}, **{f"b.{k}": v for k, v in state.items()}}
    with pytest.raises(ValueError, match="2 models"):
        hiermt.from_reference(pair)
    with pytest.raises(ValueError, match=r"unknown criterion\.weight"):
        hiermt.from_reference({**{f"model.{k}": v for k, v in state.items()}, "criterion.weight": torch.ones(2)})
    loop: dict[str, Any] = {"state": {}}
    loop["state"]["again"] = loop
    with pytest.raises(ValueError, match="expected a state_dict"):
        hiermt.from_reference(loop)


@pytest.mark.parametrize(
    "content",
    [(), [{"weight": torch.ones(2)}], None, True, 5, 1.5, "text", b"bytes", torch.ones(2), {}, {"a": 1}, {1: (2,)}],
    ids=str,
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"file\.pt: (expected a state_dict|cannot be mapped)"):
        hiermt.from_reference(tmp_path / "file.pt", verbose=False)


def test_gcn_into_gat_names_use_gat(tmp_path: Path) -> None:
    gcn, gat = model_of(use_gat=False), model_of()
    for load in (lambda m, s: state_dicts.load_exactly(m, s, "it"), lambda m, s: m.load_state_dict(s)):
        with pytest.raises((ValueError, RuntimeError), match="use_gat=False"):
            load(gat, gcn.state_dict())
        with pytest.raises((ValueError, RuntimeError), match="use_gat=True"):
            load(gcn, gat.state_dict())
    gcn.save_pretrained(tmp_path)
    config = {"use_gat": True, "edge_dim": 1}
    path = tmp_path / checkpoint.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ValueError, match="use_gat is True there and False here"):
        hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float64, "float(32|64).*float(64|32)"),
        (torch.bfloat16, "is torch.bfloat16"),
        (torch.int64, "int64, expected float32"),
        (torch.bool, "bool, expected float32"),
        (torch.complex64, "complex64, expected"),
    ],
)
@pytest.mark.parametrize("place", ["tgcn_backbone.cells.0.lin_u.weight", "signal_head.bias"])
def test_mixed_types_are_refused_by_name(dtype: torch.dtype, message: str, place: str, tmp_path: Path) -> None:
    state = dict(model_of().state_dict())
    state[place] = state[place].to(dtype)
    with pytest.raises(ValueError, match=message) as caught:
        hiermt.from_reference(state)
    assert place in str(caught.value)
    model_of().save_pretrained(tmp_path)
    save_file(state, str(tmp_path / checkpoint.WEIGHTS))
    with pytest.raises(ValueError, match=message):
        hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)


@pytest.mark.parametrize("how", ["model", "module inside", "numpy", "raw pickle", "script"])
def test_pickled_objects_get_a_sentence(how: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if how == "raw pickle":
        path.write_bytes(pickle.dumps({"state_dict": Path("x")}))
    elif how == "script":
        torch.jit.script(nn.Linear(2, 2)).save(str(path))
    else:
        value: Any = {"model": model_of(), "module inside": {"a": nn.Linear(2, 2)}, "numpy": {"p": Path("x")}}[how]
        torch.save(value, path)
    with pytest.raises(
        ValueError, match=r"not a readable checkpoint: it (holds Python objects|is a plain pickle|is a TorchScript)"
    ) as caught:
        hiermt.from_reference(path)
    text = str(caught.value)
    assert "\x1b" not in text and "\n" not in text and "weights_only" not in text
    assert "state_dict()" in text or "jit.load" in text


# --- damaged and forged ------------------------------------------------------------------------------------------


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


FORGED: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(64),
    "four bytes": b"abcd",
    "header as long as the world": safetensors_bytes({}, length=1 << 62),
    "header past the end": safetensors_bytes({}, length=3),
    "header a list": safetensors_bytes([]),
    "header not text": safetensors_bytes(b"\xff\xfe{}"),
    "header with NaN": safetensors_bytes(b'{"a": NaN}'),
    "header nested": safetensors_bytes(b'{"a":' * 50_000),
    "entry a number": safetensors_bytes({"a": 3}),
    "shape of 10^12": safetensors_bytes({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
    "shape that wraps": safetensors_bytes({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}),
    "negative": safetensors_bytes({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "true": safetensors_bytes({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)),
    "unknown type": safetensors_bytes({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "type a list": safetensors_bytes({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "offsets crossed": safetensors_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "metadata a number": safetensors_bytes({"__metadata__": {"a": 3}}),
    "key twice": safetensors_bytes(b'{"a": {}, "a": {}}'),
}


@pytest.mark.hostile("weight-file")
@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_forged_files_get_a_sentence(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(FORGED[name])
    with pytest.raises(ValueError, match="not a readable checkpoint") as caught:
        hiermt.from_reference(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    model_of().save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / checkpoint.WEIGHTS).write_bytes(FORGED[name])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path / "folder")


def saved_bytes(kind: str) -> bytes:
    torch.manual_seed(0)
    buffer = io.BytesIO()
    state = model_of().state_dict()
    if kind == "pt":
        torch.save(state, buffer)
    elif kind == "old pt":
        torch.save(state, buffer, _use_new_zipfile_serialization=False)
    else:
        from safetensors.torch import save

        return bytes(save(state))
    return buffer.getvalue()


def refusal_of(load: Any) -> str | None:
    """What a ValueError says; every other error passes through."""
    try:
        load()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.hostile("weight-file")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["pt", "old pt", "safetensors"]), st.floats(0, 1), st.binary(max_size=6), st.booleans())
def test_any_damage_is_refused_or_harmless(kind: str, where: float, noise: bytes, cut: bool) -> None:
    import tempfile

    data = saved_bytes(kind)
    at = int(where * len(data))
    damaged = data[:at] if cut else data[:at] + noise + data[at + len(noise) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("model.safetensors" if kind == "safetensors" else "model.pt")
        path.write_bytes(damaged)
        refusal = refusal_of(lambda: hiermt.from_reference(path, verbose=False))
        assert refusal is None or "\n" not in refusal


def test_records_that_unpack_to_more_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as given_file,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as forged,
    ):
        for entry in given_file.infolist():
            forged.writestr(entry.filename, given_file.read(entry))
    with pytest.raises(ValueError, match=r"claim 40\d+ bytes"):
        hiermt.from_reference(tmp_path / "b.pt")


@pytest.mark.hostile("weight-file", "large-index")
def test_claims_of_many_layers_cost_nothing() -> None:
    state = model_of().state_dict()
    for key in (
        "tgcn_backbone.cells.999999999.gcn.convs.0.bias",
        "tgcn_backbone.cells.1.gcn.convs.999999999.bias",
        "tgcn_backbone.cells.0.gcn.convs.7.bias",
    ):
        with pytest.raises(ValueError, match="expected 0 to"):
            hiermt.from_reference({**state, key: torch.zeros(7)})
    for key in (f"tgcn_backbone.cells.{'9' * 5000}.gcn.convs.0.bias", f"tgcn_backbone.cells.{10**12}.lin_u.bias"):
        with pytest.raises(ValueError, match="unknown"):
            hiermt.from_reference({**state, key: torch.zeros(7)})
    wide = {
        key: value.new_zeros(1).expand(10**7, 10**7) if key.endswith("lin_l.weight") else value
        for key, value in state.items()
    }
    with pytest.raises(ValueError, match="stride of 0"):
        hiermt.from_reference(wide)
    with pytest.raises(ValueError, match="meta"):
        hiermt.from_reference({key: value.to("meta") for key, value in state.items()})


WRONG_CONFIGS: list[tuple[str, Any]] = [
    ("hidden_size", "16"),
    ("hidden_size", True),
    ("hidden_size", 7.0),
    ("hidden_size", 10**12),
    ("hidden_size", None),
    ("hidden_size", -7),
    ("hidden_size", {}),
    ("in_channels", 10**12),
    ("in_channels", [5]),
    ("layers_nb", 10**9),
    ("layers_nb", 0),
    ("conv_layers", 10**9),
    ("use_gat", 1),
    ("use_gat", "yes"),
    ("use_gat", False),
    ("edge_dim", True),
    ("edge_dim", 2),
    ("edge_dim", None),
    ("conv_activation", "sideways"),
    ("conv_activation", 3),
    ("layout", "TNF"),
    ("layout", ["NTF"]),
    ("colour", "red"),
    ("backend", "native"),
    ("output_activation", "x"),
    ("feature_names", "abcde"),
    ("feature_names", ["a"]),
    ("feature_names", [1, 2, 3, 4, 5]),
    ("feature_names", {"a": 1}),
]


@pytest.mark.parametrize(("key", "value"), WRONG_CONFIGS)
@pytest.mark.parametrize("old", [False, True])
def test_a_config_that_claims_other_things_is_refused(key: str, value: Any, old: bool, tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    if old:
        as_before(tmp_path)
    config = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    (tmp_path / checkpoint.CONFIG).write_text(json.dumps({**config, key: value}))
    with pytest.raises(ValueError, match=key):
        hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[1]", "3", '{"a": 1, "a": 2}', "[" * 100_000, "\xff", "null"])
def test_a_malformed_config_gets_a_sentence(text: str, tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    (tmp_path / checkpoint.CONFIG).write_bytes(text.encode("latin-1"))
    for load in (hiermt.TGCN_HierarchicalMT.from_pretrained, hiermt.from_reference):
        with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|expected a JSON object)"):
            load(tmp_path)
