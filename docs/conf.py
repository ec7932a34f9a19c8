"""Configuration of Sphinx: `make docs` builds the site into build/site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from reference import write_reference

from pinmem_core.version import __version__

project = "pinmem"
author = "the pinmem authors"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["notebooks", "study/*", "benchmarks/*"]
html_theme = "furo"
html_title = f"pinmem {__version__}"
html_copy_source = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
default_role = "code"
smartquotes = False
highlight_language = "text"
myst_heading_anchors = 3
copybutton_prompt_text = "$ "

write_reference(Path(__file__).parent / "reference")
