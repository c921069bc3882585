"""Counts of writes to tensors, which tell when results computed from them are out of date."""

from __future__ import annotations

import torch
from torch import Tensor


class Writes:
    """Counts the writes to some tensors.

    PyTorch counts them in a tensor's version, except for an inference tensor, made under ``torch.inference_mode``. The
    values of such a tensor are compared with a copy. On a GPU the comparison syncs; while a CUDA graph is captured,
    which forbids that, the tensor counts as unchanged.
    """

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = [tensor for tensor in tensors if tensor is not None]
        self._copies: dict[int, tuple[int, Tensor]] = {}

    def counts(self) -> list[int]:
        """The number of writes to each tensor; for an inference tensor, of the changes found."""
        counts = []
        for i, tensor in enumerate(self.tensors):
            counts.append(self._changes(i, tensor) if tensor.is_inference() else tensor._version)
        return counts

    def versions(self) -> tuple[int, ...]:
        """The same without a look at values, which waits for a GPU: an inference tensor counts as unchanged."""
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in self.tensors)

    def _changes(self, i: int, tensor: Tensor) -> int:
        count, copy = self._copies.get(i, (0, None))
        if copy is not None and tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            return count
        if copy is None or not torch.equal(copy, tensor):
            # One assignment: another thread must not see the new values under the old count.
            count, copy = self._copies[i] = count + 1, tensor.clone()
        return count
