"""The multi-task loss as a function; part of :mod:`hiermt.functional`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from hiermt._arguments import check_number, check_tensor
from hiermt._tracing import recorded, refuse_tracing
from hiermt.functional.arguments import prepare
from hiermt.functional.heads import logits_expected

# PyTorch compares and reduces few of them.
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_COMPLEX_OR_BOOL = (torch.bool, torch.complex64, torch.complex128, torch.complex32)


def multitask_loss(
    signal_logits: Tensor,
    direction_logits: Tensor,
    signal_targets: Tensor,
    direction_targets: Tensor,
    mask: Tensor | None = None,
    lambda_direction: float | Tensor = 1.0,
    *,
    signal_weight: Tensor | Sequence[float] | None = None,
    direction_weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    row_mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Cross entropy of the signal head plus that of the direction head over the rows of `mask`.

    Each head's loss is that of ``torch.nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)``, the mean over
    the rows weighted by the class of each, with a factor for `focal_gamma`: see :class:`hiermt.MultiTaskLoss` for the
    formula.

    Args:
        signal_logits, direction_logits (Tensor): logits of the two heads.
        signal_targets, direction_targets (Tensor): 0 or 1; anything where a row does not count.
        mask (Tensor, optional): rows that count for the direction. (default: all of them)
        lambda_direction (float or Tensor): weight of the direction loss; a Tensor of one element gets its gradient.
            (default: ``1.0``)
        signal_weight, direction_weight (Tensor or sequence, optional): weights of the two classes of a head; they get
            no gradient. (default: ``None``, 1 each)
        label_smoothing (float): in ``[0, 1]``. (default: ``0.0``)
        focal_gamma (float): exponent of the focal loss, 0 or more. (default: ``0.0``)
        row_mask (Tensor, optional): rows that count at all, such as those of stocks that are present; the direction
            counts the rows of `mask` among them. (default: all of them)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **logits:** ``[N, 2]``; **targets:** ``[N]``; **mask**, **row_mask:** ``[N]`` bool; **weights:** ``[2]``
        - **returns:** total, signal and direction loss, scalars; zero loss with zero gradients for a head
          without a row that counts, or without one whose class has a weight, where PyTorch's mean of nothing is NaN

    Raises:
        ValueError: a shape or device does not fit, a number is out of range, or, on the CPU, a label is outside
            {0, 1} or a weight negative or not finite.
        TypeError: the logits differ in dtype, a number is something else, or a weight requires grad.
    """
    check_tensor("signal_logits", signal_logits)
    rows = signal_logits.size(0) if signal_logits.dim() else 1
    refuse_tracing(rows)
    for name, logits in (("signal_logits", signal_logits), ("direction_logits", direction_logits)):
        check_tensor(name, logits)
        if logits.shape != (rows, 2):
            raise ValueError(f"{name}: expected [{rows}, 2], got {list(logits.shape)}")
    others = [("signal_targets", signal_targets), ("direction_targets", direction_targets)]
    if mask is not None:
        others.append(("signal_mask", mask))
    if row_mask is not None:
        others.append(("row_mask", row_mask))
    for name, tensor in others:
        check_tensor(name, tensor)
        if tensor.shape != (rows,):
            raise ValueError(f"{name}: expected {rows} elements, one per row of the logits, got {list(tensor.shape)}")
        if tensor.dtype.is_complex:
            raise TypeError(f"{name}: expected integers or booleans, got {tensor.dtype}")
        if tensor.device != signal_logits.device:
            raise ValueError(f"{name} is on {tensor.device}, the logits on {signal_logits.device}; move one")
    # A Tensor stays outside the operator, so that autograd sees it.
    learned = one_element(lambda_direction) if isinstance(lambda_direction, Tensor) else None
    factor = check_number("lambda_direction", lambda_direction) if learned is None else 0.0
    options: tuple[Any, ...] = ()
    smoothed = type(label_smoothing) is not float or label_smoothing != 0.0
    focal = type(focal_gamma) is not float or focal_gamma != 0.0
    weighted = signal_weight is not None or direction_weight is not None
    if smoothed or focal or weighted or row_mask is not None:
        options = (
            _on(signal_logits.device, "signal_weight", class_weight("signal_weight", signal_weight)),
            _on(signal_logits.device, "direction_weight", class_weight("direction_weight", direction_weight)),
            check_number("label_smoothing", label_smoothing, 0.0, 1.0),
            check_number("focal_gamma", focal_gamma, 0.0),
        )
    row_mask = None if row_mask is None else row_mask.bool()
    mask = None if mask is None else mask.bool()
    signal_targets, direction_targets = (
        one.long() if one.dtype in _UNSIGNED else one for one in (signal_targets, direction_targets)
    )
    _check_labels("signal_targets", signal_targets, row_mask)
    _check_labels("direction_targets", direction_targets, _both(mask, row_mask))
    # Under autocast a loss is float32, as torch's own is.
    (signal, direction), run = prepare(
        "multitask_loss", signal_logits, [direction_logits], logits_expected, None, backend, torch.float32
    )
    if rows == 0:
        of_signal, of_direction = signal.sum(), direction.sum()
        total = of_signal + factor * of_direction
    else:
        options += () if row_mask is None else (row_mask,)
        total, of_signal, of_direction = run(
            signal, direction, signal_targets.long(), direction_targets.long(), mask, factor, *options
        )
    if learned is not None:
        total = of_signal + learned.to(of_direction.dtype) * of_direction
    return total, of_signal, of_direction


