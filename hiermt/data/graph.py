"""Edges between stocks, from the correlation of their returns or from an adjacency matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiermt._arguments import check_integer
from hiermt.data._errors import DataError, first_line, warn
from hiermt.data.column_names import SYMBOL_NAMES
from hiermt.data.feature_table import check_present
from hiermt.data.table import check_file, read_table

CORRELATION = 0.5
"""Correlation of returns above which two stocks are neighbours."""

MIN_DAYS = 20
"""Days that two stocks which come and go must share to be neighbours."""


def correlation_graph(
    returns: Tensor,
    threshold: float = CORRELATION,
    *,
    sectors: Sequence[str] | None = None,
    sector_bonus: float = 0.1,
    present: Tensor | None = None,
    min_days: int = MIN_DAYS,
) -> tuple[Tensor, Tensor]:
    """Connects stocks whose returns correlate by more than a threshold.

    The weight of a pair is its Pearson correlation, plus `sector_bonus` if both are of one sector, at most 1; the
    pair becomes an edge if the weight exceeds `threshold`. A negative threshold admits negative weights. A stock with
    constant returns has no edges. A graph without edges is valid, but gives a warning.

    Args:
        returns (Tensor): returns on the training days only; returns of the test span would leak into the graph.
        threshold (float): in ``[-1, 1)``. (default: ``0.5``)
        sectors (sequence of str, optional): sector of each stock. (default: ``None``, no bonus)
        sector_bonus (float): 0 or more. (default: ``0.1``)
        present (Tensor, optional): returns that are there; others may be NaN. The correlation of a pair is then that of
            the days that both have, as in ``pandas.DataFrame.corr``. (default: ``None``, all of them)
        min_days (int): with `present`, days that a pair must share for an edge, 2 or more. (default: ``20``)

    Shapes:
        - **returns:** ``[S, D]`` with ``D >= 2``; **present:** ``[S, D]`` bool
        - **edge_index:** ``[2, E]`` int64, symmetric, no self loops, sorted by source
        - **edge_weight:** ``[E]`` float32

    Raises:
        ValueError: `threshold`, `sector_bonus` or `min_days` is out of range, or `sectors` has another length.
        DataError: fewer than two days, or a return that is complex or not finite.
        TypeError: `min_days` is not an integer.
    """
    if not -1 <= threshold < 1:
        raise ValueError(f"threshold: expected a correlation in [-1, 1), got {threshold}")
    if not 0 <= sector_bonus < float("inf"):
        raise ValueError(f"sector_bonus: expected a finite number of 0 or more, got {sector_bonus}")
    if returns.dim() != 2 or returns.size(1) < 2:
        raise DataError(f"returns: expected [stocks, days] with two days or more, got {list(returns.shape)}")
    if returns.is_complex():
        raise DataError("returns: expected real numbers, got complex ones")
    min_days = check_integer("min_days", min_days, 2)
    finite = torch.isfinite(returns)
    if present is not None:
        check_present(present, returns.unsqueeze(-1))
        finite = finite | ~present
    if not bool(finite.all()):
        raise DataError(
            "returns: NaN or infinity among them; a correlation needs a price on every day: pass "
            "present=returns.isfinite() for stocks that come and go"
        )
    stocks = returns.size(0)
    if sectors is not None and len(sectors) != stocks:
        raise ValueError(f"sectors: expected one for each of {stocks} stocks, got {len(sectors)}")
    returns = returns.double() if present is None else returns.double().masked_fill(~present, 0.0)
    # Correlation is invariant to scale, and the squares of very large or small returns leave the range of float64.
    size = returns.abs().amax(dim=1, keepdim=True)
    returns = returns / torch.where(size > 0, size, 1.0)
    weight, still = _correlation(returns) if present is None else _shared_correlation(returns, present, min_days)
    if sectors is not None:
        codes = {sector: i for i, sector in enumerate(sectors)}
        code = torch.tensor([codes[sector] for sector in sectors], dtype=torch.int64, device=weight.device)
        weight = weight + sector_bonus * (code.unsqueeze(0) == code.unsqueeze(1))
    chosen = weight > threshold
    chosen.fill_diagonal_(False)
    chosen &= ~still
    edge_index = chosen.nonzero().t().contiguous()
    if not edge_index.size(1):
        warn(f"no pair of stocks correlates by more than {threshold:g}, so the graph has no edges; lower the threshold")
    return edge_index, weight[edge_index[0], edge_index[1]].clamp(max=1).float()


def _correlation(returns: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of each pair, and the pairs that have none because one of the two does not move."""
    centred = returns - returns.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    # Rounding gives constant returns a tiny norm; their correlation would be noise.
    still = norm <= 1e-12 * returns.norm(dim=1, keepdim=True)
    weight = centred / torch.where(norm > 0, norm, 1.0)
    weight = weight.masked_fill(still, 0.0)
    weight = weight @ weight.t()
    return (weight + weight.t()) / 2, still | still.t()


