"""Sphinx configuration of the manual: the pages of this folder, and the API reference from the docstrings."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent

project = "topreco"
author = "The topreco developers"
version = release = installed_version("topreco")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
# The last is what the quickstart notebook writes beside itself.
exclude_patterns = ["_build", "tables", "study", "figures", "quickstart"]
html_theme = "furo"
html_title = f"topreco {release}"

myst_heading_anchors = 3
# Outputs are made when the manual is built; the quickstart simulates its events and needs the extra `sim`.
nb_execution_mode = "auto"
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_merge_streams = True
# Lines of shell sessions and of templates that no lexer knows completely.
highlight_options = {"console": {"stripall": True}}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
numpydoc_show_class_members = False

# Links to files and folders of this repository, not to headings and addresses.
_LINK = re.compile(r"\[([^\]]*)\]\(((?!\w+:)[^)#\s]+)(#[^)]*)?\)")


def unlink_sources(app: Any, docname: str, content: list[str]) -> None:
    """Leave the text of links to files of the repository that are no pages, and refuse dangling ones."""
    folder = (HERE / docname).parent

    def text(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        if not target.exists():
            message = f"{docname}: link to {found[2]}, which does not exist"
            raise FileNotFoundError(message)
        return found[0] if target.is_relative_to(HERE) and target.is_file() else found[1]

    content[0] = _LINK.sub(text, content[0])


def escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Take |η| for an absolute value, which reStructuredText takes for a substitution."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    """Connect the hooks above."""
    app.connect("source-read", unlink_sources)
    app.connect("autodoc-process-docstring", escape_bars)
