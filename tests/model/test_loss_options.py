"""A learned lambda, class weights, label smoothing and the focal factor of the loss against compositions in torch."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiermt import MultiTaskLoss, functional
from hiermt.native import extension
from hiermt.testing import assert_close
from support.loss_problem import problem

needs_native = pytest.mark.skipif(extension.why_not_native("cpu") is not None, reason="no native operators")

OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {"signal_weight": [0.3, 2.7], "direction_weight": [1.2, 0.1]},
    "one head": {"signal_weight": [0.3, 2.7]},
    "the other head": {"direction_weight": (4, 1)},
    "no weight": {"signal_weight": [0.0, 1.0], "direction_weight": [1.0, 0.0]},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "weights and smoothing": {"signal_weight": [0.3, 2.7], "direction_weight": [1.2, 0.1], "label_smoothing": 0.25},
    "focal": {"focal_gamma": 2.0},
    "weak focal": {"focal_gamma": 0.5},
    "strong focal": {"focal_gamma": 5},
    "all": {
        "signal_weight": [0.3, 2.7],
        "direction_weight": [1.2, 0.1],
        "label_smoothing": 0.05,
        "focal_gamma": 1.5,
    },
}


def head(logits: Tensor, targets: Tensor, weight: Any, smoothing: float, gamma: float) -> Tensor:
    """Torch's cross entropy, or its rows times the focal factor over the weights of the rows."""
    weight = None if weight is None else torch.as_tensor(weight, dtype=logits.dtype)
    if gamma == 0:
        return F.cross_entropy(logits, targets, weight, label_smoothing=smoothing)
    rows = F.cross_entropy(logits, targets, weight, reduction="none", label_smoothing=smoothing)
    p = logits.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    norm = len(targets) if weight is None else weight[targets].sum()
    return ((1 - p) ** gamma * rows).sum() / norm


