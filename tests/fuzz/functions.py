"""The functions of a case, native and twin, and the oracles of the operators in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hiermt
from fuzz.case import Case
from fuzz.compare import Found, differentiated
from fuzz.graphs import counted_once, edges_of
from fuzz.models import laid_out, rounded
from fuzz.presence import convolved, scanned
from hiermt import functional
from hiermt.testing import batched
from support.oracles import ORACLES, gathered
from support.problems import LOSSES

_ON_EDGES = ("conv_stack", "gatv2_conv", "gcn_conv", "tgcn_layer")
# What follows the last convolution, by name and as the operator numbers it.
_ACTIVATIONS = {"none": 0, "leaky_relu": 1, "sigmoid": 2}
_THRESHOLDS = (0.5, 0.3, 0.0, 0.9)


class FunctionProblem:
    """Arguments of one of ``hiermt.functional``: tensors by name, and what it takes besides."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.dtype: torch.dtype = getattr(torch, case.dtype)
        self.generator = torch.Generator().manual_seed(case.numbers)
        self.edge_index, self.exact_weight = edges_of(case)
        self.starts: Tensor | None = None
        self.tensors: dict[str, Tensor] = {}
        self._make()
        self.wanted = torch.Generator()

    def _add(self, name: str, *shape: int, factor: float = 1.0, bounded: bool = False) -> None:
        numbers = rounded(self.case, self.generator, *shape)
        numbers = numbers.sigmoid() if bounded else numbers * factor
        self.tensors[name] = laid_out(numbers.to(self.dtype), self.case.layout)

    def _stack(self, layers: int) -> None:
        case = self.case
        for k in range(layers):
            channels = case.hidden if k else case.channels
            pairs = [("lin_l", channels), ("lin_r", channels)] if case.gat else [("lin", channels)]
            for name, inputs in pairs:
                self._add(f"conv{k}.{name}.weight", case.hidden, inputs, factor=inputs**-0.5)
                if case.gat:
                    self._add(f"conv{k}.{name}.bias", case.hidden, factor=0.4)
            if case.gat:
                self._add(f"conv{k}.att", 1, 1, case.hidden, factor=case.hidden**-0.5)
            self._add(f"conv{k}.bias", case.hidden, factor=0.4)
            if case.gat and case.edge:
                self._add(f"conv{k}.lin_edge.weight", case.hidden, 1, factor=0.5)

    def _gates(self, channels: int, hidden: int) -> None:
        columns = channels + (1 if self.case.one_input else 2) * hidden
        for gate in "urc":
            self._add(f"gate.{gate}.weight", hidden, columns, factor=columns**-0.5)
            self._add(f"gate.{gate}.bias", hidden, factor=0.3)

    def _make(self) -> None:
        case = self.case
        rows = case.nodes * case.copies
        windows = case.kind == "gated_scan_windows" or (case.kind == "tgcn_layer" and case.form == "windows")
        days = case.steps + 2 * case.copies if windows else case.steps
        if windows:
            self.starts = torch.randint(days - case.steps + 1, (case.copies,), generator=self.generator)
        series = case.nodes if windows else rows
        if case.kind in _ON_EDGES or case.kind.startswith("gated_scan"):
            self._add("x", series, days, case.channels)
        if case.kind in _ON_EDGES:
            self._stack(case.conv_layers if case.kind in ("conv_stack", "tgcn_layer") else 1)
        if case.kind.startswith("gated_scan") and not case.one_input:
            self._add("g", series, days, case.hidden, bounded=True)
        if case.kind.startswith("gated_scan") or case.kind == "tgcn_layer":
            self._gates(case.channels, case.hidden)
            if case.state and case.kind != "gated_scan_windows":
                self._add("h0", rows, case.hidden, bounded=True)
        if case.kind in ("heads", "decision"):
            self._add("h", rows, case.hidden)
            for name, rows_out, columns in (
                ("out", case.channels, case.hidden),
                *((one, 2, case.channels) for one in "sd"),
            ):
                self._add(f"{name}.weight", rows_out, columns, factor=0.3)
                self._add(f"{name}.bias", rows_out, factor=0.3)
        if case.kind in ("decision_from_logits", "multitask_loss"):
            self._add("signal", rows, 2)
            self._add("direction", rows, 2)
        self.targets = torch.randint(2, (2, rows), generator=self.generator)
        self.present = self._come_and_go(rows) if case.present else None
        self.mask = torch.randint(3, (rows,), generator=self.generator) == 0 if case.state else None

    def _come_and_go(self, rows: int) -> Tensor:
        """Where a node is there, on each day of x; of a loss, which rows count."""
        x = self.tensors.get("x")
        present = torch.rand((rows,) if x is None else x.shape[:2], generator=self.generator) < 0.7
        for name in ("x", "g", "signal", "direction") if self.case.layout != "expanded" else ():
            if name in self.tensors:
                self.tensors[name][~present] = torch.nan
        return present

    def _group(self, tensors: dict[str, Tensor], *prefixes: str) -> list[Tensor]:
        return [one for name, one in tensors.items() if name.startswith(prefixes)]

    def evaluate(self, side: str) -> Found:
        """Runs one of ``native``, ``reference`` and ``oracle``."""
        exact, case = side == "oracle", self.case
        dtype = torch.float64 if exact else self.dtype
        tensors = {name: one.detach().double() if exact else one.detach() for name, one in self.tensors.items()}
        weight = None if self.exact_weight is None else self.exact_weight.to(dtype)
        if weight is not None and case.kind in _ON_EDGES:
            tensors["edge_weight"] = weight
        self.wanted.manual_seed(max(case.wanted, 0))
        for name in sorted(tensors):
            chosen = bool(torch.randint(2, (), generator=self.wanted))
            tensors[name].requires_grad_(case.wanted == 0 or (case.wanted > 0 and chosen))
        # Of nothing, PyTorch's own modules make errors.
        empty = not (case.steps and case.copies)
        if exact and not empty:
            found = self._oracle(tensors, weight)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast and not exact):
                found = self._ours(tensors, weight, "reference" if exact else side)
        decision, values = None, found
        if case.kind in ("decision", "decision_from_logits"):
            *logits, probabilities, predictions, confidences = found
            values = logits
            decision = (probabilities.detach(), predictions, confidences.detach(), self.threshold)
        named = {str(i): one for i, one in enumerate(values)}
        gradients = differentiated(named, tensors, case.cotangent)
        if exact and "edge_weight" in gradients:
            gradients["edge_weight"] = counted_once(case, self.edge_index, gradients["edge_weight"])
        return Found({name: one.detach() for name, one in named.items()}, gradients, decision)

    @property
    def threshold(self) -> float:
        return _THRESHOLDS[self.case.seed % len(_THRESHOLDS)]

    @property
    def activation(self) -> str:
        names = [name for name in _ACTIVATIONS if self.case.between or name != "leaky_relu" or self._single]
        return names[self.case.seed % len(names)]

    @property
    def _single(self) -> bool:
        return self.case.kind in ("gatv2_conv", "gcn_conv")

    @property
    def _last(self) -> int:
        """What follows the last convolution of a stack, as the oracle numbers it."""
        if self.case.between or self._single:
            return _ACTIVATIONS[self.activation]
        return 3 if self.activation == "sigmoid" else 1

    def _loss(self) -> tuple[Any, ...]:
        return LOSSES[list(LOSSES)[self.case.seed % len(LOSSES)]]

    def _ours(self, tensors: dict[str, Tensor], weight: Tensor | None, backend: str) -> list[Tensor]:
        case = self.case
        call: Callable[..., Any] = getattr(functional, case.kind)
        options: dict[str, Any] = {"backend": backend}
        convs, gates = self._group(tensors, "conv"), self._group(tensors, "gate.")
        if self.present is not None and "x" in tensors and not (case.kind == "tgcn_layer" and self.starts is not None):
            options["present"] = self.present
        if case.kind in _ON_EDGES:
            graph = hiermt.Graph(self.edge_index, weight, case.nodes, backend=backend)
            if not self._single:
                options |= {"conv_layers": case.conv_layers, "gat": case.gat, "edge": case.edge}
                options["conv_activation"] = "between" if case.between else "after"
            if case.kind != "tgcn_layer":
                options["activation"] = self.activation
                if not case.gat:
                    options["loop_weight"] = case.loop_weight
        if case.kind == "tgcn_layer":
            x: Any = tensors["x"]
            x = x if self.starts is None else hiermt.windows.Windows(x, self.starts, case.steps, self.present)
            return [call(x, graph, convs, gates, h0=tensors.get("h0"), sequence=case.sequence, **options)]
        if self._single:
            return [call(tensors["x"], graph, *convs, **options)]
        if case.kind == "conv_stack":
            return [call(tensors["x"], graph, convs, **options)]
        if case.kind == "gated_scan":
            scan = (tensors["x"], tensors.get("g"), tensors.get("h0"), gates)
            return [call(*scan, sequence=case.sequence, **options)]
        if case.kind == "gated_scan_windows":
            windows = (tensors["x"], tensors.get("g"), self.starts, case.steps, gates)
            return [call(*windows, sequence=case.sequence, **options)]
        if case.kind in ("heads", "decision"):
            threshold = {} if case.kind == "heads" else {"threshold": self.threshold}
            return list(call(tensors["h"], self._group(tensors, "out.", "s.", "d."), **threshold, **options))
        if case.kind == "decision_from_logits":
            return list(call(tensors["signal"], tensors["direction"], self.threshold, **options))
        extra = dict(
            zip(("signal_weight", "direction_weight", "label_smoothing", "focal_gamma"), self._loss(), strict=False)
        )
        logits = (tensors["signal"], tensors["direction"], *self.targets)
        return list(call(*logits, self.mask, 0.7, row_mask=self.present, **extra, **options))

    def _oracle(self, tensors: dict[str, Tensor], weight: Tensor | None) -> list[Tensor]:
        case = self.case
        convs, gates = self._group(tensors, "conv"), self._group(tensors, "gate.")
        copies = case.copies if case.kind in _ON_EDGES and self.starts is None else 1
        graph = batched(self.edge_index.long(), weight, case.nodes, copies) if case.kind in _ON_EDGES else None
        x = tensors.get("x")
        scan: dict[str, Any] = {"sequence": case.sequence, "steps": case.steps}
        if self.present is not None and x is not None:
            return self._oracle_on_subgraphs(tensors, x, graph, self.present)
        if case.kind == "tgcn_layer":
            state = (tensors.get("h0"), self.starts)
            stack = {"conv_layers": case.conv_layers, "between": case.between}
            return ORACLES["tgcn_layer"](graph, x, None, None, convs, gates, *state, **stack, **scan)
        if case.kind in _ON_EDGES:
            return _conv_stack(case, graph, x, convs, 1 if self._single else case.conv_layers, self._last)
        if case.kind.startswith("gated_scan"):
            return ORACLES["gated_scan"](None, x, tensors.get("g"), tensors.get("h0"), gates, self.starts, **scan)
        if case.kind in ("heads", "decision"):
            params = (tensors["h"], *self._group(tensors, "out.", "s.", "d."))
            found = ORACLES["decision"](None, *params, threshold=self.threshold)
            return found[:2] if case.kind == "heads" else found
        if case.kind == "decision_from_logits":
            return ORACLES["decision_from_logits"](None, tensors["signal"], tensors["direction"], self.threshold)
        logits = (tensors["signal"], tensors["direction"], *self.targets)
        losses = self._loss() or (None, None, 0.0, 0.0)
        return ORACLES["multitask_loss"](None, *logits, self.mask, 0.7, *losses, self.present)

    def _oracle_on_subgraphs(self, tensors: dict[str, Tensor], x: Tensor, graph: Any, present: Tensor) -> list[Tensor]:
        case = self.case
        g, layers = tensors.get("g"), 1 if self._single else case.conv_layers
        if case.kind in _ON_EDGES:
            activation = self._last if case.kind != "tgcn_layer" else 2 if case.between else 3

            def stack(part: Tensor, edges: Any) -> Tensor:
                return _conv_stack(case, edges, part, self._group(tensors, "conv"), layers, activation)[0]

            g = convolved(stack, x, graph, present, case.hidden)
            if case.kind != "tgcn_layer":
                return [g]
        if self.starts is not None:
            x, present = gathered(x, self.starts, case.steps), gathered(present, self.starts, case.steps)
            g = None if g is None else gathered(g, self.starts, case.steps)
        gates = self._group(tensors, "gate.")
        return scanned(x, g, tensors.get("h0"), gates, present, case.sequence)


def _conv_stack(case: Case, graph: Any, x: Any, params: list[Tensor], layers: int, activation: int) -> list[Tensor]:
    """The operator's oracle, which knows one weight of added loops; with another, PyG is asked for it."""
    if case.gat or case.loop_weight == 1.0:
        return ORACLES["conv_stack"](graph, x, None, None, params, conv_layers=layers, activation=activation)
    from torch_geometric.nn import GCNConv

    from support.oracles import ACTIVATIONS

    improved, loops = case.loop_weight == 2.0, case.loop_weight != 0.0
    if improved and graph[1] is None:  # PyG does not read it without weights
        graph = (graph[0], x.new_ones(graph[0].size(1)))
    y = x.transpose(0, 1)
    for i in range(layers):
        weight, bias = params[2 * i : 2 * i + 2]
        conv = GCNConv(weight.size(1), weight.size(0), improved=improved, add_self_loops=loops).double()
        given = {"lin.weight": weight, "bias": bias}
        y = torch.func.functional_call(conv, given, (y, *graph))
        y = ACTIVATIONS[activation if i == layers - 1 else 1](y)
    return [y.transpose(0, 1)]
