"""Every operator on every problem of :mod:`support.problems`: one test a property."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from hiermt.native import extension
from hiermt.testing import assert_close
from support import oracles
from support.calls import (
    DTYPES,
    LAYOUTS,
    SHARED,
    Call,
    Found,
    assert_equal,
    compare,
    cotangents,
    detached,
    gradients,
    outputs_of,
    prepare,
    recorded,
    run,
)
from support.graphs import small_graphs
from support.problems import VARIANTS, Maker, Problem, problems, small_problems
from support.properties import given, settings

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

PROBLEMS = list(problems())
SMALL = [problem for problem in PROBLEMS if not problem.large]
THREADS = (1, 2, 3, 5, 8)
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
differentiable = pytest.mark.parametrize("variant", [name for name, make in VARIANTS.items() if make(1).gradient])


GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "cuda-own-stream") if torch.cuda.is_available()]


@pytest.fixture(params=["cpu", *GPU])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device; on a GPU, torch's default stream or one of its own."""
    name = request.param.split("-")[0]
    if (reason := extension.why_not_native(name)) is not None:
        pytest.skip(reason)
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS, not ours, asks for a setting
    with torch.cuda.stream(torch.cuda.Stream()) if request.param.endswith("stream") else nullcontext():
        yield name


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def has_windows(problem: Problem) -> bool:
    return "windows" in problem.label and problem.arguments[-1].numel() > 0 and problem.options["steps"] > 0


def test_every_operator_has_problems() -> None:
    forward = {name for name in extension.OPERATORS if not name.endswith("_backward")}
    assert {problem.op for problem in PROBLEMS} == forward
    assert {make(1).op for make in VARIANTS.values()} == forward - {"graph_prepare"}


@pytest.mark.hostile("empty", "loops", "dtypes", "unwritten")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_problem
def test_equals_twin(problem: Problem, dtype: torch.dtype, device: str) -> None:
    """Values and the gradient of every input, against the twin in float64."""
    if device == "cpu" and dtype == torch.float16:
        pytest.skip("the CPU kernels take no float16")
    compare(problem, dtype, device)


@pytest.mark.parametrize("problem", [problem for problem in PROBLEMS if oracles.has(problem)], ids=str)
def test_equals_pyg_or_plain_torch(problem: Problem) -> None:
    oracles.compare(problem)


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_equals_pyg_on_any_small_graph(graph: tuple[int, Tensor, Tensor]) -> None:
    """Loops, duplicates and isolated nodes as they come."""
    for problem in small_problems((graph[1], graph[2].float(), graph[0])) if graph[0] else ():
        oracles.compare(problem)


@pytest.mark.hostile("strides")
@pytest.mark.parametrize("layout", LAYOUTS)
@every_problem
def test_any_layout_of_the_inputs_gives_the_same_bits(problem: Problem, layout: str) -> None:
    assert_equal(run(problem, True, layout=LAYOUTS[layout]), run(problem, True))


@pytest.mark.parametrize("layout", SHARED)
@every_variant
def test_inputs_whose_elements_share_memory(variant: str, layout: str) -> None:
    problem = VARIANTS[variant](2)
    found = []
    for change in (SHARED[layout], lambda t: SHARED[layout](t).contiguous()):
        torch.manual_seed(1)
        arguments = problem.arguments
        first = change(arguments[0]).detach()
        shared = first.requires_grad_(problem.gradient)
        call = prepare(problem)
        call.leaves[0] = shared
        call = call._replace(arguments=(shared, *call.arguments[1:]))
        outputs = outputs_of(problem.op, call, True)
        found.append(Found(outputs, [], gradients(outputs, call.leaves)))
    assert_equal(*found)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("problem", [p for p in SMALL if has_windows(p)], ids=str)
