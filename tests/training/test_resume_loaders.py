"""Loaders and samplers of every kind, dropout and the global random states are restored by a resume."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import data as torch_data

from hiermt import data
from support.resume_cases import FEATURES, Batch, Heads, Parts, assert_goes_on, batches, dataset, parts

ITEMS = 7


class Items(torch_data.Dataset[Batch]):
    """Batches, with noise by whatever draws it."""

    def __init__(self, noise: Callable[[], float] | None = None) -> None:
        self.items = [Batch(i) for i in range(ITEMS)]
        self.noise = noise

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> Batch:
        item = Batch(index)
        if self.noise is not None:
            item.x = item.x * self.noise()
        return item


class Orders(torch_data.Sampler[int]):
    """An order by a generator that is held, and a number and a list that change."""

    def __init__(self, rng: Any) -> None:
        self.rng, self.epoch, self.order = rng, 0, list(range(ITEMS))

    def __len__(self) -> int:
        return ITEMS - 2

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        if isinstance(self.rng, torch.Generator):
            self.order = [self.order[i] for i in torch.randperm(ITEMS, generator=self.rng).tolist()]
        else:
            self.rng.shuffle(self.order)
        turned = self.order[self.epoch % ITEMS :] + self.order[: self.epoch % ITEMS]
        return iter(turned[: len(self)])


class Pairs(torch_data.Sampler[list[int]]):
    """A batch sampler around another sampler, with an order of its own made when it is first needed."""

    def __init__(self, sampler: Any, lazy: bool = False) -> None:
        self.inner, self.lazy = {"sampler": sampler}, lazy

    def __iter__(self) -> Iterator[list[int]]:
        if not hasattr(self, "rng"):
            self.rng = np.random.default_rng(5)
        for index in self.inner["sampler"]:
            if self.rng.random() < 0.8:
                yield [index]
        yield [0]


def one(items: list[Any]) -> Any:
    return items[0]


def seeded(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


SAMPLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "shuffle": lambda: {"shuffle": True},
    "shuffle by a generator": lambda: {"shuffle": True, "generator": seeded(1)},
    "RandomSampler": lambda: {"sampler": torch_data.RandomSampler(range(ITEMS), generator=seeded(1))},
    "RandomSampler with replacement": lambda: {
        "sampler": torch_data.RandomSampler(range(ITEMS), True, 5, generator=seeded(2)),
        "generator": seeded(3),
    },
    "WeightedRandomSampler": lambda: {
        "sampler": torch_data.WeightedRandomSampler(torch.arange(1.0, ITEMS + 1).tolist(), 6, generator=seeded(1))
    },
    "WeightedRandomSampler, global": lambda: {"sampler": torch_data.WeightedRandomSampler([1.0, 2.0, 3.0], 6)},
    "SubsetRandomSampler": lambda: {"sampler": torch_data.SubsetRandomSampler([1, 3, 4], generator=seeded(1))},
    "BatchSampler": lambda: {
        "batch_sampler": torch_data.BatchSampler(
            torch_data.SubsetRandomSampler(range(5), generator=seeded(4)), 1, False
        )
    },
    "DistributedSampler": lambda: {"sampler": torch_data.DistributedSampler(range(ITEMS), 2, 1)},
    "torch.Generator": lambda: {"sampler": Orders(seeded(1))},
    "numpy.Generator": lambda: {"sampler": Orders(np.random.default_rng(1))},
    "numpy.Philox": lambda: {"sampler": Orders(np.random.Generator(np.random.Philox(1)))},
    "numpy.MT19937": lambda: {"sampler": Orders(np.random.Generator(np.random.MT19937(1)))},
    "numpy.RandomState": lambda: {"sampler": Orders(np.random.RandomState(1))},
    "random.Random": lambda: {"sampler": Orders(random.Random(1))},
    "samplers of samplers": lambda: {"batch_sampler": Pairs(Orders(np.random.default_rng(1)))},
    "random, global": lambda: {"sampler": Orders(random)},
    "numpy, global": lambda: {"sampler": Orders(np.random)},
}
# The order is made in this process, whatever the workers do.
CASES = [(name, 0) for name in SAMPLERS] + [
    (name, 2) for name in ("shuffle", "samplers of samplers", "random, global", "shuffle by a generator")
]


def loader(options: dict[str, Any], workers: int = 0, persistent: bool = False, items: Any = None) -> Any:
    return torch_data.DataLoader(
        Items() if items is None else items,
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=one,
        **({} if "batch_sampler" in options else {"batch_size": 1}),
        **options,
    )


def epochs_told(made: Parts) -> Any:
    """What users of a DistributedSampler do."""

    def callback(epoch: int, metrics: dict[str, float]) -> None:
        sampler = getattr(made.train, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)

    return callback


@pytest.mark.hostile("resume")
@pytest.mark.parametrize(("name", "workers"), CASES)
def test_resumes(name: str, workers: int, tmp_path: Path) -> None:
    assert_goes_on(
        lambda: parts(
            model=lambda: Heads(dropout=0.3),
            train=lambda: loader(SAMPLERS[name](), workers),
            test=lambda: loader(SAMPLERS[name](), workers),
            callback=epochs_told,
        ),
        tmp_path,
        epochs=3,
        cuts=(1, 2) if not workers else (1,),
    )


def noises() -> dict[str, Callable[[], float]]:
    held, numpys, pythons = seeded(1), np.random.default_rng(2), random.Random(3)
    return {
        "torch": lambda: float(torch.rand(())),
        "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
        "random": random.random,
        "held by a closure": lambda: float(torch.rand((), generator=held)),
        "a method of a held one": numpys.random,
        "another": pythons.random,
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", list(noises()))
def test_a_dataset_that_draws(name: str, workers: int, tmp_path: Path) -> None:
    assert_goes_on(
        lambda: parts(
            model=Heads, train=lambda: loader({"shuffle": True}, workers, items=Items(noises()[name])), test=batches
        ),
        tmp_path,
        epochs=3,
    )


@pytest.mark.parametrize("generator", [False, True])
def test_persistent_workers_of_plain_data_go_on(generator: bool, tmp_path: Path) -> None:
    geometric = pytest.importorskip("torch_geometric.loader")
    whole = dataset()

    def load(first: int) -> Any:
        return geometric.DataLoader(
            data.PygDataset(whole, range(first, first + 6)),
            2,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            generator=seeded(1) if generator else None,
        )

    def make() -> Parts:
        made = parts(train=lambda: load(0), test=lambda: load(8))
        made.model.tgcn_backbone.out.append(nn.Dropout(0.2))
        return made

    assert_goes_on(make, tmp_path, epochs=3, cuts=(1, 2))


def test_persistent_workers_that_may_draw_are_refused(tmp_path: Path) -> None:
    made = parts(model=Heads, train=lambda: loader({}, 2, True), test=lambda: None)
    with pytest.raises(ValueError, match=r"train_dataloader: its persistent workers may draw .* dataset, a Items"):
        made.run(1, checkpoint=tmp_path / "state.pt")
    made = parts(model=Heads, train=batches, test=lambda: loader({}, 2, True, items=batches()))
    with pytest.raises(ValueError, match=r"test_dataloader: .* collate_fn, a function.*persistent_workers=False"):
        made.run(1, checkpoint=tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [(0, False), (2, False), (2, True)])
def test_a_model_of_pyg_with_dropout_and_the_loader_of_pyg(workers: tuple[int, bool], tmp_path: Path) -> None:
    geometric = pytest.importorskip("torch_geometric")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = geometric.nn.GATv2Conv(FEATURES, 4, edge_dim=1, dropout=0.3)
            self.norm = geometric.nn.BatchNorm(4)
            self.heads = nn.Linear(4, 4)

        def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Any:
            hidden = self.norm(self.conv(x[:, -1], edge_index, edge_weight.unsqueeze(-1)))
            return self.heads(torch.dropout(hidden, 0.2, self.training)).split(2, -1)

    def load(first: int) -> Any:
        items = list(data.PygDataset(dataset(), range(first, first + 6)))
        return geometric.loader.DataLoader(
            items, 2, shuffle=True, num_workers=workers[0], persistent_workers=workers[1]
        )

    assert_goes_on(lambda: parts(model=Model, train=lambda: load(0), test=lambda: load(8)), tmp_path, epochs=3)


@pytest.mark.parametrize("name", ["RandomSampler", "numpy.Generator", "random, global", "DistributedSampler"])
def test_a_window_loader_with_a_sampler(name: str, tmp_path: Path) -> None:
    whole = dataset()
    assert_goes_on(
        lambda: parts(train=lambda: data.WindowLoader(whole, range(ITEMS), 3, sampler=SAMPLERS[name]()["sampler"])),
        tmp_path,
        cuts=(1, 2),
    )


def test_a_callback_changes_loader_and_model(tmp_path: Path) -> None:
    def callback(made: Parts) -> Any:
        def change(epoch: int, metrics: dict[str, float]) -> None:
            made.train.batch_size = 8 - epoch
            made.model.dropout.p = 0.1 * epoch
            made.model.shift = torch.full((3,), float(epoch))
            made.model.scale.mul_(1 + epoch)
            made.model.hidden.weight.data.mul_(1.1)
            made.test.sampler.order.reverse()

        return change

    class Changing(Heads):
        def __init__(self) -> None:
            super().__init__(dropout=0.1)
            self.shift = torch.zeros(3)
            self.register_buffer("scale", torch.ones(()), persistent=False)

        def forward(self, x: Tensor, *edges: Any) -> Any:
            return super().forward(x * self.scale + self.shift)

    assert_goes_on(
        lambda: parts(
            model=Changing,
            test=lambda: loader({"sampler": Orders(np.random.default_rng(1))}),
            callback=callback,
        ),
        tmp_path,
        cuts=(1, 2, 3),
    )


def test_a_criterion_with_parameters_and_a_generator(tmp_path: Path) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_weight = nn.Parameter(torch.zeros(2))
            self.rng = random.Random(1)

        def forward(self, signal: Tensor, direction: Tensor, *targets: Tensor, signal_mask: Tensor) -> Any:
            parts = [nn.functional.cross_entropy(*pair) for pair in zip((signal, direction), targets, strict=True)]
            factors = (-self.log_weight).exp() * self.rng.random()
            loss = (factors * torch.stack(parts)).sum() + self.log_weight.sum()
            return loss, {"signal_loss": parts[0].detach(), "direction_loss": parts[1].detach()}

    def make() -> Parts:
        made = parts(model=Heads, train=batches, test=batches, criterion=Weighted())
        made.optimizer.add_param_group({"params": list(made.options["criterion"].parameters())})
        return made

    assert_goes_on(make, tmp_path)


@pytest.mark.parametrize("make", [lambda: iter(range(99)), lambda: (i % 7 for i in range(99))])
def test_a_sampler_that_holds_an_iterator_is_refused(make: Any, tmp_path: Path) -> None:
    class Stream(torch_data.Sampler[int]):
        def __init__(self) -> None:
            self.stream = make()

        def __iter__(self) -> Iterator[int]:
            yield from (next(self.stream) % ITEMS for _ in range(3))

    made = parts(model=Heads, train=lambda: loader({"sampler": Stream()}), test=lambda: None)
    with pytest.raises(ValueError, match=r"checkpoint: train_dataloader\.sampler\.stream: .* cannot be stored"):
        made.run(1, checkpoint=tmp_path / "state.pt")
    made.run(1)


def test_a_generator_without_a_state_is_refused(tmp_path: Path) -> None:
    made = parts(model=Heads, train=lambda: loader({"sampler": Orders(random.SystemRandom())}), test=lambda: None)
    with pytest.raises(ValueError, match=r"train_dataloader\.sampler\.rng: random\.SystemRandom"):
        made.run(1, checkpoint=tmp_path / "state.pt")


def test_a_loader_with_a_state_dict_of_its_own(tmp_path: Path) -> None:
    class Stateful:
        def __init__(self) -> None:
            self.secret = iter(())
            self.position = 0

        def __iter__(self) -> Iterator[Batch]:
            for i in range(2):
                self.position += 1
                yield Batch(self.position + i)

        def state_dict(self) -> dict[str, Any]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.position = state["position"]

    assert_goes_on(lambda: parts(model=Heads, train=Stateful, test=Stateful), tmp_path)


def test_what_the_caller_changes_between_two_runs_stays(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    parts().run(1, checkpoint=path)
    again = parts(train=lambda: data.WindowLoader(dataset(), range(16), 4, shuffle=True))
    again.run(2, checkpoint=path, resume=True)
    assert again.train.batch_size == 4


def test_another_loader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    made = parts(model=Heads, train=lambda: loader(SAMPLERS["torch.Generator"]()), test=batches)
    made.run(1, checkpoint=path)
    for name in ("numpy.Generator", "shuffle", "SubsetRandomSampler"):
        other = parts(model=Heads, train=lambda name=name: loader(SAMPLERS[name]()), test=batches)
        with pytest.raises(ValueError, match=r"train_dataloader\.sampler"):
            other.run(2, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="another kind of loader"):
        parts(model=Heads, train=batches, test=batches).run(2, checkpoint=path, resume=True)


@pytest.mark.parametrize("wrap", ["compile", "peft"])
def test_a_model_that_others_wrap(wrap: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        if wrap == "compile":
            return torch.compile(Heads(dropout=0.2), backend="eager")  # type: ignore[return-value]
        peft = pytest.importorskip("peft")
        return peft.get_peft_model(Heads(), peft.LoraConfig(target_modules=["hidden"], lora_dropout=0.2, r=2))

    assert_goes_on(lambda: parts(model=make, train=batches, test=batches), tmp_path)


def test_objects_with_slots_and_subclasses_of_containers(tmp_path: Path) -> None:
    class Slots:
        __slots__ = ("later", "rng")

        def __init__(self) -> None:
            self.rng = random.Random(1)

    class Counted(list[Any]):
        turns = 0

    class Named(dict[str, Any]):
        pass

    class Sampler(torch_data.Sampler[int]):
        def __init__(self) -> None:
            self.slots, self.named, self.counted = Slots(), Named(rng=np.random.default_rng(2)), Counted([Slots()])

        def __iter__(self) -> Iterator[int]:
            self.counted.turns += 1
            self.named["turns"] = self.named.get("turns", 0) + 1
            self.slots.later = getattr(self.slots, "later", 0) + 1
            turns = self.counted.turns + self.named["turns"] + self.slots.later
            numbers = [self.slots.rng.random(), self.named["rng"].random(), self.counted[0].rng.random()]
            yield from (int(1e4 * number + turns) % ITEMS for number in numbers)

    assert_goes_on(
        lambda: parts(model=Heads, train=lambda: loader({"sampler": Sampler()}), test=batches), tmp_path, cuts=(1, 2)
    )
