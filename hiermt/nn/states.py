"""Hidden states that are given to a model or returned by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiermt.windows import Windows


def check_states(
    h: Sequence[Tensor] | Tensor, count: int, shape: Sequence[int], x: Tensor | Windows, name: str = "h"
) -> list[Tensor]:
    """The states before the first step as ``[N, H]``, one of each cell.

    Args:
        h (sequence of Tensor): states, or one tensor that holds them along its first dimension.
        count (int): number of cells.
        shape (sequence of int): expected shape of each.
        x (Tensor or Windows): input, on whose device and in whose dtype they must be.
        name (str): of the argument in errors. (default: ``"h"``)

    Raises:
        TypeError: they are not tensors, or their dtype is another.
        ValueError: their number, a shape or a device is another.
    """
    like = x.series if isinstance(x, Windows) else x
    expected = list(shape)
    if not isinstance(h, (list, tuple, Tensor)):
        raise TypeError(f"{name}: expected a list of {count} Tensors {expected}, got {type(h).__name__}")
    if isinstance(h, Tensor) and h.dim() != len(expected) + 1:
        raise ValueError(
            f"{name}: expected a list of {count} Tensors {expected}, or one Tensor {[count, *expected]}, got a Tensor "
            f"{list(h.shape)}"
        )
    states = list(h.unbind(0)) if isinstance(h, Tensor) else list(h)
    if len(states) != count:
        raise ValueError(f"{name}: expected {count} states, one of each cell, got {len(states)}")
    return [check_state(state, shape, like, f"{name}[{i}]").reshape(-1, expected[-1]) for i, state in enumerate(states)]


def check_state(state: Tensor, shape: Sequence[int], x: Tensor, name: str) -> Tensor:
    """Returns `state` if its shape is as expected, and its device and dtype are those of x.

    Raises:
        TypeError, ValueError: as :func:`check_states`.
    """
    if not isinstance(state, Tensor):
        raise TypeError(f"{name}: expected a Tensor {list(shape)}, got {type(state).__name__}")
    if list(state.shape) != list(shape):
        raise ValueError(f"{name}: expected a state {list(shape)}, got {list(state.shape)}")
    if state.device != x.device:
        raise ValueError(f"{name}: x is on {x.device}, this state on {state.device}; move one with .to(...)")
    # An autocast region converts both.
    if state.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{name}: x is {x.dtype}, this state {state.dtype}; convert one with .to(...)")
    return state


def last_of(sequence: Tensor, before: Tensor | None) -> Tensor:
    """The last state of a sequence ``[N, T, H]``; that `before` it, or zeros, if there is no step."""
    if sequence.size(1):
        # A copy, which does not keep the whole sequence in memory.
        return sequence[:, -1].clone()
    return sequence.new_zeros(sequence.size(0), sequence.size(2)) if before is None else before
