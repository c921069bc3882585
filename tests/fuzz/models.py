"""The modules of a case, native and twin, and the oracle on PyG's convolutions in float64, a step at a time."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import hiermt
from fuzz.case import CELLS, STREAMS, Case
from fuzz.compare import Found, differentiated
from fuzz.graphs import counted_once, edges_of
from fuzz.presence import on_subgraphs
from hiermt.nn import temporal
from hiermt.testing import batched, pyg, pyg_temporal
from support import calls

HEADS = {"signal": 2, "direction": 2, "regime": 3}
BLOCKS = 3
LAYOUTS = {**calls.LAYOUTS, **calls.SHARED, "contiguous": lambda t: t}
LAYOUTS["swapped"] = LAYOUTS["first two dimensions swapped"]


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The numbers of `tensor` in another layout; ``expanded`` has numbers of its own."""
    return LAYOUTS[layout](tensor) if tensor.numel() and tensor.dim() else tensor


def rounded(case: Case, generator: torch.Generator, *shape: int) -> Tensor:
    """Random numbers in the case's dtype."""
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64) * case.scale
    return numbers.to(getattr(torch, case.dtype))


class ModelProblem:
    """A module, its inputs and the module of the oracle, with the same parameters."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.dtype: torch.dtype = getattr(torch, case.dtype)
        generator = torch.Generator().manual_seed(case.numbers)
        self.edge_index, weight = edges_of(case)
        self.exact_weight = weight
        self.is_cell = case.kind in CELLS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.numbers)
            self.model, self.oracle = _cells(case) if self.is_cell else _models(case)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(max(case.scale, 1.0))
        self.model.to(self.dtype)
        if case.dropout:
            self.model.eval()
        self.oracle.double().load_state_dict(self.model.state_dict(), strict=True)
        self.x, self.starts = self._inputs(generator)
        self.h = self._states(generator)
        self.present = self._come_and_go(generator) if case.present else None
        self.wanted = torch.Generator().manual_seed(max(case.wanted, 0))

    def _inputs(self, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        case = self.case
        starts = None
        lead: tuple[int, ...] = (case.nodes,)
        steps = case.steps
        if case.form == "batch":
            lead = (case.copies, case.nodes)
        elif case.form == "union":
            lead = (case.copies * case.nodes,)
        elif case.form in ("windows", *STREAMS):
            steps = case.steps + 2 * case.copies
            starts = torch.randint(steps - case.steps + 1, (case.copies,), generator=generator)
        x = rounded(case, generator, *lead, steps, case.channels)
        return laid_out(x, case.layout), starts

    def _come_and_go(self, generator: torch.Generator) -> Tensor:
        """Where a node is there, in the dimensions of x before the features."""
        present = torch.rand(self.x.shape[:-1], generator=generator) < 0.7
        if self.case.layout != "expanded":
            self.x[~present] = torch.nan
        return present

    def _states(self, generator: torch.Generator) -> list[Tensor] | None:
        case = self.case
        if not case.state or case.form in STREAMS:
            return None
        lead = {"batch": (case.copies, case.nodes), "windows": (case.copies, case.nodes)}
        lead |= {"union": (case.copies * case.nodes,)}
        shape = (*lead.get(case.form, (case.nodes,)), case.hidden)
        count = 1 if self.is_cell else case.layers
        return [(rounded(case, generator, *shape).double().tanh() * 0.9).to(self.dtype) for _ in range(count)]

    def evaluate(self, side: str, cotangent: str | None = None) -> Found:
        """Runs one of ``native``, ``reference`` and ``oracle``."""
        exact = side == "oracle"
        model = self.oracle if exact else self.model
        if not exact:
            self.model.backend = side
        dtype = torch.float64 if exact else self.dtype
        x = self.x.detach().double() if exact else self.x.detach()
        weight = None if self.exact_weight is None else self.exact_weight.to(dtype)
        h = None if self.h is None else [one.detach().to(dtype) for one in self.h]
        if not exact and h is not None:
            h = [one.clone() for one in h]
        leaves = {"x": x, **({"edge_weight": weight} if weight is not None else {})}
        leaves |= {f"h[{i}]": one for i, one in enumerate(h or [])}
        leaves |= dict(model.named_parameters())
        self._require(leaves)
        if self.case.form in STREAMS:
            return self._stream(exact, model, x, weight)
        call = _oracle_cell if self.is_cell else _oracle_model
        if exact:
            values = call(self.case, model, x, self._edges(weight), h, self.starts, self.present)
        else:
            call = _native_cell if self.is_cell else _native_model
            with torch.autocast("cpu", torch.bfloat16, enabled=self.case.autocast):
                values = call(self.case, model, x, self._given(weight, side), h, self.starts, self.present)
        gradients = differentiated(values, leaves, self.case.cotangent)
        if exact and "edge_weight" in gradients:
            gradients["edge_weight"] = counted_once(self.case, self.edge_index, gradients["edge_weight"])
        return Found({name: one.detach() for name, one in values.items()}, gradients)

    def _require(self, leaves: dict[str, Tensor]) -> None:
        """The same leaves on every side: all, none, or a subset."""
        self.wanted.manual_seed(max(self.case.wanted, 0))
        for name in sorted(leaves):
            chosen = bool(torch.randint(2, (), generator=self.wanted))
            leaves[name].requires_grad_(self.case.wanted == 0 or (self.case.wanted > 0 and chosen))

    def _edges(self, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As PyG reads them: the union of all copies."""
        copies = self.case.copies if self.case.form in ("batch", "union", "windows") and not self.is_cell else 1
        return batched(self.edge_index.long(), weight, self.case.nodes, copies)

    def _given(self, weight: Tensor | None, side: str) -> tuple[Any, ...]:
        """As the model reads them."""
        index, nodes = self.edge_index, self.case.nodes
        if self.case.form == "union" and not self.is_cell:
            index, weight = batched(index, weight, nodes, self.case.copies)
            nodes *= self.case.copies
        if self.case.prepared:
            return (hiermt.Graph(index, weight, nodes, backend=side),)
        return index, weight

    def _stream(self, exact: bool, model: Any, series: Tensor, weight: Tensor | None) -> Found:
        """Decisions over a history: on graphs that change, or day after day on one."""
        case, threshold = self.case, 0.5
        dynamic = case.form == "rolling"
        days = series.size(1)
        first = [0, *sorted({1 + (case.seed * (i + 1)) % days for i in range(BLOCKS - 1)})] if dynamic else [0]
        blocks = [edges_of(case, i) if i else (self.edge_index, self.exact_weight) for i in range(len(first))]
        stops = range(case.steps, days + 1)
        if not exact:
            made = [
                hiermt.Graph(index, None if one is None else one.to(self.dtype), case.nodes, backend=model.backend)
                for index, one in blocks
            ]
            if dynamic:
                graph = hiermt.DynamicGraph(list(zip(first, made, strict=True)))
                chunk = max(case.copies, 1)
                options = {"threshold": threshold, "chunk": chunk, "present": self.present}
                with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                    found = hiermt.predict_rolling(model, series, graph, case.steps, **options)
                return Found({}, {}, (found.probabilities, found.predictions, found.confidences, threshold))
            live = hiermt.LivePredictor(model, made[0], case.steps, threshold=threshold)
            masks = [None if self.present is None else self.present[:, day] for day in range(days)]
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                days_in = [live.append(series[:, day], masks[day]) for day in range(days)]
            decided = [one for one in days_in if one is not None]
            names = ("probabilities", "predictions", "confidences")
            parts = [torch.cat([getattr(one, name) for one in decided]) for name in names]
            return Found({}, {}, (parts[0], parts[1], parts[2], threshold))
        found = []
        for stop in stops:
            index, one = blocks[max(i for i, day in enumerate(first) if day <= stop - 1)]
            of_window = slice(stop - case.steps, stop)
            there = None if self.present is None else self.present[:, of_window]
            features, _ = _states_of(model.backbone, series[:, of_window], (index.long(), one), None, there)
            out = model.backbone.out(features[:, -1])
            decided = _decided(model.heads["signal"](out), model.heads["direction"](out), threshold)
            if there is not None:  # absent on the last day: nothing is decided
                gone = ~there[:, -1]
                for part in decided:
                    part[gone] = torch.nan if part.is_floating_point() else -1
            found.append(decided)
        return Found({}, {}, (*(torch.stack(one) for one in zip(*found, strict=True)), threshold))


