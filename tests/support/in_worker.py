"""A dataset whose items are computed by models, in whatever process asks for them; a spawned one imports this file."""

from __future__ import annotations

import torch
from torch import Tensor

import hiermt
from hiermt.testing import stock_graph


class Forwards(torch.utils.data.Dataset[list[Tensor]]):
    """Item `i`: the logits of each model for an x of `i`."""

    def __init__(self, models: list[hiermt.TGCN_HierarchicalMT]) -> None:
        self.models = models

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        with torch.no_grad():
            return [model(torch.full((20, 6, 5), float(index)), *stock_graph(20, 60))[0] for model in self.models]
