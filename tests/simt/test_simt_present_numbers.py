"""As ``tests/ops/test_present_numbers.py``, of the CUDA kernels: sizes at which each of them runs."""

from __future__ import annotations

import pytest
import torch

from simt.cases import needs_harness
from simt.harness import Simt
from support.present_layer import layer
from support.present_numbers import check_layer, check_stack, check_windows, check_without_a_stock, over_windows, spoilt

pytestmark = [needs_harness, pytest.mark.hostile("absent", "special-numbers")]
FLOAT, SHORT = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "conv_layers", "between", "hidden", "dtype"),
    [
        ("edge", 2, True, 33, FLOAT),
        ("bare", 1, True, 5, torch.float64),
        ("gcn", 2, True, 33, FLOAT),
        ("gcn", 2, False, 16, FLOAT),
        ("gcn", 1, True, 64, SHORT),
        ("edge", 2, True, 16, FLOAT),
        ("bare", 1, False, 8, FLOAT),
        ("edge", 2, False, 32, FLOAT),
        ("edge", 1, True, 16, SHORT),
        ("edge", 1, True, 64, SHORT),
    ],
    ids=str,
)
def test_a_layer(kind: str, conv_layers: int, between: bool, hidden: int, dtype: torch.dtype) -> None:
    for where, problem in spoilt(layer(kind, conv_layers, between, hidden=hidden), dtype, 1):
        check_layer(where, problem, ["native"], Simt)


@pytest.mark.parametrize(
    ("kind", "hidden", "dtype"), [("edge", 33, FLOAT), ("edge", 16, FLOAT), ("gcn", 16, FLOAT), ("gcn", 40, SHORT)]
)
def test_windows(kind: str, hidden: int, dtype: torch.dtype) -> None:
    for where, problem in spoilt(over_windows(layer(kind, 1, hidden=hidden)), dtype, 1):
        check_windows(where, problem, ["native"], Simt)


@pytest.mark.parametrize(
    ("kind", "hidden", "dtype"),
    [("edge", 8, FLOAT), ("bare", 33, FLOAT), ("gcn", 8, FLOAT), ("edge", 64, SHORT), ("gcn", 17, SHORT)],
)
def test_a_stack(kind: str, hidden: int, dtype: torch.dtype) -> None:
    for where, problem in spoilt(layer(kind, 2, hidden=hidden), dtype, 1):
        check_stack(where, problem, ["native"], Simt)


@pytest.mark.parametrize(("kind", "hidden", "dtype"), [("edge", 33, FLOAT), ("edge", 16, FLOAT), ("gcn", 17, SHORT)])
def test_a_layer_without_a_stock(kind: str, hidden: int, dtype: torch.dtype) -> None:
    check_without_a_stock(layer(kind, 2, hidden=hidden), "native", dtype, Simt)
