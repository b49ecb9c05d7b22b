"""The commands of docs/TEMPLATES.md at small size, every number against an independent calculation."""

import json

import awkward as ak
import correctionlib.schemav2 as schema
import numpy as np
import pytest
import uproot
from typer.testing import CliRunner

from topreco.cli import app, main
from topreco.core.events import hashed_uniform
from topreco.runs.results import load_histograms

pytest.importorskip("pyhf")
pytestmark = pytest.mark.sim

N_DATA = 700
"""The first events of the file are the data, without what a generator knows; all of them the simulation."""
TRUTH, RECO = [300, 480, 2000], [300, 450, 2000]
CROSS_SECTION = 88.29
SOURCES = ("jes", "jer", "unclustered", "trigger")
RATIOS = {"nom": 1.2, "up": 1.5, "down": 1.0}
"""Resolution of jets in data divided by that in simulation."""


@pytest.fixture(scope="module")
def command():
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    return run


@pytest.fixture(scope="module")
def run(command):
    """Function that runs the tutorial's configuration on a fileset and gives the folder of the results."""

    def run(folder, files, *more):
        fileset = folder.with_suffix(".json")
        fileset.write_text(json.dumps(files))
        bins = f"unfolding.observables={{m_tt: {{truth: {TRUTH}, reco: {RECO}}}}}"
        command(
            *("run", fileset, "--config", "measurement/run.yaml", "-m", "sonnenschein_unsmeared"),
            *("-o", folder, "--quiet", "--no-plots", bins, *more),
        )
        return folder

    return run


@pytest.fixture(scope="module")
def measured(simulated, as_data, run, tmp_path_factory):
    """Folder of the run with systematics, and of all later steps."""
    folder = tmp_path_factory.mktemp("measurement")
    files = {
        "TT": {"files": {str(simulated): "Events"}},
        "data": {"files": {str(as_data): {"object_path": "Events", "steps": [[0, N_DATA]]}}},
    }
    run(folder / "run", files, f"systematics.objects.jer={json.dumps(jer(folder / 'payload.json'))}")
    return folder


def jer(path):
    """Source of the hybrid method, with a payload at the path: a resolution of 10 % at 100 GeV."""
    ratios = [schema.CategoryItem(key=key, value=value) for key, value in RATIOS.items()]
    contents = {
        "Resolution": (
            schema.Variable(name="JetPt", type="real"),
            schema.Formula(
                nodetype="formula", expression="1/sqrt(x)", parser="TFormula", variables=["JetPt"]
            ),
        ),
        "ScaleFactor": (
            schema.Variable(name="systematic", type="string"),
            schema.Category(nodetype="category", input="systematic", content=ratios),
        ),
    }
    output = schema.Variable(name="value", type="real")
    corrections = [
        schema.Correction(name=name, version=1, inputs=[variable], output=output, data=data)
        for name, (variable, data) in contents.items()
    ]
    payload = schema.CorrectionSet(schema_version=2, corrections=corrections)
    path.write_text(payload.model_dump_json(exclude_unset=True))
    choices = {"nominal": "nom", "up": "up", "down": "down"}
    return {
        "object": "jet",
        "kind": "hybrid",
        "file": str(path),
        "correction": "Resolution",
        "inputs": {"JetPt": "pt"},
        "scale_factor": {"correction": "ScaleFactor", "inputs": {"systematic": choices}},
    }


@pytest.fixture(scope="module")
def luminosity():
    """As many data as the part of the simulation that they are."""
    return 1200 / CROSS_SECTION / 1000 * N_DATA / 1200


def templates(command, folder, stem, luminosity, *more):
    return command(
        *(
            "templates",
            folder / "run",
            "--config",
            "measurement/templates.yaml",
            "-o",
            folder / f"{stem}.root",
        ),
        *(f"luminosity={luminosity}", "channels=[all]", *more),
    )


def histogram(folder, stem, name):
    with uproot.open(folder / f"{stem}.root") as file:
        return file[f"all_2018/{name}"].values()


