"""Searches hyperparameters with Optuna: ``pip install optuna``, then ``python examples/tune.py --trials 20``.

A trial reports its validation loss after each epoch and is stopped when it is worse than the median of the others.
"""

from __future__ import annotations

import argparse

import optuna
import torch

import hiermt
from hiermt import data
from hiermt.testing import stock_graph

STOCKS, DAYS, FEATURES, WINDOW = 30, 160, 13, 20


def dataset() -> data.WindowDataset:
    """Random features and labels. Replace by real data."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    return data.WindowDataset(series, *stock_graph(STOCKS, 160), WINDOW, *labels)


def objective(trial: optuna.Trial, source: data.WindowDataset, epochs: int) -> float:
    """Best validation loss of a model with the hyperparameters of `trial`."""
    split = data.time_split(DAYS, WINDOW, validation=0.2)
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(
        FEATURES,
        hidden_size=trial.suggest_categorical("hidden_size", [8, 16, 32]),
        layers_nb=trial.suggest_int("layers_nb", 1, 2),
        use_gat=trial.suggest_categorical("use_gat", [True, False]),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True))

    def report(epoch: int, losses: dict[str, float]) -> None:
        trial.report(losses["test_total_loss"], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    _, losses, _ = hiermt.train_hierarchical(
        model,
        optimizer,
        hiermt.MultiTaskLoss(trial.suggest_float("lambda_direction", 0.1, 2.0)),
        data.WindowLoader(source, split.train, batch_size=32, shuffle=True),
        data.WindowLoader(source, split.validation, batch_size=32),
        epochs,
        callback=report,
        progress=False,
    )
    return min(losses)


def main(trials: int = 20, epochs: int = 10) -> optuna.Study:
    """Runs the study and prints its best trial."""
    source = dataset()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner())
    study.optimize(lambda trial: objective(trial, source, epochs), trials)
    print(f"best validation loss {study.best_value:.4f} with {study.best_params}")
    return study


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    main(args.trials, args.epochs)
