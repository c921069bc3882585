"""The rounding error of random models, as a ratio to that of PyG in the same dtype.

Both read the same rounded weights and inputs; the truth is PyG in float64. The error of a tensor (the logits, each
gradient) is the norm of its difference from the truth. From the command line, with the worst tensors::

    export OMP_WAIT_POLICY=passive  # beside other work, threads that spin while they wait make hours of minutes
    PYTHONPATH=tests python -m support.error_ratios --models 200 --dtype float32 --scale 5 --orders 5
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import hiermt
from hiermt.testing import stock_graph
from hiermt.testing.pyg import like

# Inputs of a model, over which an error is the root mean square. That of one input is noise: of two vectors of three
# elements, rounded equally well, one is off by more than twice the other in a seventh of all cases.
DRAWS = 8
KINK = 128 * torch.finfo(torch.float32).eps


class Ratio(NamedTuple):
    """One tensor of one model."""

    ratio: float
    error: float  # relative to the norm of the truth
    name: str
    model: str


class Case(NamedTuple):
    """A random model with weights and an input, in float64."""

    model: hiermt.TGCN_HierarchicalMT
    x: Tensor
    edges: tuple[Tensor, Tensor | None]
    label: str


def random_case(seed: int, scale: float = 1.0) -> Case:
    """A model of the whole family; `scale` multiplies the weights that a constructor gives."""
    torch.manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), ()))]

    gat, nodes = pick(True, True, False), pick(7, 20, 40)
    options = {
        "use_gat": gat,
        "conv_layers": pick(1, 2, 2, 3),
        "edge_dim": pick(1, 1, None) if gat else 1,
        "conv_activation": pick("between", "after"),
    }
    channels, hidden, layers, steps = pick(1, 5, 13, 20), pick(3, 8, 16, 16, 33), pick(1, 2), pick(1, 3, 6)
    model = hiermt.TGCN_HierarchicalMT(channels, hidden, layers, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            # A constructor leaves the biases of a convolution at zero, which hides their part.
            parameter.add_(0.1 * torch.randn_like(parameter)).mul_(scale)
    index, weight = stock_graph(nodes, int(nodes * pick(1, 3, 6)) // 2 * 2, 1, seed)
    x = torch.randn(DRAWS, nodes, steps, channels, dtype=torch.float64)
    words = [str(value) for value in options.values()]
    label = f"{seed}: N={nodes} T={steps} F={channels} H={hidden} L={layers} {' '.join(words)}"
    return Case(model, x, (index, None if gat and options["edge_dim"] is None else weight.double()), label)


def tensors(
    module: torch.nn.Module, x: Tensor, edges: tuple[Tensor, Tensor | None], seed: int, order: Tensor | None = None
) -> dict[str, Tensor]:
    """Logits and gradients of a sum of them with random weights, in float64; `order` is that of the nodes."""
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    weight = None if edges[1] is None else edges[1].clone().requires_grad_()
    logits = module(leaf, edges[0], weight)
    generator = torch.Generator().manual_seed(seed)
    seeds = [torch.randn(one.shape, generator=generator).to(one.dtype) for one in logits]
    torch.autograd.backward(list(logits), seeds if order is None else [one[order] for one in seeds])
    found = {"signal": logits[0], "direction": logits[1], "x": leaf.grad}
    if weight is not None:
        found["edge_weight"] = weight.grad
    found |= {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: one.detach().double().clone() for name, one in found.items() if one is not None}


def _orders(name: str, shape: torch.Size, features: Tensor, channels: Tensor) -> list[Tensor]:
    """The order of each dimension of a parameter of the oracle."""
    orders = [torch.arange(size) for size in shape]
    part = name.removeprefix("tgcn_backbone.").split(".")
    if part[0] != "cells":  # the output layer keeps its order, and the heads read it
        return [orders[0], channels] if name == "tgcn_backbone.out.0.weight" else orders
    if part[-1] == "att":
        return [*orders[:2], channels]
    if len(shape) == 1 or "lin_edge" in name:
        return [channels, *orders[1:]]
    inputs, hidden = features if part[1] == "0" else channels, len(channels)
    if "convs" in part:
        return [channels, inputs if part[4] == "0" else channels]
    return [channels, torch.cat([inputs, len(inputs) + channels, len(inputs) + hidden + channels])]


def reordered(
    module: Any, x: Tensor, edges: tuple[Tensor, Tensor | None], seed: int, which: int = 0
) -> dict[str, Tensor]:
    """As :func:`tensors`, computed with nodes, edges, features and channels in a random order, and put in their own."""
    nodes, features, hidden = x.size(0), x.size(-1), module.tgcn_backbone.hidden_size
    generator = torch.Generator().manual_seed(seed + 1 + DRAWS * which)
    order, inputs, channels, entries = (
        torch.randperm(size, generator=generator) for size in (nodes, features, hidden, edges[0].size(1))
    )
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(parameter[torch.meshgrid(*_orders(name, parameter.shape, inputs, channels), indexing="ij")])
    given = order.argsort()[edges[0]][:, entries], None if edges[1] is None else edges[1][entries]
    found = tensors(module, x[order][:, :, inputs], given, seed, order)
    back = {"x": [order.argsort(), torch.arange(x.size(1)), inputs.argsort()], "edge_weight": [entries.argsort()]}
    back |= {name: [order.argsort(), torch.arange(2)] for name in ("signal", "direction")}
    for name, parameter in module.named_parameters():
        back[name] = [one.argsort() for one in _orders(name, parameter.shape, inputs, channels)]
    return {name: one[torch.meshgrid(*back[name], indexing="ij")] for name, one in found.items()}


@contextmanager
def nearest_kink() -> Iterator[list[float]]:
    """Collects, of each leaky_relu that runs, the smallest argument as a share of the largest."""
    found, original = [], F.leaky_relu

    def measured(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        size = z.detach().abs()
        if size.numel():
            found.append(float(size.min() / size.max()))
        return original(z, *args, **kwargs)

    F.leaky_relu = measured
    try:
        yield found
    finally:
        F.leaky_relu = original


def ratios(case: Case, dtype: torch.dtype, orders: int = 1, backend: str = "native") -> Iterator[Ratio]:
    """Of each tensor whose truth is not zero: the root mean squares of the relative errors over inputs and orders.

    Beside their own order, both compute with nodes, edges, features and channels in `orders` - 1 others: where a
    softmax makes the roundings of scores large, the error of one order is chance. PyG's is then up to forty times that
    of another.

    An input is left out if an argument of leaky_relu is as near to zero as a rounding: there a single rounding chooses
    the slope, in PyG as here, and moves every gradient by more than all other roundings together.
    """
    model, weight = case.model.to(dtype), None if case.edges[1] is None else case.edges[1].to(dtype)
    model.tgcn_backbone.backend = backend
    plain = like(model)
    exact = like(model).double()
    given = case.edges[0], weight
    squares: dict[str, list[Tensor]] = {}
    for seed, x in enumerate(case.x.to(dtype)):
        with nearest_kink() as shares:
            truth = tensors(exact, x.double(), (case.edges[0], None if weight is None else weight.double()), seed)
        if dtype == torch.float32 and min(shares, default=1.0) < KINK:
            continue
        for which in range(orders):
            found = [
                reordered(one, x, given, seed, which) if which else tensors(one, x, given, seed)
                for one in (model, plain)
            ]
            for name, one in truth.items():
                norm = one.norm()
                if norm > 0:
                    errors = torch.stack([(each[name] - one).norm() / norm for each in found])
                    squares.setdefault(name, []).append(errors.square())
    for name, of_name in squares.items():
        error, other = torch.stack(of_name).mean(0).sqrt().tolist()
        yield Ratio(error / other, error, name, case.label)


def measured(
    models: int, dtype: torch.dtype, scale: float = 1.0, orders: int = 1, backend: str = "native"
) -> list[Ratio]:
    """The ratios of every tensor of `models` models, in ascending order."""
    found = [one for seed in range(models) for one in ratios(random_case(seed, scale), dtype, orders, backend)]
    return sorted(found)


def quantile(found: list[Ratio], share: float) -> float:
    return found[min(int(share * len(found)), len(found) - 1)].ratio


def distribution(found: list[Ratio]) -> str:
    """One line."""
    shares = ("50", 0.5), ("90", 0.9), ("99", 0.99), ("99.9", 0.999)
    words = [f"{name} %: {quantile(found, share):.2f}" for name, share in shares]
    return f"{len(found)} tensors, ratio to the error of PyG: {', '.join(words)}, worst {found[-1].ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--orders", type=int, default=1)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--worst", type=int, default=12)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    found = measured(arguments.models, dtype, arguments.scale, arguments.orders, arguments.backend)
    print(distribution(found))
    for one in reversed(found[-arguments.worst :]):
        print(f"  {one.ratio:6.2f}  relative error {one.error:.1e}  {one.name}  [{one.model}]")


if __name__ == "__main__":
    main()
