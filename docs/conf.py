"""Sphinx: `tox -e docs` builds these pages with warnings as errors, and runs their doctests."""

from __future__ import annotations

import perfkit

project = "perfkit"
author = "the perfkit developers"
project_copyright = "the perfkit developers; MIT"
version = release = perfkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"perfkit {release}"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
# "ref.python": fields called `bytes` stand beside the type of that name.
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure", "ref.python"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings write names in single backticks
napoleon_custom_sections = [("Raises, at the end of the block", "params_style")]
