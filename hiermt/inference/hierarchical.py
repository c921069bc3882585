"""The hierarchical decision (Down, Neutral, Up) from a model or its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hiermt import functional
from hiermt._arguments import check_number
from hiermt.data.feature_names import check_same, names_of
from hiermt.nn.inputs import placed, present_rows, run_model
from hiermt.training.tasks.absent import marked

CLASS_PROBABILITIES = ("p_down", "p_neutral", "p_up")


def joint_probabilities(probabilities: Tensor) -> Tensor:
    r"""Probability of Down, Neutral and Up, from the probabilities of the two heads.

    .. math::
        P(\mathrm{Down}) = P(\mathrm{signal}) \, P(\mathrm{down} \mid \mathrm{signal}), \quad
        P(\mathrm{Neutral}) = P(\mathrm{noise}), \quad
        P(\mathrm{Up}) = P(\mathrm{signal}) \, P(\mathrm{up} \mid \mathrm{signal})

    The *confidence* of a decision is the larger probability of one head alone, so it is at least 0.5 whatever the model
    knows. The joint probability of the decided class is the model's estimate that the decision is right. It can be the
    smaller of two: the decision asks for a signal first, and then for a direction.

    Args:
        probabilities (Tensor): noise, signal, down, up, as from ``model.decide`` and
            :func:`hiermt.functional.decision_from_logits`.

    Shapes:
        - **probabilities:** ``[*, 4]``
        - **returns:** ``[*, 3]`` (Down, Neutral, Up), which add up to 1

    Raises:
        TypeError: `probabilities` is not a floating point Tensor.
        ValueError: its last dimension is not 4.
    """
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point():
        found = probabilities.dtype if isinstance(probabilities, Tensor) else type(probabilities).__name__
        raise TypeError(f"probabilities: expected a floating point Tensor, got {found}")
    if probabilities.dim() == 0 or probabilities.size(-1) != 4:
        raise ValueError(
            f"probabilities: expected [*, 4] (noise, signal, down, up), got {list(probabilities.shape)}; "
            "model.decide returns them third"
        )
    noise, signal, down, up = probabilities.unbind(-1)
    return torch.stack([signal * down, noise, signal * up], dim=-1)


def hierarchical_inference(
    signal_logits: Tensor, direction_logits: Tensor, confidence_scores: bool = False
) -> dict[str, Tensor]:
    r"""The hierarchical decision from logits: Neutral without a signal, otherwise Down or Up.

    Args:
        signal_logits, direction_logits (Tensor): logits of the two heads.
        confidence_scores (bool): return confidences as well. (default: ``False``)

    Shapes:
        - **logits:** ``[*, 2]``
        - **returns:** ``final_predictions`` (0 Down, 1 Neutral, 2 Up), ``signal_predictions``,
          ``direction_predictions``, each ``[*]`` int64; with `confidence_scores` also ``signal_confidence``,
          ``direction_confidence``, ``final_confidence`` (the confidence of the head that decided), and ``p_down``,
          ``p_neutral``, ``p_up`` (see :func:`joint_probabilities`), each ``[*]``

    Raises:
        ValueError: the last dimension of the logits is not 2, or their shapes differ.
    """
    probabilities, predictions, confidences = functional.decision_from_logits(
        signal_logits.detach(), direction_logits.detach()
    )
    parts = _parts(probabilities, 0.5)
    result = {
        "final_predictions": predictions,
        "signal_predictions": parts["signal_preds"],
        "direction_predictions": parts["direction_preds"],
    }
    if confidence_scores:
        result["signal_confidence"] = parts["signal_conf"]
        result["direction_confidence"] = parts["direction_conf"]
        result["final_confidence"] = confidences
        result.update(_classes(probabilities))
    return result


@torch.no_grad()
def inference_hierarchical(
    model: nn.Module, data: Any, device: torch.device | str | None = None, confidence_threshold: float = 0.5
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    r"""Decides for every node of a batch, without labels.

    The model is left in evaluation mode.

    Args:
        model (Module): returns ``(signal_logits, direction_logits)``.
        data: a PyG ``Batch`` or any object with ``x``, ``edge_index`` (or ``graph``) and optionally ``edge_weight`` and
            ``present`` (``[N, T]`` bool, the days on which a stock is there). A stock that is absent on the last day
            has -1 for integers and NaN for other numbers.
        device: to which model and data are moved. (default: ``None``, the data to where the model is)
        confidence_threshold (float): a node has a signal iff ``P(signal)`` is above it; 0.5 equals ``argmax``, ties
            included (a tie is Noise). (default: ``0.5``)

    Shapes:
        - **returns:** predictions ``[N]`` (int64: 0 Down, 1 Neutral, 2 Up), confidences ``[N]`` (of the head that
          decided), and ``{"signal_preds", "signal_conf", "direction_preds", "direction_conf"}`` with ``"p_down"``,
          ``"p_neutral"`` and ``"p_up"`` (see :func:`joint_probabilities`), each ``[N]``

    Raises:
        ValueError: `confidence_threshold` is outside ``[0, 1]``, or the features of `data` are not those of the model.
        TypeError: `confidence_threshold` is not a number.
    """
    confidence_threshold = check_number("confidence_threshold", confidence_threshold, 0.0, 1.0)
    check_same("data", names_of(data), names_of(model))
    device = placed(model, device)
    model.eval()
    rows = present_rows(data)
    signal_logits, direction_logits = run_model(model, data, device)
    probabilities, predictions, confidences = functional.decision_from_logits(
        signal_logits, direction_logits, confidence_threshold
    )
    parts = {**_parts(probabilities, confidence_threshold), **_classes(probabilities)}
    if rows is not None:
        every = {"predictions": predictions, "confidences": confidences, **parts}
        parts = marked(every, rows.to(predictions.device))
        predictions, confidences = parts.pop("predictions"), parts.pop("confidences")
    return predictions, confidences, parts


def _classes(probabilities: Tensor) -> dict[str, Tensor]:
    return dict(zip(CLASS_PROBABILITIES, joint_probabilities(probabilities).unbind(-1), strict=True))


def _parts(probabilities: Tensor, threshold: float) -> dict[str, Tensor]:
    signal, direction = probabilities[..., :2], probabilities[..., 2:]
    return {
        "signal_preds": (signal[..., 1] > threshold).long(),
        "signal_conf": signal.amax(-1),
        "direction_preds": (direction[..., 1] > direction[..., 0]).long(),
        "direction_conf": direction.amax(-1),
    }
