"""Numbers that are not finite in a call with a mask: nothing comes from the stocks that are absent."""

from __future__ import annotations

import pytest
import torch

from support.present_layer import BACKENDS, layer
from support.present_numbers import check_layer, check_stack, check_windows, check_without_a_stock, over_windows, spoilt

pytestmark = pytest.mark.hostile("absent", "special-numbers")


@pytest.mark.parametrize(("conv_layers", "between", "hidden"), [(1, True, 16), (2, False, 5), (2, True, 33)])
@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_a_layer(kind: str, conv_layers: int, between: bool, hidden: int) -> None:
    for where, problem in spoilt(layer(kind, conv_layers, between, hidden=hidden)):
        check_layer(where, problem, BACKENDS)


@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_windows(kind: str) -> None:
    for where, problem in spoilt(over_windows(layer(kind, 1, hidden=16))):
        check_windows(where, problem, BACKENDS)


@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_a_stack(kind: str) -> None:
    for where, problem in spoilt(layer(kind, 2, hidden=8)):
        check_stack(where, problem, BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["edge", "bare", "gcn"])
def test_a_layer_without_a_stock(kind: str, backend: str) -> None:
    check_without_a_stock(layer(kind, 2, hidden=8), backend, torch.float32)
