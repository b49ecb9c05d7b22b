"""The few pieces of HTML that a page is made of; everything that is passed in as text is escaped."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 0.5rem; padding-top: 0.6rem; border-top: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.4rem; }
p, li { max-width: 48rem; }
a { color: #1f5fa8; }
nav ul { columns: 16rem; padding-left: 1.2rem; }
.table { overflow-x: auto; margin: 0.6rem 0 1rem; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.2rem 0; white-space: nowrap; }
th, td { padding: 0.25rem 0.45rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
tbody th { position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
figure { margin: 0; }
img { display: block; width: 100%; max-width: 100%; height: auto; }
figcaption { font-size: 0.85rem; color: #444; }
.warning { border-left: 4px solid #bd1f01; padding: 0.3rem 0.8rem; background: #fdf1ee; }
pre { overflow-x: auto; background: #f4f4f4; padding: 0.6rem; font-size: 0.85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print {
  @page { size: A4; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .table { overflow: visible; }
  table { font-size: 7pt; }
  th, td { padding: 0.1rem 0.35rem; }
  .figures { grid-template-columns: repeat(3, 1fr); gap: 0.5rem; }
  figure, tr { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  a { color: inherit; text-decoration: none; }
}
"""


def document(title: str, body: Sequence[str]) -> str:
    """A whole page that needs nothing else.

    Parameters
    ----------
    title
        Of the page.
    body
        Its pieces, as HTML.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            # Without it browsers ask the server for one.
            '<link rel="icon" href="data:,">',
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def section(anchor: str, title: str, *body: str) -> str:
    """A section that the table of contents can point to.

    Parameters
    ----------
    anchor, title
        Name in links, and heading.
    *body
        Its pieces, as HTML.
    """
    return "\n".join([f'<section id="{escape(anchor)}">', f"<h2>{escape(title)}</h2>", *body, "</section>"])


def contents(entries: Sequence[tuple[str, str]]) -> str:
    """Table of contents.

    Parameters
    ----------
    entries
        Anchor and title of each section.
    """
    items = "".join(f'<li><a href="#{escape(anchor)}">{escape(title)}</a></li>' for anchor, title in entries)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def title(text: str) -> str:
    """Heading of the page."""
    return f"<h1>{escape(text)}</h1>"


def heading(text: str) -> str:
    """Heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, *, warning: bool = False) -> str:
    """Running text.

    Parameters
    ----------
    text
        What it says.
    warning
        Make it stand out.
    """
    kind = ' class="warning"' if warning else ""
    return f"<p{kind}>{escape(text)}</p>"


def code(text: str) -> str:
    """Text to copy."""
    return f"<pre>{escape(text)}</pre>"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", text: bool = False
) -> str:
    """A table that scrolls within itself on a narrow screen.

    Parameters
    ----------
    head
        Headings of the columns.
    rows
        Cells of each row, the first of which names it.
    caption
        Above the table.
    text
        Whether the cells are text that may be broken into lines, not numbers.
    """
    kind = ' class="text"' if text else ""
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in others)
        + "</tr>"
        for first, *others in rows
    )
    return (
        f'<div class="table" tabindex="0"><table>{above}<thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figures(images: Sequence[tuple[str, str]]) -> str:
    """Figures side by side, as many as fit.

    Parameters
    ----------
    images
        Data URI of each, and what it shows, which is alternative text and caption.
    """
    found = "".join(
        f'<figure><img src="{uri}" alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'
        for uri, text in images
    )
    return f'<div class="figures">{found}</div>'