def _shared_correlation(returns: Tensor, present: Tensor, min_days: int) -> tuple[Tensor, Tensor]:
    """The same over the days on which both of a pair are there; returns are 0 elsewhere."""
    there = present.double()
    # Near their mean the sums below cancel least.
    returns = (returns - (returns.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1))) * there
    days = there @ there.t()
    count = days.clamp(min=1)
    # Row i, column j: of stock i over the days that it shares with j.
    mean, square = returns @ there.t() / count, (returns**2) @ there.t() / count
    variance = square - mean**2
    still = variance <= 1e-12 * square
    deviation = variance.clamp(min=0).masked_fill(still, 1.0).sqrt()
    covariance = returns @ returns.t() / count - mean * mean.t()
    weight = (covariance / (deviation * deviation.t())).clamp(-1, 1)
    return (weight + weight.t()) / 2, still | still.t() | (days < min_days)


def sectors_of(symbols: Sequence[str], sectors: Mapping[str, str]) -> list[str]:
    """Sector of each stock; a stock without one is its own sector.

    Args:
        symbols (sequence of str): stocks, in the order of the result.
        sectors (mapping of str to str): sector by stock.
    """
    return [sectors.get(symbol, f"(none: {symbol})") for symbol in symbols]


def read_sectors(source: Any) -> dict[str, str]:
    """Reads the sector of each stock from a table with the columns ``Symbol`` and ``Sector``.

    Args:
        source (str, Path or pandas.DataFrame): CSV, Parquet, or a DataFrame.

    Returns:
        Sector by stock.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a column is missing or a cell empty.
    """
    table = read_table(source)
    symbol, sector = table.find(SYMBOL_NAMES), table.find(("sector", "gics sector", "industry"))
    if symbol is None or sector is None:
        raise DataError(f"{table.source}: expected the columns Symbol and Sector, got {', '.join(table.columns)}")
    return dict(zip(table.symbols(symbol), table.symbols(sector), strict=True))


