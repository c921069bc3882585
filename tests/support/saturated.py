"""A GATv2 whose softmax gives nearly everything to one neighbour, so that the others decide its gradients alone."""

from __future__ import annotations

import torch
from torch import Tensor

from hiermt import Graph, functional
from support.present import pyg_conv

NODES = 12
# Of these the gradient goes through the scores alone.
THROUGH_SCORES = ("lin_r", "lin_r_bias", "att")


def gradients(side: str, dtype: torch.dtype, hidden: int, sign: float) -> dict[str, Tensor]:
    """On a ring, where the score of each neighbour is 14 above that of the one before; `sign` turns the ring round."""
    generator = torch.Generator().manual_seed(hidden)
    ring = torch.arange(NODES)
    edges = torch.stack([torch.cat([ring, ring.roll(1)]), torch.cat([ring.roll(1), ring])])
    x = (sign * 0.5 * torch.arange(NODES)).reshape(NODES, 1, 1).expand(NODES, 1, hidden)
    sizes = (hidden, hidden), (hidden,)
    params = [torch.eye(hidden), 0.1 * torch.randn(sizes[1], generator=generator)]
    params += [0.1 * torch.randn(size, generator=generator) for size in sizes]
    params += [torch.full((1, 1, hidden), 28.0 / hidden), torch.zeros(hidden)]
    leaves = [one.to(dtype).requires_grad_() for one in params]
    if side == "pyg":
        y = pyg_conv(x[:, 0].to(dtype), (edges, None), leaves)
    else:
        graph = Graph(edges, None, NODES, backend=side)
        options = {"conv_layers": 1, "edge": False, "activation": "none", "backend": side}
        y = functional.conv_stack(x.to(dtype), graph, leaves, **options)[:, 0]
    cotangent = torch.randn(NODES, hidden, generator=generator).to(dtype)
    found = torch.autograd.grad((y * cotangent).sum(), leaves)
    names = ("lin_l", "lin_l_bias", "lin_r", "lin_r_bias", "att", "bias")
    return dict(zip(names, found, strict=True))


def errors(side: str, hidden: int, sign: float) -> dict[str, float]:
    """Relative errors in float32 of the gradients that go through the scores; the truth is PyG in float64."""
    truth, found = gradients("pyg", torch.float64, hidden, sign), gradients(side, torch.float32, hidden, sign)
    return {name: float((found[name].double() - truth[name]).norm() / truth[name].norm()) for name in THROUGH_SCORES}
