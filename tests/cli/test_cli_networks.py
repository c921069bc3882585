"""Every network and task through the command line: train, predict, evaluate, and the same weights again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiermt.cli.kinds import NETWORKS, Kind, decisions_of_classes
from hiermt.cli.main import main
from hiermt.cli.trained import Trained
from hiermt.io.checkpoint import WEIGHTS
from support.price_tables import bars, fails

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
STOCKS, DAYS = 5, 300
TRAIN = ["--epochs", "2", "--window", "8", "--hidden", "4", "--device", "cpu"]
CASES = {
    "tgcn-classes": ("tgcn", "auto"),
    "a3tgcn-binary": ("a3tgcn", "binary"),
    "tgcn-regression": ("tgcn", "regression"),
    "multitask-two-headed": ("multitask", "auto"),
    "multitask-several": ("multitask", "several"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prices of which the last stock lists late, and a model of each case."""
    folder = tmp_path_factory.mktemp("networks")
    frame = bars(STOCKS, DAYS)
    frame[~((frame.Symbol == "S4") & (frame.Date < np.unique(frame.Date)[90]))].to_csv(folder / "p.csv", index=False)
    return folder


def table(folder: Path) -> list[str]:
    return ["--prices", str(folder / "p.csv"), "--missing", "keep"]


