"""LaTeX tables of the reports."""

import pytest

from topreco.evaluation.latex import latex_of_markdown, latex_table, latex_text, write_latex
from topreco.evaluation.report import markdown_table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m_tt & 5 %", r"m\_tt \& 5 \%"),
        ("χ² of ρ", r"$\chi^2$ of $\rho$"),
        ("tt̄", r"t$\bar{\mathrm{t}}$"),
        ("−0.1 ± 0.2", r"$-$0.1 $\pm$ 0.2"),
        ("`a` **b** – c", "a b -- c"),
        (r"a\|b < $", r"a$|$b $<$ \$"),
        ("$ρ", r"\$$\rho$"),
    ],
)
def test_text(text, expected):
    assert latex_text(text) == expected


def test_a_table():
    found = latex_table(["method", "ρ"], [["a_b", "0.5(1)"]], caption="m_tt")
    assert found.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{m\_tt}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & $\rho$ \\",
        r"\midrule",
        r"a\_b & 0.5(1) \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_tables_of_a_report(tmp_path):
    first, second = markdown_table(["a", "b"], [["1", "2"], ["3", "4"]]), markdown_table(["c"], [["5"]])
    text = f"# Title\n\nProse | with a bar.\n\n### One\n\n{first}\nMore.\n\n### Two\n\n{second}"
    found = latex_of_markdown(text)
    assert found.count(r"\begin{tabular}") == found.count(r"\end{tabular}") == 2
    assert r"\caption{One}" in found
    assert r"3 & 4 \\" in found
    assert "Prose" not in found
    path = write_latex(tmp_path / "report.md", text)
    assert path.name == "report.tex"
    assert path.read_text() == found