def class_weight(name: str, weight: Tensor | Sequence[float] | None) -> Tensor | None:
    """The weights of two classes in float64, which holds them as they were given.

    Raises:
        TypeError: it is neither a Tensor nor a sequence of numbers, or requires grad.
        ValueError: it has not two elements, or one is negative or not finite; looked at on the CPU only.
    """
    if weight is None:
        return None
    if isinstance(weight, Mapping | Set):
        raise TypeError(f"{name}: expected two weights in the order of the classes, got {weight!r}; pass a list")
    if not isinstance(weight, Tensor):
        try:
            numbers = list(weight)
        except TypeError:
            raise TypeError(f"{name}: expected two weights, one for each class, got {weight!r}") from None
        checked = [check_number(f"{name}[{i}]", number, 0.0) for i, number in enumerate(numbers)]
        weight = torch.tensor(checked, dtype=torch.float64, device="cpu")
    elif weight.requires_grad:
        raise TypeError(f"{name}: requires grad, but class weights get no gradient; pass {name}.detach()")
    elif weight.dtype in _COMPLEX_OR_BOOL:
        raise TypeError(f"{name}: expected real weights, got {weight.dtype}")
    if weight.shape != (2,):
        raise ValueError(f"{name}: expected 2 weights, one for each class, got shape {list(weight.shape)}")
    weight = weight.to(torch.float64)
    if weight.device.type == "cpu" and not recorded():
        for i, number in enumerate(weight.tolist()):
            check_number(f"{name}[{i}]", number, 0.0)
    return weight


def one_element(lambda_direction: Tensor) -> Tensor:
    """A weight of the direction loss that is a Tensor, as a scalar.

    Raises:
        TypeError: it is complex or bool.
        ValueError: it has another number of elements.
    """
    if lambda_direction.dtype in _COMPLEX_OR_BOOL:
        raise TypeError(f"lambda_direction: expected a real number, got a Tensor of {lambda_direction.dtype}")
    if lambda_direction.numel() != 1:
        raise ValueError(f"lambda_direction: expected one element, got a Tensor {list(lambda_direction.shape)}")
    return lambda_direction.reshape(())


def _on(device: torch.device, name: str, weight: Tensor | None) -> Tensor | None:
    if weight is not None and weight.device != device:
        raise ValueError(f"{name} is on {weight.device}, the logits on {device}; move one, or the criterion with .to()")
    return weight


def _both(mask: Tensor | None, row_mask: Tensor | None) -> Tensor | None:
    if mask is None or row_mask is None:
        return row_mask if mask is None else mask
    return mask & row_mask


def _check_labels(name: str, labels: Tensor, mask: Tensor | None) -> None:
    """Refuses labels outside {0, 1}; on a GPU the look would cost a synchronisation, so loaders look there."""
    if labels.device.type != "cpu" or recorded():
        return
    if labels.numel() and not labels.is_floating_point() and labels.dtype != torch.bool:
        # Integers, as almost always: two numbers tell.
        low, high = torch.aminmax(labels if mask is None else labels * mask)
        if int(low) >= 0 and int(high) <= 1:
            return
    wrong = (labels != 0) & (labels != 1)
    if mask is not None:
        wrong = wrong & mask
    if bool(wrong.any()):
        raise ValueError(f"{name}: expected 0 or 1, got {labels[wrong][0].item()}")
