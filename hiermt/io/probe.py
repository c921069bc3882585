"""Comparison of two modules: copies of both run on a small graph, and values and gradients must agree.

Names and shapes of parameters do not determine what a module computes; a run does.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hiermt.io.isolation import cached_results, isolated, seed_all

# Largest difference over the largest value. Constants that the source keeps in float32 cause about 1e-8.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LAYOUTS = ("NFT", "NTF")
# More steps than the windows in use.
_LONG = 40
_GATES = (
    "g = sigmoid(conv_stack(x)); u = sigmoid(lin_u[x, g, h]); r = sigmoid(lin_r[x, g, h]); "
    "c = tanh(lin_c[x, g, r * h]); h = u * h + (1 - u) * c"
)
_ACTIVATIONS = {
    "between": "leaky_relu(0.01) between the convolutions, none after the last (conv_activation='between')",
    "after": "leaky_relu(0.01) after each convolution (conv_activation='after')",
}

Outputs = tuple[Tensor, ...]
Run = tuple[Outputs, Outputs]  # values and gradients
Build = Callable[[nn.Module, str], nn.Module]


class Different(ValueError):
    """The modules differ, or could not be compared; the message says which."""


class _NotRun(Exception):
    """The source raised an exception."""


@dataclass(frozen=True)
class Agreement:
    """The options under which both modules agree: order of x in the source, and place of the activation."""

    layout: str
    conv_activation: str


@dataclass(frozen=True)
class _Case:
    """Inputs; x is ``[N, T, F]``. `unused` are weights for a source that requires but ignores them."""

    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    unused: Tensor


def agree(
    source: nn.Module, build: Build, conv_activations: Sequence[str], in_channels: int, weighted: bool
) -> Agreement:
    """Runs copies of both modules with the same random parameters and compares values and gradients.

    The source, its gradients and all random generators remain unchanged.

    Args:
        source (Module): takes ``(x, edge_index, edge_weight)``.
        build (callable): from a copy of `source` and a ``conv_activation`` to our model, layout ``"NTF"``, which
            shares the parameters of the copy.
        conv_activations (sequence of str): candidates.
        in_channels (int): ``F``.
        weighted (bool): whether our model reads edge weights.

    Raises:
        Different: they agree under no option, or `source` cannot be run.
    """
    own = next((parameter.device for parameter in source.parameters()), torch.device("cpu"))
    own = torch.device("cpu") if own.type == "meta" else own
    attempts = [(torch.device("cpu"), torch.float64), (own, torch.float64), (own, torch.float32)]
    reasons: list[str] = []
    # A forward may hard-code a device or dtype.
    for device, dtype in dict.fromkeys(attempts):
        with isolated(device):
            try:
                return _Comparison(source, build, in_channels, weighted, device, dtype).run(conv_activations)
            except _NotRun as error:
                reasons.append(str(error))
    raise Different(f"it could not be run to compare it: {reasons[0]}")


class _Comparison:
    """A comparison on one device and in one dtype."""

    def __init__(
        self,
        source: nn.Module,
        build: Build,
        in_channels: int,
        weighted: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.build, self.device, self.dtype = build, device, dtype
        self.generator = torch.Generator(device="cpu").manual_seed(20_011)
        self.source = self._copied(source)
        self.in_channels = in_channels
        self.takes_weights = _takes_weights(self.source)
        self.weighted = weighted and self.takes_weights

    def run(self, conv_activations: Sequence[str]) -> Agreement:
        self.source.eval()
        case = self._case(nodes=9, edges=24, steps=3, scale=1.0, loops=(0, 1))
        ours = {name: self.build(self.source, name).eval() for name in conv_activations}
        found, theirs, mine = self._agreement(ours, case)
        model = ours[found.conv_activation]
        self._check("the gradients", theirs[1], mine[1], found, "in evaluation mode")
        self._check_training(found, case, mine)
        # Other sizes, large values to reveal a bound, and a duplicate loop: PyG reads the last, differentiates both.
        other = self._case(nodes=6, edges=11, steps=2, scale=30.0, loops=(0, 1, 1))
        self._check("the results", self._call(other, found.layout), _values(model, other), found, "for large x")
        self._check_long(found, model)
        if self.weighted:
            self._check_unweighted(found, model, case)
        return found

    def _check_long(self, found: Agreement, model: nn.Module) -> None:
        """Many steps with a long memory, and weights outside (0, 1], reveal a bound on either."""
        keeping = [one for name, one in self.source.named_parameters() if name.endswith("lin_u.bias")]
        for bias in keeping:
            bias.data.add_(3.0)
        case = self._case(nodes=6, edges=12, steps=_LONG, scale=1.0, loops=(0,), wide=True)
        theirs = self._differentiated(partial(self._call, case, found.layout), case)
        mine = self._differentiated(partial(_values, model, case), case)
        when = f"over {_LONG} steps with weights outside of (0, 1]" if self.weighted else f"over {_LONG} steps"
        self._check("the results", theirs[0], mine[0], found, when)
        self._check("the gradients", theirs[1], mine[1], found, when)
        for bias in keeping:
            bias.data.sub_(3.0)

    def _check_unweighted(self, found: Agreement, model: nn.Module, case: _Case) -> None:
        """Modules that can run without edge weights must agree then too. Some replace them by float32 ones."""
        for dtype in dict.fromkeys((self.dtype, torch.float32)):
            self.dtype = dtype
            self.source.to(dtype)
            case = _Case(case.x.detach().to(dtype), case.edge_index, None, case.unused)
            with contextlib.suppress(_NotRun):
                theirs = self._call(case, found.layout)
                self._check("the results", theirs, _values(model, case), found, "without edge weights")
                return

    def _agreement(self, ours: dict[str, nn.Module], case: _Case) -> tuple[Agreement, Run, Run]:
        """The options under which the values agree, with the runs of both."""
        results = {name: self._differentiated(partial(_values, model, case), case) for name, model in ours.items()}
        failures: list[str] = []
        tried: list[tuple[float, Agreement, Run, Run]] = []
        for layout in _LAYOUTS:
            try:
                theirs = self._differentiated(partial(self._call, case, layout), case)
            except _NotRun as error:
                failures.append(f"x as [{', '.join(layout)}]: {error}")
                continue
            for name, mine in results.items():
                tried.append((_difference(theirs[0], mine[0]), Agreement(layout, name), theirs, mine))
        if not tried:
            raise _NotRun("; ".join(failures))
        # The first that agrees; else the nearest, to report its difference.
        good = [trial for trial in tried if trial[0] <= _TOLERANCE[self.dtype]]
        _, found, theirs, mine = good[0] if good else min(tried, key=lambda trial: trial[0])
        self._check("the results", theirs[0], mine[0], found, "in evaluation mode")
        return found, theirs, mine

    def _check_training(self, found: Agreement, case: _Case, mine: Run) -> None:
        self.source.train()
        torch.manual_seed(1)
        before = torch.get_rng_state()
        theirs = self._differentiated(partial(self._call, case, found.layout), case)
        drew = not torch.equal(before, torch.get_rng_state())
        for seed in (2, 3):
            seed_all(seed)
            again = self._call(case, found.layout)
            difference = _difference(again, theirs[0])
            if drew or not difference <= _TOLERANCE[self.dtype]:
                raise Different(
                    "in training mode it draws random numbers, as dropout does, or keeps something from call to call: "
                    f"two calls with the same inputs differ by {difference:.2g}; a T-GCN does neither"
                )
        self._check("the results", theirs[0], mine[0], found, "in training mode")
        self._check("the gradients", theirs[1], mine[1], found, "in training mode")
        self.source.eval()

    def _check(self, what: str, theirs: Outputs, ours: Outputs, found: Agreement, when: str) -> None:
        shapes, expected = ([list(value.shape) for value in outputs] for outputs in (theirs, ours))
        if shapes != expected:
            raise Different(f"{what} have the shapes {shapes}, expected {expected}")
        difference = _difference(theirs, ours)
        if not difference <= _TOLERANCE[self.dtype]:
            raise Different(
                f"{what} {when} differ by {difference:.2g} of the largest value, on a random graph with random "
                f"parameters. Assumed: {_GATES}; {_ACTIVATIONS[found.conv_activation]}; x as "
                f"[{', '.join(found.layout)}]"
            )

    def _differentiated(self, run: Callable[[], Outputs], case: _Case) -> Run:
        """Values, and the gradients of a random combination of them."""
        values = run()
        inputs = [*self.source.parameters(), *(t for t in (case.x, case.edge_weight) if t is not None)]
        # A new generator gives both modules the same combination.
        generator = torch.Generator(device="cpu").manual_seed(7)
        loss = values[0].new_zeros(())
        for value in values:
            factor = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu")
            loss = loss + (value * factor.to(value)).sum()
        gradients: Sequence[Tensor | None] = [None] * len(inputs)
        if loss.requires_grad:
            try:
                gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
            except RuntimeError as error:  # the source caches tensors or changes them in place
                raise Different(f"its gradients could not be computed: {_first_line(error)}") from None
        detached = tuple(value.detach() for value in values)
        return detached, tuple(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, inputs, strict=True))

    def _call(self, case: _Case, layout: str) -> Outputs:
        x = case.x.transpose(1, 2) if layout == "NFT" else case.x
        weights: list[tuple[Any, ...]] = [()]
        if self.takes_weights:
            weights = [(case.edge_weight,)] if self.weighted else [(None,), (case.unused,)]
        reason = ""
        for weight in weights:
            try:
                with torch.autocast(self.device.type, enabled=False):
                    found = self.source(x, case.edge_index, *weight)
                break
            except Exception as error:
                reason = reason or f"{type(error).__name__}: {_first_line(error)}"
        else:
            raise _NotRun(reason)
        own = isinstance(found, dict) and getattr(self.source, "heads", {}).keys() == found.keys()
        outputs = _as_tuple(found) if own or not isinstance(found, dict) else (found,)
        if not outputs or not all(isinstance(value, Tensor) and value.is_floating_point() for value in outputs):
            raise Different(f"its forward returns {_described(found)}; expected the logits alone")
        return outputs

    def _case(
        self, nodes: int, edges: int, steps: int, scale: float, loops: tuple[int, ...], wide: bool = False
    ) -> _Case:
        """A directed graph with self loops, duplicates and isolated nodes; weights in (0, 1], or outside if `wide`."""
        # Equal sizes would hide a wrong layout.
        steps += 2 * (steps == self.in_channels)
        nodes += 2 * (nodes == self.in_channels)
        generator, connected = self.generator, nodes - 2
        source = torch.randint(connected, (edges,), generator=generator, dtype=torch.int64, device="cpu")
        offset = torch.randint(1, connected, (edges,), generator=generator, dtype=torch.int64, device="cpu")
        pairs = torch.stack([source, (source + offset) % connected])
        loop = torch.tensor([loops, loops], dtype=torch.int64, device="cpu")
        edge_index = torch.cat([pairs, loop, pairs[:, :3]], dim=1)
        weight = 1 - torch.rand(edge_index.size(1), generator=generator, dtype=torch.float64, device="cpu")
        if wide:
            weight = 1 + 2 * weight
            # Slightly negative: a negative degree would make the GCN norm NaN.
            weight[:edges:4] *= -0.001
        x = scale * torch.randn(nodes, steps, self.in_channels, generator=generator, dtype=torch.float64, device="cpu")
        weight = weight.to(self.device, self.dtype)
        return _Case(
            x.to(self.device, self.dtype).requires_grad_(),
            edge_index.to(self.device),
            weight.clone().requires_grad_() if self.weighted else None,
            weight,
        )

    def _copied(self, source: nn.Module) -> nn.Module:
        """A copy with random parameters: the original ones may be zero, saturated or NaN."""
        try:
            made = copy.deepcopy(source, cached_results(source))
            if any(parameter.is_meta for parameter in made.parameters()):
                made.to_empty(device=self.device)
            made.to(self.device, self.dtype)
        except Exception as error:
            raise Different(f"it could not be copied to compare it ({type(error).__name__}: {error})") from None
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.requires_grad_(True)
                bound = 0.5 if parameter.dim() < 2 else (4.0 / max(parameter.size(-1), 1)) ** 0.5
                values = torch.rand(parameter.shape, generator=self.generator, dtype=self.dtype, device="cpu")
                parameter.copy_((2 * values - 1) * bound)
        return made


def _takes_weights(source: nn.Module) -> bool:
    """Whether `forward` takes edge weights; raises for another signature."""
    try:
        signature = inspect.signature(source.forward)
    except (TypeError, ValueError):
        return True
    for count in (3, 2):
        with contextlib.suppress(TypeError):
            signature.bind(*range(count))
            return count == 3
    raise Different(f"its forward takes {signature}; expected (x, edge_index, edge_weight)")


def _values(model: nn.Module, case: _Case) -> Outputs:
    return _as_tuple(model(case.x, case.edge_index, case.edge_weight))


def _as_tuple(found: Any) -> tuple[Any, ...]:
    if isinstance(found, dict):
        return tuple(found.values())
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def _difference(theirs: Outputs, ours: Outputs) -> float:
    """Largest difference over the largest value; infinite for different shapes or NaN."""
    if [value.shape for value in theirs] != [value.shape for value in ours]:
        return float("inf")
    largest = max((float(value.detach().abs().max()) for value in ours if value.numel()), default=0.0)
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.numel():
            # Each tensor has its own scale, bounded below by the rounding error of the largest.
            scale = max(float(mine.detach().abs().max()), 1e-4 * largest, 1e-30)
            found = float((mine.detach() - other.detach().to(mine)).abs().max()) / scale
            worst = max(worst, found) if found == found else float("inf")
    return worst


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:300]


def _described(found: object) -> str:
    if isinstance(found, (tuple, list)):
        return f"{len(found)} values: {', '.join(type(value).__name__ for value in found[:4])}"
    return f"a {type(found).__name__}"
