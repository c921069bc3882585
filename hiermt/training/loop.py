"""The training loop, one for every model and task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer
from hiermt.data.feature_names import check_same, names_of
from hiermt.nn.inputs import placed, run_model
from hiermt.training.capture import CapturedSteps, can_capture
from hiermt.training.divergence import divergence, finite_weights, largest_weight
from hiermt.training.early_stopping import EarlyStopping
from hiermt.training.history import History
from hiermt.training.loaders import check_loader, check_workers
from hiermt.training.optimizer import check_closure
from hiermt.training.processes import Processes
from hiermt.training.progress import Progress
from hiermt.training.resume import check_path, check_storable, load_state, save_state, storing, take_snapshot
from hiermt.training.schedules import check_scheduler, step_scheduler
from hiermt.training.snapshot import Snapshot
from hiermt.training.tasks import Task
from hiermt.training.tensorboard import summary_writer, write_summary

Callback = Callable[[int, dict[str, float]], bool | None]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    train_dataloader: Iterable[Any],
    test_dataloader: Iterable[Any] | None = None,
    num_epochs: int = 100,
    device: torch.device | str | None = None,
    *,
    scheduler: Any = None,
    callback: Callback | None = None,
    patience: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    tensorboard: str | Path | None = None,
    capture: bool = True,
    share_days: bool | None = None,
) -> History:
    r"""Trains a model on a task, such as :class:`hiermt.tasks.Classification`.

    Losses stay on the device and are fetched once per epoch. One line is printed every tenth epoch. On a GPU, whole
    steps are captured into a CUDA graph and replayed if the loader is a :class:`hiermt.data.WindowLoader` on that GPU
    and the optimiser is ``capturable`` (see :func:`hiermt.training.adam`).

    Args:
        model (Module): its output is what the task reads; moved to `device` if that is given.
        optimizer (Optimizer): over the model's parameters; any optimiser that needs no closure.
        task (Task): one of :mod:`hiermt.tasks`, or of your own. It is moved to the model's device.
        train_dataloader, test_dataloader (iterable): batches with ``x``, ``edge_index`` or ``graph``,
            ``edge_weight``, the targets of the task and ``to(device)``; the test loader may be ``None``. Stocks that
            are absent by ``present`` take no part: see :class:`hiermt.data.WindowDataset`.
        num_epochs (int): passes over the training data, 0 or more. (default: ``100``)
        device: where to train. (default: ``None``, where the model is)
        scheduler (LRScheduler, optional): any of ``torch.optim.lr_scheduler``, made for `optimizer`; stepped after
            each epoch, before the callback. ``ReduceLROnPlateau`` gets the test loss, or the training loss if there is
            no test loader. (default: ``None``)
        callback (callable, optional): called as ``callback(epoch, metrics)`` after each epoch with the average losses;
            epochs count from 1. It may change model, optimiser and loaders. If it returns ``True``, the training ends
            for good. (default: ``None``)
        patience (int, optional): stop after this many epochs without a lower test loss, 1 or more, and restore the
            best weights. A test loss of 0 from the first epoch on, as that of no row, is not taken as the best, and a
            warning says so. (default: ``None``, train to the end)
        progress (bool): show a bar, if ``tqdm`` is installed, and a line every tenth epoch. (default: ``True``)
        checkpoint (str or Path, optional): file for the state of the training, written after an epoch and its
            callback. A crash, Ctrl-C, an exception in the callback or a loss that is not finite leaves the previous
            state. With a DistributedDataParallel model the first process writes and all processes resume from the
            file. (default: ``None``)
        resume (bool): continue from `checkpoint` if it exists, bitwise equal to an uninterrupted training. Pass the
            same objects, newly made. Stored are model, task, optimiser, scheduler, the global random states of
            torch, numpy and Python, the random generators inside these objects, the loaders and their datasets, every
            value there that the training has changed, and the callback if it has ``state_dict`` and
            ``load_state_dict``. Of any other callback only its generators, optimisers, schedulers and modules are
            stored, not its numbers. A function or object that the training has replaced is not stored: resuming
            raises until it is replaced again. Global variables of modules and attributes of classes are not found.
            (default: ``False``)
        checkpoint_every (int): epochs between two states; the last epoch is always stored. (default: ``1``)
        tensorboard (str or Path, optional): folder for a TensorBoard log of the losses. (default: ``None``)
        capture (bool): whether steps may be captured on a GPU. (default: ``True``)
        share_days (bool, optional): whether the first layer computes each day once for all windows of a batch that
            contain it, forward and backward. The numbers are the same, but gradients are summed in another order. It
            needs a :class:`hiermt.data.WindowLoader`. (default: ``None``, if it pays: on a CPU, if a batch has at most
            half as many distinct days as days in its windows. On a GPU, where the number of distinct days is not known
            without a sync, the span of days counts: at most 0.65 days per day in the windows. It is the span of a batch
            if the loader does not shuffle, else the span of all windows)

    Returns:
        The losses of each epoch: ``train_losses``, ``test_losses``, each a list of floats, and ``history``, a dict with
        one such list for each of ``task.parts``.

    Raises:
        ValueError: a loader is empty, its batches have no targets, the output of the model or its features do not fit;
            `num_epochs` or `patience` is out of range; `patience` is given without a test loader; `checkpoint` is
            damaged or belongs to another model, optimiser, scheduler, task, loader or number of processes (nothing is
            changed then); a part of the training cannot be stored; `optimizer` needs a closure; `scheduler` belongs to
            another optimiser; or `share_days` is not possible.
        TypeError: `task` is not a Task; `num_epochs`, `patience` or `checkpoint_every` is not an integer; a loader is
            not an iterable of batches or supports only one pass; or `scheduler` has no step.
        FloatingPointError: the training or test loss of an epoch, or a parameter after it, is not finite. The model
            stays as it is; `checkpoint` holds the last state before.
        ImportError: the package ``tensorboard`` is missing.
        OSError: `checkpoint` cannot be written; raised before the first epoch.
    """
    if not isinstance(task, Task):
        raise TypeError(f"task: expected one of hiermt.tasks, such as Classification(3), got {type(task).__name__}")
    if resume and checkpoint is None:
        raise ValueError("resume: needs a checkpoint to continue from")
    check_integer("num_epochs", num_epochs, 0)
    check_integer("checkpoint_every", checkpoint_every, 1)
    if patience is not None:
        check_integer("patience", patience, 1)
        if test_dataloader is None:
            raise ValueError("patience: early stopping needs a test_dataloader")
    named = {"train_dataloader": train_dataloader, "test_dataloader": test_dataloader}
    for name, loader in named.items():
        if loader is not None or name == "train_dataloader":
            check_loader(name, loader)
        check_same(name, names_of(loader), names_of(model))
    check_closure(optimizer)
    if scheduler is not None:
        check_scheduler(scheduler, optimizer, num_epochs)
    processes = Processes(model)
    if checkpoint is not None:
        check_path(checkpoint, processes)
    model_device = placed(model, device)
    task.to(model_device)
    history, best = History.of(task.parts), EarlyStopping(patience)
    loaders = [loader for loader in named.values() if loader is not None]
    snapshot = None
    if checkpoint is not None:
        snapshot = _snapshot(model, optimizer, named, task.stored, scheduler, callback)
        if resume and _exists(Path(checkpoint), processes):

            def check(progress: dict[str, Any], common: dict[str, Any]) -> None:
                History.check(progress, test_dataloader is not None, task.parts)
                EarlyStopping.check(common.get("best"), processes.model)

            state = load_state(checkpoint, model, optimizer, loaders, snapshot, check)
            history.load_state_dict(state)
            best.load_state_dict(state["best"])
    writer = None if tensorboard is None or processes.rank > 0 else summary_writer(tensorboard)
    weights = finite_weights(optimizer)

    def losses_of(batch: Any, optimizer: torch.optim.Optimizer | None) -> Tensor:
        batch = batch.to(model_device)
        return batch_losses(task, run_model(model, batch, model_device, share_days), batch, optimizer)

    captured = None
    if capture and can_capture(model, optimizer, task, train_dataloader, model_device):
        captured = CapturedSteps(
            train_dataloader,  # type: ignore[arg-type]
            optimizer,
            lambda batch: losses_of(batch, optimizer),
        )
        captured.drop_stale(model)

    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(num_epochs, progress and processes.rank == 0))
        if writer is not None:
            stack.callback(writer.close)
        for epoch in range(history.epoch + 1, int(num_epochs) + 1):
            if best.stopped() or history.stopped:
                break
            model.train()
            passes = {"train": _run_epoch(losses_of, train_dataloader, optimizer, "train_dataloader", captured)}
            if test_dataloader is not None:
                model.eval()
                with torch.no_grad():
                    passes["test"] = _run_epoch(losses_of, test_dataloader, None, "test_dataloader")
            # One fetch for both passes: the host queues the test pass while the GPU still trains.
            fetched = torch.cat([*passes.values(), largest_weight(weights, model_device)]).tolist()
            names = [f"{part}_{name}" for part in passes for name in task.parts]
            metrics = dict(zip(names, fetched, strict=False))
            # All processes must stop together, although each has its own data.
            watched = metrics["train_total_loss" if test_dataloader is None else "test_total_loss"]
            every = processes.gather((watched, divergence(epoch, metrics, fetched[-1])))
            for _, reason in every:
                if reason is not None:
                    raise FloatingPointError(reason)
            mean = sum(loss for loss, _ in every) / len(every)
            history.add(epoch, metrics)
            bar.advance(epoch, metrics)
            if test_dataloader is not None:
                best.update(mean, processes.model)
            if scheduler is not None:
                step_scheduler(scheduler, mean)
            if callback is not None:
                # Only True stops, not any other truthy result.
                result = callback(epoch, metrics)
                stop = isinstance(result, bool | np.bool_) and bool(result)
                history.stopped = any(processes.gather(stop))
                if captured is not None:
                    captured.drop_stale(model)
            if writer is not None:
                write_summary(writer, epoch, metrics)
            ends = epoch == num_epochs or best.stopped() or history.stopped
            # Last, because scheduler and callback may change the state.
            if checkpoint is not None and (epoch % checkpoint_every == 0 or ends):
                common = {"best": best.state_dict()}
                with storing():
                    save_state(checkpoint, model, optimizer, loaders, history.state_dict(), common, snapshot)
            if best.stopped():
                bar.note(f"Epoch {epoch:3d}: test loss has not fallen for {patience} epochs, stopped")
            elif history.stopped and epoch < num_epochs:
                bar.note(f"Epoch {epoch:3d}: stopped by the callback")
    best.restore(processes.model)
    return history


def _snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: dict[str, Any],
    task: Any,
    scheduler: Any,
    callback: Any,
) -> Snapshot:
    """The snapshot that a checkpoint compares with; raises ``ValueError`` if a part cannot be stored."""
    for name, loader in loaders.items():
        check_workers(name, loader)
    with storing():
        snapshot = take_snapshot(model, optimizer, loaders.values(), task, scheduler, callback)
    check_storable(model, optimizer, snapshot)
    return snapshot


def _exists(path: Path, processes: Processes) -> bool:
    """Whether there is a checkpoint; raises ``ValueError`` unless all processes agree."""
    found = processes.gather(path.is_file())
    if any(found) and not all(found):
        missing = [rank for rank, there in enumerate(found) if not there]
        raise ValueError(f"checkpoint: {path} exists for some processes, but not for those of rank {missing}")
    return all(found)


def _run_epoch(
    losses_of: Callable[[Any, torch.optim.Optimizer | None], Tensor],
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer | None,
    name: str,
    captured: CapturedSteps | None = None,
) -> Tensor:
    """One pass over the batches, with an optimiser step after each if `optimizer` is given.

    Returns the average losses in the order of ``task.parts``, on the device.
    """

    def each() -> Iterator[Tensor]:
        if captured is not None:
            for planned in captured.loader.plan():
                yield captured.run(planned)
        else:
            for batch in batches:
                yield losses_of(batch, optimizer)

    total, steps = None, 0
    for losses in each():
        # A captured step writes its losses to the same memory each time.
        total = losses.clone() if total is None else total + losses
        steps += 1
    if total is None:
        raise ValueError(f"{name}: has no batch; every epoch needs at least one")
    return total / steps


def batch_losses(
    task: Task,
    output: Any,
    batch: Any,
    optimizer: torch.optim.Optimizer | None,
) -> Tensor:
    """The losses of an output, float64 on the device; then a step if `optimizer` is given."""
    terms = task.losses(output, batch)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(terms[0])
        optimizer.step()
    return torch.stack([term.detach().to(torch.float64) for term in terms])
