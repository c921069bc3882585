"""Trains with Lightning: ``pip install lightning``, then ``python examples/lightning_module.py``.

Any precision of the trainer works, ``bf16-true`` and ``64-true`` among them.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch

import hiermt
from hiermt import data
from hiermt.testing import stock_graph

STOCKS, DAYS, FEATURES, WINDOW = 50, 200, 13, 25


class TwoHeads(lightning.LightningModule):
    """The two-headed model with the multi-task loss."""

    def __init__(self, hidden_size: int = 16, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = hiermt.TGCN_HierarchicalMT(FEATURES, hidden_size)
        self.criterion = hiermt.MultiTaskLoss()
        self.lr = lr

    def training_step(self, batch: data.WindowBatch, _: int) -> torch.Tensor:
        signal, direction = self.model(batch.windows, batch.graph)
        terms = self.criterion.terms(
            signal, direction, batch.signal_labels, batch.direction_labels, batch.signal_labels == 1
        )
        self.log("loss", terms.total, prog_bar=True, batch_size=batch.starts.numel())
        return terms.total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def loader() -> data.WindowLoader:
    """Random features and labels. Replace by real data."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    return data.WindowLoader(data.WindowDataset(series, *stock_graph(STOCKS, 300), WINDOW, *labels), shuffle=True)


def main(**options: Any) -> TwoHeads:
    """Trains; `options` are those of ``lightning.Trainer``."""
    lightning.seed_everything(0)
    module = TwoHeads()
    lightning.Trainer(accelerator="auto", devices=1, **options).fit(module, loader())
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    main(max_epochs=args.epochs, precision=args.precision)
