"""Training states on disk: a resumed training is bitwise equal to an uninterrupted one."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiermt._version import __version__
from hiermt.data.feature_names import KEY, check_same, names_of
from hiermt.io.files import atomic_write, check_writable
from hiermt.io.tensor_files import check_zip
from hiermt.training.encoding import checksum, decode, encode
from hiermt.training.loaders import fresh_workers, start_workers
from hiermt.training.optimizer_state import check_optimizer, optimizer_change, optimizer_state
from hiermt.training.processes import Processes
from hiermt.training.random_state import check_random_state, random_state, set_random_state
from hiermt.training.snapshot import Change, Snapshot, apply

FORMAT = "hiermt training state 3"
_LOADERS = ("train_dataloader", "test_dataloader")
# The parts of a file, and their types.
_COMMON = {
    "hiermt": str,
    "optimizer_type": str,
    "optimizer": dict,
    "model": dict,
    "criterion": dict,
    "types": dict,
    "common": dict,
    "other_processes": list,
    "checksum": str,
}
_OWN = {"random": dict, "held": dict, "progress": dict}

Check = Callable[[dict[str, Any], dict[str, Any]], None]


def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: Iterable[Any],
    criterion: Any = None,
    scheduler: Any = None,
    callback: Any = None,
) -> Snapshot:
    """A snapshot of the state of these objects outside their ``state_dict``."""
    return Snapshot(
        {
            "model": Processes(model).model,
            "optimizer": optimizer,
            "criterion": criterion,
            "scheduler": scheduler,
            "callback": callback,
            **dict(zip(_LOADERS, loaders, strict=False)),
        }
    )


def check_storable(model: nn.Module, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
    """Checks before a training that :func:`save_state` can store its state.

    Raises:
        ValueError: a part of the training cannot be stored; the message names it and the reason.
    """
    with storing():
        _common_state(Processes(model).model, optimizer, snapshot)
        _own_state(snapshot, {})


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Converts the ``TypeError`` of a value that cannot be stored to ``ValueError``."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"checkpoint: {error}") from error


def check_path(path: str | Path, processes: Processes) -> None:
    """Raises in all processes unless :func:`save_state` can write to `path`.

    Raises:
        OSError: as :func:`hiermt.io.files.check_writable`.
    """
    _in_first(processes, path, lambda: check_writable(path))


def _in_first(processes: Processes, path: str | Path, action: Callable[[], None]) -> None:
    """Runs `action` in the first process, and raises in all of them if it fails there."""
    failure: Exception | None = None
    if processes.rank == 0:
        try:
            action()
        except Exception as error:  # any error: the other processes must not wait forever
            failure = error
    reason = processes.gather(failure and str(failure))[0]
    if failure is not None:
        raise failure
    if reason is not None:
        raise OSError(f"{path}: not written by the first process: {reason}")


def save_state(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: Iterable[Any],
    progress: dict[str, Any],
    common: dict[str, Any] | None = None,
    snapshot: Snapshot | None = None,
) -> None:
    """Writes model, optimiser, random generators and `progress`; after an interruption the old file is intact.

    With several processes, all call it and the first writes; a failure is raised in each.

    Args:
        path (str or Path): written to a temporary file, then renamed.
        model (Module): its ``state_dict`` is stored.
        optimizer (Optimizer): its ``state_dict`` is stored.
        loaders (iterable): the random generators of loaders, samplers and datasets are stored.
        progress (dict): epoch, losses and other values of this process: tensors, numbers, strings, lists and dicts.
        common (dict, optional): values that all processes share, such as the best weights.
        snapshot (Snapshot, optional): from :func:`take_snapshot` before the training. Values that the training has
            changed in loaders, scheduler, criterion and model are stored as well. (default: ``None``, the generators
            of `loaders` only)

    Raises:
        OSError: the file cannot be written, as on a full disk.
        TypeError: a value cannot be stored; the message names it.
    """
    processes = Processes(model)
    snapshot = take_snapshot(model, optimizer, loaders) if snapshot is None else snapshot
    own, *others = processes.gather(_own_state(snapshot, progress))

    def write() -> None:
        content = _common_state(processes.model, optimizer, snapshot)
        content |= {**own, "other_processes": others, "common": encode(common or {}, "common")}
        _write(Path(path), {**content, "checksum": checksum(content)})

    _in_first(processes, path, write)


def _own_state(snapshot: Snapshot, progress: dict[str, Any]) -> dict[str, Any]:
    """The part of each process."""
    return {"random": random_state(), "held": snapshot.state(), "progress": encode(progress, "progress")}


def _common_state(model: nn.Module, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "hiermt": __version__,
        "optimizer_type": type(optimizer).__name__,
        "model": _module_state("model", model),
        "criterion": _module_state("criterion", snapshot.roots.get("criterion")),
        "optimizer": optimizer_state(optimizer),
        "types": snapshot.types(),
        KEY: names_of(model),
    }


def _module_state(name: str, module: Any) -> dict[str, Any]:
    state = module.state_dict() if isinstance(module, nn.Module) else {}
    for key, value in state.items():
        if nn.parameter.is_lazy(value):
            raise TypeError(f"{name}.{key} has no shape yet; call the {name} on a batch before the training")
    return {key: encode(value, f"{name}.{key}") for key, value in state.items()}


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_state(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: Iterable[Any],
    snapshot: Snapshot | None = None,
    check: Check | None = None,
) -> dict[str, Any]:
    """Restores a state of :func:`save_state`.

    Nothing is changed unless everything fits. With several processes, each reads its own part.

    Args:
        path, model, optimizer, loaders, snapshot: as for :func:`save_state`; `snapshot` is taken before.
        check (callable, optional): called as ``check(progress, common)`` before anything is changed; raises
            ``ValueError`` if they are invalid.

    Returns:
        The stored ``progress`` and ``common`` in one dict.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, is not a training state, or belongs to another model, optimiser, loader, scheduler,
            number of processes, or set of features.
    """
    path, loaders = Path(path), list(loaders)
    snapshot = take_snapshot(model, optimizer, loaders) if snapshot is None else snapshot
    processes = Processes(model)
    content = _read(path, processes)
    check_same(path, content[KEY], names_of(processes.model))
    try:
        changes, progress, common = _changes(content, processes.model, optimizer, snapshot, check)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # a value of a wrong type can raise anything
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    waiting = [loader for loader in loaders if fresh_workers(loader)]
    if waiting:
        kept = snapshot.plan(snapshot.state(unchanged=True))
        changes = [
            *map(_start, waiting),
            *kept,
            *changes,
        ]
    try:
        apply(changes)
    except Exception as error:  # raised by load_state_dict
        raise ValueError(f"{path}: does not fit ({type(error).__name__}: {error}); nothing was changed") from error
    return {**progress, **common}


def _start(loader: Any) -> Change:
    return (lambda: start_workers(loader)), (lambda: None)


def _read(path: Path, processes: Processes) -> dict[str, Any]:
    """The content of a file, with the part of this process, after a check that it is complete."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found")
    try:
        if zipfile.is_zipfile(path):
            check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any error of the reader means a bad file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable training state ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        if isinstance(found, str) and found.startswith("hiermt training state"):
            raise ValueError(f"{path}: {found!r} was written by another version of hiermt; this one reads {FORMAT!r}")
        raise ValueError(f"{path}: not a training state of hiermt; model weights alone are not enough to resume")
    _check_parts(path, content, {**_COMMON, **_OWN})
    written = 1 + len(content["other_processes"])
    if written != processes.count:
        raise ValueError(f"{path}: was written by {written} processes, there are {processes.count}")
    for other in content["other_processes"]:
        if not isinstance(other, dict):
            raise ValueError(f"{path}: damaged: the part of another process is a {type(other).__name__}")
        _check_parts(path, other, _OWN)
    names = content.get(KEY)
    if names is not None and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path}: damaged: {KEY!r} is not a tuple of names")
    own = {} if processes.rank == 0 else content["other_processes"][processes.rank - 1]
    return {**content, **own, KEY: names, "intact": _intact(content)}


