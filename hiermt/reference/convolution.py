"""The twin of ``hiermt::conv_stack``; :mod:`hiermt.reference` defines the letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt._tracing import recorded

ATTENTION_SLOPE = 0.2
ACTIVATION_SLOPE = 0.01
SOFTMAX_EPSILON = 1e-16

# Elements of an intermediate above which the CPU twin works in pieces: 1 MB of float32, which stays near the cache.
# In training autograd keeps all pieces in memory anyway; fewer and larger ones are faster.
CACHE_ELEMENTS = 1 << 18
TRAINING_ELEMENTS = 1 << 21

NONE, LEAKY_RELU, SIGMOID, LEAKY_SIGMOID = 0, 1, 2, 3


def conv_stack(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    present: Tensor | None = None,
    *,
    conv_layers: int,
    activation: int,
) -> Tensor:
    r"""A stack of graph convolutions over every time step, leaky_relu (slope 0.01) after each but the last.

    GATv2 with one head (Brody et al., arXiv 2105.14491; PyG ``GATv2Conv``):

    .. math::
        e_{ij} = a^\top \mathrm{leaky}_{0.2}(W_l x_j + W_r x_i + w_{ij} W_e), \quad
        \alpha_{ij} = \mathrm{softmax}_j(e_{ij}), \quad y_i = b + \sum_j \alpha_{ij} W_l x_j

    GCN (Kipf and Welling, arXiv 1609.02907; PyG ``GCNConv``):

    .. math:: y_i = b + \sum_j d_j^{-1/2} w_{ij} d_i^{-1/2} \, W x_j

    Args:
        x (Tensor): node features.
        csr (sequence of Tensor): ``rowptr, col, colptr, row, csr2csc, schedule`` of the template graph.
        edge_weight (Tensor, optional): weight (GATv2 with an edge term) or norm (GCN) of each CSR entry.
        conv_params (sequence of Tensor): convolution after convolution; GATv2: ``lin_l.weight, lin_l.bias,
            lin_r.weight, lin_r.bias, att, bias`` and, with an edge term, ``lin_edge.weight``; GCN: ``lin.weight,
            bias``. Their number distinguishes them.
        present (Tensor, optional): which nodes are there at a step. The others are no source, to no softmax, degree
            or mean, and their rows of the result are zero; their x is not read. `edge_weight` is then the weight of
            a GCN, too, and that of a GATv2's loop, the last entry of its row, is not read. (default: ``None``, all)
        conv_layers (int): number of convolutions.
        activation (int): ``NONE``, ``LEAKY_RELU``, ``SIGMOID`` or ``LEAKY_SIGMOID``, applied to the result.

    Shapes:
        - **x:** ``[N, T, F]`` with ``N`` a multiple of ``S``
        - **edge_weight:** ``[E]``; **present:** ``[N, T]`` bool
        - **returns:** ``[N, T, H]``
    """
    edges = Edges(csr)
    per_conv = len(conv_params) // conv_layers
    if present is not None:
        x = torch.where(present.unsqueeze(-1), x, 0)

    def convolve(part: Tensor, there: Tensor | None) -> Tensor:
        for k in range(conv_layers):
            params = conv_params[k * per_conv : (k + 1) * per_conv]
            after = activation if k == conv_layers - 1 else LEAKY_RELU
            if per_conv == 2:
                part = gcn(part, edges, edge_weight, params, after, there)
            else:
                lin_edge = params[6] if per_conv == 7 else None
                part = gatv2(part, edges, edge_weight, params[:6], lin_edge, after, there)
        return part

    return by_pieces(x, edges, conv_params[0].size(0), convolve, present)


def entry_rows(rowptr: Tensor, num_entries: int) -> Tensor:
    """Row (target node) of each CSR entry; padding entries get row ``S``. ``[S+1] -> [E]``, int64."""
    entry = torch.arange(num_entries, device=rowptr.device, dtype=rowptr.dtype)
    return torch.searchsorted(rowptr[1:], entry, right=True)


class Edges:
    """Source and target node of each CSR entry, as indices."""

    def __init__(self, csr: Sequence[Tensor]) -> None:
        self.num_nodes = csr[0].numel() - 1
        self.source = csr[1].long()
        self.row = entry_rows(csr[0], self.source.numel())
        # Padding reads any node; the sums drop it.
        self.target = self.row.clamp(max=max(self.num_nodes - 1, 0))

    @property
    def is_loop(self) -> Tensor:
        """Which entries are loops: other than padding, those whose source is their row."""
        return self.source == self.row

    def there(self, present: Tensor) -> Tensor:
        """Which entries are between nodes that are there, ``[S, M] -> [E, M]``; the others' weights may be NaN."""
        return present.index_select(0, self.source) & present.index_select(0, self.target)


