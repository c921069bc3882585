"""The published features of each stock and day, computed from that day and the days before it only."""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from hiermt.data._errors import DataError, some, warn
from hiermt.data.column_names import OHLC
from hiermt.data.feature_table import FeatureTable, check_floating
from hiermt.data.own_days import OwnDays
from hiermt.data.prices import Prices
from hiermt.data.table import FloatArray

CLOSE_FEATURES = (
    "SimpleReturn",
    "LogReturn",
    "Ret_1W",
    "Ret_2W",
    "Ret_1M",
    "Ret_2M",
    "Norm_Ret",
    "RSI",
    "MACD",
)
"""Names of the features that closing prices alone give: the first nine of :data:`FEATURES`."""

BAR_FEATURES = ("Intraday_Volatility", "Intraday_Momentum", "Upper_Shadow_Ratio", "Lower_Shadow_Ratio")
"""Names of the features that need open, high and low, too."""

FEATURES = CLOSE_FEATURES + BAR_FEATURES
"""Names of the 13 published features, in the published order, which is that of the last dimension of x."""

WARM_UP = 60
"""Days before the first day that has every feature."""

_SUMS = (5, 10, 21, 42)
_DEVIATION = 60
_RSI_PERIOD = 14
_MACD_FAST, _MACD_SLOW = 12, 26

# A log return is exact to a few 1e-16. Deviations and returns up to this are rounding; their ratio would be noise.
_ROUNDING = 1e-14


def compute_features(prices: Prices, *, dtype: torch.dtype = torch.float32) -> FeatureTable:
    r"""The 13 published features of daily bars, or the 9 of them that closing prices alone give.

    With :math:`C, O, H, L` close, open, high and low, :math:`s_t = C_t / C_{t-1} - 1` and
    :math:`r_t = \log(1 + s_t)`, and :math:`\sigma_t` the sample standard deviation (``ddof=1``) of the last 60 log
    returns, :math:`r_{t-59}` to :math:`r_t`, in this order:

    =======================  =============================================================================
    ``SimpleReturn``         :math:`s_t`
    ``LogReturn``            :math:`r_t`
    ``Ret_1W``               :math:`(r_{t-4} + ... + r_t) / \sigma_t`, 5 days
    ``Ret_2W``               the same over 10 days
    ``Ret_1M``               the same over 21 days
    ``Ret_2M``               the same over 42 days
    ``Norm_Ret``             :math:`r_t / \sigma_t`
    ``RSI``                  Wilder's relative strength index over 14 days / 100: :math:`g / (g + l)` with
                             :math:`g, l` the exponential means (:math:`\alpha = 1/14`) of gains and losses
    ``MACD``                 exponential mean of :math:`C` over 12 days (:math:`\alpha = 2/13`) less that
                             over 26 (:math:`\alpha = 2/27`), in the currency of the prices
    ``Intraday_Volatility``  :math:`(H - L) / C`
    ``Intraday_Momentum``    :math:`(C - O) / O`
    ``Upper_Shadow_Ratio``   :math:`(H - \max(O, C)) / C`
    ``Lower_Shadow_Ratio``   :math:`(\min(O, C) - L) / C`
    =======================  =============================================================================

    ``RSI`` and ``MACD`` equal ``ta.momentum.rsi(close, 14) / 100`` and ``ta.trend.macd(close, 26, 12)`` of the package
    ``ta``: the exponential means are recursive (``adjust=False``) and start with the first day of `prices`, whose
    weight decays. No feature is scaled (see :class:`Scale`), and a feature of day ``t`` depends on days up to
    ``t`` only. The first :data:`WARM_UP` days, which lack 60 returns, are left out.

    Where stocks are absent (:attr:`Prices.present`), each looks back over its own days alone: "the last 60 log returns"
    are those between 61 days on which it had a price, and its features are those that its own history gives by itself.
    It is absent in the result where it has no price, and on the first :data:`WARM_UP` of its own days.

    Where a denominator is 0: a stock whose price has not moved for 60 days has 0 for ``Ret_*`` and ``Norm_Ret``; one
    that moved by the same log return on each of them is refused, as the deviation of its returns is 0.
    ``RSI`` is 1 where there has not been a loss since the first day, even without a gain, as in ``ta``.

    Args:
        prices (Prices): from :func:`hiermt.data.read_prices`.
        dtype (torch.dtype): of the features; they are computed in float64. (default: ``torch.float32``)

    Returns:
        :class:`FeatureTable` with :data:`FEATURES`, or with :data:`CLOSE_FEATURES` and a warning where `prices` lack
        open, high or low.

    Raises:
        DataError: no stock has more than :data:`WARM_UP` days, a price is not a positive number, or a feature is not
            finite in `dtype`; the message names stock, day and feature.
        TypeError: `dtype` is not a floating point dtype.
    """
    check_floating(dtype)
    own = OwnDays.of(prices)
    if own.most <= WARM_UP:
        raise DataError(f"{own.most} days of prices, but features need more than {WARM_UP}; give a longer history")
    panels = {name: own.pack(panel) for name, panel in _panels(prices).items()}
    names: tuple[str, ...] = FEATURES
    # FeatureTable refuses values that overflow.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        columns = _close_features(prices, own, panels["close"])
        if len(panels) == len(OHLC):
            columns += _bar_features(**panels)
        else:
            names = CLOSE_FEATURES
            warn(
                f"closing prices only: {len(CLOSE_FEATURES)} of the {len(FEATURES)} features are computed; "
                f"{', '.join(BAR_FEATURES)} need Open, High and Low"
            )
    values = torch.from_numpy(np.stack([column[:, WARM_UP:] for column in columns], axis=-1)).to(dtype)
    if prices.present is None:
        close = torch.from_numpy(panels["close"][:, WARM_UP:].copy())
        return FeatureTable(values, names, prices.symbols, prices.dates[WARM_UP:], close)
    short = [symbol for symbol, days in zip(prices.symbols, own.count, strict=True) if days <= WARM_UP]
    if short:
        warn(f"{some(short)}: {WARM_UP} days of prices or fewer, so without features on any day, as if absent")
    spread, present = own.unpack(values, WARM_UP)
    first = int(present.any(dim=0).nonzero()[0])
    # A price where a stock is absent, such as a 0, would be a label of the day before.
    closes = np.where(prices.present, prices.close, np.nan)
    close = torch.from_numpy(closes[:, first:].astype(np.float64))
    return FeatureTable(
        spread[:, first:].contiguous(),
        names,
        prices.symbols,
        prices.dates[first:],
        close,
        present[:, first:].contiguous(),
    )