def m_tt_of_prompt_events(path):
    """m(tt̄) of generated events with e or μ directly from both W, from the branches of the file alone."""
    with uproot.open(path) as file:
        names = ("pt", "eta", "phi", "mass", "pdgId", "statusFlags", "genPartIdxMother")
        gen = {name: file["Events"][f"GenPart_{name}"].array() for name in names}
    last = (gen["statusFlags"] >> 13) & 1 == 1
    p4 = 0
    for code in (6, -6):
        top = {name: ak.to_numpy(ak.firsts(gen[name][(gen["pdgId"] == code) & last])) for name in gen}
        pt, eta, phi = (top[name].astype(float) for name in ("pt", "eta", "phi"))
        p = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=-1)
        energy = np.sqrt((p**2).sum(-1) + top["mass"].astype(float) ** 2)
        p4 = p4 + np.concatenate([energy[:, None], p], axis=-1)
    mother = gen["pdgId"][ak.mask(gen["genPartIdxMother"], gen["genPartIdxMother"] >= 0)]
    from_w = np.abs(mother) == 24
    n_prompt = ak.sum(from_w & ((np.abs(gen["pdgId"]) == 11) | (np.abs(gen["pdgId"]) == 13)), axis=1)
    m_tt = np.sqrt(p4**2 @ [1, -1, -1, -1])
    return m_tt[ak.to_numpy(n_prompt) == 2]


def smeared(path, ratio, unclustered=0):
    """Branches of jets and MET after the hybrid method of JME, and a shift of MET in its own deviations."""
    with uproot.open(path) as file:
        events = file["Events"].arrays(
            filter_name=["Jet_*", "GenJet_*", "*MET_*", "luminosityBlock", "event"]
        )
    pt, eta, phi = (ak.values_astype(events[f"Jet_{name}"], float) for name in ("pt", "eta", "phi"))
    index = events.Jet_genJetIdx
    generated = {name: events[f"GenJet_{name}"][ak.mask(index, index >= 0)] for name in ("pt", "eta", "phi")}
    dphi = np.arctan2(np.sin(phi - generated["phi"]), np.cos(phi - generated["phi"]))
    near = (eta - generated["eta"]) ** 2 + dphi**2 < 0.2**2
    matched = ak.fill_none(near & (abs(pt - generated["pt"]) < 3 * np.sqrt(pt)), value=False)
    scaled = 1 + (ratio - 1) * (pt - ak.fill_none(generated["pt"], 0)) / pt
    # A hash of seed, run, luminosity block, event, jet, and the stream of each of two numbers.
    keys = ak.broadcast_arrays(events.luminosityBlock, events.event, ak.local_index(pt), pt)[:3]
    block, event, jet = (ak.to_numpy(ak.flatten(key)) for key in keys)
    u, v = (hashed_uniform(1, 1, block, event, jet, stream) for stream in (0, 1))
    normal = ak.unflatten(np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v), ak.num(pt))
    factor = ak.where(matched, scaled, 1 + normal * np.sqrt((ratio**2 - 1) / pt))
    # All jets of the file are above 15 GeV, so that MET follows.
    met = [
        events.PuppiMET_pt * f(events.PuppiMET_phi)
        + unclustered * events[f"MET_MetUnclustEnUpDelta{axis}"]
        - ak.sum(pt * (factor - 1) * f(phi), axis=1)
        for axis, f in (("X", np.cos), ("Y", np.sin))
    ]
    return {
        "Jet_pt": pt * factor,
        "Jet_mass": events.Jet_mass * factor,
        "PuppiMET_pt": np.hypot(*met),
        "PuppiMET_phi": np.arctan2(met[1], met[0]),
    }


def test_resolution_and_unclustered_energy(measured, simulated, run, copy_nano, command, luminosity):
    """Their templates are those of files with jets and MET changed by hand."""
    by_hand = {
        "ttbar": smeared(simulated, RATIOS["nom"]),
        "ttbar_jerUp": smeared(simulated, RATIOS["up"]),
        "ttbar_jerDown": smeared(simulated, RATIOS["down"]),
        "ttbar_unclusteredUp": smeared(simulated, RATIOS["nom"], 1),
        "ttbar_unclusteredDown": smeared(simulated, RATIOS["nom"], -1),
    }
    files = {
        name: {"files": {str(copy_nano(simulated, measured / f"{name}.root", changes=changes)): "Events"}}
        for name, changes in by_hand.items()
    }
    found = load_histograms(run(measured / "by_hand", files, "systematics={}"))["measured/m_tt"]
    templates(command, measured, "jer", luminosity)
    contents = {name: histogram(measured, "jer", name) for name in by_hand}
    for name, values in contents.items():
        expected = found[name, "sonnenschein_unsmeared", "nominal", sum, :].values() * N_DATA / 1200
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        assert name == "ttbar" or (values != contents["ttbar"]).any()


