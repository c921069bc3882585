"""The gated scan as a function, over a sequence and over windows of one series."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiermt._tracing import refuse_tracing
from hiermt.functional.arguments import (
    check_gates,
    no_autocast,
    prepare,
)
from hiermt.native import dispatch
from hiermt.windows import check_starts, reading_syncs


def gated_scan(
    x: Tensor,
    g: Tensor,
    h0: Tensor | None,
    gates: Sequence[Tensor],
    *,
    sequence: bool = True,
    backend: str = "auto",
) -> Tensor:
    r"""The recurrence of the T-GCN cell (arXiv 1811.05320, eqs. 3 to 6).

    Args:
        x (Tensor): input of the layer.
        g (Tensor): its graph convolution after the sigmoid (eq. 2).
        h0 (Tensor, optional): state before the first step. (default: zeros)
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last. (default: ``True``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``; **g:** ``[N, T, H]``; **h0:** ``[N, H]``; weights ``[H, F + 2H]``, biases ``[H]``
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: dtypes differ.
    """
    hidden = check_gates(gates, x.size(-1))
    refuse_tracing(hidden)
    if g.shape != (*x.shape[:2], hidden):
        raise ValueError(
            f"g: expected [N, T, H] = {[*x.shape[:2], hidden]} for this x and these gates, got {list(g.shape)}"
        )
    if h0 is not None and h0.shape != (x.size(0), hidden):
        raise ValueError(f"h0: expected [N, H] = {[x.size(0), hidden]}, got {list(h0.shape)}")
    others = [g, *gates] if h0 is None else [g, *gates, h0]
    (x, g, *rest), native = prepare(x, others, None, backend)
    with no_autocast(x):
        run = dispatch.operator("gated_scan", native)
        return run(x, g, None if h0 is None else rest[6], rest[:6], sequence=sequence)  # type: ignore[no-any-return]


def gated_scan_windows(
    x: Tensor,
    g: Tensor,
    starts: Tensor,
    steps: int,
    gates: Sequence[Tensor],
    *,
    sequence: bool = True,
    backend: str = "auto",
) -> Tensor:
    r"""The recurrence of :func:`gated_scan` from a zero state, over windows of consecutive days of one series.

    The input projection depends on the day alone. It is computed once a day, however many windows contain the day, and
    so is its gradient, summed over the windows in a fixed order.

    Args:
        x (Tensor): input of the layer, day by day.
        g (Tensor): its graph convolution after the sigmoid.
        starts (Tensor): first day of each window.
        steps (int): ``T``, days in a window.
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last. (default: ``True``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[S, D, F]``; **g:** ``[S, D, H]``; **starts:** ``[B]`` int64; weights ``[H, F + 2H]``, biases ``[H]``
        - **returns:** ``[B * S, T, H]``, or ``[B * S, H]`` if not `sequence`; node ``n`` is ``window * S + stock``

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only. On a GPU, where that would wait for
            the device, the values of such a window mean nothing.
        ValueError: a shape or device does not fit.
        TypeError: dtypes differ, or `starts` is not int64.
    """
    hidden = check_gates(gates, x.size(-1))
    refuse_tracing(hidden)
    if g.shape != (*x.shape[:2], hidden):
        raise ValueError(
            f"g: expected [S, D, H] = {[*x.shape[:2], hidden]} for this x and these gates, got {list(g.shape)}"
        )
    steps = check_starts(starts, steps, x, check_values=not reading_syncs(x))
    (x, g, *params), native = prepare(x, [g, *gates], None, backend)
    with no_autocast(x):
        run = dispatch.operator("gated_scan", native)
        return run(x, g, None, params, starts, steps=steps, sequence=sequence)  # type: ignore[no-any-return]
