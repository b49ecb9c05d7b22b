"""What is read of a file: the baskets of the documented branches, and of no others."""

import re
from pathlib import Path

import pytest
import uproot

from topreco.config import SelectionConfig
from topreco.input.nano import open_events
from topreco.input.selection import select
from topreco.runs.processor import DileptonProcessor

pytestmark = pytest.mark.sim

INPUTS = Path(__file__).parents[2] / "docs" / "INPUTS.md"


def documented(heading):
    """Names of branches in the table below a heading of docs/INPUTS.md, by the first word of their row."""
    section = INPUTS.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")]
    return {kind.strip(): set(re.findall(r"`(\w+)`", names)) for kind, names in rows[1:]}


@pytest.fixture
def branches_read(simulated, monkeypatch):
    """Function that tells of which branches any byte was asked for so far, besides the list of branches."""
    ranges = []
    with uproot.open(simulated) as file:
        source = type(file.file.source)
        tree = file["Events"]
        baskets = {
            name: [
                (start, start + size)
                for start, size in zip(
                    branch.member("fBasketSeek")[: branch.num_baskets],
                    branch.member("fBasketBytes")[: branch.num_baskets],
                    strict=True,
                )
            ]
            for name, branch in tree.iteritems()
        }
    assert all(baskets.values())
    original = source.chunks

    def chunks(self, wanted, **options):
        ranges.extend(wanted)
        return original(self, wanted, **options)

    monkeypatch.setattr(source, "chunks", chunks)

    def found():
        return {
            name
            for name, places in baskets.items()
            if any(start < end and begin < stop for begin, end in places for start, stop in ranges)
        }

    return found


def test_bytes_of_a_branch_are_seen(simulated, branches_read):
    assert branches_read() == set()
    with uproot.open(simulated) as file:
        file["Events"]["Jet_rawFactor"].array()
    assert branches_read() == {"Jet_rawFactor"}


def test_selection_reads_the_documented_branches(simulated, branches_read):
    select(open_events(simulated), SelectionConfig(), dataset="x")
    table = documented("Branches that are read")
    with uproot.open(simulated) as file:
        present = set(file["Events"].keys())
    assert branches_read() == (table["event"] | table["electrons"] | table["muons"] | table["jets"]) & present


def test_processor_reads_the_truth_besides(simulated, branches_read, toy_model):
    events = open_events(simulated)
    events.metadata["dataset"] = "x"
    DileptonProcessor([toy_model]).process(events)
    table = documented("Branches that are read")
    with uproot.open(simulated) as file:
        present = set(file["Events"].keys())
    # The file has `Generator`.
    assert branches_read() == (set.union(*table.values()) - {"GenPart_status"}) & present


def test_documented_branches_are_those_of_the_code():
    from topreco.input.required import needed_branches, optional_branches
    from topreco.input.truth import TRUTH_BRANCHES

    table = documented("Branches that are read")
    config = SelectionConfig()
    expected = {*needed_branches(config), *optional_branches(config), *TRUTH_BRANCHES}
    counters = {"nElectron", "nMuon", "nJet", "nGenPart"}
    assert set.union(*table.values()) == expected | counters
