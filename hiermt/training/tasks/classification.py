"""Classes: one of several, or yes and no."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt._arguments import check_integer, check_number
from hiermt.training.tasks.task import Task, mask_of, mean, precise, readable, target_of

IGNORED = -100


class Classification(Task):
    r"""One of ``K`` classes: cross entropy, with class weights, label smoothing and a focal factor.

    The loss is that of ``torch.nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)`` for ``gamma=0``. Each
    row's loss is multiplied by :math:`(1 - p_y)^\gamma` otherwise (arXiv 1708.02002). Targets of -100 and rows outside
    ``batch.target_mask`` do not count.

    Args:
        num_classes (int): ``K``, 2 or more.
        weight (Tensor or sequence, optional): weight of each class. (default: ``None``, 1 each)
        label_smoothing (float): in ``[0, 1]``. (default: ``0.0``)
        gamma (float): exponent of the focal factor, 0 or more. (default: ``0.0``)
        target (str): attribute of a batch that holds the classes. (default: ``"y"``)
        process_group (ProcessGroup, optional): processes that each have a part of the batch. (default: ``None``)

    Shapes:
        - **output:** ``[*, K]`` logits; **target:** ``[*]`` integers in ``[0, K)``
        - **decide:** ``{"predictions": [*] int64, "probabilities": [*, K]}``

    Raises:
        ValueError: a number is out of range; output or targets do not fit.
        TypeError: a number is of another type; the targets are not integers.
    """

    weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        target: str = "y",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.num_classes = check_integer("num_classes", num_classes, 2)
        self.register_buffer("weight", _class_weights(weight, self.num_classes))
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0.0, 1.0)
        self.gamma = check_number("gamma", gamma, 0.0)
        self.target, self.needs, self.process_group = target, (target,), process_group

    def losses(self, output: Any, batch: Any) -> tuple[Tensor]:
        logits, labels, counts = self._rows(output, batch)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        per_row = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=self.label_smoothing)
        if self.gamma > 0.0:
            # log(1 - p) as the log of the other classes' probabilities, which is exact where p is near 1.
            others = F.log_softmax(logits, -1).scatter(1, labels.unsqueeze(1), -math.inf)
            per_row = per_row * (self.gamma * others.logsumexp(1)).exp()
        return (mean(per_row, counts, None if weight is None else weight[labels], self.process_group),)

    def decide(self, output: Any) -> dict[str, Tensor]:
        logits = self._logits(output)
        return {"predictions": logits.argmax(-1), "probabilities": logits.softmax(-1)}

    def count(self, output: Any, batch: Any) -> dict[str, Tensor]:
        logits, labels, counts = self._rows(output, batch)
        cells = labels * self.num_classes + logits.argmax(-1)
        confusion = torch.zeros(self.num_classes**2, dtype=torch.float64, device=logits.device)
        return {"": confusion.index_add(0, cells, counts.double())}

    def score(self, counts: dict[str, list[float]]) -> dict[str, float]:
        size, cells = self.num_classes, counts[""]
        table = [cells[row * size : (row + 1) * size] for row in range(size)]
        total, right = sum(cells), [table[k][k] for k in range(size)]
        actual = [sum(row) for row in table]
        predicted = [sum(row[k] for row in table) for k in range(size)]
        # Classes that neither occur nor are predicted have no F1 score.
        f1 = [2 * r / (a + p) for r, a, p in zip(right, actual, predicted, strict=True) if a + p]
        recall = [r / a for r, a in zip(right, actual, strict=True) if a]
        scores = {
            "accuracy": sum(right) / total if total else math.nan,
            "balanced_accuracy": sum(recall) / len(recall) if recall else math.nan,
            "macro_f1": sum(f1) / len(f1) if f1 else math.nan,
            "rows": total,
        }
        return scores | {f"confusion_{i}_{j}": table[i][j] for i in range(size) for j in range(size)}

    def _logits(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.dim() or output.size(-1) != self.num_classes:
            raise self.expects(f"logits [*, {self.num_classes}]", _shape(output))
        return precise(output)

    def _rows(self, output: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[R, K]``, classes ``[R]`` and which rows count."""
        logits = self._logits(output).reshape(-1, self.num_classes)
        y = target_of(self, batch, self.target)
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise TypeError(f"{self.target}: expected integer classes, got {y.dtype}; use .long()")
        if y.numel() != logits.size(0):
            raise self.expects(f"a class for each of {logits.size(0)} rows in {self.target}", list(y.shape))
        labels = y.reshape(-1).long()
        counts = labels != IGNORED
        mask = mask_of(batch, y.shape)
        if mask is not None:
            counts = counts & mask.reshape(-1)
        inside = (labels >= 0) & (labels < self.num_classes)
        if readable(labels) and bool((counts & ~inside).any()):
            raise self.expects(f"classes in [0, {self.num_classes})", f"{int(labels[counts & ~inside][0])}")
        # On a GPU a class outside the range gives a loss of NaN, as the check above would be a sync.
        logits = logits.masked_fill(~counts.unsqueeze(1), 0.0).masked_fill((counts & ~inside).unsqueeze(1), math.nan)
        return logits, labels.masked_fill(~(counts & inside), 0), counts


