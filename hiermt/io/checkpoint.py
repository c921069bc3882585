"""Models on disk: a folder with ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hiermt._version import __version__
from hiermt.io.files import atomic_write_all
from hiermt.io.state_dicts import check_tensors, find, kind_mismatch, sizes
from hiermt.io.tensor_files import parse_json, read_tensor_file, safetensors_io, sort_metadata
from hiermt.native.tracing import NotScriptable

if TYPE_CHECKING:
    from hiermt.nn import TGCN, TGCN_HierarchicalMT

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Keys of the metadata of WEIGHTS: the config that belongs to the weights, and which tensors are one.
_CONFIG_KEY, _TIED_KEY = "hiermt_config", "hiermt_tied"
_LONGEST_CONFIG = 1 << 28
Model = TypeVar("Model", bound="Pretrained")


class Content(NamedTuple):
    """What a folder holds: tensors and metadata for the file of weights, and the config."""

    state: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]


class Pretrained(NotScriptable):
    """Adds :meth:`save_pretrained` and :meth:`from_pretrained` to a module that has a ``config``."""

    config: dict[str, Any]

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the weights and what it takes to build the model again.

        Both files are written beside their places, flushed and then renamed, so that an interruption leaves the old
        ones. The weights carry the config too: files of two different saves are refused by :meth:`from_pretrained`.
        Parameters that are one stay one.

        Args:
            folder (str or Path): made if it is not there.

        Raises:
            ImportError: the package ``safetensors`` is missing.
            OSError: the folder cannot be written.
            ValueError: the model has an output activation, which no file can hold.
        """
        folder = Path(folder)
        content = self.content()
        files = [folder / WEIGHTS, folder / CONFIG]
        # Between the two renames, and after them, an interruption must not leave one new file and one old.
        with _put_back(*files), atomic_write_all(files) as (weights, config):
            write_tensors(weights, content.state, content.metadata)
            config.write_text(to_json(content.config), encoding="utf-8")

    def content(self) -> Content:
        """What the two files of :meth:`save_pretrained` hold.

        Raises:
            ImportError, ValueError: as :meth:`save_pretrained`.
        """
        _safetensors()
        if any(not isinstance(part, nn.Identity) for part in list(getattr(self, "out", ()))[1:]):
            raise ValueError(
                "output_activation: a folder holds no modules; save the model without it and apply it after"
            )
        config = {"model": type(self).__name__, "hiermt": __version__, **self.config}
        state, tied = _separate(self)
        return Content(state, {"format": "pt", _CONFIG_KEY: json.dumps(config), _TIED_KEY: json.dumps(tied)}, config)

    @classmethod
    def from_pretrained(cls: type[Model], folder: str | Path, *, backend: str = "auto") -> Model:
        """Builds the model that :meth:`save_pretrained` wrote, on the CPU.

        Args:
            folder (str or Path): local folder; nothing is downloaded.
            backend (str): who computes. (default: ``"auto"``)

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: a file is damaged, or holds another kind of model, or the two are not of one save.
            ImportError: the package ``safetensors`` is missing.
        """
        return cls._load(Path(folder), backend, {})

    @classmethod
    def _load(cls: type[Model], folder: Path, backend: str, changes: dict[str, Any]) -> Model:
        path, where = folder / WEIGHTS, folder / CONFIG
        config = read_config(folder)
        name = config.pop("model", None)
        if name != cls.__name__:
            raise ValueError(f"{where}: holds a {name}, not a {cls.__name__}")
        config.pop("hiermt", None)
        known = set(inspect.signature(cls).parameters) - {"output_activation", "backend"}
        # Nested sections belong to whoever added them, such as `hiermt train`.
        config = {key: value for key, value in config.items() if key in known or not isinstance(value, dict)}
        unknown = [key for key in config if key not in known]
        if unknown:
            raise ValueError(f"{where}: does not describe a {name}: unknown {', '.join(map(_short, unknown[:8]))}")
        content, metadata = read_tensor_file(path)
        _check_one_save(config, metadata, where, path)
        # Before a model is built, which may be of any size, what it claims to be is held against the tensors.
        dtype = check_tensors(content, path)
        _check_config(config, sizes(find(content, str(path)), str(path)), where, path)
        _check_feature_names(config.get("feature_names"), config.get("in_channels"), where)
        try:
            with torch.device("cpu"):
                model = cls(**{**config, **changes}, backend=backend)
        except TypeError as error:
            raise ValueError(f"{where}: does not describe a {name}: {error}") from None
        model.to(dtype)  # type: ignore[attr-defined]
        load_exactly(model, content, path)
        _tie(model, metadata, path)
        return model

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``torch.nn.Module.load_state_dict``; the error says so when the convolutions are of the other kind."""
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            reason = kind_mismatch(self.state_dict(), state_dict)  # type: ignore[attr-defined]
            if not reason:
                raise
            raise RuntimeError(f"{reason}\n{error}") from None


def to_json(content: dict[str, Any]) -> str:
    """Text of a file; NaN and infinity, which JSON lacks, are refused."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_tensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a ``.safetensors`` file.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    try:
        _safetensors()[1](state, str(path), metadata=metadata)
    except Exception as error:
        # The writer has an error of its own for what the system says.
        found = re.search(r"os error (\d+)", str(error))
        if found is None or isinstance(error, OSError):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    sort_metadata(path)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of `folder`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a folder written by save_pretrained or hiermt train")
    if path.stat().st_size > _LONGEST_CONFIG:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, expected {_LONGEST_CONFIG} or less")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def check_exactly(model: Any, state: dict[str, Tensor], source: object) -> None:
    """Compares the names and shapes of `state` with those of `model`.

    Raises:
        ValueError: lists what is missing, foreign or misshapen.
    """
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unknown {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    reason = kind_mismatch(own, state)
    if reason:
        problems = [reason]
    if problems:
        raise ValueError(f"{source}: does not fit the model: {'; '.join(problems)}")


def load_exactly(model: Any, state: dict[str, Tensor], source: object) -> None:
    """Loads `state` if its names and shapes are exactly those of `model`; else leaves the model as it is.

    Raises:
        ValueError: lists what is missing, foreign or misshapen.
    """
    check_exactly(model, state, source)
    model.load_state_dict(state, strict=True)


def load_model(folder: str | Path, *, backend: str = "auto", **changes: Any) -> TGCN | TGCN_HierarchicalMT:
    """Builds whichever model `folder` holds, `changes` in place of what its config says; see
    :meth:`Pretrained.from_pretrained`."""
    from hiermt import nn as models

    name = read_config(Path(folder)).get("model")
    if name not in ("TGCN", "TGCN_HierarchicalMT"):
        raise ValueError(f"{Path(folder) / CONFIG}: unknown model {name!r}")
    return getattr(models, name)._load(Path(folder), backend, changes)  # type: ignore[no-any-return]


def _safetensors() -> tuple[Any, Any]:
    return safetensors_io()


@contextlib.contextmanager
def _put_back(*paths: Path) -> Iterator[None]:
    """Leaves the files at `paths` as they were if the block raises, however far it came."""
    targets = [path.resolve() for path in paths]
    with contextlib.ExitStack() as stack:
        kept: dict[Path, Path] = {}
        new = [target for target in targets if not target.exists()]
        for target in targets:
            if target.is_file():
                aside = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
                kept[target] = Path(stack.enter_context(aside)) / target.name
                try:
                    os.link(target, kept[target])
                except OSError:  # a file system without links
                    shutil.copy2(target, kept[target])
        try:
            yield
        except BaseException:
            for target, copy in kept.items():
                os.replace(copy, target)
            for target in new:
                target.unlink(missing_ok=True)
            raise


def _separate(model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of `model` on the CPU, none of which shares memory with another, and which parameter is which."""
    state: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        state[key] = tensor
    first: dict[int, str] = {}
    tied = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), key) != key:
            tied[key] = first[id(parameter)]
    return state, tied


def _tie(model: Any, metadata: dict[str, str], path: Path) -> None:
    """Makes one of the parameters that were one when they were saved."""
    tied = _metadata(metadata, _TIED_KEY, path)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key, first in tied.items():
        one, other = parameters.get(key), parameters.get(first) if isinstance(first, str) else None
        if one is None or other is None or not _equal(one, other):
            raise ValueError(f"{path}: says that {key} is {first!r}, but they differ; the file is damaged")
        owner, _, leaf = key.rpartition(".")
        model.get_submodule(owner).register_parameter(leaf, other)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: NaN equals NaN."""
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(*(tensor.detach().flatten().view(torch.uint8) for tensor in (one, other)))


def _metadata(metadata: dict[str, str], key: str, path: Path) -> dict[str, Any]:
    try:
        found = parse_json(metadata.get(key, "{}"))
    except ValueError as error:
        raise ValueError(f"{path}: its metadata {key} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: its metadata {key} is a {type(found).__name__}, expected an object")
    return found


def _check_one_save(config: dict[str, Any], metadata: dict[str, str], where: Path, path: Path) -> None:
    """Refuses a config beside weights that were saved with another; weights of older versions carry none."""
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
    """Holds what the config says of the sizes against the tensors."""
    for key, value in config.items():
        if key in expected and not _same(value, expected[key]):
            raise ValueError(
                f"{where}: does not fit the model in {path.name}: {key} is {_short(value)}, the tensors say "
                f"{expected[key]!r}"
            )
        if key in ("layout", "conv_activation") and not isinstance(value, str):
            raise ValueError(f"{where}: {key}: expected a string, got {_short(value)}")


def _check_feature_names(names: object, count: object, where: Path) -> None:
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != count:
        raise ValueError(f"{where}: feature_names: expected a list of {count} strings, got {_short(names)}")


def _same(one: object, other: object) -> bool:
    """Equality that tells 1 from True and from 1.0."""
    return type(one) is type(other) and one == other


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
