"""Files that try to run code, to take all memory or to leave their folder. SECURITY.md says what is promised."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hiermt
from hiermt import data
from hiermt.io import checkpoint, tensor_files
from hiermt.training import resume
from hiermt.training.encoding import _TAG, checksum, decode, encode
from support import resume_cases

MEBIBYTE = 1 << 20


@pytest.fixture
def memory() -> Iterator[None]:
    """At most 64 MiB more than the process has needed so far."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def packed(path: Path, piece: bytes) -> Path:
    """1,600 times `piece`: members of a gzipped file are unpacked one after the other."""
    path.write_bytes(gzip.compress(piece * 16) * 100)
    return path


class TestTables:
    @pytest.fixture(autouse=True)
    def _needs_pandas(self) -> None:
        pytest.importorskip("pandas")

    def test_a_first_line_of_a_gigabyte_and_more(self, tmp_path: Path, memory: None) -> None:
        path = packed(tmp_path / "prices.csv.gz", b"x" * MEBIBYTE)
        assert path.stat().st_size < 2 * MEBIBYTE
        for read in (data.read_prices, data.read_features, data.read_sectors):
            with pytest.raises(data.DataError, match=r"prices.csv.gz has a line of more than 4,194,304 bytes"):
                read(path)

    def test_a_gigabyte_of_short_lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from hiermt.data import frames

        assert (frames._MOST_PACKED, frames._FREE_BYTES) == (200, 64 * MEBIBYTE)
        monkeypatch.setattr(frames, "_MOST_PACKED", 4)
        monkeypatch.setattr(frames, "_FREE_BYTES", 8 * MEBIBYTE)
        path = packed(tmp_path / "prices.csv.gz", b"Date,A,B\n" * (MEBIBYTE // 9))
        with pytest.raises(data.DataError, match=r"holds more than [\d,]+ bytes of text"):
            data.read_prices(path)

    def test_lines_are_measured_across_pieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from hiermt.data import frames

        rows = [f"2024-01-{day:02d},{day}.5,{day}.25" for day in range(1, 29)]
        text = "\n".join(["Date,AAA,BBB", *rows]) + "\n"
        path = tmp_path / "prices.csv"
        path.write_text(text)
        expected = data.read_prices(path).close
        monkeypatch.setattr(frames, "_LONGEST_LINE", 24)
        for piece in range(1, 60):
            monkeypatch.setattr(frames, "_PIECE", piece)
            assert np.array_equal(data.read_prices(path).close, expected)
        monkeypatch.setattr(frames, "_LONGEST_LINE", 14)
        for piece in range(1, 60):
            monkeypatch.setattr(frames, "_PIECE", piece)
            with pytest.raises(data.DataError, match="line of more than 14 bytes"):
                data.read_prices(path)

    def test_a_billion_equal_rows_of_parquet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
        from hiermt.data import frames

        days = pandas.date_range("2024-01-01", periods=40)
        pandas.DataFrame({"Date": days, "A": 1.5, "B": 2.5}).to_parquet(tmp_path / "p.parquet")
        assert data.read_prices(tmp_path / "p.parquet").close.shape == (2, 40)
        monkeypatch.setattr(frames, "_MOST_CELLS", 100)
        with pytest.raises(data.DataError, match="40 rows of 3 columns; expected at most 100 cells"):
            data.read_prices(tmp_path / "p.parquet")

    @pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a device", "broken link"])
    def test_what_is_not_a_file(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "prices.csv"
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path = Path("/dev/zero")
        else:
            path.symlink_to("/dev/zero" if kind == "link to a device" else tmp_path / "nowhere")
        for read in (data.read_prices, data.read_features, data.read_adjacency):
            with pytest.raises(
                (data.DataError, FileNotFoundError), match=r"is a folder|not a regular file|no such file"
            ):
                read(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pkl"])
def test_no_adjacency_runs_code(name: str, tmp_path: Path) -> None:
    path, target = tmp_path / name, tmp_path / "executed"
    hidden = np.array([Code(target)], dtype=object)
    if name.endswith("npz"):
        np.savez(path, hidden)
    elif name.endswith("npy"):
        np.save(path, hidden, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Code(target)))
    with pytest.raises(data.DataError, match=r"not a readable \.npy file"):
        data.read_adjacency(path)
    assert not target.exists()


def test_an_adjacency_that_claims_a_terabyte(tmp_path: Path, memory: None) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (400000, 400000), }"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(data.DataError, match=r"not a readable \.npy file"):
        data.read_adjacency(tmp_path / "a.npy", 5)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors", "a.npz"])
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "in an optimiser"])
def test_no_checkpoint_runs_code(how: str, name: str, tmp_path: Path) -> None:
    path, target = tmp_path / name, tmp_path / "executed"
    content: dict[str, Any] = {"model": {}, "epoch": Code(target)}
    if how == "in an optimiser":
        weight = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.Adam([weight])
        optimizer.state[weight]["exp_avg"] = Code(target)
        content = {"model": {}, "optimizer": optimizer.state_dict()}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        hiermt.from_reference(path)
    model, optimizer = torch.nn.Linear(2, 2), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="not a readable training state"):
        resume.load_state(path, model, optimizer, [])
    assert not target.exists()


