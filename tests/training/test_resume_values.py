"""Values held by a loader, a criterion or a callback are restored by a resume, or refused by name."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import functools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hiermt import MultiTaskLoss
from support.resume_cases import Batch, Heads, Parts, assert_equal, assert_goes_on, parts, seed


class Phase(enum.Enum):
    EARLY = 1
    LATE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Position(NamedTuple):
    day: int
    offset: float


class Thing:
    def __init__(self, number: int) -> None:
        self.number = number


class OtherThing(Thing):
    pass


def first() -> int:
    return 1


def second() -> int:
    return 2


class Stream:
    """Batches told by a value that is replaced, in each epoch or in the second alone."""

    def __init__(self, start: Any, step: Callable[[Any], Any], number: Callable[[Any], Any], once: bool) -> None:
        self.steps, self.epoch, self.once = (step, number), 0, once
        self.value = start

    def __iter__(self) -> Iterator[Batch]:
        step, number = self.steps
        self.epoch += 1
        if not self.once or self.epoch == 2:
            self.value = step(self.value)
        yield Batch(int(number(self.value)) % 1000)


def counted(table: Any) -> Any:
    table[str(len(table))] += 1
    return table


def turned(table: Any) -> Any:
    table.move_to_end(next(iter(table)))
    return table


DAY = datetime.timedelta(1)
# Start, next value, and the number of a batch.
VALUES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "date": (lambda: datetime.date(2020, 1, 1), lambda v: v + DAY, lambda v: v.toordinal()),
    "datetime": (lambda: datetime.datetime(2020, 1, 1), lambda v: v + DAY, lambda v: v.toordinal()),
    "datetime with a zone": (
        lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        lambda v: v + DAY,
        lambda v: v.toordinal(),
    ),
    "timedelta": (lambda: DAY, lambda v: v * 2, lambda v: v.days),
    "datetime64": (lambda: np.datetime64("2020-01-01"), lambda v: v + np.timedelta64(1, "D"), lambda v: v.astype(int)),
    "Decimal": (lambda: decimal.Decimal(1), lambda v: v + 1, int),
    "Fraction": (lambda: fractions.Fraction(1, 3), lambda v: v + 1, lambda v: v.numerator),
    "range": (lambda: range(3), lambda v: range(v.stop + 1), lambda v: v.stop),
    "slice": (lambda: slice(0, 3), lambda v: slice(0, v.stop + 1), lambda v: v.stop),
    "bytearray": (lambda: bytearray(b"a"), lambda v: v + b"b", len),
    "array": (lambda: array.array("i", [1]), lambda v: v + array.array("i", [2]), len),
    "named tuple": (lambda: Position(1, 2.0), lambda v: v._replace(day=v.day + 1), lambda v: v.day),
    "enum": (lambda: Phase.EARLY, lambda v: Phase.LATE, lambda v: v.value),
    "enum in a list": (lambda: [Phase.EARLY], lambda v: [Phase.LATE], lambda v: v[0].value),
    "IntEnum": (lambda: Level.LOW, lambda v: Level.HIGH, lambda v: v.value),
    "OrderedDict": (
        lambda: [collections.OrderedDict(a=1, b=2)],
        lambda v: [turned(v[0])],
        lambda v: next(iter(v[0].values())),
    ),
    "defaultdict": (lambda: collections.defaultdict(int), counted, len),
    "defaultdict of a function": (lambda: collections.defaultdict(lambda: 5), counted, lambda v: sum(v.values())),
    "dict with tuples as keys": (lambda: {(0, 1): 1}, lambda v: {**v, (len(v), 1): 2}, len),
    "set of anything": (lambda: {(0, 1)}, lambda v: v | {(len(v), None), (len(v), 2)}, len),
    "structured array": (
        lambda: np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
        lambda v: np.array([(one + 1, two) for one, two in v.tolist()], v.dtype),
        lambda v: v["a"].sum(),
    ),
    "sparse tensor": (lambda: torch.eye(3).to_sparse(), lambda v: v * 2, lambda v: v.to_dense().sum()),
    "a number, then a tensor": (lambda: 0, lambda v: torch.as_tensor(v) + 1, int),
    "dict of tensors": (lambda: {}, lambda v: {len(v): torch.ones(1), **v}, len),
    "dict of objects that shrinks": (
        lambda: {1: Thing(1), 2: Thing(2), 3: Thing(3)},
        lambda v: dict(list(v.items())[: max(1, len(v) - 1)]),
        len,
    ),
    "an object, then nothing": (lambda: Thing(3), lambda v: None, lambda v: 0 if v is None else v.number),
    "partial": (lambda: functools.partial(pow, 2), lambda v: functools.partial(pow, v.args[0] + 1), lambda v: v(2)),
}


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("name", list(VALUES))
def test_a_value_that_is_replaced(name: str, once: bool, tmp_path: Path) -> None:
    start, step, number = VALUES[name]
    assert_goes_on(lambda: parts(model=Heads, train=lambda: Stream(start(), step, number, once)), tmp_path)


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_a_timestamp_of_pandas(zone: str | None, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    day = pandas.Timedelta("1D")

    def make() -> Parts:
        start = pandas.Timestamp("2020-01-01", tz=zone)
        return parts(model=Heads, train=lambda: Stream(start, lambda v: v + day, lambda v: v.toordinal(), once=False))

    assert_goes_on(make, tmp_path)


@pytest.mark.parametrize(
    ("start", "later"),
    [
        (lambda: first, lambda v: second),
        (lambda: Thing, lambda v: OtherThing),
        (lambda: Thing(1), lambda v: OtherThing(1)),
        (lambda: nn.ReLU(), lambda v: nn.Identity()),
        (lambda: [Thing(1), Thing(2)], lambda v: v[:1]),
        (lambda: np.sin, lambda v: np.cos),
        (lambda: None, lambda v: first),
    ],
)
def test_a_replaced_object_is_refused(start: Any, later: Any, tmp_path: Path) -> None:
    def make() -> Parts:
        return parts(model=Heads, train=lambda: Stream(start(), later, lambda v: 1, once=True))

    make().run(2, checkpoint=tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"train_dataloader\.value: the training had changed it"):
        make().run(4, checkpoint=tmp_path / "state.pt", resume=True)


@pytest.mark.hostile("resume")
def test_resuming_with_the_objects_of_the_training(tmp_path: Path) -> None:
    def make(start: Any) -> Parts:
        return parts(model=Heads, train=lambda: Stream(start, lambda v: second, lambda v: v(), once=True))

    make(first).run(2, checkpoint=tmp_path / "state.pt")
    made = make(second)
    made.run(4, checkpoint=tmp_path / "state.pt", resume=True)
    assert made.train.epoch == 4


@pytest.mark.hostile("resume")
def test_an_object_that_changes_and_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    made = parts(model=Heads, train=lambda: Stream(pandas.Series([1]), lambda v: v + 1, lambda v: v.sum(), once=False))
    with pytest.raises(ValueError, match=r"train_dataloader\.value: the training has changed it, and a pandas"):
        made.run(1, checkpoint=tmp_path / "state.pt")


def test_an_iterator_made_during_the_training_is_refused_as_all_else(tmp_path: Path) -> None:
    made = parts(model=Heads, train=lambda: Stream(None, lambda v: iter([1]), lambda v: 1, once=False))
    with pytest.raises(ValueError, match="an iterator whose position cannot be stored"):
        made.run(1, checkpoint=tmp_path / "state.pt")


class Twice(Heads):
    """Its parameters and buffers lie in plain containers as well; its buffers change behind autograd's back."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.weights = {0: self.hidden.weight} if kind is dict else kind([self.hidden.weight])
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.numbers = np.zeros(1)
        self.shared = torch.from_numpy(self.numbers)

    def forward(self, x: Tensor, *edges: Any) -> tuple[Tensor, Tensor]:
        self.shift.data += 0.01
        self.numbers += 0.01
        hidden = nn.functional.linear(x.flatten(-2), self.weights[0]) + self.shift + float(self.shared)
        signal, direction = self.heads(hidden.tanh()).split(2, -1)
        return signal, direction


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_parameters_in_plain_containers(kind: type, tmp_path: Path) -> None:
    assert_goes_on(lambda: parts(model=lambda: Twice(kind)), tmp_path)


