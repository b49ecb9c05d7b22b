"""Run the examples of docs/integrations in the environments that they are for, and compare the tops.

    TOPRECO_TEST_DATA=... python scripts/check_integration.py [--folder DIR] [pocketcoffea]
    TOPRECO_TEST_DATA=... python scripts/check_integration.py --python python3.10 columnflow

Makes virtual environments with coffea 0.7 and awkward 1 (and, where asked, PocketCoffea 0.9 or columnflow)
from the package index, exports `dilepton`, runs each example on real simulation and compares four-momenta
with those of `topreco.load("dilepton")` after the default selection. The producer for columnflow, which
selects nothing, gets the events and objects of that selection. Needs the extra `onnx`; a few minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import awkward as ak
import numpy as np

import topreco
from topreco.config import SelectionConfig
from topreco.core.constants import PDG_ELECTRON, PDG_MUON
from topreco.input.nano import open_events
from topreco.input.selection import select
from topreco.network.export.onnx import export_onnx

EXAMPLES = Path(__file__).parents[1] / "docs" / "integrations"
SAMPLE = "nanoaodv9_TTTo2L2Nu_first500.root"
MODEL = "dilepton"
TOLERANCE = 1e-4

# coffea 0.7 imports pkg_resources; uproot 4 leaves the codec of the sample to the user.
COFFEA_07 = ["coffea==0.7.31", "awkward<2", "numpy<2", "setuptools<81", "zstandard", "onnxruntime"]
ENVIRONMENTS = {
    "coffea07": COFFEA_07,
    # The releases of pyarrow that follow need numpy 2.
    "pocketcoffea": ["pocket-coffea==0.9.13", *COFFEA_07[1:], "pyarrow<21"],
    # It asks for Python 3.11.0 at most, and does not name all that it imports.
    "columnflow": ["columnflow==0.3.1", "law", "order", "awkward", "pyarrow", "onnxruntime"],
}

RUN_POCKETCOFFEA = """
import sys
import numpy as np
from coffea import processor
from coffea.nanoevents import NanoAODSchema
from pocketcoffea_workflow import cfg

NanoAODSchema.warn_missing_crossrefs = False
cfg.load()
run = processor.Runner(processor.IterativeExecutor(status=False), schema=NanoAODSchema)
output = run(cfg.filesets, "Events", processor_instance=cfg.processor_instance)
columns = output["columns"]["ttbar"]["ttbar_2018"]["all"]["nominal"]
p4 = [[columns[f"{top}_{x}"].value for x in "txyz"] for top in ("Top", "AntiTop")]
np.savez(sys.argv[1], event=columns["events_event"].value, p4=np.moveaxis(np.array(p4), -1, 0))
"""

# columnflow wants a default analysis to exist by name.
LAW_CFG = """
[analysis]
default_analysis: none
default_config: none
default_dataset: none
"""

RUN_COLUMNFLOW = """
import sys
from types import SimpleNamespace
import awkward as ak
import law
import numpy as np
import order
from columnflow.util import DotDict
from package.columnflow_producer import top_quarks

