"""The names of the features go with table, scale, dataset, model and checkpoint; where two differ, they are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from hiermt import (
    TGCN,
    DynamicGraph,
    Graph,
    LivePredictor,
    TGCN_HierarchicalMT,
    data,
    from_reference,
    inference_hierarchical,
    predict_rolling,
    train_hierarchical,
)
from hiermt.data import DataError, Scale, WindowDataset, WindowLoader
from hiermt.training import adam
from hiermt.training.resume import load_state, save_state

pytest.importorskip("safetensors")
NAMES = data.FEATURES
SWAPPED = (NAMES[1], NAMES[0], *NAMES[2:])
OTHER = (*NAMES[:8], "macd", *NAMES[9:])
STOCKS, DAYS, WINDOW = 4, 30, 5
EDGES = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])

SWAP_MESSAGE = (
    r"feature 0 is 'LogReturn', that of the model 'SimpleReturn' \(the same features in another order\); give"
)
OTHER_MESSAGE = r"feature 8 is 'macd', that of the model 'MACD'; give the features SimpleReturn, .* in this order"
CASES = pytest.mark.parametrize(("names", "message"), [(SWAPPED, SWAP_MESSAGE), (OTHER, OTHER_MESSAGE)])


def table(names=NAMES):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(STOCKS, DAYS, len(names), generator=generator)
    close = torch.rand(STOCKS, DAYS, generator=generator, dtype=torch.float64) + 1
    dates = np.datetime64("2020-01-01") + np.arange(DAYS)
    return data.FeatureTable(values, tuple(names), tuple("ABCD"), dates, close)


def dataset(names=NAMES):
    return WindowDataset.from_table(table(names), EDGES, None, WINDOW)


def model(names=NAMES, **options):
    torch.manual_seed(0)
    return TGCN_HierarchicalMT(13, 4, 1, feature_names=names, **options)


class TestModel:
    @pytest.mark.parametrize("names", [NAMES, list(NAMES), np.array(NAMES), (str(n) for n in NAMES)], ids=type)
    def test_any_sequence_of_strings(self, names):
        found = model(names)
        assert found.feature_names == NAMES
        assert all(type(name) is str for name in found.feature_names)
        assert found.config["feature_names"] == list(NAMES)

    def test_none_is_the_default(self):
        plain = TGCN_HierarchicalMT(13)
        assert plain.feature_names is None
        assert "feature_names" not in plain.config

    def test_assigned_later_and_taken_back(self):
        plain = model(None)
        plain.feature_names = SWAPPED
        assert plain.feature_names == plain.tgcn_backbone.feature_names == SWAPPED
        assert copy.deepcopy(plain).feature_names == SWAPPED
        plain.feature_names = None
        assert plain.feature_names is plain.tgcn_backbone.feature_names is None

    @pytest.mark.parametrize(
        ("names", "error", "message"),
        [
            (NAMES[:12], ValueError, "expected 13 names, one per feature, got 12"),
            ((*NAMES, "x"), ValueError, "expected 13 names, one per feature, got 14"),
            ((), ValueError, "got 0"),
            ((*NAMES[:12], "RSI"), ValueError, "'RSI' is there twice"),
            ("SimpleReturn!", TypeError, "expected a sequence of 13 strings"),
            (13, TypeError, "expected a sequence of 13 strings, got 13"),
            (True, TypeError, "expected a sequence"),
            (range(13), TypeError, "expected strings, got 0"),
            ((*NAMES[:12], None), TypeError, "expected strings, got None"),
            ((*NAMES[:12], b"x"), TypeError, "expected strings, got b'x'"),
        ],
    )
    def test_refused(self, names, error, message):
        with pytest.raises(error, match=f"feature_names: .*{message}"):
            model(names)
        kept = model()
        with pytest.raises(error, match=f"feature_names: .*{message}"):
            kept.feature_names = names
        assert kept.feature_names == NAMES

    def test_the_forward_does_not_depend_on_them(self):
        x = torch.randn(STOCKS, WINDOW, 13)
        for named, plain in zip(model()(x, EDGES), model(None)(x, EDGES), strict=True):
            assert torch.equal(named, plain)

    def test_pyg_twin(self):
        pytest.importorskip("torch_geometric")
        from hiermt.testing.pyg import like

        named = model()
        x = torch.randn(STOCKS, WINDOW, 13)
        torch.testing.assert_close(like(named)(x, EDGES, None)[0], named(x, EDGES)[0], rtol=1e-4, atol=1e-5)


class TestCheckpoint:
    @pytest.mark.parametrize("names", [NAMES, SWAPPED, None])
    def test_round_trip(self, tmp_path, names):
        model(names).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config.get("feature_names") == (None if names is None else list(names))
        for again in (
            TGCN_HierarchicalMT.from_pretrained(tmp_path),
            from_reference(tmp_path),
            from_reference(tmp_path, layout="NFT"),
        ):
            assert again.feature_names == names

    def test_backbone(self, tmp_path):
        TGCN(13, 3, 4, feature_names=NAMES).save_pretrained(tmp_path / "bare")
        assert TGCN.from_pretrained(tmp_path / "bare").feature_names == NAMES
        model().tgcn_backbone.save_pretrained(tmp_path / "part")
        assert TGCN.from_pretrained(tmp_path / "part").feature_names == NAMES

    @pytest.mark.parametrize("value", ["SimpleReturn", ["a"], [1] * 13, 5])
    def test_damaged(self, tmp_path, value):
        model().save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "feature_names": value}))
        with pytest.raises(ValueError, match="feature_names"):
            TGCN_HierarchicalMT.from_pretrained(tmp_path)

    def test_from_reference(self, tmp_path):
        named = model()
        assert from_reference(named, verbose=False).feature_names == NAMES
        state = named.state_dict()
        torch.save(state, tmp_path / "published.pt")
        for source in (state, tmp_path / "published.pt"):
            taken = from_reference(source, verbose=False)
            assert taken.feature_names is None
            taken.feature_names = NAMES
            with pytest.raises(ValueError, match=SWAP_MESSAGE):
                inference_hierarchical(taken, next(iter(WindowLoader(dataset(SWAPPED)))))


class TestData:
    def test_they_go_from_table_to_batch(self):
        scale = Scale.fit(table().values, table().names)
        found = WindowDataset.from_table(table(), EDGES, None, WINDOW, scale=scale)
        graphs = DynamicGraph([(0, Graph(EDGES, None, STOCKS))])
        changing = WindowDataset.with_graphs(found.series, graphs, WINDOW, feature_names=list(NAMES))
        assert scale.names == found.feature_names == changing.feature_names == NAMES
        assert next(iter(WindowLoader(found))).feature_names == NAMES
        assert WindowDataset(found.series, EDGES, None, WINDOW).feature_names is None

    def test_a_dataset_takes_as_many_names_as_features(self):
        with pytest.raises(ValueError, match="expected 13 names, one per feature, got 2"):
            WindowDataset(table().values, EDGES, None, WINDOW, feature_names=("a", "b"))

    @pytest.mark.parametrize("names", [SWAPPED, OTHER])
    def test_a_scale_of_other_features(self, names):
        scale = Scale.fit(table().values, names)
        with pytest.raises(ValueError, match=r"table: feature \d is '.*', that of the scale '"):
            WindowDataset.from_table(table(), EDGES, None, WINDOW, scale=scale)
        plain = Scale.fit(table().values)
        assert plain.names is None
        WindowDataset.from_table(table(), EDGES, None, WINDOW, scale=plain)

    def test_a_scale_of_fewer_features(self):
        for count in (1, 9):
            with pytest.raises(DataError, match=rf"expected \[..., {count}\] as the scale has"):
                Scale.fit(table().values[..., :count]).apply(table().values)
            with pytest.raises(DataError, match=rf"expected \[..., 13\] as the scale has, got \[4, 30, {count}\]"):
                Scale.fit(table().values).apply(table().values[..., :count])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_value_that_is_none_is_named(self, value):
        values = table().values.clone()
        values[1, 2, 7] = value
        with pytest.raises(DataError, match=f"feature RSI of B on 2020-01-03 is {value:g} in torch.float32"):
            dataclasses.replace(table(), values=values)
        with pytest.raises(DataError, match="series: stock 1, day 2, feature RSI is NaN or infinite"):
            WindowDataset(values, EDGES, None, WINDOW, feature_names=NAMES)
        with pytest.raises(DataError, match="feature RSI holds NaN or infinity"):
            Scale.fit(values, NAMES)
        with pytest.raises(DataError, match="feature 7 holds NaN or infinity"):
            Scale.fit(values)

    def test_a_constant_feature_scales_to_zero_exactly(self):
        for value in (0.1, 1 / 3, 1e-30, 7e8):
            values = torch.full((5, 777, 1), value)
            assert (Scale.fit(values).apply(values) == 0).all()

    @pytest.mark.parametrize("deviation", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_scale_that_is_none(self, deviation):
        with pytest.raises(DataError, match="finite means and deviations above 0"):
            Scale(torch.zeros(1), torch.tensor([deviation]))
        with pytest.raises(DataError, match="expected a mean and a deviation"):
            Scale(torch.zeros(2), torch.ones(3))

    def test_a_name_twice(self):
        with pytest.raises(DataError, match="'RSI' is there twice"):
            table().select(["RSI", "RSI"])

    def test_ready_features_are_judged_in_the_dtype_handed_out(self):
        pd = pytest.importorskip("pandas")
        rows = [(s, day, 1.0, 1e39 if s == "B" else 1.0) for s in "AB" for day in ("2020-01-01", "2020-01-02")]
        frame = pd.DataFrame(rows, columns=["Symbol", "Date", "Close", "huge"])
        with pytest.raises(DataError, match=r"feature huge of B on 2020-01-01 is inf in torch.float32"):
            data.read_features(frame)
        assert data.read_features(frame, dtype=torch.float64).values.max() == 1e39
        with pytest.raises(TypeError, match="dtype"):
            data.read_features(frame, dtype=torch.int32)


class TestFed:
    """Every way in which a model is fed by something that carries names."""

    @CASES
    def test_training(self, names, message):
        named = model()
        before = copy.deepcopy(named.state_dict())
        good, bad = WindowLoader(dataset()), WindowLoader(dataset(names))
        for loaders, source in (((bad, None), "train_dataloader"), ((good, bad), "test_dataloader")):
            with pytest.raises(ValueError, match=f"{source}: {message}"):
                train_hierarchical(named, adam(named), None, *loaders, num_epochs=1, progress=False)
        assert all(torch.equal(before[key], value) for key, value in named.state_dict().items())

    @CASES
    def test_training_from_pyg_batches(self, names, message):
        pytest.importorskip("torch_geometric")
        named = model()
        with pytest.raises(ValueError, match=f"train_dataloader: {message}"):
            train_hierarchical(named, adam(named), None, data.pyg_loader(dataset(names)), None, num_epochs=1)

    def test_without_names_on_one_side(self):
        for names, fed in ((None, NAMES), (NAMES, NAMES)):
            named = model(names)
            loader = WindowLoader(dataset(fed))
            train_hierarchical(named, adam(named), None, loader, None, num_epochs=1, progress=False)
            assert named.feature_names == names
        plain = WindowDataset(table().values, EDGES, None, WINDOW)
        predict_rolling(model(), plain.series, plain.graph, WINDOW, feature_names=plain.feature_names)

    @pytest.mark.parametrize("names", [SWAPPED, OTHER])
    def test_a_resumed_training(self, tmp_path, names):
        path = tmp_path / "state"
        named = model()
        loader = WindowLoader(dataset())
        options = {"num_epochs": 1, "progress": False, "checkpoint": path}
        train_hierarchical(named, adam(named), None, loader, None, **options)
        other = model(names)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(
            ValueError,
            match=re.escape(str(path))
            + rf": feature \d is '(SimpleReturn|MACD)', that of the model '({names[0]}|macd)'",
        ):
            train_hierarchical(other, adam(other), None, WindowLoader(dataset(names)), None, **options, resume=True)
        assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
        again = model()
        train_hierarchical(again, adam(again), None, loader, None, **options, resume=True)
        assert torch.equal(again.signal_head.weight, named.signal_head.weight)

    def test_a_state_without_names_fits_a_model_with_names(self, tmp_path):
        plain = model(None)
        save_state(tmp_path / "state", plain, adam(plain), [], {"epoch": 1})
        named = model()
        assert load_state(tmp_path / "state", named, adam(named), [])["epoch"] == 1

    @CASES
    def test_rolling_and_live(self, names, message):
        source = dataset(names)
        with pytest.raises(ValueError, match=f"series: {message}"):
            predict_rolling(model(), source.series, source.graph, WINDOW, feature_names=source.feature_names)
        with pytest.raises(ValueError, match=f"series: {message}"):
            LivePredictor(model(), source.graph, WINDOW, feature_names=names)
        with pytest.raises(ValueError, match="expected 13 names"):
            predict_rolling(model(), source.series, source.graph, WINDOW, feature_names=names[:3])
        decided = predict_rolling(model(), source.series, source.graph, WINDOW, feature_names=NAMES)
        live = LivePredictor(model(), source.graph, WINDOW, feature_names=NAMES).extend(source.series)
        torch.testing.assert_close(live.probabilities[0], decided.probabilities[-1])

    @CASES
    def test_inference(self, names, message):
        batch = next(iter(WindowLoader(dataset(names))))
        with pytest.raises(ValueError, match=f"data: {message}"):
            inference_hierarchical(model(), batch)
        inference_hierarchical(model(None), batch)
        inference_hierarchical(model(names), batch)

    @CASES
    def test_wrapped_models(self, names, message):
        wrapped = torch.nn.DataParallel(model())
        with pytest.raises(ValueError, match=message):
            train_hierarchical(wrapped, adam(wrapped), None, WindowLoader(dataset(names)), None, num_epochs=1)

    def test_another_number_of_features(self):
        from hiermt.data.feature_names import check_same

        with pytest.raises(ValueError, match="has 9 features, the model 13; 'Intraday_Volatility' is missing here"):
            check_same("x", data.CLOSE_FEATURES, NAMES)
        with pytest.raises(ValueError, match="has 13 features, the model 9; 'Intraday_Volatility' is only here"):
            check_same("x", NAMES, data.CLOSE_FEATURES)
