"""Training, validation and test in time order, with gaps between them."""

from __future__ import annotations

from dataclasses import dataclass

from hiermt._arguments import check_integer
from hiermt.data._errors import DataError


@dataclass(frozen=True)
class Split:
    """First days of the windows of each part of a history.

    Attributes:
        train, validation, test (range): first days; ``validation`` may be empty.
        window (int): days in a window.
        horizon (int): days from the end of a window to its label.
        gap (int): first days left out between two parts.
    """

    train: range
    validation: range
    test: range
    window: int
    horizon: int
    gap: int

    @property
    def train_days(self) -> int:
        """Days read by the training windows and their labels: days ``0`` to ``train_days - 1``."""
        return self._days(self.train)

    @property
    def used_days(self) -> int:
        """Days read by training and validation and by their labels: no window of the test part has one of them."""
        return self._days(self.validation or self.train)

    def _days(self, part: range) -> int:
        return part.stop - 1 + self.window + self.horizon


def time_split(
    num_days: int,
    window: int,
    *,
    horizon: int = 1,
    validation: float = 0.1,
    test: float = 0.2,
    gap: int | None = None,
) -> Split:
    """Splits the windows of a history: the oldest for training, the newest for testing.

    Between two parts, `gap` first days are left out, so that no window of a later part contains a day that a label of
    an earlier part reads. Windows without a label (those of the last `horizon` days) belong to no part.

    Args:
        num_days (int): ``D``.
        window (int): ``T``, days in a window.
        horizon (int): days from the last day of a window to the price its label reads. (default: ``1``)
        validation (float): share of the windows for validation, 0 for none. (default: ``0.1``)
        test (float): share of the windows for testing. (default: ``0.2``)
        gap (int, optional): first days left out. (default: ``window + horizon - 1``, the smallest that separates)

    Raises:
        TypeError: `num_days`, `window`, `horizon` or `gap` is not an integer.
        ValueError: `window` or `horizon` is below 1, a share is not in ``[0, 1)``, nothing is left for training,
            or `gap` is too small.
        DataError: the history is too short.
    """
    check_integer("num_days", num_days, 0)
    check_integer("window", window, 1)
    check_integer("horizon", horizon, 1)
    if gap is not None:
        check_integer("gap", gap, 0)
    num_days, window, horizon = int(num_days), int(window), int(horizon)
    if not (0 <= validation < 1 and 0 < test < 1 and validation + test < 1):
        raise ValueError(f"validation, test: expected shares that leave some for training, got {validation} and {test}")
    least = window + horizon - 1
    gap = least if gap is None else int(gap)
    if gap < least:
        raise ValueError(f"gap: expected {least} days or more (window + horizon - 1), got {gap}: parts would overlap")
    labelled = num_days - window - horizon + 1
    usable = labelled - gap * (2 if validation else 1)
    test_size, validation_size = round(usable * test), round(usable * validation)
    train_size = usable - test_size - validation_size
    if min(train_size, test_size, validation_size if validation else 1) < 1:
        need = least + gap * (2 if validation else 1) + 10
        raise DataError(
            f"{num_days} days are too few for windows of {window} with {gap} days between the parts; give about {need} "
            "days or more, or a shorter window"
        )
    train = range(train_size)
    start = train_size + gap
    middle = range(start, start + validation_size)
    if validation:
        start = middle.stop + gap
    return Split(train, middle, range(start, start + test_size), window, horizon, gap)
