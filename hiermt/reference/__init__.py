"""The pure-PyTorch twin of every native operator: the oracle of the tests and the fallback at run time.

Every function takes the arguments of the operator of the same name in the namespace ``torch.ops.hiermt``,
uses stock PyTorch only, and differentiates through autograd. It is written a layer at a time: a graph
convolution reads the input sequence and never the hidden state, so all ``T`` steps go through it in one batch,
and only the recurrence of the gates, which touches no edge, walks through time.

The order in which PyTorch adds up a matrix product depends on the number of threads and on the number of rows, so the
twin is bitwise equal over runs with one thread count, but neither over thread counts nor between a batch and its parts.
The native CPU operators are.

Letters: ``N`` nodes, ``S`` nodes of the template graph, ``B = N / S`` copies of it, ``T`` time steps, ``F`` input
channels, ``H`` hidden channels, ``E`` entries of the compressed sparse rows (CSR), ``M = B * T`` instances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt.reference.convolution import ACTIVATION_SLOPE as ACTIVATION_SLOPE
from hiermt.reference.convolution import LEAKY_RELU as LEAKY_RELU
from hiermt.reference.convolution import LEAKY_SIGMOID as LEAKY_SIGMOID
from hiermt.reference.convolution import NONE as NONE
from hiermt.reference.convolution import SIGMOID as SIGMOID
from hiermt.reference.convolution import Edges, by_pieces, gatv2, gcn
from hiermt.reference.convolution import entry_rows as entry_rows
from hiermt.reference.loss import multitask_loss as multitask_loss
from hiermt.reference.windowed import gated_scan_windows as gated_scan_windows
from hiermt.reference.windowed import gather_windows as gather_windows

GATV2_RULE, GCN_RULE = 0, 1


def graph_prepare(edge_index: Tensor, num_nodes: int, rule: int) -> tuple[Tensor, ...]:
    r"""Sorts edges by target and by source, after the self-loop rule of a convolution.

    Both rules drop the loops that are there and append one loop as the last entry of each row. They differ in
    what that loop stands for: under ``GATV2_RULE`` it is always new; under ``GCN_RULE`` it stands for the last
    loop the node already had, if any (PyG's ``add_remaining_self_loops``).

    Every output has a shape that follows from the shapes of the inputs. Entries past ``rowptr[-1]``, one for each
    dropped loop, are padding.

    Args:
        edge_index (Tensor): sources in row 0, targets in row 1, each in ``[0, num_nodes)``.
        num_nodes (int): number of nodes ``S``.
        rule (int): ``GATV2_RULE`` or ``GCN_RULE``.

    Shapes:
        - **edge_index:** ``[2, E0]``, int32 or int64
        - **returns:** ``rowptr [S+1]``, ``col [E]``, ``e_id [E]`` (int64; the column of `edge_index` behind
          an entry, or -1), ``colptr [S+1]``, ``row [E]``, ``csr2csc [E]``, ``blocks [2]``, with
          ``E = E0 + S``; int32 where not said otherwise
    """
    source, target = edge_index.long().unbind(0)
    node = torch.arange(num_nodes, dtype=torch.int64, device=edge_index.device)
    edge = torch.arange(source.numel(), dtype=torch.int64, device=edge_index.device)
    is_loop = source == target
    loop_edge = torch.full_like(node, -1)
    if rule == GCN_RULE:
        loop_edge = loop_edge.scatter_reduce(0, target, torch.where(is_loop, edge, -1), "amax")

    # Dropped loops sort behind every row.
    entry_row = torch.cat([target.masked_fill(is_loop, num_nodes), node])
    col = torch.cat([source, node])
    e_id = torch.cat([edge, loop_edge])
    entry_row, order = entry_row.sort(stable=True)
    col, e_id = col[order], e_id[order]
    padding = entry_row == num_nodes
    e_id = e_id.masked_fill(padding, -1)
    bounds = torch.arange(num_nodes + 1, dtype=torch.int64, device=entry_row.device)
    rowptr = torch.searchsorted(entry_row, bounds)

    entry_col, csr2csc = col.masked_fill(padding, num_nodes).sort(stable=True)
    colptr = torch.searchsorted(entry_col, bounds)
    row = entry_row[csr2csc]
    unused = entry_col == num_nodes
    blocks = torch.tensor([0, num_nodes], dtype=torch.int32, device="cpu")
    return (
        rowptr.int(),
        col.masked_fill(padding, 0).int(),
        e_id,
        colptr.int(),
        row.masked_fill(unused, 0).int(),
        csr2csc.masked_fill(unused, 0).int(),
        blocks,
    )


def conv_stack(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
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
        csr (sequence of Tensor): ``rowptr, col, colptr, row, csr2csc, blocks`` of the template graph.
        edge_weight (Tensor, optional): weight (GATv2 with an edge term) or norm (GCN) of each CSR entry.
        conv_params (sequence of Tensor): convolution after convolution; GATv2: ``lin_l.weight, lin_l.bias,
            lin_r.weight, lin_r.bias, att, bias`` and, with an edge term, ``lin_edge.weight``; GCN: ``lin.weight,
            bias``. Their number tells which it is.
        conv_layers (int): number of convolutions.
        activation (int): ``NONE``, ``LEAKY_RELU``, ``SIGMOID`` or ``LEAKY_SIGMOID``, applied to the result.

    Shapes:
        - **x:** ``[N, T, F]`` with ``N`` a multiple of ``S``
        - **edge_weight:** ``[E]``
        - **returns:** ``[N, T, H]``
    """
    edges = Edges(csr)
    per_conv = len(conv_params) // conv_layers

    def convolve(part: Tensor) -> Tensor:
        for k in range(conv_layers):
            params = conv_params[k * per_conv : (k + 1) * per_conv]
            after = activation if k == conv_layers - 1 else LEAKY_RELU
            if per_conv == 2:
                part = gcn(part, edges, edge_weight, params, after)
            else:
                part = gatv2(part, edges, edge_weight, params[:6], params[6] if per_conv == 7 else None, after)
        return part

    return by_pieces(x, edges, conv_params[0].size(0), convolve)


def gated_scan(x: Tensor, g: Tensor, h0: Tensor | None, gates: Sequence[Tensor], sequence: bool) -> Tensor:
    r"""The recurrence of the T-GCN cell (Zhao et al., arXiv 1811.05320, eqs. 3 to 6).

    .. math::
        u_t = \sigma(W_u [x_t, g_t, h_{t-1}] + b_u), \quad r_t = \sigma(W_r [x_t, g_t, h_{t-1}] + b_r)

        c_t = \tanh(W_c [x_t, g_t, r_t \odot h_{t-1}] + b_c), \quad h_t = u_t \odot h_{t-1} + (1 - u_t) \odot c_t

    Args:
        x (Tensor): input of the layer.
        g (Tensor): its graph convolution after the sigmoid (eq. 2).
        h0 (Tensor, optional): state before the first step, zeros by default.
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last.

    Shapes:
        - **x:** ``[N, T, F]``, **g:** ``[N, T, H]``, **h0:** ``[N, H]``, weights ``[H, F + 2H]``
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`
    """
    u_weight, u_bias, r_weight, r_bias, c_weight, c_bias = gates
    hidden, inputs = u_weight.size(0), u_weight.size(1) - u_weight.size(0)
    ur_weight, ur_bias = torch.cat([u_weight, r_weight]), torch.cat([u_bias, r_bias])
    # What does not depend on the state, for all steps at once.
    xg = torch.cat([x.transpose(0, 1), g.transpose(0, 1)], dim=-1)  # [T, N, F + H]
    ur_from_xg = F.linear(xg, ur_weight[:, :inputs], ur_bias)
    c_from_xg = F.linear(xg, c_weight[:, :inputs], c_bias)
    ur_state_weight, c_state_weight = ur_weight[:, inputs:].t(), c_weight[:, inputs:].t()

    h = x.new_zeros(x.size(0), hidden) if h0 is None else h0
    states = []
    for ur_step, c_step in zip(ur_from_xg.unbind(0), c_from_xg.unbind(0), strict=True):
        u, r = torch.sigmoid(torch.addmm(ur_step, h, ur_state_weight)).chunk(2, dim=-1)
        c = torch.tanh(torch.addmm(c_step, r * h, c_state_weight))
        h = u * h + (1 - u) * c
        if sequence:
            states.append(h)
    if not sequence:
        return h
    return torch.stack(states, dim=1) if states else x.new_zeros(x.size(0), 0, hidden)


def tgcn_layer(
    x: Tensor,
    csr: Sequence[Tensor],
    edge_weight: Tensor | None,
    conv_params: Sequence[Tensor],
    gate_params: Sequence[Tensor],
    starts: Tensor | None = None,
    *,
    steps: int = 0,
    conv_layers: int,
    between: bool,
    sequence: bool,
) -> Tensor:
    r"""One T-GCN layer: convolution stack, sigmoid, gated scan (arXiv 1811.05320, eqs. 2 to 6).

    Args:
        x (Tensor): input of the layer.
        csr, edge_weight, conv_params, conv_layers: as for :func:`conv_stack`.
        gate_params (sequence of Tensor): the parameters of :func:`gated_scan`.
        starts (Tensor, optional): first day of each window, if the scan runs over windows of `steps` days of x, as in
            :func:`gated_scan_windows`. (default: ``None``)
        steps (int): ``T`` of the windows. (default: ``0``)
        between (bool): leaky_relu between the convolutions only, or after the last one too.
        sequence (bool): return every state, or only the last.

    Shapes:
        - **x:** ``[N, T, F]``, or ``[S, D, F]`` with `starts` ``[B]`` int64, where ``N`` is ``B * S``
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`
    """
    activation = SIGMOID if between else LEAKY_SIGMOID
    g = conv_stack(x, csr, edge_weight, conv_params, conv_layers=conv_layers, activation=activation)
    if starts is not None:
        return gated_scan_windows(x, g, starts, steps, gate_params, sequence)
    return gated_scan(x, g, None, gate_params, sequence)


def decision(
    h: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    signal_weight: Tensor,
    signal_bias: Tensor,
    direction_weight: Tensor,
    direction_bias: Tensor,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""From the last hidden state to the hierarchical decision: output linear, two heads, softmax, gate.

    Args:
        h (Tensor): last hidden state.
        out_weight, out_bias (Tensor): output linear of the backbone.
        signal_weight, signal_bias (Tensor): head that tells Noise (0) from Signal (1).
        direction_weight, direction_bias (Tensor): head that tells Down (0) from Up (1).
        threshold (float): a row is a signal iff ``P(signal) > threshold``.

    Shapes:
        - **h:** ``[N, H]``, out ``[K, H]``, heads ``[2, K]``
        - **returns:** signal logits ``[N, 2]``, direction logits ``[N, 2]``, and what
          :func:`decision_from_logits` returns
    """
    features = F.linear(h, out_weight, out_bias)
    signal_logits = F.linear(features, signal_weight, signal_bias)
    direction_logits = F.linear(features, direction_weight, direction_bias)
    return signal_logits, direction_logits, *decision_from_logits(signal_logits, direction_logits, threshold)


def decision_from_logits(
    signal_logits: Tensor, direction_logits: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The hierarchical decision: Neutral unless there is a signal, else Down or Up.

    A tie between Down and Up is Down and a tie between Noise and Signal is Noise, as ``argmax`` has it. A row
    with NaN among its signal logits is Neutral. The result carries no gradient.

    Args:
        signal_logits, direction_logits (Tensor): logits of the two heads.
        threshold (float): a row is a signal iff ``P(signal) > threshold``.

    Shapes:
        - **signal_logits**, **direction_logits:** ``[N, 2]``
        - **returns:** probabilities ``[N, 4]`` (noise, signal, down, up), predictions ``[N]`` (int64: 0 Down,
          1 Neutral, 2 Up), confidences ``[N]`` (of the direction where there is a signal, else of the signal head)
    """
    signal = torch.softmax(signal_logits.detach(), dim=-1)
    direction = torch.softmax(direction_logits.detach(), dim=-1)
    is_signal = signal[..., 1] > threshold
    up = direction[..., 1] > direction[..., 0]
    predictions = torch.where(is_signal, 2 * up.long(), 1)
    confidences = torch.where(is_signal, direction.amax(-1), signal.amax(-1))
    return torch.cat([signal, direction], dim=-1), predictions, confidences
