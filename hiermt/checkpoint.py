"""Models on disk: a folder with ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hiermt._files import replacing_all
from hiermt._version import __version__

if TYPE_CHECKING:
    from hiermt.nn import TGCN, TGCN_HierarchicalMT

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Model = TypeVar("Model", bound="Pretrained")


class Pretrained:
    """Adds :meth:`save_pretrained` and :meth:`from_pretrained` to a module that has a ``config``."""

    config: dict[str, Any]

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the weights and what it takes to build the model again.

        Both are written beside their places, flushed and renamed, so that an interruption leaves the old ones.

        Args:
            folder (str or Path): made if it is not there.

        Raises:
            ImportError: the package ``safetensors`` is missing.
            OSError: the folder cannot be written.
            ValueError: the model has an output activation, which no file can hold.
        """
        folder = Path(folder)
        state, config = self.content()
        with replacing_all([folder / WEIGHTS, folder / CONFIG]) as (weights_path, config_path):
            write_tensors(weights_path, state)
            config_path.write_text(to_json(config), encoding="utf-8")

    def content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the two files of :meth:`save_pretrained` hold."""
        _safetensors()
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}  # type: ignore[attr-defined]
        if len(getattr(self, "out", ())) > 1:
            raise ValueError(
                "output_activation: a folder holds no modules; save the model without it and apply it after"
            )
        config = {"model": type(self).__name__, "hiermt": __version__, **self.config}
        return state, config

    @classmethod
    def from_pretrained(cls: type[Model], folder: str | Path, *, backend: str = "auto") -> Model:
        """Builds the model that :meth:`save_pretrained` wrote, on the CPU.

        Args:
            folder (str or Path): local folder; nothing is downloaded.
            backend (str): who computes. (default: ``"auto"``)

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: a file is damaged, or holds another kind of model.
            ImportError: the package ``safetensors`` is missing.
        """
        return cls._load(Path(folder), backend, {})

    @classmethod
    def _load(cls: type[Model], folder: Path, backend: str, changes: dict[str, Any]) -> Model:
        config = {**read_config(folder), **changes}
        # Nested sections belong to whoever added them, such as `hiermt train`.
        name = config.pop("model", None)
        config.pop("hiermt", None)
        if name != cls.__name__:
            raise ValueError(f"{folder / CONFIG}: holds a {name}, not a {cls.__name__}")
        state = read_tensors(folder / WEIGHTS)
        sizes = {key: value for key, value in config.items() if not isinstance(value, dict)}
        try:
            with torch.device("cpu"):
                model = cls(**sizes, backend=backend)
        except TypeError as error:
            raise ValueError(f"{folder / CONFIG}: does not describe a {name}: {error}") from None
        model.to(next(iter(state.values())).dtype)  # type: ignore[attr-defined]
        load_exactly(model, state, folder / WEIGHTS)
        return model


def to_json(content: dict[str, Any]) -> str:
    """Text of a file; NaN and infinity, which JSON lacks, are refused."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of `folder`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a folder written by save_pretrained or hiermt train")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` or ``.pt``/``.pth`` file; never executes what is in it.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is truncated, malformed, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found")
    try:
        if path.suffix == ".safetensors":
            state = _safetensors()[0](str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # the readers raise many kinds, all of which mean a bad file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state_dict, a mapping from names to tensors")
    return state


def write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Writes a ``.safetensors`` file.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    try:
        _safetensors()[1](state, str(path), metadata={"format": "pt"})
    except Exception as error:
        # The writer has an error of its own for what the system says.
        found = re.search(r"os error (\d+)", str(error))
        if found is None or isinstance(error, OSError):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def load_exactly(model: Any, state: dict[str, Tensor], source: object) -> None:
    """Loads `state` if its names and shapes are exactly those of `model`; else leaves the model as it is.

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
    if problems:
        raise ValueError(f"{source}: does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(state, strict=True)


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors.torch import load_file, save_file
    except ImportError:
        raise ImportError("reading and writing checkpoints needs safetensors: pip install 'hiermt[train]'") from None
    return load_file, save_file


def load_model(folder: str | Path, *, backend: str = "auto", **changes: Any) -> TGCN | TGCN_HierarchicalMT:
    """Builds whichever model `folder` holds, `changes` in place of what its config says; see
    :meth:`Pretrained.from_pretrained`."""
    from hiermt import nn

    name = read_config(Path(folder)).get("model")
    if name not in ("TGCN", "TGCN_HierarchicalMT"):
        raise ValueError(f"{Path(folder) / CONFIG}: unknown model {name!r}")
    return getattr(nn, name)._load(Path(folder), backend, changes)  # type: ignore[no-any-return]
