"""Tables and model folders through the command line: correct output, or one line and exit code 2."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest

from hiermt.cli.main import main
from support.price_tables import decided, fails

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
DAYS = pd.bdate_range("2020-01-01", periods=260)
TRAIN = ["--epochs", "1", "--window", "8", "--hidden", "4", "--device", "cpu"]


def closes(stocks=("AAPL", "OPEN", "LOW", "V")):
    random = np.random.default_rng(0)
    moves = random.normal(0, 0.01, (len(DAYS), 1)) + random.normal(0, 0.01, (len(DAYS), len(stocks)))
    return pd.DataFrame(np.exp(moves.cumsum(0)) * np.linspace(20, 400, len(stocks)), DAYS, list(stocks))


def wide(frame):
    return frame.rename_axis("Date").reset_index()


def long(frame):
    return wide(frame).melt("Date", var_name="Symbol", value_name="Close")


def download(frame):
    """The CSV of yfinance, with an adjusted close besides."""
    both = pd.concat(
        {"Adj Close": frame, "Close": frame * 2, "Volume": frame * 0 + 7}, axis=1, names=["Price", "Ticker"]
    )
    return both.rename_axis("Date")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    wide(closes()).to_csv(folder / "wide.csv", index=False)
    assert main(["train", "--prices", str(folder / "wide.csv"), "--out", str(folder / "model"), *TRAIN]) == 0
    return folder


def predict(trained, path, capsys):
    capsys.readouterr()
    code = main(["predict", "--model", str(trained / "model"), "--prices", str(path)])
    return code, capsys.readouterr()


FORMS = {
    "long": (lambda frame: long(frame), {"index": False}),
    "long, any order": (lambda frame: long(frame).sample(frac=1, random_state=0), {"index": False}),
    "download": (download, {}),
    "download by ticker": (lambda frame: download(frame).swaplevel(axis=1).sort_index(axis=1), {}),
    "row numbers": (lambda frame: wide(frame), {}),
    "a volume and a dead stock": (lambda frame: wide(frame.assign(Volume=7, DEAD=np.nan, TEXT="x")), {"index": False}),
    "weekends": (lambda frame: wide(frame.reindex(pd.date_range(DAYS[0], DAYS[-1]))), {"index": False}),
    "days without dashes": (lambda frame: wide(frame).assign(Date=DAYS.strftime("%Y%m%d")), {"index": False}),
    "semicolons": (lambda frame: wide(frame), {"index": False, "sep": ";"}),
}


@pytest.mark.parametrize(("form", "options"), FORMS.values(), ids=FORMS)
def test_one_decision_whatever_the_form(form, options, trained, tmp_path, capsys):
    expected = predict(trained, trained / "wide.csv", capsys)[1].out
    assert [row[0] for row in decided(expected)] == ["AAPL", "OPEN", "LOW", "V"]
    form(closes()).to_csv(tmp_path / "t.csv", **options)
    code, output = predict(trained, tmp_path / "t.csv", capsys)
    assert code == 0, output.err
    assert output.out == expected


WRONG = {
    "fields": lambda frame: wide(frame).set_axis(["Date", "Close", "VWAP", "High", "Low"], axis=1),
    "fields of capitals": lambda frame: wide(frame).set_axis(["DATE", "OPEN", "HIGH", "LOW", "CLOSE"], axis=1),
    "a volume": lambda frame: wide(frame.assign(Volume=7.0)),
    "a price without a name": lambda frame: wide(frame).rename(columns={"V": ""}),
    "months": lambda frame: wide(frame).assign(Date=200001 + np.arange(len(DAYS))),
    "seconds": lambda frame: wide(frame).assign(Date=1577836800 + 86400 * np.arange(len(DAYS))),
    "two adjusted closes": lambda frame: long(frame).assign(**{"Adj Close": 1.0, "close_adj": 2.0}),
    "one name twice": lambda frame: wide(frame).rename(columns={"V": "AAPL "}),
}


@pytest.mark.parametrize("form", WRONG.values(), ids=WRONG)
def test_a_table_that_is_refused(form, tmp_path, capsys):
    form(closes()).to_csv(tmp_path / "t.csv", index=False)
    assert "t.csv" in fails(capsys, "train", "--prices", tmp_path / "t.csv", "--out", tmp_path / "out", *TRAIN)
    assert not list((tmp_path / "out").iterdir())


DAMAGED = {
    "cut.csv.gz": gzip.compress(b"Date,AAA,BBB\n2024-01-02,1,2\n" * 99)[:-9],
    "bits.csv.gz": gzip.compress(b"Date,AAA,BBB\n")[:10] + bytes(range(99)),
    "line.csv": b"x" * 300_000,
    "zero.csv": b"Date,AAA,BBB\n\0\0\0\n",
    "quote.csv": b'Date,AAA,BBB\n"2024-01-02,1,2\n',
    "a.parquet": b"PAR1" + bytes(range(99)) + b"\x10\0\0\0PAR1",
    "b.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (3, 3".ljust(200),
}


@pytest.mark.parametrize("option", ["--prices", "--features", "--sectors", "--adjacency"])
@pytest.mark.parametrize("name", [*DAMAGED, "folder", "none"])
def test_a_file_that_is_damaged(name, option, trained, tmp_path, capsys):
    if name in DAMAGED:
        (tmp_path / name).write_bytes(DAMAGED[name])
    elif name == "folder":
        (tmp_path / name).mkdir()
    prices = () if option in ("--prices", "--features") else ("--prices", trained / "wide.csv")
    assert name in fails(capsys, "train", "--out", tmp_path / "out", *TRAIN, *prices, option, tmp_path / name)


def change(config, path, value):
    *parents, last = path.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.window", float("inf")),
        ("data.window", 8.5),
        ("data.window", True),
        ("data.horizon", 0),
        ("data.threshold", float("nan")),
        ("data.symbols", "AB"),
        ("data.symbols", ["AAPL", "OPEN"]),
        ("data.symbols", ["AAPL", "AAPL", "LOW", "V"]),
        ("data.features", ["rsi"]),
        ("data.scale.mean", [1.0]),
        ("data.scale.mean", ["x"]),
        ("data.scale.deviation", [0.0] * 9),
        ("data.graph", []),
        ("data.graph.source", [99]),
        ("data.graph.weight", "x"),
        ("data.graph", {"source": [0], "target": [1], "weight": [1e60]}),
        ("data.graph", {"source": [0.5], "target": [1], "weight": [1]}),
        ("data.graph", {"source": [10**30], "target": [1], "weight": [1]}),
    ],
)
def test_a_configuration_that_is_damaged(path, value, trained, tmp_path, capsys):
    shutil.copytree(trained / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    change(config, path, value)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    line = fails(capsys, "predict", "--model", tmp_path / "model", "--prices", trained / "wide.csv")
    assert "config.json is damaged near" in line or "config.json: not valid JSON" in line


def test_a_configuration_nested_without_end_and_weights_without_a_tensor(trained, tmp_path, capsys):
    save_file = pytest.importorskip("safetensors.torch").save_file
    shutil.copytree(trained / "model", tmp_path / "model")
    command = ("predict", "--model", tmp_path / "model", "--prices", trained / "wide.csv")
    save_file({}, str(tmp_path / "model" / "model.safetensors"))
    assert "it holds no tensors" in fails(capsys, *command)
    (tmp_path / "model" / "config.json").write_text("[" * 100_000)
    assert "config.json: not valid JSON" in fails(capsys, *command)