def _check_parts(path: Path, content: dict[str, Any], parts: dict[str, Any]) -> None:
    for name, kind in parts.items():
        if name not in content:
            raise ValueError(f"{path}: damaged: it has no {name!r}")
        if not isinstance(content[name], kind):
            found = type(content[name]).__name__
            raise ValueError(f"{path}: damaged: {name!r} is a {found} in place of a {kind.__name__}")


def _intact(content: dict[str, Any]) -> bool:
    try:
        found = checksum({key: value for key, value in content.items() if key != "checksum"})
    except (ValueError, RecursionError):  # what this package has not written
        return False
    return bool(content["checksum"] == found)


def _changes(
    content: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    check: Check | None,
) -> tuple[list[Change], dict[str, Any], dict[str, Any]]:
    """The changes to make, each with its undo function; progress and common. Nothing is changed yet."""
    check_optimizer(content["optimizer_type"], content["optimizer"], optimizer)
    _check_types(content["types"], snapshot.types())
    criterion = snapshot.roots.get("criterion")
    changes = [_module_change("model", model, content["model"])]
    if isinstance(criterion, nn.Module) or content["criterion"]:
        changes.append(_module_change("criterion", criterion, content["criterion"]))
    if not content["intact"]:
        raise ValueError("damaged: the checksum does not match the content")
    changes.append(optimizer_change(optimizer, content["optimizer"]))
    changes += snapshot.plan(content["held"])
    random, before = content["random"], random_state()
    check_random_state(random)
    progress, common = decode(content["progress"]), decode(content["common"])
    if check is not None:
        check(progress, common)
    changes.append((lambda: set_random_state(random), lambda: set_random_state(before)))
    return changes, progress, common


