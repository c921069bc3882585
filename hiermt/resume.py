"""Training states on disk: everything it takes to go on as if nothing had happened, to the bit."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiermt._feature_names import KEY, check_same, names_of
from hiermt._files import check_writable, replacing
from hiermt._processes import Processes
from hiermt._version import __version__
from hiermt.checkpoint import load_exactly

FORMAT = "hiermt training state 1"


def save_state(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: Iterable[Any],
    progress: dict[str, Any],
    common: dict[str, Any] | None = None,
) -> None:
    """Writes model, optimiser, random generators and `progress`; an interruption leaves the old file.

    Of several processes that train one model, all call and the first writes; a failure is raised in each of them.

    Args:
        path (str or Path): made anew each time, by writing beside it and renaming.
        model (Module): its ``state_dict`` is stored.
        optimizer (Optimizer): its ``state_dict`` is stored.
        loaders (iterable): their generators are stored: those of a :class:`hiermt.data.WindowLoader`, and of a
            ``torch.utils.data.DataLoader`` and its sampler.
        progress (dict): epoch, losses and whatever else; tensors, numbers, strings, lists and dicts. Of several
            processes each has its own.
        common (dict, optional): the same of which all processes have one, such as the best weights.

    Raises:
        OSError: the file cannot be written, as on a full disk.
    """
    processes = Processes(model)
    own, *others = processes.gather(_own_state(loaders, progress))
    states = {**own, "other_processes": others, "common": common or {}}
    _in_first(processes, path, lambda: _write(Path(path), processes.model, optimizer, states))


def check_path(path: str | Path, processes: Processes) -> None:
    """Refuses a path that :func:`save_state` could not write to, in all processes.

    Raises:
        OSError: as :func:`hiermt._files.check_writable`.
    """
    _in_first(processes, path, lambda: check_writable(path))


def _in_first(processes: Processes, path: str | Path, action: Callable[[], None]) -> None:
    """Runs `action` in the first process, and raises in all of them if it fails there."""
    failure: Exception | None = None
    if processes.rank == 0:
        try:
            action()
        except Exception as error:  # whatever it is, the others must not wait for ever
            failure = error
    reason = processes.gather(failure and str(failure))[0]
    if failure is not None:
        raise failure
    if reason is not None:
        raise OSError(f"{path}: not written by the first process: {reason}")


def _own_state(loaders: Iterable[Any], progress: dict[str, Any]) -> dict[str, Any]:
    """What each process has of its own."""
    states = [_loader_state(loader) for loader in loaders]
    return {"random": _random_state(), "loaders": states, "progress": progress}


def _write(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, states: dict[str, Any]) -> None:
    content = {
        "format": FORMAT,
        "hiermt": __version__,
        "optimizer_type": type(optimizer).__name__,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        KEY: names_of(model),
        **states,
    }
    # In memory first: the writer inside torch.save turns a full disk into an error that does not say so.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_state(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, loaders: Iterable[Any]
) -> dict[str, Any]:
    """Puts everything back as :func:`save_state` found it.

    Nothing is changed unless all of it fits. Of several processes, each reads the file and takes what was its own.

    Returns:
        What was stored as ``progress`` and ``common``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is no training state, or is one of another model, optimiser, loader or number of
            processes, or of a model of other features.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many kinds, all of which mean a bad file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable training state ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: not a training state of hiermt; model weights alone cannot be resumed from")
    loaders = list(loaders)
    processes = Processes(model)
    written = 1 + len(content.get("other_processes", []))
    if written != processes.count:
        raise ValueError(f"{path}: was written by {written} processes, there are {processes.count}")
    if processes.rank > 0:
        content |= content["other_processes"][processes.rank - 1]
    _check_optimizer(path, content, optimizer)
    if len(content["loaders"]) != len(loaders):
        raise ValueError(f"{path}: was written with {len(content['loaders'])} loaders, there are {len(loaders)}")
    for stored, loader in zip(content["loaders"], loaders, strict=True):
        if set(stored) != set(_loader_state(loader)):
            raise ValueError(f"{path}: was written with another kind of loader than {type(loader).__name__}")
    check_same(path, content.get(KEY), names_of(processes.model))
    load_exactly(processes.model, content["model"], path)
    optimizer.load_state_dict(content["optimizer"])
    for stored, loader in zip(content["loaders"], loaders, strict=True):
        _set_loader_state(loader, stored)
    _set_random_state(content["random"])
    return {**content["progress"], **content.get("common", {})}


def _check_optimizer(path: Path, content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    name = type(optimizer).__name__
    if content["optimizer_type"] != name:
        raise ValueError(f"{path}: was written with the optimizer {content['optimizer_type']}, this is {name}")
    stored = content["optimizer"]
    groups = [len(group["params"]) for group in stored["param_groups"]]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if groups != own:
        raise ValueError(f"{path}: its optimizer holds {groups} parameters in its groups, this one {own}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in stored["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
                raise ValueError(
                    f"{path}: {key} of parameter {index} has shape {list(value.shape)}, the parameter "
                    f"{list(parameters[index].shape)}"
                )


def _generators(loader: Any) -> dict[str, torch.Generator]:
    found = {"generator": loader, "sampler": getattr(loader, "sampler", None)}
    return {
        name: holder.generator
        for name, holder in found.items()
        if isinstance(getattr(holder, "generator", None), torch.Generator)
    }


def _loader_state(loader: Any) -> dict[str, Any]:
    if hasattr(loader, "state_dict"):
        return dict(loader.state_dict())
    return {name: generator.get_state() for name, generator in _generators(loader).items()}


def _set_loader_state(loader: Any, state: dict[str, Any]) -> None:
    if hasattr(loader, "load_state_dict"):
        loader.load_state_dict(state)
        return
    for name, generator in _generators(loader).items():
        generator.set_state(state[name])


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
