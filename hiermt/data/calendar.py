"""Aligns the prices of several stocks: all days with the gaps kept, or the days they share, filled from the past."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hiermt.data._errors import DataError, warn
from hiermt.data.dates import DayArray

Panels = dict[str, npt.NDArray[np.float64]]


def one_calendar(
    symbols: tuple[str, ...], dates: DayArray, panels: Panels, source: str, max_gap: int | None
) -> tuple[DayArray, Panels]:
    """Drops days without a price, cuts to the days that all stocks share, and fills short gaps with the last close.

    Gaps are filled forward only; the close may be from before the first shared day. Without `max_gap` nothing is cut
    and nothing filled: a missing row stays NaN.

    Args:
        symbols (tuple of str): the stocks.
        dates (numpy.ndarray): the days, ascending.
        panels (dict): prices by name, NaN in all of them where a stock has no row.
        source (str): name of the table in messages.
        max_gap (int, optional): most missing days in a row to fill; ``None`` keeps what is missing.

    Shapes:
        - **dates:** ``[D]``; each of **panels:** ``[S, D]``

    Raises:
        DataError: a stock has no price, no day is shared, or a gap is too long.
    """
    there = ~np.isnan(panels["close"])
    for symbol, days in zip(symbols, there, strict=True):
        if not days.any():
            raise DataError(f"{source}: {symbol} has no complete row; remove the stock or fill in its prices")
    traded = there.any(axis=0)
    if not traded.all():
        warn(
            f"{source}: {int((~traded).sum())} day(s) without a price of any stock, first "
            f"{dates[~traded][0]}, are left out"
        )
        dates, there = dates[traded], there[:, traded]
        panels = {name: panel[:, traded] for name, panel in panels.items()}
    if max_gap is None:
        return dates, {name: np.ascontiguousarray(panel) for name, panel in panels.items()}
    shared = _shared(symbols, dates, there, source)
    # Before the cut: a gap at its start is filled from an earlier close.
    panels = _carried(symbols, dates, panels, there, shared, source, max_gap)
    return dates[shared], {name: np.ascontiguousarray(panel[:, shared]) for name, panel in panels.items()}


def _shared(symbols: tuple[str, ...], dates: DayArray, there: npt.NDArray[np.bool_], source: str) -> slice:
    first = there.argmax(axis=1)
    last = len(dates) - 1 - there[:, ::-1].argmax(axis=1)
    start, stop = int(first.max()), int(last.min()) + 1
    latest, earliest = symbols[int(first.argmax())], symbols[int(last.argmin())]
    if start >= stop:
        raise DataError(
            f"{source}: no day is shared by all stocks: {latest} starts on {dates[start]}, {earliest} ends on "
            f"{dates[stop - 1]}; remove one of them"
        )
    if start > 0 or stop < len(dates):
        reasons = []
        if start > 0:
            reasons.append(f"{latest} starts on {dates[start]}")
        if stop < len(dates):
            reasons.append(f"{earliest} ends on {dates[stop - 1]}")
        warn(
            f"{source}: histories are unequal ({', '.join(reasons)}); cut to the {stop - start} of {len(dates)} days "
            "that all stocks share"
        )
    return slice(start, stop)


def _carried(
    symbols: tuple[str, ...],
    dates: DayArray,
    panels: Panels,
    there: npt.NDArray[np.bool_],
    shared: slice,
    source: str,
    max_gap: int,
) -> Panels:
    missing = ~there
    if not missing[:, shared].any():
        return panels
    day = np.arange(len(dates))
    last_seen = np.maximum.accumulate(np.where(missing, -1, day), axis=1)
    gap = day - last_seen
    gap[:, : shared.start] = gap[:, shared.stop :] = 0
    if gap.max() > max_gap:
        late, end = divmod(int(gap.argmax()), gap.shape[1])
        raise DataError(
            f"{source}: {symbols[late]} has no prices from {dates[last_seen[late, end] + 1]} to {dates[end]}, "
            f"{gap[late, end]} trading days of other stocks; at most {max_gap} are filled: add the prices, "
            "remove the stock, raise max_gap, or keep the gap with missing='keep'"
        )
    stock, hole = np.argwhere(missing[:, shared])[0]
    warn(
        f"{source}: {int(missing[:, shared].sum())} missing row(s), first {symbols[stock]} on "
        f"{dates[shared][hole]}; the last close is carried forward"
    )
    carried = np.take_along_axis(panels["close"], np.maximum(last_seen, 0), axis=1)
    return {name: np.where(missing, carried, panel) for name, panel in panels.items()}
