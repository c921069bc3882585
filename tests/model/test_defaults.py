"""``torch.set_default_device`` and ``torch.set_default_dtype`` change no number of objects that exist."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hiermt
from hiermt import data, functional, testing
from hiermt.training import adam

STOCKS, DAYS, FEATURES, HIDDEN, WINDOW = 12, 60, 5, 8, 7


@contextmanager
def default(name: str) -> Iterator[None]:
    if name == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


class Objects:
    """What a user made before, on the CPU and in float32."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        generator = torch.Generator().manual_seed(3)
        self.edge_index, self.edge_weight = testing.stock_graph(STOCKS, 40)
        self.series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
        self.x = self.series[:, :WINDOW].contiguous()
        self.signal = torch.randint(2, (STOCKS, DAYS - 1), generator=generator)
        self.direction = self.signal * torch.randint(2, self.signal.shape, generator=generator)
        self.starts = torch.tensor([3, 0, 11, 4])
        self.model = self.made()
        self.gcn = self.made(use_gat=False)
        self.after = self.made(conv_layers=1, edge_dim=None, conv_activation="after")
        self.nft = self.made(layout="NFT")
        self.cell = hiermt.TGCNCell(FEATURES, HIDDEN, backend=backend)
        self.gat, self.gcn_stack = (kind(FEATURES, HIDDEN, backend=backend) for kind in (hiermt.GAT, hiermt.GCN))
        self.close = np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.02, (4, 160)), axis=1))

    def made(self, **options: Any) -> hiermt.TGCN_HierarchicalMT:
        torch.manual_seed(5)
        return hiermt.TGCN_HierarchicalMT(FEATURES, HIDDEN, backend=self.backend, **options)

    def graph(self) -> hiermt.Graph:
        # A new one each time: what is prepared under the default has to be right, too.
        return hiermt.Graph(self.edge_index.clone(), self.edge_weight.clone(), STOCKS, backend=self.backend)

    def dynamic(self) -> hiermt.DynamicGraph:
        other = hiermt.Graph(self.edge_index[:, ::2], self.edge_weight[::2], STOCKS, backend=self.backend)
        return hiermt.DynamicGraph([(0, self.graph()), (DAYS // 2, other)])

    def dataset(self, **options: Any) -> data.WindowDataset:
        return data.WindowDataset(
            self.series, self.edge_index, self.edge_weight, WINDOW, self.signal, self.direction, **options
        )


def forwards(o: Objects, _: Path) -> Any:
    weighted = o.edge_index.clone(), o.edge_weight.clone()
    windows = hiermt.Windows(o.series, o.starts, WINDOW)
    return [
        o.model(o.x, *weighted),
        o.model(o.x, o.graph()),
        o.model(windows, o.graph()),
        o.model(windows.gather(backend=o.backend), o.graph()),
        o.gcn(o.x, *weighted),
        o.gcn(windows, o.graph()),
        o.after(o.x, o.edge_index.clone()),
        o.nft(o.x.transpose(1, 2), *weighted),
        o.cell(o.x[:, 0], *weighted, o.x.new_zeros(STOCKS, HIDDEN)),
        o.gat(o.x, *weighted),
        o.gcn_stack(o.x, *weighted),
        o.model(*batch_of(o)),
        o.model.tgcn_backbone(o.x, *weighted),
    ]


def batch_of(o: Objects) -> tuple[Tensor, Tensor, Tensor | None]:
    return (o.x.repeat(3, 1, 1), *testing.batched(o.edge_index, o.edge_weight, STOCKS, 3))


def gradients(o: Objects, _: Path) -> Any:
    found = []
    for model in (o.model, o.gcn):
        weight = o.edge_weight.clone().requires_grad_()
        for x in (o.x, hiermt.Windows(o.series, o.starts, WINDOW)):
            model.zero_grad()
            sum(logits.square().sum() for logits in model(x, hiermt.Graph(o.edge_index, weight, STOCKS))).backward()
            found += [parameter.grad.clone() for parameter in model.parameters()]
        found.append(weight.grad)
    return found


def functions(o: Objects, _: Path) -> Any:
    logits = o.model(o.x, o.graph())
    targets = o.signal[:, 0], o.direction[:, 0]
    conv = o.gat.convs[0].op_parameters()
    h = o.x.new_ones(STOCKS, HIDDEN)
    head = [
        p for m in (o.model.tgcn_backbone.out[0], o.model.signal_head, o.model.direction_head) for p in m.parameters()
    ]
    return [
        functional.gatv2_conv(o.x, o.graph(), *conv, backend=o.backend),
        functional.gcn_conv(o.x, o.graph(), *o.gcn_stack.convs[0].op_parameters(), backend=o.backend),
        functional.gated_scan(o.x, o.gat(o.x, o.graph()), None, o.cell.gates(), backend=o.backend),
        functional.gather_windows(o.series, o.starts, WINDOW, backend=o.backend),
        functional.heads(h, head, backend=o.backend),
        functional.decision(h, head, backend=o.backend),
        functional.decision_from_logits(*logits, backend=o.backend),
        functional.multitask_loss(*logits, *targets, targets[0] == 1, backend=o.backend),
        hiermt.MultiTaskLoss(2.0)(*logits, *targets, signal_mask=targets[0] == 1),
        hiermt.hierarchical_inference(*logits, confidence_scores=True),
        hiermt.Windows(o.series, o.starts, WINDOW).days(),
        hiermt.Windows(o.series, o.starts, WINDOW).shared(),
    ]


class Own(torch.nn.Module):
    """A criterion of the user's own, which reports floats."""

    def forward(self, signal: Tensor, direction: Tensor, s: Tensor, d: Tensor, signal_mask: Tensor) -> Any:
        loss = torch.nn.functional.cross_entropy(signal.flatten(0, -2), s)
        return loss, {"signal_loss": 0.1, "direction_loss": 0.3}


def training(o: Objects, folder: Path, criterion: Any = None, **options: Any) -> Any:
    losses = []
    model = copy.deepcopy(o.model)
    dataset = options.get("dataset") or o.dataset()
    loaders = (
        data.WindowLoader(dataset, range(12), 8, shuffle=True),
        data.WindowLoader(dataset, range(37, 47), 8),
    )
    for epochs, resume in ((1, False), (3, True)):
        losses.append(
            hiermt.train_hierarchical(
                model,
                adam(model),
                criterion,
                *loaders,
                num_epochs=epochs,
                progress=False,
                checkpoint=folder / "state",
                resume=resume,
                patience=3,
            )
        )
    losses.append([p.detach().clone() for p in model.parameters()])
    return losses


def training_with_a_criterion_of_its_own(o: Objects, folder: Path) -> Any:
    return training(o, folder, Own())


def training_over_graphs_that_change(o: Objects, folder: Path) -> Any:
    return training(o, folder, dataset=o.dataset(graphs=o.dynamic()))


def inference(o: Objects, _: Path) -> Any:
    batch = next(iter(data.WindowLoader(o.dataset(), range(9), 9)))
    live = hiermt.LivePredictor(o.model, o.graph(), WINDOW)
    return [
        hiermt.inference_hierarchical(o.model, batch),
        hiermt.predict_rolling(o.model, o.series, o.graph(), WINDOW),
        hiermt.predict_rolling(o.model, o.series, o.dynamic(), WINDOW, 3, chunk=4),
        live.extend(o.series),
        live.append(o.series[:, 0]),
    ]


def files(o: Objects, folder: Path) -> Any:
    o.model.save_pretrained(folder / "model")
    back = hiermt.TGCN_HierarchicalMT.from_pretrained(folder / "model", backend=o.backend)
    torch.save(o.model.state_dict(), folder / "model.pt")
    sources = (o.model.state_dict(), folder / "model.pt", folder / "model")
    layout = {"layout": "NTF", "verbose": False, "backend": o.backend}
    models = [back, *(hiermt.from_reference(source, **layout) for source in sources)]
    models.append(hiermt.from_reference(o.model, **layout))
    return [[*model.parameters(), model(o.x, o.graph())] for model in models]


def tables(o: Objects, _: Path) -> Any:
    pandas = pytest.importorskip("pandas")
    dates = pandas.bdate_range("2020-01-01", periods=o.close.shape[1]).strftime("%Y-%m-%d")
    frame = pandas.DataFrame(o.close.T, columns=list("abcd"), index=pandas.Index(dates, name="Date"))
    table = data.compute_features(data.read_prices(frame))
    edges = data.correlation_graph(table.values[..., 0], 0.0, sectors=list("xxyy"))
    dense = data.to_adjacency(*edges, 4)
    dataset = data.WindowDataset.from_table(table, *edges, 10, scale=data.Scale.fit(table.values))
    return [
        table.values,
        table.close,
        edges,
        data.graph_from_adjacency(dense),
        dataset.series,
        dataset.signal_labels,
        *[(batch.x, batch.signal_labels) for batch in data.WindowLoader(dataset, batch_size=16, shuffle=True)],
        testing.stock_graph(),
        testing.batched(*testing.stock_graph(20, 40), 20, 3),
    ]


ENTRIES = [
    forwards,
    gradients,
    functions,
    training,
    training_with_a_criterion_of_its_own,
    training_over_graphs_that_change,
    inference,
    files,
    tables,
]


def leaves(found: Any) -> Iterator[Any]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        for each in found:
            yield from leaves(each)
    else:
        yield found


@pytest.mark.filterwarnings("ignore:closing prices only")
@pytest.mark.parametrize("name", ["meta", "float64"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_defaults_change_no_number(entry: Callable[..., Any], name: str, backend: str, tmp_path: Path) -> None:
    objects = Objects(backend)
    folders = tmp_path / "plain", tmp_path / "default"
    for folder in folders:
        folder.mkdir()
    plain = list(leaves(entry(objects, folders[0])))
    with default(name):
        under = list(leaves(entry(objects, folders[1])))
    assert len(plain) == len(under) > 0
    for i, (expected, actual) in enumerate(zip(plain, under, strict=True)):
        if isinstance(expected, Tensor):
            assert (actual.device, actual.dtype) == (expected.device, expected.dtype), i
            assert torch.equal(actual, expected), i
        else:
            assert actual == expected, i


@pytest.mark.parametrize("kind", [hiermt.TGCN_HierarchicalMT, hiermt.GAT, hiermt.GCN, hiermt.TGCNCell])
def test_parameters_follow_the_defaults_as_those_of_torch(kind: Any) -> None:
    with default("meta"):
        assert {p.device.type for p in kind(5, 8).parameters()} == {"meta"}
    with default("float64"):
        assert {p.dtype for p in kind(5, 8).parameters()} == {torch.float64}
