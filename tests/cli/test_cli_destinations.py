"""Outputs that cannot be written, or would replace what is read, and Ctrl-C where no training runs yet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hiermt import data
from hiermt.cli import artefacts, bench, speed
from hiermt.cli.main import INTERRUPTED, main
from support.price_tables import bars, fails

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
TRAIN = ["--epochs", "1", "--window", "8", "--hidden", "4", "--device", "cpu"]


ROOT = Path(__file__).resolve().parents[2]
WAYS_OUT = ("give another path", "give another folder", "give a folder", "give the path of a file")


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prices") / "prices.csv"
    bars(5, 330).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prices: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    assert main(["train", "--prices", str(prices), "--out", str(out), *TRAIN]) == 0
    return out


# Each command that writes, with its arguments up to the name of what it writes.
COMMANDS = {
    "train": ["train", "--prices", "{folder}/prices.csv", "--out"],
    "checkpoint": ["train", "--prices", "{folder}/prices.csv", "--out", "{folder}", "--checkpoint"],
    "tensorboard": ["train", "--prices", "{folder}/prices.csv", "--out", "{folder}", "--tensorboard"],
    "predict": ["predict", "--model", "{folder}/model", "--prices", "{folder}/prices.csv", "--out"],
    "evaluate": ["evaluate", "--model", "{folder}/model", "--prices", "{folder}/prices.csv", "--out"],
    "walk forward": ["evaluate", "--walk-forward", "2", "--prices", "{folder}/prices.csv", "--out"],
    "demo": ["demo", "--out"],
}
OF_A_FILE = {"checkpoint", "predict"}


def command_of(name: str, folder: Path, target: Path) -> list[str]:
    return [word.format(folder=folder) for word in COMMANDS[name]] + [str(target)]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that may be read and not written; root gives up its rights for the test."""
    outer = Path(tempfile.mkdtemp())
    outer.chmod(0o755)
    closed = outer / "closed"
    closed.mkdir(mode=0o555)
    (outer / "open").mkdir()
    (outer / "open").chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield closed
    finally:
        if root:
            os.setresuid(0, 0, 0)
        shutil.rmtree(outer)


# The inputs are not there: they are not read before the outputs are known to be writable.
@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="needs permissions of POSIX")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_may_not_be_written(
    name: str, inside: bool, closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = closed / "new" if inside or name in OF_A_FILE else closed
    told = fails(capsys, *command_of(name, closed.parent / "open", target))
    assert str(closed) in told and told.endswith(WAYS_OUT)
    assert not list(closed.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_the_place_of_a_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    wrong = ["folder"] if name in OF_A_FILE else ["file", "link"]
    for target in (*wrong, "file/new", "link/new"):
        told = fails(capsys, *command_of(name, tmp_path / "open", tmp_path / target))
        assert str(tmp_path) in told and told.endswith(WAYS_OUT)
    assert (tmp_path / "file").read_text() == "kept" and (tmp_path / "link").is_symlink()
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--checkpoint", "prices.csv"], "--checkpoint: would write over --prices prices.csv, which is read"),
        (["train", "--checkpoint", "link.csv"], "--checkpoint: would write over --prices prices.csv"),
        (["train", "--checkpoint", "out/run.json"], "--checkpoint: would write over out/run.json, a file of --out"),
        (["train", "--sectors", "out/metrics.json"], "--out: would write over --sectors out/metrics.json"),
        (["predict", "--model", "model", "--out", "prices.csv"], "--out: would write over --prices prices.csv"),
        (["predict", "--model", "model", "--out", "link.csv"], "--out: would write over --prices prices.csv"),
        (["predict", "--model", "model", "--out", "model/config.json"], "would write over config.json of the training"),
        (["predict", "--model", "model", "--out", "model/predictions.csv"], "over predictions.csv of the training"),
        (["evaluate", "--model", "model", "--out", "model"], "--out: would write over metrics.json of the training"),
        (["evaluate", "--walk-forward", "2", "--adjacency", "out/report.html"], "would write over --adjacency"),
        (["predict", "--model", "model", "--config", "c.json", "--out", "c.json"], "would write over --config c.json"),
        (["train", "--config", "link.json"], "--out: would write over --config link.json"),
        (["train", "--out", "linked"], "--out: would write over linked/metrics.json, a file of --out"),
    ],
)
def test_an_output_that_is_an_input(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prices.csv").write_text("kept")
    Path("link.csv").symlink_to("prices.csv")
    Path("c.json").write_text("{}")
    Path("out").mkdir()
    Path("out/run.json").symlink_to("../c.json")
    Path("link.json").symlink_to("c.json")
    Path("linked").mkdir()
    Path("linked/metrics.json").symlink_to("predictions.csv")
    common = ["--prices", "prices.csv", *([] if "--out" in arguments else ["--out", "out"])]
    fails(capsys, *arguments, *common, match=text)
    assert Path("prices.csv").read_text() == "kept" and Path("c.json").read_text() == "{}"
    assert [path.name for path in Path("out").iterdir()] == ["run.json"]


def test_the_demo_keeps_the_options_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}")
    arguments = ["demo", "--config", str(tmp_path / "run.json"), "--out", str(tmp_path)]
    fails(capsys, *arguments, match="--out: would write over --config")
    assert (tmp_path / "run.json").read_text() == "{}"


