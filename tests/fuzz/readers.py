"""The readers of files, each a function of bytes. What a reader does not document is a fault and leaves it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hiermt
from fuzz.source import Source, json_value, mutated
from hiermt import data
from hiermt.cli import config_file
from hiermt.io.checkpoint import CONFIG, WEIGHTS
from hiermt.training import resume
from hiermt.training.encoding import _TAG, checksum
from support import resume_cases

FOLDER = Path(tempfile.mkdtemp(prefix="hiermt-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def clean_up() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)


@contextlib.contextmanager
def documented(*kinds: type[Exception]) -> Iterator[None]:
    """Only these exceptions are expected, each with a sentence of one line or more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except kinds as error:
            if not str(error).strip():
                raise AssertionError(f"a {type(error).__name__} without a word") from error


def _file(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(content)
    return path


def prices(content: bytes) -> None:
    """A CSV of prices, long or wide."""
    path = _file("prices.csv", content)
    with documented(data.DataError):
        found = data.read_prices(path)
        assert np.isfinite(found.close).all() and (found.close > 0).all()
        assert found.close.shape == (len(found.symbols), len(found.dates))


def features(content: bytes) -> None:
    """A CSV of ready features."""
    path = _file("features.csv", content)
    with documented(data.DataError):
        found = data.read_features(path)
        assert bool(torch.isfinite(found.values).all())


def sectors(content: bytes) -> None:
    """A CSV of sectors, packed or not."""
    path = _file("sectors.csv.gz" if content[:1] == b"\x1f" else "sectors.csv", content)
    with documented(data.DataError):
        data.read_sectors(path)


def adjacency(content: bytes) -> None:
    """A ``.npy`` file."""
    path = _file("a.npy", content)
    with documented(data.DataError):
        edge_index, weight = data.read_adjacency(path)
        assert bool(torch.isfinite(weight).all()) and edge_index.size(1) == weight.numel()


def parquet(content: bytes) -> None:
    """A Parquet file."""
    path = _file("prices.parquet", content)
    with documented(data.DataError):
        data.read_prices(path)


@functools.cache
def _saved() -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Config, header and numbers of a saved model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hiermt.MultiTaskTGCN(2, 3, 1, heads={"signal": 2, "direction": 2}).save_pretrained(FOLDER / "model")
    config = json.loads((FOLDER / "model" / CONFIG).read_text())
    raw = (FOLDER / "model" / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return config, json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _json(value: Any) -> bytes:
    return json.dumps(value, default=json_value).encode("utf-8", "replace")


def folder(content: bytes) -> None:
    """``config.json`` and ``model.safetensors`` of a model, changed alike or one of them."""
    source = Source(content)
    config, header, numbers = _saved()
    kind = source.byte() % 4
    if kind in (0, 1):
        config = mutated(config, source)
    if kind in (1, 2):
        header = mutated(header, source)
    if kind == 0 and isinstance(header.get("__metadata__"), dict) and isinstance(config, dict):
        header = {**header, "__metadata__": {**header["__metadata__"], "hiermt_config": _json(config).decode()}}
    text = _json(header)
    made = FOLDER / "changed"
    made.mkdir(exist_ok=True)
    (made / CONFIG).write_bytes(source.rest() if kind == 3 else _json(config))
    (made / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + numbers[: len(numbers) - source.byte() % 2])
    with documented(ValueError, FileNotFoundError):
        hiermt.MultiTaskTGCN.from_pretrained(made)
    with documented(ValueError, FileNotFoundError):
        hiermt.from_reference(made / WEIGHTS, verbose=False)


def safetensors(content: bytes) -> None:
    """The bytes of a safetensors file."""
    path = _file("raw.safetensors", content)
    with documented(ValueError):
        hiermt.from_reference(path, verbose=False)


@functools.cache
def _states() -> tuple[dict[str, Any], ...]:
    """Checkpoints as people write them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        two_headed = hiermt.TGCN_HierarchicalMT(2, 3, 1).state_dict()
        cell = hiermt.nn.temporal.TGCN(2, 3).state_dict()
        attention = hiermt.A3TGCN(2, 1, 3, 1, use_gat=False).state_dict()
    return (
        {"epoch": 3, "model": dict(two_headed), "loss": [0.5]},
        {"state_dict": {f"tgnn.{key}": value for key, value in cell.items()}},
        {f"module.{key}": value for key, value in attention.items()},
    )


def checkpoint(content: bytes) -> None:
    """A ``torch.save`` file of a foreign model."""
    source = Source(content)
    state = mutated(source.pick(_states()), source)
    path = FOLDER / "foreign.pt"
    torch.save(state, path, _use_new_zipfile_serialization=bool(source.byte() % 4))
    if cut := source.byte() % 8:
        raw = bytearray(path.read_bytes())
        raw[(cut * 977 + source.byte()) % len(raw)] ^= 1 << (cut % 8)
        path.write_bytes(raw)
    with documented(ValueError):
        hiermt.from_reference(path, verbose=False)


def _parts() -> resume_cases.Parts:
    torch.manual_seed(0)
    return resume_cases.parts(
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    )


@functools.cache
def _trained() -> dict[str, Any]:
    made = _parts()
    made.run(1, checkpoint=FOLDER / "good.pt")
    found: dict[str, Any] = torch.load(FOLDER / "good.pt", weights_only=True)
    return found


# Values that the encoding of a training state gives a meaning.
_TAGGED: tuple[Any, ...] = (
    {_TAG: "pandas", "class": "read_pickle", "value": "/dev/null", "zone": None},
    {_TAG: "value", "class": "fractions.Fraction", "value": "1e99999999"},
    {_TAG: "value", "class": "builtins.range", "value": [0, 2**62, 1]},
    {_TAG: "value", "class": "torch.dtype", "value": "load"},
    {_TAG: "ndarray", "value": torch.ones(16, dtype=torch.uint8), "dtype": "|O", "shape": [2]},
    {_TAG: "ndarray", "value": torch.ones(16, dtype=torch.uint8), "dtype": "<f8", "shape": [2]},
    {_TAG: "generator", "value": {"kind": "numpy.random.seed", "state": {}}},
    {_TAG: "namedtuple", "class": "pathlib:Path", "value": ["x"]},
    {_TAG: "deque", "value": [1], "maxlen": -1},
    {_TAG: "dict", "value": [[[1]], [2]]},
    {_TAG: "x"},
)


def training_state(content: bytes) -> None:
    """A training state whose checksum fits or does not."""
    source = Source(content)
    sealed = source.byte() % 4 > 0
    state = mutated(_trained(), source, _TAGGED)
    if sealed and isinstance(state, dict):
        try:
            state["checksum"] = checksum({key: value for key, value in state.items() if key != "checksum"})
        except Exception:  # of what no state holds
            state["checksum"] = ""
    path = FOLDER / "state.pt"
    try:
        torch.save(state, path)
    except Exception:  # what cannot be written cannot be read
        return
    made = _parts()
    loaders, scheduler = [made.train, made.test], made.options["scheduler"]
    snapshot = resume.take_snapshot(made.model, made.optimizer, loaders, None, scheduler)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    with documented(ValueError):
        try:
            resume.load_state(path, made.model, made.optimizer, loaders, snapshot)
        except ValueError:
            assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
            raise


def options(content: bytes) -> None:
    """A file of options of the command line."""
    path = _file("options.json", content)
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--bars", action=argparse.BooleanOptionalAction)
    parser.add_argument("--out")
    with documented(data.DataError):
        config_file.expand(["train", "--config", str(path)], {"train": parser})


READERS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (prices, features, sectors, adjacency, parquet, folder, safetensors, checkpoint, training_state, options)
}


def seeds(name: str) -> list[bytes]:
    """Sound inputs to begin with."""
    days = [f"2024-01-{day:02d}" for day in range(1, 7)]
    wide = "Date,AAA,BBB\n" + "".join(f"{day},{i + 1}.5,{2 * i + 1}\n" for i, day in enumerate(days))
    rows = [f"{name},{day},1,3,0.5,{i + 1}" for name in ("AAA", "BBB") for i, day in enumerate(days)]
    long = "Symbol,Date,Open,High,Low,Close\n" + "\n".join(rows).replace(",3,", ",9,") + "\n"
    levels = "Price,Close,Close\nTicker,AAA,BBB\nDate,,\n" + "".join(f"{day},1,2\n" for day in days)
    if name == "prices":
        return [text.encode() for text in (wide, long, levels, wide.replace(",", ";"))]
    if name == "features":
        return [long.replace("Open", "RSI").encode()]
    if name == "sectors":
        return [b"Symbol,Sector\nAAA,Tech\nBBB,Oil\n"]
    if name == "adjacency":
        buffers = [io.BytesIO() for _ in range(2)]
        np.save(buffers[0], np.ones((3, 3), dtype=np.float32))
        np.save(buffers[1], np.asfortranarray(np.eye(2)))
        return [buffer.getvalue() for buffer in buffers]
    if name == "parquet":
        import pandas

        buffer = io.BytesIO()
        pandas.read_csv(io.StringIO(wide)).to_parquet(buffer, compression=None)
        return [buffer.getvalue()]
    if name == "safetensors":
        _saved()
        return [(FOLDER / "model" / WEIGHTS).read_bytes()]
    if name == "options":
        return [b'{"epochs": 3, "bars": true, "out": "x"}', b'{"command": "train", "options": {"epochs": 1}}']
    return [bytes([kind, *range(k, k + 20)]) for kind in range(4) for k in range(4)]