analysis = order.Analysis(name="analysis", id=1)
config = analysis.add_config(order.Campaign(name="campaign", id=1, ecm=13), name="config", id=1)
settings = {"btag": "btagDeepFlavB", "btag_threshold": 0.2783, "met": "PuppiMET"}
config.x.topreco = DotDict.wrap(settings)
dataset = order.Dataset(name="ttbar", id=1)
producer = top_quarks(
    inst_dict={"analysis_inst": analysis, "config_inst": config, "dataset_inst": dataset}
)
model = SimpleNamespace(files=SimpleNamespace(topreco_model=law.LocalFileTarget(sys.argv[1])))
producer.run_setup(None, reqs={producer.cls_name: DotDict(external_files=model)})
events = ak.from_parquet(sys.argv[2])
# The columns that it asks for, as in a task.
used = {column.fields[0] for column in producer.used_columns} | {"event"}
events = ak.zip({name: events[name] for name in used}, depth_limit=1)
events = producer(events, task=None)
p4 = [[events[top][x] for x in ("energy", "px", "py", "pz")] for top in ("Top", "AntiTop")]
np.savez(sys.argv[3], event=events.event, p4=np.moveaxis(np.array(p4), -1, 0))
"""


def write_selected(sample: Path, path: Path) -> None:
    """Events and objects of the default selection as NanoAOD names them, in Parquet."""
    events = open_events(sample)
    selected = select(events, SelectionConfig(), dataset="ttbar")
    chosen = events[selected.index]
    flavour = selected.events.lepton_flavour
    lepton = ("pt", "eta", "phi", "charge", "pdgId")
    objects = {
        "Electron": (lepton, selected.lepton_index, flavour == PDG_ELECTRON),
        "Muon": (lepton, selected.lepton_index, flavour == PDG_MUON),
        "Jet": (("pt", "eta", "phi", "mass", "btagDeepFlavB"), selected.jet_index, selected.events.jet_mask),
    }
    content = {"event": chosen.event, "PuppiMET": ak.zip({x: chosen.PuppiMET[x] for x in ("pt", "phi")})}
    for name, (fields, index, present) in objects.items():
        flat = {field: ak.to_numpy(ak.flatten(events[name][field])) for field in fields}
        values = ak.zip({field: column[index[present]] for field, column in flat.items()})
        content[name] = ak.unflatten(values, present.sum(axis=1))
    ak.to_parquet(ak.zip(content, depth_limit=1), path)


def environment(folder: Path, requirements: list[str], base: str) -> Path:
    """Python of a virtual environment with some packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([base, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def compare(found: Path, sample: Path) -> float:
    """Largest difference to the present package, relative to the energy of the top."""
    events = select(open_events(sample), SelectionConfig(), dataset="ttbar").events
    expected = topreco.load(MODEL, threads=1)(events).p4
    with np.load(found) as result:
        event, p4 = result["event"], result["p4"]
    order, other = np.argsort(events.event), np.argsort(event)
    if not np.array_equal(events.event[order], event[other]):
        sys.exit(f"{found.stem}: {len(event)} events selected, others than the package's {len(events)}")
    difference = np.abs(p4[other] - expected[order]) / expected[order][..., :1]
    return float(difference.max())


def main() -> None:
    """Print a line per example; exit with 1 where the tops differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("examples", nargs="*", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--folder", type=Path, help="keep environments and results here")
    parser.add_argument("--python", default=sys.executable, help="Python of the environments")
    options = parser.parse_args()
    if unknown := set(options.examples) - set(ENVIRONMENTS):
        parser.error(f"examples are {', '.join(ENVIRONMENTS)}, not {', '.join(sorted(unknown))}")
    if "TOPRECO_TEST_DATA" not in os.environ:
        parser.error("TOPRECO_TEST_DATA does not name the folder of sample files")
    sample = (Path(os.environ["TOPRECO_TEST_DATA"]) / SAMPLE).absolute()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        work = folder / "work"
        model, *_ = export_onnx(topreco.load(MODEL).model, work / f"{MODEL}.onnx")
        for file in EXAMPLES.glob("*.py"):
            shutil.copy(file, work)
        metadata = {"sample": "ttbar", "year": "2018", "isMC": "True", "xsec": "1"}
        dataset = {"ttbar_2018": {"metadata": metadata, "files": [str(sample)]}}
        (work / "datasets.json").write_text(json.dumps(dataset))
        (work / "run_pocketcoffea.py").write_text(RUN_POCKETCOFFEA)
        (work / "run_columnflow.py").write_text(RUN_COLUMNFLOW)
        (work / "law.cfg").write_text(LAW_CFG)
        package = work / "package"
        package.mkdir(exist_ok=True)
        for name in ("columnflow_producer.py", "model_reader.py"):
            shutil.copy(work / name, package)
        write_selected(sample, work / "selected.parquet")
        commands = {
            "coffea07": ["coffea07_processor.py", model, sample],
            "pocketcoffea": ["run_pocketcoffea.py"],
            "columnflow": ["run_columnflow.py", model, "selected.parquet"],
        }
        failed = False
        for name in options.examples or ["coffea07"]:
            python = environment(folder / name, ENVIRONMENTS[name], options.python)
            output = work / f"{name}.npz"
            clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            # What columnflow's and law's setup scripts would set.
            clean |= {"CF_BASE": str(work), "LAW_HOME": str(work), "LAW_CONFIG_FILE": str(work / "law.cfg")}
            subprocess.run([python, "-W", "ignore", *commands[name], output], cwd=work, env=clean, check=True)
            difference = compare(output, sample)
            failed |= not difference <= TOLERANCE
            print(f"{name}: largest difference {difference:.1e} of the top's energy, {TOLERANCE:g} allowed")
    sys.exit(failed)


if __name__ == "__main__":
    main()
