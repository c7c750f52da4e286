"""The documentation site: `make site` builds it into build/site. It loads nothing from the network."""

from tollkeeper import __version__

project = "Tollkeeper"
author = "The Tollkeeper developers"
project_copyright = author
version = release = __version__
html_title = f"Tollkeeper {__version__}"

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
html_theme = "furo"
html_theme_options = {"source_edit_link": "", "source_view_link": ""}
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []
exclude_patterns: list[str] = []
nitpicky = True
# Log records have fields that no Pygments lexer of theirs knows; a block that cannot be read is tests/test_docs.py's.
suppress_warnings = ["misc.highlighting_failure", "toc.multiple_toc_parents"]
