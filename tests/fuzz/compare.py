"""Results of three implementations of one problem, and when they count as equal."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from support import calls

# Of the norm of a tensor: what an implementation may be off by, beyond a multiple of the twin's own error.
LIMITS = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 6e-3, torch.bfloat16: 4e-2}
# As many times the twin's error, whose sums are in another order.
TIMES_TWIN = 8.0
# The twin itself, on numbers of ordinary size.
TWIN_LIMITS = {torch.float64: 1e-9, torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


class Found(NamedTuple):
    """What one implementation returned; on the CPU, in the dtype it computed in."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    # Probabilities, predictions and confidences, and the threshold.
    decision: tuple[Tensor, Tensor, Tensor, float] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for a bitwise comparison."""
        found = {**self.values, **{f"gradient of {k}": v for k, v in self.gradients.items() if v is not None}}
        if self.decision is not None:
            found |= dict(zip(("probabilities", "predictions", "confidences"), self.decision[:3], strict=True))
        return found


def differentiated(
    values: dict[str, Tensor], leaves: dict[str, Tensor], cotangent: str = "contiguous"
) -> dict[str, Tensor | None]:
    """The gradient of each leaf that requires it, of the same linear combination in every implementation."""
    outputs = list(values.values())
    seeds = [seed * 0.5 for seed in calls.cotangents(outputs)]
    if cotangent == "expanded":
        seeds = [
            seed.flatten()[:1].reshape([1] * seed.dim()).expand_as(seed) if seed.numel() else seed for seed in seeds
        ]
    elif cotangent == "reversed":
        seeds = [calls.LAYOUTS["reversed"](seed) if seed.dim() else seed for seed in seeds]
    pairs = [(one, seed) for one, seed in zip(outputs, seeds, strict=True) if one.requires_grad]
    found = calls.gradients([one for one, _ in pairs], list(leaves.values()), [seed for _, seed in pairs])
    return dict(zip(leaves, found, strict=True))


def bitwise(found: Found, again: Found) -> str | None:
    """What differs between two runs that must be bitwise equal."""
    one, other = found.tensors(), again.tensors()
    if one.keys() != other.keys():
        return f"results {sorted(one.keys() ^ other.keys())} are there with one number of threads only"
    for name, tensor in one.items():
        if not torch.equal(tensor.nan_to_num(7), other[name].nan_to_num(7)):
            return f"{name}: other bits with another number of threads"
    return None


def judge(native: Found, twin: Found, oracle: Found, ordinary: bool, dtype: torch.dtype) -> str | None:
    """What is wrong with the native results or with those of the twin; ``None`` if nothing is.

    `ordinary`: the numbers are of ordinary size, so that the twin's own rounding errors are small. `dtype` is that of
    the computation, of which a result in a finer one has the errors.
    """
    for kind, mine, theirs, truth in (
        ("", native.values, twin.values, oracle.values),
        ("gradient of ", native.gradients, twin.gradients, oracle.gradients),
    ):
        if mine.keys() != truth.keys():
            return f"results {sorted(mine.keys() ^ truth.keys())} are missing"
        # The values belong to it: a gradient that is zero alone has terms of their size.
        sizes = [*oracle.values.values(), *truth.values()]
        largest = max((_norm(one) for one in sizes if one is not None), default=0.0)
        for name, wanted in truth.items():
            found = _fault(mine[name], theirs[name], wanted, largest, ordinary, dtype)
            if found is not None:
                return f"{kind}{name}: {found}"
    if oracle.decision is not None:
        assert native.decision is not None and twin.decision is not None
        for label, one in (("native", native), ("twin", twin)):
            found = _decision_fault(one.decision, oracle.decision, dtype, ordinary)
            if found is not None:
                return f"decision of the {label}: {found}"
    return None


def _norm(tensor: Tensor) -> float:
    finite = tensor.double()[tensor.isfinite()]
    return float(finite.norm())


def _fault(
    mine: Tensor | None,
    theirs: Tensor | None,
    wanted: Tensor | None,
    largest: float,
    ordinary: bool,
    dtype: torch.dtype,
) -> str | None:
    if wanted is None or mine is None or theirs is None:
        # What reaches no result has no gradient, or one of zeros.
        for label, one in (("native", mine), ("twin", theirs), ("oracle", wanted)):
            if one is not None and bool(one.any()):
                missing = "native" if mine is None else "twin" if theirs is None else "oracle"
                return f"the {label} has one, the {missing} none"
        return None
    if theirs.dtype != mine.dtype:
        return f"native is {mine.dtype}, the twin {theirs.dtype}"
    for label, one in (("native", mine), ("twin", theirs)):
        if one.shape != wanted.shape:
            return f"shape {list(one.shape)} of the {label}, expected {list(wanted.shape)}"
        if not torch.equal(one.isnan(), wanted.isnan()):
            return (
                f"the {label} has NaN in other places: {int(one.isnan().sum())}, expected {int(wanted.isnan().sum())}"
            )
    if not wanted.numel():
        return None
    norm = _norm(wanted)
    errors = [_norm(one.double() - wanted) for one in (mine, theirs)]
    # A gradient whose terms cancel is rounding error of terms as large as those of the others.
    floor = LIMITS[dtype] * norm + 30 * torch.finfo(dtype).eps * largest + 1e3 * torch.finfo(dtype).tiny
    if errors[0] > TIMES_TWIN * errors[1] + floor:
        return f"{dtype}: native is off by {errors[0]:.3g}, the twin by {errors[1]:.3g}, of a norm {norm:.3g}"
    if (ordinary or dtype == torch.float64) and errors[1] > TWIN_LIMITS[dtype] * (norm + 0.05 * largest) + floor:
        return f"{dtype}: the twin is off by {errors[1]:.3g}, native by {errors[0]:.3g}, of a norm {norm:.3g}"
    return None


def _decision_fault(
    found: tuple[Tensor, Tensor, Tensor, float],
    wanted: tuple[Tensor, Tensor, Tensor, float],
    dtype: torch.dtype,
    ordinary: bool,
) -> str | None:
    probabilities, predictions, confidences, threshold = wanted
    near = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    if not ordinary and dtype != torch.float64:  # a softmax of large scores multiplies every rounding
        near = min(300 * near, 1.0)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape != other.shape:
            return f"shape {list(one.shape)}, expected {list(other.shape)}"
    absent = probabilities.isnan().any(-1)
    if not torch.equal(found[0].isnan().all(-1), absent) or not torch.equal(found[2].isnan(), absent):
        return "NaN in other places"
    if not torch.equal(found[1][absent], predictions[absent]):
        return "a prediction for a stock that is absent"
    if bool(((found[0].double() - probabilities).abs() > near).any()):
        return f"probabilities off by {float((found[0].double() - probabilities).abs().max()):.3g}"
    _, signal, down, up = probabilities.unbind(-1)
    sure = ((signal - threshold).abs() > near) & (((up - down).abs() > near) | (signal < threshold - near))
    if not torch.equal(found[1][sure], predictions[sure]):
        return f"{int((found[1][sure] != predictions[sure]).sum())} of {int(sure.sum())} sure predictions differ"
    if bool(((found[2].double() - confidences).abs()[sure] > near).any()):
        return "confidences differ"
    return None
