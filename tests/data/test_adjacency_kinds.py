"""Matrices of weights as other libraries hold them: read as they mean, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hiermt import data

pytestmark = pytest.mark.hostile("edge-form")


def matrix() -> np.ndarray:
    weights = np.random.default_rng(0).random((4, 4))
    return np.triu(weights, 1) + np.triu(weights, 1).T


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [">f8", ">f4", "<f4", "read-only", "reversed", "no element masked", "requires grad"])
def test_the_same_numbers_in_another_form(kind: str) -> None:
    given: Any = matrix()
    expected = data.graph_from_adjacency(given)
    if kind == "read-only":
        given.flags.writeable = False
    elif kind == "reversed":
        given = given[::-1, ::-1].copy()[::-1, ::-1]
    elif kind == "no element masked":
        given = np.ma.masked_invalid(given)
    elif kind == "requires grad":
        given = torch.tensor(given, requires_grad=True)
    else:
        given = given.astype(kind)
    index, weight = data.graph_from_adjacency(given)
    assert torch.equal(index, expected[0]) and torch.equal(weight, expected[1])


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("masked", r"some of its elements are masked; say what they are with \.filled\(0\)"),
        ("objects", "expected a matrix of real numbers, got an array of object"),
        ("words", r"expected a matrix of real numbers, got an array of <U\d+"),
        ("scipy", r"expected a dense matrix, got a csr_matrix; use \.toarray\(\)"),
        ("sparse", r"expected a dense matrix, got a Tensor of layout torch\.sparse_coo; use \.to_dense\(\)"),
        ("compressed", r"expected a dense matrix, got a Tensor of layout torch\.sparse_csr; use \.to_dense\(\)"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(kind: str, message: str) -> None:
    given: Any = matrix()
    if kind == "masked":
        given = np.ma.masked_less(given, 0.2)
    elif kind in ("objects", "words"):
        given = given.astype(object if kind == "objects" else str)
    elif kind == "scipy":
        given = pytest.importorskip("scipy.sparse").csr_matrix(given)
    else:
        given = torch.tensor(given)
        given = given.to_sparse() if kind == "sparse" else given.to_sparse_csr()
    with pytest.raises(data.DataError, match=f"^adjacency: {message}$"):
        data.graph_from_adjacency(given)
