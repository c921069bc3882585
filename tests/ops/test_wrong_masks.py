"""Masks in a wrong form, for every function and operator that takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import functional
from hiermt.native import extension
from hiermt.testing import stock_graph

S, T, F, H = 12, 4, 3, 5
INDEX, WEIGHT = stock_graph(S, 40)
GRAPH = hiermt.Graph(INDEX, WEIGHT, S)
X, G, STATE = torch.randn(S, T, F), torch.randn(S, T, H), torch.randn(S, H)
GATV2 = [torch.randn(shape) for shape in ((H, F), (H,), (H, F), (H,), (1, 1, H), (H,), (H, 1))]
GCN = [torch.randn(H, F), torch.randn(H)]
GATES = [torch.randn(H, F + 2 * H), torch.randn(H)] * 3
STARTS = torch.tensor([0, 1])
RIGHT = torch.rand(S, T) < 0.5

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "conv_stack": lambda m, **o: functional.conv_stack(X, GRAPH, GATV2, conv_layers=1, present=m, **o),
    "gatv2_conv": lambda m, **o: functional.gatv2_conv(X, GRAPH, *GATV2, present=m, **o),
    "gcn_conv": lambda m, **o: functional.gcn_conv(X, GRAPH, *GCN, present=m, **o),
    "gated_scan": lambda m, **o: functional.gated_scan(X, G, STATE, GATES, present=m, **o),
    "gated_scan_windows": lambda m, **o: functional.gated_scan_windows(X, G, STARTS, 3, GATES, present=m, **o),
    "tgcn_layer": lambda m, **o: functional.tgcn_layer(X, GRAPH, GATV2, GATES, conv_layers=1, present=m, **o),
    "Windows": lambda m, **o: functional.tgcn_layer(
        hiermt.windows.Windows(X, STARTS, 3, m), GRAPH, GATV2, GATES, conv_layers=1, **o
    ),
}
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "floats": (RIGHT.float(), TypeError, "present: expected a bool Tensor, got torch.float32"),
    "bytes": (RIGHT.byte(), TypeError, "present: expected a bool Tensor, got torch.uint8"),
    "an array": (RIGHT.numpy(), TypeError, "present: expected a bool Tensor, got ndarray"),
    "a number": (True, TypeError, "present: expected a bool Tensor, got bool"),
    "transposed": (RIGHT.t(), ValueError, r"present: expected shape \[12, 4\], got \[4, 12\]"),
    "one day more": (torch.ones(S, T + 1, dtype=torch.bool), ValueError, r"expected shape \[12, 4\], got \[12, 5\]"),
    "one stock": (RIGHT[:1], ValueError, r"expected shape \[12, 4\], got \[1, 4\]"),
    "of features": (RIGHT.unsqueeze(-1), ValueError, r"expected shape \[12, 4\], got \[12, 4, 1\]"),
    "empty": (RIGHT[:0], ValueError, r"expected shape \[12, 4\], got \[0, 4\]"),
    "elsewhere": (RIGHT.to("meta"), ValueError, "x is on cpu, present on meta"),
}


@pytest.mark.hostile("absent", "messages")
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_refused_by_name(function: str, wrong: str, backend: str) -> None:
    if backend == "native" and extension.why_not_native("cpu") is not None:
        pytest.skip("needs the native library")
    mask, error, message = WRONG[wrong]
    assert FUNCTIONS[function](RIGHT, backend=backend).isfinite().all()
    with pytest.raises(error, match=message):
        FUNCTIONS[function](mask, backend=backend)


@pytest.mark.hostile("absent", "forged-call")
@pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason="needs the native library")
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (RIGHT.float(), "present: expected dtype Bool, got Float"),
        (RIGHT[:, :3].contiguous(), r"present: expected a shape \[12, 4\], got \[12, 3\]"),
        (RIGHT.t().contiguous().t(), "present: expected contiguous memory"),
        (RIGHT.flatten(), r"present: expected a shape \[12, 4\]"),
        (RIGHT.clone().untyped_storage(), "its storage of"),
    ],
)
def test_operators_refuse_what_got_past_python(mask: Any, message: str) -> None:
    import hiermt.ops  # noqa: F401

    if not isinstance(mask, Tensor):
        mask = RIGHT.clone()
        mask.untyped_storage().resize_(0)
    csr = GRAPH.csr(0, True, torch.float32)
    options = {"steps": 0, "sequence": True, "save": False, "tf32": False}
    calls: list[Callable[[], Any]] = [
        lambda: torch.ops.hiermt.conv_stack(
            X, csr.tensors, csr.weight, GATV2, mask, conv_layers=1, activation=0, tf32=False
        ),
        lambda: torch.ops.hiermt.gated_scan(X, G, None, GATES, None, mask, **options),
        lambda: torch.ops.hiermt.gated_scan(X, G, None, GATES, STARTS, mask, **{**options, "steps": 3}),
        lambda: torch.ops.hiermt.tgcn_layer(
            X, csr.tensors, csr.weight, GATV2, GATES, None, None, mask, **options, conv_layers=1, between=True
        ),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=message):
            call()
