"""Saving and loading of models: the mixin of every model class."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hiermt._tracing import NotScriptable
from hiermt.io.checkpoint import CONFIG, WEIGHTS, Content, make_content, read_folder, write_folder
from hiermt.io.state_dicts import kind_mismatch, load_exactly
from hiermt.io.tensor_files import safetensors_io

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(NotScriptable):
    """Adds :meth:`save_pretrained` and :meth:`from_pretrained` to a module that has a ``config``."""

    config: dict[str, Any]

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the weights and the constructor arguments.

        Both files are written beside their destinations, flushed and then renamed: an interruption leaves the old
        ones. The weights carry the config too, so that :meth:`from_pretrained` refuses files of two different saves.
        Shared parameters stay shared.

        Args:
            folder (str or Path): created if it is missing.

        Raises:
            ImportError: the package ``safetensors`` is missing.
            OSError: the folder cannot be written.
            ValueError: the model has an output activation, which no file can hold.
        """
        write_folder(Path(folder), self.content())

    def content(self) -> Content:
        """Content of the two files of :meth:`save_pretrained`.

        Raises:
            ImportError, ValueError: as :meth:`save_pretrained`.
        """
        safetensors_io()
        if any(not isinstance(part, nn.Identity) for part in list(getattr(self, "out", ()))[1:]):
            raise ValueError(
                "output_activation: a folder holds no modules; save the model without it and apply it after"
            )
        return make_content(type(self).__name__, self.config, *_separate(self))

    @classmethod
    def from_pretrained(cls: type[Model], folder: str | Path, *, backend: str = "auto") -> Model:
        """Builds the model that :meth:`save_pretrained` wrote, on the CPU.

        Args:
            folder (str or Path): local folder; nothing is downloaded.
            backend (str): implementation. (default: ``"auto"``)

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: a file is damaged, or holds another kind of model, or the two come from different saves.
            ImportError: the package ``safetensors`` is missing.
        """
        return cls._load(Path(folder), backend, {})

    @classmethod
    def _load(cls: type[Model], folder: Path, backend: str, changes: dict[str, Any]) -> Model:
        """Builds the model with `changes` in place of constructor arguments of the folder."""
        name = cls.__name__
        parameters = set(inspect.signature(cls.__init__).parameters) - {"self", "output_activation", "backend"}
        stored = read_folder(folder, name, parameters)
        try:
            with torch.device("cpu"):
                model: Any = cls(**{**stored.config, **changes}, backend=backend)
        except TypeError as error:
            raise ValueError(f"{folder / CONFIG}: does not describe a {name}: {error}") from None
        model.to(stored.dtype)
        load_exactly(model, stored.state, folder / WEIGHTS)
        _tie(model, stored.tied, folder / WEIGHTS)
        return model  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``torch.nn.Module.load_state_dict``; the error names convolutions of the other kind."""
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            reason = kind_mismatch(self.state_dict(), state_dict)  # type: ignore[attr-defined]
            if not reason:
                raise
            raise RuntimeError(f"{reason}\n{error}") from None


def _separate(model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of `model` on the CPU, none sharing memory with another, and the names that share a parameter."""
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


def _tie(model: Any, tied: dict[str, Any], path: Path) -> None:
    """Shares the parameters that were shared when they were saved."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key, first in tied.items():
        one, other = parameters.get(key), parameters.get(first) if isinstance(first, str) else None
        if one is None or other is None or not _equal(one, other):
            raise ValueError(f"{path}: says that {key} is {first!r}, but they differ; the file is damaged")
        owner, _, leaf = key.rpartition(".")
        model.get_submodule(owner).register_parameter(leaf, other)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bitwise equality: NaN equals NaN."""
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(*(tensor.detach().flatten().view(torch.uint8) for tensor in (one, other)))
