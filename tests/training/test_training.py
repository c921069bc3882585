"""The training loop against the published one, step by step."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn

import hiermt
from hiermt import testing
from hiermt.functional import decision_from_logits


class Batch:
    """The little of a PyG ``Batch`` that the loop reads."""

    def __init__(self, seed: int, **edges: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(20, 6, 5, generator=generator)
        future = torch.randn(20, 1, generator=generator)
        self.signal_labels = (future.abs() > 0.5).long()
        self.direction_labels = (future > 0.5).long()
        for name, value in edges.items():
            setattr(self, name, value)

    def to(self, device: Any) -> Batch:
        return self


@pytest.fixture
def batches() -> list[Batch]:
    edge_index, edge_weight = testing.stock_graph(20, 60)
    return [Batch(seed, edge_index=edge_index, edge_weight=edge_weight) for seed in range(4)]


def plain_loop(model: nn.Module, optimizer: Any, train: list[Batch], test: list[Batch], epochs: int) -> Any:
    """The loop of the user's document, as it stands there, but for the logging."""
    criterion = nn.CrossEntropyLoss(reduction="none")

    def loss_of(batch: Any) -> torch.Tensor:
        signal_logits, direction_logits = model(batch.x, batch.edge_index, batch.edge_weight)
        signal_targets, direction_targets = batch.signal_labels.squeeze(), batch.direction_labels.squeeze()
        mask = signal_targets == 1
        direction_loss = criterion(direction_logits[mask], direction_targets[mask]).mean()
        return criterion(signal_logits, signal_targets).mean() + direction_loss

    train_losses, test_losses = [], []
    for _ in range(epochs):
        total = 0.0
        for batch in train:
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        train_losses.append(total / len(train))
        with torch.no_grad():
            test_losses.append(sum(loss_of(batch).item() for batch in test) / len(test))
    return train_losses, test_losses


