"""Arguments that no caller means get an exception, and the process lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import functional, testing
from hiermt.native import extension
from support import forged_calls

needs_native = pytest.mark.skipif(not extension.native_status().available, reason="needs the extension")


@pytest.mark.hostile("forged-call")
@needs_native
def test_forged_calls_of_every_operator_come_back() -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "support.forged_calls", "--calls", "2000", "--seed", "0"]
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.hostile("forged-call")
@needs_native
def test_a_backward_refuses_a_tensor_that_is_a_row_short() -> None:
    checked = set()
    for name, arguments in forged_calls.valid_calls():
        if not name.endswith("_backward") or name in checked:
            continue
        checked.add(name)
        operator = getattr(torch.ops.hiermt, name)
        schema = operator.default._schema.arguments
        for i, value in enumerate(arguments):
            if not isinstance(value, Tensor) or not value.dim() or value.size(0) < 2:
                continue
            forged = [*arguments[:i], value[:-1], *arguments[i + 1 :]]
            named = {one.name: each for one, each in zip(schema, forged, strict=True) if one.kwarg_only}
            with pytest.raises(RuntimeError, match=f"hiermt::{name}: .*expected"):
                operator(*forged[: len(forged) - len(named)], **named)
    assert len(checked) >= 5


def wrapping(count: int, per_conv: int) -> list[int]:
    """Numbers of convolutions whose product with `per_conv` is `count` modulo 2^64."""
    found = []
    if per_conv % 2:
        found.append(count * pow(per_conv, -1, 2**64) % 2**64)
    else:
        found += [(count + 2**64 * k) // per_conv for k in range(1, per_conv)]
    return [n - 2**64 if n >= 2**63 else n for n in found]


@needs_native
@pytest.mark.parametrize("per_conv", [7, 6, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 12, 14, 28])
def test_a_number_of_convolutions_that_wraps_around(per_conv: int, count: int) -> None:
    from hiermt import ops

    convs = [torch.randn(8, 5) for _ in range(count)]
    x, csr = (
        torch.randn(13, 4, 5),
        list(hiermt.Graph(*testing.stock_graph(13, 40), 13).csr(0, True, torch.float32).tensors),
    )
    gates = [torch.randn(8, 21) if i % 2 == 0 else torch.randn(8) for i in range(6)]
    for conv_layers in [*wrapping(count, per_conv), 2**63 - 1, -(2**63), -1, 0]:
        if conv_layers * per_conv == count:
            continue
        with pytest.raises(RuntimeError, match=r"conv_layers|conv_params"):
            ops.tgcn_layer(
                x, csr, None, convs, gates, None, None, steps=0, conv_layers=conv_layers, between=True, sequence=True
            )


@pytest.mark.parametrize("conv_layers", [0, -1, 2**63 - 1, 2 * pow(7, -1, 2**64) % 2**63, 3, 14, True, 2.0, "2"])
def test_functional_bounds_the_number_of_convolutions(conv_layers: Any, backend: str) -> None:
    graph = hiermt.Graph(*testing.stock_graph(13, 40), 13)
    shapes = [(8, 5), (8,), (8, 5), (8,), (8,), (8,), (8,)]
    convs = [torch.randn(*shape) for shape in [*shapes, *[(8, 8) if shape == (8, 5) else shape for shape in shapes]]]
    gates = [torch.randn(8, 21) if i % 2 == 0 else torch.randn(8) for i in range(6)]
    x = torch.randn(13, 4, 5)
    functional.tgcn_layer(x, graph, convs, gates, conv_layers=2, backend=backend)
    with pytest.raises((TypeError, ValueError), match="conv_layers"):
        functional.tgcn_layer(x, graph, convs, gates, conv_layers=conv_layers, backend=backend)


@pytest.mark.parametrize("wrong", [0, 1, 5, 7, 12])
def test_functional_counts_the_parameters(wrong: int, backend: str) -> None:
    graph = hiermt.Graph(*testing.stock_graph(13, 40), 13)
    shapes = [(8, 5), (8,), (8, 5), (8,), (8,), (8,), (8,)]
    convs, x, h = [torch.randn(*shape) for shape in shapes], torch.randn(13, 4, 5), torch.randn(13, 8)
    many = [torch.randn(8, 21) if i % 2 == 0 else torch.randn(8) for i in range(12)][:wrong]
    with pytest.raises(ValueError, match="expected 6 tensors"):
        functional.tgcn_layer(x, graph, convs, many, conv_layers=1, backend=backend)
    with pytest.raises(ValueError, match="expected 6 tensors"):
        functional.gated_scan(x, torch.randn(13, 4, 8), None, many, backend=backend)
    for call in (functional.heads, functional.decision):
        with pytest.raises(ValueError, match="expected 6 tensors"):
            call(h, many, backend=backend)


SCAN = {"steps": 3, "sequence": False, "save": False, "tf32": False}


def sizes_without_elements() -> list[tuple[str, tuple[Any, ...]]]:
    """Calls that hold next to no memory and whose sizes have products past 2^63."""
    empty, huge = torch.empty, 2**60
    head = (empty(0, huge), empty(0), empty(2, 0), empty(2), empty(2, 0), empty(2))
    long = torch.zeros(1, 1, 1).expand(2**29, 2**29, 1)
    gates = [torch.randn(8, 17) if i % 2 == 0 else torch.randn(8) for i in range(6)]
    scan = (long, empty(1, 1, 8).expand(2**29, 2**29, 8), None, gates, None)
    return [
        ("decision", (empty(0, huge), *head, 0.5, 15)),
        (
            "decision",
            (empty(3, 0), empty(5, 0), empty(5), empty(2, 5), empty(2), empty(2, 5), empty(2), 0.5, -1),
        ),
        ("decision_backward", (empty(0, 2), empty(0, 2), empty(0, huge), *head[:3], head[4], True, True)),
        ("gated_scan", scan),
        ("graph_prepare", (torch.zeros(2, 1, dtype=torch.int64).expand(2, 2**40), 3, 0)),
        ("graph_prepare", (torch.zeros(2, 4, dtype=torch.int64), 2**63 - 1, 0)),
    ]


@pytest.mark.hostile("large-index", "forged-call")
@needs_native
@pytest.mark.parametrize("call", sizes_without_elements(), ids=lambda call: call[0])
def test_sizes_whose_product_wraps_around(call: tuple[str, tuple[Any, ...]]) -> None:
    options = SCAN if call[0] == "gated_scan" else {}
    with pytest.raises(RuntimeError, match="hiermt"):
        getattr(torch.ops.hiermt, call[0])(*call[1], **options)


@pytest.mark.hostile("large-index", "forged-call")
@pytest.mark.timeout(60)
@needs_native
def test_rows_of_which_nothing_is_wanted_take_no_time() -> None:
    """An expanded tensor has as many rows as it says, and no memory that limits them."""
    params = [torch.randn(5, 8), torch.randn(5), *(torch.randn(*shape) for shape in ((2, 5), (2,), (2, 5), (2,)))]
    h = torch.randn(1, 8).expand(2**42, 8)
    assert not any(one.numel() for one in torch.ops.hiermt.decision(h, *params, 0.5, 0))
    out_and_heads = [*params[:3], params[4]]
    found = torch.ops.hiermt.decision_backward(None, None, h, *out_and_heads, False, True)
    assert not any(one.any() for one in found[1:])
    narrow = h[:, :0], params[0][:, :0], *out_and_heads[1:]
    assert torch.ops.hiermt.decision_backward(None, None, *narrow, True, False)[0].shape == (2**42, 0)


@needs_native
@pytest.mark.parametrize("left", [0, 4, 100])
def test_a_tensor_whose_storage_is_gone(left: int) -> None:
    def lying(tensor: Tensor) -> Tensor:
        tensor.untyped_storage().resize_(left)
        return tensor

    parameters = [
        torch.randn(8, 8),
        torch.randn(8),
        torch.randn(2, 8),
        torch.randn(2),
        torch.randn(2, 8),
        torch.randn(2),
    ]
    with pytest.raises(RuntimeError, match="h: its storage of"):
        torch.ops.hiermt.decision(lying(torch.randn(50, 8)), *parameters, 0.5, 15)
    gates = [torch.randn(8, 18) if i % 2 == 0 else torch.randn(8) for i in range(6)]
    starts = lying(torch.zeros(40, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="starts: its storage of"):
        torch.ops.hiermt.gated_scan(torch.randn(3, 50, 2), torch.randn(3, 50, 8), None, gates, starts, None, **SCAN)
    # Not contiguous, so that a copy would read it.
    logits, labels = torch.randn(50, 2), torch.zeros(50, dtype=torch.int64)
    for arguments in ((lying(torch.randn(2, 50).t()), logits), (logits, lying(torch.randn(2, 50).t()))):
        with pytest.raises(RuntimeError, match="_logits: its storage of"):
            torch.ops.hiermt.multitask_loss(*arguments, labels, labels, None, 1.0)
    mask = torch.ones(100, dtype=torch.bool)[::2]
    mask.untyped_storage().resize_(left // 2)
    with pytest.raises(RuntimeError, match="row_mask: its storage of"):
        torch.ops.hiermt.multitask_loss(logits, logits, labels, labels, None, 1.0, row_mask=mask)
