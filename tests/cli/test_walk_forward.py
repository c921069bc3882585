"""Walk-forward spans against scikit-learn, and that no training knows what its test span measures."""

from __future__ import annotations

import itertools
import json

import pytest

from hiermt.cli import walk_forward
from hiermt.cli.main import main
from hiermt.cli.settings import Settings
from hiermt.data import DataError
from support.price_tables import bars, fails

selection = pytest.importorskip("sklearn.model_selection")
pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("days", "folds", "horizon", "validation"), [(200, 4, 1, 0.1), (300, 2, 5, 0.0), (90, 3, 3, 0.3)]
)
def test_spans(days, folds, horizon, validation):
    settings = Settings(window=10, horizon=horizon, validation=validation)
    found = list(walk_forward.splits(days, settings, folds))
    windows = days - 10 - horizon + 1
    expected = list(selection.TimeSeriesSplit(folds, gap=horizon).split(range(windows)))
    assert len(found) == folds
    for split, (before, test) in zip(found, expected, strict=True):
        assert list(split.test) == test.tolist()
        assert (split.validation or split.train)[-1] == before[-1]
        assert split.train[0] == 0 and bool(split.validation) == bool(validation)
        # Each label of the days before is known on the last day of the first test window, and so for validation.
        parts = [split.train, *([split.validation] if validation else []), split.test]
        for earlier, later in itertools.pairwise(parts):
            assert earlier[-1] + 9 + horizon < later[0] + 9 + 1
        assert split.test[-1] + 9 + horizon < days
    assert found[-1].test[-1] == windows - 1


def test_too_short():
    for days, folds in ((14, 5), (12, 2), (5, 2)):
        with pytest.raises(DataError, match=rf"--walk-forward {folds}: {days} days are too few"):
            list(walk_forward.splits(days, Settings(window=10), folds))


def test_the_command(tmp_path, capsys):
    bars(4, 220).to_csv(tmp_path / "p.csv", index=False)
    command = ["evaluate", "--walk-forward", "2", "--prices", str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")]
    assert main([*command, "--epochs", "1", "--window", "6", "--hidden", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [fold["fold"] for fold in found["folds"]] == [1, 2]
    assert sum(fold["span"]["days"] for fold in found["folds"]) == found["test"]["span"]["days"]
    assert found["folds"][0]["span"]["last"] < found["folds"][1]["span"]["first"]
    counts = [fold["decision"]["count"] for fold in found["folds"]]
    assert sum(counts) == found["test"]["decision"]["count"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["walk_forward"] == 2
    fails(capsys, *command[:2], "200", *command[3:], match="too few")
