"""The training loop of the two-headed model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiermt._arguments import check_integer
from hiermt._capture import CapturedSteps, can_capture
from hiermt._feature_names import check_same, names_of
from hiermt._inputs import shared_inputs
from hiermt._processes import Processes
from hiermt._progress import Progress
from hiermt._stopping import EarlyStopping
from hiermt._tensorboard import _summary_writer, _write_summary
from hiermt.loss import MultiTaskLoss
from hiermt.resume import check_path, load_state, save_state


class _Default(float):
    """A default that can be told from the same number given by a caller."""


_ONE = _Default(1.0)
_NAMES = ("total_loss", "signal_loss", "direction_loss")

Callback = Callable[[int, dict[str, float]], None]


def train_hierarchical(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module | None,
    train_dataloader: Iterable[Any],
    test_dataloader: Iterable[Any] | None,
    num_epochs: int = 100,
    lambda_direction: float = _ONE,
    device: torch.device | str = "cpu",
    *,
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
        optimizer (Optimizer): over the model's parameters.
        criterion (Module, optional): a :class:`MultiTaskLoss`, or any module that is called like one;
            ``None`` for ``MultiTaskLoss(lambda_direction)``.
        train_dataloader, test_dataloader (iterable): batches with ``x``, ``edge_index`` or ``graph``,
            ``edge_weight``, ``signal_labels``, ``direction_labels`` and ``to(device)``; the test loader may be
            ``None``.
        num_epochs (int): passes over the training data, 0 or more. (default: ``100``)
        lambda_direction (float): weight of the direction loss if there is no `criterion`; where it is given along with
            one, it must not contradict the criterion's own. (default: ``1.0``)
        device: where to train. (default: ``"cpu"``)
        callback (callable, optional): called as ``callback(epoch, metrics)`` after each epoch, epochs counted from
            1, with the epoch's average losses. (default: ``None``)
        patience (int, optional): stop when the test loss has not fallen for so many epochs, 1 or more, and put the best
            weights back. (default: ``None``, train to the end)
        progress (bool): show a bar, if ``tqdm`` is installed, and the line every tenth epoch. (default: ``True``)
        checkpoint (str or Path, optional): file that holds the state of the training after the last epoch; a crash
            leaves the one before. Of several processes around a DistributedDataParallel model the first writes, and
            all go on from it. (default: ``None``)
        resume (bool): go on from `checkpoint` if it is there, equal to the bit to a training that was not
            interrupted. (default: ``False``)
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
        ValueError: a loader is empty, its windows have no labels, or its features are not those that the model names,
            `lambda_direction` contradicts the criterion,
            `num_epochs` or `patience` is out of range, `patience` has no test loader, `checkpoint` is damaged or is one
            of another model, optimiser, loader or number of processes, or `share_days` is not possible.
        TypeError: `num_epochs`, `patience` or `checkpoint_every` is no integer.
        ImportError: the package ``tensorboard`` is missing.
        OSError: `checkpoint` cannot be written; a device, a pipe or a folder is refused before the first epoch.
    """
    criterion = _criterion(criterion, lambda_direction)
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
        _check_labelled(name, loader)
        check_same(name, names_of(loader), names_of(model))
    processes = Processes(model)
    if checkpoint is not None:
        check_path(checkpoint, processes)
    progress = progress and processes.rank == 0
    model.to(device)
    train_losses: list[float] = []
    test_losses: list[float] = []
    history: dict[str, list[float]] = {"signal_loss": [], "direction_loss": [], "total_loss": []}
    best = EarlyStopping(patience)
    loaders = [loader for loader in (train_dataloader, test_dataloader) if loader is not None]
    first = 1
    if resume and checkpoint is not None and _is_there(Path(checkpoint), processes):
        state = load_state(checkpoint, model, optimizer, loaders)
        first = int(state["epoch"]) + 1
        train_losses, test_losses, history = state["train_losses"], state["test_losses"], state["history"]
        best.load_state_dict(state["best"])
    callbacks = [] if callback is None else [callback]
    writer = None if tensorboard is None or processes.rank > 0 else _summary_writer(tensorboard)
    if writer is not None:
        callbacks.append(lambda epoch, metrics: _write_summary(writer, epoch, metrics))

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

    with Progress(num_epochs, progress) as bar:
        for epoch in range(first, num_epochs + 1):
            if best.stopped():
                break
            model.train()
            passes = {"train": _run_epoch(losses_of, train_dataloader, optimizer, "train_dataloader", captured)}
            if test_dataloader is not None:
                model.eval()
                with torch.no_grad():
                    passes["test"] = _run_epoch(losses_of, test_dataloader, None, "test_dataloader")
            # Fetched together: while a GPU still trains, the host has the test pass ready for it.
            averages = dict(zip(passes, torch.stack(list(passes.values())).tolist(), strict=True))
            metrics = {
                f"{part}_{name}": value
                for part, values in averages.items()
                for name, value in zip(_NAMES, values, strict=True)
            }
            train_losses.append(metrics["train_total_loss"])
            for name, values in history.items():
                values.append(metrics[f"train_{name}"])
            if test_dataloader is not None:
                test_losses.append(metrics["test_total_loss"])
            bar.advance(epoch, metrics)
            if test_losses:
                # Processes with test data of their own have to stop together.
                every = processes.gather(test_losses[-1])
                best.look(sum(every) / len(every), processes.model)
            if checkpoint is not None and (epoch % checkpoint_every == 0 or epoch == num_epochs or best.stopped()):
                progress_made = {
                    "epoch": epoch,
                    "train_losses": train_losses,
                    "test_losses": test_losses,
                    "history": history,
                }
                save_state(checkpoint, model, optimizer, loaders, progress_made, {"best": best.state_dict()})
            for call in callbacks:
                call(epoch, metrics)
            if best.stopped():
                bar.note(f"Epoch {epoch:3d}: test loss has not fallen for {patience} epochs, stopped")
    if writer is not None:
        writer.close()
    best.restore(processes.model)
    return train_losses, test_losses, history


