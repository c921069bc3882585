"""Windows of consecutive days of a series: copied, or read in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hiermt import reference
from hiermt._arguments import check_integer, check_tensor
from hiermt._tracing import recorded, refuse_tracing
from hiermt.native import dispatch
from hiermt.presence import check_present


class DayRange(NamedTuple):
    """Range of the days of a batch of windows, known on the host.

    Attributes:
        first, stop (int): every window lies in ``[first, stop)``.
        days (int): length of the shortest span that contains every window.
    """

    first: int
    stop: int
    days: int


class Windows(NamedTuple):
    r"""``B`` windows of ``T`` consecutive days of one series, not copied.

    A model accepts it in place of ``x [B, S, T, F]`` and gives the same result. The first layer's work before the
    recurrence depends on the day alone; it is done once a day rather than once a window. On the CPU only the days of
    a window are computed. On a GPU, where reading `starts` would be a sync, all days of the series are (see
    :meth:`within`), unless the windows together have fewer; days outside every window must be finite there.
    A window outside the series raises on the CPU; on a GPU its values are undefined.

    Attributes:
        series (Tensor): features of each stock and day, in this order for every layout of the model.
        starts (Tensor): first day of each window.
        steps (int): ``T``.
        present (Tensor, optional): the days on which a stock is there; on the others it is no source of a message and
            holds its state, and its features are not read. (default: ``None``, all)

    Shapes:
        - **series:** ``[S, D, F]``, **starts:** ``[B]`` int64, **present:** ``[S, D]`` bool, on the same device
    """

    series: Tensor
    starts: Tensor
    steps: int
    present: Tensor | None = None

    def gather(self, *, backend: str = "auto", check: bool = True) -> Tensor:
        """The copied windows, ``[B, S, T, F]``; see :func:`gather_windows`."""
        return gather_windows(self.series, self.starts, self.steps, backend=backend, check=check)

    def gather_present(self) -> Tensor | None:
        """The mask of the copied windows, ``[B, S, T]``; ``None`` without one."""
        if self.present is None:
            return None
        present = check_present(self.present, self.series.shape[:2], self.series)
        starts, steps = self.starts, self.steps
        if reading_syncs(present):
            starts = starts.clamp(0, present.size(1) - steps)  # an index out of range is a device assert
        return reference.gather_windows(present.unsqueeze(-1), starts, steps).squeeze(-1)

    def _of_days(self, days: slice | Tensor, starts: Tensor) -> Windows:
        """Windows with these first days in the series of some days alone."""
        present = self.present
        if present is not None:
            present = check_present(present, self.series.shape[:2], self.series)
        cut = [self.series] if present is None else [self.series, present]
        found = [one[:, days] if isinstance(days, slice) else one.index_select(1, days) for one in cut]
        return Windows(found[0], starts, self.steps, *found[1:])

    def days(self) -> Tensor:
        """The distinct days of all windows, sorted. Waits for the device.

        Raises:
            IndexError: a window lies outside the series.
            ValueError: a shape or device does not fit.
        """
        steps = check_starts(self.starts, self.steps, self.series)
        later = torch.arange(steps, dtype=torch.int64, device=self.starts.device)
        return torch.unique(self.starts.unsqueeze(1) + later)  # type: ignore[no-any-return]

    def shared(self) -> Windows:
        """The same windows over a series of their distinct days alone. Waits for the device.

        Consecutive days are a view of the series, others are copied. Raises as :meth:`days`.
        """
        days = self.days()
        if not days.numel():
            return self._of_days(slice(self.steps), torch.zeros_like(self.starts))
        first, last = int(days[0]), int(days[-1])
        if last - first + 1 == days.numel():
            return self._of_days(slice(first, last + 1), self.starts - first)
        return self._of_days(days, torch.searchsorted(days, self.starts))

    def within(self, day_span: DayRange) -> Windows:
        """The same windows over the days of `day_span` alone, without reading `starts`, which on a GPU is a sync.

        The values of a window outside `day_span` are undefined.
        """
        first, stop, days = day_span
        if days == stop - first:
            if days == self.series.size(1):
                return self
            return self._of_days(slice(first, stop), self.starts - first)
        if not self.starts.numel():
            return self._of_days(slice(first, first + days), self.starts)
        begin = self.starts.amin(0, keepdim=True).clamp(first, stop - days)
        series = gather_windows(self.series, begin, days, check=False)[0]
        present = self._replace(starts=begin, steps=days).gather_present()
        return Windows(series, self.starts - begin, self.steps, None if present is None else present[0])

    def to(self, device: torch.device | str) -> Windows:
        """The same windows on another device."""
        present = None if self.present is None else self.present.to(device)
        return Windows(self.series.to(device), self.starts.to(device), self.steps, present)


def reading_syncs(tensor: Tensor) -> bool:
    """Whether reading the values of `tensor` on the host waits for a device."""
    return tensor.is_cuda


def gather_windows(series: Tensor, starts: Tensor, steps: int, *, backend: str = "auto", check: bool = True) -> Tensor:
    r"""Windows of consecutive days, copied from a series in one pass.

    Args:
        series (Tensor): values of each stock and day.
        starts (Tensor): first day of each window.
        steps (int): ``T``, days in a window.
        backend (str): implementation; every one is PyTorch's indexing. (default: ``"auto"``)
        check (bool): check that every window lies in the series. On a GPU this waits for the device; leave it out
            for starts that are known to be valid. (default: ``True``)

    Shapes:
        - **series:** ``[S, D, F]``, **starts:** ``[B]`` int64 on the same device
        - **returns:** ``[B, S, T, F]``

    Raises:
        IndexError: a window lies outside the series.
        ValueError: a shape or device does not fit, or `steps` is not in ``[0, D]``.
        TypeError: `series` is not floating point or `starts` not int64.
    """
    steps = check_starts(starts, steps, series, check_values=check)
    if not series.is_floating_point():
        raise TypeError(f"series: expected floating point, got {series.dtype}; use series.float()")
    dispatch.check(backend)
    if not check and reading_syncs(series):
        starts = starts.clamp(0, series.size(1) - steps)  # on a GPU an index out of range is a device assert
    return reference.gather_windows(series, starts, steps)


def check_starts(starts: Tensor, steps: int, series: Tensor, *, check_values: bool = True) -> int:
    """Raises unless the windows fit a series ``[S, D, F]``; `check_values`: check the values of `starts`, too.

    Returns `steps`, which may be a NumPy integer, as an ``int``.

    Raises:
        IndexError, TypeError, ValueError: as :func:`gather_windows`.
    """
    check_tensor("series", series)
    check_tensor("starts", starts)
    if series.dim() != 3:
        raise ValueError(f"series: expected [stocks, days, features], got {list(series.shape)}")
    if starts.dim() != 1:
        raise ValueError(f"starts: expected a vector of first days, got {list(starts.shape)}")
    if starts.dtype != torch.int64:
        raise TypeError(f"starts: expected int64, got {starts.dtype}; use starts.long()")
    if starts.device != series.device:
        raise ValueError(f"series is on {series.device}, starts on {starts.device}; move one with .to(...)")
    days = series.size(1)
    refuse_tracing(days)
    steps = check_integer("steps", steps, 0)
    if steps > days:
        raise ValueError(f"steps: expected a length in [0, {days}], the number of days, got {steps}")
    if check_values and not recorded() and starts.numel():
        low, high = torch.stack(starts.aminmax()).tolist()
        if low < 0 or high > days - steps:
            raise IndexError(
                f"starts: {low if low < 0 else high} is outside [0, {days - steps + 1}), the days on which a window "
                f"of {steps} can start in a series of {days}"
            )
    return steps
