"""What a page was made of: methods, samples, versions, settings and the command line."""

import json
from collections.abc import Mapping
from typing import Any

from topreco.evaluation.report import plain
from topreco.validation import html


def provenance(results: Mapping[str, Any]) -> list[str]:
    """Tables of methods, samples and versions, as HTML.

    Parameters
    ----------
    results
        As `topreco.validation.run.validate` collects them.
    """
    metadata = results["metadata"]
    methods = [
        [name, *(of.get(key, "–") for key in ("kind", "file", "sha256"))]
        for name, of in results["methods"].items()
    ]
    samples = [("validated", skim) for skim in metadata["skims"]]
    samples += [("background", skim) for skim in metadata["background"]]
    samples += [(f"m_t = {mass} GeV", skim) for mass, of in metadata["mass_scan"].items() for skim in of]
    rows = [
        [
            skim["file"],
            kind,
            ", ".join(skim.get("datasets", {})) or "–",
            *(_number(skim.get(key)) for key in ("n_events", "n_read", "n_generated", "sum_gen_weights")),
            skim.get("versions", {}).get("topreco", "–"),
        ]
        for kind, skim in samples
    ]
    head = ["file", "used as", "datasets", "events", "entries read", "generated", "sum of weights", "topreco"]
    # Most often all skims were made with one selection.
    selections: dict[str, list[str]] = {}
    for _, skim in samples:
        selections.setdefault(_dump(skim.get("selection")), []).append(skim["file"])
    return [
        html.table(["method", "kind", "file", "SHA-256"], methods, caption="Methods", text=True),
        html.table(head, rows, caption="Samples"),
        html.table(
            ["package", "version"], [[*item] for item in metadata["versions"].items()], caption="Versions"
        ),
        html.heading("Settings"),
        html.code(_dump(metadata["config"])),
        *(
            part
            for selection, files in selections.items()
            for part in (html.heading(f"Selection of {', '.join(files)}"), html.code(selection))
        ),
        *([html.heading("Command"), html.code(metadata["command"])] if metadata["command"] else []),
    ]


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.10g}"


def _dump(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)
