"""The training loop of the two-headed model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer
from hiermt.data import WindowDataset
from hiermt.data.feature_names import check_same, names_of
from hiermt.nn.inputs import shared_inputs
from hiermt.training.capture import CapturedSteps, can_capture
from hiermt.training.criterion import ONE, loss_terms, make_criterion
from hiermt.training.early_stopping import EarlyStopping
from hiermt.training.history import NAMES, Course, failure, finite_weights, largest
from hiermt.training.loaders import check_workers
from hiermt.training.object_walk import is_iterator
from hiermt.training.optimizer_state import check_closure
from hiermt.training.processes import Processes
from hiermt.training.progress import Progress
from hiermt.training.resume import check_path, check_storable, hold, load_state, save_state, storing
from hiermt.training.schedules import check_scheduler, step_scheduler
from hiermt.training.snapshot import Held
from hiermt.training.tensorboard import _summary_writer, _write_summary

Callback = Callable[[int, dict[str, float]], bool | None]


def train_hierarchical(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module | None,
    train_dataloader: Iterable[Any],
    test_dataloader: Iterable[Any] | None,
    num_epochs: int = 100,
    lambda_direction: float = ONE,
    device: torch.device | str = "cpu",
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
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    r"""Trains a model with two heads on the multi-task loss.

    Losses stay on the device and are fetched once an epoch. Every tenth epoch prints one line. On a GPU, with a
    :class:`hiermt.data.WindowLoader` that lives there and an optimiser made ``capturable`` (see :func:`adam`), whole
    steps are captured into a CUDA graph and replayed.

    Args:
        model (Module): returns ``(signal_logits, direction_logits)``; moved to `device`.
        optimizer (Optimizer): over the model's parameters; any that needs no closure.
        criterion (Module, optional): a :class:`MultiTaskLoss`, or any callable that is called like one: with logits
            ``[N, 2]``, targets ``[N]`` and ``signal_mask``. It returns the loss, or the loss and a dict of its parts;
            parts that it does not tell are NaN in the history. ``None`` for ``MultiTaskLoss(lambda_direction)``. A
            module is moved to `device`.
        train_dataloader, test_dataloader (iterable): batches with ``x``, ``edge_index`` or ``graph``,
            ``edge_weight``, ``signal_labels``, ``direction_labels`` and ``to(device)``; the test loader may be
            ``None``.
        num_epochs (int): passes over the training data, 0 or more. (default: ``100``)
        lambda_direction (float): weight of the direction loss if there is no `criterion`; where it is given along with
            one, it must not contradict the criterion's own. (default: ``1.0``)
        device: where to train. (default: ``"cpu"``)
        scheduler (LRScheduler, optional): of `optimizer`, any of ``torch.optim.lr_scheduler``; stepped after each
            epoch, before the callback. ``ReduceLROnPlateau`` is given the test loss, without a test loader that of the
            training. (default: ``None``)
        callback (callable, optional): called as ``callback(epoch, metrics)`` after each epoch, epochs counted from
            1, with the epoch's average losses. It may change model, optimiser and loaders; where it returns ``True``,
            the training ends with that epoch, for good. (default: ``None``)
        patience (int, optional): stop when the test loss has not fallen for so many epochs, 1 or more, and put the best
            weights back. (default: ``None``, train to the end)
        progress (bool): show a bar, if ``tqdm`` is installed, and the line every tenth epoch. (default: ``True``)
        checkpoint (str or Path, optional): file that holds the state of the training after the last epoch and its
            callback. A crash, Ctrl-C, a callback that raises or a loss that is not finite leaves the state before. Of
            several processes around a DistributedDataParallel model the first writes, and all go on from it.
            (default: ``None``)
        resume (bool): go on from `checkpoint` if it is there, bitwise equal to a training that was not interrupted.
            Give it the same things, made anew. Stored are model, criterion, optimiser, scheduler, the global random
            states of torch, numpy and Python, the random generators below all of these, the loaders and their datasets,
            what the training has changed there, and the callback, if it has ``state_dict`` and ``load_state_dict``; of
            any other callback the generators, optimisers, schedulers and modules that it holds, and no numbers. What
            the training has put in the place of another function or object is not stored: going on is refused until
            it is there again. Global variables of modules and attributes of classes are not found.
            (default: ``False``)
        checkpoint_every (int): epochs from one state to the next; the last epoch is always stored. (default: ``1``)
        tensorboard (str or Path, optional): folder for the losses, as TensorBoard reads them. (default: ``None``)
        capture (bool): whether steps may be captured on a GPU. (default: ``True``)
        share_days (bool, optional): whether what the first layer computes for a day is computed once for all windows
            of a batch that have it, forward and backward; the same numbers, with sums of gradients in another order. It
            takes a :class:`hiermt.data.WindowLoader`. (default: ``None``, where it pays: a batch has at most half as
            many different days as its windows have together. On a GPU, where nobody waits for the days of a batch, at
            most 0.65 times as many lie between the first and the last that it can have: the span of a batch where the
            loader does not shuffle, else that of all windows of the loader)

    Returns:
        Training loss and test loss of each epoch, and ``{"signal_loss", "direction_loss", "total_loss"}``, each a
        list with one float an epoch.

    Raises:
        ValueError: a loader is empty, its windows have no labels, or its features are not those that the model names;
            `lambda_direction` contradicts the criterion,
            `num_epochs` or `patience` is out of range, `patience` has no test loader, `checkpoint` is damaged or is one
            of another model, optimiser, scheduler, loader or number of processes (nothing is changed then), a part of
            the training has no state that a checkpoint can hold, `optimizer` needs a closure, `scheduler` is one of
            another optimiser, or `share_days` is not possible.
        TypeError: `num_epochs`, `patience` or `checkpoint_every` is not an integer, a loader is no iterable of batches
            or can be gone through only once, `criterion` returns no loss, `scheduler` cannot be stepped, or
            `lambda_direction` is not a number; one that is learned belongs into
            ``criterion=MultiTaskLoss(lambda_direction)`` and the optimizer.
        FloatingPointError: the training or test loss of an epoch, or a parameter after it, is not finite. The model is
            left as it is; `checkpoint` holds the last state before.
        ImportError: the package ``tensorboard`` is missing.
        OSError: `checkpoint` cannot be written; found before the first epoch.
    """
    criterion = make_criterion(criterion, lambda_direction)
    if resume and checkpoint is None:
        raise ValueError("resume: going on needs the checkpoint to go on from")
    check_integer("num_epochs", num_epochs, 0)
    check_integer("checkpoint_every", checkpoint_every, 1)
    if patience is not None:
        check_integer("patience", patience, 1)
        if test_dataloader is None:
            raise ValueError("patience: stopping early needs a test_dataloader to watch")
    named = {"train_dataloader": train_dataloader, "test_dataloader": test_dataloader}
    for name, loader in named.items():
        _check_loader(name, loader)
        check_same(name, names_of(loader), names_of(model))
    check_closure(optimizer)
    if scheduler is not None:
        check_scheduler(scheduler, optimizer, num_epochs)
    processes = Processes(model)
    if checkpoint is not None:
        check_path(checkpoint, processes)
    progress = progress and processes.rank == 0
    model.to(device)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    course, best = Course(), EarlyStopping(patience)
    loaders = [loader for loader in (train_dataloader, test_dataloader) if loader is not None]
    held = None
    if checkpoint is not None:
        held = _hold(model, optimizer, named, criterion, scheduler, callback)
        if resume and _is_there(Path(checkpoint), processes):

            def check(progress: dict[str, Any], common: dict[str, Any]) -> None:
                Course.check(progress, test_dataloader is not None)
                EarlyStopping.check(common.get("best"), processes.model)

            state = load_state(checkpoint, model, optimizer, loaders, held, check)
            course.load_state_dict(state)
            best.load_state_dict(state["best"])
    writer = None if tensorboard is None or processes.rank > 0 else _summary_writer(tensorboard)
    weights = finite_weights(optimizer)

    def losses_of(batch: Any, optimizer: torch.optim.Optimizer | None) -> Tensor:
        batch = batch.to(device)
        return _losses(model, criterion, shared_inputs(model, batch, device, share_days), batch, optimizer)

    captured = None
    if capture and can_capture(model, optimizer, criterion, train_dataloader, device):
        captured = CapturedSteps(
            train_dataloader,  # type: ignore[arg-type]
            optimizer,
            lambda batch: losses_of(batch, optimizer),
        )
        captured.look(model)

    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(num_epochs, progress))
        if writer is not None:
            stack.callback(writer.close)
        for epoch in range(course.epoch + 1, int(num_epochs) + 1):
            if best.stopped() or course.stopped:
                break
            model.train()
            passes = {"train": _run_epoch(losses_of, train_dataloader, optimizer, "train_dataloader", captured)}
            if test_dataloader is not None:
                model.eval()
                with torch.no_grad():
                    passes["test"] = _run_epoch(losses_of, test_dataloader, None, "test_dataloader")
            # Fetched together: while a GPU still trains, the host has the test pass ready for it.
            fetched = torch.cat([*passes.values(), largest(weights, device)]).tolist()
            names = [f"{part}_{name}" for part in passes for name in NAMES]
            metrics = dict(zip(names, fetched, strict=False))
            # Processes with data of their own have to stop together.
            watched = metrics["train_total_loss" if test_dataloader is None else "test_total_loss"]
            every = processes.gather((watched, failure(epoch, metrics, fetched[-1])))
            for _, reason in every:
                if reason is not None:
                    raise FloatingPointError(reason)
            mean = sum(loss for loss, _ in every) / len(every)
            course.add(epoch, metrics)
            bar.advance(epoch, metrics)
            if test_dataloader is not None:
                best.look(mean, processes.model)
            if scheduler is not None:
                step_scheduler(scheduler, mean)
            if callback is not None:
                course.stopped = any(processes.gather(_is_true(callback(epoch, metrics))))
                if captured is not None:
                    captured.look(model)
            if writer is not None:
                _write_summary(writer, epoch, metrics)
            ends = epoch == num_epochs or best.stopped() or course.stopped
            # After all that may change what the next epoch starts from.
            if checkpoint is not None and (epoch % checkpoint_every == 0 or ends):
                common = {"best": best.state_dict()}
                with storing():
                    save_state(checkpoint, model, optimizer, loaders, course.state_dict(), common, held)
            if best.stopped():
                bar.note(f"Epoch {epoch:3d}: test loss has not fallen for {patience} epochs, stopped")
            elif course.stopped and epoch < num_epochs:
                bar.note(f"Epoch {epoch:3d}: stopped by the callback")
    best.restore(processes.model)
    return course.train_losses, course.test_losses, course.history


def _is_true(answer: Any) -> bool:
    """Whether a callback asked to stop: by ``True``, not by whatever else it may happen to return."""
    return isinstance(answer, bool | np.bool_) and bool(answer)


def _check_loader(name: str, loader: Any) -> None:
    """Refuses what holds no batches, what can be gone through only once, and windows without labels."""
    if loader is None and name == "test_dataloader":
        return
    if isinstance(loader, Mapping) or not (hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")):
        hint = "; call it" if callable(loader) else "; give a list of one batch" if hasattr(loader, "x") else ""
        if isinstance(loader, WindowDataset):
            hint = "; make a hiermt.data.WindowLoader of it"
        raise TypeError(f"{name}: expected an iterable of batches, got {type(loader).__name__}{hint}")
    if is_iterator(loader):
        raise TypeError(
            f"{name}: a {type(loader).__name__} is exhausted after one epoch; give a list of its batches, or an object "
            "whose __iter__ starts anew"
        )
    _check_labelled(name, loader)


def _hold(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: dict[str, Any],
    criterion: Any,
    scheduler: Any,
    callback: Any,
) -> Held:
    """What a checkpoint keeps of these, once it is sure that it can."""
    for name, loader in loaders.items():
        check_workers(name, loader)
    with storing():
        held = hold(model, optimizer, loaders.values(), criterion, scheduler, callback)
    check_storable(model, optimizer, held)
    return held


def _check_labelled(name: str, loader: Any) -> None:
    """Refuses a loader that says itself that its windows have no labels."""
    for holder in (loader, getattr(loader, "dataset", None)):
        if getattr(holder, "labelled", True) is False:
            raise ValueError(
                f"{name}: some of its windows end on a day without labels, so its batches carry none; give the dataset "
                "labels, and the loader only windows that have one"
            )


def _is_there(path: Path, processes: Processes) -> bool:
    """Whether there is a state to go on from; all processes have to see the same."""
    found = processes.gather(path.is_file())
    if any(found) and not all(found):
        missing = [rank for rank, there in enumerate(found) if not there]
        raise ValueError(f"checkpoint: {path} is there for some processes and not for those of rank {missing}")
    return all(found)


def adam(model: nn.Module, lr: float | Tensor = 1e-3, **options: Any) -> torch.optim.Adam:
    """Adam over the parameters of a model, in one kernel where torch has one, and ready to be captured on a GPU.

    Args:
        model (Module): already on its device.
        lr (float or Tensor): learning rate. As a tensor on the model's GPU it is read anew by captured steps, which a
            scheduler then does not have captured again. (default: ``1e-3``)
        options: passed on to ``torch.optim.Adam``.
    """
    parameters = list(model.parameters())
    if any(parameter.is_cuda for parameter in parameters):
        options.setdefault("capturable", True)
    if "foreach" in options or "fused" in options:
        return torch.optim.Adam(parameters, lr=lr, **options)
    try:
        return torch.optim.Adam(parameters, lr=lr, fused=True, **options)
    except RuntimeError:  # no fused kernel for this device or dtype
        return torch.optim.Adam(parameters, lr=lr, **options)


def _run_epoch(
    losses_of: Callable[[Any, torch.optim.Optimizer | None], Tensor],
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer | None,
    name: str,
    captured: CapturedSteps | None = None,
) -> Tensor:
    """One pass, with a step after each batch if there is an `optimizer`; average losses over the batches, on the
    device, in the order of ``NAMES``."""

    def each() -> Iterator[Tensor]:
        if captured is not None:
            for planned in captured.loader.plan():
                yield captured.run(planned)
        else:
            for batch in batches:
                yield losses_of(batch, optimizer)

    total, steps = None, 0
    for losses in each():
        # The losses of a captured step live where the next one writes its own.
        total = losses.clone() if total is None else total + losses
        steps += 1
    if total is None:
        raise ValueError(f"{name}: has no batch; it needs at least one, in each epoch anew")
    return total / steps


def _losses(
    model: nn.Module,
    criterion: nn.Module,
    inputs: tuple[Any, ...],
    batch: Any,
    optimizer: torch.optim.Optimizer | None,
) -> Tensor:
    """Total, signal and direction loss of a batch, float64 on the device, after a step if there is an `optimizer`."""
    terms = loss_terms(criterion, model(*inputs), batch)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(terms[0])
        optimizer.step()
    return torch.stack([term.detach().to(torch.float64) for term in terms])
