"""Calls of no window, no copy or no step: nothing is read, and every gradient is zero.

A sum over nothing is zero, but zero times a NaN or an infinity is not. So what lies between the arguments and that sum
is left out.
"""

from __future__ import annotations

from torch import Tensor

from hiermt._tracing import recorded


def is_nothing(x: Tensor) -> bool:
    """Whether no convolution of ``x [N, T, F]`` has a row; ``False`` where sizes may be open."""
    return not recorded() and (not x.size(0) or not x.size(1))


def without_days(
    series: Tensor, starts: Tensor, present: Tensor | None, steps: int
) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Series, first days, mask and steps for the operators: of no window a batch of no copy, which has no days."""
    if recorded() or starts.size(0):
        return series, starts, present, steps
    return series[:0, :steps], None, None if present is None else present[:0, :steps], 0
