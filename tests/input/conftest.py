"""Hand-made NanoAOD files, written by uproot."""

import os
from pathlib import Path

import awkward as ak
import correctionlib.schemav2 as schema
import numpy as np
import pytest
import uproot

FIELDS = {
    "Electron": {
        "pt": "f4",
        "eta": "f4",
        "phi": "f4",
        "charge": "i4",
        "cutBased": "i4",
        "deltaEtaSC": "f4",
        "genPartIdx": "i4",
    },
    "Muon": {
        "pt": "f4",
        "eta": "f4",
        "phi": "f4",
        "charge": "i4",
        "tightId": "?",
        "pfRelIso04_all": "f4",
        "genPartIdx": "i4",
    },
    "Jet": {
        "pt": "f4",
        "eta": "f4",
        "phi": "f4",
        "mass": "f4",
        "btagDeepFlavB": "f4",
        "jetId": "i4",
        "hadronFlavour": "i4",
        "genJetIdx": "i4",
    },
    "GenJet": {"pt": "f4", "eta": "f4", "phi": "f4", "mass": "f4"},
    "GenPart": {
        "pt": "f4",
        "eta": "f4",
        "phi": "f4",
        "mass": "f4",
        "pdgId": "i4",
        "status": "i4",
        "statusFlags": "i4",
        "genPartIdxMother": "i4",
    },
}
SCALARS = {
    "run": ("u4", 1),
    "luminosityBlock": ("u4", 1),
    "event": ("u8", None),
    "PuppiMET_pt": ("f4", 60.0),
    "PuppiMET_phi": ("f4", 1.0),
    "genWeight": ("f4", 1.0),
    "Generator_id1": ("i4", 21),
    "Generator_id2": ("i4", 21),
    "LHE_HT": ("f4", 100.0),
}
DEFAULTS = {
    "Electron": {"eta": 0.5, "phi": 0.0, "cutBased": 4, "deltaEtaSC": 0.0, "genPartIdx": 0},
    "Muon": {"eta": -0.5, "phi": 2.0, "tightId": True, "pfRelIso04_all": 0.05, "genPartIdx": 0},
    "Jet": {
        "eta": 0.0,
        "mass": 10.0,
        "btagDeepFlavB": 0.01,
        "jetId": 6,
        "hadronFlavour": 5,
        "genJetIdx": 0,
    },
    "GenJet": {"pt": 50.0, "eta": 0.0, "phi": 0.0, "mass": 5.0},
    "GenPart": {"pt": 50.0, "eta": 0.3, "phi": 0.2, "mass": 0.0, "status": 23, "statusFlags": 0},
}


def emu_event(**changes):
    """An e⁺μ⁻ event that passes the default selection; `changes` replace collections or scalars."""
    event = {
        "Electron": [{"pt": 40.0, "charge": 1}],
        "Muon": [{"pt": 30.0, "charge": -1}],
        "Jet": [{"pt": 80.0, "phi": 1.0, "btagDeepFlavB": 0.9}, {"pt": 60.0, "phi": -2.0}],
        "GenJet": [{}],
        "GenPart": [{"pdgId": 21, "genPartIdxMother": -1}],
    }
    return event | changes