def graph_from_adjacency(adjacency: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Edges of a weighted adjacency matrix; 0 means no edge, the diagonal is dropped.

    Weights are rounded to float32 first: one that becomes 0 is not an edge.

    Args:
        adjacency (ndarray or Tensor): ``[S, S]``, symmetric.

    Returns:
        ``edge_index [2, E]`` int64, sorted by source, and ``edge_weight [E]`` float32.

    Raises:
        DataError: the matrix is not square, not finite, not symmetric, sparse or masked, or a weight is too large for
            float32.
    """
    given = adjacency if isinstance(adjacency, Tensor) else _from_numpy(adjacency)
    if given.layout != torch.strided:
        raise DataError(f"adjacency: expected a dense matrix, got a Tensor of layout {given.layout}; use .to_dense()")
    if given.dim() != 2 or given.size(0) != given.size(1):
        raise DataError(f"adjacency: expected a square matrix [stocks, stocks], got {list(given.shape)}")
    if given.is_complex():
        raise DataError("adjacency: expected real weights, got complex ones")
    matrix = given.float()
    if not bool(torch.isfinite(matrix).all()):
        row, column = (~torch.isfinite(matrix)).nonzero()[0].tolist()
        value = float(given[row, column])
        wrong = ", too large for float32" if math.isfinite(value) else ""
        raise DataError(f"adjacency: row {row}, column {column} is {value:g}{wrong}; expected finite weights")
    matrix = matrix.double()
    if not torch.allclose(matrix, matrix.t(), rtol=1e-6, atol=1e-9):
        off = ~torch.isclose(matrix, matrix.t(), rtol=1e-6, atol=1e-9)
        row, column = off.nonzero()[0].tolist()
        raise DataError(
            f"adjacency: not symmetric, row {row}, column {column} is {float(matrix[row, column]):g} and the other way "
            f"{float(matrix[column, row]):g}; use (A + A.T) / 2"
        )
    edge_index = matrix.clone().fill_diagonal_(0).nonzero().t().contiguous()
    return edge_index, matrix[edge_index[0], edge_index[1]].float()


def _from_numpy(adjacency: Any) -> Tensor:
    """The numbers of an array of any byte order, which may be read-only."""
    if hasattr(adjacency, "toarray"):
        raise DataError(f"adjacency: expected a dense matrix, got a {type(adjacency).__name__}; use .toarray()")
    if np.ma.is_masked(adjacency):
        # Only the mask says that a number behind it counts for nothing.
        raise DataError("adjacency: some of its elements are masked; say what they are with .filled(0)")
    array = np.asarray(adjacency)
    if array.dtype.kind not in "biufc":
        raise DataError(f"adjacency: expected a matrix of real numbers, got an array of {array.dtype}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def to_adjacency(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> np.ndarray:
    """The dense matrix ``[S, S]`` float32 of a graph, the content of an adjacency file.

    Args:
        edge_index (Tensor): ``[2, E]``.
        edge_weight (Tensor): ``[E]``.
        num_nodes (int): ``S``.

    Raises:
        TypeError: `num_nodes` is not an integer.
        ValueError: `num_nodes` is negative.
        IndexError: a node of an edge is not in ``[0, num_nodes)``.
        DataError: a weight is NaN, infinite, or too large for float32.
    """
    check_integer("num_nodes", num_nodes, 0)
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise IndexError(
            f"edge_index: expected nodes in [0, {num_nodes}), got {int(edge_index.min())} to {int(edge_index.max())}"
        )
    weight = edge_weight.detach().cpu().reshape(-1)
    wrong = ~torch.isfinite(weight.float())
    if bool(wrong.any()):
        edge = int(wrong.nonzero()[0])
        raise DataError(f"edge_weight: edge {edge} is {float(weight[edge]):g}; expected weights that float32 holds")
    matrix = np.zeros((int(num_nodes), int(num_nodes)), dtype=np.float32)
    source, target = edge_index.detach().cpu().long().numpy()
    matrix[source, target] = weight.float().numpy()
    return matrix


def read_adjacency(path: str | Path, num_nodes: int | None = None) -> tuple[Tensor, Tensor]:
    """Reads a weighted adjacency matrix from a ``.npy`` file; nothing in the file is executed.

    Args:
        path (str or Path): the file; row and column ``i`` are the ``i``-th stock of the table.
        num_nodes (int, optional): expected number of stocks. (default: any number)

    Returns:
        ``edge_index [2, E]`` int64 and ``edge_weight [E]`` float32.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is damaged, or not a square symmetric matrix of that size, or a weight exceeds
            float32.
        TypeError: `num_nodes` is not an integer.
    """
    if num_nodes is not None:
        check_integer("num_nodes", num_nodes, 0)
    path = Path(path)
    check_file(path, "a .npy file with an adjacency matrix")
    try:
        with open(path, "rb") as file:
            matrix = np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError as error:
        raise DataError(f"{path.name} is not a readable .npy file of numbers: it does not fit into memory") from error
    except Exception as error:  # the header is parsed as Python, so a damaged file raises many classes
        raise DataError(f"{path.name} is not a readable .npy file of numbers: {first_line(error)}") from error
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"{path.name}: expected one array of real numbers, got {matrix.dtype}")
    if num_nodes is not None and matrix.shape != (num_nodes, num_nodes):
        raise DataError(
            f"{path.name}: expected [{num_nodes}, {num_nodes}], one row per stock of the table, got "
            f"{list(matrix.shape)}"
        )
    return graph_from_adjacency(matrix.astype(np.float64))
