"""The tables and figures of a validation as one PDF, for a note that cannot hold a web page."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from topreco.evaluation.style import figure_style
from topreco.validation.page import Image, Table

_SIZE = (11.69, 8.27)
"""A4 on its side, in inches."""
_MARGIN = 0.6
_FONT_SIZE = 9.0
_WIDTH_OF_A_CHARACTER = 0.602
"""Of DejaVu Sans Mono, in units of the font size."""
_LINE_HEIGHT = 1.35
_TEXT_WIDTH = 48
"""Characters to which cells of text are broken."""

Block = str | Table | Image


def write_pdf(content: Mapping[str, Any], path: str | Path) -> None:
    """Write the tables, and each figure on a page of its own with its caption.

    Parameters
    ----------
    content
        As `topreco.validation.page.page_content` gives it.
    path
        File to write.
    """
    metadata = {"Title": content["title"], "CreationDate": None}
    with figure_style(), PdfPages(path, metadata=metadata) as pdf:
        contents = [f"  {heading}" for heading in content["contents"].values()]
        methods = f"{', '.join(content['methods'])}, on {content['n_events']} simulated events."
        _write_lines(pdf, content["title"], [*textwrap.wrap(methods, 100), "", *contents])
        for anchor, heading in content["contents"].items():
            lines: list[str] = []
            figures: list[Image] = []
            response = content["response"]
            key = anchor.replace("-", "_")
            for block in _blocks(response[anchor] if anchor in response else content[key]):
                if isinstance(block, Image):
                    figures.append(block)
                elif isinstance(block, Table):
                    lines += [*table_lines(block), ""]
                else:
                    lines += [
                        *(line for given in block.splitlines() for line in textwrap.wrap(given, 110)),
                        "",
                    ]
            if lines:
                _write_lines(pdf, heading, lines)
            for image in figures:
                # Below whatever the figure has at its edge.
                image.figure.text(0.5, -0.02, image.text, ha="center", va="top", fontsize=14)
                pdf.savefig(image.figure, bbox_inches="tight", pad_inches=0.3)


def _blocks(value: Any) -> Iterator[Block]:
    """Tables, figures and sentences in the order of the page, wherever they stand."""
    if isinstance(value, Table | Image | str):
        if not isinstance(value, Table) or value.rows:
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _blocks(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _blocks(inner)


def table_lines(table: Table) -> list[str]:
    """A table in characters of one width, its cells broken where they hold text."""
    rows = [[[cell] for cell in table.head], *([[cell] for cell in row] for row in table.rows)]
    if table.text:
        rows = [[textwrap.wrap(cell[0], _TEXT_WIDTH) or [""] for cell in row] for row in rows]
    columns = range(len(table.head))
    widths = [max(_width(line) for row in rows if i < len(row) for line in row[i]) for i in columns]
    lines = [table.caption] if table.caption else []
    for number, row in enumerate(rows):
        for i in range(max(map(len, row))):
            cells = [cell[i] if i < len(cell) else "" for cell in row]
            padded = [
                _padded(cell, width, left=column == 0 or table.text)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=False))
            ]
            lines.append("  ".join(padded).rstrip())
        if number == 0:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    return lines


def _width(text: str) -> int:
    """Number of places that a text takes; a bar over a letter takes none."""
    return sum(not "\u0300" <= character <= "\u036f" for character in text)


def _padded(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def _write_lines(pdf: PdfPages, heading: str, lines: Sequence[str]) -> None:
    """Pages of text; the font is as large as the longest line allows."""
    longest = max(map(_width, lines), default=1)
    fitting = 72 * (_SIZE[0] - 2 * _MARGIN) / (_WIDTH_OF_A_CHARACTER * max(longest, 1))
    size = min(_FONT_SIZE, fitting)
    per_page = int(72 * (_SIZE[1] - 3 * _MARGIN) / (size * _LINE_HEIGHT))
    for start in range(0, len(lines), per_page):
        page = Figure(figsize=_SIZE)
        x, top = _MARGIN / _SIZE[0], 1 - _MARGIN / _SIZE[1]
        page.text(x, top, heading, fontsize=14, weight="bold", va="top", parse_math=False)
        page.text(
            x,
            top - _MARGIN / _SIZE[1],
            "\n".join(lines[start : start + per_page]),
            fontsize=size,
            family="DejaVu Sans Mono",
            linespacing=_LINE_HEIGHT / 1.17,
            va="top",
            parse_math=False,
        )
        pdf.savefig(page)  # type: ignore[no-untyped-call]  # matplotlib has no types for it
