"""Windows, split and loaders: no copies, no overlap, and batches equal to those of PyG."""

from __future__ import annotations

import ast
import importlib.util
import itertools
from pathlib import Path

import numpy
import pytest
import torch

import hiermt
from hiermt import data
from hiermt.data import DataError
from hiermt.data.window_loader import shuffled
from hiermt.testing import stock_graph
from support.properties import given, st

STOCKS, DAYS, FEATURES, WINDOW = 6, 40, 3, 5


def dataset(labelled=DAYS - 1, weights=True, stocks=STOCKS):
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(stocks, DAYS, FEATURES, generator=generator)
    edge_index, edge_weight = stock_graph(stocks, 8, 1)
    labels = [torch.randint(2, (stocks, labelled), generator=generator) if labelled else None for _ in range(2)]
    return data.WindowDataset(series, edge_index, edge_weight if weights else None, WINDOW, *labels)


def test_data_never_imports_the_model():
    for path in Path(data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert all(not str(name).startswith(("hiermt.nn", "hiermt.ops", "hiermt.functional")) for name in names)


class TestWindows:
    def test_are_views(self):
        series = torch.randn(2, 10, 3)
        view = data.windows(series, 4)
        assert view.shape == (7, 2, 4, 3)
        assert view.untyped_storage().data_ptr() == series.untyped_storage().data_ptr()
        for w in range(7):
            assert torch.equal(view[w], series[:, w : w + 4])
        series[1, 5, 2] = 99.0
        assert view[2, 1, 3, 2] == 99.0

    def test_edges(self):
        assert data.windows(torch.zeros(2, 4, 3), 4).shape == (1, 2, 4, 3)
        assert data.windows(torch.zeros(0, 4, 3), 2).shape == (3, 0, 2, 3)
        assert data.num_windows(3, 4) == 0
        with pytest.raises(DataError, match="3 days, but a window has 4"):
            data.windows(torch.zeros(2, 3, 3), 4)
        with pytest.raises(ValueError, match="window"):
            data.windows(torch.zeros(2, 3, 3), 0)
        with pytest.raises(DataError, match="series"):
            data.windows(torch.zeros(2, 3), 1)


class TestSplit:
    @given(
        days=st.integers(30, 400),
        window=st.integers(1, 30),
        horizon=st.integers(1, 5),
        validation=st.sampled_from([0, 0.1, 0.3]),
        extra=st.integers(0, 7),
    )
    def test_no_part_touches_what_a_label_of_an_earlier_part_read(self, days, window, horizon, validation, extra):
        gap = window + horizon - 1 + extra
        try:
            split = data.time_split(days, window, horizon=horizon, validation=validation, gap=gap)
        except DataError:
            assert days < 3 * (window + horizon + gap) + 30
            return
        parts = [part for part in (split.train, split.validation, split.test) if part]
        for earlier, later in itertools.pairwise(parts):
            last_day_read = earlier[-1] + window - 1 + horizon
            assert later[0] > last_day_read
        assert parts[-1][-1] + window - 1 + horizon == days - 1
        assert split.train_days == split.train[-1] + window + horizon
        assert split.train_days <= parts[1][0]

    def test_shares(self):
        split = data.time_split(1000, 25, validation=0.1, test=0.2)
        usable = len(split.train) + len(split.validation) + len(split.test)
        assert usable == 1000 - 25 - 2 * 25
        assert len(split.test) == round(0.2 * usable)
        assert not data.time_split(1000, 25, validation=0).validation

    def test_refused(self):
        with pytest.raises(ValueError, match="gap: expected 25 days or more"):
            data.time_split(1000, 25, gap=24)
        with pytest.raises(ValueError, match="shares"):
            data.time_split(1000, 25, test=0.7, validation=0.4)
        with pytest.raises(ValueError, match="shares"):
            data.time_split(1000, 25, test=0)
        with pytest.raises(ValueError, match="window"):
            data.time_split(1000, 0)
        with pytest.raises(DataError, match="too few for windows of 25"):
            data.time_split(80, 25)


class TestDataset:
    def test_labels_come_from_the_day_after_the_window(self):
        close = torch.rand(STOCKS, DAYS, dtype=torch.float64) + 1
        dates = torch.arange(DAYS).numpy().astype("datetime64[D]")
        table = data.FeatureTable(torch.randn(STOCKS, DAYS, 2), ("a", "b"), tuple("ABCDEF"), dates, close)
        whole = data.WindowDataset.from_table(table, *stock_graph(STOCKS, 8, 1), WINDOW)
        batch = next(iter(data.WindowLoader(whole, [7], 1)))
        last = 7 + WINDOW - 1
        returns = close[:, last + 1] / close[:, last] - 1
        assert batch.signal_labels[0].tolist() == (returns.abs() > 0.0055).long().tolist()
        assert batch.direction_labels[0].tolist() == (returns > 0.0055).long().tolist()
        assert whole.num_labelled == DAYS - WINDOW
        assert whole.num_windows == DAYS - WINDOW + 1

    def test_refused(self):
        good = dataset()
        with pytest.raises(DataError, match="NaN or infinite"):
            data.WindowDataset(good.series / 0, good.edge_index, good.edge_weight, WINDOW)
        with pytest.raises(DataError, match="both or neither"):
            data.WindowDataset(good.series, good.edge_index, None, WINDOW, good.signal_labels)
        with pytest.raises(DataError, match="expected 0 and 1 only"):
            data.WindowDataset(
                good.series, good.edge_index, None, WINDOW, good.signal_labels + 1, good.direction_labels
            )
        with pytest.raises(DataError, match=r"signal_labels: expected \[6, days\]"):
            data.WindowDataset(
                good.series, good.edge_index, None, WINDOW, good.signal_labels[1:], good.direction_labels
            )
        with pytest.raises(DataError, match="the same shape"):
            data.WindowDataset(
                good.series, good.edge_index, None, WINDOW, good.signal_labels[:, 1:], good.direction_labels
            )
        with pytest.raises(IndexError, match="edge_index"):
            data.WindowDataset(good.series, good.edge_index + 3, None, WINDOW)
        with pytest.raises(DataError, match="a window has 41"):
            data.WindowDataset(good.series, good.edge_index, None, 41)


class TestWindowLoader:
    def test_a_batch(self):
        whole = dataset()
        loader = data.WindowLoader(whole, range(10), 4)
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        assert [batch.x.size(0) for batch in batches] == [4, 4, 2]
        batch = batches[1]
        assert batch.x.shape == (4, STOCKS, WINDOW, FEATURES)
        assert batch.num_nodes == 4 * STOCKS
        for i, start in enumerate(batch.starts.tolist()):
            assert start == 4 + i
            assert torch.equal(batch.x[i], whole.series[:, start : start + WINDOW])
            assert torch.equal(batch.signal_labels[i], whole.signal_labels[:, start + WINDOW - 1])
            assert torch.equal(batch.direction_labels[i], whole.direction_labels[:, start + WINDOW - 1])

    def test_graph_is_shared_and_prepared_once(self):
        first, second = list(data.WindowLoader(dataset(), range(8), 4))
        assert first.graph is second.graph
        assert first.edge_index is second.edge_index
        assert first.to("cpu") is first

    def test_shuffling_is_reproducible_and_leaves_the_global_state_alone(self):
        def epochs(seed):
            loader = data.WindowLoader(dataset(), range(20), 3, shuffle=True, seed=seed)
            return [torch.cat([batch.starts for batch in loader]).tolist() for _ in range(2)]

        state = torch.get_rng_state()
        first, again, other = epochs(1), epochs(1), epochs(2)
        assert torch.equal(state, torch.get_rng_state())
        assert first == again
        assert first != other
        assert first[0] != first[1]
        assert sorted(first[0]) == list(range(20))

    def test_drop_last(self):
        loader = data.WindowLoader(dataset(), range(10), 4, drop_last=True)
        assert [batch.x.size(0) for batch in loader] == [4, 4]
        assert len(loader) == 2

    def test_default_is_every_labelled_window(self):
        starts = torch.cat([batch.starts for batch in data.WindowLoader(dataset())])
        assert starts.tolist() == list(range(DAYS - WINDOW))

    def test_without_labels_every_window_counts(self):
        whole = dataset(labelled=0)
        batches = list(data.WindowLoader(whole, None, 100))
        assert batches[0].signal_labels is None
        assert batches[0].starts.numel() == DAYS - WINDOW + 1

    def test_one_window_without_a_label_removes_all_labels(self):
        batch = next(iter(data.WindowLoader(dataset(), [0, DAYS - WINDOW])))
        assert batch.direction_labels is None

    def test_refused(self):
        with pytest.raises(DataError, match=r"\[0, 36\).*got 0 to 36"):
            data.WindowLoader(dataset(), range(37))
        with pytest.raises(DataError, match="starts"):
            data.WindowLoader(dataset(), [-1])
        with pytest.raises(DataError, match="no batch"):
            data.WindowLoader(dataset(), [])
        with pytest.raises(DataError, match="no batch"):
            data.WindowLoader(dataset(), [1], 2, drop_last=True)
        with pytest.raises(ValueError, match="batch_size"):
            data.WindowLoader(dataset(), [1], 0)
        with pytest.raises(ValueError, match="batch_size"):
            data.WindowLoader(dataset(), [1], -3)
        with pytest.raises(DataError, match=r"expected a vector, got \[1, 2\]"):
            data.WindowLoader(dataset(), torch.tensor([[0, 1]]))

    @pytest.mark.parametrize(
        "starts",
        [
            [0.5],
            [1.0],
            [True, False],
            ["1"],
            torch.tensor([0.5]),
            torch.tensor([True, False]),
            torch.ones(30, dtype=torch.bool).tolist(),
        ],
        ids=str,
    )
    def test_start_days_are_integers(self, starts):
        makers = [data.WindowLoader]
        makers += [data.PygDataset] if importlib.util.find_spec("torch_geometric") else []
        for make in makers:
            with pytest.raises(TypeError, match="starts: expected integers, got"):
                make(dataset(), starts)

    @pytest.mark.parametrize("starts", [[-1], [3, -2], torch.tensor([-1]), torch.tensor([0, -5], dtype=torch.int32)])
    def test_negative_start_days_are_refused(self, starts):
        with pytest.raises(DataError, match=r"starts: expected days in \[0, 36\)"):
            data.WindowLoader(dataset(), starts)

    def test_any_kind_of_integer_is_a_start_day(self):
        for starts in ([1, 2], range(1, 3), torch.tensor([1, 2], dtype=torch.int32), numpy.array([1, 2]), iter([1, 2])):
            assert next(iter(data.WindowLoader(dataset(), starts))).starts.tolist() == [1, 2]

    def test_shuffled_is_a_permutation_that_one_number_decides(self):
        generator = torch.Generator().manual_seed(0)
        orders = [shuffled(1000, generator) for _ in range(50)]
        for order in orders:
            assert torch.equal(order.sort().values, torch.arange(1000))
        # Every place sees every part of the positions: 50 orders average 499.5 with a deviation of 41.
        assert (torch.stack(orders).double().mean(0) - 499.5).abs().max() < 5 * 41
        state = generator.get_state()
        following = shuffled(1000, generator)
        generator.set_state(state)
        assert torch.equal(shuffled(1000, generator), following)
        assert shuffled(0, generator).numel() == 0


class TestPyg:
    @pytest.fixture(autouse=True)
    def _pyg(self):
        pytest.importorskip("torch_geometric")

    @pytest.mark.parametrize("weights", [True, False])
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_same_numbers_as_the_fast_loader(self, shuffle, weights):
        whole = dataset(weights=weights)
        fast = data.WindowLoader(whole, range(3, 20), 4, shuffle, seed=5)
        slow = data.pyg_loader(whole, range(3, 20), 4, shuffle, seed=5)
        assert len(fast) == len(slow)
        model = hiermt.TGCN_HierarchicalMT(FEATURES, 4, backend="reference")
        for ours, theirs in zip(fast, slow, strict=True):
            assert torch.equal(ours.x.flatten(0, 1), theirs.x)
            assert torch.equal(ours.signal_labels.flatten(), theirs.signal_labels)
            assert torch.equal(ours.direction_labels.flatten(), theirs.direction_labels)
            a = model(ours.x, ours.edge_index, ours.edge_weight)
            b = model(theirs.x, theirs.edge_index, theirs.edge_weight if weights else None)
            for mine, other in zip(a, b, strict=True):
                torch.testing.assert_close(mine.flatten(0, 1), other)

    def test_trains_the_same(self):
        histories = []
        for make in (data.WindowLoader, data.pyg_loader):
            torch.manual_seed(0)
            model = hiermt.TGCN_HierarchicalMT(FEATURES, 4, backend="reference")
            optimizer = torch.optim.Adam(model.parameters())
            train, test = make(dataset(), range(16), 4, True), make(dataset(), range(22, 30), 4)
            histories.append(
                hiermt.train_hierarchical(model, optimizer, None, train, test, num_epochs=2, progress=False)
            )
        torch.testing.assert_close(histories[0][0], histories[1][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(histories[0][1], histories[1][1], rtol=1e-4, atol=1e-5)

    def test_worker_processes(self):
        whole = dataset()
        here, there = (data.pyg_loader(whole, range(8), 4, num_workers=n) for n in (0, 1))
        for a, b in zip(here, there, strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.signal_labels, b.signal_labels)

    def test_missing_pyg_names_the_command(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install 'hiermt\[pyg\]'"):
            data.pyg_loader(dataset())

    def test_decides_on_a_fast_batch(self):
        model = hiermt.TGCN_HierarchicalMT(FEATURES, 4, backend="reference")
        batch = next(iter(data.WindowLoader(dataset(labelled=0), range(5))))
        predictions, confidences, parts = hiermt.inference_hierarchical(model, batch)
        assert predictions.shape == confidences.shape == (5, STOCKS)
        names = ("signal_preds", "signal_conf", "direction_preds", "direction_conf", "p_down", "p_neutral", "p_up")
        assert set(parts) == set(names)
        assert torch.equal(sum(parts[name] for name in ("p_down", "p_neutral", "p_up")) > 0.999999, confidences > 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_batches_on_the_gpu():
    here = data.WindowLoader(dataset(), range(20), 4, shuffle=True, seed=3)
    there = data.WindowLoader(dataset(), range(20), 4, shuffle=True, seed=3, device="cuda")
    for a, b in zip(here, there, strict=True):
        assert b.x.is_cuda
        assert b.graph.device.type == "cuda"
        assert torch.equal(a.x, b.x.cpu())
        assert torch.equal(a.signal_labels, b.signal_labels.cpu())
        assert a.to("cuda").x.is_cuda
