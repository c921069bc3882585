"""The command line stores the feature names with the model and refuses others."""

from __future__ import annotations

import json

import pytest

from hiermt import TGCN_HierarchicalMT, data
from hiermt.cli.main import main
from hiermt.cli.record import fingerprint
from hiermt.cli.trained import Trained
from support.price_tables import bars, fails, ready_features

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
STOCKS, DAYS = 4, 300
TRAIN = ["--epochs", "1", "--window", "6", "--hidden", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prices, closes alone, and the features of both as ready tables."""
    folder = tmp_path_factory.mktemp("tables")
    bars(STOCKS, DAYS).to_csv(folder / "prices.csv", index=False)
    bars(STOCKS, DAYS)[["Symbol", "Date", "Close"]].to_csv(folder / "close.csv", index=False)
    table = data.compute_features(data.read_prices(folder / "prices.csv"))
    ready = ready_features(table)
    ready.to_parquet(folder / "ready.parquet")
    ready[[*ready.columns[:3], *ready.columns[:2:-1]]].to_parquet(folder / "reversed.parquet")
    ready.rename(columns={"MACD": "macd"}).to_parquet(folder / "renamed.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    assert main(["train", "--prices", str(files / "prices.csv"), "--out", str(out), *TRAIN]) == 0
    return out


def predict(capsys, model, *source):
    capsys.readouterr()
    assert main(["predict", "--model", str(model), *map(str, source)]) == 0
    return capsys.readouterr().out


def variant(trained, folder, change, named=True):
    """The folder with another config.json; the model in it has names or none."""
    model = TGCN_HierarchicalMT.from_pretrained(trained)
    model.feature_names = model.feature_names if named else None
    model.save_pretrained(folder)
    described = json.loads((trained / "config.json").read_text())["data"]
    described["weights_sha256"] = fingerprint(folder / "model.safetensors")
    config = {**json.loads((folder / "config.json").read_text()), "data": described}
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_train_writes_them(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["feature_names"] == config["data"]["features"] == list(data.FEATURES)
    assert TGCN_HierarchicalMT.from_pretrained(trained).feature_names == data.FEATURES
    read = Trained.read(trained)
    assert read.features == read.scale.names == read.model.feature_names == data.FEATURES


def test_closing_prices_alone(files, tmp_path, capsys):
    assert main(["train", "--prices", str(files / "close.csv"), "--out", str(tmp_path), *TRAIN]) == 0
    assert TGCN_HierarchicalMT.from_pretrained(tmp_path).feature_names == data.CLOSE_FEATURES
    # Of a table that has more, the features of the training are taken.
    outputs = {predict(capsys, tmp_path, "--prices", files / name) for name in ("close.csv", "prices.csv")}
    assert len(outputs) == 1


def test_ready_features_are_selected_by_name(files, trained, capsys):
    wanted = predict(capsys, trained, "--prices", files / "prices.csv")
    for name in ("ready.parquet", "reversed.parquet"):
        assert predict(capsys, trained, "--features", files / name) == wanted
    fails(capsys, "predict", "--model", trained, "--features", files / "renamed.parquet", match="no feature MACD")


def test_a_folder_from_before_models_had_names(files, trained, tmp_path, capsys):
    old = variant(trained, tmp_path / "old", lambda config: None, named=False)
    assert "feature_names" not in json.loads((old / "config.json").read_text())
    assert Trained.read(old).model.feature_names is None
    prices = ("--prices", files / "prices.csv")
    assert predict(capsys, old, *prices) == predict(capsys, trained, *prices)

    def rename(config):
        config["data"]["features"][0] = "log_return"

    other = variant(trained, tmp_path / "other", rename, named=False)
    assert Trained.read(other).features[0] == "log_return"
    fails(capsys, "predict", "--model", other, *prices, match="no feature log_return")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["data"]["features"].reverse(), "'features' in config.json: feature 0 is 'Lower_Shadow_Ratio'"),
        (lambda c: c["data"]["features"].pop(), "expected 13 names, one per feature, got 12"),
        (lambda c: c["data"].update(features=None), "config.json is damaged"),
        (lambda c: c["feature_names"].pop(), "feature_names"),
        (lambda c: c["data"]["scale"]["mean"].pop(), "scale: expected a mean and a deviation of each feature"),
        (lambda c: c["data"]["scale"]["deviation"].__setitem__(3, 0.0), "scale: expected finite means"),
    ],
)
def test_damaged_folders(files, trained, tmp_path, capsys, change, match):
    folder = variant(trained, tmp_path / "m", change)
    fails(capsys, "predict", "--model", folder, "--prices", files / "prices.csv", match=match)


def test_resuming_with_other_features(files, tmp_path, capsys):
    def command(table, *more):
        state = ["--checkpoint", tmp_path / "state"]
        return ["train", "--features", files / table, "--out", tmp_path / "out", *TRAIN, *state, *more]

    assert main([str(argument) for argument in command("ready.parquet")]) == 0
    for table, match in (
        ("reversed.parquet", "feature 0 is 'SimpleReturn', that of the model 'Lower_Shadow_Ratio' (the same features"),
        ("renamed.parquet", "feature 8 is 'MACD', that of the model 'macd'"),
    ):
        fails(capsys, *command(table, "--resume"), match=match, silent=False)
    assert main([str(argument) for argument in command("ready.parquet", "--resume")]) == 0
