"""The shape that is timed, by value: a layer over 32 graphs of 100 stocks, on what nvcc makes of the kernels."""

from __future__ import annotations

import pytest

from hiermt.testing import stock_graph
from ptx import sources
from simt.cases import check, constant_edges, needs_harness
from support.problems import Maker, Stack

pytestmark = [
    needs_harness,
    pytest.mark.slow,
    pytest.mark.skipif(sources.left_out() is not None, reason=str(sources.left_out())),
]


@pytest.mark.timeout(1800)
def test_a_layer_of_32_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are compared in the norm: an argument of leaky_relu may round to the other side of the kink."""
    monkeypatch.setenv("HIERMT_SIMT_PTX", str(sources.runner_map()))
    problem = Maker(1).layer((*stock_graph(100), 100), (32, 25, 13, 16), Stack(), True)
    check(constant_edges(problem._replace(large=True)))
