"""Features, labels and graphs against independent formulas, and without look-ahead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hiermt import data
from hiermt.data import DataError, DataWarning

pd = pytest.importorskip("pandas")


def feature_table(seed=0, stocks=4, days=5):
    """The 13 published names over random values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(stocks, days, len(data.FEATURES), generator=generator)
    dates = np.datetime64("2020-01-01") + np.arange(days)
    close = torch.rand(stocks, days, generator=generator, dtype=torch.float64) + 1
    return data.FeatureTable(values, data.FEATURES, tuple(f"S{i}" for i in range(stocks)), dates, close)


class TestTable:
    def test_select(self):
        table = feature_table()
        assert torch.equal(table.select(["RSI"]).values[..., 0], table.values[..., 7])
        assert table.select_symbols(["S2", "S0"]).symbols == ("S2", "S0")
        assert torch.equal(table.select_symbols(["S2"]).close[0], table.close[2])
        with pytest.raises(DataError, match="no feature volume"):
            table.select(["volume"])
        with pytest.raises(DataError, match="no stock XX"):
            table.select_symbols(["XX"])

    def test_shapes_must_agree(self):
        table = feature_table()
        with pytest.raises(DataError, match="expected \\[stocks, days, features\\]"):
            dataclasses.replace(table, names=table.names[:3])
        with pytest.raises(DataError, match="close: expected"):
            dataclasses.replace(table, close=table.close[:, 1:])


class TestReadyFeatures:
    def frame(self):
        days = pd.bdate_range("2024-01-01", periods=3)
        rows = [(s, d, 10.0 + i, i / 7, -i / 3) for s in ("B", "A") for i, d in enumerate(days)]
        return pd.DataFrame(rows, columns=["Symbol", "Date", "Close", "f1", "f2"])

    def test_order_of_stocks_and_columns_is_kept(self, tmp_path):
        frame = self.frame()
        frame.sample(frac=1, random_state=0).sort_values("Symbol", ascending=False, kind="stable").to_csv(
            tmp_path / "f.csv", index=False
        )
        for source in (frame, frame.set_index(["Symbol", "Date"]), tmp_path / "f.csv"):
            table = data.read_features(source)
            assert table.symbols == ("B", "A")
            assert table.names == ("f1", "f2")
            np.testing.assert_allclose(table.values[0, :, 0], [0, 1 / 7, 2 / 7], rtol=1e-6)
            np.testing.assert_array_equal(table.close[1], [10, 11, 12])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.drop(columns="Close"), "no Close column"),
            (lambda f: f.drop(columns=["f1", "f2"]), "no feature beside"),
            (lambda f: f.rename(columns={"f1": "Unnamed: 3"}), "column 'Unnamed: 3' has no name"),
            (lambda f: f.assign(Close=[1, 2, 0, 3, 4, 5]), "row 2, column 'Close': the price is 0"),
            (lambda f: f.assign(Close=[1, 2, 1, -3, 4, 5]), "row 3, column 'Close': the price is -3"),
            (lambda f: f.rename(columns={"f1": " "}), "column ' ' has no name"),
            (lambda f: f.drop(index=2), "B has 0 rows for 2024-01-03.*missing='keep'"),
            (lambda f: pd.concat([f, f.iloc[[4]]]), "A has 2 rows for 2024-01-02"),
            (lambda f: f.assign(f2=[0, 1, None, 3, 4, 5]), "row 2, column 'f2': the cell is empty"),
            (lambda f: f.assign(f2=list("01x345")), "row 2, column 'f2': 'x' is not a number"),
        ],
    )
    def test_refused(self, change, message):
        with pytest.raises(DataError, match=message):
            data.read_features(change(self.frame()))

    def test_a_written_index_is_not_a_feature(self, tmp_path):
        self.frame().to_csv(tmp_path / "f.csv")
        self.frame()[::-1].to_csv(tmp_path / "reversed.csv")
        for source in (tmp_path / "f.csv", tmp_path / "reversed.csv", self.frame().reset_index()):
            with pytest.warns(DataWarning, match="numbers the rows, so it is left out"):
                assert data.read_features(source).names == ("f1", "f2")


class TestScale:
    def test_standardises(self):
        values = torch.randn(3, 50, 4) * 5 + 2
        scaled = data.Scale.fit(values).apply(values).double()
        torch.testing.assert_close(scaled.mean((0, 1)), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0)
        torch.testing.assert_close(scaled.std((0, 1), correction=0), torch.ones(4, dtype=torch.float64))

    def test_constant_feature_becomes_zero(self):
        values = torch.full((2, 5, 1), 3.0)
        assert (data.Scale.fit(values).apply(values) == 0).all()

    def test_empty_is_refused(self):
        with pytest.raises(DataError, match="one row or more"):
            data.Scale.fit(torch.zeros(2, 0, 3))


