"""The folder of a saved model: ``model.safetensors`` and ``config.json``, written together and checked together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiermt._version import __version__
from hiermt.io.files import atomic_write_all, restore_on_error
from hiermt.io.state_dicts import check_tensors, find, head_sizes, sizes
from hiermt.io.tensor_files import parse_json, read_tensor_file, write_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Keys in the metadata of WEIGHTS: the config that belongs to the weights, and the names that share a parameter.
_CONFIG_KEY, _TIED_KEY = "hiermt_config", "hiermt_tied"
_CONFIG_LIMIT = 1 << 28


class Content(NamedTuple):
    """Content of the two files: tensors and metadata of the weights, and the config."""

    state: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]


class Stored(NamedTuple):
    """A folder that was read: constructor arguments, tensors and their dtype, and the names that share a parameter."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    dtype: torch.dtype
    tied: dict[str, Any]


def make_content(model: str, config: dict[str, Any], state: dict[str, Tensor], tied: dict[str, str]) -> Content:
    """The content of the folder of a `model`, the name of a class."""
    config = {"model": model, "hiermt": __version__, **config}
    return Content(state, {"format": "pt", _CONFIG_KEY: json.dumps(config), _TIED_KEY: json.dumps(tied)}, config)


def write_folder(folder: Path, content: Content) -> None:
    """Writes both files, or leaves the old ones.

    Raises:
        OSError: the folder cannot be written.
    """
    files = [folder / WEIGHTS, folder / CONFIG]
    # An interruption between the two renames, or after them, must not leave one new file and one old.
    with restore_on_error(*files), atomic_write_all(files) as (weights, config):
        write_tensors(weights, content.state, content.metadata)
        config.write_text(to_json(content.config), encoding="utf-8")


def read_folder(folder: Path, model: str, parameters: set[str]) -> Stored:
    """Reads both files and checks them against each other before a model, of any size, is built.

    Args:
        folder (Path): folder of the two files.
        model (str): name of the class to build.
        parameters (set of str): arguments of its constructor.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or holds another kind of model, or the two come from different saves.
        ImportError: the package ``safetensors`` is missing.
    """
    path, where = folder / WEIGHTS, folder / CONFIG
    config = read_config(folder)
    name = config.pop("model", None)
    if name != model:
        raise ValueError(f"{where}: holds a {name}, not a {model}")
    config.pop("hiermt", None)
    # Nested sections belong to other writers, such as `hiermt train`.
    config = {key: value for key, value in config.items() if key in parameters or not isinstance(value, dict)}
    unknown = [key for key in config if key not in parameters]
    if unknown:
        raise ValueError(f"{where}: does not describe a {name}: unknown {', '.join(map(_short, unknown[:8]))}")
    state, metadata = read_tensor_file(path)
    _check_one_save(config, metadata, where, path)
    dtype = check_tensors(state, path)
    found = find(state, str(path))
    expected = sizes(found, str(path))
    if "heads" in parameters:
        expected["heads"] = head_sizes(found, expected["hidden_size"])
    _check_config(config, expected, where, path)
    return Stored(config, state, dtype, _metadata(metadata, _TIED_KEY, path))


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of `folder`.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a folder written by save_pretrained or hiermt train")
    if path.stat().st_size > _CONFIG_LIMIT:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, expected {_CONFIG_LIMIT} or less")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def to_json(content: dict[str, Any]) -> str:
    """Text of a file; NaN and infinity, which JSON lacks, raise ``ValueError``."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _metadata(metadata: dict[str, str], key: str, path: Path) -> dict[str, Any]:
    try:
        found = parse_json(metadata.get(key, "{}"))
    except ValueError as error:
        raise ValueError(f"{path}: its metadata {key} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: its metadata {key} is a {type(found).__name__}, expected an object")
    return found


def _check_one_save(config: dict[str, Any], metadata: dict[str, str], where: Path, path: Path) -> None:
    """Refuses a config of another save than that of the weights; weights of older versions carry no config."""
    saved = _metadata(metadata, _CONFIG_KEY, path)
    differences = [
        f"{key} is {_short(config.get(key))} there and {_short(saved.get(key))} here"
        for key in sorted({*saved, *config} - {"model", "hiermt"})
        if saved and not _same(config.get(key), saved.get(key))
    ]
    if differences:
        raise ValueError(
            f"{path}: {where.name} does not fit the model: {'; '.join(differences)}; the two files are not of one "
            "save, or one was edited; save the model again"
        )


def _check_config(config: dict[str, Any], expected: dict[str, Any], where: Path, path: Path) -> None:
    """Compares the sizes in the config with those of the tensors, and checks the other values."""
    for key, value in config.items():
        if key in expected and not _same(value, expected[key]):
            raise ValueError(
                f"{where}: does not fit the model in {path.name}: {key} is {_short(value)}, the tensors say "
                f"{expected[key]!r}"
            )
        if key in ("layout", "conv_activation") and not isinstance(value, str):
            raise ValueError(f"{where}: {key}: expected a string, got {_short(value)}")
    names, count = config.get("feature_names"), config.get("in_channels")
    strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not (strings and len(names) == count):
        raise ValueError(f"{where}: feature_names: expected a list of {count} strings, got {_short(names)}")


def _same(one: object, other: object) -> bool:
    """Equality that distinguishes 1 from True and from 1.0."""
    return type(one) is type(other) and one == other


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
