"""The days on which each stock is present, packed one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiermt.data._errors import DataError
from hiermt.data.prices import Prices
from hiermt.data.table import FloatArray


@dataclass(frozen=True)
class OwnDays:
    """Days of each stock, its own first: what is computed along them looks back over a stock's own days alone.

    Attributes:
        present (numpy.ndarray, optional): which stock is there on which day; ``None`` if all are, and nothing moves.
        order (numpy.ndarray): the day at each place.
        count (numpy.ndarray): own days of each stock.

    Shapes:
        - **present**, **order:** ``[S, D]``; **count:** ``[S]``
    """

    present: npt.NDArray[np.bool_] | None
    order: npt.NDArray[np.intp]
    count: npt.NDArray[np.intp]

    @classmethod
    def of(cls, prices: Prices) -> OwnDays:
        """The days of a price table.

        Raises:
            DataError: ``present`` has another shape, or is not bool.
        """
        shape = (len(prices.symbols), len(prices.dates))
        if prices.present is None:
            return cls(None, np.broadcast_to(np.arange(shape[1]), shape), np.full(shape[0], shape[1]))
        present = np.asarray(prices.present)
        if present.shape != shape or present.dtype != np.bool_:
            raise DataError(f"present: expected bool {list(shape)}, got {present.dtype} {list(present.shape)}")
        return cls(present, np.argsort(~present, axis=1, kind="stable"), present.sum(axis=1))

    @property
    def most(self) -> int:
        """Own days of the stock that has most."""
        return int(self.count.max(initial=0))

    def day(self, stock: int, place: int) -> int:
        """The day at a place."""
        return int(self.order[stock, place])

    def pack(self, panel: FloatArray) -> FloatArray:
        """Moves the own days to the front; the places after the last of them repeat it.

        Shapes:
            - **panel:** ``[S, D]``; **returns:** ``[S, most]``
        """
        if self.present is None:
            return panel
        last = np.maximum(self.count - 1, 0)[:, None]
        places = np.minimum(np.arange(self.most), last)
        packed = np.take_along_axis(panel, np.take_along_axis(self.order, places, axis=1), axis=1)
        packed[self.count == 0] = 1.0
        return packed

    def unpack(self, values: Tensor, skipped: int) -> tuple[Tensor, Tensor]:
        """Moves values back to their days, and which cells have one; the others are NaN.

        Args:
            values (Tensor): without the first `skipped` places of each stock.

        Shapes:
            - **values:** ``[S, most - skipped, F]``
            - **returns:** ``[S, D, F]``, and ``[S, D]`` bool
        """
        stocks, days = self.order.shape
        spread = values.new_full((stocks, days, values.size(-1)), float("nan"))
        present = torch.zeros(stocks, days, dtype=torch.bool, device="cpu")
        for stock, count in enumerate(self.count.tolist()):
            own = torch.from_numpy(self.order[stock, skipped:count].astype(np.int64))
            spread[stock, own] = values[stock, : own.numel()]
            present[stock, own] = True
        return spread, present
