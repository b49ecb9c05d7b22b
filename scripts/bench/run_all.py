"""Run every benchmark of this folder and merge what they measure into one table.

    python scripts/bench/run_all.py [NAME ...] [--output results]

writes OUTPUT/bench.json and OUTPUT/bench.md, and what each script wrote to OUTPUT/bench/NAME.json. Scripts
are all `bench_NAME.py` that have an option ``--json``; NAMEs choose some, and the others keep the rows of
their last run. They run one after the other, in the order of their names. A script that fails is named in the
table and in the exit status; the others run all the same.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import machine, markdown_table

from topreco.core.files import write_text

FOLDER = Path(__file__).parent


def find_scripts(folder: Path) -> dict[str, Path]:
    """Benchmarks by name: the scripts `bench_NAME.py` whose text has ``--json``."""
    return {
        path.stem.removeprefix("bench_"): path
        for path in sorted(folder.glob("bench_*.py"))
        if "--json" in path.read_text(encoding="utf-8")
    }


def markdown(results: Mapping[str, Mapping[str, Any]], where: Mapping[str, Any]) -> str:
    """The table, with the machine above and notes below."""
    software = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    before, after = where["load"][0], where["load_after"][0]
    system = (
        f"{where['cpu']}, {where['cores']} cores, load {before} before and {after} after, {where['system']}"
    )
    meaning = (
        "Medians of repeated, alternating runs; *spread* is their median absolute deviation. Ratios are "
        "medians of those within each round: above 1 where better; where the target is a limit (≤), how "
        "often larger."
    )
    lines = ["# Benchmarks", "", f"{system}; {software}.", meaning]
    for name, result in results.items():
        lines += ["", f"## {result.get('benchmark', name)}", "", f"`scripts/bench/bench_{name}.py`", ""]
        if "error" in result:
            lines.append(f"Failed: {result['error']}")
            continue
        lines += markdown_table(result["measurements"])
        if notes := result.get("notes"):
            lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, merge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("results"))
    options = parser.parse_args()
    scripts = find_scripts(FOLDER)
    if unknown := sorted(set(options.names) - set(scripts)):
        sys.exit(f"error: no benchmark {unknown[0]!r}; there are {', '.join(scripts)}")
    where = machine()
    results: dict[str, dict[str, Any]] = {}
    failed = []
    for name, script in scripts.items():
        path = options.output / "bench" / f"{name}.json"
        if not options.names or name in options.names:
            path.unlink(missing_ok=True)
            print(f"{name}:", flush=True)
            start = time.perf_counter()
            status = subprocess.run(
                [sys.executable, str(script), "--json", str(path)], check=False
            ).returncode
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
            if status or not path.exists():
                failed.append(name)
                results[name] = {"error": f"exit status {status}"}
                continue
        if path.exists():
            results[name] = json.loads(path.read_text(encoding="utf-8"))
    where["load_after"] = machine()["load"]
    content = {"machine": where, "benchmarks": results}
    write_text(options.output / "bench.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(options.output / "bench.md", markdown(results, where))
    print(options.output / "bench.md")
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
