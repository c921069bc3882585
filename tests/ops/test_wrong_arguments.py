"""Every tensor that a function of :mod:`hiermt.functional` takes, in a wrong form: the exception that is promised.

On both backends alike: an exception of the promised type that names the argument and says what was expected and found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import functional
from hiermt.testing import stock_graph

S, T, F, H, K = 12, 4, 3, 5, 6
GRAPH = hiermt.Graph(*stock_graph(S, 40), S)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


def gatv2(inputs: int) -> list[Tensor]:
    return tensors((H, inputs), (H,), (H, inputs), (H,), (1, 1, H), (H,), (H, 1))


X, G, STATE, SERIES, DAYS = tensors((S, T, F), (S, T, H), (S, H), (S, 9, F), (S, 9, H))
CONVS = [*gatv2(F), *gatv2(H)]
GATES = tensors((H, F + 2 * H), (H,)) * 3
HEADS = tensors((K, H), (K,), (2, K), (2,), (2, K), (2,))
SIGNAL, DIRECTION = tensors((S, 2), (S, 2))
LABELS = torch.zeros(S, dtype=torch.int64)
STARTS = torch.tensor([0, 3, 5])
NAMES = ("lin_l.weight", "lin_l.bias", "lin_r.weight", "lin_r.bias", "att", "bias", "lin_edge.weight")
CONV_NAMES = [f"conv_params: {name} of convolution {k}" for k in (0, 1) for name in NAMES]
GATE_NAMES = [f"{gate}.{kind}" for gate in "urc" for kind in ("weight", "bias")]
HEAD_NAMES = [f"params: {name}.{kind}" for name in ("out", "signal", "direction") for kind in ("weight", "bias")]


class Function(NamedTuple):
    """A function, its arguments in order, and the names of the tensors among them."""

    call: Callable[..., Any]
    arguments: list[Any]
    names: list[Any]


FUNCTIONS = {
    "conv_stack": Function(functional.conv_stack, [X, GRAPH, CONVS], ["x", "", CONV_NAMES]),
    "gatv2_conv": Function(
        functional.gatv2_conv,
        [X, GRAPH, *gatv2(F)],
        ["x", "", *[name.replace(".", "_") for name in NAMES]],
    ),
    "gcn_conv": Function(functional.gcn_conv, [X, GRAPH, *tensors((H, F), (H,))], ["x", "", "weight", "bias"]),
    "gated_scan": Function(
        functional.gated_scan, [X, G, STATE, GATES], ["x", "g", "h0", [f"gates: {one}" for one in GATE_NAMES]]
    ),
    "gated_scan, one input": Function(
        lambda x, h0, gates, **options: functional.gated_scan(x, None, h0, gates, **options),
        [X, STATE, tensors((H, F + H), (H,)) * 3],
        ["x", "h0", [f"gates: {one}" for one in GATE_NAMES]],
    ),
    "gated_scan_windows": Function(
        functional.gated_scan_windows,
        [SERIES, DAYS, STARTS, T, GATES],
        ["x|series", "g", "starts", "", [f"gates: {one}" for one in GATE_NAMES]],
    ),
    "tgcn_layer": Function(
        lambda x, graph, convs, gates, h0, **options: functional.tgcn_layer(x, graph, convs, gates, h0=h0, **options),
        [X, GRAPH, CONVS, GATES, STATE],
        ["x", "", CONV_NAMES, [f"gate_params: {one}" for one in GATE_NAMES], "h0"],
    ),
    "heads": Function(functional.heads, [STATE, HEADS], ["h", HEAD_NAMES]),
    "decision": Function(functional.decision, [STATE, HEADS], ["h", HEAD_NAMES]),
    "decision_from_logits": Function(
        functional.decision_from_logits, [SIGNAL, DIRECTION], ["signal_logits", "direction_logits"]
    ),
    "multitask_loss": Function(
        functional.multitask_loss,
        [SIGNAL, DIRECTION, LABELS, LABELS, LABELS == 0],
        ["signal_logits", "direction_logits", "signal_targets", "direction_targets", "signal_mask"],
    ),
    "gather_windows": Function(functional.gather_windows, [SERIES, STARTS, T], ["series", "starts", ""]),
}
# Sizes that no other argument contradicts: any is right, or the error is about another argument.
ANY = {
    *[(name, "x", 1) for name in ("conv_stack", "gatv2_conv", "gcn_conv", "tgcn_layer", "gated_scan, one input")],
    *[(name, "h", 0) for name in ("heads", "decision")],
    *[("gather_windows", "series", dim) for dim in range(3)],
    *[(name, "starts", 0) for name in ("gather_windows", "gated_scan_windows")],
}
# Arguments whose first size is a number of channels, which the others are then expected to have.
CHANNELS = {
    "conv_params: lin_l.weight of convolution 0",
    "lin_l_weight",
    "weight",
    "params: out.weight",
}
# Tensors that decide on sizes, device or dtype of the others, one of which may be named in their place.
FIRST = {"x", "x|series", "h", "signal_logits", "series"}
INTEGERS = {"starts", "signal_targets", "direction_targets", "signal_mask"}


def wrong_forms(function: str, name: str, tensor: Tensor) -> Iterator[tuple[str, Any, type[Exception], bool]]:
    """What is wrong, the argument, its exception, and whether it must be named."""
    named = name not in FIRST
    yield "nothing", None, TypeError, True
    yield "a list", tensor.tolist(), TypeError, True
    yield "an array", tensor.numpy(), TypeError, True
    yield "another device", tensor.to("meta"), ValueError, named
    if name in INTEGERS:
        if name == "starts":
            yield "int32", tensor.int(), TypeError, True
        yield "complex", tensor.cfloat(), TypeError, True
    else:
        yield "float64", tensor.double(), TypeError, named
        yield "int64", tensor.long(), TypeError, named
    yield "a scalar", tensor.flatten()[0], ValueError, True
    if "att" not in name and "lin_edge" not in name:  # sizes of 1 do not matter there
        logits = function == "decision_from_logits"
        yield "one dimension more", tensor.unsqueeze(0), ValueError, not logits
        yield "another layout", tensor.flatten() if tensor.dim() > 1 else tensor.unsqueeze(1), ValueError, True
    for dim, size in enumerate(tensor.shape):
        if size == 1 or (function, name, dim) in ANY:
            continue
        longer = torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)
        channels = name in CHANNELS or (function, name) == ("gated_scan, one input", "gates: u.weight")
        this = named and not (dim == 0 and channels) and (name, dim) != ("g", 2)
        yield f"dimension {dim} longer", longer, ValueError, this
        if not (name == "x" and dim == 0 and not function.startswith("gated_scan")):  # no copy of the graph
            yield f"dimension {dim} empty", tensor.narrow(dim, 0, 0), ValueError, this


class Case(NamedTuple):
    """A wrong argument: its place, in a list if `i` is not ``None``, what it raises, and the name to be found."""

    what: str
    at: int
    i: int | None
    wrong: Any
    error: type[Exception]
    name: str


def cases(function: str) -> Iterator[Case]:
    _, arguments, names = FUNCTIONS[function]
    for at, argument in enumerate(arguments):
        many = isinstance(argument, list)
        for i, one in enumerate(argument if many else [argument]):
            if not isinstance(one, Tensor):
                continue
            label = names[at][i] if many else names[at]
            for what, wrong, error, named in wrong_forms(function, label, one):
                optional = what == "nothing" and label in ("g", "h0", "lin_edge_weight", "signal_mask")
                if optional or (function == "gather_windows" and what == "float64"):
                    continue
                yield Case(f"{label}: {what}", at, i if many else None, wrong, error, label if named else "")
        if many:
            label = names[at][0].split(":")[0]
            for length in (0, len(argument) - 1, len(argument) + 1):
                yield Case(f"{label}: {length} tensors", at, None, (argument * 2)[:length], ValueError, label)
            yield Case(f"{label}: no list", at, None, 3, TypeError, label)


def complaint(function: str, case: Case, backend: str) -> str | None:
    """What is wrong with the exception that a wrong argument raises, if anything."""
    call, arguments, _ = FUNCTIONS[function]
    arguments = [list(one) if isinstance(one, list) else one for one in arguments]
    if case.i is None:
        arguments[case.at] = case.wrong
    else:
        arguments[case.at][case.i] = case.wrong
    if isinstance(case.wrong, Tensor) and case.wrong.is_meta and backend == "native":
        backend = "auto"  # "native" itself is refused on meta
    try:
        call(*arguments, backend=backend)
    except Exception as error:
        message = str(error)
        if not isinstance(error, case.error):
            return f"{type(error).__name__} for {case.error.__name__}: {message}"
        names = [re.escape(name) for name in case.name.split("|")]
        if not any(re.search(rf"(?<![\w.]){name}(?![\w.])", message) for name in names):
            return f"does not name {case.name}: {message}"
        return None if "expected" in message or " is " in message else f"does not say what was expected: {message}"
    return "accepted"


@pytest.mark.hostile("wrong-tensor", "messages")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_wrong_form_of_every_tensor(function: str, backend: str) -> None:
    found = {case.what: complaint(function, case, backend) for case in cases(function)}
    assert len(found) > 15
    assert {what: one for what, one in found.items() if one is not None} == {}


def test_the_arguments_of_the_table_are_right(backend: str) -> None:
    for call, arguments, _ in FUNCTIONS.values():
        call(*arguments, backend=backend)


@pytest.mark.parametrize("function", ["conv_stack", "gatv2_conv", "gcn_conv", "tgcn_layer"])
@pytest.mark.parametrize("graph", [None, GRAPH.edge_index])
def test_what_is_not_a_graph(function: str, graph: Any, backend: str) -> None:
    call, arguments, _ = FUNCTIONS[function]
    with pytest.raises(TypeError, match=r"graph: expected a hiermt\.Graph"):
        call(arguments[0], graph, *arguments[2:], backend=backend)


def test_extents_of_one_do_not_matter_in_a_vector_of_a_convolution(backend: str) -> None:
    """PyG stores ``att`` as [1, 1, H] and ``lin_edge.weight`` as [H, 1]."""
    expected = functional.conv_stack(X, GRAPH, CONVS, backend=backend)
    flat = [one.flatten() if i % 7 in (4, 6) else one for i, one in enumerate(CONVS)]
    assert torch.equal(functional.conv_stack(X, GRAPH, flat, backend=backend), expected)


def test_autocast_leaves_integers_to_be_refused(backend: str) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="x: expected float32"):
        functional.gcn_conv(X.long(), GRAPH, *FUNCTIONS["gcn_conv"].arguments[2:], backend=backend)