def _models(case: Case) -> tuple[Any, nn.Module]:
    conv: dict[str, Any] = {
        "use_gat": case.gat,
        "conv_layers": case.conv_layers,
        "edge_dim": 1 if case.edge else None,
        "conv_activation": "between" if case.between else "after",
    }
    sizes = (case.channels, case.hidden, case.layers)
    layout = {"layout": "NFT" if case.transposed else "NTF", "dropout": 0.5 if case.dropout else 0.0}
    if case.kind == "TGCN":
        ours: nn.Module = hiermt.TGCN(case.channels, 3, case.hidden, case.layers, **conv, **layout)
        return ours, pyg.Backbone(case.channels, 3, case.hidden, case.layers, **conv)
    if case.kind == "A3TGCN":
        ours = hiermt.A3TGCN(case.channels, 3, case.hidden, case.layers, **conv, **layout)
        return ours, pyg.AttentionBackbone(case.channels, 3, case.hidden, case.layers, **conv)
    if case.kind == "MultiTaskTGCN":
        return hiermt.MultiTaskTGCN(*sizes, heads=HEADS, **conv, **layout), _Headed(HEADS, sizes, conv)
    two = {name: HEADS[name] for name in ("signal", "direction")}
    return hiermt.TGCN_HierarchicalMT(*sizes, **conv, **layout), _Headed(two, sizes, conv)


