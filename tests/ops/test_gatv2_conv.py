"""``hiermt::gatv2_conv`` against PyG's ``GATv2Conv``, its twin, float64 and its own promises."""

from __future__ import annotations

import pytest
import torch

from hiermt.native import extension
from hiermt.testing import assert_close
from support.gatv2_cases import make

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from support.single_convolutions import ops, reference

WHERE = ["x", "lin_l.weight", "lin_l.bias", "lin_r.weight", "att", "bias", "edge"]
SPECIAL = [(where, value) for where in WHERE for value in (torch.nan, torch.inf, -torch.inf, 1e4, -1e4)]
# Not for lin_l.bias and att: a huge term in every score drowns the differences between them.
SPECIAL += [(where, 1e308) for where in WHERE if where not in ("lin_l.bias", "att")]


@pytest.mark.parametrize(("where", "value"), SPECIAL)
def test_nan_infinity_and_huge_values(where: str, value: float) -> None:
    """In float64: what float32 makes of 1e4 depends on the order of every sum."""
    case = make(2, 4, 3, 5, torch.float64)
    names = {"lin_l.weight": 0, "lin_l.bias": 1, "lin_r.weight": 2, "att": 4, "bias": 5}
    target = case.x if where == "x" else case.edge_weight if where == "edge" else case.params[names[where]]
    assert target is not None
    with torch.no_grad():
        target[(0,) * (target.dim() - 1) + (1,)] = value
    out = ops.gatv2_conv(*case, reference.NONE)
    expected = reference.gatv2_conv(*case, reference.NONE)
    assert_close(out, expected)


def test_a_source_at_minus_infinity_gets_no_attention() -> None:
    """Its score is -inf where att is positive: out of the softmax, although 0.6 z + 0.4 |z| would be NaN."""
    case = make(1, 3, 1, 2, edge=False)
    with torch.no_grad():
        case.params[0].copy_(torch.tensor([[1.0], [0.0]]))
        case.params[4].fill_(0.5)
        case.x[4, 1] = -3e38
        case.params[1][0] = -3e38
    out = ops.gatv2_conv(*case, reference.NONE)
    expected = reference.gatv2_conv(*case, reference.NONE)
    assert expected[:, 1, 1].isfinite().any()
    assert torch.equal(out.isnan(), expected.isnan())


def test_nan_stays_where_it_can_reach() -> None:
    """A NaN in one copy, node and step is seen by the node's targets at that copy and step alone."""
    case = make(2, 20, 3, 5)
    with torch.no_grad():
        case.x[3, 7] = torch.nan
    out = ops.gatv2_conv(*case, reference.LEAKY_RELU)
    assert_close(out, reference.gatv2_conv(*case, reference.LEAKY_RELU))
    assert out[:, 7].isnan().any() and not out[20:].isnan().any()
    assert not out[:, :7].isnan().any() and not out[:, 8:].isnan().any()
