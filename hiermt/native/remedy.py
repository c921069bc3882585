"""The command that builds and installs hiermt again from where it came, past every cache of built wheels."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from hiermt._version import __version__


def rebuild_command(package: Path) -> str:
    """A shell command that installs hiermt with its library, or fails and says why.

    Args:
        package: folder of the package that runs.
    """
    tree = package.parent
    if (tree / "csrc").is_dir() and (tree / "setup.py").is_file():
        return _install(["-e", str(tree)], _installer(None))
    try:
        distribution = metadata.distribution("hiermt")
        text, installer = distribution.read_text("direct_url.json"), distribution.read_text("INSTALLER")
        origin = json.loads(text) if text else {}
    except (metadata.PackageNotFoundError, ValueError, OSError):
        origin, installer = {}, None
    source = _source(origin) if isinstance(origin, dict) else None
    words = [source] if source else ["--no-binary", "hiermt", f"hiermt=={__version__}"]
    return _install(words, _installer(installer))


def _source(origin: dict[str, Any]) -> str | None:
    """What an install was made from, by its direct_url.json (PEP 610); ``None`` if that cannot be built again."""
    url = origin.get("url")
    if not isinstance(url, str) or url.endswith(".whl"):
        return None
    version = origin.get("vcs_info")
    if isinstance(version, dict):
        return f"{version.get('vcs', 'git')}+{url}@{version.get('commit_id', 'HEAD')}"
    if not url.startswith("file:"):
        return url
    path = Path(unquote(urlparse(url).path))
    return str(path) if path.exists() else None


def _installer(recorded: str | None) -> list[str]:
    """The installer that the environment has, with the options that pass its cache."""
    found = _has_pip()
    if (recorded or "").strip() == "uv" or not found:
        uv = shutil.which("uv")
        if uv or not found:
            return ["uv", "pip", "install", "--python", sys.executable, "--refresh-package", "hiermt", "--reinstall"]
    return [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--force-reinstall"]


def _has_pip() -> bool:
    """Whether this Python has pip."""
    try:
        metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    return True


def _install(words: list[str], installer: list[str]) -> str:
    return "HIERMT_REQUIRE_NATIVE=1 " + shlex.join([*installer, "--no-deps", *words])
