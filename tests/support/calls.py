"""Calls of an operator and of its twin on a problem, on any device, dtype and memory layout.

Tensors are made on the CPU and copied, so that on a GPU no kernel but ours writes what ours read: compute-sanitizer
sees all that matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hiermt.graph.csr import by_degree
from hiermt.native import dispatch
from hiermt.testing import assert_close
from support.problems import Csr, Problem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Layout = Callable[[Tensor], Tensor]


def _padded(tensor: Tensor, step: int) -> Tensor:
    """A view of memory that is NaN, or a number far outside, everywhere else."""
    other = True if tensor.dtype == torch.bool else 2**30
    filler = math.nan if tensor.is_floating_point() else other
    wide = tensor.new_full([step * size + 3 for size in tensor.shape], filler)
    return wide[tuple(slice(1, 1 + step * size, step) for size in tensor.shape)].copy_(tensor)


def _reversed(tensor: Tensor) -> Tensor:
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous().permute(*reversed(range(tensor.dim())))


# Views with the numbers of a tensor in memory laid out in another way.
LAYOUTS: dict[str, Layout] = {
    "reversed": _reversed,
    "first two dimensions swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else t,
    "slice": lambda t: _padded(t, 1),
    "step": lambda t: _padded(t, 2),
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t),
}
# Views with numbers of their own, several elements of which share memory.
SHARED: dict[str, Layout] = {
    "expanded": lambda t: t[:1].expand_as(t),
    "overlapping": lambda t: t.new_empty(0).set_(
        torch.randn(sum(t.shape) + 1).to(t).untyped_storage(), 0, t.shape, [1] * t.dim()
    ),
}


class Call(NamedTuple):
    """Arguments of one call, and the leaves among them, in order."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    leaves: list[Tensor]


class Found(NamedTuple):
    """Results on the CPU: those of floating point, the exact ones, and the gradient of each leaf."""

    values: list[Tensor]
    exact: list[Tensor]
    gradients: list[Tensor | None]

    def tensors(self) -> list[Tensor | None]:
        return [*self.values, *self.exact, *self.gradients]


def prepare(
    problem: Problem,
    dtype: torch.dtype = torch.float32,
    *,
    device: str = "cpu",
    rounded: torch.dtype | None = None,
    layout: Layout | None = None,
    wanted: Sequence[int] | None = None,
) -> Call:
    """Copies of the arguments.

    Args:
        rounded (torch.dtype, optional): round numbers to this dtype first.
        layout (callable, optional): what to make of every tensor but those of a CSR.
        wanted (sequence of int, optional): the leaves that require grad; all by default.
    """
    leaves: list[Tensor] = []

    def place(value: Any) -> Any:
        if isinstance(value, Csr):
            schedule = by_degree(value[0]) if torch.device(device).type == "cuda" else value[5]
            return [one.to(device) for one in [*value[:5], schedule]]
        if isinstance(value, list):
            return [place(one) for one in value]
        if not isinstance(value, Tensor):
            return value
        is_leaf = value.is_floating_point() and value.dtype == torch.float32
        # A copy: problems share tensors, and each wants leaves of its own.
        tensor = value.detach().clone()
        if is_leaf:
            tensor = tensor.to(rounded or dtype).to(dtype)
        tensor = tensor.to(device)
        if layout is not None and value.dim():
            tensor = layout(tensor)
        if is_leaf:
            needed = problem.gradient and (wanted is None or len(leaves) in wanted)
            leaves.append(tensor.requires_grad_(needed))
        return tensor

    arguments = tuple(place(argument) for argument in problem.arguments)
    options = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in problem.options.items()
    }
    return Call(arguments, options, leaves)


def outputs_of(op: str, call: Call, native: bool) -> list[Tensor]:
    """What the operator or its twin returns."""
    found = dispatch.operator(op, native)(*call.arguments, **call.options)
    # How nodes are cut into blocks is the operator's own.
    return [found] if isinstance(found, Tensor) else list(found[:6] if op == "graph_prepare" else found)


def cotangents(outputs: Sequence[Tensor], draw: int = 0) -> list[Tensor]:
    """The same numbers for every implementation and dtype; more for a scalar, which is a mean over rows."""
    generator = torch.Generator().manual_seed(3 + draw)
    seeds = [torch.randn(one.shape, generator=generator) * (1 if one.dim() else 64) for one in outputs]
    return [seed.bfloat16().to(one.dtype).to(one.device) for seed, one in zip(seeds, outputs, strict=True)]