class _Headed(nn.Module):
    """Any heads on PyG's backbone."""

    def __init__(self, heads: dict[str, int], sizes: tuple[int, int, int], conv: dict[str, Any]) -> None:
        super().__init__()
        channels, hidden, layers = sizes
        self.tgcn_backbone = pyg.Backbone(channels, hidden, hidden, layers, **conv)
        for name, classes in heads.items():
            self.add_module(f"{name}_head", nn.Linear(hidden, classes))
        self.names = list(heads)

    @property
    def backbone(self) -> pyg.Backbone:
        return self.tgcn_backbone

    @property
    def heads(self) -> dict[str, nn.Module]:
        return {name: getattr(self, f"{name}_head") for name in self.names}


def _cells(case: Case) -> tuple[Any, nn.Module]:
    name = case.kind.removeprefix("temporal.")
    improved, loops = case.loop_weight == 2.0, case.loop_weight != 0.0
    options = (improved, False, loops)
    if name.startswith("A3"):
        batch = (None,) if name == "A3TGCN2" else ()
        ours = getattr(temporal, name)(case.channels, case.hidden, case.steps, *batch, *options)
        return ours, pyg_temporal.A3TGCN(case.channels, case.hidden, case.steps, *options)
    batch = (None,) if name == "TGCN2" else ()
    ours = getattr(temporal, name)(case.channels, case.hidden, *batch, *options)
    return ours, pyg_temporal.TGCN(case.channels, case.hidden, *options)


def _native_model(
    case: Case,
    model: Any,
    x: Tensor,
    edges: tuple[Any, ...],
    h: list[Tensor] | None,
    starts: Tensor | None,
    present: Tensor | None,
) -> dict[str, Tensor]:
    given: Any = x.transpose(-1, -2) if case.transposed else x
    if starts is not None:
        given, present = hiermt.windows.Windows(x, starts, case.steps, present), None
    options: dict[str, Any] = {"h": h, "return_state": case.returned}
    if present is not None:
        options["present"] = present
    if case.kind != "A3TGCN":
        options["return_sequence"] = case.sequence
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model(given, *edges, **options)
    if case.kind == "TGCN_HierarchicalMT":
        found = ({"signal": found[0], "direction": found[1]}, *found[2:])
        found = found if case.returned else found[0]
    y, states = found if case.returned else (found, [])
    named = y if isinstance(y, dict) else {"y": y}
    return {**named, **{f"state[{i}]": one for i, one in enumerate(states)}}


