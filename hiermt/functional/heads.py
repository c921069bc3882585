"""The two heads and the hierarchical decision as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hiermt._arguments import check_number, check_tensor
from hiermt.functional.arguments import HEAD_PARAMS, Expected, Size, check_length, prepare, size_of


class Heads(NamedTuple):
    """What follows the last state of a model.

    Args:
        params (sequence of Tensor): as for :func:`heads`.
        backend (str): implementation.
        threshold (float, optional): decide, as :func:`decision` does; without it, give logits alone.
    """

    params: Sequence[Tensor]
    backend: str
    threshold: float | None = None

    def of(self, h: Tensor) -> tuple[Tensor, ...]:
        """What :func:`heads` or :func:`decision` returns of ``h [*, H]``, each with these leading dimensions."""
        flat = h if h.dim() == 2 else h.flatten(0, -2)
        if self.threshold is None:
            found: tuple[Tensor, ...] = heads(flat, self.params, backend=self.backend)
        else:
            found = decision(flat, self.params, self.threshold, backend=self.backend)
        return found if h.dim() == 2 else with_lead(found, h.shape[:-1])


def with_lead(rows: Sequence[Tensor], lead: Sequence[int]) -> tuple[Tensor, ...]:
    """Each of the tensors with the dimensions `lead` in place of its first."""
    return tuple(one.reshape(*lead, *one.shape[1:]) for one in rows)


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

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: dtypes differ.
    """
    check_length("params", params, HEAD_PARAMS)
    tensors, run = prepare("head_logits", h, params, lambda: _heads_expected(h, params), None, backend)
    return run(*tensors)  # type: ignore[no-any-return]


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
        ValueError: `threshold` is outside ``[0, 1]``, or a shape or device does not fit.
        TypeError: dtypes differ.
    """
    threshold = check_number("threshold", threshold, 0.0, 1.0)
    check_length("params", params, HEAD_PARAMS)
    tensors, run = prepare("decision", h, params, lambda: _heads_expected(h, params), None, backend)
    return run(*tensors, threshold)  # type: ignore[no-any-return]


def _heads_expected(h: Tensor, params: Sequence[Tensor]) -> list[Expected]:
    return [Expected("h", ("N", "H")), *head_params_expected(params, size_of(h, 1, "H"))]


def head_params_expected(params: Sequence[Tensor], hidden: Size) -> list[Expected]:
    """The parameters of output linear and heads over `hidden` channels."""
    features = size_of(params[0], 0, "K")
    return [
        Expected("params: out.weight", (features, hidden)),
        Expected("params: out.bias", (features,)),
        Expected("params: signal.weight", (2, features)),
        Expected("params: signal.bias", (2,)),
        Expected("params: direction.weight", (2, features)),
        Expected("params: direction.bias", (2,)),
    ]


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
        ValueError: the logits do not end in 2, or differ in shape or device; `threshold` is outside ``[0, 1]``.
        TypeError: the logits differ in dtype.
    """
    threshold = check_number("threshold", threshold, 0.0, 1.0)
    check_tensor("signal_logits", signal_logits)
    check_tensor("direction_logits", direction_logits)
    if not signal_logits.dim() or signal_logits.size(-1) != 2 or signal_logits.shape != direction_logits.shape:
        raise ValueError(
            f"signal_logits, direction_logits: expected two tensors [*, 2], got {list(signal_logits.shape)} and "
            f"{list(direction_logits.shape)}"
        )
    lead = signal_logits.shape[:-1]
    rows = [signal_logits.reshape(-1, 2), direction_logits.reshape(-1, 2)]
    (signal, direction), run = prepare("decision_from_logits", rows[0], rows[1:], logits_expected, None, backend)
    probabilities, predictions, confidences = run(signal, direction, threshold)
    return probabilities.reshape(*lead, 4), predictions.reshape(lead), confidences.reshape(lead)


def logits_expected() -> list[Expected]:
    """The logits of the two heads."""
    return [Expected("signal_logits", ("N", 2)), Expected("direction_logits", ("N", 2))]
