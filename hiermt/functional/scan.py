"""The gated scan as a function, over a sequence and over windows of one series."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiermt._arguments import check_tensor
from hiermt.functional.arguments import GATE_PARAMS, Expected, check_length, gates_expected, prepare, size_of
from hiermt.functional.nothing import without_days
from hiermt.presence import check_mask
from hiermt.windows import check_starts, reading_syncs


def gated_scan(
    x: Tensor,
    g: Tensor | None,
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
        g (Tensor, optional): its graph convolution after the sigmoid (eq. 2). With ``None`` the gates read x and h
            alone, as in a GRU whose reset gate is applied before the product.
        h0 (Tensor, optional): state before the first step. (default: zeros)
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last. (default: ``True``)
        present (Tensor, optional): where a node is there. The others hold their state; their x and g are not read and
            may be NaN. (default: ``None``, all)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[N, T, F]``; **g:** ``[N, T, H]``; **h0:** ``[N, H]``; weights ``[H, F + 2H]``, ``[H, F + H]``
          without g, biases ``[H]``; **present:** ``[N, T]`` bool
        - **returns:** ``[N, T, H]``, or ``[N, H]`` if not `sequence`

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: dtypes differ.
    """
    check_length("gates", gates, GATE_PARAMS)
    state = [] if h0 is None else [h0]
    backend = check_mask(x, present, backend)
    convolved = [] if g is None else [g]

    def expected() -> list[Expected]:
        found = _scan_expected(x, g, gates, ("N", "T"))
        return [*found, *[Expected("h0", (size_of(x, 0, "N"), found[-1].shape[0]))][: len(state)]]

    tensors, run = prepare("gated_scan", x, [*convolved, *gates, *state], expected, None, backend)
    inputs, convolution, params, rest = _taken(tensors, g is not None)
    initial = rest[0] if rest else None
    return run(  # type: ignore[no-any-return]
        inputs, convolution, initial, params, None, present, sequence=sequence
    )


def gated_scan_windows(
    x: Tensor,
    g: Tensor | None,
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
        g (Tensor, optional): its graph convolution after the sigmoid, or ``None``.
        starts (Tensor): first day of each window.
        steps (int): ``T``, days in a window.
        gates (sequence of Tensor): ``u.weight, u.bias, r.weight, r.bias, c.weight, c.bias``.
        sequence (bool): return every state, or only the last. (default: ``True``)
        present (Tensor, optional): where a node is there. The others hold their state; their x and g are not read and
            may be NaN. (default: ``None``, all)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **x:** ``[S, D, F]``; **g:** ``[S, D, H]``; **starts:** ``[B]`` int64; weights ``[H, F + 2H]``,
          ``[H, F + H]`` without g, biases ``[H]``
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
    convolved = [] if g is None else [g]

    def expected() -> list[Expected]:
        return _scan_expected(x, g, gates, ("S", "D"))

    tensors, run = prepare("gated_scan", x, [*convolved, *gates], expected, None, backend)
    series, convolution, params, _ = _taken(tensors, g is not None)
    if convolution is not None:
        convolution, *_ = without_days(convolution, starts, None, steps)
    series, days, present, steps = without_days(series, starts, present, steps)
    return run(  # type: ignore[no-any-return]
        series, convolution, None, params, days, present, steps=steps, sequence=sequence
    )


def _taken(tensors: list[Tensor], convolved: bool) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """x, g, the parameters of the gates and the others, of tensors in this order; g only if `convolved`."""
    first = 1 + convolved
    end = first + GATE_PARAMS
    return tensors[0], tensors[1] if convolved else None, tensors[first:end], tensors[end:]


def _scan_expected(x: Tensor, g: Tensor | None, gates: Sequence[Tensor], dims: tuple[str, str]) -> list[Expected]:
    """x, g and the gates of a scan whose first two dimensions have the names `dims`."""
    channels, found = size_of(x, 2, "F"), [Expected("x", (*dims, "F"))]
    if g is None:
        return [*found, *gates_expected("gates", channels, size_of(gates[0], 0, "H"), convolved=False)]
    lead, hidden = [size_of(x, dim, letter) for dim, letter in enumerate(dims)], size_of(g, 2, "H")
    return [*found, Expected("g", (*lead, hidden)), *gates_expected("gates", channels, hidden)]