def test_windows_equal_the_call_on_copies_of_them(problem: Problem, dtype: torch.dtype) -> None:
    """The same bits forward and from the states; gradients of what windows share are sums in another order."""
    shared, copied = prepare(problem, dtype), prepare(problem, dtype)
    starts, steps = problem.arguments[-1], problem.options["steps"]
    series = (0, 1) if problem.op == "gated_scan" and problem.arguments[1] is not None else (0,)
    arguments = list(copied.arguments)
    for i in series:
        arguments[i] = oracles.gathered(arguments[i], starts, steps)
    alone = copied._replace(arguments=(*arguments[:-1], None), options={**problem.options, "steps": 0})
    outputs = [outputs_of(problem.op, call, True) for call in (shared, alone)]
    assert torch.equal(outputs[0][0], outputs[1][0])
    pairs = zip(
        *(gradients(out, call.leaves) for out, call in zip(outputs, (shared, copied), strict=True)), strict=True
    )
    for one, other in pairs:
        assert_close(one, other, gradient=True, scaled=True)


def test_a_day_of_no_window_counts_for_nothing() -> None:
    problem = Maker().windows("gaps", (3, 40, 5, 4, 16), [0, 12, 30], True)
    x, g, *rest = problem.arguments
    unused = torch.ones(40, dtype=torch.bool)
    for start in (0, 12, 30):
        unused[start : start + 5] = False
    spoilt = x.clone(), g.clone()
    spoilt[0][:, unused], spoilt[1][:, unused] = torch.nan, torch.inf
    found = run(problem._replace(arguments=(*spoilt, *rest)), True)
    assert_equal(found, run(problem, True))
    assert not any(gradient[:, unused].any() for gradient in found.gradients[:2])


@pytest.mark.parametrize(("variant", "kept"), [("gated_scan, last", 4), ("tgcn_layer", 5), ("tgcn_layer, last", 5)])
def test_what_is_kept_for_the_backward(variant: str, kept: int) -> None:
    """So many states a node and step: h, three gates and, in a layer, g; nothing at all without a gradient."""
    problem = VARIANTS[variant](2)
    call = prepare(problem)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = outputs_of(problem.op, call, True)[0]
    for tensor in _tensors(call.arguments):
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    nodes, steps, hidden = call.arguments[0].size(0), call.arguments[0].size(1), out.size(-1)
    assert sum(saved.values()) == kept * nodes * steps * hidden * 4
    with torch.no_grad():
        ((_, arguments, options),) = recorded(lambda: outputs_of(problem.op, call, True))
        _, *others = getattr(torch.ops.hiermt, problem.op)(*arguments, **options)
    assert all(one.numel() == 0 for one in others)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [one for each in value for one in _tensors(each)] if isinstance(value, (list, tuple)) else []


@pytest.mark.hostile("strides")
@differentiable
def test_any_layout_of_the_cotangents_gives_the_same_bits(variant: str) -> None:
    problem = VARIANTS[variant](2)
    call = prepare(problem)
    outputs = [one for one in outputs_of(problem.op, call, True) if one.requires_grad]
    dense = cotangents(outputs)
    for change in (*LAYOUTS.values(), lambda t: torch.ones(()).expand(t.shape)):
        seeds = [change(seed) if seed.dim() else seed for seed in dense]
        found = gradients(outputs, call.leaves, seeds, again=True)
        expected = gradients(outputs, call.leaves, [seed.contiguous() for seed in seeds], again=True)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.hostile("determinism")
@every_problem
@pytest.mark.usefixtures("threads")
def test_the_same_bits_on_any_number_of_threads(problem: Problem) -> None:
    torch.set_num_threads(1)
    expected = run(problem, True)
    for count in THREADS[1:]:
        torch.set_num_threads(count)
        assert_equal(run(problem, True), expected)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@every_variant
@pytest.mark.usefixtures("threads")
def test_the_same_bits_of_many_tasks(variant: str, dtype: torch.dtype) -> None:
    problem = VARIANTS[variant](40)
    torch.set_num_threads(1)
    expected = run(problem, True, dtype)
    for count in (*THREADS, 2, 2, 2):
        torch.set_num_threads(count)
        assert_equal(run(problem, True, dtype), expected)


