"""Figures from saved histograms.

    python plots/make_figures.py results/run/histograms.coffea --output results/figures

Several files are added up, so that runs with different methods share one figure. `--only` picks figures by
name, such as ``res_m_tt`` or ``migration_*``.
"""

import argparse
import logging
from functools import reduce
from pathlib import Path

from coffea.util import load

from topreco.evaluation.histograms import histograms_of
from topreco.evaluation.plotting import FORMATS, Label, save_all


def main() -> None:
    """Read histograms, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="output of `topreco run`")
    parser.add_argument("--output", type=Path, default=Path("results/figures"))
    parser.add_argument("--subset", choices=("all", "common"), default="all")
    parser.add_argument("--channel", choices=("all", "ee", "emu", "mumu"), default="all")
    parser.add_argument("--observables", nargs="+", help="default: all")
    parser.add_argument("--only", default="*", help="pattern of figure names")
    parser.add_argument("--text", help="status above the figures; default: Simulation where there is truth")
    parser.add_argument("--experiment", default="", help="name in bold before the status")
    parser.add_argument("--sqrt-s", type=float, help="centre-of-mass energy in TeV")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    histograms = reduce(
        lambda a, b: {key: a[key] + b[key] for key in a}, [histograms_of(load(path)) for path in args.files]
    )
    label = None
    if args.text is not None or args.experiment or args.sqrt_s is not None:
        label = Label("Simulation" if args.text is None else args.text, args.experiment, args.sqrt_s)
    paths = save_all(
        histograms,
        args.output,
        label=label,
        subset=args.subset,
        channel=args.channel,
        observables=args.observables,
        only=args.only,
        formats=args.formats,
    )
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
