"""The twins of the gated scans, over a sequence and over windows of a series."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
    # The input projection does not depend on the state: all steps at once.
    xg = torch.cat([x.transpose(0, 1), g.transpose(0, 1)], dim=-1)  # [T, N, F + H]
    ur = F.linear(xg, ur_weight[:, :inputs], ur_bias).unbind(0)
    c = F.linear(xg, c_weight[:, :inputs], c_bias).unbind(0)
    h = x.new_zeros(x.size(0), hidden) if h0 is None else h0
    return _recurrence(ur, c, h, ur_weight[:, inputs:].t(), c_weight[:, inputs:].t(), sequence)


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


def gated_scan_windows(
    x: Tensor, g: Tensor, starts: Tensor, steps: int, gates: Sequence[Tensor], sequence: bool
) -> Tensor:
    r"""The recurrence of :func:`hiermt.reference.gated_scan` from a zero state over windows of one series.

    The input projection of the gates depends on the day alone, so it is computed once per day.

    Args:
        x, g (Tensor): inputs of each day: features, and their graph convolution after the sigmoid.
        starts (Tensor): first day of each window, each in ``[0, D - steps]``.
        steps (int): ``T``.
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last.

    Shapes:
        - **x:** ``[S, D, F]``; **g:** ``[S, D, H]``; **starts:** ``[B]`` int64; weights ``[H, F + 2H]``
        - **returns:** ``[B * S, T, H]``, or ``[B * S, H]`` if not `sequence`; node ``n`` is ``window * S + stock``
    """
    hidden, inputs = g.size(-1), x.size(-1) + g.size(-1)
    weight = torch.cat([gate[:, :inputs] for gate in gates[::2]])
    projected = F.linear(torch.cat([x, g], dim=-1), weight, torch.cat(list(gates[1::2])))
    z = gather_windows(projected, starts, steps).flatten(0, 1)  # [B * S, T, 3 H]
    ur_weight = torch.cat([gates[0][:, -hidden:], gates[2][:, -hidden:]]).t()
    ur, c = z[..., : 2 * hidden].unbind(1), z[..., 2 * hidden :].unbind(1)
    return _recurrence(ur, c, z.new_zeros(z.size(0), hidden), ur_weight, gates[4][:, -hidden:].t(), sequence)


def _recurrence(
    ur: Sequence[Tensor], c: Sequence[Tensor], h: Tensor, ur_weight: Tensor, c_weight: Tensor, sequence: bool
) -> Tensor:
    """The time loop over input projections: of the gates u and r ``[N, 2 H]`` side by side, and of c ``[N, H]``."""
    states = []
    for ur_step, c_step in zip(ur, c, strict=True):
        u, r = torch.sigmoid(torch.addmm(ur_step, h, ur_weight)).chunk(2, dim=-1)
        candidate = torch.tanh(torch.addmm(c_step, r * h, c_weight))
        h = u * h + (1 - u) * candidate
        if sequence:
            states.append(h)
    if not sequence:
        return h
    return torch.stack(states, dim=1) if states else h.new_zeros(h.size(0), 0, h.size(1))