class TestLabels:
    def test_by_hand(self):
        close = torch.tensor([[100.0, 101.0, 101.2, 100.0, 100.5]], dtype=torch.float64)
        returns = data.next_returns(close)
        torch.testing.assert_close(returns[0, 0].item(), 0.01)
        signal, direction = data.hierarchical_labels(returns)
        assert signal.tolist() == [[1, 0, 1, 0]]
        assert direction.tolist() == [[1, 0, 0, 0]]
        assert data.three_classes(signal, direction).tolist() == [[2, 1, 0, 1]]
        assert signal.dtype == direction.dtype == torch.int64

    def test_threshold_itself_is_noise(self):
        returns = torch.tensor([0.0055, -0.0055, 0.00551, -0.00551], dtype=torch.float64)
        signal, direction = data.hierarchical_labels(returns)
        assert signal.tolist() == [0, 0, 1, 1]
        assert direction.tolist() == [0, 0, 1, 0]

    def test_horizon(self):
        close = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
        assert data.next_returns(close, 2).tolist() == [[3.0, 3.0]]

    def test_a_label_reads_exactly_one_day_ahead(self):
        close = torch.rand(2, 30, dtype=torch.float64) + 1
        changed = close.clone()
        changed[:, 20:] *= 2
        before, after = data.next_returns(close), data.next_returns(changed)
        assert torch.equal(before[:, :19], after[:, :19])
        assert not torch.equal(before[:, 19], after[:, 19])

    def test_refused(self):
        with pytest.raises(ValueError, match="horizon"):
            data.next_returns(torch.ones(2, 5), 0)
        for threshold in (-1, float("nan")):
            with pytest.raises(ValueError, match="threshold"):
                data.hierarchical_labels(torch.ones(2), threshold)
        with pytest.raises(DataError, match="NaN"):
            data.hierarchical_labels(torch.tensor([float("nan")]))


class TestGraph:
    def returns(self):
        torch.manual_seed(0)
        common = torch.randn(1, 300)
        return torch.cat([common + 0.5 * torch.randn(3, 300), torch.randn(2, 300)])

    def test_equals_numpy(self):
        returns = self.returns()
        edge_index, edge_weight = data.correlation_graph(returns, 0.3)
        expected = np.corrcoef(returns.double().numpy())
        np.fill_diagonal(expected, 0)
        expected[expected <= 0.3] = 0
        np.testing.assert_allclose(data.to_adjacency(edge_index, edge_weight, 5), expected, atol=1e-6)
        assert edge_index.dtype == torch.int64
        assert edge_index.size(1) == 6

    def test_symmetric_without_loops(self):
        edge_index, edge_weight = data.correlation_graph(self.returns(), -1)
        dense = torch.zeros(5, 5).index_put((edge_index[0], edge_index[1]), edge_weight)
        assert torch.equal(dense, dense.t())
        assert (edge_index[0] != edge_index[1]).all()
        assert edge_index.size(1) == 20
        assert (edge_weight < 0).any()

    def test_negative_correlation_gives_no_edge(self):
        returns = torch.randn(1, 50)
        edge_index, _ = data.correlation_graph(torch.cat([returns, -returns, 2 * returns]), 0.5)
        assert edge_index.tolist() == [[0, 2], [2, 0]]

    def test_sector_bonus_joins_a_sector(self):
        sectors = ["a", "a", "a", "b", "b"]
        edge_index, edge_weight = data.correlation_graph(self.returns(), 0.5, sectors=sectors, sector_bonus=0.7)
        pairs = set(map(tuple, edge_index.t().tolist()))
        assert {(3, 4), (4, 3)} <= pairs
        assert edge_weight.max() <= 1

    def test_sectors_of(self):
        assert data.sectors_of(["x", "y"], {"y": "Tech"}) == ["(none: x)", "Tech"]

    def test_constant_stock_is_isolated(self):
        returns = self.returns()
        returns[1] = 0.01
        edge_index, _ = data.correlation_graph(returns, -1)
        assert 1 not in edge_index.flatten().tolist()

    def test_refused(self):
        returns = self.returns()
        with pytest.raises(ValueError, match="threshold"):
            data.correlation_graph(returns, 1)
        with pytest.raises(ValueError, match="sectors"):
            data.correlation_graph(returns, sectors=["a"])
        with pytest.raises(DataError, match="NaN"):
            data.correlation_graph(returns / 0)

    def test_adjacency_file_round_trip(self, tmp_path):
        edge_index, edge_weight = data.correlation_graph(self.returns(), 0.3)
        matrix = data.to_adjacency(edge_index, edge_weight, 5)
        np.save(tmp_path / "adj.npy", matrix + np.eye(5, dtype=np.float32))
        index, weight = data.read_adjacency(tmp_path / "adj.npy", 5)
        assert torch.equal(index, edge_index)
        assert torch.equal(weight, edge_weight)

    def test_adjacency_refused(self, tmp_path):
        good = np.ones((3, 3))
        nan, lopsided = good.copy(), good.copy()
        nan[1, 2] = np.nan
        lopsided[0, 1] = 5
        for matrix, message in [
            (np.ones((2, 3)), "square"),
            (nan, "row 1, column 2 is nan"),
            (lopsided, "not symmetric, row 0, column 1 is 5"),
            (np.array([["a"]]), "real numbers"),
        ]:
            np.save(tmp_path / "a.npy", matrix)
            with pytest.raises(DataError, match=message):
                data.read_adjacency(tmp_path / "a.npy")
        np.save(tmp_path / "a.npy", good)
        with pytest.raises(DataError, match=r"expected \[4, 4\]"):
            data.read_adjacency(tmp_path / "a.npy", 4)
        with pytest.raises(FileNotFoundError):
            data.read_adjacency(tmp_path / "b.npy")

    def test_pickled_and_damaged_files_are_not_executed(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (pytest.fail, ("a pickle was executed",))

        np.save(tmp_path / "p.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
        (tmp_path / "d.npy").write_bytes(b"\x93NUMPY\x01\x00nonsense")
        (tmp_path / "e.npy").write_bytes(b"")
        for name in "pde":
            with pytest.raises(DataError, match="not a readable"):
                data.read_adjacency(tmp_path / f"{name}.npy")

    def test_graph_of_the_training_days_ignores_the_test_days(self):
        close = torch.from_numpy(np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.02, (4, 200)), axis=1)))
        split = data.time_split(200, 10)
        changed = close.clone()
        changed[:, split.train_days :] = torch.rand(4, 200 - split.train_days).double() + 1
        graphs = [data.correlation_graph(data.next_returns(c)[:, : split.train_days - 1], -1) for c in (close, changed)]
        assert torch.equal(graphs[0][0], graphs[1][0])
        assert torch.equal(graphs[0][1], graphs[1][1])


