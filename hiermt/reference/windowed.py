"""The twins of the operators that sweep over the days of a series; part of :mod:`hiermt.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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

    What the gates take from the inputs depends on the day alone, so it is computed once a day.

    Args:
        x, g (Tensor): inputs of each day: features, and what the convolution stack made of them.
        starts (Tensor): first day of each window, each in ``[0, D - steps]``.
        steps (int): ``T``.
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last.

    Shapes:
        - **x:** ``[S, D, F]``; **g:** ``[S, D, H]``; **starts:** ``[B]`` int64; weights ``[H, F + 2H]``
        - **returns:** ``[B * S, T, H]``, or ``[B * S, H]`` if not `sequence`; node ``n`` is ``window * S + stock``
    """
    inputs = x.size(-1) + g.size(-1)
    weight = torch.cat([gate[:, :inputs] for gate in gates[::2]])
    z = torch.nn.functional.linear(torch.cat([x, g], dim=-1), weight, torch.cat(list(gates[1::2])))
    return _scan_projected(gather_windows(z, starts, steps).flatten(0, 1), gates, sequence)


def _scan_projected(z: Tensor, gates: Sequence[Tensor], sequence: bool) -> Tensor:
    """The recurrence over ``z [N, T, 3 H]``, which holds ``W [x_t, g_t] + b`` of the gates u, r and c side by side."""
    hidden = gates[0].size(0)
    ur_weight = torch.cat([gates[0][:, -hidden:], gates[2][:, -hidden:]]).t()
    c_weight = gates[4][:, -hidden:].t()
    h = z.new_zeros(z.size(0), hidden)
    states = []
    for step in z.unbind(1):
        u, r = torch.sigmoid(torch.addmm(step[:, : 2 * hidden], h, ur_weight)).chunk(2, dim=-1)
        c = torch.tanh(torch.addmm(step[:, 2 * hidden :], r * h, c_weight))
        h = u * h + (1 - u) * c
        if sequence:
            states.append(h)
    if not sequence:
        return h
    return torch.stack(states, dim=1) if states else z.new_zeros(z.size(0), 0, hidden)
