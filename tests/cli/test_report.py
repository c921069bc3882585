"""The report: one file without a network, every figure drawn, and the same training again from its record."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from hiermt import TGCN_HierarchicalMT, data, testing
from hiermt.cli import figures, pictures, report
from hiermt.cli.attention import mean_attention
from hiermt.cli.main import main
from support.price_tables import bars

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
STOCKS, DAYS = 5, 260
TRAIN = ["--epochs", "2", "--window", "6", "--hidden", "4", "--device", "cpu", "--correlation", "0.2", "--seed", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    bars(STOCKS, DAYS).to_csv(folder / "prices.csv", index=False)

    def draw(name, function, *arguments):
        return report.embedded(name, report.png(lambda file: pictures.save(function(*arguments), file, 40)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_image", draw)
        command = ["train", "--prices", str(folder / "prices.csv"), "--out", str(folder / "model"), *TRAIN]
        assert main(command) == 0
    return folder


def test_one_file_with_every_part(trained):
    page = (trained / "model" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:image/png;base64,)", page)
    assert "http" not in page
    names = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,iVBORw0KGgo', page)
    assert set(names) == {
        *("Reliability", "Confusion", "Rank information coefficient", "By stock", "Losses", "Classes over time"),
        *("Graph", "Mean attention of each edge"),
    }
    for text in ("is not a profit", "base rate", "AUC", "p_neutral", "run.json"):
        assert text in page
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower().replace("finance", "")


def test_curves_are_measured_against_the_base_rate(trained):
    metrics = json.loads((trained / "model" / "metrics.json").read_text())
    for span in ("train", "validation"):
        share = metrics["base_rates"][span]["signal"]
        expected = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        assert metrics["base_losses"][span]["signal_loss"] == pytest.approx(expected)
        assert metrics["base_losses"][span]["signal_loss"] < np.log(2)
    figure = pictures.curves(metrics["losses"], metrics["base_losses"])
    for axes, name in zip(figure.axes, ("total_loss", "signal_loss", "direction_loss"), strict=True):
        levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert levels == [metrics["base_losses"][span][name] for span in ("train", "validation")]
        assert "ln 2" not in {line.get_label() for line in axes.lines}


def test_the_same_training_from_its_record(trained, tmp_path, capsys):
    record = trained / "model" / "run.json"
    found = json.loads(record.read_text())
    assert found["command"] == "train" and found["options"]["seed"] == 3 and found["features"] == list(data.FEATURES)
    assert found["versions"]["torch"] == torch.__version__ or found["versions"]["torch"] in torch.__version__
    assert len(found["inputs"]["prices"]["sha256"]) == 64
    assert main(["train", "--config", str(record), "--out", str(tmp_path / "again")]) == 0
    assert "note:" not in capsys.readouterr().err
    for name in ("model.safetensors", "predictions.csv", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / "model" / name).read_bytes()
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert {**again, "arguments": None} == {**found, "arguments": None}


def test_other_contents_under_the_same_path_are_noted(trained, tmp_path, capsys):
    record = json.loads((trained / "model" / "run.json").read_text())
    record["inputs"]["prices"]["sha256"] = "0" * 64
    (tmp_path / "run.json").write_text(json.dumps(record))
    command = ["train", "--config", str(tmp_path / "run.json"), "--out", str(tmp_path / "m"), "--epochs", "1"]
    assert main(command) == 0
    assert "is not the file of the training that --config records" in capsys.readouterr().err


def test_evaluate_equals_the_test_span_of_the_training(trained, tmp_path, capsys):
    model, prices = trained / "model", trained / "prices.csv"
    command = ["evaluate", "--model", str(model), "--prices", str(prices), "--out", str(tmp_path / "e"), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    expected = json.loads((model / "metrics.json").read_text())["test"]
    assert found["test"]["span"] == expected["span"]
    assert found["test"]["decision"]["confusion"] == expected["decision"]["confusion"]
    assert found["test"]["signal"]["forecast"]["auc"] == pytest.approx(expected["signal"]["forecast"]["auc"], abs=1e-6)
    assert {path.name for path in (tmp_path / "e").iterdir()} == {
        *("metrics.json", "predictions.csv", "confusion.png", "report.html"),
    }
    assert main([*command, "--all-days"]) == 0
    output = capsys.readouterr()
    assert "flatter the model" in output.err
    assert json.loads(output.out)["test"]["span"]["days"] > expected["span"]["days"]


def test_attention_equals_pyg(trained):
    """Each convolution's mean attention against PyG's ``return_attention_weights``, stepped through time."""
    pytest.importorskip("torch_geometric")
    from hiermt.testing import pyg

    model = TGCN_HierarchicalMT.from_pretrained(trained / "model")
    edge_index, edge_weight = data.graph_from_adjacency(
        np.array([[0, 0.5, 0, 0], [0.5, 0, 1, 0], [0, 1, 0, 0], [0] * 4])
    )
    series = torch.randn(4, 9, 13)
    dataset = data.WindowDataset(series, edge_index, edge_weight, 3)
    found = mean_attention(model, dataset, range(7))
    assert [part.name for part in found] == [f"layer {i}, convolution {k}" for i in (1, 2) for k in (1, 2)]
    theirs = pyg.like(model).eval()
    sums = [np.zeros((4, 4)) for _ in found]

    def watch(index):
        def hook(module, inputs, keywords, output):
            if keywords.get("return_attention_weights"):
                return
            arguments = {**keywords, "return_attention_weights": True}
            _, (edges, alpha) = module(*inputs, **arguments)
            np.add.at(sums[index], (edges[1].numpy(), edges[0].numpy()), alpha[:, 0].numpy())

        return hook

    from torch_geometric.nn import GATv2Conv

    convs = [module for module in theirs.modules() if isinstance(module, GATv2Conv)]
    for index, conv in enumerate(convs):
        conv.register_forward_hook(watch(index), with_kwargs=True)
    with torch.no_grad():
        for start in range(7):
            theirs(series[:, start : start + 3], edge_index, edge_weight)
    for part, total in zip(found, sums, strict=True):
        np.testing.assert_allclose(part.matrix, total / 21, atol=2e-6)
        np.testing.assert_allclose(part.matrix.sum(1), 1, atol=1e-6)
        assert (part.uniform[part.matrix == 0] == 0).all()
    gcn = TGCN_HierarchicalMT(13, 4, use_gat=False)
    assert mean_attention(gcn, dataset, range(7)) == []


def test_mean_attention_counts_the_days_on_which_a_stock_is_there():
    model = TGCN_HierarchicalMT(5, 4)
    edges = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 2, 1, 2]])
    present = torch.rand(5, 12) < 0.6
    present[4] = False
    series = torch.randn(5, 12, 5).masked_fill(~present.unsqueeze(-1), torch.nan)
    dataset = data.WindowDataset(series, edges, torch.rand(5), 3, present=present)
    sums, equal, days = np.zeros((4, 5, 5)), np.zeros((5, 5)), np.zeros((5, 1))
    for start in range(10):
        there = present[:, start : start + 3]
        (source, target), alpha = model.attention_weights(
            series[:, start : start + 3], edges, dataset.edge_weight, present=there
        )
        for t in range(3):
            rows, columns = (there[one, t].numpy() for one in (target, source))
            for k, one in enumerate(alpha.flatten(0, 1).detach().double()):
                np.add.at(sums[k], (target.numpy(), source.numpy()), one[:, t].numpy())
            for node in there[:, t].nonzero()[:, 0].tolist():
                both = rows & columns & (target == node).numpy()
                np.add.at(equal, (node, source.numpy()[both]), 1 / both.sum())
            days += there[:, t : t + 1].numpy()
    found = mean_attention(model, dataset, range(10))
    for part, total in zip(found, sums, strict=True):
        np.testing.assert_allclose(part.matrix, total / days.clip(1), atol=1e-6)
        np.testing.assert_allclose(part.uniform, equal / days.clip(1), atol=1e-12)
        np.testing.assert_allclose(part.matrix.sum(1), [1, 1, 1, 1, 0], atol=1e-6)


@pytest.mark.parametrize("edges", ["none", "negative", "many stocks"])
def test_graphs_that_are_hard_to_draw(edges, tmp_path):
    stocks = 70 if edges == "many stocks" else 3
    index = torch.empty(2, 0, dtype=torch.int64) if edges == "none" else torch.tensor([[0, 1], [1, 0]])
    weight = None if edges == "none" else torch.tensor([-0.5, -0.5])
    figure = figures.graph(index, weight, [f"S{i}" for i in range(stocks)])
    pictures.save(figure, tmp_path / "g.png", 30)
    assert (tmp_path / "g.png").stat().st_size > 500


def test_pictures_of_hundreds_of_stocks_show_every_edge_and_no_labels_on_top_of_each_other():
    stocks = 300
    edge_index, edge_weight = testing.stock_graph(stocks, 900)
    _, image, *_ = figures.graph(edge_index, edge_weight, [f"S{i}" for i in range(stocks)]).axes
    (points,) = image.collections
    assert len(points.get_offsets()) == edge_index.size(1) and points.get_sizes()[0] > 1
    random = np.random.default_rng(0).random((stocks, 4))
    names = ("signal_auc", "direction_auc", "log_loss", "base_log_loss")
    rows = [{"symbol": f"S{i}", **dict(zip(names, row, strict=True))} for i, row in enumerate(random)]
    left, right = figures.by_group(rows, "symbol").axes
    assert not any(label.get_text().startswith("S") for axes in (left, right) for label in axes.get_xticklabels())
    heights = [bar.get_height() for bar in right.patches]
    assert heights == sorted(heights) and len(heights) == stocks
