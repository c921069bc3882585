"""When products of float32 may be rounded to TF32: what torch itself was told, and on CUDA alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import hiermt
from hiermt import functional
from hiermt.native import extension
from hiermt.testing import stock_graph
from support.calls import recorded

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from hiermt.ops import operator


class OnCuda:
    """Stands for a tensor on a GPU."""

    is_cuda = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def allowed(x: Any) -> bool:
    return operator.allows_tf32(x)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


def test_follows_torch() -> None:
    x = OnCuda(torch.float32)
    assert not allowed(x)
    for precision, wanted in (("high", True), ("medium", True), ("highest", False)):
        torch.set_float32_matmul_precision(precision)
        assert allowed(x) is wanted
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert allowed(x)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert not allowed(x)


def test_only_float32_on_cuda() -> None:
    torch.set_float32_matmul_precision("high")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert not allowed(OnCuda(dtype))
    assert not allowed(torch.ones(2))


def test_a_compiled_function_follows_too() -> None:
    stand_in = OnCuda(torch.float32)

    @torch.compile(fullgraph=True, backend="eager")
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if allowed(stand_in) else x + 2

    ones = torch.full((2,), 3.0)
    assert torch.equal(scaled(ones), ones + 2)
    torch.set_float32_matmul_precision("high")
    assert torch.equal(scaled(ones), ones * 2)


S, T, F, H = 12, 4, 3, 5
GRAPH = hiermt.Graph(*stock_graph(S, 40), S)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def results(dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
    """A call of each function with dense products, by name."""
    x, g, series, days = leaves((S, T, F), (S, T, H), (S, 9, F), (S, 9, H), dtype=dtype)
    gatv2 = leaves((H, F), (H,), (H, F), (H,), (1, 1, H), (H,), (H, 1), dtype=dtype)
    gates = leaves((H, F + 2 * H), (H,), dtype=dtype) * 3
    starts, one = torch.tensor([0, 3]), {"conv_layers": 1}
    return {
        "conv_stack": lambda: functional.conv_stack(x, GRAPH, gatv2, **one),
        "gatv2_conv": lambda: functional.gatv2_conv(x, GRAPH, *gatv2),
        "gcn_conv": lambda: functional.gcn_conv(x, GRAPH, *gatv2[:2]),
        "gated_scan": lambda: functional.gated_scan(x, g, None, gates),
        "gated_scan_windows": lambda: functional.gated_scan_windows(series, days, starts, T, gates),
        "tgcn_layer": lambda: functional.tgcn_layer(x, GRAPH, gatv2, gates, **one),
    }


@pytest.mark.parametrize("name", results(torch.float32))
@pytest.mark.parametrize(
    ("precision", "dtype", "wanted"),
    [("high", torch.float32, True), ("highest", torch.float32, False), ("high", torch.float64, False)],
)
def test_every_function_tells_its_operators(
    name: str, precision: str, dtype: torch.dtype, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, on tensors of the CPU that say they were on a GPU."""
    call = results(dtype)[name]
    call()  # prepares the graph
    torch.set_float32_matmul_precision(precision)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    found = recorded(lambda: call().sum().backward())
    monkeypatch.undo()
    operator = {"gatv2_conv": "conv_stack", "gcn_conv": "conv_stack", "gated_scan_windows": "gated_scan"}.get(
        name, name
    )
    assert [(one, keywords["tf32"]) for one, _, keywords in found] == [
        (operator, wanted),
        (f"{operator}_backward", wanted),
    ]