def test_equals_the_plain_loop(batches: list[Batch], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    other = copy.deepcopy(model)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    train_losses, test_losses, history = hiermt.train_hierarchical(
        model, adam, hiermt.MultiTaskLoss(), batches[:3], batches[3:], num_epochs=4, progress=False
    )
    expected = plain_loop(other, torch.optim.Adam(other.parameters(), lr=0.01), batches[:3], batches[3:], 4)
    assert train_losses == pytest.approx(expected[0], rel=1e-4)
    assert test_losses == pytest.approx(expected[1], rel=1e-4)
    assert history["total_loss"] == train_losses
    assert set(history) == {"signal_loss", "direction_loss", "total_loss"}
    assert all(isinstance(value, float) for values in history.values() for value in values)
    assert train_losses[-1] < train_losses[0]


def test_a_model_stays_where_it_is_without_a_device(batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    moved: list[object] = []
    to = nn.Module.to
    monkeypatch.setattr(
        nn.Module, "to", lambda self, *args, **k: (moved.append((self, *args)), to(self, *args, **k))[1]
    )
    optimizer = torch.optim.Adam(model.parameters())
    hiermt.train_hierarchical(model, optimizer, None, batches, None, 1, progress=False)
    hiermt.inference_hierarchical(model, batches[0])
    assert not [one for one in moved if one[0] is model]
    hiermt.train_hierarchical(model, optimizer, None, batches, None, 1, device="cpu", progress=False)
    hiermt.inference_hierarchical(model, batches[0], "cpu")
    assert [one[1] for one in moved if one[0] is model] == ["cpu", "cpu"]


def test_prints_every_tenth_epoch(batches: list[Batch], capsys: pytest.CaptureFixture[str]) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    adam = torch.optim.Adam(model.parameters())
    hiermt.train_hierarchical(model, adam, None, batches[:1], batches[1:2], num_epochs=20)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    pattern = r"Epoch  [12]0: Train Loss=\d\.\d{4} \(Signal=\d\.\d{4}, Dir=\d\.\d{4}\) \| Test Loss=\d\.\d{4}"
    assert len(lines) == 2
    assert all(re.fullmatch(pattern, line) for line in lines)


def test_callback_and_early_stopping_restore_the_best_weights(batches: list[Batch]) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    adam = torch.optim.Adam(model.parameters(), lr=0.3)
    seen: list[tuple[int, float]] = []
    _, test_losses, _ = hiermt.train_hierarchical(
        model,
        adam,
        None,
        batches[:2],
        batches[2:],
        num_epochs=200,
        patience=3,
        progress=False,
        callback=lambda epoch, metrics: seen.append((epoch, metrics["test_total_loss"])),
    )
    assert len(test_losses) < 200
    assert seen == list(enumerate(test_losses, start=1))
    criterion = hiermt.MultiTaskLoss()
    with torch.no_grad():
        again = [
            criterion(
                *model(b.x, b.edge_index, b.edge_weight),
                b.signal_labels,
                b.direction_labels,
                b.signal_labels.reshape(-1) == 1,
            )[0].item()
            for b in batches[2:]
        ]
    assert sum(again) / 2 == pytest.approx(min(test_losses), rel=1e-5)


def test_a_foreign_criterion_is_called_as_in_the_document(batches: list[Batch]) -> None:
    class Doubled(hiermt.MultiTaskLoss):
        pass

    class Foreign(nn.Module):
        def forward(self, *args: Any, signal_mask: Any = None) -> Any:
            loss, parts = hiermt.MultiTaskLoss()(*args, signal_mask)
            return 2 * loss, {key: 2 * value for key, value in parts.items()}

    model = hiermt.TGCN_HierarchicalMT(5, 8)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    once, _, _ = hiermt.train_hierarchical(model, sgd, Doubled(), batches, None, 1, progress=False)
    twice, test, history = hiermt.train_hierarchical(model, sgd, Foreign(), batches, None, 1, progress=False)
    assert twice[0] == pytest.approx(2 * once[0], rel=1e-5)
    assert history["signal_loss"][0] + history["direction_loss"][0] == pytest.approx(twice[0], rel=1e-5)
    assert test == []


def test_lambda_direction_is_used_or_refused(batches: list[Batch]) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    _, _, history = hiermt.train_hierarchical(model, sgd, None, batches, None, 1, 3.0, progress=False)
    total = history["signal_loss"][0] + 3.0 * history["direction_loss"][0]
    assert history["total_loss"][0] == pytest.approx(total, rel=1e-6)
    with pytest.raises(ValueError, match=r"lambda_direction: 3\.0 contradicts the criterion's 1\.0"):
        hiermt.train_hierarchical(model, sgd, hiermt.MultiTaskLoss(), batches, None, 1, 3.0)


def test_an_explicit_lambda_that_contradicts_is_refused_even_if_it_is_the_default(batches: list[Batch]) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for arguments in ((batches, None, 1, 1.0), (batches, None, 1, 2.0)):
        with pytest.raises(ValueError, match=r"lambda_direction: \d.0 contradicts the criterion's 0\.5"):
            hiermt.train_hierarchical(model, optimizer, hiermt.MultiTaskLoss(0.5), *arguments)
    for options in ({}, {"lambda_direction": 0.5}):
        hiermt.train_hierarchical(
            model, optimizer, hiermt.MultiTaskLoss(0.5), batches, None, 1, progress=False, **options
        )
    assert inspect.signature(hiermt.train_hierarchical).parameters["lambda_direction"].default == 1.0


def test_numbers_of_epochs_out_of_range_are_refused(batches: list[Batch]) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def train(num_epochs: Any = 1, **options: Any) -> Any:
        return hiermt.train_hierarchical(
            model, optimizer, None, batches, batches, num_epochs, progress=False, **options
        )

    assert train(0) == ([], [], {"signal_loss": [], "direction_loss": [], "total_loss": []})
    for error, options in (
        (ValueError, {"num_epochs": -1}),
        (TypeError, {"num_epochs": 1.5}),
        (TypeError, {"num_epochs": True}),
        (ValueError, {"patience": 0}),
        (ValueError, {"patience": -2}),
        (TypeError, {"patience": 0.5}),
        (ValueError, {"checkpoint_every": 0}),
    ):
        with pytest.raises(error, match=f"{next(iter(options))}: expected"):
            train(**options)


def test_windows_without_labels_are_refused_before_the_first_epoch(batches: list[Batch]) -> None:
    edge_index, edge_weight = testing.stock_graph(20, 60)
    series, labels = torch.randn(20, 30, 5), torch.randint(2, (20, 20))
    some = hiermt.data.WindowDataset(series, edge_index, edge_weight, 6, labels, labels)
    none = hiermt.data.WindowDataset(series, edge_index, edge_weight, 6)
    good = hiermt.data.WindowLoader(some)
    model = hiermt.TGCN_HierarchicalMT(5, 4)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bad = [hiermt.data.WindowLoader(none), hiermt.data.WindowLoader(some, [0, 24])]
    if importlib.util.find_spec("torch_geometric"):
        bad.append(hiermt.data.pyg_loader(none))
    for loader in bad:
        for name, loaders in (("train_dataloader", (loader, good)), ("test_dataloader", (good, loader))):
            with pytest.raises(ValueError, match=f"{name}: some of its windows end on a day without labels"):
                hiermt.train_hierarchical(model, optimizer, None, *loaders, 1, progress=False)
    batches[0].direction_labels = None
    with pytest.raises(ValueError, match="a batch has no signal_labels and direction_labels"):
        hiermt.train_hierarchical(model, optimizer, None, batches[:1], None, 1, progress=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_empty_loaders_are_refused(batches: list[Batch]) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match="train_dataloader: has no batch"):
        hiermt.train_hierarchical(model, sgd, None, [], batches, 1, progress=False)
    with pytest.raises(ValueError, match="test_dataloader: has no batch"):
        hiermt.train_hierarchical(model, sgd, None, batches, [], 1, progress=False)
    with pytest.raises(ValueError, match="patience"):
        hiermt.train_hierarchical(model, sgd, None, batches, None, 1, patience=2)


def plain_decision(signal_logits: torch.Tensor, direction_logits: torch.Tensor) -> Any:
    """The decision of the user's document."""
    signal, direction = signal_logits.softmax(-1), direction_logits.softmax(-1)
    predictions = torch.ones_like(signal.argmax(-1))
    confidences = signal.max(-1)[0].clone()
    detected = signal.argmax(-1) == 1
    mapped = direction.argmax(-1)[detected].clone()
    mapped[direction.argmax(-1)[detected] == 1] = 2
    predictions[detected] = mapped
    confidences[detected] = direction.max(-1)[0][detected]
    return predictions, confidences


def test_inference_equals_the_document(batches: list[Batch], backend: str) -> None:
    model = hiermt.TGCN_HierarchicalMT(5, 8, backend=backend)
    data = batches[0]
    del data.signal_labels, data.direction_labels
    predictions, confidences, parts = hiermt.inference_hierarchical(model, data)
    with torch.no_grad():
        signal_logits, direction_logits = model(data.x, data.edge_index, data.edge_weight)
    expected = plain_decision(signal_logits, direction_logits)
    assert predictions.dtype == torch.int64
    assert torch.equal(predictions, expected[0])
    testing.assert_close(confidences, expected[1])
    assert torch.equal(parts["signal_preds"], signal_logits.argmax(-1))
    assert torch.equal(parts["direction_preds"], direction_logits.argmax(-1))
    result = hiermt.hierarchical_inference(signal_logits, direction_logits, confidence_scores=True)
    assert torch.equal(result["final_predictions"], predictions)
    testing.assert_close(result["final_confidence"], confidences)
    testing.assert_close(result["signal_confidence"], parts["signal_conf"])
    testing.assert_close(result["direction_confidence"], parts["direction_conf"])
    assert set(hiermt.hierarchical_inference(signal_logits, direction_logits)) == {
        "final_predictions",
        "signal_predictions",
        "direction_predictions",
    }
    decided = model.decide(data.x, data.edge_index, data.edge_weight)
    assert torch.equal(decided[0], predictions)
    testing.assert_close(decided[1], confidences)


def test_edge_attr_without_edge_weight_is_refused(batches: list[Batch]) -> None:
    data = batches[0]
    data.edge_attr = data.edge_weight.unsqueeze(-1)  # type: ignore[attr-defined]
    del data.edge_weight  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="edge_attr"):
        hiermt.inference_hierarchical(hiermt.TGCN_HierarchicalMT(5, 8), data)


def test_threshold_gates_the_signal_and_a_tie_is_noise(backend: str) -> None:
    signal_logits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0], [2.0, 0.0]])
    direction_logits = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    wanted = {0.5: [1, 0, 2, 1], 0.9: [1, 1, 2, 1], 1.0: [1, 1, 1, 1], 0.0: [2, 0, 2, 0]}
    for threshold, expected in wanted.items():
        predictions = decision_from_logits(signal_logits, direction_logits, threshold, backend=backend)[1]
        assert predictions.tolist() == expected, threshold
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            decision_from_logits(signal_logits, direction_logits, bad, backend=backend)
    with pytest.raises(ValueError, match="signal_logits"):
        decision_from_logits(signal_logits[:, :1], direction_logits[:, :1], backend=backend)
