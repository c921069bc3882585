"""The loss of the two heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hiermt import functional


class LossTerms(NamedTuple):
    """Scalars on the device of the logits: ``total = signal + lambda_direction * direction``."""

    total: Tensor
    signal: Tensor
    direction: Tensor


class MultiTaskLoss(nn.Module):
    r"""Cross entropy of the signal head plus that of the direction head where there is a signal.

    .. math:: L = \frac{1}{N} \sum_n CE(s_n) + \lambda \frac{1}{|M|} \sum_{n \in M} CE(d_n)

    Args:
        lambda_direction (float): weight of the direction loss. (default: ``1.0``)
    """

    def __init__(self, lambda_direction: float = 1.0) -> None:
        super().__init__()
        self.lambda_direction = lambda_direction

    def terms(
        self,
        signal_logits: Tensor,
        direction_logits: Tensor,
        signal_targets: Tensor,
        direction_targets: Tensor,
        signal_mask: Tensor | None = None,
    ) -> LossTerms:
        """The three losses as tensors, without a copy to the host; arguments as for :meth:`forward`."""
        signal_logits, direction_logits = signal_logits.reshape(-1, 2), direction_logits.reshape(-1, 2)
        return LossTerms(
            *functional.multitask_loss(
                signal_logits,
                direction_logits,
                signal_targets.reshape(-1),
                direction_targets.reshape(-1),
                None if signal_mask is None else signal_mask.reshape(-1),
                self.lambda_direction,
            )
        )

    def forward(
        self,
        signal_logits: Tensor,
        direction_logits: Tensor,
        signal_targets: Tensor,
        direction_targets: Tensor,
        signal_mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Computes the loss.

        Args:
            signal_logits, direction_logits (Tensor): logits of the heads.
            signal_targets (Tensor): 0 Noise, 1 Signal.
            direction_targets (Tensor): 0 Down, 1 Up.
            signal_mask (Tensor, optional): rows that count for the direction. (default: all of them)

        Shapes:
            - **logits:** ``[*, 2]``; **targets**, **mask:** any shape with as many elements as there are rows
            - **returns:** scalar, and ``{"signal_loss", "direction_loss", "total_loss"}`` as floats, fetched from the
              device in one copy

        Raises:
            ValueError: a shape does not fit.
        """
        terms = self.terms(signal_logits, direction_logits, signal_targets, direction_targets, signal_mask)
        total, signal, direction = torch.stack([term.detach().double() for term in terms]).tolist()
        return terms.total, {"signal_loss": signal, "direction_loss": direction, "total_loss": total}