def write_nano(path, events, *, drop=(), extra=None, tree="Events", runs=None):
    """Write events to a ROOT file; `drop` names branches (`Jet_jetId`) or whole collections to leave out.

    `extra` adds branches. A number is the value where an event or object has none (`{"Jet_puId": 7}`); else
    they are the values: of objects, flat (`Jet_area`), or of events, jagged ones as awkward arrays.
    """
    defaults = {
        name: value for name, value in (extra or {}).items() if isinstance(value, int | float | np.generic)
    }
    columns = {name: values for name, values in (extra or {}).items() if name not in defaults}
    extra = {name: (np.asarray(value).dtype, value) for name, value in defaults.items()}
    for collection, fields in FIELDS.items():
        own = {n.partition("_")[2]: v for n, v in extra.items() if n.partition("_")[0] == collection}
        fields = fields | {field: kind for field, (kind, _) in own.items()}  # noqa: PLW2901
        defaults = DEFAULTS[collection] | {field: value for field, (_, value) in own.items()}
        kept = {f: kind for f, kind in fields.items() if not {collection, f"{collection}_{f}"} & set(drop)}
        if not kept:
            continue
        objects = [event.get(collection, []) for event in events]
        counts = np.array([len(each) for each in objects], dtype=np.int64)
        columns[collection] = ak.zip(
            {
                name: ak.unflatten(
                    np.array(
                        [item.get(name, defaults.get(name)) for each in objects for item in each],
                        dtype=kind,
                    ),
                    counts,
                )
                for name, kind in kept.items()
            }
            | {
                name.removeprefix(f"{collection}_"): ak.unflatten(np.asarray(columns.pop(name)), counts)
                for name in list(columns)
                if name.startswith(f"{collection}_")
            }
        )
    scalars = {n: v for n, v in extra.items() if n.partition("_")[0] not in FIELDS}
    for name, (kind, default) in (SCALARS | scalars).items():
        if name not in drop:
            values = [event.get(name, i if default is None else default) for i, event in enumerate(events)]
            columns[name] = np.array(values, dtype=kind)
    with uproot.recreate(path) as file:
        types = {
            name: column.type.content if isinstance(column, ak.Array) else column.dtype
            for name, column in columns.items()
        }
        file.mktree(tree, types)
        if events:
            file[tree].extend(columns)
        if runs is not None:
            file.mktree("Runs", {"genEventCount": np.dtype("i8"), "genEventSumw": np.dtype("f8")})
            file["Runs"].extend({"genEventCount": np.array([runs[0]]), "genEventSumw": np.array([runs[1]])})
    return path


@pytest.fixture
def nano_file(tmp_path):
    """Function that writes events to a file and returns its path."""

    def write(events, name="nano.root", **options):
        return write_nano(tmp_path / name, events, **options)

    return write


@pytest.fixture
def payload(tmp_path):
    """Function that writes corrections, by name (inputs with types, data), and returns the file."""

    def write(name="payload.json", compound=(), **corrections):
        output = schema.Variable(name="value", type="real")
        contents = [
            schema.Correction(
                name=key,
                version=1,
                inputs=[schema.Variable(name=n, type=t) for n, t in inputs.items()],
                output=output,
                data=data,
            )
            for key, (inputs, data) in corrections.items()
        ]
        content = schema.CorrectionSet(
            schema_version=2, corrections=contents, compound_corrections=list(compound) or None
        )
        path = tmp_path / name
        path.write_text(content.model_dump_json(exclude_unset=True))
        return str(path)

    return write


@pytest.fixture
def emu():
    """Function that makes an event; see `emu_event`."""
    return emu_event


@pytest.fixture(scope="session")
def data():
    """Folder of the real and simulated files."""
    folder = os.environ.get("TOPRECO_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TOPRECO_TEST_DATA does not name the folder of test data")
    return Path(folder)


@pytest.fixture
def random_events():
    """Two hundred events of random multiplicities, about half of which pass."""
    rng = np.random.default_rng(7)

    def objects(n, **fields):
        return [{name: draw() for name, draw in fields.items()} for _ in range(n)]

    def event(i):
        return emu_event(
            Electron=objects(
                rng.choice([0, 1, 2]),
                pt=lambda: rng.uniform(15, 90),
                eta=lambda: rng.uniform(-2.6, 2.6),
                phi=lambda: rng.uniform(-3.1, 3.1),
                charge=lambda: rng.choice([-1, 1]),
            ),
            Muon=objects(
                rng.choice([1, 2]),
                pt=lambda: rng.uniform(15, 90),
                eta=lambda: rng.uniform(-2.6, 2.6),
                phi=lambda: rng.uniform(-3.1, 3.1),
                charge=lambda: rng.choice([-1, 1]),
            ),
            Jet=objects(
                rng.integers(2, 16),
                pt=lambda: rng.uniform(20, 200),
                eta=lambda: rng.uniform(-2.6, 2.6),
                phi=lambda: rng.uniform(-3.1, 3.1),
                btagDeepFlavB=lambda: rng.uniform(0, 1),
            ),
            event=2**40 + i,
            genWeight=rng.choice([-1.5, 1.0]),
            PuppiMET_pt=rng.uniform(0, 100),
            PuppiMET_phi=rng.uniform(-3.1, 3.1),
        )

    return [event(i) for i in range(200)]
