"""Configuration of the documentation: ``make docs`` builds it with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import pictures  # noqa: E402

from hiermt import __version__  # noqa: E402

project, author, version = "hiermt", "the hiermt authors", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"hiermt {version}"
html_static_path = ["_static"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them
autodoc_mock_imports = ["torch_geometric"]
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = ["Shapes"]
napoleon_use_ivar = True
suppress_warnings = ["myst.xref_missing"]  # links into the repository, which are files outside of the site

pictures.write(ROOT / "docs" / "_static")
