"""Every page of the manual is in its table of contents."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_every_page_is_listed():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {
        page for tree in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for page in tree.split()
    }
    pages = {
        str(path.relative_to(DOCS).with_suffix(""))
        for path in [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb"), *DOCS.glob("models/*.md")]
    }
    assert pages - {"index"} <= listed
