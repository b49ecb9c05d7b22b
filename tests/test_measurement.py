"""The commands of docs/TEMPLATES.md at small size, every number against an independent calculation."""

import json

import awkward as ak
import numpy as np
import pytest
import uproot
from typer.testing import CliRunner

from topreco.cli import app, main

pytest.importorskip("pyhf")
pytestmark = pytest.mark.sim

N_DATA = 700
"""The first events of the file are the data, without what a generator knows; all of them the simulation."""
TRUTH, RECO = [300, 480, 2000], [300, 450, 2000]
CROSS_SECTION = 88.29


@pytest.fixture(scope="module")
def command():
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    return run


@pytest.fixture(scope="module")
def measured(simulated, as_data, command, tmp_path_factory):
    """Folder of the run with systematics, and of all later steps."""
    folder = tmp_path_factory.mktemp("measurement")
    files = {
        "TT": {"files": {str(simulated): "Events"}},
        "data": {"files": {str(as_data): {"object_path": "Events", "steps": [[0, N_DATA]]}}},
    }
    (folder / "fileset.json").write_text(json.dumps(files))
    bins = f"unfolding.observables={{m_tt: {{truth: {TRUTH}, reco: {RECO}}}}}"
    command(
        *("run", folder / "fileset.json", "--config", "measurement/run.yaml", "-m", "sonnenschein_unsmeared"),
        *("-o", folder / "run", "--quiet", "--no-plots", bins),
    )
    return folder


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


def test_signal_strength(measured, command, luminosity):
    output = templates(command, measured, "shapes", luminosity)
    assert "expected" in output
    names = uproot.open(measured / "shapes.root").keys(cycle=False, recursive=True)
    assert {f"all_2018/ttbar_{source}{way}" for source in ("jes", "trigger") for way in ("Up", "Down")} <= {
        *names
    }
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
        (["nuisances.jer={}"], "nuisances.jer: variation 'jer_up' is not in these results"),
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


@pytest.mark.parametrize("text", ["r", "r=x", "=1"])
def test_bad_injection(measured, capsys, monkeypatch, tmp_path, text):
    (tmp_path / "w.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["topreco", "fit", str(tmp_path / "w.json"), "-o", "x", "--inject", text])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.count("\n") == 1