def _check_types(stored: dict[str, str], own: dict[str, str]) -> None:
    written, there = ([name for name in _LOADERS if name in types] for types in (stored, own))
    if len(written) != len(there):
        raise ValueError(f"was written with {len(written)} loaders, there are {len(there)}")
    for name in sorted({*stored, *own} - {"model", "criterion"}):
        if stored.get(name) != own.get(name):
            what = "another kind of loader: " if name in _LOADERS else ""
            raise ValueError(
                f"was written with {what}{name} of type {stored.get(name, 'None')}, this is {own.get(name, 'None')}"
            )


def _module_change(name: str, module: Any, stored: dict[str, Any]) -> Change:
    """Loads parameters and buffers of a module if names, shapes and dtypes match exactly."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"was written with a {name} that has a state, this one has none")
    own = module.state_dict()
    problems = [f"missing {key}" for key in own if key not in stored]
    problems += [f"unknown {key}" for key in stored if key not in own]
    for key in (key for key in own if key in stored):
        here, there = own[key], stored[key]
        if not isinstance(here, Tensor):
            continue
        if not isinstance(there, Tensor):
            problems.append(f"{key} is a {type(there).__name__}, expected a tensor")
        elif there.shape != here.shape:
            problems.append(f"{key} has shape {list(there.shape)}, expected {list(here.shape)}")
        elif there.dtype != here.dtype:
            problems.append(f"{key} is {there.dtype}, expected {here.dtype}")
    if problems:
        raise ValueError(f"does not fit the {name}: {'; '.join(problems)}")
    before: Any = OrderedDict(
        (key, value.clone() if isinstance(value, Tensor) else value) for key, value in own.items()
    )
    loaded: Any = OrderedDict((key, decode(value)) for key, value in stored.items())
    for state in (before, loaded):
        state._metadata = getattr(own, "_metadata", {})
    return (lambda: _load(module, loaded)), (lambda: _load(module, before))


def _load(module: nn.Module, state: dict[str, Any]) -> None:
    module.load_state_dict(state, strict=True)
