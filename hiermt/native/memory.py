"""Working memory that the native operators keep between calls."""

from __future__ import annotations

import importlib

from hiermt.native import extension


def release_memory() -> int:
    """Gives the working memory of the native CPU operators back to the system.

    Every thread that has run a kernel keeps one block for its next call, about as large as the largest of the latest
    calls needed, so that calls of the same sizes again and again ask the system for nothing. What is far above that
    goes back by itself within some 24 calls. This function gives all of it back at once; results, models and tensors
    are untouched, and the next call takes what it needs again. A thread that runs a kernel at that moment keeps its
    block. On a GPU the operators use torch's allocator: see :func:`torch.cuda.empty_cache`.

    Returns:
        The number of bytes given back; 0 without the compiled extension.
    """
    if not extension.native_status().available:
        return 0
    return int(importlib.import_module("hiermt._C").release_scratch())
