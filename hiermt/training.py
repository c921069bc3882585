"""The training loop of the two-headed model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hiermt.inference import model_inputs
from hiermt.loss import MultiTaskLoss

LOG_EVERY = 10
_NAMES = ("total_loss", "signal_loss", "direction_loss")

Callback = Callable[[int, dict[str, float]], None]


def train_hierarchical(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module | None,
    train_dataloader: Iterable[Any],
    test_dataloader: Iterable[Any] | None,
    num_epochs: int = 100,
    lambda_direction: float = 1.0,
    device: torch.device | str = "cpu",
    *,
    callback: Callback | None = None,
    patience: int | None = None,
    progress: bool = True,
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    r"""Trains a model with two heads on the multi-task loss.

    Losses stay on the device and are fetched once an epoch. Every tenth epoch prints one line.

    Args:
        model (Module): returns ``(signal_logits, direction_logits)``; moved to `device`.
        optimizer (Optimizer): over the model's parameters.
        criterion (Module, optional): a :class:`MultiTaskLoss`, or any module that is called like one;
            ``None`` for ``MultiTaskLoss(lambda_direction)``.
        train_dataloader, test_dataloader (iterable): batches with ``x``, ``edge_index`` or ``graph``,
            ``edge_weight``, ``signal_labels``, ``direction_labels`` and ``to(device)``; the test loader may be
            ``None``.
        num_epochs (int): passes over the training data. (default: ``100``)
        lambda_direction (float): weight of the direction loss if there is no `criterion`; with one it must not
            contradict the criterion's own. (default: ``1.0``)
        device: where to train. (default: ``"cpu"``)
        callback (callable, optional): called as ``callback(epoch, metrics)`` after each epoch, epochs counted from
            1, with the epoch's average losses. (default: ``None``)
        patience (int, optional): stop when the test loss has not fallen for so many epochs, and put the best
            weights back. (default: ``None``, train to the end)
        progress (bool): show a bar, if ``tqdm`` is installed, and the line every tenth epoch. (default: ``True``)

    Returns:
        Training loss and test loss of each epoch, and ``{"signal_loss", "direction_loss", "total_loss"}``, each a
        list with one float an epoch.

    Raises:
        ValueError: a loader is empty, `lambda_direction` contradicts the criterion, or `patience` has no test loader.
    """
    criterion = _criterion(criterion, lambda_direction)
    if patience is not None and test_dataloader is None:
        raise ValueError("patience: stopping early needs a test_dataloader to watch")
    model.to(device)
    train_losses: list[float] = []
    test_losses: list[float] = []
    history: dict[str, list[float]] = {"signal_loss": [], "direction_loss": [], "total_loss": []}
    best = _Best(patience)

    with _Progress(num_epochs, progress) as bar:
        for epoch in range(1, num_epochs + 1):
            model.train()
            train = _run_epoch(model, criterion, train_dataloader, device, optimizer, "train_dataloader")
            train_losses.append(train["total_loss"])
            for name, values in history.items():
                values.append(train[name])
            metrics = {f"train_{name}": value for name, value in train.items()}
            if test_dataloader is not None:
                model.eval()
                with torch.no_grad():
                    test = _run_epoch(model, criterion, test_dataloader, device, None, "test_dataloader")
                test_losses.append(test["total_loss"])
                metrics |= {f"test_{name}": value for name, value in test.items()}
            bar.advance(epoch, metrics)
            if callback is not None:
                callback(epoch, metrics)
            if test_losses and best.should_stop(test_losses[-1], model):
                bar.note(f"Epoch {epoch:3d}: test loss has not fallen for {patience} epochs, stopped")
                break
    best.restore(model)
    return train_losses, test_losses, history


def _criterion(criterion: nn.Module | None, lambda_direction: float) -> nn.Module:
    if criterion is None:
        return MultiTaskLoss(lambda_direction)
    own = getattr(criterion, "lambda_direction", lambda_direction)
    if lambda_direction not in (1.0, own):
        raise ValueError(
            f"lambda_direction: {lambda_direction} contradicts the criterion's {own}; "
            "set it in one place, or pass criterion=None"
        )
    return criterion


def _run_epoch(
    model: nn.Module,
    criterion: nn.Module,
    batches: Iterable[Any],
    device: torch.device | str,
    optimizer: torch.optim.Optimizer | None,
    name: str,
) -> dict[str, float]:
    """One pass, with a step after each batch if there is an `optimizer`; average losses over the batches."""
    total, steps = None, 0
    for batch in batches:
        batch = batch.to(device)
        terms = _loss_terms(criterion, model(*model_inputs(batch, device)), batch)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(terms[0])
            optimizer.step()
        losses = torch.stack([term.detach().to(torch.float64) for term in terms])
        total = losses if total is None else total + losses
        steps += 1
    if total is None:
        raise ValueError(f"{name}: has no batch; it needs at least one")
    return dict(zip(_NAMES, (total / steps).tolist(), strict=True))


def _loss_terms(criterion: nn.Module, logits: tuple[Tensor, Tensor], batch: Any) -> tuple[Tensor, ...]:
    signal_targets = batch.signal_labels.reshape(-1)
    direction_targets = batch.direction_labels.reshape(-1)
    mask = signal_targets == 1
    if isinstance(criterion, MultiTaskLoss):
        return criterion.terms(*logits, signal_targets, direction_targets, mask)
    loss, parts = criterion(*logits, signal_targets, direction_targets, signal_mask=mask)
    return loss, *(torch.as_tensor(parts.get(name, float("nan")), device=loss.device) for name in _NAMES[1:])


class _Best:
    """Watches the test loss and keeps the weights that had the lowest."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.loss = float("inf")
        self.waited = 0
        self.state: dict[str, Tensor] | None = None

    def should_stop(self, loss: float, model: nn.Module) -> bool:
        if self.patience is None:
            return False
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.state = copy.deepcopy(model.state_dict())
            return False
        self.waited += 1
        return self.waited >= self.patience

    def restore(self, model: nn.Module) -> None:
        if self.state is not None:
            model.load_state_dict(self.state)


class _Progress:
    """A bar over the epochs where tqdm is installed, and a line every tenth epoch."""

    def __init__(self, num_epochs: int, enabled: bool) -> None:
        self.enabled = enabled
        self.bar: Any = None
        if enabled:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=num_epochs, desc="training", unit="epoch", leave=False, disable=None)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def note(self, line: str) -> None:
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.write(line)
        else:
            print(line)

    def advance(self, epoch: int, metrics: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.update()
        if epoch % LOG_EVERY:
            return
        line = (
            f"Epoch {epoch:3d}: Train Loss={metrics['train_total_loss']:.4f} "
            f"(Signal={metrics['train_signal_loss']:.4f}, Dir={metrics['train_direction_loss']:.4f})"
        )
        if "test_total_loss" in metrics:
            line += f" | Test Loss={metrics['test_total_loss']:.4f}"
        self.note(line)