def _states_of(
    backbone: pyg.Backbone,
    x: Tensor,
    edges: tuple[Tensor, Tensor | None],
    h: list[Tensor] | None,
    present: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The states of the last cell ``[N, T, H]`` and the last one of each."""
    if x.size(1) and present is None:
        return backbone.run(x, *edges, h)
    zeros = x.new_zeros(x.size(0), backbone.hidden_size)
    if x.size(1) and present is not None:
        return on_subgraphs(list(backbone.cells), x, edges, h or [zeros] * len(backbone.cells), present)
    return x.new_zeros(x.size(0), 0, backbone.hidden_size), h or [zeros] * len(backbone.cells)


def _oracle_model(
    case: Case,
    model: Any,
    x: Tensor,
    edges: tuple[Tensor, Tensor | None],
    h: list[Tensor] | None,
    starts: Tensor | None,
    present: Tensor | None,
) -> dict[str, Tensor]:
    lead: tuple[int, ...] = x.shape[:-2]
    if starts is not None:
        if present is not None:
            there = [present[:, start : start + case.steps] for start in starts.tolist()]
            present = torch.stack(there) if there else None
        parts = [x[:, start : start + case.steps] for start in starts.tolist()]
        lead = (len(parts), case.nodes)
        x = torch.stack(parts) if parts else x.new_zeros(0, case.nodes, case.steps, case.channels)
    flat = x.reshape(-1, *x.shape[-2:]) if x.numel() else x.new_zeros(_product(lead), *x.shape[-2:])
    before = None if h is None else [one.reshape(-1, case.hidden) for one in h]
    backbone = getattr(model, "tgcn_backbone", model)
    if present is not None:
        present = present.reshape(flat.shape[:2])
    sequence, states = _states_of(backbone, flat, edges, before, present)
    if case.kind == "A3TGCN":
        features = torch.sum(sequence * model.attention(sequence), dim=1)
    else:
        features = sequence if case.sequence else states[-1]
    y = backbone.out(features)
    named = {name: head(y) for name, head in model.heads.items()} if hasattr(model, "heads") else {"y": y}
    if case.returned:
        named |= {f"state[{i}]": one for i, one in enumerate(states)}
    return {name: one.reshape(*lead, *one.shape[1:]) for name, one in named.items()}


def _product(sizes: tuple[int, ...]) -> int:
    return int(torch.Size(sizes).numel())


def _native_cell(
    case: Case,
    model: Any,
    x: Tensor,
    edges: tuple[Any, ...],
    h: list[Tensor] | None,
    _: Tensor | None,
    present: Tensor | None,
) -> dict[str, Tensor]:
    x, state = x.transpose(-1, -2), None if h is None else h[0]
    if case.kind.startswith("temporal.A3"):
        return {"y": model(x, *edges, H=state)}
    if case.steps == 1 and not case.sequence and present is None:
        return {"y": model(x[..., 0], *edges, H=state)}
    return {"y": model.sequence(x, *edges, H=state, return_sequence=case.sequence, present=present)}


def _oracle_cell(
    case: Case,
    model: Any,
    x: Tensor,
    edges: tuple[Tensor, Tensor | None],
    h: list[Tensor] | None,
    _: Tensor | None,
    present: Tensor | None,
) -> dict[str, Tensor]:
    state = None if h is None else h[0]
    if case.kind.startswith("temporal.A3"):
        return {"y": model(x.transpose(-1, -2), *edges, state)}
    state = x.new_zeros(*x.shape[:-2], case.hidden) if state is None else state
    if present is not None and x.numel():
        whole = x.dim() == 4
        parts = zip(x, state, present, strict=True) if whole else [(x, state, present)]
        pairs = [on_subgraphs([model], part, edges, [before], there) for part, before, there in parts]
        found = [every.movedim(1, -1) if case.sequence else last for every, (last,) in pairs]
        return {"y": torch.stack(found) if whole else found[0]}
    states = []
    for step in x.unbind(-2):
        state = model(step, *edges, state)
        states.append(state)
    if not case.sequence:
        return {"y": state}
    return {"y": torch.stack(states, -1) if states else x.new_zeros(*x.shape[:-2], case.hidden, 0)}


def _decided(signal: Tensor, direction: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, predictions and confidences of logits, row by row as the contract says."""
    noise, yes = signal.softmax(-1).unbind(-1)
    down, up = direction.softmax(-1).unbind(-1)
    is_signal = yes > threshold
    prediction = torch.where(is_signal, torch.where(up > down, 2, 0), 1)
    confidence = torch.where(is_signal, torch.maximum(down, up), torch.maximum(noise, yes))
    return torch.stack([noise, yes, down, up], -1), prediction, confidence
