"""Problems for the SIMT harness, and how the operators of ``shim/runner.cpp`` are called on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hiermt.graph import Graph
from hiermt.testing import assert_close
from simt.harness import run
from support.single_convolutions import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Case(NamedTuple):
    """A convolution problem; `nodes` is the size of the template graph, its last node is isolated."""

    hidden: int
    nodes: int = 9
    edges: int = 30
    copies: int = 1
    steps: int = 4
    channels: int = 13
    activation: int = 1
    weighted: bool = True
    layout: str = "dense"

    def __str__(self) -> str:
        return "-".join(f"{name[:2]}{value}" for name, value in self._asdict().items())


class Problem(NamedTuple):
    """Tensors of a case in one dtype; `x` may be strided."""

    csr: list[Tensor]
    x: Tensor
    edge_weight: Tensor | None
    params: list[Tensor]
    lin_edge: Tensor | None


def make(case: Case, dtype: torch.dtype, gat: bool, seed: int = 0) -> Problem:
    """Random problem of a case: duplicates and self loops among the edges, weights of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    connected = max(case.nodes - 1, 1)
    edge_index = torch.randint(connected, (2, case.edges), generator=generator)
    weight = torch.rand(case.edges, generator=generator) + 0.1
    rule = reference.GATV2_RULE if gat else reference.GCN_RULE
    entries = Graph(edge_index, weight, case.nodes, backend="reference").csr(rule, True, torch.float64, whole=True)
    csr = [*entries.tensors[:5], torch.tensor([0, case.nodes], dtype=torch.int32)]
    hidden, channels = case.hidden, case.channels
    scale = channels**-0.5
    if gat:
        params = [
            random(hidden, channels) * scale,
            random(hidden),
            random(hidden, channels) * scale,
            random(hidden),
            random(hidden) * hidden**-0.5,
            random(hidden),
        ]
    else:
        params = [random(hidden, channels) * scale, random(hidden)]
    wanted = entries.weight if case.weighted or not gat else None
    edge_weight = None if wanted is None else wanted.to(dtype).contiguous()
    lin_edge = random(hidden) if gat and case.weighted else None
    total = case.copies * case.nodes
    x = random(total, case.steps, channels)
    if case.layout == "strided":  # [N, F, T] and twice as long
        x = random(total, channels, 2 * case.steps)[:, :, ::2].transpose(1, 2)
    elif case.layout == "shared":  # overlapping windows of one series: copy c starts c steps later
        series = random(case.nodes, case.steps + case.copies - 1, channels)
        x = series.unfold(1, case.steps, 1).permute(1, 0, 3, 2)
    return Problem(csr, x, edge_weight, params, lin_edge)


def graph_arguments(case: Case, csr: list[Tensor]) -> tuple[list[int], list[Tensor]]:
    return [case.nodes, csr[1].numel(), case.copies], csr[:5]


def sequence_integers(x: Tensor, case: Case) -> list[int]:
    """Channels and strides (copy, node, time, channel) of `x`, [N, T, F] or [B, S, T, F]."""
    if x.dim() == 4:
        return [x.size(3), *x.stride()]
    return [x.size(2), x.stride(0) * case.nodes, *x.stride()]


def conv_arguments(case: Case, problem: Problem, gat: bool) -> tuple[list[int], list[Tensor | None]]:
    """What every call of a convolution starts with."""
    integers, csr = graph_arguments(case, problem.csr)
    integers += [*sequence_integers(problem.x, case), case.steps, case.hidden, 1, int(gat), case.activation]
    inputs: list[Tensor | None] = [*csr, problem.x, problem.edge_weight, *problem.params]
    return integers, [*inputs, problem.lin_edge] if gat else inputs