def with_header(path: Path, header: bytes, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    return path


HEADERS = {
    "longer than the file": (b"{}", 10**6),
    "longer than memory": (b"{}", 2**63),
    "nested": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None),
    "of a terabyte": (b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}', None),
    "of no memory": (b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,0]}}', None),
    "below zero": (b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[-4,0]}}', None),
    "twice": (b'{"w":1,"w":2}', None),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_headers_are_bounded(kind: str, tmp_path: Path, memory: None) -> None:
    pytest.importorskip("safetensors")
    path = with_header(tmp_path / "model.safetensors", *HEADERS[kind])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        hiermt.from_reference(path)
    (tmp_path / "config.json").write_text(json.dumps({"model": "TGCN", "in_channels": 3}))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        hiermt.TGCN.from_pretrained(tmp_path)


def test_a_header_above_the_limit_of_the_format_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.setattr(tensor_files, "LONGEST_HEADER", 100)
    path = with_header(tmp_path / "a.safetensors", b"{" + b" " * 200 + b"}")
    with pytest.raises(ValueError, match="its header claims 202 bytes"):
        hiermt.from_reference(path)


def saved(folder: Path, **changes: Any) -> Path:
    """A model whose config says something else, in both files."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    model = hiermt.MultiTaskTGCN(3, 4, heads={"signal": 2})
    model.save_pretrained(folder)
    config = {**json.loads((folder / checkpoint.CONFIG).read_text()), **changes}
    (folder / checkpoint.CONFIG).write_text(json.dumps(config))
    with safe_open(folder / checkpoint.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    metadata["hiermt_config"] = json.dumps(config)
    save_file(load_file(folder / checkpoint.WEIGHTS), folder / checkpoint.WEIGHTS, metadata=metadata)
    return folder


@pytest.mark.parametrize("key", ["in_channels", "hidden_size", "layers_nb", "conv_layers", "heads"])
@pytest.mark.parametrize("value", [10**9, 2**70, -1, 1.5, "3", None, [], True])
def test_sizes_of_a_config_are_not_believed(key: str, value: Any, tmp_path: Path, memory: None) -> None:
    pytest.importorskip("safetensors")
    folder = saved(tmp_path / "m", **{key: {"signal": value} if key == "heads" else value})
    with pytest.raises(ValueError, match=key):
        hiermt.MultiTaskTGCN.from_pretrained(folder)


def forged(name: str, value: Any, state: Path, path: Path) -> None:
    """A training state with another value in it, and a checksum that fits."""
    content = torch.load(state, weights_only=True)
    content.pop("checksum")
    content[name] = {**content[name], **value}
    torch.save({**content, "checksum": checksum(content)}, path)


class TestTrainingStates:
    """A checksum can be computed by anyone: what a state may hold is bounded without it."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> Path:
        made = self.made()
        made.run(1, checkpoint=tmp_path / "good.pt")
        return tmp_path / "good.pt"

    def made(self) -> resume_cases.Parts:
        resume_cases.seed(0)
        return resume_cases.parts(optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01))

    def refused(self, path: Path, match: str) -> None:
        made = self.made()
        before = {name: value.clone() for name, value in made.model.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            made.run(2, checkpoint=path, resume=True)
        assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())

    def test_no_function_of_a_library_is_called(self, state: Path, tmp_path: Path) -> None:
        pytest.importorskip("pandas")
        target = tmp_path / "executed"
        (tmp_path / "code.pkl").write_bytes(pickle.dumps(Code(target)))
        for forgery, match in (
            (
                {_TAG: "pandas", "class": "read_pickle", "value": str(tmp_path / "code.pkl"), "zone": None},
                "read_pickle",
            ),
            ({_TAG: "generator", "value": {"kind": "numpy.random.seed", "state": {}}}, "numpy.random.seed"),
            ({_TAG: "generator", "value": {"kind": "numpy.random.test", "state": {}}}, "numpy.random.test"),
            ({_TAG: "value", "class": "torch.dtype", "value": "load"}, "no dtype load"),
            ({_TAG: "enum", "class": "os:system", "value": "x"}, "no enum"),
            ({_TAG: "namedtuple", "class": "pathlib:Path", "value": ("x",)}, "no named tuple"),
            ({_TAG: "defaultdict", "value": [[], []], "factory": "eval"}, "eval"),
        ):
            forged("progress", {"x": forgery}, state, tmp_path / "bad.pt")
            self.refused(tmp_path / "bad.pt", match)
        assert not target.exists()

    def test_no_memory_is_read_that_is_not_the_files(self, state: Path, tmp_path: Path) -> None:
        address = torch.ones(16, dtype=torch.uint8)
        for forgery, match in (
            ({_TAG: "ndarray", "value": address, "dtype": "|O", "shape": [2]}, "Python objects"),
            ({_TAG: "ndarray", "value": address, "dtype": [("a", "|O")], "shape": [2]}, "Python objects"),
            ({_TAG: "ndarray", "value": address, "dtype": "<f8", "shape": [2**40]}, "damaged"),
        ):
            forged("progress", {"x": forgery}, state, tmp_path / "bad.pt")
            self.refused(tmp_path / "bad.pt", match)
        for position in (-1, 625, 2**31 - 1):
            stored: Any = decode(torch.load(state, weights_only=True)["random"]["numpy"])
            stored["state"]["pos"] = position
            forged("random", {"numpy": encode(stored)}, state, tmp_path / "bad.pt")
            self.refused(tmp_path / "bad.pt", "has the pos")
        philox = np.random.Philox(3).state
        philox["buffer_pos"] = -(10**6)
        forgery = {_TAG: "generator", "value": {"kind": "numpy.random.Philox", "state": encode(philox)}}
        forged("progress", {"x": forgery}, state, tmp_path / "bad.pt")
        self.refused(tmp_path / "bad.pt", "has the buffer_pos")

    def test_no_value_takes_all_memory_or_time(self, state: Path, tmp_path: Path) -> None:
        path = tmp_path / "bad.pt"
        forged("progress", {"x": {_TAG: "value", "class": "fractions.Fraction", "value": "1e999999999"}}, state, path)
        self.refused(path, "invalid literal")
        inside: list[Any] = []
        inside.append(inside)
        # Of these no checksum can be computed.
        for value in (inside, torch.zeros(1).expand(2**20, 2**20)):
            content = torch.load(state, weights_only=True)
            content["progress"] = {**content["progress"], "x": value}
            torch.save(content, path)
            self.refused(path, "damaged")

    def test_a_record_that_unpacks_to_more_than_the_file(self, state: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(state) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                content = old.read(entry)
                new.writestr(entry.filename, content + bytes(64 * MEBIBYTE) if "data/0" in entry.filename else content)
        self.refused(tmp_path / "bad.pt", "its records claim")
