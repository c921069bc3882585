"""Scores against hand-computed values, and the pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiermt.cli import pictures, scores


class TestReport:
    def test_scores_by_hand(self):
        pytest.importorskip("sklearn")
        truth = torch.tensor([[0, 1], [2, 2], [1, 2]])
        predictions = torch.tensor([[0, 1], [2, 1], [2, 2]])
        up = (predictions == 2).float()
        moved = torch.tensor([[1.0, 0], [1, 0], [1, 1]])
        probabilities = torch.stack([1 - moved, moved, 1 - up, up], dim=-1)
        scored = scores.evaluate(predictions, probabilities, truth)
        decision = scored["decision"]
        assert decision["accuracy"] == pytest.approx(4 / 6)
        assert decision["majority"] == "Up"
        assert decision["majority_accuracy"] == pytest.approx(3 / 6)
        assert decision["gain"] == pytest.approx(1 / 6)
        # Days are better by 2, -1 and 0 cases of 6 in all.
        assert decision["gain_error"] == pytest.approx(np.std([2, -1, 0], ddof=1) * np.sqrt(3) / 6)
        assert decision["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 1, 2]]
        assert decision["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
        assert scored["signal"]["confusion"] == [[1, 1], [1, 3]]
        assert scored["direction"]["count"] == 4
        assert scored["direction"]["confusion"] == [[1, 0], [1, 2]]

    def test_nothing_moved(self, tmp_path):
        pytest.importorskip("sklearn")
        pytest.importorskip("matplotlib")
        truth = torch.ones(3, 2, dtype=torch.int64)
        scored = scores.evaluate(truth, torch.full((3, 2, 4), 0.5), truth)
        assert scored["direction"] == {"count": 0, "classes": ["Down", "Up"]}
        pictures.draw_confusion(scored, tmp_path / "c.png")
        assert "Down / Up" in scores.table(scored)

    @pytest.mark.parametrize(
        ("gain", "text"),
        [(0.05, "better than always saying Up by 5.0"), (0.001, "no better than"), (-0.05, "worse than")],
    )
    def test_verdict(self, gain, text):
        score = {"count": 9, "gain": gain, "gain_error": 0.01, "majority": "Up"}
        lines = scores.verdict({"decision": score, "signal": score, "direction": {"count": 0}}).splitlines()
        assert len(lines) == 2
        assert all(text in line for line in lines)

    def test_curves_of_one_epoch_without_validation(self, tmp_path):
        pytest.importorskip("matplotlib")
        losses = {f"train_{name}_loss": [0.7] for name in ("total", "signal", "direction")}
        pictures.draw_curves(losses, tmp_path / "curves.png", {"train": {"signal_loss": 0.6}})
        assert (tmp_path / "curves.png").stat().st_size > 1000
