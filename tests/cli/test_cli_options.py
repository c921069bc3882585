"""Options: from a file, from one class of settings, wrong ones; the exit codes; what a terminal and a pipe get."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import zlib

import pytest

from hiermt import data
from hiermt.cli import config_file, epochs, info, main, output
from hiermt.cli.main import FAILED, INTERRUPTED, USER_ERROR, build_parser
from hiermt.cli.settings import Settings
from support.price_tables import fails

COMMANDS = next(action for action in build_parser()._actions if action.dest == "command").choices


def parsed(tmp_path, content, *arguments, command="train"):
    file = tmp_path / "options.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    argv = [command, *arguments, "--config", str(file)]
    return build_parser().parse_args(config_file.expand(argv, COMMANDS))


def test_the_correlation_is_one_number():
    default = inspect.signature(data.correlation_graph).parameters["threshold"].default
    assert default == data.CORRELATION == Settings().correlation


class TestConfig:
    def test_sets_options_and_the_command_line_comes_before_it(self, tmp_path):
        content = {"prices": "p.csv", "out": "m", "epochs": 7, "learning_rate": 0.5, "batch-size": 3, "gcn": True}
        args = parsed(tmp_path, content, "--epochs", "9")
        assert (str(args.prices), args.epochs, args.batch_size, args.gcn) == ("p.csv", 9, 3, True)
        assert Settings.of(args) == Settings(epochs=9, learning_rate=0.5, batch_size=3, gcn=True)
        assert not parsed(tmp_path, {**content, "correlation": -0.5}, "--no-gcn").gcn
        assert parsed(tmp_path, {**content, "lr": 1e-4, "patience": None}).patience == Settings().patience

    def test_an_option_of_a_group_replaces_the_other(self, tmp_path):
        args = parsed(tmp_path, {"prices": "p.csv", "out": "m"}, "--features", "f.csv")
        assert args.prices is None and str(args.features) == "f.csv"

    def test_the_record_of_another_command(self, tmp_path):
        record = {"command": "train", "options": {"prices": "p.csv", "epochs": 3, "test": 0.3}}
        args = parsed(tmp_path, record, "--walk-forward", "3", command="evaluate")
        assert args.epochs == 3 and str(args.prices) == "p.csv"

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ('{"epoch": 3}', "train has no option 'epoch'; did you mean 'epochs'?"),
            ('{"help": true}', "train has no option 'help'"),
            ('{"config": "x"}', "train has no option 'config'"),
            ('{"epochs": [3]}', "'epochs': expected a text or a number, got [3]"),
            ('{"epochs": true}', "'epochs': expected a text or a number, got True"),
            ('{"gcn": 1}', "'gcn' is a switch; expected true or false, got 1"),
            ("[1]", "expected a JSON object"),
            ('{"epochs": 1, "epochs": 2}', "not valid JSON (a key is there twice)"),
            ("{", "not valid JSON"),
            ("[" * 9999, "not valid JSON"),
            (b"\xff\xfe\x00".decode("latin-1"), "not valid JSON"),
        ],
    )
    def test_refused(self, tmp_path, capsys, content, text):
        (tmp_path / "c.json").write_text(content)
        line = fails(capsys, "train", "--prices", "p", "--out", tmp_path / "o", "--config", tmp_path / "c.json")
        assert text in line

    def test_a_value_is_checked_as_on_the_command_line(self, tmp_path, capsys):
        (tmp_path / "c.json").write_text('{"epochs": 0}')
        with pytest.raises(SystemExit) as stop:
            main.main(["train", "--prices", "p", "--out", "o", "--config", str(tmp_path / "c.json")])
        assert stop.value.code == USER_ERROR
        assert "expected a whole number of 1 or more, got '0'" in capsys.readouterr().err

    def test_missing(self, tmp_path, capsys):
        fails(capsys, "train", "--config", tmp_path / "no", match="no: there is no such file")
        fails(capsys, "train", "--config", tmp_path, match="there is no such file")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["train"],
        ["train", "--prices", "a", "--features", "b", "--out", "o"],
        ["train", "--prices", "a", "--out", "o", "--epo", "3"],
        ["train", "--prices", "a", "--out", "o", "--horizon", "0"],
        ["predict", "--model", "m", "--prices", "p", "--days", "2", "--rolling"],
        ["predict", "--model", "m", "--prices", "p", "extra\nline"],
        ["evaluate", "--prices", "p"],
        ["evaluate", "--model", "m", "--walk-forward", "3", "--prices", "p"],
        ["evaluate", "--walk-forward", "1", "--prices", "p"],
        ["bench", "--job", "x"],
        ["completion", "fish"],
    ],
)
def test_wrong_options_are_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    told = capsys.readouterr()
    assert stop.value.code == USER_ERROR and not told.out
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and "--help" in told.err


def test_contradictory_options(tmp_path, capsys):
    evaluate = ("evaluate", "--prices", "p")
    fails(capsys, *evaluate, "--walk-forward", 3, "--all-days", match="--all-days: only with --model")
    fails(capsys, *evaluate, "--model", tmp_path, "--epochs", 3, match="--epochs: not with --model")
    fails(capsys, *evaluate, "--model", tmp_path, "--sectors", "s", match="--sectors: not with --model")
    (tmp_path / "file").write_text("")
    fails(capsys, *evaluate, "--model", "m", "--out", tmp_path / "file", match="is a file; give a folder")


class _SafetensorError(Exception):
    __module__ = "safetensors_rust"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (zlib.error("Error -3 while decompressing"), USER_ERROR),
        (csv.Error("line contains NUL"), USER_ERROR),
        (EOFError("Compressed file ended"), USER_ERROR),
        (_SafetensorError("header too large"), USER_ERROR),
        (MemoryError(), USER_ERROR),
        (RuntimeError("any"), USER_ERROR),
        (FloatingPointError("epoch 3: the loss is nan"), FAILED),
        (IndexError("list index out of range"), FAILED),
        (StopIteration(), FAILED),
        (KeyError("x"), FAILED),
        (AssertionError(), FAILED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_is_one_line_and_an_exit_code(error, code, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(info, "run", fail)
    assert main.main(["info"]) == code
    told = capsys.readouterr()
    lines = told.err.strip().splitlines()
    assert not told.out and len(lines) == 1 and "Traceback" not in told.err
    assert lines[0] == "interrupted" if code == INTERRUPTED else lines[0].startswith("error: ")
    assert ("defect of hiermt" in lines[0]) == isinstance(error, (IndexError, StopIteration, KeyError, AssertionError))


def test_json_alone_is_on_the_standard_output(monkeypatch, capsys):
    def run(_):
        output.log.info("a line")
        output.log.warning("a\nnote")
        return {"number": 1.5, "path": os.devnull}

    monkeypatch.setattr(info, "run", run)
    assert main.main(["info", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"number": 1.5, "path": os.devnull}
    assert told.err == "a line\nnote: a note\n"
    assert main.main(["info"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("a line\n", "note: a note\n")


def test_help_has_examples_and_exit_codes(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main.main([name, "--help"])
        told = capsys.readouterr().out
        assert stop.value.code == 0 and "examples:" in told and f"hiermt {name}" in told
    with pytest.raises(SystemExit):
        main.main(["--help"])
    told = capsys.readouterr().out
    assert all(f"  {code:<4}" in told for code in (0, FAILED, USER_ERROR, INTERRUPTED))


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell, capsys):
    pytest.importorskip("shtab")
    assert main.main(["completion", shell]) == 0
    assert "walk-forward" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path, capsys):
    """The script is read by bash, which is asked as it asks when the key is pressed."""
    pytest.importorskip("shtab")
    assert main.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "prices.csv").touch()
    (tmp_path / "plots").mkdir()
    for words, expected in (
        ("tr", {"train"}),
        ("train --hor", {"--horizon"}),
        ("train --backend r", {"reference"}),
        ("completion z", {"zsh"}),
        ("train --prices p", {"prices.csv", "plots"}),
        ("train --out p", {"plots"}),
    ):
        code = f"source ./script; COMP_WORDS=(hiermt {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_hiermt; "
        code += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert {line.rstrip("/") for line in done.stdout.split()} == expected, words


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class TestTable:
    ROWS = (("Noise / Signal", "32,720", "+0.0414 [+0.0340, +0.0488]"), ("Down / Up", "1", ""))

    @pytest.mark.parametrize("wide", [20, 60, 80, 200])
    def test_within_the_width(self, wide):
        text = output.table(("", "cases", "gain"), self.ROWS, wide=wide)
        assert max(map(len, text.splitlines())) <= max(wide, 35)
        for row in self.ROWS:
            assert all(cell in text for cell in row)

    def test_many_rows_wrap(self):
        rows = [[f"S{i}", "word " * 6] for i in range(40)]
        text = output.table(("symbol", "text"), rows, wide=24)
        assert max(map(len, text.splitlines())) <= 24
        assert "[bold]" in output.table(("x",), [["[bold]"]])

    def test_width_of_a_terminal_and_of_a_pipe(self, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        assert output.width() > 1000 and output.prose("a " * 99) == "a " * 99
        monkeypatch.setenv("COLUMNS", "60")
        assert output.width() == 60 and max(map(len, output.prose("word " * 99).splitlines())) <= 60
        monkeypatch.delenv("COLUMNS")
        monkeypatch.setattr(sys, "stdout", _Terminal())
        monkeypatch.setattr(sys, "stderr", _Terminal())
        assert output.is_terminal() and output.width() == 80

    def test_characters_of_another_encoding(self):
        ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        assert output.fits_encoding("1 ± 2 ─ x…", ascii_stream) == "1 +/- 2 - x..."
        assert output.fits_encoding("1 ± 2", _Terminal()) == "1 ± 2"


METRICS = {f"{part}_{name}_loss": 0.5 for part in ("train", "test") for name in ("total", "signal", "direction")}


class TestEpochs:
    def test_a_pipe_gets_a_line_an_epoch(self, capsys):
        with output.logging_to_streams(False), epochs.Epochs(12) as watch:
            for epoch in (1, 2):
                watch(epoch, METRICS)
        told = capsys.readouterr()
        assert told.out.splitlines()[1].startswith("epoch  2/12  train 0.5000 (signal 0.5000, direction 0.5000)  valid")
        assert told.out.count("\n") == 2 and not told.err

    def test_a_terminal_gets_a_bar_with_the_losses(self, monkeypatch):
        pytest.importorskip("tqdm")
        streams = _Terminal(), _Terminal()
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with output.logging_to_streams(False), epochs.Epochs(2) as watch:
            watch(1, METRICS)
            watch._bar.refresh()
        assert not streams[0].getvalue()
        assert "train=0.5000, validation=0.5000" in streams[1].getvalue()

    def test_state(self):
        watch, again = epochs.Epochs(3, show=False), epochs.Epochs(3, show=False)
        watch(1, METRICS)
        again.load_state_dict(watch.state_dict())
        again(2, METRICS)
        assert watch.count == 1 and again.count == 2
        assert again.losses["validation_total_loss"] == [0.5, 0.5] and len(watch.losses["train_total_loss"]) == 1
