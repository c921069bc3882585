"""Trains on a table of your own: a series of features, a graph and targets, without prices.

python examples/own_data.py

Here sensors on a ring measure a wave, and the model predicts the next three values of each. Replace :func:`measure`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import hiermt
from hiermt import data

SENSORS, DAYS, WINDOW, HORIZONS = 24, 400, 12, 3


def measure() -> tuple[Tensor, Tensor, Tensor]:
    """A series ``[S, D, F]``, and the ring of the sensors as edges ``[2, E]`` with weights ``[E]``."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(SENSORS).unsqueeze(1) * (2 * math.pi / SENSORS)
    wave = (place - 0.2 * torch.arange(DAYS)).sin() + 0.1 * torch.randn(SENSORS, DAYS, generator=generator)
    hour = (torch.arange(DAYS) % 24 / 24).expand(SENSORS, DAYS)
    here = torch.arange(SENSORS)
    edges = torch.stack([torch.cat([here, (here + 1) % SENSORS]), torch.cat([(here + 1) % SENSORS, here])])
    return torch.stack([wave, hour], -1), edges, torch.ones(edges.size(1))


def main(epochs: int = 20) -> dict[str, float]:
    """Trains, prints the errors of each horizon and of the last value repeated, and returns them."""
    series, edge_index, edge_weight = measure()
    value = series[..., 0]
    # The target of a day are the next values: [S, D - 3, 3].
    ahead = torch.stack([value[:, k : DAYS - HORIZONS + k] for k in range(1, HORIZONS + 1)], -1)
    dataset = data.WindowDataset(series, edge_index, edge_weight, WINDOW, targets={"y": ahead})
    split = data.time_split(DAYS, WINDOW, horizon=HORIZONS)
    torch.manual_seed(0)
    model = hiermt.TGCN(series.size(-1), out_channels=HORIZONS, hidden_size=16, use_gat=False)
    task = hiermt.tasks.Regression("mae")
    hiermt.train(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        task,
        data.WindowLoader(dataset, split.train, shuffle=True),
        data.WindowLoader(dataset, split.validation),
        epochs,
        patience=5,
        progress=False,
    )
    scores = hiermt.evaluate(model, task, data.WindowLoader(dataset, split.test))
    last = torch.tensor(list(split.test)) + WINDOW - 1
    scores["repeated_mae"] = float((ahead[:, last] - value[:, last].unsqueeze(-1)).abs().mean())
    print({name: round(number, 3) for name, number in scores.items()})
    return scores


if __name__ == "__main__":
    main()
