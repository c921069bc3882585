"""The record of a training, ``run.json``: what is needed to make its folder again."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from hiermt._version import __version__
from hiermt.cli.output import log
from hiermt.data import DataError
from hiermt.io.tensor_files import parse_json
from hiermt.native.info import collect

# Options that name files of data.
INPUTS = ("prices", "features", "adjacency", "sectors")
# Where results go and how they are shown; the command as typed has them.
_NOT_RECORDED = {
    *("out", "checkpoint", "resume", "tensorboard", "json", "config"),
    *("command", "parser", "argv", "run", "walk_forward", "model"),
}
_PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "matplotlib", "safetensors", "skfolio")


def fingerprint(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def inputs(args: argparse.Namespace, **more: Path) -> dict[str, dict[str, Any]]:
    """Path, size and hash of each file that the arguments name, and of `more`. Missing files are left to their readers.

    A note says which of them differ from those of the record that ``--config`` names.
    """
    paths = {name: Path(value) for name in INPUTS if (value := getattr(args, name, None)) is not None} | more
    found = {}
    for name, path in paths.items():
        if path.is_file():
            size = path.stat().st_size
            found[name] = {"path": str(path.resolve()), "bytes": size, "sha256": fingerprint(path)}
    for name, old in _recorded(getattr(args, "config", None)).items():
        if name in found and found[name]["sha256"] != old.get("sha256"):
            log.warning(
                "%s is not the file of the training that --config records, so the result will differ from its result",
                found[name]["path"],
            )
    return found


def describe(
    args: argparse.Namespace,
    device: torch.device,
    features: tuple[str, ...],
    files: dict[str, dict[str, Any]],
    **options: Any,
) -> dict[str, Any]:
    """The content of ``run.json``.

    Args:
        args (Namespace): parsed arguments.
        device (device): that was used.
        features (tuple of str): names of the features.
        files (dict): result of :func:`inputs`.
        options: values that the command chose itself, in place of those of `args`.
    """
    chosen: dict[str, Any] = {name: value for name, value in vars(args).items() if name not in _NOT_RECORDED}
    for name in INPUTS:
        if chosen.get(name) is not None:
            chosen[name] = str(Path(chosen[name]).resolve())
    build = collect()
    return {
        "command": args.command,
        "arguments": args.argv,
        "options": {**chosen, "device": str(device), **options},
        "inputs": files,
        "features": list(features),
        "versions": {"hiermt": __version__, "python": platform.python_version(), **_versions()},
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "runs": build.runs,
            "environment": build.environment,
        },
        "again": f"hiermt {args.command} --config run.json --out DIR",
    }


def _recorded(config: Path | None) -> dict[str, dict[str, Any]]:
    if config is None:
        return {}
    try:
        found = parse_json(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"--config {config}: {error}") from None
    old = found.get("inputs") if isinstance(found, dict) else None
    return {name: value for name, value in old.items() if isinstance(value, dict)} if isinstance(old, dict) else {}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