def with_grad(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Those that can be differentiated."""
    return [one for one in outputs if one.requires_grad]


def gradients(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], seeds: Sequence[Tensor] | None = None, again: bool = False
) -> list[Any]:
    """The gradient of each leaf that requires it, ``None`` for the others; `again`: the graph is kept."""
    recorded = with_grad(outputs)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not recorded or not wanted:
        return [None] * len(leaves)
    seeds = cotangents(recorded) if seeds is None else seeds
    found = iter(torch.autograd.grad(recorded, wanted, seeds, allow_unused=True, retain_graph=again))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def run(problem: Problem, native: bool, dtype: torch.dtype = torch.float32, *, draw: int = 0, **how: Any) -> Found:
    """Calls the operator or its twin on a copy of the arguments and differentiates what has a gradient."""
    call = prepare(problem, dtype, **how)
    outputs = outputs_of(problem.op, call, native)
    found = gradients(outputs, call.leaves, cotangents(with_grad(outputs), draw))
    for gradient, leaf in zip(found, call.leaves, strict=True):
        assert gradient is None or (gradient.shape == leaf.shape and gradient.dtype == dtype)
    values = [one.detach().cpu() for one in outputs if one.is_floating_point()]
    exact = [one.cpu() for one in outputs if not one.is_floating_point()]
    return Found(values, exact, [None if one is None else one.cpu() for one in found])


def assert_found(
    found: Found, expected: Found, dtype: torch.dtype, cancelled: Sequence[int] = (), large: bool = False
) -> None:
    """Values and gradients within the tolerance of a computation in `dtype`; a missing gradient is zero.

    `cancelled`: gradients that get twice the bound. `large`: gradients are compared in the norm. Among millions of
    arguments of leaky_relu, a few round across zero in float32, in the twin too, and get the other slope. Which ones
    depends on the width of the vectors. One of them moves a gradient by up to 0.2 % of its norm.
    """
    same = _same_decisions(found, expected, dtype)
    for i, (value, truth) in enumerate(zip(found.values, expected.values, strict=True)):
        assert value.dtype == dtype
        if value.dim() == 1 and same is not None:
            value, truth = value[same], truth[same]
        assert_close(value.double(), truth, dtype=dtype, message=f"result {i}")
    for i, (gradient, truth) in enumerate(zip(found.gradients, expected.gradients, strict=True)):
        if gradient is None or truth is None:
            given = truth if gradient is None else gradient
            assert given is None or not given.any(), f"gradient {i}: only one of both is there"
        elif large and dtype == torch.float32:
            error = (gradient.double() - truth).norm()
            assert error <= 1e-2 * truth.norm(), f"gradient {i} {tuple(truth.shape)}: off by {error / truth.norm():.1e}"
        else:
            options = {"dtype": dtype, "message": f"gradient {i} {tuple(truth.shape)}"}
            rtol = 0.04 if i in cancelled else None
            assert_close(gradient.double(), truth, gradient=True, scaled=True, rtol=rtol, **options)
    for value, truth in zip(found.exact, expected.exact, strict=True):
        assert value.dtype == truth.dtype and value.shape == truth.shape
        assert same is not None or torch.equal(value, truth)


def _same_decisions(found: Found, expected: Found, dtype: torch.dtype) -> Tensor | None:
    """Rows decided alike, if coarse numbers may put some on the other side of the threshold."""
    if not found.values or not found.exact or dtype in (torch.float32, torch.float64):
        return None
    same = found.exact[0] == expected.exact[0]
    assert int((~same).sum()) <= max(1, 0.02 * same.numel())
    return same


def assert_equal(found: Found, expected: Found, of: str = "") -> None:
    """Bitwise; NaN equals NaN."""
    for i, (one, other) in enumerate(zip(found.tensors(), expected.tensors(), strict=True)):
        assert (one is None) == (other is None), f"{of} result {i}"
        if one is not None and other is not None:
            same = one.shape == other.shape and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
            assert same, f"{of} result {i}"


def compare(problem: Problem, dtype: torch.dtype, device: str = "cpu", **how: Any) -> Found:
    """Results of the native operator, checked against the twin in float64, which reads the same rounded numbers.

    `how` says which leaves require grad and in which layout they are, as for :func:`prepare`.
    """
    # Logits that are given make a decision by probabilities rounded to the dtype, as the twin in the same dtype does.
    precise = dtype if problem.op == "decision_from_logits" else torch.float64
    exact = _exact(problem, precise, torch.float32 if dtype == torch.float64 else dtype, how)
    found = run(problem, True, dtype, device=device, **how)
    try:
        assert_found(found, exact, dtype, (), problem.large)
    except AssertionError:
        if dtype in (torch.float32, torch.float64):
            raise
        # Only now, because the twin in a 16-bit type takes longer than all the rest.
        assert_found(found, exact, dtype, _cancelled(problem, exact, dtype), problem.large)
    return found


_last: list[tuple[Problem, tuple[Any, ...], Found]] = []


def _exact(problem: Problem, dtype: torch.dtype, rounded: torch.dtype, how: dict[str, Any]) -> Found:
    """Results of the twin. Kept for the next call, because float32 and float64 are compared with the same ones."""
    key = (dtype, rounded, *sorted(how.items()))
    if not _last or _last[0][0] is not problem or _last[0][1] != key:
        _last[:] = [(problem, key, run(problem, False, dtype, rounded=rounded, **how))]
    return _last[0][2]


def _cancelled(problem: Problem, exact: Found, dtype: torch.dtype) -> list[int]:
    """Gradients of which the twin in a 16-bit type is off by more than 2 %: the kernel may be off by 4 %.

    Over the neighbours of a node, the gradients of a softmax add up to zero. Of what att, lin_r and the convolutions
    before them get, rounding to 16 bits can leave little. The kernels round less often than the twin does.
    """
    rounded = run(problem, False, dtype)
    pairs = enumerate(zip(rounded.gradients, exact.gradients, strict=True))
    both = [(i, one.double() - other, other) for i, (one, other) in pairs if one is not None and other is not None]
    return [i for i, error, other in both if float(error.norm()) > 0.02 * float(other.norm())]


def recorded(run: Callable[[], Any]) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """The calls of the namespace ``torch.ops.hiermt`` that `run` makes: name, arguments and keywords."""
    found: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "hiermt":
                found.append((func._schema.name.split("::")[1], args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Recorder():
        run()
    return found


def detached(value: Any) -> Any:
    """The same arguments without autograd."""
    if isinstance(value, list | tuple):
        return type(value)(detached(one) for one in value)
    return value.detach() if isinstance(value, Tensor) else value


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of nested arguments."""
    if isinstance(value, Tensor):
        return [value]
    return [one for each in value for one in tensors_of(each)] if isinstance(value, (list, tuple)) else []
