"""The loss of the two heads."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiermt import _backend, functional


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
        backend (str): who computes: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)
        process_group (ProcessGroup, optional): processes that train one model on parts of a batch, each as large as
            the others. The direction loss then counts against the signals in the whole batch, so that the average of
            the gradients is the gradient of the whole batch. (default: ``None``, this process alone)
    """

    def __init__(
        self, lambda_direction: float = 1.0, *, backend: str = "auto", process_group: Any | None = None
    ) -> None:
        super().__init__()
        self.lambda_direction = lambda_direction
        self.backend = _backend.check(backend)
        self.process_group = process_group

    def terms(
        self,
        signal_logits: Tensor,
        direction_logits: Tensor,
        signal_targets: Tensor,
        direction_targets: Tensor,
        signal_mask: Tensor | None = None,
    ) -> LossTerms:
        """The three losses as tensors, without a copy to the host; arguments as for :meth:`forward`."""
        for name, logits in (("signal_logits", signal_logits), ("direction_logits", direction_logits)):
            if logits.dim() == 0 or logits.size(-1) != 2:
                raise ValueError(f"{name}: expected [*, 2], got {list(logits.shape)}")
        signal_logits, direction_logits = signal_logits.reshape(-1, 2), direction_logits.reshape(-1, 2)
        mask = None if signal_mask is None else signal_mask.reshape(-1)
        terms = LossTerms(
            *functional.multitask_loss(
                signal_logits,
                direction_logits,
                signal_targets.reshape(-1),
                direction_targets.reshape(-1),
                mask,
                self.lambda_direction,
                backend=self.backend,
            )
        )
        if self.process_group is None or mask is None:
            return terms
        direction = terms.direction * self._share(mask).to(terms.direction.dtype)
        return LossTerms(terms.signal + self.lambda_direction * direction, terms.signal, direction)

    def _share(self, mask: Tensor) -> Tensor:
        """This process's share of the signals in the whole batch, times the number of processes."""
        from torch import distributed

        own = mask.sum().double()
        every = own.clone()
        distributed.all_reduce(every, group=self.process_group)
        return own * distributed.get_world_size(self.process_group) / every.clamp(min=1)

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
              device in one copy; all zero for a batch without rows

        Raises:
            ValueError: a shape does not fit.
        """
        terms = self.terms(signal_logits, direction_logits, signal_targets, direction_targets, signal_mask)
        total, signal, direction = torch.stack([term.detach().double() for term in terms]).tolist()
        return terms.total, {"signal_loss": signal, "direction_loss": direction, "total_loss": total}
