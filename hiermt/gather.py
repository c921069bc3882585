"""Windows gathered out of a series of days."""

from __future__ import annotations

import torch
from torch import Tensor

from hiermt import _backend


def gather_windows(series: Tensor, starts: Tensor, steps: int, *, backend: str = "auto", check: bool = True) -> Tensor:
    r"""Windows of consecutive days, copied out of a series in one pass.

    Args:
        series (Tensor): values of each stock and day.
        starts (Tensor): first day of each window.
        steps (int): ``T``, days in a window.
        backend (str): who computes. (default: ``"auto"``)
        check (bool): look whether every window lies in the series. On a GPU that waits for the device; a caller
            who has looked already may leave it out. (default: ``True``)

    Shapes:
        - **series:** ``[S, D, F]``, **starts:** ``[B]`` int64 on the same device
        - **returns:** ``[B, S, T, F]``

    Raises:
        IndexError: a window does not lie in the series.
        ValueError: a shape or device does not fit, or `steps` is not in ``[0, D]``.
        TypeError: `series` is not floating point or `starts` not int64.
    """
    if series.dim() != 3:
        raise ValueError(f"series: expected [stocks, days, features], got {list(series.shape)}")
    if starts.dim() != 1:
        raise ValueError(f"starts: expected a vector of first days, got {list(starts.shape)}")
    if starts.dtype != torch.int64:
        raise TypeError(f"starts: expected int64, got {starts.dtype}; use starts.long()")
    if not series.is_floating_point():
        raise TypeError(f"series: expected floating point, got {series.dtype}; use series.float()")
    if starts.device != series.device:
        raise ValueError(f"series is on {series.device}, starts on {starts.device}; move one with .to(...)")
    days = series.size(1)
    if not 0 <= steps <= days:
        raise ValueError(f"steps: expected a length in [0, {days}], the days there are, got {steps}")
    if check and not torch.compiler.is_compiling() and starts.numel():
        low, high = torch.stack(starts.aminmax()).tolist()
        if low < 0 or high > days - steps:
            raise IndexError(
                f"starts: {low if low < 0 else high} is outside [0, {days - steps + 1}), the days on which a window "
                f"of {steps} can start in a series of {days}"
            )
    native = _backend.native(backend, series.device, series.dtype)
    # The copy has no gradient of its own; who wants one gets the twin's.
    if series.requires_grad and torch.is_grad_enabled():
        native = False
    return _backend.operator("gather_windows", native)(series, starts, steps)  # type: ignore[no-any-return]
