"""``hiermt::gather_windows`` and ``hiermt::gated_scan_projected``: what a sweep over days needs; no gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather_windows(series: Tensor, starts: Tensor, steps: int) -> Tensor:
    """Windows copied out of a series; :func:`hiermt.reference.gather_windows` says what it computes.

    Raises:
        IndexError: a window does not lie in the series; looked at on the CPU only.
    """
    try:
        return torch.ops.hiermt.gather_windows(series, starts, steps)  # type: ignore[no-any-return]
    except RuntimeError as error:
        # The stable ABI carries one type of exception only.
        if "is outside the days" in str(error):
            raise IndexError(str(error)) from None
        raise


def gated_scan_projected(z: Tensor, gates: Sequence[Tensor], sequence: bool) -> Tensor:
    """The recurrence alone; :func:`hiermt.reference.gated_scan_projected` says what it computes."""
    dense = [gate.contiguous() for gate in gates]
    return torch.ops.hiermt.gated_scan_projected(z, dense, sequence)  # type: ignore[no-any-return]


def _fake_gather(series: Tensor, starts: Tensor, steps: int) -> Tensor:
    return series.new_empty(starts.size(0), series.size(0), steps, series.size(2))


def _fake_scan(z: Tensor, gates: list[Tensor], sequence: bool) -> Tensor:
    hidden = gates[0].size(0)
    return z.new_empty((z.size(0), z.size(1), hidden) if sequence else (z.size(0), hidden))


def register() -> None:
    """Attaches the shapes to the operators; called once, when the extension is there."""
    torch.library.register_fake("hiermt::gather_windows", _fake_gather)
    torch.library.register_fake("hiermt::gated_scan_projected", _fake_scan)