class TestFeaturesOfSomeStocks:
    @staticmethod
    def table(*symbols):
        days = pd.bdate_range("2024-01-01", periods=12)
        parts = [
            pd.DataFrame({"Symbol": symbol, "Date": days, "Close": np.arange(12) + 10.0 + i, "f": np.arange(12.0) - i})
            for i, symbol in enumerate(symbols)
        ]
        return pd.concat(parts, ignore_index=True)

    @pytest.mark.parametrize("fault", ["empty", "text", "short", "twice", "negative"])
    def test_faults_of_other_stocks_are_ignored(self, fault):
        table = self.table("A", "DEAD", "B").astype({"f": object})
        dead = table.Symbol == "DEAD"
        if fault == "short":
            table = table[~dead | (table.index % 2 == 0)]
        elif fault == "twice":
            table = pd.concat([table, table[dead]])
        elif fault == "negative":
            table.loc[dead, "Close"] = -1.0
        else:
            table.loc[dead, "f"] = None if fault == "empty" else "n/a"
        with pytest.raises(DataError):
            data.read_features(table)
        read = data.read_features(table.reset_index(drop=True), symbols=["B", "A"])
        assert read.symbols == ("B", "A")
        np.testing.assert_array_equal(read.values[0, :, 0], np.arange(12) - 2.0)
        np.testing.assert_array_equal(read.close[1], np.arange(12) + 10.0)

    def test_symbols_are_checked(self):
        with pytest.raises(DataError, match="no prices for C"):
            data.read_features(self.table("A", "B"), symbols=["A", "C"])
        with pytest.raises(TypeError, match="symbols: expected a sequence of strings"):
            data.read_features(self.table("A", "B"), symbols="A")
        with pytest.raises(DataError, match="differ by case only"):
            data.read_features(self.table("A", "a"))

    def test_labels_are_made_of_the_adjusted_close(self):
        table = self.table("A", "B")
        table["Adj_Close"] = table.Close / np.where(table.index < 18, 2, 1)
        with pytest.warns(DataWarning, match="'Adj_Close' is used in place of 'Close'"):
            read = data.read_features(table)
        assert read.names == ("f",)
        np.testing.assert_array_equal(read.close.flatten(), table.Adj_Close)
        assert data.read_features(table.drop(columns="Close")).names == ("f",)

    @pytest.mark.parametrize("name", ["row", "id", "level_0", "Unnamed: 0", "#", "RowNumber"])
    def test_row_numbers_are_not_a_feature(self, name):
        table = self.table("A", "B")
        table.insert(0, name, np.arange(len(table)))
        for symbols in (None, ["B"]):
            with pytest.warns(DataWarning, match="numbers the rows"):
                assert data.read_features(table, symbols=symbols).names == ("f",)