def torchs(args: tuple[Tensor, ...], mask: Tensor | None, factor: Any, options: dict[str, Any]) -> tuple[Tensor, ...]:
    signal, direction, targets, directions = args
    smoothing, gamma = options.get("label_smoothing", 0.0), options.get("focal_gamma", 0.0)
    rows = slice(None) if mask is None else mask
    of_signal = head(signal, targets, options.get("signal_weight"), smoothing, gamma)
    of_direction = head(direction[rows], directions[rows], options.get("direction_weight"), smoothing, gamma)
    return of_signal + factor * of_direction, of_signal, of_direction


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("rows", [2, 17, 513, 1500])
@pytest.mark.parametrize("masked", [True, False])
def test_options_equal_torch(backend: str, name: str, rows: int, masked: bool) -> None:
    args, options = problem(rows), OPTIONS[name]
    args[2][:2], args[3][:2] = torch.tensor([0, 1]), torch.tensor([1, 0])
    mask = args[2] == 1 if masked else None
    logits = [tensor.requires_grad_() for tensor in args[:2]]
    expected = torchs(args, mask, 0.7, options)
    criterion = MultiTaskLoss(0.7, backend=backend, **options)
    found = criterion.terms(*args, mask)
    if masked and name == "no weight":  # the direction of the only row of the mask may weigh nothing
        expected = tuple(term.nan_to_num() for term in expected)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.detach(), other.detach())
    for term in range(3):
        ours = torch.autograd.grad(found[term], logits, retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(expected[term], logits, retain_graph=True, allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(
                torch.zeros(rows, 2) if one is None else one,
                torch.zeros(rows, 2, dtype=torch.float64) if other is None else other.nan_to_num(),
            )
    loss, parts = criterion(*args, mask)
    assert parts["total_loss"] == pytest.approx(float(expected[0].detach()), rel=1e-9)
    assert loss.requires_grad


@needs_native
@pytest.mark.parametrize("name", OPTIONS)
def test_float32_is_as_precise_as_torch(name: str) -> None:
    args, options = problem(4096, torch.float32), OPTIONS[name]
    mask = args[2] == 1

    def run(dtype: torch.dtype, ours: bool) -> list[Tensor]:
        logits = [tensor.detach().to(dtype).requires_grad_() for tensor in args[:2]]
        every = (*logits, *args[2:])
        found = MultiTaskLoss(0.7, backend="native", **options).terms(*every, mask) if ours else None
        total = torchs(every, mask, 0.7, options)[0] if found is None else found.total
        return [total.detach(), *torch.autograd.grad(total, logits)]

    exact, ours, theirs = run(torch.float64, False), run(torch.float32, True), run(torch.float32, False)
    for true, own, other in zip(exact, ours, theirs, strict=True):
        error, allowed = (own - true).abs().max(), (other - true).abs().max()
        assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * true.abs().max()


@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(backend: str, name: str) -> None:
    signal, direction, targets, directions = problem(9)
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def run(s: Tensor, d: Tensor, f: Tensor) -> tuple[Tensor, ...]:
        return functional.multitask_loss(s, d, targets, directions, targets == 1, f, backend=backend, **OPTIONS[name])

    assert torch.autograd.gradcheck(
        run, (signal.requires_grad_(), direction.requires_grad_(), factor), check_batched_grad=True
    )


def test_options_that_change_nothing_change_no_bit(backend: str) -> None:
    args, ones = problem(700, torch.float32), torch.ones(2)
    plain = functional.multitask_loss(*args, args[2] == 1, 0.3, backend=backend)
    zero = functional.multitask_loss(*args, args[2] == 1, 0.3, label_smoothing=0.0, focal_gamma=0, backend=backend)
    assert all(torch.equal(one, other) for one, other in zip(plain, zero, strict=True))
    ones_too = functional.multitask_loss(
        *args, args[2] == 1, 0.3, signal_weight=ones, direction_weight=ones, backend=backend
    )
    for one, other in zip(plain, ones_too, strict=True):
        assert_close(one, other.double())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("masked", [True, False])
def test_nothing_that_counts_gives_zero(backend: str, name: str, masked: bool) -> None:
    criterion = MultiTaskLoss(0.5, backend=backend, **OPTIONS[name])
    args = problem(0)
    logits = [tensor.requires_grad_() for tensor in args[:2]]
    total, *parts = criterion.terms(*args, args[2] == 1 if masked else None)
    assert total == parts[0] == parts[1] == 0
    assert [grad.shape for grad in torch.autograd.grad(total, logits)] == [(0, 2)] * 2
    args = problem(20)
    logits = [tensor.requires_grad_() for tensor in args[:2]]
    total, _, direction = criterion.terms(*args, torch.zeros(20, dtype=torch.bool))
    assert direction == 0 and total.isfinite()
    assert torch.equal(torch.autograd.grad(total, logits)[1], torch.zeros_like(logits[1]))


def test_classes_that_weigh_nothing_give_zero(backend: str) -> None:
    signal, direction, _, directions = problem(20)
    signal.requires_grad_(), direction.requires_grad_()
    criterion = MultiTaskLoss(signal_weight=[0.0, 1.0], label_smoothing=0.1, focal_gamma=1.0, backend=backend)
    terms = criterion.terms(signal, direction, torch.zeros(20, dtype=torch.long), directions)
    assert terms.signal == 0 and terms.total == terms.direction
    assert torch.equal(torch.autograd.grad(terms.total, signal)[0], torch.zeros(20, 2, dtype=torch.float64))


@pytest.mark.parametrize("pair", [(80.0, -80.0), (-300.0, 300.0), (1e30, -1e30), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["weights and smoothing", "weak focal", "focal"])
def test_saturated_logits(pair: tuple[float, float], name: str, dtype: torch.dtype) -> None:
    for target in (0, 1):
        found = []
        for backend in ("native", "reference"):
            logits = torch.tensor([pair, (0.1, 0.2)], dtype=dtype, requires_grad=True)
            targets = torch.tensor([target, 1])
            criterion = MultiTaskLoss(backend="auto" if backend == "native" else backend, **OPTIONS[name])
            total = criterion.terms(logits, logits, targets, 1 - targets).total
            found.append([total.detach(), torch.autograd.grad(total, logits)[0]])
        for one, other in zip(*found, strict=True):
            assert one.isfinite().all()
            assert_close(one, other.double())


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_masked_rows_never_spread(backend: str, garbage: float) -> None:
    signal, direction, targets, directions = problem(100)
    mask, criterion = targets == 1, MultiTaskLoss(backend=backend, **OPTIONS["all"])
    clean = criterion.terms(signal, direction, targets, directions, mask)
    direction[~mask], directions[~mask] = garbage, -7
    direction.requires_grad_()
    dirty = criterion.terms(signal, direction, targets, directions, mask)
    assert all(torch.equal(one, other.detach()) for one, other in zip(clean, dirty, strict=True))
    gradient = torch.autograd.grad(dirty.total, direction)[0]
    assert gradient.isfinite().all() and torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_a_learned_lambda(backend: str, shape: tuple[int, ...], name: str) -> None:
    factor = nn.Parameter(torch.full(shape, 0.7, dtype=torch.float64))
    criterion = MultiTaskLoss(factor, backend=backend, **OPTIONS.get(name, {}))
    assert dict(criterion.named_parameters()) == {"lambda_direction": factor}
    args = problem()
    mask = args[2] == 1
    logits = [tensor.requires_grad_() for tensor in args[:2]]
    expected = torchs(args, mask, factor.reshape(()), OPTIONS.get(name, {}))[0]
    loss, _ = criterion(*args, mask)
    ours, theirs = (torch.autograd.grad(total, [factor, *logits]) for total in (loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert float(ours[0]) == pytest.approx(float(criterion.terms(*args, mask).direction))
    factor.data.fill_(0.1)
    torch.testing.assert_close(criterion.terms(*args, mask).total, torchs(args, mask, 0.1, OPTIONS.get(name, {}))[0])
    empty = criterion.terms(*problem(0), None)
    assert torch.autograd.grad(empty.total, factor, allow_unused=True)[0] in (None, torch.zeros(shape))


def test_a_lambda_that_is_computed(backend: str) -> None:
    raw = torch.tensor(0.3, requires_grad=True)
    args = problem(dtype=torch.float32)
    loss = functional.multitask_loss(*args, args[2] == 1, F.softplus(raw), backend=backend)[0]
    expected = torchs(args, args[2] == 1, F.softplus(raw), {})[0]
    torch.testing.assert_close(torch.autograd.grad(loss, raw), torch.autograd.grad(expected, raw))


def test_a_lambda_is_learned_in_a_training() -> None:
    criterion = MultiTaskLoss(nn.Parameter(torch.tensor(1.0)))
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
    args = problem(dtype=torch.float32)
    loss, _ = criterion(*args, args[2] == 1)
    loss.backward()
    optimizer.step()
    assert 0 < float(criterion.lambda_direction.detach()) < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "weights and smoothing"])
def test_dtypes_are_those_of_torch(backend: str, dtype: torch.dtype, autocast: torch.dtype | None, name: str) -> None:
    if backend == "native" and dtype == torch.float16:
        backend = "auto"
    args, options = problem(40, dtype), OPTIONS.get(name, {})
    logits = [tensor.requires_grad_() for tensor in args[:2]]
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        found = MultiTaskLoss(0.7, backend=backend, **options).terms(*args, args[2] == 1)
        weight = options.get("signal_weight")
        theirs = (
            F.cross_entropy(
                args[0],
                args[2],
                None if weight is None else torch.tensor(weight).to(torch.float32 if autocast else dtype),
                label_smoothing=options.get("label_smoothing", 0.0),
            )
            if autocast is None or dtype != torch.float64
            else found.signal
        )
    assert {term.dtype for term in found} == {theirs.dtype}
    exact = torchs((*(tensor.double() for tensor in args[:2]), *args[2:]), args[2] == 1, 0.7, options)
    tolerance = 2e-2 if found.total.dtype in (torch.bfloat16, torch.float16) else 1e-5
    torch.testing.assert_close(found.total.double(), exact[0], rtol=tolerance, atol=tolerance)
    for gradient in torch.autograd.grad(found.total, logits):
        assert gradient.dtype == dtype


def test_weights_are_buffers() -> None:
    criterion = MultiTaskLoss(signal_weight=[1.0, 3.0], direction_weight=np.array([0.1, 0.2]))
    assert criterion.signal_weight.tolist() == [1.0, 3.0] and criterion.direction_weight.tolist() == [0.1, 0.2]
    assert set(criterion.state_dict()) == {"signal_weight", "direction_weight"} and not list(criterion.parameters())
    other = MultiTaskLoss(signal_weight=[1.0, 1.0], direction_weight=[1.0, 1.0])
    other.load_state_dict(criterion.state_dict())
    assert other.signal_weight.tolist() == [1.0, 3.0]
    assert copy.deepcopy(criterion).direction_weight.tolist() == [0.1, 0.2]
    assert criterion.to("meta").signal_weight.device.type == "meta"
    assert not MultiTaskLoss().state_dict()
    given = torch.tensor([1.0, 2.0], dtype=torch.float64)
    criterion = MultiTaskLoss(signal_weight=given)
    given.fill_(9)
    assert criterion.signal_weight.tolist() == [1.0, 2.0]
    args = problem(dtype=torch.float32)
    half, single = MultiTaskLoss(signal_weight=given).half(), MultiTaskLoss(signal_weight=given).float()
    for changed in (half, single):
        torch.testing.assert_close(changed.terms(*args).total, MultiTaskLoss().terms(*args).total)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_compiled(backend: str, name: str) -> None:
    criterion = MultiTaskLoss(nn.Parameter(torch.tensor(0.7)), backend=backend, **OPTIONS.get(name, {}))
    compiled = torch.compile(criterion.terms, fullgraph=True, backend="aot_eager")
    args = problem(dtype=torch.float32)
    args[0].requires_grad_()
    mask = args[2] == 1
    torch.testing.assert_close(tuple(compiled(*args, mask)), tuple(criterion.terms(*args, mask)))
    wanted = [criterion.lambda_direction, args[0]]
    for one, other in zip(
        torch.autograd.grad(compiled(*args, mask).total, wanted),
        torch.autograd.grad(criterion.terms(*args, mask).total, wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@needs_native
def test_the_operator_guards_itself() -> None:
    args, operator = problem(10), torch.ops.hiermt.multitask_loss
    for options, text in (
        ((torch.ones(2),), "signal_weight"),
        ((None, torch.ones(3, dtype=torch.float64)), "direction_weight"),
        ((None, None, 1.5), "label_smoothing"),
        ((None, None, math.nan), "label_smoothing"),
        ((None, None, 0.0, -1.0), "focal_gamma"),
        ((None, None, 0.0, math.inf), "focal_gamma"),
    ):
        with pytest.raises(RuntimeError, match=text):
            operator(*args, None, 1.0, *options)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)
    args[0].requires_grad_()
    torch.library.opcheck(operator.default, (*args, args[2] == 1, 0.3, weight, None, 0.1, 2.0))