def twin(problem: Problem, case: Case, gat: bool) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """Float64 result of the twin, with the leaves it came from: x [N, T, F], parameters, then weights."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.double().detach().clone().requires_grad_()

    x = leaf(problem.x.reshape(case.copies * case.nodes, case.steps, case.channels))
    params = [leaf(p) for p in problem.params]
    edge_weight, lin_edge = leaf(problem.edge_weight), leaf(problem.lin_edge)
    if gat:
        out = reference.gatv2_conv(x, problem.csr, edge_weight, params, lin_edge, case.activation)
    else:
        out = reference.gcn_conv(x, problem.csr, edge_weight, params, case.activation)
    return out, [x, *params], [lin_edge, edge_weight]


def conv_forward(
    case: Case,
    dtype: torch.dtype,
    gat: bool,
    environment: dict[str, str] | None = None,
    spoil: Callable[[Problem], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Output of the kernel and of the float64 twin; `spoil` changes the problem first."""
    problem = make(case, dtype, gat)
    if spoil is not None:
        spoil(problem)
    shape = (case.copies * case.nodes, case.steps, case.hidden)
    (out,) = run("conv_stack", dtype, *conv_arguments(case, problem, gat), [(shape, dtype)], environment)
    expected, _, _ = twin(problem, case, gat)
    return out, expected.detach()


def conv_backward(
    case: Case, dtype: torch.dtype, gat: bool, wanted: str = "xpe", environment: dict[str, str] | None = None
) -> list[tuple[str, Tensor | None, Tensor]]:
    """(name, gradient of the kernel, gradient of the float64 twin); `wanted` names x, parameters, edge weights."""
    problem = make(case, dtype, gat)
    out, first, last = twin(problem, case, gat)
    # The kernel reads the saved output as it was stored; the twin gets the same cotangent.
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    leaves = [leaf for leaf in [*first, *last] if leaf is not None]
    expected = iter(torch.autograd.grad(out, leaves, grad_out.double()))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    names = ["x", "lin_l.weight", "lin_l.bias", "lin_r.weight", "lin_r.bias", "att", "bias", "lin_edge", "edge_weight"]
    if not gat:
        names = ["x", "lin.weight", "bias", "norm"]
        last = last[1:]
    outputs = []
    for name, leaf in zip(names, [*first, *last], strict=True):
        asked = "x" if name == "x" else "e" if name in ("edge_weight", "norm") else "p"
        kind = dtype if name == "x" else compute
        outputs.append((tuple(leaf.shape), kind) if leaf is not None and asked in wanted else None)
    integers, inputs = conv_arguments(case, problem, gat)
    inputs += [out.detach().to(dtype).contiguous(), grad_out]
    grads = run("conv_stack_backward", dtype, integers, inputs, outputs, environment)
    both = []
    for name, leaf, grad in zip(names, [*first, *last], grads, strict=True):
        if leaf is not None:
            both.append((name, grad, next(expected)))
    return both


def assert_gradients(pairs: list[tuple[str, Tensor | None, Tensor]], dtype: torch.dtype) -> None:
    """Every gradient that the kernel computed, within the tolerance of a computation in `dtype`."""
    for name, grad, expected in pairs:
        if grad is not None:
            assert_close(
                grad.double(), expected, gradient=True, scaled=True, dtype=dtype, message=f"gradient of {name}"
            )


def assert_gradient_norms(pairs: list[tuple[str, Tensor | None, Tensor]]) -> None:
    """Float32 gradients as a whole: the error of each against its own norm, and a little of the largest one.

    A term that is off by 0.1 % hides in the tolerance of single elements, not here.
    """
    largest = max((float(expected.norm()) for _, _, expected in pairs), default=0.0)
    for name, grad, expected in pairs:
        if grad is not None:
            error = float((grad.double() - expected).norm())
            allowed = 2e-5 * float(expected.norm()) + 1e-7 * largest
            assert error <= allowed, f"gradient of {name}: its error has the norm {error:.3g}, {allowed:.3g} allowed"


class ScanCase(NamedTuple):
    """A gated scan; `last` asks for the gradient through the last state only."""

    hidden: int
    nodes: int = 7
    copies: int = 1
    steps: int = 5
    channels: int = 13
    initial: bool = False
    last: bool = False

    def __str__(self) -> str:
        return "-".join(f"{name[:2]}{value}" for name, value in self._asdict().items())


