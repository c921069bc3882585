"""The order of x where both orders fit: said once, for those who chose none."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import Any

import pytest
import torch

import hiermt
from hiermt import testing

EDGES = testing.stock_graph(20, 60)
MAKERS: list[Any] = [
    lambda **options: hiermt.TGCN_HierarchicalMT(5, 7, **options),
    lambda **options: hiermt.TGCN(5, 3, 7, **options),
]


@pytest.fixture(params=MAKERS, ids=["two heads", "backbone"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.hostile("wrong-tensor")
@pytest.mark.parametrize("shape", [(20, 5, 5), (2, 20, 5, 5)])
def test_a_square_x_warns_once(make: Any, shape: tuple[int, ...]) -> None:
    model = make()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        with pytest.warns(UserWarning, match=r"layout='NTF'.*layout='NFT'"):
            copied(torch.randn(shape), *EDGES)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            copied(torch.randn(shape), *EDGES)


@pytest.mark.parametrize("layout", ["NTF", "NFT", "".join(["N", "T", "F"])])
def test_silent_where_the_layout_was_chosen(make: Any, layout: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(layout=layout)(torch.randn(20, 5, 5), *EDGES)


def test_silent_where_only_one_order_fits(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()(torch.randn(20, 6, 5), *EDGES)
        hiermt.TGCN(1, 3, 7)(torch.randn(20, 1, 1), *EDGES)


def test_silent_under_a_compiler(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="(?!.*layout)")
        torch.compile(make(), backend="eager", fullgraph=True)(torch.randn(20, 5, 5), *EDGES)


def test_the_default_reads_as_ever(make: Any) -> None:
    model = make()
    assert model.config["layout"] == "NTF" and type(model.config["layout"]) is str
    for kind in (hiermt.TGCN, hiermt.TGCN_HierarchicalMT):
        assert inspect.signature(kind).parameters["layout"].default == "NTF"
        assert "layout: 'str' = 'NTF'" in str(inspect.signature(kind))
