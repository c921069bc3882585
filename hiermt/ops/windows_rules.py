"""``hiermt::gather_windows``: windows copied out of a series; no gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_windows(series: Tensor, starts: Tensor, steps: int) -> Tensor:
    """Windows copied out of a series; :func:`hiermt.reference.gather_windows` says what it computes.

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
    """
    try:
        return torch.ops.hiermt.gather_windows(series, starts, steps)  # type: ignore[no-any-return]
    except RuntimeError as error:
        # The stable ABI carries one type of exception only.
        if "is outside the days" in str(error):
            raise IndexError(str(error)) from None
        raise


def _fake_gather(series: Tensor, starts: Tensor, steps: int) -> Tensor:
    return series.new_empty(starts.size(0), series.size(0), steps, series.size(2))


def register() -> None:
    """Attaches the shapes to the operator; called once, when the extension is there."""
    torch.library.register_fake("hiermt::gather_windows", _fake_gather)