@pytest.mark.hostile("determinism", "streams")
@every_variant
def test_twenty_runs_on_a_stream_give_the_same_bits(variant: str, device: str) -> None:
    expected = run(VARIANTS[variant](9), True, device=device)
    for _ in range(19):
        assert_equal(run(VARIANTS[variant](9), True, device=device), expected)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("problem", [p for p in SMALL if p.parts > 1 and p.rows], ids=str)
def test_a_part_alone_and_among_others(problem: Problem, dtype: torch.dtype) -> None:
    """The numbers of a copy, window or row depend on its own inputs alone, whatever lane and task it falls into."""

    def cut(tensor: Tensor, part: slice) -> Tensor:
        return tensor.unflatten(0, (problem.parts, -1))[part].flatten(0, 1)

    whole = run(problem, True, dtype)
    for part in (slice(0, 1), slice(problem.parts // 2, None), slice(problem.parts - 1, None)):
        call = prepare(problem, dtype)
        mine = {id(call.arguments[i]): i for i in problem.rows}
        places = [at for at, leaf in enumerate(call.leaves) if id(leaf) in mine]
        arguments = list(call.arguments)
        for i in problem.rows:
            piece = cut(arguments[i].detach(), part)
            arguments[i] = piece.requires_grad_(arguments[i].requires_grad)
        own = [arguments[mine[id(call.leaves[at])]] for at in places]
        outputs = outputs_of(problem.op, Call(tuple(arguments), call.options, own), True)
        rest = [*whole.values, *whole.exact]
        for got, want in zip(sorted(outputs, key=lambda t: not t.is_floating_point()), rest, strict=True):
            assert torch.equal(got, cut(want, part))
        if own and problem.gradient:
            seeds = [cut(seed, part) for seed in cotangents(whole.values[: len(_recorded(outputs))])]
            for at, gradient in zip(places, gradients(outputs, own, seeds), strict=True):
                assert torch.equal(gradient, cut(whole.gradients[at], part))


def _recorded(outputs: list[Tensor]) -> list[Tensor]:
    return [one for one in outputs if one.requires_grad]


@pytest.mark.hostile("rounding")
@every_variant
def test_error_is_at_most_twice_the_twins(variant: str) -> None:
    """In float32 against float64, at about the size that users have: values, the first gradient, all other gradients.

    The error of a gradient of a few elements is a matter of luck, so those of all parameters count as one.
    """

    def errors(found: Found, exact: Found) -> list[float]:
        pairs = [*zip(found.values, exact.values, strict=True), *zip(found.gradients, exact.gradients, strict=True)]
        each = [float((one.double() - other).norm()) for one, other in pairs if one is not None and other is not None]
        first = len(found.values) + 1
        return [*each[:first], sum(error**2 for error in each[first:]) ** 0.5]

    problem = VARIANTS[variant](20)
    exact = run(problem, False, torch.float64)
    ours, theirs = (errors(run(problem, native), exact) for native in (True, False))
    size = max(float(value.double().abs().max()) for value in exact.values)
    for own, twin in zip(ours, theirs, strict=True):
        assert own <= 2 * twin + 2 * size * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("problem", [problem for problem in SMALL if problem.gradient], ids=str)
def test_gradcheck(problem: Problem) -> None:
    """Against finite differences, in one random direction."""
    call = prepare(problem, torch.float64)
    outputs = outputs_of(problem.op, call, True)
    chosen = [i for i, one in enumerate(outputs) if one.requires_grad and one.numel()]

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        found = outputs_of(problem.op, _with_leaves(call, leaves), True)
        return tuple(found[i] for i in chosen)

    if chosen:
        assert torch.autograd.gradcheck(function, call.leaves, fast_mode=True)


def _with_leaves(call: Call, leaves: tuple[Tensor, ...]) -> Call:
    """The call on other leaves."""
    places = {id(leaf): i for i, leaf in enumerate(call.leaves)}

    def replace(value: Any) -> Any:
        if isinstance(value, list):
            return [replace(one) for one in value]
        return leaves[places[id(value)]] if id(value) in places else value

    return call._replace(arguments=tuple(replace(value) for value in call.arguments), leaves=list(leaves))


@every_variant
def test_any_subset_of_inputs_may_require_grad(variant: str) -> None:
    problem = VARIANTS[variant](2)
    every = run(problem, True)
    count = len(every.gradients)
    alone, all_but_one = [[i] for i in range(count)], [[k for k in range(count) if k != i] for i in range(0, count, 3)]
    for wanted in (*alone, *all_but_one, []):
        found = run(problem, True, wanted=wanted)
        for i, (gradient, full) in enumerate(zip(found.gradients, every.gradients, strict=True)):
            assert gradient is None if i not in wanted or full is None else torch.equal(gradient, full)
        assert all(torch.equal(one, other) for one, other in zip(found.values, every.values, strict=True))


@differentiable
def test_many_cotangents_at_once(variant: str) -> None:
    problem = VARIANTS[variant](1)
    call = prepare(problem, torch.float64)
    outputs = _recorded(outputs_of(problem.op, call, True))
    batches = [torch.randn(3, *one.shape, dtype=torch.float64) for one in outputs]
    found = torch.autograd.grad(outputs, call.leaves, batches, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        expected = gradients(outputs, call.leaves, [batch[k] for batch in batches], again=True)
        for one, other in zip(found, expected, strict=True):
            assert_close(one[k], other, gradient=True)


@every_variant
def test_opcheck(variant: str) -> None:
    """The schema, the fake rule and the autograd rule of the operator; the first two of its backward."""
    problem = VARIANTS[variant](1)

    def both() -> None:
        call = prepare(problem)
        outputs = outputs_of(problem.op, call, True)
        gradients(outputs, call.leaves)

    calls = recorded(both)
    assert {name for name, *_ in calls} >= {problem.op}
    for name, arguments, keywords in calls:
        torch.library.opcheck(getattr(torch.ops.hiermt, name).default, detached(arguments), detached(keywords))


@pytest.mark.parametrize("problem", [p for p in SMALL if p.op == "graph_prepare"], ids=str)
def test_opcheck_of_a_graph(problem: Problem) -> None:
    torch.library.opcheck(torch.ops.hiermt.graph_prepare.default, problem.arguments)


@pytest.mark.hostile("double-backward")
@differentiable
def test_double_backward_is_refused_by_name(variant: str) -> None:
    problem = VARIANTS[variant](1)
    call = prepare(problem)
    outputs = _recorded(outputs_of(problem.op, call, True))
    grads = torch.autograd.grad(outputs, call.leaves, cotangents(outputs), create_graph=True)
    with pytest.raises(NotImplementedError, match=problem.op):
        torch.autograd.grad(sum(grad.sum() for grad in grads), call.leaves)


@pytest.mark.hostile("dtypes")
@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("decision_from")])
def test_autocast(variant: str) -> None:
    """The operator computes in the dtype of autocast, the loss in float32; gradients have the dtype of the inputs."""
    problem = VARIANTS[variant](2)
    call = prepare(problem)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = outputs_of(problem.op, call, True)
    if problem.op != "multitask_loss":
        expected = outputs_of(problem.op, prepare(problem, torch.bfloat16), True)
        assert outputs[0].dtype == torch.bfloat16
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
    else:
        assert outputs[0].dtype == torch.float32
    for gradient in gradients(outputs, call.leaves):
        assert gradient.dtype == torch.float32


@pytest.mark.hostile("compilers")
@every_variant
def test_compiles_without_a_graph_break_for_any_size(variant: str) -> None:
    torch._dynamo.reset()
    problem = VARIANTS[variant](2)

    def function(arguments: Any, options: Any) -> list[Tensor]:
        found = outputs_of(problem.op, Call(arguments, options, []), True)
        return [one * 2 for one in found]

    compiled: Callable[..., list[Tensor]] = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (2, 3):
        pairs = []
        for way in (compiled, function):
            call = prepare(VARIANTS[variant](count))
            outputs = way(call.arguments, call.options)
            pairs.append(Found(outputs, [], gradients(outputs, call.leaves)))
        assert_equal(*pairs)
