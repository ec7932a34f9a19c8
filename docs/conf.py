"""Configuration of Sphinx: `make docs` builds the site into build/site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from reference import write_reference

from pinmem_core.version import __version__

project = "pinmem"
author = "the pinmem authors"
copyright = f"2026, {author}"
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
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
templates_path = ["_templates"]
# The theme's colours, with a contrast of at least 7:1.
html_theme_options = {
    "light_css_variables": {
        "color-code-background": "#f8f9fb",
        "color-foreground-secondary": "#4a4c53",
        "color-foreground-muted": "#4e5259",
        "color-brand-primary": "#0037c9",
        "color-brand-content": "#1f47b8",
        "color-brand-visited": "#6a1bbd",
    },
    "dark_css_variables": {
        "color-problematic": "#ff8f8f",
        "color-foreground-secondary": "#b4b8bd",
        "color-foreground-muted": "#a3a8af",
        "color-brand-primary": "#74b4ff",
        "color-brand-content": "#74b4ff",
        "color-brand-visited": "#c59bf0",
    },
}
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
default_role = "code"
smartquotes = False
highlight_language = "text"
pygments_style = "a11y-high-contrast-light"
myst_heading_anchors = 3
copybutton_prompt_text = "$ "

write_reference(Path(__file__).parent / "reference")
