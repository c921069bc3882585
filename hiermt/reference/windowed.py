"""Windows of a series by indexing; part of :mod:`hiermt.reference`."""

from __future__ import annotations

from torch import Tensor


def gather_windows(series: Tensor, starts: Tensor, steps: int) -> Tensor:
    r"""Windows of consecutive days, copied out of a series.

    Args:
        series (Tensor): values of each stock and day.
        starts (Tensor): first day of each window, each in ``[0, D - steps]``.
        steps (int): ``T``.

    Shapes:
        - **series:** ``[S, D, F]``, **starts:** ``[B]`` int64
        - **returns:** ``[B, S, T, F]``
    """
    stocks, days, features = series.shape
    shape = (starts.size(0), stocks, steps, features)
    if features == 0:
        return series.new_empty(shape)
    # The days of a stock lie side by side, so that a window is one row of memory.
    windows = series.reshape(stocks, days * features).unfold(1, steps * features, features)
    return windows.transpose(0, 1).index_select(0, starts).reshape(shape)