def scan_problem(case: ScanCase, dtype: torch.dtype) -> tuple[list[Tensor | None], list[int]]:
    """x (strided), g, h0 and the gates' parameters, with the integers that go before them."""
    generator = torch.Generator().manual_seed(case.hidden)
    total, hidden = case.copies * case.nodes, case.hidden

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x = random(total, case.channels, case.steps).transpose(1, 2)
    columns = case.channels + 2 * hidden
    gates = [random(hidden, columns) * columns**-0.5 if i % 2 == 0 else random(hidden) for i in range(6)]
    tensors = [x, random(total, case.steps, hidden), random(total, hidden) if case.initial else None, *gates]
    integers = [case.copies, case.nodes, case.steps, hidden]
    integers += [case.channels, x.stride(0) * case.nodes, *x.stride(), -1, 0]
    return [*tensors, None], integers


def scan_both(case: ScanCase, dtype: torch.dtype, environment: dict[str, str] | None = None) -> list[Tensor | None]:
    """Forward and backward of the kernels, each asserted against the float64 twin; returns all of both."""
    tensors, integers = scan_problem(case, dtype)
    total, hidden = case.copies * case.nodes, case.hidden
    sequence = ((total, case.steps, hidden), dtype)
    state = ((total, hidden), dtype)
    h, h_last, gates = run(
        "gated_scan", dtype, integers, tensors, [sequence, state, ((total, case.steps, 3, hidden), dtype)], environment
    )
    *tensors, starts = tensors
    leaves = [None if t is None else t.double().detach().clone().requires_grad_() for t in tensors]
    expected = reference.gated_scan(leaves[0], leaves[1], leaves[2], leaves[3:], True)
    assert_close(h.double(), expected.detach(), dtype=dtype)
    initial = tensors[2] if tensors[2] is not None else torch.zeros(state[0], dtype=dtype)
    assert torch.equal(h_last, h[:, -1] if case.steps > 0 else initial)
    (alone,) = run("gated_scan", dtype, integers, [*tensors, starts], [None, state, None], environment)[1:2]
    assert torch.equal(alone, h_last)

    grad_h = torch.randn(sequence[0], generator=torch.Generator().manual_seed(2)).to(dtype)
    if not expected.requires_grad:  # T = 0: nothing depends on anything
        expected = expected + 0 * sum(leaf.sum() for leaf in leaves if leaf is not None)
    if case.last:
        value = expected[:, -1]
        grads_in: list[Tensor | None] = [None, grad_h[:, -1].contiguous()]
        cotangent = grads_in[1].double()
    else:
        value, grads_in, cotangent = expected, [grad_h, None], grad_h.double()
    wanted = [leaf for leaf in leaves if leaf is not None]
    truth = iter(torch.autograd.grad(value, wanted, cotangent, allow_unused=True))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    outputs = [None if t is None else (tuple(t.shape), dtype if i < 3 else compute) for i, t in enumerate(tensors)]
    grads = run("gated_scan_backward", dtype, integers, [*tensors, starts, h, gates, *grads_in], outputs, environment)
    names = ["x", "g", "h0", "u.weight", "u.bias", "r.weight", "r.bias", "c.weight", "c.bias"]
    pairs = []
    for name, tensor, grad in zip(names, tensors, grads, strict=True):
        if tensor is not None:
            one = next(truth)
            pairs.append((name, grad, torch.zeros_like(tensor).double() if one is None else one))
    assert_gradients(pairs, dtype)
    return [h, h_last, gates, *grads]


def with_dtypes(cases: list, first: int = 5) -> pytest.MarkDecorator:
    """Every case in float32; the `first` ones, which meet every specialisation, in the other dtypes too."""
    pairs = [(case, torch.float32) for case in cases]
    pairs += [(case, dtype) for dtype in DTYPES[1:] for case in cases[:first]]
    names = [f"{case}-{str(dtype).removeprefix('torch.')}" for case, dtype in pairs]
    return pytest.mark.parametrize(("case", "dtype"), pairs, ids=names)
