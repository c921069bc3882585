"""The twin of ``hiermt::gated_scan``, and windows copied out of a series."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_scan(
    x: Tensor,
    g: Tensor | None,
    h0: Tensor | None,
    gates: Sequence[Tensor],
    starts: Tensor | None = None,
    present: Tensor | None = None,
    *,
    steps: int = 0,
    sequence: bool,
) -> Tensor:
    r"""The recurrence of the T-GCN cell (Zhao et al., arXiv 1811.05320, eqs. 3 to 6).

    .. math::
        u_t = \sigma(W_u [x_t, g_t, h_{t-1}] + b_u), \quad r_t = \sigma(W_r [x_t, g_t, h_{t-1}] + b_r)

        c_t = \tanh(W_c [x_t, g_t, r_t \odot h_{t-1}] + b_c), \quad h_t = u_t \odot h_{t-1} + (1 - u_t) \odot c_t

    With `starts`, x and g are those of a series, and the recurrence runs over windows of it: node ``n`` is ``window * S
    + stock``. The input projection depends on the day alone, so it is computed once per day.

    Args:
        x (Tensor): input of the layer.
        g (Tensor, optional): its graph convolution after the sigmoid (eq. 2). ``None``: the gates read x and h alone.
        h0 (Tensor, optional): state before the first step, zeros by default.
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        starts (Tensor, optional): first day of each window, each in ``[0, D - steps]``. (default: ``None``)
        present (Tensor, optional): where a node is there; the others hold their state, and their x and g are
            not read. (default: ``None``, all)
        steps (int): ``T`` of the windows. (default: ``0``)
        sequence (bool): return every state, or only the last.

    Shapes:
        - **x:** ``[N, T, F]``, **g:** ``[N, T, H]``, **h0:** ``[N, H]``, weights ``[H, F + 2H]``, ``[H, F + H]``
          without g; with `starts` ``[B]`` int64, x is ``[S, D, F]``, g ``[S, D, H]`` and ``N`` is ``B * S``
        - **present:** ``[N, T]`` bool, or ``[S, D]`` with `starts`
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`
    """
    u_weight, u_bias, r_weight, r_bias, c_weight, c_bias = gates
    hidden, inputs = u_weight.size(0), u_weight.size(1) - u_weight.size(0)
    ur_weight, ur_bias = torch.cat([u_weight, r_weight]), torch.cat([u_bias, r_bias])
    read = [x] if g is None else [x, g]
    if present is not None:
        read = [torch.where(present.unsqueeze(-1), one, 0) for one in read]
    # The input projection does not depend on the state: all steps at once.
    if starts is None:
        xg = torch.cat([one.transpose(0, 1) for one in read], dim=-1)  # [T, N, F + H]
        ur, c = F.linear(xg, ur_weight[:, :inputs], ur_bias), F.linear(xg, c_weight[:, :inputs], c_bias)
    else:
        weight = torch.cat([ur_weight[:, :inputs], c_weight[:, :inputs]])
        days = F.linear(torch.cat(read, dim=-1), weight, torch.cat([ur_bias, c_bias]))  # [S, D, 3 H]
        windows = gather_windows(days, starts, steps).flatten(0, 1).transpose(0, 1)  # [T, N, 3 H]
        ur, c = windows.split_with_sizes([2 * hidden, hidden], dim=-1)
    ur_weight, c_weight = ur_weight[:, inputs:].t(), c_weight[:, inputs:].t()

    h = x.new_zeros(ur.size(1), hidden) if h0 is None else h0
    masks: Sequence[Tensor | None] = [None] * ur.size(0)
    if present is not None:
        there = present.unsqueeze(-1)  # [N, T, 1]
        masks = (there if starts is None else gather_windows(there, starts, steps).flatten(0, 1)).unbind(1)
    states = []
    for ur_step, c_step, mask in zip(ur.unbind(0), c.unbind(0), masks, strict=True):
        # An absent node computes with zeros: the gradients of what is not finite would be zero times that.
        before = _there(h, mask)
        u, r = torch.sigmoid(_there(torch.addmm(ur_step, before, ur_weight), mask)).chunk(2, dim=-1)
        candidate = torch.tanh(_there(torch.addmm(c_step, r * before, c_weight), mask))
        after = u * before + (1 - u) * candidate
        h = after if mask is None else torch.where(mask, after, h)
        if sequence:
            states.append(h)
    if not sequence:
        return h
    return torch.stack(states, dim=1) if states else x.new_zeros(h.size(0), 0, hidden)


def _there(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else torch.where(mask, values, 0)


def gather_windows(series: Tensor, starts: Tensor, steps: int) -> Tensor:
    r"""Windows of consecutive days, copied out of a series.

    Args:
        series (Tensor): values of each stock and day.
        starts (Tensor): first day of each window, each in ``[0, D - steps]``.
        steps (int): ``T``.

    Shapes:
        - **series:** ``[S, D, F]``, **starts:** ``[B]`` int64
        - **returns:** ``[B, S, T, F]``
    """
    stocks, days, features = series.shape
    shape = (starts.size(0), stocks, steps, features)
    if features == 0:
        return series.new_empty(shape)
    # The days of a stock lie side by side, so that a window is one row of memory.
    windows = series.reshape(stocks, days * features).unfold(1, steps * features, features)
    return windows.transpose(0, 1).index_select(0, starts).reshape(shape)
