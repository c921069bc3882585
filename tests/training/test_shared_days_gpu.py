"""Shared days where reading a tensor needs a sync, as on a GPU; a CPU stands in for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_shared_days import FEATURES, STOCKS, WINDOW, dataset, results, stocks
from torch import Tensor

from hiermt import TGCN_HierarchicalMT, Windows, data, train_hierarchical
from hiermt import windows as gather
from hiermt.nn import TGCN
from hiermt.nn import inputs as _inputs
from hiermt.testing import assert_close
from hiermt.windows import DayRange


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every look at first days an error."""

    def looked(*_: object) -> None:
        raise AssertionError("waits for the device")

    monkeypatch.setattr(gather, "reading_syncs", lambda tensor: True)
    monkeypatch.setattr(_inputs.dispatch, "native", lambda *_: True)
    monkeypatch.setattr(Windows, "days", looked)
    monkeypatch.setattr(Windows, "shared", looked)


@pytest.mark.parametrize(
    ("starts", "day_span"),
    [
        ([3, 9, 4], DayRange(3, 15, 12)),
        ([3, 9, 4], DayRange(0, 50, 50)),
        ([3, 9, 4], DayRange(0, 50, 12)),
        ([3, 9, 4], DayRange(2, 30, 20)),
        ([44, 40], DayRange(0, 50, 20)),  # as many days as there are left, and some before
        ([], DayRange(0, 50, 6)),
        ([], DayRange(0, 50, 50)),
    ],
)
def test_within_a_range_of_days(starts: list[int], day_span: DayRange) -> None:
    windows = Windows(dataset().series, torch.tensor(starts, dtype=torch.int64), WINDOW)
    found = windows.within(day_span)
    assert found.series.size(1) == day_span.days
    assert torch.equal(found.gather(), windows.gather())


def test_what_a_loader_knows_of_the_days(monkeypatch: pytest.MonkeyPatch) -> None:
    def reaches(starts: Any, **options: Any) -> set[DayRange | None]:
        return {batch.day_span for batch in data.WindowLoader(dataset(), starts, 8, **options)}

    assert reaches(range(5, 37), shuffle=True) == {DayRange(5, 36 + WINDOW, 31 + WINDOW)}
    assert reaches(range(5, 37)) == {DayRange(5, 36 + WINDOW, 7 + WINDOW)}
    assert reaches(range(5, 37), sampler=range(32)) == {DayRange(5, 36 + WINDOW, 31 + WINDOW)}
    # The one that is spread most decides for all, so that all have one shape.
    assert reaches([*range(8), *range(8, 24, 2)]) == {DayRange(0, 22 + WINDOW, 14 + WINDOW)}
    # A day that no window has may hold anything, and would day_span the gradients of the convolutions.
    assert reaches([*range(8), *range(8 + WINDOW, 20 + WINDOW)]) == {None}
    assert reaches([*range(8), *range(7 + WINDOW, 19 + WINDOW)]) != {None}
    blocks = data.WindowLoader(dataset(True), range(40), 8, shuffle=True)
    expected = {DayRange(0, 20, 20), DayRange(15, 33, 18), DayRange(28, 45, 17)}
    assert {batch.day_span for batch in blocks} == expected
    assert data.WindowLoader(dataset(), range(8)).gather(torch.arange(3)).day_span is None
    batch = next(iter(data.WindowLoader(dataset(), range(5, 37), 8)))
    monkeypatch.setattr(data.window_loader, "same_device", lambda *_: False)
    moved = batch.to("cpu")
    assert moved.day_span == DayRange(0, 7 + WINDOW, 7 + WINDOW)


@pytest.mark.usefixtures("gpu")
def test_windows_equal_their_copies() -> None:
    model = TGCN_HierarchicalMT(FEATURES).double()
    series = dataset().series
    for starts in (torch.arange(12), torch.tensor([30, 3, 4])):
        windows = Windows(series, starts, WINDOW)
        outs, grads = results(model, windows, stocks())
        expected, expected_grads = results(model, windows.gather(check=False), stocks())
        for got, want in zip([*outs, *grads], [*expected, *expected_grads], strict=True):
            assert want is None or assert_close(got, want, gradient=True) is None


def fit(share: bool | None, shuffle: bool, changing: bool) -> tuple[Any, dict[str, Tensor], int]:
    """Losses, weights, and how often the model got windows."""
    source = dataset(changing)
    loader = data.WindowLoader(source, range(40), 8, shuffle=shuffle, seed=1)
    torch.manual_seed(0)
    model = TGCN_HierarchicalMT(FEATURES, 5).double()
    shared = 0
    run = TGCN.last_state

    def counted(self: Any, x: Any, *args: Any) -> Any:
        nonlocal shared
        shared += isinstance(x, Windows)
        return run(self, x, *args)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TGCN, "last_state", counted)
        losses = train_hierarchical(model, optimizer, None, loader, None, 3, progress=False, share_days=share)[0]
    return losses, model.state_dict(), shared


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_training_without_a_look(shuffle: bool, changing: bool) -> None:
    losses, weights, none = fit(False, shuffle, changing)
    assert none == 0
    shared_losses, shared_weights, every = fit(True, shuffle, changing)
    assert every == 3 * (6 if changing else 5)
    assert shared_losses == pytest.approx(losses, rel=1e-10)
    for name, tensor in weights.items():
        torch.testing.assert_close(shared_weights[name], tensor, rtol=1e-8, atol=1e-11)
    again = fit(True, shuffle, changing)
    assert again[0] == shared_losses and all(torch.equal(again[1][name], shared_weights[name]) for name in weights)


@pytest.mark.usefixtures("gpu")
def test_share_follows_the_count_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    # 8 windows have 48 days one by one; consecutive they lie in 13, shuffled in 45.
    assert fit(None, False, False)[2] == 15 and fit(None, True, False)[2] == 0
    monkeypatch.setattr(_inputs, "MOST_DAYS_ON_GPU", 0.95)
    assert fit(None, True, False)[2] == 15


@pytest.mark.usefixtures("gpu")
def test_models_that_cannot_share_days_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TGCN_HierarchicalMT(FEATURES).double()
    apart = next(iter(data.WindowLoader(dataset(), [0, 20, 40])))
    assert isinstance(_inputs.shared_inputs(model, apart, "cpu")[0], Tensor)
    with pytest.raises(ValueError, match=r"share_days: .* leaves out days in between"):
        _inputs.shared_inputs(model, apart, "cpu", True)
    together = next(iter(data.WindowLoader(dataset(), range(8))))
    monkeypatch.setattr(_inputs.dispatch, "native", lambda *_: False)
    with pytest.raises(ValueError, match="only the native operators"):
        _inputs.shared_inputs(model, together, "cpu", True)
    assert together.num_nodes == 8 * STOCKS
