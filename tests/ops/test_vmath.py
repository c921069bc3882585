"""The kernels' own sigmoid, tanh and exp, in units in the last place against float64.

A scan of one step, one channel and zero state hands them out: with weights (1, 0, 0) and no bias the saved update
gate is ``sigmoid(x)`` and the candidate ``tanh(x)``, of exactly x. Far below zero, ``sigmoid(x)`` is ``exp(x)``.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiermt.native import extension

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from hiermt import ops  # noqa: F401  (registers the operators)

# What csrc/cpu/simd/vmath.h promises.
MOST_ULPS = {"sigmoid": 2.3, "tanh": 2.5}


def evaluate(x: Tensor) -> dict[str, Tensor]:
    row = torch.tensor([[1.0, 0.0, 0.0]], dtype=x.dtype)
    gates = [row, torch.zeros(1, dtype=x.dtype)] * 3
    g = torch.zeros(x.numel(), 1, 1, dtype=x.dtype)
    _, _, saved = torch.ops.hiermt.gated_scan(
        x.reshape(-1, 1, 1), g, None, gates, None, None, steps=0, sequence=True, save=True, tf32=False
    )
    return {"sigmoid": saved[:, 0, 0, 0], "tanh": saved[:, 0, 2, 0]}


def sweep(dtype: torch.dtype) -> Tensor:
    """Every exponent and both signs, dense where the functions bend; float32 without float64's extremes."""
    exponents = torch.arange(-149, 7, dtype=torch.float64)
    mantissas = 1 + torch.rand(600, dtype=torch.float64)
    scattered = (torch.exp2(exponents)[:, None] * mantissas).flatten()
    dense = torch.linspace(0, 110, 400_001, dtype=torch.float64)
    positive = torch.cat([scattered, dense]).to(dtype)
    return torch.cat([positive, -positive])


def ulps(got: Tensor, exact: Tensor) -> Tensor:
    """Error in units of the last place of `exact`, subnormal numbers included."""
    info = torch.finfo(got.dtype)
    bits = 1 - round(math.log2(info.eps))
    exponent = torch.frexp(exact)[1].double()
    unit = torch.exp2(exponent - bits).clamp(min=info.smallest_normal * info.eps)
    return (got.double() - exact).abs() / unit


def test_float32_error_in_ulps(record_property: pytest.RecordProperty) -> None:
    x = sweep(torch.float32)
    exact = {"sigmoid": torch.sigmoid(x.double()), "tanh": torch.tanh(x.double())}
    for name, got in evaluate(x).items():
        error = ulps(got, exact[name])
        worst = int(error.argmax())
        record_property(f"{name} ulps", f"{float(error[worst]):.3f} at {float(x[worst]):.9g}")
        print(f"{name}: at most {float(error[worst]):.3f} ulp, at x = {float(x[worst]):.9g}")
        assert error[worst] <= MOST_ULPS[name]


def test_exp_in_ulps() -> None:
    """sigmoid(x) rounds to exp(x) below -20 in float32: its error there is that of exp and of one product."""
    x = torch.linspace(-103.9, -20, 500_001)
    error = ulps(evaluate(x)["sigmoid"], torch.exp(x.double()))
    print(f"exp: at most {float(error.max()):.3f} ulp")
    assert error.max() <= 1.2


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_float64_error(name: str) -> None:
    """torch's own float64 is the oracle, itself good to an ulp or two."""
    x = sweep(torch.float64)
    error = ulps(evaluate(x)[name], getattr(torch, name)(x))
    assert error.max() <= MOST_ULPS[name] + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_and_nan(dtype: torch.dtype) -> None:
    huge = torch.finfo(dtype).max
    x = torch.tensor([math.nan, math.inf, -math.inf, huge, -huge, 0.0, 1e3, -1e3], dtype=dtype)
    # An infinite x meets zero weights of the state, never of x, so no NaN comes in by 0 * inf.
    found = evaluate(x)
    assert torch.equal(found["sigmoid"].isnan(), x.isnan()) and torch.equal(found["tanh"].isnan(), x.isnan())
    assert found["sigmoid"][1:].tolist() == [1, 0, 1, 0, 0.5, 1, 0]
    assert found["tanh"][1:].tolist() == [1, -1, 1, -1, 0, 1, -1]


def test_tanh_of_tiny_arguments_is_themselves() -> None:
    x = torch.tensor([1e-45, -1e-40, 1e-38, 1e-20, -1e-10])
    assert torch.equal(evaluate(x)["tanh"], x)