class Binary(Task):
    r"""Yes or no: binary cross entropy, with a weight of the positive class and a focal factor.

    The loss is that of ``torch.nn.BCEWithLogitsLoss(pos_weight=...)``, or of ``torch.nn.BCELoss`` for a model that ends
    in a sigmoid, for ``gamma=0``. Targets that are NaN and rows outside ``batch.target_mask`` do not count.

    Args:
        pos_weight (float): weight of the positive rows. (default: ``1.0``)
        gamma (float): exponent of the focal factor, 0 or more. (default: ``0.0``)
        logits (bool): the output is a logit rather than a probability. (default: ``True``)
        threshold (float): the result is 1 if the probability is above it. (default: ``0.5``)
        target, process_group: as for :class:`Classification`.

    Shapes:
        - **output:** ``[*]`` or ``[*, 1]``; **target:** as many elements, 0 or 1
        - **decide:** ``{"predictions": int64, "probabilities"}`` in the shape of the output

    Raises:
        ValueError: a number is out of range; output or targets do not fit.
        TypeError: a number is of another type.
    """

    def __init__(
        self,
        *,
        pos_weight: float = 1.0,
        gamma: float = 0.0,
        logits: bool = True,
        threshold: float = 0.5,
        target: str = "y",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.pos_weight = check_number("pos_weight", pos_weight, 0.0)
        self.gamma = check_number("gamma", gamma, 0.0)
        self.threshold = check_number("threshold", threshold, 0.0, 1.0)
        self.logits = logits
        self.target, self.needs, self.process_group = target, (target,), process_group

    def losses(self, output: Any, batch: Any) -> tuple[Tensor]:
        found, y, counts = self._rows(output, batch)
        if self.logits:
            yes, no = F.logsigmoid(found), F.logsigmoid(-found)
        else:
            # torch.nn.BCELoss bounds the logarithms likewise.
            yes, no = found.log().clamp(min=-100), torch.log1p(-found).clamp(min=-100)
        per_row = -(self.pos_weight * y * yes + (1 - y) * no)
        if self.gamma > 0.0:
            per_row = per_row * (self.gamma * torch.where(y > 0.5, no, yes)).exp()
        return (mean(per_row, counts, None, self.process_group),)

    def decide(self, output: Any) -> dict[str, Tensor]:
        found = precise(self._output(output))
        probabilities = found.sigmoid() if self.logits else found
        return {"predictions": (probabilities > self.threshold).long(), "probabilities": probabilities}

    def count(self, output: Any, batch: Any) -> dict[str, Tensor]:
        found, y, counts = self._rows(output, batch)
        yes = self.decide(found)["predictions"].bool()
        pairs = [(yes, y > 0.5), (yes, y <= 0.5), (~yes, y > 0.5), (~yes, y <= 0.5)]
        return {"": torch.stack([(one & other & counts).sum() for one, other in pairs]).double()}

    def score(self, counts: dict[str, list[float]]) -> dict[str, float]:
        tp, fp, fn, tn = counts[""]
        total = tp + fp + fn + tn
        return {
            "accuracy": (tp + tn) / total if total else math.nan,
            "precision": tp / (tp + fp) if tp + fp else math.nan,
            "recall": tp / (tp + fn) if tp + fn else math.nan,
            "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
            "base_rate": (tp + fn) / total if total else math.nan,
            "rows": total,
        }

    def _output(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise self.expects("one number a row", _shape(output))
        return output

    def _rows(self, output: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Output, targets and which rows count, ``[R]`` each."""
        found = precise(self._output(output)).reshape(-1)
        y = target_of(self, batch, self.target)
        if y.numel() != found.numel():
            raise self.expects(f"one target for each of {found.numel()} outputs in {self.target}", list(y.shape))
        mask = mask_of(batch, y.shape)
        y = y.reshape(-1).to(found.dtype)
        counts = ~y.isnan() if mask is None else ~y.isnan() & mask.reshape(-1)
        if readable(y):
            wrong = counts & (y != 0) & (y != 1)
            if bool(wrong.any()):
                raise self.expects("targets of 0 and 1", f"{float(y[wrong][0])}")
            outside = counts & ((found < 0) | (found > 1))
            if not self.logits and bool(outside.any()):
                raise self.expects("probabilities, as logits=False", f"an output of {float(found[outside][0])}")
        return found.masked_fill(~counts, 0.5), y.masked_fill(~counts, 0.0), counts


def _class_weights(weight: Tensor | Sequence[float] | None, count: int) -> Tensor | None:
    if weight is None:
        return None
    numbers = weight.tolist() if isinstance(weight, Tensor) else list(weight)
    checked = [check_number(f"weight[{i}]", number, 0.0) for i, number in enumerate(numbers)]
    if len(checked) != count:
        raise ValueError(f"weight: expected {count} weights, one for each class, got {len(checked)}")
    return torch.tensor(checked, dtype=torch.float64, device="cpu")


def _shape(output: Any) -> object:
    if isinstance(output, Tensor):
        return f"{output.dtype} {list(output.shape)}"
    if isinstance(output, tuple | list):
        return f"{len(output)} outputs"
    return f"a {type(output).__name__}"
