"""Evaluation of probabilities: against scikit-learn and SciPy, on noise, and on a model that knows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hiermt.cli import bootstrap, evaluation, forecasts, summary
from hiermt.inference.rolling import Decisions

metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")
DAYS, STOCKS = 120, 6


def span(knowledge: float, seed: int = 0, days: int = DAYS, stocks: int = STOCKS):
    """Decisions whose logits hold `knowledge` of what happens, and what happens."""
    random = np.random.default_rng(seed)
    returns = random.normal(0, 0.01, (days, stocks))
    truth = np.where(np.abs(returns) <= 0.0055, 1, np.where(returns > 0, 2, 0))
    noise = random.normal(0, 1, (2, days, stocks))
    signal = 0.3 + 0.2 * noise[0] + knowledge * (truth != 1)
    direction = 0.2 * noise[1] + knowledge * np.sign(returns)
    p = [1 / (1 + np.exp(-part)) for part in (signal, direction)]
    heads = torch.tensor(np.stack([1 - p[0], p[0], 1 - p[1], p[1]], -1))
    predictions = torch.where(heads[..., 1] > 0.5, 2 * (heads[..., 3] > 0.5).long(), 1)
    confidences = torch.where(predictions == 1, heads[..., :2].amax(-1), heads[..., 2:].amax(-1))
    dates = np.datetime64("2020-11-02") + np.arange(days)
    symbols = [f"S{i}" for i in range(stocks)]
    return Decisions(predictions, confidences, heads), torch.tensor(truth), torch.tensor(returns), dates, symbols


@pytest.fixture(scope="module")
def noise():
    return evaluation.evaluate(*span(0.0))


@pytest.fixture(scope="module")
def knowing():
    return evaluation.evaluate(*span(0.5))


def test_figures_equal_scikit_learn(knowing):
    decisions, truth, _, dates, _ = span(0.5)
    y, p = truth.numpy().ravel(), decisions.probabilities.numpy().reshape(-1, 4)
    signal = knowing["signal"]["forecast"]
    assert signal["log_loss"] == pytest.approx(metrics.log_loss(y != 1, p[:, :2]), rel=1e-12)
    assert signal["brier"] == pytest.approx(((p[:, 1] - (y != 1)) ** 2).mean(), rel=1e-12)
    assert signal["auc"] == pytest.approx(metrics.roc_auc_score(y != 1, p[:, 1]), rel=1e-12)
    moved = y != 1
    direction = knowing["direction"]["forecast"]
    assert direction["count"] == moved.sum()
    assert direction["auc"] == pytest.approx(metrics.roc_auc_score(y[moved] == 2, p[moved, 3]), rel=1e-12)
    joint = decisions.classes.numpy().reshape(-1, 3)
    decision = knowing["decision"]["forecast"]
    assert decision["log_loss"] == pytest.approx(metrics.log_loss(y, joint), rel=1e-12)
    assert decision["brier"] == pytest.approx(((joint - np.eye(3)[y]) ** 2).sum(1).mean(), rel=1e-12)
    assert sum(row["count"] for row in signal["reliability"]) == len(y)
    chosen = decisions.predictions.numpy().ravel()
    assert decision["mean_probability"] == pytest.approx(joint[np.arange(len(y)), chosen].mean(), rel=1e-12)
    for row in knowing["by_year"]:
        inside = np.repeat(np.array([str(date)[:4] for date in dates]) == row["year"], STOCKS)
        assert row["count"] == inside.sum()
        assert row["signal_auc"] == pytest.approx(metrics.roc_auc_score(moved[inside], p[inside, 1]), rel=1e-12)
        assert row["log_loss"] == pytest.approx(metrics.log_loss(y[inside], joint[inside], labels=[0, 1, 2]), rel=1e-12)
    for i, row in enumerate(knowing["by_symbol"]):
        assert row["accuracy"] == pytest.approx((chosen[i::STOCKS] == y[i::STOCKS]).mean(), rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_no_constant_forecast_beats_the_base_rate(share):
    y = np.arange(100) < 100 * share
    base = forecasts.entropy(share)
    constants = np.linspace(0.01, 0.99, 99)
    losses = [metrics.log_loss(y, np.full(100, c), labels=[False, True]) for c in constants]
    assert min(losses) >= base - 1e-12
    if 0 < share < 1:
        assert min(losses) == pytest.approx(base, abs=1e-12)
    losses = forecasts.base_losses({"signal": 0.3, "up": 0.5}, 2.0)
    assert losses["total_loss"] == pytest.approx(losses["signal_loss"] + 2 * math.log(2))
    assert set(forecasts.base_losses({"signal": 0.0})) == {"signal_loss"}


def test_ranks_equal_scipy(knowing):
    decisions, _, returns, _, _ = span(0.5)
    score = (decisions.classes[..., 2] - decisions.classes[..., 0]).numpy()
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(score, returns.numpy(), strict=True)]
    found = knowing["information_coefficient"]
    np.testing.assert_allclose(found["by_day"], expected, rtol=1e-9, atol=1e-12)
    assert found["t"] == pytest.approx(stats.ttest_1samp(expected, 0).statistic, rel=1e-9)
    ties = evaluation.rank_correlations(np.array([[1.0, 1, 1], [1, 1, 2]]), np.array([[1.0, 2, 3], [1, 2, 2]]))
    assert math.isnan(ties[0])
    assert ties[1] == pytest.approx(stats.spearmanr([1, 1, 2], [1, 2, 2]).statistic)
    assert np.isnan(evaluation.rank_correlations(np.ones((2, 2)), np.ones((2, 2)))).all()


def test_weighted_area_equals_scikit_learn_with_ties():
    random = np.random.default_rng(0)
    score, y, day = random.integers(0, 9, 300) / 9, random.random(300) < 0.3, random.integers(0, 20, 300)
    area = bootstrap.auc(score, y, day)
    for weights in (np.ones(20), random.integers(0, 4, 20).astype(float)):
        assert area(weights) == pytest.approx(metrics.roc_auc_score(y, score, sample_weight=weights[day]), rel=1e-12)
    assert math.isnan(bootstrap.auc(score, np.ones(300, dtype=bool), day)(np.ones(20)))
    assert math.isnan(bootstrap.auc(score[:0], y[:0], day[:0])(np.ones(20)))


@pytest.mark.parametrize(("days", "horizon"), [(1, 1), (7, 1), (100, 20), (1000, 1)])
def test_draws_are_blocks_of_days(days, horizon):
    weights = bootstrap.day_weights(days, horizon, draws=50)
    assert (weights.sum(1) == days).all()
    assert (weights == bootstrap.day_weights(days, horizon, draws=50)).all()
    if days == 1000:
        # Neighbours are drawn together: in blocks of ten, about nine of ten days have the weight of the next.
        both = np.corrcoef(weights[:, :-1].ravel(), weights[:, 1:].ravel())[0, 1]
        assert 0.85 < both < 0.95


def test_the_interval_of_dependent_days_is_wider():
    """A figure that is the same for ten days in a row has a tenth of the cases; t of the days does not know it."""
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 100), 10)
    low, high = evaluation.mean_and_t(values, bootstrap.day_weights(1000, 10))["interval"]
    alone = 2 * 1.96 * values.std() / math.sqrt(1000)
    assert 2 < (high - low) / alone < 4


def test_intervals_cover_the_truth_as_often_as_they_say():
    weights = bootstrap.day_weights(60, draws=200)
    covered = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        # A common move of the day, which cases counted as independent would not see.
        day = random.normal(0, 0.5, (60, 1))
        p, y = 1 / (1 + np.exp(-random.normal(0, 1, (60, 8)) - day)), random.random((60, 8)) < 0.3
        low, high = forecasts.binary(p, y, np.ones_like(y), weights)["auc_interval"]
        covered += low <= 0.5 <= high
    assert 51 <= covered <= 60


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_looks_like_noise(seed):
    found = evaluation.evaluate(*span(0.0, seed))
    sentence = summary.knows(found)
    for head in ("signal", "direction"):
        low, high = found[head]["forecast"]["auc_interval"]
        assert low < 0.5 < high
        assert found[head]["forecast"]["gain"] < 0
    assert sentence.startswith("The model shows no knowledge beyond the base rate about whether")
    assert abs(found["information_coefficient"]["t"]) < 3
    low, high = found["information_coefficient"]["interval"]
    assert low < 0 < high


def test_knowledge_is_found(knowing):
    sentence = summary.knows(knowing)
    assert sentence.startswith("The model knows what the base rate does not about whether a stock moves (AUC 0.")
    assert "and the direction of a move (AUC" in sentence
    assert "no such" not in sentence
    assert knowing["direction"]["forecast"]["gain_interval"][0] > 0
    assert knowing["information_coefficient"]["interval"][0] > 0
    half = {**knowing, "direction": evaluation.evaluate(*span(0.0))["direction"]}
    assert "but shows no such knowledge about the direction of a move" in summary.knows(half)


def test_every_figure_is_plain_data(knowing):
    import json

    json.dumps(knowing, allow_nan=False)
    assert knowing["span"] == {"first": "2020-11-02", "last": "2021-03-01", "days": DAYS, "stocks": STOCKS}
    assert [row["year"] for row in knowing["by_year"]] == ["2020", "2021"]


@pytest.mark.parametrize("kind", ["nothing moves", "all moves", "always up", "one stock", "two days", "sure"])
def test_degenerate_spans(kind):
    decisions, truth, returns, dates, symbols = span(0.2, days=2 if kind == "two days" else 30)
    if kind == "one stock":
        decisions = Decisions(*(part[:, :1] for part in decisions))
        truth, returns, symbols = truth[:, :1], returns[:, :1], symbols[:1]
    if kind == "sure":
        heads = (decisions.probabilities > 0.5).double()
        decisions = decisions._replace(probabilities=heads)
    truth = {"nothing moves": torch.ones_like(truth), "all moves": 2 * (truth // 2), "always up": truth * 0 + 2}.get(
        kind, truth
    )
    found = evaluation.evaluate(decisions, truth, returns, dates, symbols)
    text = summary.text(found)
    assert "nan" not in text
    assert "too few" in text or kind not in ("nothing moves", "always up", "one stock")
    assert math.isfinite(found["decision"]["forecast"]["log_loss"])