def gatv2(
    x: Tensor,
    edges: Edges,
    edge_weight: Tensor | None,
    params: Sequence[Tensor],
    lin_edge: Tensor | None,
    activation: int,
    present: Tensor | None = None,
) -> Tensor:
    """A GATv2 convolution of :func:`hiermt.reference.conv_stack`, on ``[S, F, M]``; `present` is ``[S, M]``."""
    lin_l_weight, lin_l_bias, lin_r_weight, lin_r_bias, att, bias = params
    x_l = _project(x, lin_l_weight, lin_l_bias)  # [S, H, M]
    x_r = _project(x, lin_r_weight, lin_r_bias)
    edge = None
    if edge_weight is not None and lin_edge is not None:
        weight = edge_weight.unsqueeze(-1)
        if present is not None:
            x_l = torch.where(present.unsqueeze(1), x_l, 0)
            weight = loops_of_the_step(edges, edge_weight, present).unsqueeze(1)  # [E, 1, M]
            edge = weight * lin_edge.reshape(1, -1, 1)
        elif not recorded() and not x.size(-1):
            # With a dimension of its own no instance reads it: its gradient is 0, not 0 times a NaN.
            edge = weight.unsqueeze(-1).expand(-1, -1, 0) * lin_edge.reshape(1, -1, 1)
        else:
            edge = weight * lin_edge.reshape(1, -1)
    elif present is not None:
        x_l = torch.where(present.unsqueeze(1), x_l, 0)
    y = attend(x_l, x_r, edges, edge, att, present) + bias.unsqueeze(-1)
    return _activate_present(y, activation, present)


def loops_of_the_step(edges: Edges, edge_weight: Tensor, present: Tensor) -> Tensor:
    """The weights ``[E, M]`` of the entries of a GATv2: a loop's is the mean of those that come in at the step."""
    is_loop = edges.is_loop.unsqueeze(-1)
    comes_in = edges.there(present) & ~is_loop
    weight = torch.where(comes_in, _accurate(edge_weight).unsqueeze(-1), 0)
    total, count = (_row_sum(one, edges.row, edges.num_nodes) for one in (weight, comes_in.to(weight.dtype)))
    mean = total / count.clamp(min=1)
    return torch.where(is_loop, mean.index_select(0, edges.target), weight).to(edge_weight.dtype)


