"""PEP 517 hooks: setuptools, and the requirements that this machine lacks.

torch is no fixed build requirement: under isolation pip would download its largest wheel for a few headers, although
the torch of the environment can be used. Where there is none, as in the isolated builds of other tools, it is required.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import options
import toolchain

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Requirements of a wheel on this machine."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *missing()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Requirements of an editable install on this machine."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *missing()]


def missing() -> list[str]:
    """Packages to install before the library can be built; none where it cannot be built at all."""
    chosen = options.read()
    if chosen.leave_out:
        return []
    try:
        toolchain.find_compiler(chosen)
    except toolchain.LeftOut:
        return []
    wanted = {name: oldest for name, oldest in toolchain.OLDEST_TOOLS.items() if toolchain.find_tool(name) is None}
    try:
        toolchain.find_torch()
    except toolchain.TorchMissing:
        wanted["torch"] = toolchain.OLDEST_TORCH
    return [f"{name}>={'.'.join(map(str, oldest))}" for name, oldest in wanted.items()]
