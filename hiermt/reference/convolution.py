"""How the twins convolve; part of :mod:`hiermt.reference`, whose letters it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt.native.tracing import recorded

ATTENTION_SLOPE = 0.2
ACTIVATION_SLOPE = 0.01
SOFTMAX_EPSILON = 1e-16

# Elements of an intermediate above which the CPU twin works in pieces: 1 MB of float32. Autograd keeps the pieces, so
# that they are in memory all the same; eight times larger ones are fewer, and their matrices larger.
CACHE_ELEMENTS = 1 << 18
TRAINING_ELEMENTS = 1 << 21

NONE, LEAKY_RELU, SIGMOID, LEAKY_SIGMOID = 0, 1, 2, 3


def entry_rows(rowptr: Tensor, num_entries: int) -> Tensor:
    """Row (target node) of each CSR entry; padding entries get row ``S``. ``[S+1] -> [E]``, int64."""
    entry = torch.arange(num_entries, device=rowptr.device, dtype=rowptr.dtype)
    return torch.searchsorted(rowptr[1:], entry, right=True)


class Edges:
    """The two ends of each entry, as indices."""

    def __init__(self, csr: Sequence[Tensor]) -> None:
        self.num_nodes = csr[0].numel() - 1
        self.source = csr[1].long()
        self.row = entry_rows(csr[0], self.source.numel())
        # Padding reads some node, and is dropped in the sums.
        self.target = self.row.clamp(max=max(self.num_nodes - 1, 0))


def gatv2(
    x: Tensor,
    edges: Edges,
    edge_weight: Tensor | None,
    params: Sequence[Tensor],
    lin_edge: Tensor | None,
    activation: int,
) -> Tensor:
    """A GATv2 convolution of :func:`hiermt.reference.conv_stack`, on ``[S, F, M]``."""
    lin_l_weight, lin_l_bias, lin_r_weight, lin_r_bias, att, bias = params
    x_l = _project(x, lin_l_weight, lin_l_bias)  # [S, H, M]
    x_r = _project(x, lin_r_weight, lin_r_bias)
    edge = None
    if edge_weight is not None and lin_edge is not None:
        edge = edge_weight.unsqueeze(-1) * lin_edge.reshape(1, -1)
    return activate(attend(x_l, x_r, edges, edge, att) + bias.unsqueeze(-1), activation)


def attend(x_l: Tensor, x_r: Tensor, edges: Edges, edge: Tensor | None, att: Tensor) -> Tensor:
    """The attention of a GATv2 over what was projected: ``[S, H, M]`` twice, the edge term ``[E, H]``."""
    x_j = x_l.index_select(0, edges.source)  # [E, H, M]
    z = x_j + x_r.index_select(0, edges.target)
    if edge is not None:
        z = z + edge.unsqueeze(-1)  # not in place: vmap may batch the weights alone
    z = F.leaky_relu(z, ATTENTION_SLOPE, inplace=not recorded())
    score = torch.bmm(att.reshape(1, 1, -1).expand(z.size(0), -1, -1), z).squeeze(1)  # [E, M]
    alpha = _row_softmax(score, edges.row, edges.num_nodes)
    return _row_sum(alpha.unsqueeze(1) * x_j, edges.row, edges.num_nodes)


def gcn(x: Tensor, edges: Edges, norm: Tensor | None, params: Sequence[Tensor], activation: int) -> Tensor:
    """A GCN convolution of :func:`hiermt.reference.conv_stack`, on ``[S, F, M]``."""
    assert norm is not None
    weight, bias = params
    return activate(propagate(_project(x, weight, None), edges, norm) + bias.unsqueeze(-1), activation)


def propagate(x: Tensor, edges: Edges, norm: Tensor) -> Tensor:
    """The sums of a GCN over what was projected, ``[S, H, M]``."""
    message = norm.view(-1, 1, 1) * x.index_select(0, edges.source)  # [E, H, M]
    return _row_sum(message, edges.row, edges.num_nodes)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear on the middle dimension, ``[S, F, M] -> [S, H, M]``."""
    weight = weight.expand(x.size(0), -1, -1)
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias.view(1, -1, 1), weight, x)


def by_pieces(x: Tensor, edges: Edges, hidden: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Runs ``[S, F, M] -> [S, H, M]`` on ``[N, T, F]``, whose instances ``M`` are copies times steps.

    Instances are contiguous, so that an edge moves whole rows. On a CPU they come in pieces small enough that a
    tensor with one row per edge stays near the cache; a compiler fuses those tensors and gets the whole.
    """
    steps, channels = x.shape[1:]
    copies = x.size(0) // edges.num_nodes if edges.num_nodes else 1
    x = x.reshape(copies, edges.num_nodes, steps, channels).permute(1, 3, 0, 2)  # [S, F, B, T]
    dim, size = 2, max(copies, 1)
    if not (torch.compiler.is_compiling() or x.is_cuda):
        per_instance = max(edges.source.numel() * hidden, 1)
        elements = TRAINING_ELEMENTS if torch.is_grad_enabled() else CACHE_ELEMENTS
        dim, size = 2, elements // (per_instance * max(steps, 1))
        if size == 0:
            dim, size = 3, max(elements // (per_instance * copies), 1)
    parts = []
    for part in torch.split(x, size, dim):
        some_copies, some_steps = part.shape[2:]
        y = run(part.reshape(edges.num_nodes, channels, some_copies * some_steps))
        parts.append(y.reshape(edges.num_nodes, hidden, some_copies, some_steps))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return y.permute(2, 0, 3, 1).reshape(copies * edges.num_nodes, steps, hidden)  # [B, S, T, H]


def _row_sum(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Sums the entries of each row; row `num_rows` holds the padding and is dropped."""
    return _index_add(values.new_zeros(num_rows + 1, *values.shape[1:]), row, values)[:num_rows]


def _index_add(out: Tensor, row: Tensor, values: Tensor) -> Tensor:
    """Adds to rows of `out`, a new tensor: in place, unless a recording may keep it as a constant for many calls."""
    return out.index_add(0, row, values) if recorded() else out.index_add_(0, row, values)


def _row_softmax(score: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Softmax over the entries of each row, as PyG has it: maximum subtracted, epsilon in the denominator."""
    index = row.unsqueeze(-1).expand_as(score)
    top = score.new_full((num_rows + 1, score.size(1)), -torch.inf)
    reduce = top.scatter_reduce if recorded() else top.scatter_reduce_
    top = reduce(0, index, score.detach(), "amax")
    exp = torch.exp(score - top.index_select(0, row))
    total = _index_add(score.new_zeros(num_rows + 1, score.size(1)), row, exp) + SOFTMAX_EPSILON
    return exp / total.index_select(0, row)


def activate(y: Tensor, activation: int) -> Tensor:
    """The activation behind a convolution."""
    if activation in (LEAKY_RELU, LEAKY_SIGMOID):
        y = F.leaky_relu(y, ACTIVATION_SLOPE)
    return torch.sigmoid(y) if activation in (SIGMOID, LEAKY_SIGMOID) else y
