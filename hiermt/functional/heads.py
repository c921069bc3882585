"""The two heads and the hierarchical decision as functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiermt._arguments import check_number
from hiermt.functional.arguments import (
    HEAD_PARAMS,
    check_length,
    no_autocast,
    prepare,
)
from hiermt.native import dispatch


def heads(h: Tensor, params: Sequence[Tensor], *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    r"""Output linear and the two heads in one pass.

    Args:
        h (Tensor): last hidden state.
        params (sequence of Tensor): ``out.weight, out.bias, signal.weight, signal.bias, direction.weight,
            direction.bias``.
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **h:** ``[N, H]``; out ``[K, H]``; heads ``[2, K]``
        - **returns:** signal logits ``[N, 2]``, direction logits ``[N, 2]``
    """
    check_length("params", params, HEAD_PARAMS)
    (h, *params), native = prepare(h, params, None, backend)
    with no_autocast(h):
        if native:
            signal_logits, direction_logits = dispatch.operator("head_logits", True)(h, *params)
        else:
            features = torch.nn.functional.linear(h, params[0], params[1])
            signal_logits = torch.nn.functional.linear(features, params[2], params[3])
            direction_logits = torch.nn.functional.linear(features, params[4], params[5])
    return signal_logits, direction_logits


def decision(
    h: Tensor, params: Sequence[Tensor], threshold: float = 0.5, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""From the last hidden state to Down (0), Neutral (1) or Up (2), in one pass.

    Args:
        h (Tensor): last hidden state.
        params (sequence of Tensor): as for :func:`heads`.
        threshold (float): a row is a signal iff ``P(signal) > threshold``, in ``[0, 1]``. (default: ``0.5``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **h:** ``[N, H]``
        - **returns:** signal logits ``[N, 2]``, direction logits ``[N, 2]``, probabilities ``[N, 4]`` (noise, signal,
          down, up), predictions ``[N]`` int64, confidences ``[N]``

    Raises:
        ValueError: `threshold` is outside ``[0, 1]``.
    """
    threshold = check_number("threshold", threshold, 0.0, 1.0)
    check_length("params", params, HEAD_PARAMS)
    (h, *params), native = prepare(h, params, None, backend)
    with no_autocast(h):
        return dispatch.operator("decision", native)(h, *params, threshold)  # type: ignore[no-any-return]


def decision_from_logits(
    signal_logits: Tensor, direction_logits: Tensor, threshold: float = 0.5, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The hierarchical decision from logits that are already there.

    Args:
        signal_logits, direction_logits (Tensor): logits of the two heads, with any leading dimensions.
        threshold (float): a row is a signal iff ``P(signal) > threshold``, in ``[0, 1]``. (default: ``0.5``)
        backend (str): implementation. (default: ``"auto"``)

    Shapes:
        - **signal_logits**, **direction_logits:** ``[*, 2]``
        - **returns:** probabilities ``[*, 4]``, predictions ``[*]`` int64, confidences ``[*]``

    Raises:
        ValueError: the logits do not end in 2, or differ in shape; `threshold` is outside ``[0, 1]``.
    """
    threshold = check_number("threshold", threshold, 0.0, 1.0)
    if signal_logits.size(-1) != 2 or signal_logits.shape != direction_logits.shape:
        raise ValueError(
            f"signal_logits, direction_logits: expected two tensors [*, 2], got {list(signal_logits.shape)} and "
            f"{list(direction_logits.shape)}"
        )
    lead = signal_logits.shape[:-1]
    (signal, direction), native = prepare(
        signal_logits.reshape(-1, 2), [direction_logits.reshape(-1, 2)], None, backend
    )
    with no_autocast(signal):
        run = dispatch.operator("decision_from_logits", native)
        probabilities, predictions, confidences = run(signal, direction, threshold)
    return probabilities.reshape(*lead, 4), predictions.reshape(lead), confidences.reshape(lead)
