"""Published figures from saved results: those of README.md, docs/RESULTS.md and docs/ANALYTIC.md.

    python plots/results.py demo results/demo            # README.md, after `make demo`
    python plots/results.py results FOLDER...            # docs/RESULTS.md
    python plots/results.py analytic FOLDER...           # docs/ANALYTIC.md

FOLDER is an output folder of `topreco run` on one dataset; the histograms of several are added up. Figures of
studies are made by `topreco study`, those of a validation by `topreco validate`.
"""

import argparse
import tempfile
from pathlib import Path

from topreco.core.errors import TopRecoError
from topreco.evaluation.figures import save_all
from topreco.evaluation.histograms import add_up
from topreco.runs.results import load_histograms

PUBLISHED = {
    "demo": ("all", ("res_m_tt",)),
    "results": ("common", ("rb_m_tt", "res_m_tt", "residual_m_tt", "width68_pt_top")),
    "analytic": ("all", ("rb_m_tt", "res_m_tt", "residual_m_tt")),
}
"""Events, "all" or the "common" ones that all methods solve, and figures by page."""


def publish(page: str, folders: list[Path], output: Path) -> None:
    """Draw the figures of a page as ``PAGE_FIGURE.png``."""
    subset, names = PUBLISHED[page]
    histograms = add_up([load_histograms(folder) for folder in folders])
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory(dir=output) as temporary:
            found = save_all(histograms, temporary, subset=subset, only=name, formats=("png",))
            if len(found) != 1:
                raise TopRecoError(f"{name}: one dataset with truth expected, found {len(found)}")
            print(found[0].replace(output / f"{page}_{name}.png"))


def main() -> None:
    """Read histograms, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", choices=PUBLISHED)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    given = parser.parse_args()
    publish(given.page, given.folders, given.output)


if __name__ == "__main__":
    main()