def test_signal_strength(measured, command, luminosity):
    output = templates(command, measured, "shapes", luminosity)
    assert "expected" in output
    names = uproot.open(measured / "shapes.root").keys(cycle=False, recursive=True)
    assert {f"all_2018/ttbar_{source}{way}" for source in SOURCES for way in ("Up", "Down")} <= {*names}
    output = command("fit", measured / "shapes.json", "-o", measured / "fit", "--toys", 2, "--quiet")
    fit = json.loads((measured / "fit" / "fit.json").read_text())
    r = fit["parameters"].index("r")
    # The data are a part of the simulation, so that r is one within their error; and events add up: at the
    # maximum of a Poisson likelihood with a free strength the fit expects as many events as there are.
    data, ttbar = (histogram(measured, "shapes", name) for name in ("data_obs", "ttbar"))
    assert data.sum() == int(data.sum())
    assert ttbar.sum() == pytest.approx(data.sum(), rel=0.3)
    assert abs(fit["values"][r] - data.sum() / ttbar.sum()) < 0.5 * fit["errors"][r]
    assert abs(fit["values"][r] - 1) < 3 * fit["errors"][r]
    # Smallest possible error: that of the number of events, with the luminosity's and the trigger's.
    assert fit["errors"][r] > np.hypot(1 / np.sqrt(data.sum()), np.hypot(0.016, 0.02))
    pull = np.array(fit["pulls"], float)[fit["parameters"].index("lumi_2018")]
    assert abs(pull) < 1
    assert len(fit["toys"]["values"]) + fit["toys"]["failed"] == 2


def test_unfolded_m_tt(measured, simulated, command, luminosity):
    templates(command, measured, "unfold", luminosity, "histogram=response/m_tt")
    command("fit", measured / "unfold.json", "-o", measured / "unfolded", "--quiet")
    fit = json.loads((measured / "unfolded" / "fit.json").read_text())
    found = fit["unfolded"]
    # Simulated cross sections of the bins, from the generator branches.
    counts = np.histogram(m_tt_of_prompt_events(simulated), TRUTH)[0]
    expected = CROSS_SECTION * counts / 1200
    np.testing.assert_allclose(found["simulated_pb"], expected, rtol=1e-6)
    # As many bins as strengths: the maximum of the likelihood is the solution of the linear equations.
    signal = np.stack([histogram(measured, "unfold", f"ttbar_bin{i}") for i in (1, 2)])
    fakes, data = (histogram(measured, "unfold", name) for name in ("ttbar_fakes", "data_obs"))
    by_hand = np.linalg.solve(signal.T, data - fakes)
    np.testing.assert_allclose(found["cross_section_pb"], by_hand * expected, rtol=0.02)
    # Statistical covariance of that inversion; nuisances and the simulation's statistics add to it.
    inverse = np.linalg.inv(signal.T) * expected[:, None]
    statistical = np.sqrt(np.diagonal(inverse @ np.diag(data) @ inverse.T))
    errors = np.sqrt(np.diagonal(found["covariance_pb2"]))
    assert (errors > 0.95 * statistical).all()
    assert (errors < 3 * statistical).all()
    covariance = np.array(found["covariance_pb2"])
    np.testing.assert_allclose(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["processes.t-t={datasets: {TT: 1}}"], "'t-t' is no name that Combine takes"),
        (["nuisances.jec={}"], "nuisances.jec: variation 'jec_up' is not in these results"),
        (["histogram=spectrum/m_tt"], "events expected in bin"),
        (["data=[muons]"], "data: 'muons' is not in these results"),
    ],
)
def test_bad_input_is_one_line(measured, capsys, monkeypatch, tmp_path, luminosity, more, message):
    arguments = ["templates", measured / "run", "--config", "measurement/templates.yaml"]
    arguments += ["-o", tmp_path / "x.root", f"luminosity={luminosity}", *more]
    monkeypatch.setattr("sys.argv", ["topreco", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["r", "r=x", "r=nan", "=1"])
def test_bad_injection(measured, capsys, monkeypatch, tmp_path, text):
    (tmp_path / "w.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["topreco", "fit", str(tmp_path / "w.json"), "-o", "x", "--inject", text])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.count("\n") == 1
