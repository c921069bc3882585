"""The kernels on a GPU with less shared memory than an H100 has: 99 kB for a block on many, 48 kB on all."""

from __future__ import annotations

import pytest
import torch

from simt.cases import Case
from simt.harness import compiler
from simt.layers import LayerCase, layer_both

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++ on x86-64")

# 56 and 59 kB for a block with one step, more with two.
LARGE = Case(hidden=16, nodes=400, edges=800, steps=2)


@pytest.mark.parametrize("gat", [True, False])
@pytest.mark.parametrize("kilobytes", [48, 99])
def test_a_layer_asks_for_no_more_than_there_is(kilobytes: int, gat: bool) -> None:
    layer_both(LayerCase(LARGE, gat=gat), torch.float32, {"HIERMT_SIMT_SHARED_BYTES": str(1024 * kilobytes)})


def test_a_block_takes_fewer_steps_where_they_do_not_fit() -> None:
    # One step in 30 kB, five in 74 kB, of which so many copies would have a block take all.
    case = LayerCase(Case(hidden=8, nodes=170, edges=300, copies=40, steps=4), conv_layers=1, sequence=False)
    layer_both(case, torch.float32, {"HIERMT_SIMT_SHARED_BYTES": str(48 * 1024)})
