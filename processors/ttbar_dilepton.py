"""Dileptonic tt̄ with the shipped configuration: copy this file into your analysis and change it there.

Run it as a script on NanoAOD files,

    python ttbar_dilepton.py dilepton nano_1.root nano_2.root

or import `TTbarDilepton` and give it to a coffea Runner of your own.
"""

import sys
from typing import Any

from coffea import processor
from coffea.nanoevents import NanoAODSchema

from topreco.config import RunConfig, load_config
from topreco.evaluation.report import print_report
from topreco.evaluation.summary import summarise
from topreco.runs.processor import DileptonProcessor


class TTbarDilepton(DileptonProcessor):
    """`DileptonProcessor` with the cuts and histograms of the shipped `run.yaml`.

    Parameters
    ----------
    *methods
        Model files or names that `topreco.load` knows.
    """

    def __init__(self, *methods: str) -> None:
        config = load_config(RunConfig, "run.yaml")
        super().__init__(methods, config.selection, config.histograms, config.solvers, config.systematics)

    def process(self, events: Any) -> dict[str, Any]:
        """Fill the histograms of one chunk; the place for an analysis' own additions."""
        return super().process(events)


if __name__ == "__main__":
    method, *files = sys.argv[1:]
    run = processor.Runner(processor.FuturesExecutor(workers=2), schema=NanoAODSchema)
    output = run({"ttbar": {"treename": "Events", "files": files}}, processor_instance=TTbarDilepton(method))
    print_report(summarise(output["histograms"]))
