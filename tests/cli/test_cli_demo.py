"""The demo, and what an experiment fits on its training days alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hiermt import data
from hiermt.cli import demo, options, speed
from hiermt.cli.experiment import Experiment
from hiermt.cli.main import main
from hiermt.cli.settings import Settings
from support.price_tables import bars, fails

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
STOCKS, DAYS = 5, 330
FILES = {
    *("model.safetensors", "config.json", "metrics.json", "predictions.csv", "curves.png", "confusion.png"),
    *("run.json", "report.html"),
}


class TestDemo:
    @pytest.fixture(autouse=True)
    def _prices(self):
        try:
            data.load_sp500()
        except ImportError as error:
            pytest.skip(str(error))

    def test_small(self, tmp_path, capsys):
        pytest.importorskip("torch_geometric")
        assert main(["demo", "--days", "400", "--epochs", "1", "--out", str(tmp_path), "--device", "cpu"]) == 0
        output = capsys.readouterr()
        for text in ("20 stocks, 400 days", "survivorship", "PyG eager", "majority", "confusion.png", "gain"):
            assert text in output.out
        assert "9 of the 13 features" in output.err
        assert {path.name for path in tmp_path.iterdir()} == FILES

    def test_without_pyg_it_says_so_and_continues(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(speed, "has_pyg", lambda: False)
        assert main(["demo", "--days", "400", "--epochs", "1", "--out", str(tmp_path)]) == 0
        assert "PyG is not installed" in capsys.readouterr().out
        assert {path.name for path in tmp_path.iterdir()} == FILES

    def test_epochs_fit_the_seconds(self):
        parser = options.argparse.Namespace(seconds=60, epochs=20)
        assert demo.fitting_epochs(0.1, 100, parser) == 5
        assert demo.fitting_epochs(0.001, 100, parser) == 20
        assert demo.fitting_epochs(10, 100, parser) == 1
        parser.seconds = 0
        assert demo.fitting_epochs(10, 100, parser) == 20

    def test_too_few_days(self, tmp_path, capsys):
        fails(capsys, "demo", "--days", "100", "--out", tmp_path, match="too few", silent=False)


class TestExperiment:
    def test_scale_and_graph_do_not_see_past_the_training_span(self):
        prices = data.read_prices(bars(STOCKS, DAYS))
        settings = Settings(window=8, correlation=-1)
        cut = Experiment.prepare(data.compute_features(prices), settings).split.train_days + data.WARM_UP
        noise = np.random.default_rng(1).uniform(0.5, 1.5, (STOCKS, DAYS - cut))
        changed = {name: getattr(prices, name).copy() for name in ("open", "high", "low", "close")}
        for array in changed.values():
            array[:, cut:] *= noise
        found = [
            Experiment.prepare(data.compute_features(p), settings)
            for p in (prices, dataclasses.replace(prices, **changed))
        ]
        before, after = found
        assert torch.equal(before.scale.mean, after.scale.mean)
        assert torch.equal(before.scale.deviation, after.scale.deviation)
        assert torch.equal(before.dataset.edge_weight, after.dataset.edge_weight)
        train = before.split.train
        assert torch.equal(before.labels_of(train), after.labels_of(train))
        assert torch.equal(before.dataset.windows[train[-1]], after.dataset.windows[train[-1]])
        assert not torch.equal(before.dataset.series, after.dataset.series)
