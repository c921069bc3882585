"""Features of each stock and day, computed from that day and the days before it only."""

from __future__ import annotations

import warnings
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from hiermt.data._errors import DataError, DataWarning
from hiermt.data.feature_table import FeatureTable
from hiermt.data.prices import FloatArray, Prices

CLOSE_FEATURES = (
    "log_return",
    "log_return_5d",
    "log_return_10d",
    "log_return_21d",
    "log_return_42d",
    "log_return_scaled",
    "simple_return",
    "rsi",
    "macd",
)
"""What closing prices alone give."""

BAR_FEATURES = ("intraday_volatility", "intraday_momentum", "upper_shadow", "lower_shadow")
"""What needs open, high and low too."""

FEATURES = CLOSE_FEATURES + BAR_FEATURES
"""All 13, in the order of the last dimension of x."""

WARM_UP = 60
"""Days before the first day that has every feature."""

_SUMS = (5, 10, 21, 42)
_DEVIATION = 60
_RSI_PERIOD = 14
_MACD_FAST, _MACD_SLOW = 12, 26


def compute_features(prices: Prices, *, macd: str = "relative") -> FeatureTable:
    r"""The 13 features of daily bars, or the 9 that closing prices alone give.

    With :math:`C, O, H, L` close, open, high, low and :math:`r_t = \log(C_t / C_{t-1})`:

    =========================  ===========================================================================
    ``log_return``             :math:`r_t`
    ``log_return_5d ... 42d``  sum of the last 5, 10, 21, 42 log returns
    ``log_return_scaled``      :math:`r_t` over the sample deviation of the last 60 (0 if that is 0)
    ``simple_return``          :math:`C_t / C_{t-1} - 1`
    ``rsi``                    Wilder's relative strength index over 14 days / 100 (0.5 without moves)
    ``macd``                   exponential mean over 12 days less that over 26, divided by the close
    ``intraday_volatility``    :math:`(H - L) / C`
    ``intraday_momentum``      :math:`(C - O) / O`
    ``upper_shadow``           :math:`(H - \max(O, C)) / (H - L)` (0 if ``H = L``)
    ``lower_shadow``           :math:`(\min(O, C) - L) / (H - L)` (0 if ``H = L``)
    =========================  ===========================================================================

    A feature of day ``t`` reads days up to ``t`` only. The first :data:`WARM_UP` days, which lack history, are
    left out. ``rsi`` and ``macd`` remember, with fading weight, all days since the first.

    Args:
        prices (Prices): what :func:`hiermt.data.read_prices` returns.
        macd (str): ``"relative"``, so that a stock at 2 and one at 200 dollars compare, or ``"price"`` for the
            line as it is, in units of the price. (default: ``"relative"``)

    Shapes:
        - **returns:** values ``[S, D - 60, F]`` with ``F`` 13, or 9 without bars

    Raises:
        DataError: there are not more than :data:`WARM_UP` days.
        ValueError: `macd` is neither of the two.
    """
    if macd not in ("relative", "price"):
        raise ValueError(f"macd: expected 'relative' or 'price', got {macd!r}")
    days = len(prices.dates)
    if days <= WARM_UP:
        raise DataError(f"{days} days of prices, but features need more than {WARM_UP}; give a longer history")
    close = prices.close
    log_return = np.zeros_like(close)
    log_return[:, 1:] = np.diff(np.log(close), axis=1)
    simple_return = np.zeros_like(close)
    simple_return[:, 1:] = close[:, 1:] / close[:, :-1] - 1
    line = _ewm(close, 2 / (_MACD_FAST + 1)) - _ewm(close, 2 / (_MACD_SLOW + 1))
    columns = [
        log_return,
        *(_rolling(log_return, length, "sum") for length in _SUMS),
        _ratio(log_return, _rolling(log_return, _DEVIATION, "std")),
        simple_return,
        _rsi(close),
        line / close if macd == "relative" else line,
    ]
    names: tuple[str, ...] = CLOSE_FEATURES
    if prices.open is not None and prices.high is not None and prices.low is not None:
        span = prices.high - prices.low
        columns += [
            span / close,
            (close - prices.open) / prices.open,
            _ratio(prices.high - np.maximum(prices.open, close), span),
            _ratio(np.minimum(prices.open, close) - prices.low, span),
        ]
        names = FEATURES
    else:
        warnings.warn(
            f"closing prices only: {len(CLOSE_FEATURES)} of the {len(FEATURES)} features are computed; "
            f"{', '.join(BAR_FEATURES)} need Open, High and Low",
            DataWarning,
            stacklevel=2,
        )
    values = np.stack([column[:, WARM_UP:] for column in columns], axis=-1)
    return FeatureTable(
        torch.from_numpy(values).float(),
        names,
        prices.symbols,
        prices.dates[WARM_UP:],
        torch.from_numpy(close[:, WARM_UP:].copy()),
    )


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
    total = gain + loss
    return np.where(total > 0, _ratio(gain, total), 0.5)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """``above / below``, 0 where `below` is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
