"""Working memory that the native operators keep between calls."""

from __future__ import annotations

import importlib

from hiermt.native import extension


def release_memory() -> int:
    """Returns the working memory of the native CPU operators to the system.

    Every thread that ran a kernel keeps one block for its next call, about as large as the largest of the latest calls
    needed, so that repeated calls of the same sizes allocate nothing. A much larger block shrinks within some 24 calls.
    This function frees all blocks at once; results, models and tensors are unaffected, and the next call allocates
    again. A thread that is running a kernel keeps its block. On a GPU the operators use torch's allocator: see
    :func:`torch.cuda.empty_cache`.

    Returns:
        The number of bytes freed; 0 without the compiled extension.
    """
    if not extension.native_status().available:
        return 0
    return int(importlib.import_module("hiermt._C").release_scratch())
