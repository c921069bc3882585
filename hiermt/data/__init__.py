"""From prices to batches: features, labels, graph, windows, time split and loaders.

The whole pipeline::

    prices = hiermt.data.read_prices("prices.csv")
    table = hiermt.data.compute_features(prices)
    split = hiermt.data.time_split(table.num_days, window=25)
    returns = hiermt.data.next_returns(table.close)[:, : split.train_days - 1]
    edge_index, edge_weight = hiermt.data.correlation_graph(returns)
    scale = hiermt.data.Scale.fit(table.values[:, : split.train_days], table.names)
    dataset = hiermt.data.WindowDataset.from_table(table, edge_index, edge_weight, scale=scale)
    loader = hiermt.data.WindowLoader(dataset, split.train, batch_size=32, shuffle=True)
    model = hiermt.TGCN_HierarchicalMT(len(table.names), feature_names=table.names)

Table, scale, dataset, model and checkpoint hold the names of the features, which are compared wherever two of them are
combined. A model without names, such as one converted by ``from_reference``, accepts any features; one that was trained
on the published data expects :data:`FEATURES` in that order: assign ``model.feature_names = hiermt.data.FEATURES``.
"""

from hiermt.data._errors import DataError, DataWarning
from hiermt.data.dataset import WindowDataset
from hiermt.data.feature_table import FeatureTable, read_features
from hiermt.data.features import BAR_FEATURES, CLOSE_FEATURES, FEATURES, WARM_UP, compute_features
from hiermt.data.from_pyg import from_pyg_dataset
from hiermt.data.graph import (
    CORRELATION,
    correlation_graph,
    graph_from_adjacency,
    read_adjacency,
    read_sectors,
    sectors_of,
    to_adjacency,
)
from hiermt.data.labels import CLASSES, THRESHOLD, hierarchical_labels, next_returns, three_classes
from hiermt.data.prices import Prices, read_prices
from hiermt.data.pyg import PygDataset, pyg_loader
from hiermt.data.scale import Scale
from hiermt.data.sp500 import LIMITS, SP500_SECTORS, load_sp500
from hiermt.data.split import Split, time_split
from hiermt.data.window_loader import WindowBatch, WindowLoader
from hiermt.data.windows import num_windows, windows

__all__ = [
    "BAR_FEATURES",
    "CLASSES",
    "CLOSE_FEATURES",
    "CORRELATION",
    "FEATURES",
    "LIMITS",
    "SP500_SECTORS",
    "THRESHOLD",
    "WARM_UP",
    "DataError",
    "DataWarning",
    "FeatureTable",
    "Prices",
    "PygDataset",
    "Scale",
    "Split",
    "WindowBatch",
    "WindowDataset",
    "WindowLoader",
    "compute_features",
    "correlation_graph",
    "from_pyg_dataset",
    "graph_from_adjacency",
    "hierarchical_labels",
    "load_sp500",
    "next_returns",
    "num_windows",
    "pyg_loader",
    "read_adjacency",
    "read_features",
    "read_prices",
    "read_sectors",
    "sectors_of",
    "three_classes",
    "time_split",
    "to_adjacency",
    "windows",
]
