"""The pure-PyTorch twin of every native operator: the oracle of the tests and the fallback at run time.

Every function has the arguments of the function of the same name in :mod:`hiermt.ops`, uses stock PyTorch only, and
is differentiated by autograd. A graph convolution reads the input sequence and never the hidden state, so it processes
all ``T`` steps in one batch. Only the recurrence of the gates, which reads no edge, loops over time.

The summation order of a matrix product of PyTorch depends on the number of threads and of rows. The twin is bitwise
equal over runs with one thread count, but not over thread counts, nor between a batch and its parts. The native CPU
operators are.

Letters: ``N`` nodes, ``S`` nodes of the template graph, ``B = N / S`` copies of it, ``T`` time steps, ``F`` input
channels, ``H`` hidden channels, ``E`` entries of the compressed sparse rows (CSR), ``M = B * T`` instances.
"""

from hiermt.reference.convolution import LEAKY_RELU, LEAKY_SIGMOID, NONE, SIGMOID, conv_stack
from hiermt.reference.decision import decision, decision_from_logits, head_logits
from hiermt.reference.graph_prepare import GATV2_RULE, GCN_RULE, graph_prepare
from hiermt.reference.layer import tgcn_layer, tgcn_layer_decision, tgcn_layer_logits
from hiermt.reference.loss import multitask_loss
from hiermt.reference.scan import gated_scan, gather_windows

__all__ = [
    "GATV2_RULE",
    "GCN_RULE",
    "LEAKY_RELU",
    "LEAKY_SIGMOID",
    "NONE",
    "SIGMOID",
    "conv_stack",
    "decision",
    "decision_from_logits",
    "gated_scan",
    "gather_windows",
    "graph_prepare",
    "head_logits",
    "multitask_loss",
    "tgcn_layer",
    "tgcn_layer_decision",
    "tgcn_layer_logits",
]
