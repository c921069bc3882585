"""The interface of a task, and what tasks share: targets of a batch, rows that count, their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import windows
from hiermt._tracing import recorded
from hiermt.data.dataset import MASK
from hiermt.nn.inputs import present_rows

TOTAL = "total_loss"


class Task(nn.Module):
    """What a model is trained for: the loss of its output, its result and its scores.

    :func:`hiermt.train`, :func:`hiermt.evaluate` and :func:`hiermt.predict` take any task. A subclass defines
    :meth:`losses`, :meth:`decide`, :meth:`count` and :meth:`score`.

    Attributes:
        parts (tuple of str): names of the losses, the one that is minimised (``"total_loss"``) first.
        needs (tuple of str): attributes that a batch must have.
        target (str): the one of them that holds the targets of a task with one loss.
        capturable (bool): whether a training step may be captured into a CUDA graph.
        process_group (ProcessGroup, optional): processes that each have a part of the batch. The means then count the
            rows of the whole batch.
    """

    parts: tuple[str, ...] = (TOTAL,)
    needs: tuple[str, ...] = ("y",)
    target: str = "y"
    process_group: Any = None

    @property
    def capturable(self) -> bool:
        return self.process_group is None

    @property
    def stored(self) -> Any:
        """The object whose state a checkpoint of the training holds."""
        return self

    def forward(self, output: Any, batch: Any) -> Tensor:
        """The loss that is minimised."""
        return self.losses(output, batch)[0]

    def losses(self, output: Any, batch: Any) -> Sequence[Tensor]:
        """The losses of a batch, scalars in the order of `parts`."""
        raise NotImplementedError

    def decide(self, output: Any) -> dict[str, Tensor]:
        """The result for each row of a model's output, by name."""
        raise NotImplementedError

    def count(self, output: Any, batch: Any) -> dict[str, Tensor]:
        """Sums over the rows of a batch, float64 vectors on the device; those of all batches together give the scores.

        The names distinguish the heads of a model; one head has the name ``""``.
        """
        raise NotImplementedError

    def score(self, counts: dict[str, list[float]]) -> dict[str, float]:
        """The scores, from the sum of :meth:`count` over all batches; NaN where no row counts."""
        raise NotImplementedError

    def expects(self, what: str, got: object) -> ValueError:
        """The error of an output or target that does not fit the task."""
        return ValueError(f"{type(self).__name__} expects {what}, got {got}")


def target_of(task: Task, batch: Any, name: str) -> Tensor:
    """The attribute `name` of a batch.

    Raises:
        ValueError: the batch has none.
        TypeError: it is not a Tensor.
    """
    found = getattr(batch, name, None)
    if found is None:
        raise ValueError(
            f"a batch has no {name}, which {type(task).__name__} needs; give the batches an attribute of that name, or "
            f"the WindowDataset targets={{{name!r}: ...}}"
        )
    if not isinstance(found, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(found).__name__}")
    return found


def mask_of(batch: Any, shape: torch.Size) -> Tensor | None:
    """Which targets of a batch count, bool of `shape`; ``None`` if all do.

    Those are the rows of ``target_mask``, whose stocks are ``present`` on the last day.

    Raises:
        ValueError: a mask has another number of elements.
    """
    masks = [_fitted(mask, shape) for mask in (getattr(batch, MASK, None), present_rows(batch)) if mask is not None]
    return masks[0] & masks[1] if len(masks) > 1 else next(iter(masks), None)


def _fitted(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask of rows or of targets in the shape of the targets."""
    if mask.numel() == shape.numel():
        return mask.reshape(shape).bool()
    rows = shape[: mask.dim()]
    if mask.shape != rows:
        raise ValueError(f"{MASK}: expected one value a row or one a target, {list(shape)}, got {list(mask.shape)}")
    return mask.bool().reshape(*rows, *[1] * (len(shape) - len(rows))).expand(shape)


def readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be checked without a wait for a device."""
    return not windows.reading_syncs(tensor) and not recorded() and not tensor.is_meta


def precise(tensor: Tensor) -> Tensor:
    """The tensor in the dtype in which losses are computed: float64 as it is, all others in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def mean(values: Tensor, counts: Tensor, weights: Tensor | None = None, group: Any = None) -> Tensor:
    """Sum of `values` where `counts`, by the sum of `weights` (or the number) there; zero where that sum is zero.

    With a process group, the sum of the weights is that of all processes, and the result is multiplied by their number:
    the average over the processes, which DistributedDataParallel takes of gradients, is the mean of the whole batch.
    """
    total = values.masked_fill(~counts, 0.0).sum()
    norm = (counts.to(values.dtype) if weights is None else weights.masked_fill(~counts, 0.0)).sum()
    if group is not None:
        from torch import distributed

        norm = norm.clone()
        distributed.all_reduce(norm, group=group)
        total = total * distributed.get_world_size(group)
    none = norm == 0
    return (total / norm.masked_fill(none, 1.0)).masked_fill(none, 0.0)
