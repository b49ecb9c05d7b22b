"""Markdown table of what topreco reads in files: preset, events read, selected, matched to truth, errors.

    python scripts/input_table.py FILE_OR_FOLDER... [-o docs/INPUTS.md] [KEY=VALUE...]

Folders are searched for ROOT and HDF5 files. KEY=VALUE overrides the configuration of `topreco skim`
(`selection.era=UL2017`). With -o the table takes the place of the one between the two markers
`<!-- input table -->` and `<!-- end of input table -->` of that file; else it is printed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from topreco.config import SkimConfig, load_config
from topreco.core.errors import TopRecoError
from topreco.core.files import write_text
from topreco.core.skim import Skim
from topreco.input.skimming import make_skim

BEGIN, END = "<!-- input table -->", "<!-- end of input table -->"
HEADINGS = ("file", "preset", "era", "read", "selected", "truth-matched", "error")


def find_files(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Files, and their names relative to the folder in which they were found."""
    for argument in arguments:
        folder = Path(argument)
        if not folder.is_dir():
            yield argument, Path(argument).name
            continue
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".root", ".h5", ".hdf5"):
                yield str(path), str(path.relative_to(folder))


def row(path: str, name: str, settings: SkimConfig) -> tuple[str, ...]:
    """Cells of a file, in the order of `HEADINGS`."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            summary = make_skim(
                [path],
                Path(folder) / "skim.parquet",
                settings.selection,
                dataset=settings.dataset,
                tree=settings.tree,
                step_size=settings.step_size,
                progress=False,
            )
            skim = Skim(summary.output)
            matched = sum(int(t.valid.sum()) for _, t in skim.row_groups() if t is not None)
        except TopRecoError as error:
            text = " ".join(str(error).replace(f"{path}: ", "").split()).replace("|", r"\|")
            return (name, "", "", "", "", "", text)
    selection = skim.metadata["selection"]
    return (
        name,
        # pepper's files have no preset.
        selection["preset"] or skim.metadata["preset"],
        selection["era"] or "–",
        str(summary.n_read),
        str(summary.n_selected),
        str(matched) if summary.has_truth else "no truth",
        "",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown table."""
    alignment = "|---|---|---|---:|---:|---:|---|"
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADINGS, *rows)]
    return "\n".join([lines[0], alignment, *lines[1:]])


def replace_section(text: str, content: str, origin: str) -> str:
    """Text with `content` between the markers.

    Raises
    ------
    TopRecoError
        If the markers are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise TopRecoError(f"{origin}: needs the lines {BEGIN!r} and {END!r}, between which the table goes")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def main() -> None:
    """Read the files and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("arguments", nargs="+", metavar="FILE|FOLDER|KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file with the two markers")
    options = parser.parse_args()
    overrides = [a for a in options.arguments if "=" in a and not Path(a).exists()]
    files = [a for a in options.arguments if a not in overrides]
    try:
        settings = load_config(SkimConfig, None, overrides)
        text = table([row(path, name, settings) for path, name in find_files(files)])
        if options.output is None:
            print(text)
        else:
            old = options.output.read_text(encoding="utf-8")
            write_text(options.output, replace_section(old, text, str(options.output)))
    except (TopRecoError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