def _accurate(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def attend(
    x_l: Tensor, x_r: Tensor, edges: Edges, edge: Tensor | None, att: Tensor, present: Tensor | None = None
) -> Tensor:
    """GATv2 attention over projected nodes: `x_l` and `x_r` ``[S, H, M]``, edge term ``[E, H]`` or ``[E, H, M]``."""
    alpha, x_j = attention(x_l, x_r, edges, edge, att, present)
    return _row_sum(alpha.unsqueeze(1) * x_j, edges.row, edges.num_nodes)


def attention(
    x_l: Tensor, x_r: Tensor, edges: Edges, edge: Tensor | None, att: Tensor, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Coefficients ``[E, M]`` and messages ``[E, H, M]`` of :func:`attend`."""
    x_j = x_l.index_select(0, edges.source)
    z = x_j + x_r.index_select(0, edges.target)
    if edge is not None:
        # Not in place: vmap may batch the weights alone.
        z = z + (edge.unsqueeze(-1) if edge.dim() == 2 else edge)
    if present is not None:
        # Before the product with att: zero times what is not finite would reach the gradients of att and of both ends.
        z = torch.where(edges.there(present).unsqueeze(1), z, 0)
    z = F.leaky_relu(z, ATTENTION_SLOPE, inplace=not recorded())
    score = torch.bmm(att.reshape(1, 1, -1).expand(z.size(0), -1, -1), z).squeeze(1)  # [E, M]
    return _row_softmax(score, edges, present), x_j


def gcn(
    x: Tensor,
    edges: Edges,
    norm: Tensor | None,
    params: Sequence[Tensor],
    activation: int,
    present: Tensor | None = None,
) -> Tensor:
    """A GCN convolution of :func:`hiermt.reference.conv_stack`, on ``[S, F, M]``; `present` is ``[S, M]``."""
    assert norm is not None
    weight, bias = params
    x_l = _project(x, weight, None)
    if present is None:
        y = propagate(x_l, edges, norm)
    else:
        scale = norms_of_the_step(edges, norm, present).unsqueeze(1)  # [S, 1, M]
        norm = torch.where(edges.there(present), norm.unsqueeze(-1), 0)
        y = propagate(torch.where(present.unsqueeze(1), x_l, 0) * scale, edges, norm) * scale
    return _activate_present(y + bias.unsqueeze(-1), activation, present)


def norms_of_the_step(edges: Edges, weight: Tensor, present: Tensor) -> Tensor:
    """``d^-1/2`` of each node ``[S, M]`` from the weights that come in at the step, and zero for an absent node."""
    degree = _row_sum(torch.where(edges.there(present), _accurate(weight).unsqueeze(-1), 0), edges.row, edges.num_nodes)
    scale = torch.where(present, degree, 1).pow(-0.5)
    return torch.where(present, scale.masked_fill(scale == torch.inf, 0.0), 0).to(weight.dtype)


def propagate(x: Tensor, edges: Edges, norm: Tensor) -> Tensor:
    """GCN sums over projected nodes ``[S, H, M]``; norms ``[E]`` or ``[E, M]``."""
    norm = norm.view(-1, 1, 1) if norm.dim() == 1 else norm.unsqueeze(1)
    message = norm * x.index_select(0, edges.source)  # [E, H, M]
    return _row_sum(message, edges.row, edges.num_nodes)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear on the middle dimension, ``[S, F, M] -> [S, H, M]``."""
    weight = weight.expand(x.size(0), -1, -1)
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias.view(1, -1, 1), weight, x)


def by_pieces(
    x: Tensor,
    edges: Edges,
    hidden: int,
    run: Callable[[Tensor, Tensor | None], Tensor],
    present: Tensor | None = None,
) -> Tensor:
    """Runs ``[S, F, M], [S, M] -> [S, H, M]`` on ``[N, T, F]`` and a mask, in ``M`` instances: copies times steps.

    Instances are contiguous, so that an edge copies whole rows. On a CPU they are split into pieces whose per-edge
    tensors stay near the cache. A compiler fuses those tensors, so it gets all instances at once.
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
    pieces = torch.split(x, size, dim)
    masks: Sequence[Tensor | None] = [None] * len(pieces)
    if present is not None:
        masks = torch.split(present.reshape(copies, edges.num_nodes, steps).transpose(0, 1), size, dim - 1)
    parts = []
    for part, mask in zip(pieces, masks, strict=True):
        some_copies, some_steps = part.shape[2:]
        instances = some_copies * some_steps
        there = None if mask is None else mask.reshape(edges.num_nodes, instances)
        y = run(part.reshape(edges.num_nodes, channels, instances), there)
        parts.append(y.reshape(edges.num_nodes, hidden, some_copies, some_steps))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return y.permute(2, 0, 3, 1).reshape(copies * edges.num_nodes, steps, hidden)  # [B, S, T, H]


def _row_sum(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Sums the entries of each row; row `num_rows` holds the padding and is dropped."""
    return _index_add(values.new_zeros(num_rows + 1, *values.shape[1:]), row, values)[:num_rows]


def _index_add(out: Tensor, row: Tensor, values: Tensor) -> Tensor:
    """Adds to rows of `out`, a new tensor: in place, unless a trace may keep it as a constant of many calls."""
    return out.index_add(0, row, values) if recorded() else out.index_add_(0, row, values)


def _row_softmax(score: Tensor, edges: Edges, present: Tensor | None = None) -> Tensor:
    """Softmax over the entries of each row as in PyG: maximum subtracted, epsilon in the denominator.

    With a mask ``[S, M]``, entries from or to an absent node have the coefficient zero.
    """
    row, num_rows = edges.row, edges.num_nodes
    if present is not None:
        score = torch.where(edges.there(present), score, -torch.inf)
    index = row.unsqueeze(-1).expand_as(score)
    maximum = score.new_full((num_rows + 1, score.size(1)), -torch.inf)
    reduce = maximum.scatter_reduce if recorded() else maximum.scatter_reduce_
    maximum = reduce(0, index, score.detach(), "amax")
    if present is not None:
        # Of a row without entries: infinity minus infinity has no value.
        absent = F.pad(~present, (0, 0, 0, 1), value=True)
        maximum = maximum.masked_fill(absent, 0.0)
    exp = torch.exp(score - maximum.index_select(0, row))
    total = _index_add(score.new_zeros(num_rows + 1, score.size(1)), row, exp) + SOFTMAX_EPSILON
    return exp / total.index_select(0, row)


def _activate_present(y: Tensor, activation: int, present: Tensor | None) -> Tensor:
    if present is None:
        return activate(y, activation)
    # Also before it, as zero times the derivative at what is not finite is not zero.
    there = present.unsqueeze(1)
    return torch.where(there, activate(torch.where(there, y, 0), activation), 0)


def activate(y: Tensor, activation: int) -> Tensor:
    """Applies the activation of a convolution."""
    if activation in (LEAKY_RELU, LEAKY_SIGMOID):
        y = F.leaky_relu(y, ACTIVATION_SLOPE)
    return torch.sigmoid(y) if activation in (SIGMOID, LEAKY_SIGMOID) else y
