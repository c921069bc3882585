"""The recurrence over windows that share their days; part of :mod:`hiermt.functional`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiermt import windows as gather
from hiermt.functional.arguments import check_gates, no_autocast, prepare
from hiermt.native import dispatch
from hiermt.native.tracing import refuse_tracing
from hiermt.windows import check_starts


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

    What the gates take from the inputs depends on the day alone. It is computed once a day, however many windows the
    day lies in, and so is its gradient, summed over the windows in an order that does not change.

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
    steps = check_starts(starts, steps, x, look=not gather.reading_syncs(x))
    (x, g, *params), native = prepare(x, [g, *gates], None, backend)
    with no_autocast(x):
        run = dispatch.operator("gated_scan", native)
        return run(x, g, None, params, starts, steps=steps, sequence=sequence)  # type: ignore[no-any-return]