def _panels(prices: Prices) -> dict[str, FloatArray]:
    """The prices by name in float64: all four, or the close alone where another is missing."""
    given = {name: getattr(prices, name) for name in OHLC}
    if any(array is None for array in given.values()):
        given = {"close": prices.close}
    panels = {name: np.asarray(array, dtype=np.float64) for name, array in given.items()}
    shape = (len(prices.symbols), len(prices.dates))
    for name, panel in panels.items():
        if panel.shape != shape:
            raise DataError(f"{name}: expected [stocks, days] = {list(shape)}, got {list(panel.shape)}")
        bad = ~(np.isfinite(panel) & (panel > 0))
        if prices.present is not None:
            bad &= prices.present
        if bad.any():
            stock, day = np.argwhere(bad)[0]
            raise DataError(
                f"{name} of {prices.symbols[stock]} on {prices.dates[day]} is {panel[stock, day]:g}; prices must be "
                "positive numbers: read them with read_prices, which bridges or keeps gaps, or correct the price"
            )
    return panels


def _close_features(prices: Prices, own: OwnDays, close: FloatArray) -> list[FloatArray]:
    ratio = np.ones_like(close)
    ratio[:, 1:] = close[:, 1:] / close[:, :-1]
    log_return = np.log(ratio)
    deviation = _rolling(log_return, _DEVIATION, "std")
    still = deviation <= _ROUNDING
    steady = still & (np.abs(log_return) > _ROUNDING)
    steady[:, :WARM_UP] = False
    if steady.any():
        stock, place = np.argwhere(steady)[0]
        day = prices.dates[own.day(stock, place)]
        raise DataError(
            f"Norm_Ret of {prices.symbols[stock]} on {day} is not finite: the price changed by the same "
            f"factor {ratio[stock, place]:g} on each of the last {_DEVIATION} days, so its log returns have no "
            "deviation to be divided by; correct the prices or remove the stock"
        )
    deviation[still] = np.inf
    return [
        ratio - 1,
        log_return,
        *(_rolling(log_return, length, "sum") / deviation for length in _SUMS),
        log_return / deviation,
        _rsi(close),
        _ewm(close, 2 / (_MACD_FAST + 1)) - _ewm(close, 2 / (_MACD_SLOW + 1)),
    ]


def _bar_features(open: FloatArray, high: FloatArray, low: FloatArray, close: FloatArray) -> list[FloatArray]:
    return [
        (high - low) / close,
        (close - open) / open,
        (high - np.maximum(open, close)) / close,
        (np.minimum(open, close) - low) / close,
    ]


def _rolling(values: FloatArray, length: int, how: str) -> FloatArray:
    """Sum or sample deviation of the last `length` values, 0 while there are fewer.

    The first value is left out of every window: a return needs a day before it.
    """
    result = np.zeros_like(values)
    if values.shape[1] <= length:
        return result
    for row, out in zip(values[:, 1:], result[:, length:], strict=True):
        windows = sliding_window_view(row, length)
        out[:] = windows.sum(axis=-1) if how == "sum" else windows.std(axis=-1, ddof=1)
    return result


def _ewm(values: FloatArray, alpha: float) -> FloatArray:
    """Exponentially weighted mean along the days, started at the first value."""
    result = np.empty_like(values)
    state = values[:, 0].copy()
    for day in range(values.shape[1]):
        state += alpha * (values[:, day] - state)
        result[:, day] = state
    return result


def _rsi(close: FloatArray) -> FloatArray:
    change = np.diff(close, axis=1, prepend=close[:, :1])
    gain = _ewm(np.maximum(change, 0), 1 / _RSI_PERIOD)
    loss = _ewm(np.maximum(-change, 0), 1 / _RSI_PERIOD)
    return np.divide(gain, gain + loss, out=np.ones_like(gain), where=loss > 0)
