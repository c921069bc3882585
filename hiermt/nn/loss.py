"""The loss of the two heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt._arguments import check_number, check_tensor
from hiermt._tracing import NotScriptable
from hiermt.functional.loss import class_weight, one_element
from hiermt.native import dispatch


class LossTerms(NamedTuple):
    """Scalars on the device of the logits: ``total = signal + lambda_direction * direction``."""

    total: Tensor
    signal: Tensor
    direction: Tensor


class MultiTaskLoss(NotScriptable, nn.Module):
    r"""Cross entropy of the signal head plus that of the direction head where there is a signal.

    .. math:: L = L_{all}(s) + \lambda L_M(d), \quad
        L_R(z) = \frac{1}{\sum_{n \in R} w_{y_n}} \sum_{n \in R} (1 - p_{n, y_n})^\gamma
        \left[ (1 - \varepsilon) w_{y_n} (-\log p_{n, y_n})
        + \frac{\varepsilon}{2} \sum_c w_c (-\log p_{n, c}) \right], \quad p_n = softmax(z_n)

    Without the options, and with :math:`w = 1`, :math:`\varepsilon = \gamma = 0`, each head has the mean of its cross
    entropies. With them each has the loss of ``torch.nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)``:
    the mean is weighted, so a sum of weights divides, and not the number of rows as in
    ``CrossEntropyLoss(weight, reduction="none")(...).mean()``. The focal factor (Lin et al., arXiv 1708.02002)
    multiplies each row before that mean; the class weights are its :math:`\alpha`. Rows whose class weights
    are zero give a loss of zero with zero gradients, and so do zero rows.

    Args:
        lambda_direction (float or Tensor): weight of the direction loss. A Tensor of one element, such as a
            learned ``nn.Parameter``, gets its gradient. (default: ``1.0``)
        backend (str): implementation: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
        process_group (ProcessGroup, optional): processes that train one model on parts of a batch, each as large as
            the others. The losses then count against the rows and weights in the whole batch, so that the average of
            the gradients is the gradient of the whole batch. (default: ``None``, this process alone)
        signal_weight (Tensor or sequence, optional): weights of Noise and Signal, a buffer of this module.
            (default: ``None``, 1 each)
        direction_weight (Tensor or sequence, optional): weights of Down and Up, likewise. (default: ``None``, 1 each)
        label_smoothing (float): :math:`\varepsilon` in ``[0, 1]``. (default: ``0.0``)
        focal_gamma (float): :math:`\gamma`, 0 or more. (default: ``0.0``)

    Shapes:
        - **signal_weight**, **direction_weight:** ``[2]``

    Raises:
        TypeError: a number is something else, or class weights require grad.
        ValueError: a number is NaN, infinite or out of range, or there are not two weights.
    """

    signal_weight: Tensor | None
    direction_weight: Tensor | None

    def __init__(
        self,
        lambda_direction: float | Tensor = 1.0,
        *,
        backend: str = "auto",
        process_group: Any | None = None,
        signal_weight: Tensor | Sequence[float] | None = None,
        direction_weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(lambda_direction, Tensor):
            one_element(lambda_direction)
            if lambda_direction.device.type == "cpu":
                check_number("lambda_direction", lambda_direction.item())
        else:
            lambda_direction = check_number("lambda_direction", lambda_direction)
        self.lambda_direction = lambda_direction
        self.backend = dispatch.check(backend)
        self.process_group = process_group
        for name, weight in (("signal_weight", signal_weight), ("direction_weight", direction_weight)):
            own = class_weight(name, weight)
            self.register_buffer(name, own.clone() if own is weight and own is not None else own)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0.0, 1.0)
        self.focal_gamma = check_number("focal_gamma", focal_gamma, 0.0)

    def terms(
        self,
        signal_logits: Tensor,
        direction_logits: Tensor,
        signal_targets: Tensor,
        direction_targets: Tensor,
        signal_mask: Tensor | None = None,
        row_mask: Tensor | None = None,
    ) -> LossTerms:
        """The three losses as tensors, without a copy to the host; arguments as for :meth:`forward`."""
        for name, logits in (("signal_logits", signal_logits), ("direction_logits", direction_logits)):
            check_tensor(name, logits)
            if logits.dim() == 0 or logits.size(-1) != 2:
                raise ValueError(f"{name}: expected [*, 2], got {list(logits.shape)}")
        signal_logits, direction_logits = signal_logits.reshape(-1, 2), direction_logits.reshape(-1, 2)
        check_tensor("signal_targets", signal_targets)
        check_tensor("direction_targets", direction_targets)
        signal_targets, direction_targets = signal_targets.reshape(-1), direction_targets.reshape(-1)
        mask = None if signal_mask is None else signal_mask.reshape(-1)
        row_mask = None if row_mask is None else row_mask.reshape(-1)
        terms = LossTerms(
            *functional.multitask_loss(
                signal_logits,
                direction_logits,
                signal_targets,
                direction_targets,
                mask,
                self.lambda_direction,
                signal_weight=self.signal_weight,
                direction_weight=self.direction_weight,
                label_smoothing=self.label_smoothing,
                focal_gamma=self.focal_gamma,
                row_mask=row_mask,
                backend=self.backend,
            )
        )
        if self.process_group is None:
            return terms
        signal, direction = self._shared(terms, signal_targets, direction_targets, mask, row_mask)
        factor = self.lambda_direction
        if isinstance(factor, Tensor):
            factor = one_element(factor).to(direction.dtype)
        return LossTerms(signal + factor * direction, signal, direction)

    def _shared(
        self,
        terms: LossTerms,
        signal_targets: Tensor,
        direction_targets: Tensor,
        mask: Tensor | None,
        row_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Both losses times this process's share of the weights of the whole batch and the number of processes."""
        from torch import distributed

        both = mask if row_mask is None else row_mask if mask is None else mask.bool() & row_mask.bool()
        own = torch.stack(
            [
                _counted(signal_targets, row_mask, self.signal_weight),
                _counted(direction_targets, both, self.direction_weight),
            ]
        )
        every = own.clone()
        distributed.all_reduce(every, group=self.process_group)
        share = own * distributed.get_world_size(self.process_group) / every.masked_fill(every == 0, 1.0)
        signal, direction = share.to(terms.direction.dtype)
        return terms.signal * signal, terms.direction * direction

    def forward(
        self,
        signal_logits: Tensor,
        direction_logits: Tensor,
        signal_targets: Tensor,
        direction_targets: Tensor,
        signal_mask: Tensor | None = None,
        row_mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Computes the loss.

        Args:
            signal_logits, direction_logits (Tensor): logits of the heads.
            signal_targets (Tensor): 0 Noise, 1 Signal.
            direction_targets (Tensor): 0 Down, 1 Up.
            signal_mask (Tensor, optional): rows that count for the direction. (default: all of them)
            row_mask (Tensor, optional): rows that count at all; targets elsewhere may be anything. (default: all of
                them)

        Shapes:
            - **logits:** ``[*, 2]``; **targets**, **masks:** any shape with as many elements as there are rows
            - **returns:** scalar, and ``{"signal_loss", "direction_loss", "total_loss"}`` as floats, fetched from the
              device in one copy; all zero for a batch without rows that count

        Raises:
            ValueError: a shape does not fit.
        """
        terms = self.terms(signal_logits, direction_logits, signal_targets, direction_targets, signal_mask, row_mask)
        total, signal, direction = torch.stack([term.detach().double() for term in terms]).tolist()
        return terms.total, {"signal_loss": signal, "direction_loss": direction, "total_loss": total}


def _counted(targets: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """Sum of the weights of the rows that count, float64."""
    if weight is None:
        every = torch.full((), targets.numel(), dtype=torch.float64, device=targets.device)
        return every if mask is None else mask.bool().sum().double()
    # A target outside the mask may have any value.
    rows = weight.double()[targets.long() if mask is None else targets.long().masked_fill(~mask.bool(), 0)]
    return rows.sum() if mask is None else rows.masked_fill(~mask.bool(), 0.0).sum()
