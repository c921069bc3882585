"""The gated scan as a function, over a sequence and over windows of one series."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiermt._arguments import check_tensor
from hiermt.functional.arguments import GATE_PARAMS, Expected, check_length, gates_expected, prepare, size_of
from hiermt.presence import check_mask
from hiermt.windows import check_starts, reading_syncs


def gated_scan(
    x: Tensor,
    g: Tensor,
    h0: Tensor | None,
    gates: Sequence[Tensor],
    *,
    sequence: bool = True,
    present: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""The recurrence of the T-GCN cell (arXiv 1811.05320, eqs. 3 to 6).

    Args:
        x (Tensor): input of the layer.
        g (Tensor): its graph convolution after the sigmoid (eq. 2).
        h0 (Tensor, optional): state before the first step. (default: zeros)
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last. (default: ``True``)
        present (Tensor, optional): where a node is there. The others hold their state; their x and g are not read and
            may be NaN. (default: ``None``, all)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``; **g:** ``[N, T, H]``; **h0:** ``[N, H]``; weights ``[H, F + 2H]``, biases ``[H]``;
          **present:** ``[N, T]`` bool
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: dtypes differ.
    """
    check_length("gates", gates, GATE_PARAMS)
    state = [] if h0 is None else [h0]
    backend = check_mask(x, present, backend)

    def expected() -> list[Expected]:
        initial = Expected("h0", (size_of(x, 0, "N"), size_of(g, 2, "H")))
        return [*_scan_expected(x, g, ("N", "T")), *[initial][: len(state)]]

    (inputs, convolved, *rest), run = prepare("gated_scan", x, [g, *gates, *state], expected, None, backend)
    initial = None if h0 is None else rest[-1]
    gates = rest[:GATE_PARAMS]
    return run(inputs, convolved, initial, gates, None, present, sequence=sequence)  # type: ignore[no-any-return]


def gated_scan_windows(
    x: Tensor,
    g: Tensor,
    starts: Tensor,
    steps: int,
    gates: Sequence[Tensor],
    *,
    sequence: bool = True,
    present: Tensor | None = None,
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
        present (Tensor, optional): where a node is there. The others hold their state; their x and g are not read and
            may be NaN. (default: ``None``, all)
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
    check_length("gates", gates, GATE_PARAMS)
    check_tensor("x", x)
    steps = check_starts(starts, steps, x, check_values=not reading_syncs(x))
    backend = check_mask(x, present, backend)

    def expected() -> list[Expected]:
        return _scan_expected(x, g, ("S", "D"))

    (series, convolved, *params), run = prepare("gated_scan", x, [g, *gates], expected, None, backend)
    return run(  # type: ignore[no-any-return]
        series, convolved, None, params, starts, present, steps=steps, sequence=sequence
    )


def _scan_expected(x: Tensor, g: Tensor, dims: tuple[str, str]) -> list[Expected]:
    """x, g and the gates of a scan whose first two dimensions have the names `dims`."""
    channels, hidden = size_of(x, 2, "F"), size_of(g, 2, "H")
    lead = [size_of(x, dim, letter) for dim, letter in enumerate(dims)]
    return [
        Expected("x", (*dims, "F")),
        Expected("g", (*lead, hidden)),
        *gates_expected("gates", channels, hidden),
    ]