HELD: list[Tensor] = []


@pytest.mark.parametrize("seen", [True, False])
def test_a_parameter_outside_of_modules(seen: bool, tmp_path: Path) -> None:
    def make() -> Parts:
        weight = nn.Parameter(torch.tensor(0.7))
        HELD[:] = [weight]

        def criterion(*args: Tensor, signal_mask: Tensor) -> Tensor:
            terms = MultiTaskLoss().terms(*args, signal_mask)
            factor = weight if seen else HELD[0]
            return terms.signal + factor**2 * terms.direction - 0.1 * factor

        made = parts(model=Heads, criterion=criterion)
        made.optimizer = torch.optim.Adam([*made.model.parameters(), weight], lr=0.05)
        return made

    assert_goes_on(make, tmp_path)


def test_a_large_array_that_is_shuffled_in_place(tmp_path: Path) -> None:

    class Large:
        def __init__(self) -> None:
            self.order, self.rng = np.arange(2_200_000), np.random.default_rng(1)

        def __iter__(self) -> Iterator[Batch]:
            self.rng.shuffle(self.order[:50])
            yield Batch(int(self.order[0]))

    assert_goes_on(lambda: parts(model=Heads, train=Large), tmp_path)


def test_hooks_and_functions_with_a_state(tmp_path: Path) -> None:
    def make() -> Parts:
        made = parts(model=Heads)
        calls, steps = [0], [0]

        def louder(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            calls[0] += 1
            return output * (1 + 0.01 * calls[0])

        def slower(optimizer: Any, args: Any, kwargs: Any) -> None:
            steps[0] += 1
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / steps[0]

        plain = made.model.forward

        def shifted(x: Tensor, *edges: Any) -> Any:
            shifted.count += 1  # type: ignore[attr-defined]
            return plain(x + 0.01 * shifted.count)  # type: ignore[attr-defined]

        shifted.count = 0  # type: ignore[attr-defined]
        made.model.hidden.register_forward_hook(louder)
        made.optimizer.register_step_pre_hook(slower)
        made.model.forward = shifted
        return made

    assert_goes_on(make, tmp_path)


def test_what_a_callback_learns_and_draws_with(tmp_path: Path) -> None:
    averages: list[AveragedModel] = []

    def callback(made: Parts) -> Callable[[int, Any], None]:
        average = AveragedModel(made.model)
        other = torch.optim.SGD(made.model.parameters(), lr=0.01, momentum=0.9)
        decay = torch.optim.lr_scheduler.StepLR(other, 1, 0.5)
        rng, lock, bar, epochs = random.Random(1), threading.Lock(), iter(range(9)), []
        averages.append(average)

        def each(epoch: int, metrics: dict[str, float]) -> None:
            with lock:
                epochs.append(next(bar))
            for parameter in made.model.parameters():
                parameter.grad = torch.full_like(parameter, rng.random())
            other.step()
            decay.step()
            average.update_parameters(made.model)

        return each

    assert_goes_on(lambda: parts(model=Heads, callback=callback), tmp_path)
    assert_equal(averages[-1].state_dict(), averages[0].state_dict())


def test_the_numbers_of_a_callback_are_its_own(tmp_path: Path) -> None:
    epochs: list[int] = []
    made = parts(model=Heads, callback=lambda made: lambda epoch, metrics: epochs.append(epoch))
    made.run(2, checkpoint=tmp_path / "state.pt")
    epochs.clear()
    made = parts(model=Heads, callback=lambda made: lambda epoch, metrics: epochs.append(epoch))
    made.run(4, checkpoint=tmp_path / "state.pt", resume=True)
    assert epochs == [3, 4]


class Lookahead(torch.optim.Optimizer):
    """Zhang et al., arXiv 1907.08610: an optimiser around another one."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.count = inner, 0
        self.slow = [weight.detach().clone() for weight in inner.param_groups[0]["params"]]
        super().__init__(inner.param_groups[0]["params"], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.count += 1
        if self.count % 2 == 0:
            for weight, slow in zip(self.inner.param_groups[0]["params"], self.slow, strict=True):
                slow.add_(weight.detach() - slow, alpha=0.5)
                weight.data.copy_(slow)


def test_an_optimizer_around_another(tmp_path: Path) -> None:
    assert_goes_on(
        lambda: parts(model=Heads, optimizer=lambda model: Lookahead(torch.optim.Adam(model.parameters(), lr=0.01))),
        tmp_path,
    )


def test_a_model_without_shapes_is_refused(tmp_path: Path) -> None:
    seed(0)
    model = Heads()
    model.hidden = nn.LazyLinear(6, bias=False)
    with pytest.raises(ValueError, match=r"model\.hidden\.weight has no shape yet"):
        parts(model=lambda: model).run(1, checkpoint=tmp_path / "state.pt")


def test_persistent_workers_beside_a_window_loader(tmp_path: Path) -> None:
    loader = pytest.importorskip("torch_geometric.loader").DataLoader
    from torch_geometric.data import Data

    def make() -> Parts:
        batches = [Batch(i) for i in range(4)]
        names = ("x", "edge_index", "edge_weight", "signal_labels", "direction_labels")
        graphs = [Data(**{name: getattr(batch, name) for name in names}) for batch in batches]
        return parts(train=lambda: loader(graphs, 2, shuffle=True, num_workers=1, persistent_workers=True))

    assert_goes_on(make, tmp_path)
