"""Graphs as the operators read them: validated, sorted into CSR and cached."""

from hiermt.graph.cache import as_graph
from hiermt.graph.csr import CSR
from hiermt.graph.dynamic import DynamicGraph
from hiermt.graph.graph import Graph, same_device

__all__ = ["CSR", "DynamicGraph", "Graph", "as_graph", "same_device"]
