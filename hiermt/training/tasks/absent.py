"""Results of stocks that are absent, marked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ABSENT = -1
"""Prediction for a stock that is absent; its other numbers are NaN."""


def marked(decided: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The results of a decision, with -1 for integers and NaN for other numbers where a stock is absent.

    Args:
        decided (dict): results by name.
        rows (Tensor): which stocks are present.

    Shapes:
        - **decided:** ``[*rows, *]`` each; **rows:** ``[N]`` or ``[B, S]`` bool
    """
    return {name: _marked(one, rows) for name, one in decided.items()}


def _marked(one: Tensor, rows: Tensor) -> Tensor:
    # A result of one number a row may have a dimension more, or the rows of a batch one after the other.
    lead = rows.dim() if one.shape[: rows.dim()] == rows.shape else 1
    absent = ~rows.reshape(one.shape[:lead]).reshape(*one.shape[:lead], *[1] * (one.dim() - lead))
    value = math.nan if one.is_floating_point() else False if one.dtype == torch.bool else ABSENT
    return one.masked_fill(absent, value)