def _criterion(criterion: nn.Module | None, lambda_direction: float) -> nn.Module:
    if criterion is None:
        return MultiTaskLoss(lambda_direction)
    own = getattr(criterion, "lambda_direction", lambda_direction)
    if lambda_direction is not _ONE and lambda_direction != own:
        raise ValueError(
            f"lambda_direction: {lambda_direction} contradicts the criterion's {own}; "
            "set it in one place, or pass criterion=None"
        )
    return criterion


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


def adam(model: nn.Module, lr: float = 1e-3, **options: Any) -> torch.optim.Adam:
    """Adam over the parameters of a model, in one kernel where torch has one, and ready to be captured on a GPU.

    Args:
        model (Module): already on its device.
        lr (float): learning rate. (default: ``1e-3``)
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
    device, in the order of ``_NAMES``."""

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
        raise ValueError(f"{name}: has no batch; it needs at least one")
    return total / steps


def _losses(
    model: nn.Module,
    criterion: nn.Module,
    inputs: tuple[Any, ...],
    batch: Any,
    optimizer: torch.optim.Optimizer | None,
) -> Tensor:
    """Total, signal and direction loss of a batch, float64 on the device, after a step if there is an `optimizer`."""
    terms = _loss_terms(criterion, model(*inputs), batch)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(terms[0])
        optimizer.step()
    return torch.stack([term.detach().to(torch.float64) for term in terms])


def _loss_terms(criterion: nn.Module, logits: tuple[Tensor, Tensor], batch: Any) -> tuple[Tensor, ...]:
    if getattr(batch, "signal_labels", None) is None or getattr(batch, "direction_labels", None) is None:
        raise ValueError("a batch has no signal_labels and direction_labels; training and testing need both")
    signal_targets = batch.signal_labels.reshape(-1)
    direction_targets = batch.direction_labels.reshape(-1)
    mask = signal_targets == 1
    if isinstance(criterion, MultiTaskLoss):
        return criterion.terms(*logits, signal_targets, direction_targets, mask)
    loss, parts = criterion(*logits, signal_targets, direction_targets, signal_mask=mask)
    return loss, *(
        torch.as_tensor(parts.get(name, float("nan")), dtype=torch.float64, device=loss.device) for name in _NAMES[1:]
    )