def trained(folder: Path, case: str) -> Path:
    """The model of a case, trained once."""
    network, task = CASES[case]
    out = folder / case
    if not out.exists():
        arguments = ["--network", network, "--task", task, "--out", str(out)]
        assert main(["train", *table(folder), *arguments, *TRAIN]) == 0
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.mark.parametrize("case", CASES)
class TestEveryCase:
    def test_train_predict_and_evaluate(self, folder: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
        out = trained(folder, case)
        found = Trained.read(out)
        network = CASES[case][0]
        assert type(found.model) is NETWORKS[network] and found.kind.name == case.removeprefix(f"{network}-")
        metrics = json.loads((out / "metrics.json").read_text())
        assert len(metrics["losses"]["train_total_loss"]) == metrics["epochs"] == 2
        report = (out / "report.html").read_text()
        assert "<h2>Run</h2>" in report and metrics["test"]["task"] == found.kind.name
        # A network with one head for the outcomes has no head that decided alone, and no base rate is drawn.
        two_headed = found.kind.name == "two-headed"
        assert all((text in report) == two_headed for text in ("decided alone", "one head alone", "Dashed: the loss"))
        rows = rows_of(out / "predictions.csv")
        assert len(rows) == metrics["test_windows"] * STOCKS
        wide = bars(STOCKS, DAYS).pivot(index="Date", columns="Symbol", values="Close")
        returns = wide.shift(-1) / wide - 1
        for row in rows[::17]:
            assert float(row["return"]) == pytest.approx(returns.loc[row["date"], row["symbol"]], abs=1e-6)

        capsys.readouterr()
        arguments = ["--model", str(out), *table(folder), "--json"]
        assert main(["predict", *arguments, "--rolling", "--out", str(folder / "all.csv")]) == 0
        decided = json.loads(capsys.readouterr().out)["decisions"]
        every = {(row["date"], row["symbol"]): row for row in rows_of(folder / "all.csv")}
        assert len(decided) == len(every)
        for row in rows:
            same = every[row["date"], row["symbol"]]
            assert all(row[name] == same[name] for name in same)
        assert main(["evaluate", *arguments, "--all-days", "--out", str(folder / "evaluation")]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["test"]["span"]["days"] > metrics["test_windows"]
        assert (folder / "evaluation" / "report.html").exists()

    def test_the_record_makes_the_same_weights_again(self, folder: Path, case: str, tmp_path: Path) -> None:
        out = trained(folder, case)
        assert main(["train", "--config", str(out / "run.json"), "--out", str(tmp_path / "again")]) == 0
        assert (tmp_path / "again" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()

    def test_resume(self, folder: Path, case: str, tmp_path: Path) -> None:
        network, task = CASES[case]
        options = [
            *table(folder),
            "--network",
            network,
            "--task",
            task,
            *TRAIN,
            "--checkpoint",
            str(tmp_path / "state"),
        ]
        options += ["--resume", "--out", str(tmp_path / "model")]
        assert main(["train", *options, "--epochs", "1"]) == 0
        assert main(["train", *options]) == 0
        assert (tmp_path / "model" / WEIGHTS).read_bytes() == (trained(folder, case) / WEIGHTS).read_bytes()


def test_figures_of_a_binary_task(folder: Path) -> None:
    out = trained(folder, "a3tgcn-binary")
    rows, found = rows_of(out / "predictions.csv"), json.loads((out / "metrics.json").read_text())["test"]
    up = np.array([float(row["return"]) > 0.0055 for row in rows])
    p = np.array([float(row["probability"]) for row in rows])
    assert found["count"] == len(rows)
    assert found["accuracy"] == pytest.approx(np.mean((p > 0.5) == up), abs=0.01)
    assert found["base_accuracy"] == pytest.approx(max(up.mean(), 1 - up.mean()))
    assert found["forecast"]["brier"] == pytest.approx(((p - up) ** 2).mean(), abs=1e-3)


def test_figures_of_a_regression(folder: Path) -> None:
    out = trained(folder, "tgcn-regression")
    rows, found = rows_of(out / "predictions.csv"), json.loads((out / "metrics.json").read_text())["test"]
    actual, forecast = (np.array([float(row[name]) for row in rows]) for name in ("return", "predicted_return"))
    assert found["mae"] == pytest.approx(np.abs(forecast - actual).mean(), abs=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(((forecast - actual) ** 2).mean()), abs=1e-6)
    assert found["base_rmse"] == pytest.approx(actual.std(), abs=1e-6)
    assert np.abs(forecast).max() < 0.2  # in the unit of the returns, not of their deviation


def test_a_confusion_of_another_task_does_not_stay(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(trained(folder, "tgcn-classes"), tmp_path / "model")
    assert (tmp_path / "model" / "confusion.png").exists()
    options = [*table(folder), "--network", "tgcn", "--task", "regression", *TRAIN, "--out", str(tmp_path / "model")]
    assert main(["train", *options]) == 0
    assert not (tmp_path / "model" / "confusion.png").exists()


@pytest.mark.parametrize(
    ("task", "figure", "column"),
    [("classes", "decision", "direction AUC"), ("binary", "forecast", "AUC"), ("regression", "mae", "base RMSE")],
)
def test_walk_forward(
    task: str, figure: str, column: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["evaluate", "--walk-forward", "2", *table(folder), *TRAIN, "--network", "tgcn", "--task", task]
    capsys.readouterr()
    assert main([*options, "--json", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert len(found["folds"]) == 2
    assert all(figure in one for one in [*found["folds"], found["test"]])
    assert column in shown.err
    # All folds together are as many cases as the folds one by one, and the rows of the file are those.
    days = [fold["span"]["days"] for fold in found["folds"]]
    assert found["test"]["span"]["days"] == sum(days)
    rows = [row for row in rows_of(tmp_path / "out" / "predictions.csv") if row["return"]]
    counted = [one.get("count") or one["decision"]["count"] for one in [*found["folds"], found["test"]]]
    assert len(rows) == counted[-1] == sum(counted[:-1])
    if task == "regression":
        errors = [abs(float(row["predicted_return"]) - float(row["return"])) for row in rows]
        assert sum(errors) / len(errors) == pytest.approx(found["test"]["mae"], abs=2e-6)
        weighted = sum(n * fold["mae"] for n, fold in zip(counted, found["folds"], strict=False)) / counted[-1]
        assert found["test"]["mae"] == pytest.approx(weighted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "tgcn", "--task", "two-headed"], "use --network hierarchical or multitask"),
        (["--task", "classes"], "use --network tgcn or a3tgcn"),
        (["--network", "hierarchical", "--task", "several"], "use --network multitask"),
        (["--network", "tgcn", "--confidence", "0.6"], "--confidence: P(signal)"),
    ],
)
def test_contradictions(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Before the table is read, of which something would be shown.
    fails(capsys, "train", *table(folder), "--out", folder / "none", *TRAIN, *arguments, match=message)
    assert not (folder / "none").exists()


def test_predict_refuses_another_confidence_before_it_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained(folder, "tgcn-classes")
    capsys.readouterr()
    fails(
        capsys, "predict", "--model", out, "--prices", folder / "none.csv", "--confidence", "0.6", match="--confidence"
    )


def test_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--network", "--task"):
        with pytest.raises(SystemExit, match="2"):
            main(["train", "--prices", "p.csv", "--out", "x", option, "lstm"])
        assert "expected one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"name": "lstm"}, {"name": "regression", "scale": 0.0}, {"name": "regression", "shift": "x"}, 3, {}]
)
def test_a_damaged_task_is_refused(
    folder: Path, change: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained(folder, "tgcn-regression"), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["task"] = change
    path.write_text(json.dumps(config))
    fails(
        capsys, "predict", "--model", tmp_path / "model", *table(folder), match="config.json is damaged", silent=False
    )


def test_decisions_of_classes() -> None:
    p = torch.tensor([[[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [torch.nan] * 3]], dtype=torch.float64)
    found = decisions_of_classes(torch.tensor([[1, 1, -1]]), p)
    torch.testing.assert_close(found.classes, p, equal_nan=True)
    torch.testing.assert_close(found.confidences, torch.tensor([[0.5, 1.0, torch.nan]]).double(), equal_nan=True)
    torch.testing.assert_close(found.probabilities[0, 0], torch.tensor([0.5, 0.5, 0.4, 0.6]).double())
    assert found.probabilities[0, 2].isnan().all()


def test_an_older_folder_is_of_two_heads() -> None:
    assert Kind.parsed(None) == Kind("two-headed")