def test_an_output_folder_behind_a_link(
    tmp_path: Path, trained: Path, prices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is where the files go, and stays a link; so does a file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "link.csv").symlink_to("decisions.csv")
    common = ["--model", str(trained), "--prices", str(prices)]
    assert main(["evaluate", *common, "--out", str(tmp_path / "link")]) == 0
    assert main(["predict", *common, "--out", str(tmp_path / "link.csv")]) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "report.html").is_file()
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "decisions.csv").is_file()


class TestCtrlC:
    """A real signal in the commands that tests/cli/test_cli.py does not interrupt."""

    @pytest.mark.parametrize(
        ("command", "owner", "name"),
        [
            (["demo", "--days", "400", "--epochs", "1", "--out", "{out}"], speed, "comparison"),
            (["demo", "--days", "400", "--epochs", "1", "--out", "{out}"], artefacts, "_write_rows"),
            (["bench", "--seconds", "0.1"], speed, "comparison"),
            (["bench", "--job", "seed", "--epochs", "1"], bench, "synthetic"),
        ],
    )
    def test_one_line_and_no_half_file(
        self,
        command: list[str],
        owner: Any,
        name: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        if command[0] == "demo":
            try:
                data.load_sp500()
            except ImportError as error:
                pytest.skip(str(error))
        # A process that was started in the background ignores the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        monkeypatch.setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
        assert main([word.format(out=tmp_path) for word in command]) == INTERRUPTED
        lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("note:")]
        assert lines == ["interrupted"] and not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "words",
        [["-m", "hiermt"], ["-X", "importtime", "-Wignore", "-mhiermt"], ["{script}"], ["-B", "{script}"]],
        ids=str,
    )
    def test_while_torch_is_imported(self, words: list[str], tmp_path: Path) -> None:
        """A shell makes 130 of a process that the signal ended. A program that imports hiermt gets its exception."""
        interrupted = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('went on')\n"
        (tmp_path / "torch.py").write_text(interrupted)
        script = tmp_path / "hiermt"
        script.write_text("import sys\nfrom hiermt.cli.main import main\nsys.exit(main())\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            ours = {"cwd": ROOT, "env": environment, "preexec_fn": lambda: signal.signal(signal.SIGINT, handler)}
            return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, **ours)

        handler: Any = signal.default_int_handler
        found = run(*(word.format(script=script) for word in words), "info")
        lines = [line for line in found.stderr.splitlines() if not line.startswith("import time:")]
        assert (found.returncode, found.stdout, lines) == (-signal.SIGINT, "", [])
        assert "KeyboardInterrupt" in run("-c", "import hiermt").stderr
        handler = signal.SIG_IGN  # as of a process in the background
        assert "went on" in run("-m", "hiermt", "info").stdout
