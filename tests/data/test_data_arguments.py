"""Integers of every kind, graphs without edges or with weights beyond float32, series too short."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hiermt.data import (
    DataError,
    DataWarning,
    WindowDataset,
    WindowLoader,
    correlation_graph,
    graph_from_adjacency,
    hierarchical_labels,
    next_returns,
    num_windows,
    pyg_loader,
    read_adjacency,
    time_split,
    to_adjacency,
    windows,
)

CLOSE = 100 * torch.rand(4, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 50
EDGES = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])


def dataset(window=5, edges=EDGES, weights=None):
    signal, direction = hierarchical_labels(next_returns(CLOSE))
    return WindowDataset(torch.randn(4, 40, 3), edges, weights, window, signal, direction)


CALLS = {
    "windows": lambda n: windows(torch.zeros(4, 40, 3), n).shape,
    "num_windows": lambda n: num_windows(40, n),
    "num_windows, days": lambda n: num_windows(n, 2),
    "next_returns": lambda n: next_returns(CLOSE, n).shape,
    "time_split, window": lambda n: time_split(400, n),
    "time_split, horizon": lambda n: time_split(400, 5, horizon=n),
    "time_split, gap": lambda n: time_split(400, 2, gap=n),
    "dataset": lambda n: dataset(n).windows.shape,
    "loader": lambda n: [batch.x.shape for batch in WindowLoader(dataset(), batch_size=n)],
    "loader, seed": lambda n: [batch.starts.tolist() for batch in WindowLoader(dataset(), shuffle=True, seed=n)],
    "to_adjacency": lambda n: to_adjacency(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), n).shape,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestIntegers:
    @pytest.mark.parametrize("kind", [np.int64, np.int32, np.int8, np.uint8, np.uint64])
    def test_numpy_integers(self, call, kind):
        assert call(kind(3)) == call(3)

    @pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float64(3), "3", None, torch.tensor(3.0)], ids=repr)
    def test_values_that_are_not_integers(self, call, value, request):
        if value is None and "gap" in request.node.callspec.id:
            pytest.skip("the default")
        with pytest.raises(TypeError, match="expected an integer"):
            call(value)


def test_integers_of_the_loader_of_pyg():
    pytest.importorskip("torch_geometric")
    assert len(pyg_loader(dataset(), batch_size=np.int64(7), shuffle=True, seed=np.int32(1))) == 5
    for options in ({"batch_size": True}, {"batch_size": 2.0}, {"seed": True}):
        with pytest.raises(TypeError, match="expected an integer"):
            pyg_loader(dataset(), **options)


class TestNoEdges:
    def test_up_to_the_batches(self):
        with pytest.warns(DataWarning, match="the graph has no edges; lower the threshold"):
            edges, weights = correlation_graph(next_returns(CLOSE), 0.999)
        assert edges.shape == (2, 0)
        assert weights.shape == (0,)
        assert edges.dtype == torch.int64
        np.testing.assert_array_equal(to_adjacency(edges, weights, 4), np.zeros((4, 4)))
        data = dataset(edges=edges, weights=weights)
        for batch in WindowLoader(data, batch_size=18):
            assert batch.x.shape == (batch.starts.numel(), 4, 5, 3)
            assert batch.graph.edge_index.shape == (2, 0)

    def test_prices_that_stand_still(self):
        close = CLOSE.clone()
        close[1] = 7
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            edges, weights = correlation_graph(next_returns(close), -1)
        assert not (edges == 1).any()
        assert weights.isfinite().all()
        with pytest.warns(DataWarning, match="no edges"):
            correlation_graph(torch.full((3, 9), 0.01), -1)

    def test_too_few_days(self):
        with pytest.raises(DataError, match="two days or more"):
            correlation_graph(CLOSE[:, :1])
        with pytest.raises(DataError, match="40 days, but a window has 41"):
            dataset(41)
        with pytest.raises(DataError, match="more than 40 days"):
            next_returns(CLOSE, 40)
        assert num_windows(3, 5) == 0

    @pytest.mark.parametrize("size", [1e-300, 1e-160, 1e150, 1e300])
    def test_returns_of_any_size(self, size):
        returns = next_returns(CLOSE)
        truth = np.corrcoef(returns.numpy())
        edges, weights = correlation_graph(returns * size, -1)
        np.testing.assert_allclose(weights, truth[edges[0], edges[1]].astype(np.float32), rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("bonus", [float("nan"), float("inf"), -0.1])
    def test_a_bonus_out_of_range(self, bonus):
        with pytest.raises(ValueError, match="sector_bonus"):
            correlation_graph(next_returns(CLOSE), sectors="aabb", sector_bonus=bonus)


class TestFloat32:
    @pytest.mark.parametrize("value", [1e39, 1e60, -1e60, 3.5e38])
    def test_weights_too_large(self, value, tmp_path):
        matrix = np.array([[0, value], [value, 0]])
        np.save(tmp_path / "a.npy", matrix)
        for call in (lambda: graph_from_adjacency(matrix), lambda: read_adjacency(tmp_path / "a.npy")):
            with pytest.raises(DataError, match=r"row 0, column 1 is .*too large for float32"):
                call()
        with pytest.raises(DataError, match=r"edge 1 is .* weights that float32 holds"):
            to_adjacency(torch.tensor([[0, 1], [1, 0]]), torch.tensor([1.0, value], dtype=torch.float64), 2)

    def test_weights_that_round_to_zero_are_not_edges(self):
        edges, weights = graph_from_adjacency(np.array([[0, 1e-60, 1], [1e-60, 0, 0], [1, 0, 0]]))
        assert edges.tolist() == [[0, 2], [2, 0]]
        assert weights.tolist() == [1, 1]

    def test_the_largest_weights(self):
        largest = float(np.finfo(np.float32).max)
        _, weights = graph_from_adjacency(np.array([[0, largest], [largest, 0]]))
        assert weights.tolist() == [largest, largest]

    def test_edges_of_other_nodes(self):
        for edges in ([[0, 4], [1, 0]], [[-1, 0], [0, 1]]):
            with pytest.raises(IndexError, match=r"expected nodes in \[0, 4\)"):
                to_adjacency(torch.tensor(edges), torch.ones(2), 4)


NPY = {
    "cut": lambda whole: whole[:-5],
    "head": lambda whole: whole[:40],
    "empty": lambda whole: b"",
    "brace": lambda whole: whole.replace(b"(3, 3)", b"(3, 3 "),
    "archive": lambda whole: b"PK\x03\x04" + whole,
    "pickle": lambda whole: b"\x80\x04K\x01.",
    "size": lambda whole: whole.replace(b"(3, 3), }" + b" " * 12, b"(3" + b"0" * 12 + b", 3), }"),
    "version": lambda whole: whole[:6] + b"\x09\x09" + whole[8:],
    "binary": lambda whole: bytes(range(256)),
}


@pytest.mark.parametrize("change", NPY.values(), ids=NPY)
def test_damaged_adjacency_files(change, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 3)))
    (tmp_path / "a.npy").write_bytes(change((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(DataError, match=r"a.npy is not a readable \.npy file of numbers") as caught:
        read_adjacency(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)
