"""The twins of ``hiermt::decision`` and ``hiermt::decision_from_logits``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def decision(
    h: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    signal_weight: Tensor,
    signal_bias: Tensor,
    direction_weight: Tensor,
    direction_bias: Tensor,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""From the last hidden state to the hierarchical decision: output linear, two heads, softmax, gate.

    Args:
        h (Tensor): last hidden state.
        out_weight, out_bias (Tensor): output linear of the backbone.
        signal_weight, signal_bias (Tensor): head that tells Noise (0) from Signal (1).
        direction_weight, direction_bias (Tensor): head that tells Down (0) from Up (1).
        threshold (float): a row is a signal iff ``P(signal) > threshold``.

    Shapes:
        - **h:** ``[N, H]``, out ``[K, H]``, heads ``[2, K]``
        - **returns:** signal logits ``[N, 2]``, direction logits ``[N, 2]``, and what
          :func:`decision_from_logits` returns
    """
    params = (out_weight, out_bias, signal_weight, signal_bias, direction_weight, direction_bias)
    signal_logits, direction_logits = head_logits(h, *params)
    return signal_logits, direction_logits, *decision_from_logits(signal_logits, direction_logits, threshold)


def head_logits(
    h: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    signal_weight: Tensor,
    signal_bias: Tensor,
    direction_weight: Tensor,
    direction_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output linear and heads alone: the first two results of :func:`decision`."""
    features = F.linear(h, out_weight, out_bias)
    return F.linear(features, signal_weight, signal_bias), F.linear(features, direction_weight, direction_bias)


def decision_from_logits(
    signal_logits: Tensor, direction_logits: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The hierarchical decision: Neutral unless there is a signal, else Down or Up.

    A tie between Down and Up is Down and a tie between Noise and Signal is Noise, as in ``argmax``. A row
    with NaN among its signal logits is Neutral. The result carries no gradient.

    Args:
        signal_logits, direction_logits (Tensor): logits of the two heads.
        threshold (float): a row is a signal iff ``P(signal) > threshold``.

    Shapes:
        - **signal_logits**, **direction_logits:** ``[N, 2]``
        - **returns:** probabilities ``[N, 4]`` (noise, signal, down, up), predictions ``[N]`` (int64: 0 Down,
          1 Neutral, 2 Up), confidences ``[N]`` (of the direction where there is a signal, else of the signal head)
    """
    signal = torch.softmax(signal_logits.detach(), dim=-1)
    direction = torch.softmax(direction_logits.detach(), dim=-1)
    is_signal = signal[..., 1] > threshold
    up = direction[..., 1] > direction[..., 0]
    predictions = torch.where(is_signal, 2 * up.long(), 1)
    confidences = torch.where(is_signal, direction.amax(-1), signal.amax(-1))
    return torch.cat([signal, direction], dim=-1), predictions, confidences
