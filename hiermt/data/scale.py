"""Standardises features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiermt.data._errors import DataError
from hiermt.data.feature_names import as_names
from hiermt.data.feature_table import check_present


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each feature.

    Attributes:
        mean, deviation (Tensor): of each feature; deviations are above 0.
        names (tuple of str, optional): the features in this order; :meth:`WindowDataset.from_table` refuses a table
            with others. (default: ``None``, any)

    Shapes:
        - **mean**, **deviation:** ``[F]`` float64

    Raises:
        DataError: the shapes differ, or a number is out of range.
        ValueError: there are not as many names as features.
    """

    mean: Tensor
    deviation: Tensor
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.mean.dim() != 1 or self.deviation.shape != self.mean.shape:
            raise DataError(
                f"scale: expected a mean and a deviation of each feature, got {list(self.mean.shape)} and "
                f"{list(self.deviation.shape)}"
            )
        if not bool((torch.isfinite(self.mean) & torch.isfinite(self.deviation) & (self.deviation > 0)).all()):
            wrong = ~(torch.isfinite(self.mean) & torch.isfinite(self.deviation) & (self.deviation > 0))
            i = int(wrong.nonzero()[0])
            raise DataError(
                f"scale: expected finite means and deviations above 0, got {self.mean[i]:g} and "
                f"{self.deviation[i]:g} for feature {i}; fit it again"
            )
        object.__setattr__(self, "names", as_names(self.names, self.mean.numel()))

    @classmethod
    def fit(cls, values: Tensor, names: Sequence[str] | None = None, present: Tensor | None = None) -> Scale:
        """Fits a scale; the values must be of training days only, or the test span leaks into them.

        Args:
            values (Tensor): features, finite.
            names (sequence of str, optional): of the features. (default: ``None``)
            present (Tensor, optional): which stock is there on which day; other cells do not count, and may be NaN.
                (default: ``None``, all of them)

        Shapes:
            - **values:** ``[S, D, F]``; **present:** ``[S, D]`` bool

        Raises:
            DataError: `values` is empty, or a value that counts is NaN or infinite.
            ValueError: there are not as many names as features.
        """
        if values.dim() != 3 or not values.size(0) * values.size(1):
            raise DataError(f"values: expected [stocks, days, features] with one row or more, got {list(values.shape)}")
        named = as_names(names, values.size(-1))
        flat = values.double().reshape(-1, values.size(-1))
        if present is not None:
            check_present(present, values)
            flat = flat[present.reshape(-1)]
            if not len(flat):
                raise DataError("values: no stock is present on any day; give more days, or a table with more prices")
        finite = torch.isfinite(flat).all(dim=0)
        if not bool(finite.all()):
            feature = int((~finite).nonzero()[0])
            label = feature if named is None else named[feature]
            raise DataError(f"values: feature {label} holds NaN or infinity; correct the values before scaling")
        low, high = flat.aminmax(dim=0)
        # A constant feature becomes 0: its computed mean and deviation are inexact.
        constant = low == high
        mean = torch.where(constant, low, flat.mean(dim=0))
        return cls(mean, torch.where(constant, 1.0, flat.std(dim=0, correction=0)), named)

    def apply(self, values: Tensor) -> Tensor:
        """``(values - mean) / deviation`` in the dtype of `values`.

        Shapes:
            - **values:** ``[*, F]``
            - **returns:** ``[*, F]``

        Raises:
            DataError: `values` have another number of features.
        """
        if values.shape[-1:] != self.mean.shape:
            raise DataError(f"values: expected [..., {self.mean.numel()}] as the scale has, got {list(values.shape)}")
        mean, deviation = self.mean.to(values.device), self.deviation.to(values.device)
        return ((values.double() - mean) / deviation).to(values.dtype)
