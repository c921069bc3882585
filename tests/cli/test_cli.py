"""The command line: complete artefacts or none, correct figures, and one line per user error."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hiermt import TGCN_HierarchicalMT, data
from hiermt.cli import artefacts, epochs, options, report, train
from hiermt.cli.main import FAILED, INTERRUPTED, USER_ERROR, main
from hiermt.cli.options import pick_device
from hiermt.cli.settings import Settings
from hiermt.cli.trained import Trained
from hiermt.inference import rolling
from hiermt.io.checkpoint import WEIGHTS
from support.price_tables import bars, decided, fails, ready_features

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[2]
STOCKS, DAYS = 5, 330
FILES = {
    *("model.safetensors", "config.json", "metrics.json", "predictions.csv", "curves.png", "confusion.png"),
    *("run.json", "report.html"),
}


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    path = tmp_path_factory.mktemp("prices") / "prices.csv"
    bars(STOCKS, DAYS).to_csv(path, index=False)
    return path


TRAIN = ["--epochs", "2", "--window", "8", "--hidden", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, prices):
    out = tmp_path_factory.mktemp("trained") / "model"
    assert main(["train", "--prices", str(prices), "--out", str(out), *TRAIN]) == 0
    return out


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestTrain:
    def test_artefacts(self, trained):
        assert {path.name for path in trained.iterdir()} == FILES
        metrics = json.loads((trained / "metrics.json").read_text())
        assert metrics["epochs"] == len(metrics["losses"]["train_total_loss"]) == 2
        # The span that chose the epoch is not the test span, and is not called so.
        assert {name.partition("_")[0] for name in metrics["losses"]} == {"train", "validation"}
        for score in (metrics["test"][key] for key in ("decision", "signal", "direction")):
            assert 0 <= score["majority_accuracy"] <= 1
            assert sum(map(sum, score["confusion"])) == score["count"]
        for name in ("curves.png", "confusion.png"):
            assert (trained / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def test_predictions_cover_the_test_span(self, trained):
        metrics = json.loads((trained / "metrics.json").read_text())
        rows = list(csv.DictReader((trained / "predictions.csv").open()))
        assert len(rows) == metrics["test_windows"] * STOCKS
        right = sum(row["prediction"] == row["actual"] for row in rows)
        assert right / len(rows) == pytest.approx(metrics["test"]["decision"]["accuracy"])
        # The last day of the table has no next day, so the day before is the last that can be scored.
        assert rows[-1]["date"] == str(pd.bdate_range("2020-01-01", periods=DAYS)[-2].date())
        close = bars(STOCKS, DAYS).pivot(index="Date", columns="Symbol", values="Close")
        actual = close.pct_change().shift(-1)
        for row in rows[:: len(rows) // 7]:
            value = actual.loc[row["date"], row["symbol"]]
            assert float(row["return"]) == pytest.approx(value, abs=1e-6)
            expected = "Neutral" if abs(value) <= 0.0055 else "Up" if value > 0 else "Down"
            assert row["actual"] == expected

    def test_same_seed_same_files(self, tmp_path, prices, trained):
        assert main(["train", "--prices", str(prices), "--out", str(tmp_path), *TRAIN]) == 0
        for name in ("model.safetensors", "predictions.csv", "config.json"):
            assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()

    @pytest.mark.parametrize("kind", ["gat", "gcn"])
    def test_graphs_without_edges_and_of_equal_parts(self, tmp_path, prices, capsys, kind):
        """The whole way: training, and the decisions of the model that was written."""
        matrix = np.kron(np.eye(3), np.ones((2, 2)))[:STOCKS, :STOCKS]
        np.save(tmp_path / "pairs.npy", np.kron(np.eye(5), np.ones((1, 1))))
        np.save(tmp_path / "parts.npy", matrix)
        for graph in (
            ["--correlation", "0.999"],
            ["--adjacency", str(tmp_path / "pairs.npy")],
            ["--adjacency", str(tmp_path / "parts.npy")],
        ):
            model = ["train", "--prices", str(prices), "--out", str(tmp_path / "m"), *TRAIN, *graph]
            assert main([*model, *(["--gcn"] if kind == "gcn" else [])]) == 0
            for more in ([], ["--rolling", "--out", str(tmp_path / "all.csv")]):
                assert main(["predict", "--model", str(tmp_path / "m"), "--prices", str(prices), *more]) == 0
            capsys.readouterr()

    def test_adjacency_sectors_features_and_gcn(self, tmp_path, prices, capsys):
        matrix = np.ones((STOCKS, STOCKS))
        np.save(tmp_path / "adj.npy", matrix)
        common = ["train", "--out", str(tmp_path / "m"), *TRAIN, "--gcn"]
        assert main([*common, "--prices", str(prices), "--adjacency", str(tmp_path / "adj.npy")]) == 0
        assert "20 directed edges" in capsys.readouterr().out
        (tmp_path / "sectors.csv").write_text("Symbol,Sector\n" + "".join(f"S{i},x\n" for i in range(STOCKS)))
        sectors = ["--sectors", str(tmp_path / "sectors.csv"), "--sector-bonus", "2", "--correlation", "0.9"]
        assert main([*common, "--prices", str(prices), *sectors]) == 0
        assert "20 directed edges" in capsys.readouterr().out
        table = data.compute_features(data.read_prices(prices))
        ready_features(table).to_parquet(tmp_path / "features.parquet")
        assert main([*common, "--features", str(tmp_path / "features.parquet")]) == 0
        assert "13 features" in capsys.readouterr().out

    def test_a_resumed_training_equals_an_uninterrupted_one(self, tmp_path, prices):
        def run(out, epochs, *more):
            command = [
                "train",
                "--prices",
                str(prices),
                "--out",
                str(tmp_path / out),
                *TRAIN,
                "--epochs",
                epochs,
                *more,
            ]
            assert main(command) == 0
            return snapshot(tmp_path / out)

        state = ("--checkpoint", str(tmp_path / "state"))
        whole = run("whole", "3")
        run("part", "1", *state)
        part = run("part", "3", *state, "--resume")
        for name in ("model.safetensors", "config.json", "predictions.csv"):
            assert part[name] == whole[name]
        losses = [json.loads(files["metrics.json"])["losses"] for files in (whole, part)]
        assert losses[0] == losses[1]

    def test_user_errors(self, tmp_path, prices, capsys):
        out = tmp_path / "out"
        fails(capsys, "train", "--prices", prices, "--out", out, "--resume", match="--resume: needs --checkpoint")
        fails(capsys, "train", "--prices", tmp_path / "none.csv", "--out", out, match="no such file")
        fails(capsys, "train", "--prices", prices, "--out", prices, match="is a file; give a folder")
        fails(capsys, "train", "--prices", prices, "--out", out, "--window", 300, match="too few")
        fails(capsys, "train", "--prices", prices, "--out", out, "--device", "tpu7", match="--device tpu7")
        fails(capsys, "train", "--prices", prices, "--out", out, "--adjacency", prices, match="not a readable .npy")
        bad = tmp_path / "bad.csv"
        bad.write_text(prices.read_text().replace("2020-01-03", "2020-01-99", 1))
        fails(capsys, "train", "--prices", bad, "--out", out, match="bad.csv line 4, column 'Date'")
        assert not list(out.iterdir())

    @pytest.mark.parametrize(
        "arguments", [["--epochs", "0"], ["--lr", "x"], ["--test", "1.5"], ["--features", "x"], ["--window", "2.5"]]
    )
    def test_bad_options(self, prices, tmp_path, arguments, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--prices", str(prices), "--out", str(tmp_path / "o"), *arguments])
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err

    @pytest.mark.parametrize(
        "fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "confusion.png"), KeyboardInterrupt()], ids=type
    )
    def test_a_full_disk_or_an_interruption_leaves_the_old_files(self, tmp_path, prices, monkeypatch, capsys, fault):
        command = ["train", "--prices", str(prices), "--out", str(tmp_path), *TRAIN]
        assert main(command) == 0
        before = snapshot(tmp_path)

        def fail(*_):
            raise fault

        monkeypatch.setattr(report.Report, "html", fail)
        assert main([*command, "--seed", "9"]) == (INTERRUPTED if isinstance(fault, KeyboardInterrupt) else USER_ERROR)
        assert snapshot(tmp_path) == before


class TestCtrlC:
    """A real signal in the middle of each long command: exit code 130, and every file whole."""

    @staticmethod
    def interrupting(monkeypatch, owner, name, when=lambda *_: True):
        real = getattr(owner, name)
        # A process that was started in the background ignores the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def signalled(*args, **kwargs):
            result = real(*args, **kwargs)
            if when(*args):
                os.kill(os.getpid(), signal.SIGINT)
            return result

        monkeypatch.setattr(owner, name, signalled)

    def test_training_continues_where_it_was(self, tmp_path, prices, monkeypatch, capsys):
        command = ["train", "--prices", str(prices), *TRAIN, "--epochs", "3"]
        state = ["--checkpoint", str(tmp_path / "state")]
        with monkeypatch.context() as patch:
            self.interrupting(patch, epochs.Epochs, "__call__", lambda _, epoch, __: epoch == 2)
            assert main([*command, "--out", str(tmp_path / "m"), *state]) == INTERRUPTED
        told = capsys.readouterr()
        assert told.err.strip() == f"interrupted; --resume continues from {tmp_path / 'state'}"
        assert not list((tmp_path / "m").iterdir())
        assert main([*command, "--out", str(tmp_path / "m"), *state, "--resume"]) == 0
        assert "epoch 2/3" in (told := capsys.readouterr().out) and "epoch 1/3" not in told
        assert main([*command, "--out", str(tmp_path / "whole")]) == 0
        assert (tmp_path / "m" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()

    def test_predictions_and_evaluations_leave_the_old_file(self, tmp_path, prices, trained, monkeypatch):
        common = ["--model", str(trained), "--prices", str(prices)]
        (tmp_path / "old.csv").write_text("old")
        self.interrupting(monkeypatch, rolling, "check_finite")
        assert main(["predict", *common, "--rolling", "--out", str(tmp_path / "old.csv")]) == INTERRUPTED
        assert main(["evaluate", *common, "--out", str(tmp_path / "e")]) == INTERRUPTED
        walk = ["evaluate", "--walk-forward", "2", "--prices", str(prices), "--window", "8", "--epochs", "1"]
        assert main([*walk, "--hidden", "4", "--out", str(tmp_path / "e")]) == INTERRUPTED
        assert (tmp_path / "old.csv").read_text() == "old"
        assert not list((tmp_path / "e").iterdir())


class TestPredict:
    def test_last_day(self, trained, prices, capsys):
        assert main(["predict", "--model", str(trained), "--prices", str(prices)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert str(pd.bdate_range("2020-01-01", periods=DAYS)[-1].date()) in lines[0]
        rows = decided("\n".join(lines))
        assert [row[0] for row in rows] == [f"S{i}" for i in range(STOCKS)]
        assert {row[1] for row in rows} <= set(data.CLASSES)
        for row in rows:
            assert sum(float(cell.rstrip("%")) for cell in row[2:5]) == pytest.approx(100, abs=0.2)

    def test_equals_what_the_training_wrote(self, trained, prices, tmp_path):
        out = tmp_path / "all.csv"
        assert main(["predict", "--model", str(trained), "--prices", str(prices), "--rolling", "--out", str(out)]) == 0
        every = {(row["date"], row["symbol"]): row for row in csv.DictReader(out.open())}
        assert len(every) == (DAYS - data.WARM_UP - 8 + 1) * STOCKS
        for row in csv.DictReader((trained / "predictions.csv").open()):
            ours = every[row["date"], row["symbol"]]
            assert ours["prediction"] == row["prediction"]
            assert float(ours["p_signal"]) == pytest.approx(float(row["p_signal"]), abs=2e-4)

    def test_other_stocks_and_another_order_do_not_matter(self, trained, tmp_path, prices, capsys):
        frame = bars(STOCKS, DAYS)
        extra = frame[frame.Symbol == "S0"].assign(Symbol="XX")
        shuffled = pd.concat([extra, frame[::-1]], ignore_index=True)
        shuffled.to_csv(tmp_path / "p.csv", index=False)
        outputs = []
        for path in (prices, tmp_path / "p.csv"):
            assert main(["predict", "--model", str(trained), "--prices", str(path)]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1]

    def test_confidence_one_is_all_neutral(self, trained, prices, capsys):
        assert main(["predict", "--model", str(trained), "--prices", str(prices), "--confidence", "1"]) == 0
        assert {row[1] for row in decided(capsys.readouterr().out)} == {"Neutral"}

    def test_user_errors(self, trained, prices, tmp_path, capsys):
        predict = ("predict", "--model", trained, "--prices")
        frame = bars(STOCKS, DAYS)
        frame[frame.Symbol != "S3"].to_csv(tmp_path / "few.csv", index=False)
        fails(capsys, *predict, tmp_path / "few.csv", match="no prices for S3")
        frame[["Symbol", "Date", "Close"]].to_csv(tmp_path / "close.csv", index=False)
        fails(capsys, *predict, tmp_path / "close.csv", match="no feature Intraday_Volatility")
        fails(capsys, *predict, prices, "--days", 5000, match="263 days with a full window")
        fails(capsys, "predict", "--model", tmp_path / "no", "--prices", prices, match="no such folder")
        fails(capsys, "predict", "--model", tmp_path, "--prices", prices, match="config.json")

    def test_damaged_model_folders(self, trained, prices, tmp_path, capsys):
        def variant(name, change):
            folder = tmp_path / name
            folder.mkdir()
            for file, content in snapshot(trained).items():
                (folder / file).write_bytes(content)
            change(folder)
            return "predict", "--model", folder, "--prices", prices

        def truncate(folder):
            os.truncate(folder / "model.safetensors", 500)

        def configure(change):
            def apply(folder):
                config = json.loads((folder / "config.json").read_text())
                change(config)
                (folder / "config.json").write_text(json.dumps(config))

            return apply

        fails(capsys, *variant("cut", truncate), match="model.safetensors")
        fails(capsys, *variant("json", lambda f: (f / "config.json").write_text("{")), match="config.json")
        fails(capsys, *variant("bare", configure(lambda c: c.pop("data"))), match="lacks the part 'data'")
        fails(capsys, *variant("keys", configure(lambda c: c["data"].pop("scale"))), match="damaged near 'scale'")
        fails(capsys, *variant("size", configure(lambda c: c.update(hidden_size=5))), match="does not fit")
        other = configure(lambda c: c["data"].update(weights_sha256="0"))
        fails(capsys, *variant("other", other), match="different trainings")

    def test_model_without_training_folder(self, prices, tmp_path, capsys):
        TGCN_HierarchicalMT(13).save_pretrained(tmp_path)
        fails(capsys, "predict", "--model", tmp_path, "--prices", prices, match="lacks the part 'data'")

    def test_read_gives_back_what_was_written(self, trained):
        found = Trained.read(trained)
        assert found.window == 8
        assert found.symbols == tuple(f"S{i}" for i in range(STOCKS))
        assert found.features == data.FEATURES
        assert found.edge_index.shape[0] == 2


class TestMain:
    def test_info(self, capsys):
        assert main(["info"]) == 0
        assert "hiermt" in capsys.readouterr().out

    def test_a_process_shows_no_traceback(self, tmp_path):
        command = [sys.executable, "-m", "hiermt", "train", "--prices", "none.csv", "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == USER_ERROR
        assert "Traceback" not in done.stderr
        assert "error: none.csv: there is no such file" in done.stderr

    def test_a_terminal_without_unicode(self, tmp_path):
        """Neither streams nor the locale know it. Nor do the files depend on it, in which a stock has such a name."""
        table = bars(STOCKS, DAYS).replace("S0", "SÖ")
        table.to_csv(tmp_path / "prices.csv", index=False, encoding="utf-8")
        # Figures take longer than everything else and have no text of a stream.
        code = "import os, sys; from hiermt.cli import main, report; report._image = lambda name, *_: name; "
        code += "widths = [os.environ.update(COLUMNS=w) or main.main(sys.argv[1:]) for w in ('200', '60')]; "
        code += "sys.exit(max(widths))"
        command = [sys.executable, "-c", code, "train", "--prices", "prices.csv", "--out", "model", *TRAIN]
        encoding = {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **encoding}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii() and "+/-" in done.stdout and "?" not in done.stdout
        for name in ("predictions.csv", "config.json", "report.html"):
            text = (tmp_path / "model" / name).read_text(encoding="utf-8")
            assert "SÖ" in text or "S\\u00d6" in text
        model = Trained.read(tmp_path / "model")
        assert "SÖ" in model.symbols

    def test_debug_shows_the_traceback(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HIERMT_DEBUG", "1")
        with pytest.raises(FileNotFoundError):
            main(["train", "--prices", "none.csv", "--out", str(tmp_path)])

    def test_a_defect_is_one_sentence_and_exit_code_1(self, monkeypatch, capsys):
        monkeypatch.setattr(train, "run", lambda args: [][1])
        command = ["train", "--prices", "x", "--out", "y"]
        assert main(command) == FAILED
        told = capsys.readouterr().err
        assert told.startswith("error: IndexError: list index out of range; this is a defect") and told.count("\n") == 1
        monkeypatch.setenv("HIERMT_DEBUG", "1")
        with pytest.raises(IndexError):
            main(command)

    def test_os_errors_name_the_file(self, monkeypatch, capsys, tmp_path):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")

        monkeypatch.setattr(artefacts, "check_folder", full)
        fails(capsys, "train", "--prices", "x", "--out", tmp_path, match="/disk/file: No space left on device")

    def test_devices(self):
        assert pick_device("cpu").type == "cpu"
        assert pick_device("auto").type in ("cpu", "cuda")
        with pytest.raises(ValueError, match="not usable here"):
            pick_device("cuda:99")

    def test_settings_reach_the_training(self):
        parser = options.Parser()
        Settings.add_options(parser)
        assert Settings.of(parser.parse_args([])) == Settings()
        assert Settings.of(parser.parse_args(["--lr", "0.5", "--gcn"])) == Settings(learning_rate=0.5, gcn=True)
        assert Settings.of(options.argparse.Namespace()) == Settings()
