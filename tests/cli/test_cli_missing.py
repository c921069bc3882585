"""Stocks that list late, leave or miss days, through the command line."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiermt import data
from hiermt.cli import evaluation, forecasts, scores
from hiermt.cli.experiment import Experiment
from hiermt.cli.main import main
from hiermt.cli.settings import Settings
from support.price_tables import bars, decided, fails

pytestmark = pytest.mark.hostile("absent")

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
STOCKS, DAYS = 6, 300
TRAIN = ["--epochs", "1", "--window", "8", "--hidden", "4", "--device", "cpu"]


def table() -> Any:
    """S1 lists late, S2 leaves in the test span, S3 misses days there, S4 the last one."""
    frame = bars(STOCKS, DAYS)
    days = np.unique(frame.Date)
    absent = (frame.Symbol == "S1") & (frame.Date < days[120])
    absent |= (frame.Symbol == "S2") & (frame.Date > days[280])
    absent |= (frame.Symbol == "S3") & frame.Date.isin(days[[265, 266, 290]])
    absent |= (frame.Symbol == "S4") & (frame.Date == days[-1])
    return frame[~absent]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("missing")
    table().to_csv(folder / "prices.csv", index=False)
    arguments = ["--prices", str(folder / "prices.csv"), "--missing", "keep", "--out", str(folder / "model")]
    assert main(["train", *arguments, *TRAIN]) == 0
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_training_uses_every_day_and_writes_who_was_there(folder: Path) -> None:
    rows = rows_of(folder / "model" / "predictions.csv")
    there = set(zip(table().Symbol, table().Date.astype(str), strict=True))
    assert all((row["symbol"], row["date"]) in there for row in rows)
    days = sorted({row["date"] for row in rows})
    expected = [(symbol, day) for day in days for symbol in sorted(table().Symbol.unique()) if (symbol, day) in there]
    assert [(row["symbol"], row["date"]) for row in rows] == expected
    # S2 has no price after its last day, so that no one knows what happened.
    wide = table().pivot(index="Date", columns="Symbol", values="Close")
    returns = wide.shift(-1) / wide - 1
    for row in rows:
        value = returns.loc[row["date"], row["symbol"]]
        assert (row["actual"], row["return"]) == ("", "") if np.isnan(value) else row["return"] == f"{value:.6f}"
    metrics = json.loads((folder / "model" / "metrics.json").read_text())
    known = [row for row in rows if row["actual"]]
    assert metrics["test"]["decision"]["count"] == len(known) < len(rows)
    right = np.mean([row["prediction"] == row["actual"] for row in known])
    assert metrics["test"]["decision"]["accuracy"] == pytest.approx(right)
    described = json.loads((folder / "model" / "config.json").read_text())["data"]
    assert described["trained_on"][0] == str(np.unique(table().Date)[60])[:10]
    assert json.loads((folder / "model" / "run.json").read_text())["options"]["missing"] == "keep"


def test_predict_leaves_out_who_is_absent_today(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(folder / "model"), "--prices", str(folder / "prices.csv"), "--missing", "keep"]
    capsys.readouterr()
    assert main(["predict", *arguments]) == 0
    output = capsys.readouterr().out
    assert [row[0] for row in decided(output)] == ["S0", "S1", "S3", "S5"]
    assert "absent on that day, so without a decision: S2, S4" in output
    assert main(["predict", *arguments, "--rolling", "--out", str(folder / "rolling.csv")]) == 0
    assert f"rolling.csv: {len(rows_of(folder / 'rolling.csv')):,} rows of " in capsys.readouterr().out
    found = {(row["date"], row["symbol"]): row for row in rows_of(folder / "rolling.csv")}
    for row in rows_of(folder / "model" / "predictions.csv"):
        assert found[row["date"], row["symbol"]]["p_up"] == row["p_up"]


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prices", str(folder / "prices.csv"), "--missing", "keep", "--json"]
    capsys.readouterr()
    out = folder / "evaluation"
    assert main(["evaluate", "--model", str(folder / "model"), *arguments, "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)["test"]
    trained = json.loads((folder / "model" / "metrics.json").read_text())["test"]
    rows = rows_of(out / "predictions.csv")
    assert found["decision"]["count"] == sum(row["actual"] != "" for row in rows)
    assert found["span"]["last"] == trained["span"]["last"]
    walk = ["--walk-forward", "2", *TRAIN]
    assert main(["evaluate", *walk, *arguments]) == 0
    assert len(json.loads(capsys.readouterr().out)["folds"]) == 2


def test_the_same_table_without_the_option_is_cut_or_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "other"
    frame = table()
    frame = frame[frame.Date < np.unique(frame.Date)[260]]
    frame.to_csv(folder / "late.csv", index=False)
    gone = frame[~((frame.Symbol == "S0") & frame.Date.isin(np.unique(frame.Date)[150:160]))]
    gone.to_csv(folder / "gap.csv", index=False)
    fails(capsys, "train", "--prices", folder / "gap.csv", "--out", out, *TRAIN, match="at most 5 are filled")
    assert main(["train", "--prices", str(folder / "late.csv"), "--out", str(out), *TRAIN]) == 0
    assert "histories are unequal" in capsys.readouterr().err


def test_a_gap_to_fill_beside_what_fills_none_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "--model", folder / "model", "--max-gap", "3"]
    fails(
        capsys,
        *arguments,
        "--prices",
        folder / "prices.csv",
        "--missing",
        "keep",
        match="--max-gap 3: no gap is filled",
    )
    fails(capsys, *arguments, "--features", folder / "prices.csv", match="filled with --features")


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_without_a_label_is_refused_before_training(part: str) -> None:
    found = data.compute_features(data.read_prices(table(), missing="keep"))
    assert found.present is not None
    settings = Settings(window=8, hidden=4)
    windows = getattr(data.time_split(found.num_days, 8), part)
    gone = found.present.clone()
    gone[:, windows.start + 7 : windows.stop + 7] = False
    with pytest.raises(data.DataError, match=f"no stock is present on a day with a label in the {part} windows"):
        Experiment.prepare(dataclasses.replace(found, present=gone), settings)


class TestMeasures:
    """Cases that do not count change nothing: the figures are those of the others alone."""

    def test_scores_and_forecasts_of_columns(self) -> None:
        random = np.random.default_rng(0)
        p = torch.rand(40, 5, 4, dtype=torch.float64)
        p[..., 1], p[..., 3] = 1 - p[..., 0], 1 - p[..., 2]
        truth = torch.from_numpy(random.integers(0, 3, (40, 5)))
        chosen = torch.from_numpy(random.integers(0, 3, (40, 5)))
        masked, gone = truth.clone(), p.clone()
        masked[:, 2], gone[:, 2] = -1, torch.nan
        rest = [0, 1, 3, 4]
        assert scores.evaluate(chosen, gone, masked) == scores.evaluate(chosen[:, rest], p[:, rest], truth[:, rest])
        weights = evaluation.day_weights(40, 1)
        joint, every = random.dirichlet([1, 1, 1], (40, 5)), np.ones((40, 4), dtype=bool)
        found = forecasts.classes(joint, masked.numpy(), chosen.numpy(), masked.numpy() >= 0, weights)
        expected = forecasts.classes(joint[:, rest], truth[:, rest].numpy(), chosen[:, rest].numpy(), every, weights)
        assert found == expected

    def test_rank_correlations_of_those_who_are_there(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        random = np.random.default_rng(1)
        score, returns = random.normal(size=(30, 6)), random.normal(size=(30, 6))
        there = random.random((30, 6)) < 0.7
        there[4] = [True, True, False, False, False, False]
        score[~there], returns[~there] = np.nan, np.nan
        found = evaluation.rank_correlations(score, returns, there)
        for day in range(30):
            expected = stats.spearmanr(score[day, there[day]], returns[day, there[day]]).statistic
            assert np.isnan(found[day]) if there[day].sum() < 3 else found[day] == pytest.approx(expected)
