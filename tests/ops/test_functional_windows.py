"""Public functions over windows of one series: what they refuse, and that they equal a call on copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hiermt
from hiermt import functional, testing
from support.problems import Maker, Stack

STARTS = torch.tensor([6, 0, 1, 1])


def scan() -> dict[str, Any]:
    x, g, _, gates, starts = Maker().windows("any", (3, 40, 5, 4, 3), [0, 12, 35], True).arguments
    return {"x": x.requires_grad_(), "g": g, "starts": starts, "steps": 5, "params": gates}


def call(arguments: dict[str, Any], backend: str) -> torch.Tensor:
    return functional.gated_scan_windows(*arguments.values(), backend=backend)


def test_a_scan_in_autocast(backend: str) -> None:
    arguments = scan()
    with torch.autocast("cpu", torch.bfloat16):
        out = call(arguments, backend)
    assert out.dtype == torch.bfloat16
    testing.assert_close(out, call(arguments, "reference").detach())
    out.float().sum().backward()
    assert arguments["x"].grad.dtype == torch.float32


def test_wrong_arguments_of_a_scan_are_named(backend: str) -> None:
    for error, message, changes in (
        (IndexError, "36 is outside", {"starts": torch.tensor([0, 36])}),
        (IndexError, "-1 is outside", {"starts": torch.tensor([0, -1])}),
        (TypeError, "starts: expected int64", {"starts": torch.tensor([0.0])}),
        (ValueError, "starts: expected a vector", {"starts": torch.tensor([[0]])}),
        (ValueError, "steps: expected a length", {"steps": 41}),
        (ValueError, r"g: expected shape \[3, 40, 3\], got \[3, 39, 3\]", {"g": torch.rand(3, 39, 3)}),
        (ValueError, r"u.weight: expected shape \[3, 11\], got \[3, 10\]", {"x": torch.randn(3, 40, 5)}),
        (TypeError, "g torch.float64", {"g": torch.rand(3, 40, 3).double()}),
    ):
        with pytest.raises(error, match=message):
            call({**scan(), **changes}, backend)


def test_a_layer_equals_the_layer_on_copies(backend: str) -> None:
    x, _, _, convs, gates, *_ = Maker().layer("stock", (1, 12, 4, 7), Stack(), True).arguments
    graph = hiermt.Graph(*testing.stock_graph(20, 80), 20)
    windows = hiermt.Windows(x, STARTS, 5)
    found = functional.tgcn_layer(windows, graph, convs, gates, backend=backend)
    expected = functional.tgcn_layer(windows.gather().flatten(0, 1), graph, convs, gates, backend=backend)
    testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="windows of 40 stocks, but the graph has 20 nodes"):
        functional.tgcn_layer(hiermt.Windows(x.repeat(2, 1, 1), STARTS, 5), graph, convs, gates)
    with pytest.raises(IndexError, match="is outside"):
        functional.tgcn_layer(hiermt.Windows(x, STARTS + 12, 5), graph, convs, gates, backend=backend)
