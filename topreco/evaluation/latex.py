"""Tables in LaTeX (booktabs), made from the Markdown tables that the reports are written with."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from topreco.core.files import write_text

_SIGNS = r"""
α \alpha  β \beta  η \eta  θ \theta  κ \kappa  λ \lambda  μ \mu  ν \nu  π \pi  ρ \rho  σ \sigma  τ \tau
φ \varphi  χ \chi  Δ \Delta  Σ \sum  ℓ \ell  ± \pm  − -  × \times  · \cdot  → \to  ≥ \geq  ≤ \leq  ≈ \approx
√ \surd  ∞ \infty  ⟨ \langle  ⟩ \rangle  ⊥ \perp  ½ \tfrac12  ′ '  ² ^2  ³ ^3  ¹ ^1  ⁺ ^+  ⁻ ^-  ₀ _0  ₁ _1
₂ _2  ᵢ _i  ⱼ _j  < <  > >  | |  t̄ \bar{\mathrm{t}}
"""
_MATHEMATICS = dict(zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True))
_ESCAPED = {character: f"\\{character}" for character in "&%$#_{}"}
_ESCAPED |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_ESCAPED |= {"–": "--", "—": "---", "…": r"\dots{}"}
_TOKENS = re.compile("t̄|.", re.DOTALL)
_SEPARATOR = re.compile(r"\|(:?-+:?\|)+")
_CELLS = re.compile(r"(?<!\\)\|")


def latex_text(text: str) -> str:
    """Plain text, with the Greek letters and signs of the reports, as LaTeX.

    Parameters
    ----------
    text
        Text without LaTeX; Markdown's emphasis and code marks are dropped.
    """
    text = re.sub(r"\*\*|`", "", text.replace(r"\|", "|"))
    parts = []
    for token in _TOKENS.findall(text):
        if token in _MATHEMATICS:
            parts.append(f"${_MATHEMATICS[token]}$")
        else:
            parts.append(_ESCAPED.get(token, token))
    # One formula in place of several beside each other: χ² is $\chi^2$.
    return re.sub(r"(?<!\\)\$\$", "", "".join(parts))


def latex_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    r"""A table of the package booktabs, the first column to the left and the others to the right.

    Parameters
    ----------
    headings
        Headings of the k columns.
    rows
        Cells, k in each row.
    caption
        Plain text above the table; empty for a bare ``tabular``.
    """
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", r"\toprule"]
    for position, cells in enumerate((headings, *rows)):
        lines.append(" & ".join(map(latex_text, cells)) + r" \\")
        if position == 0:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if caption:
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            *lines,
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def latex_of_markdown(text: str) -> str:
    r"""The tables of a Markdown text as LaTeX, each with the heading above it as its caption.

    Parameters
    ----------
    text
        Tables as `topreco.evaluation.report.markdown_table` writes them, and anything between them, which is
        left out.
    """
    tables = [latex_table(headings, rows, caption=caption) for caption, headings, rows in _tables(text)]
    return "\n".join(["% Needs \\usepackage{booktabs} in the preamble.", *tables])


def write_latex(path: str | Path, text: str) -> Path:
    """Write the tables of a Markdown file beside it, with the suffix ``.tex``; whole or not at all.

    Parameters
    ----------
    path
        The Markdown file.
    text
        Its content.
    """
    path = Path(path).with_suffix(".tex")
    write_text(path, latex_of_markdown(text))
    return path


def _tables(text: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Caption, headings and rows of each table."""
    caption = ""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            if not _SEPARATOR.fullmatch(line.strip()):
                rows.append([cell.strip() for cell in _CELLS.split(line.strip()[1:-1])])
            continue
        if rows:
            yield caption, rows[0], rows[1:]
            rows = []
        if line.startswith("#"):
            caption = line.lstrip("# ").strip()
