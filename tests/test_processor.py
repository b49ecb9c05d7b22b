"""The processor in a coffea Runner: equal for every executor and chunking, on simulation and data."""

import cloudpickle
import numpy as np
import pytest
import uproot
from coffea import processor

from topreco.errors import TopRecoError
from topreco.processor import DileptonProcessor
from topreco.reconstruct import load

pytestmark = pytest.mark.sim


def run(file, model, executor=None, chunksize=1000):
    runner = processor.Runner(executor or processor.IterativeExecutor(status=False), chunksize=chunksize)
    return runner(
        {"ttbar": {"treename": "Events", "files": [str(file)]}}, processor_instance=DileptonProcessor([model])
    )


@pytest.fixture(scope="module")
def nominal(simulated, toy_model):
    return run(simulated, toy_model)


def assert_equal(a, b):
    """Equal counts, and weighted sums within rounding."""
    assert a["cutflow"] == b["cutflow"]
    assert a["histograms"].keys() == b["histograms"].keys()
    for name, histogram in a["histograms"].items():
        ours, theirs = histogram.view(flow=True), b["histograms"][name].view(flow=True)
        assert ours.shape == theirs.shape, name
        if ours.dtype.names:
            for field in ours.dtype.names:
                np.testing.assert_allclose(theirs[field], ours[field], rtol=1e-9, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_allclose(
                theirs, ours, rtol=1e-9, atol=1e-9 * np.abs(ours).max(initial=1), err_msg=name
            )


def test_it_pickles_small(toy_model):
    content = cloudpickle.dumps(DileptonProcessor([toy_model]))
    assert len(content) < 10_000
    assert cloudpickle.loads(content).methods[0].name == toy_model.stem


def test_histograms_hold_the_selected_events(nominal):
    cutflow = nominal["cutflow"]["ttbar"]
    assert cutflow
    assert any(h.sum(flow=True) for h in nominal["histograms"].values())


@pytest.mark.parametrize("chunksize", [50, 333])
def test_chunk_size_changes_nothing(simulated, toy_model, nominal, chunksize):
    assert_equal(nominal, run(simulated, toy_model, chunksize=chunksize))


def test_futures_change_nothing(simulated, toy_model, nominal):
    executor = processor.FuturesExecutor(workers=2, status=False)
    assert_equal(nominal, run(simulated, toy_model, executor, chunksize=300))


def test_dask_changes_nothing(simulated, toy_model, nominal):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = processor.DaskExecutor(client=client, status=False)
        assert_equal(nominal, run(simulated, toy_model, executor, chunksize=300))


@pytest.fixture(scope="module")
def without_generator(simulated, tmp_path_factory):
    """The same events as data would be: no branch of the generator."""
    path = tmp_path_factory.mktemp("data") / "data.root"
    with uproot.open(simulated) as source, uproot.recreate(path) as target:
        tree = source["Events"]
        reco = ("Electron", "Muon", "Jet", "MET", "PuppiMET")
        collections = {
            name: tree.arrays(
                filter_name=f"{name}_*",
                filter_branch=lambda b: "gen" not in b.name.lower() and "Flavour" not in b.name,
            )
            for name in reco
        }
        content = {name: tree[name].array() for name in ("run", "luminosityBlock", "event")}
        for name, arrays in collections.items():
            fields = {field.removeprefix(f"{name}_"): arrays[field] for field in arrays.fields}
            if name.endswith("MET"):
                content |= {f"{name}_{field}": values for field, values in fields.items()}
            else:
                content[name] = _zip(fields)
        target.mktree("Events", {k: v.type.content if hasattr(v, "type") else v for k, v in content.items()})
        target["Events"].extend(content)
    return path


def _zip(fields):
    import awkward as ak

    return ak.zip(fields)


def test_data_fill_what_needs_no_truth(without_generator, toy_model, nominal):
    """Leak test of the whole chain: without any generator branch the reconstruction is the same."""
    with uproot.open(without_generator) as file:
        assert not [k for k in file["Events"].keys() if k.startswith(("Gen", "gen"))]  # noqa: SIM118
    output = run(without_generator, toy_model)
    unweighted = {k: v[..., "count"] if False else v for k, v in output["cutflow"]["ttbar"].items()}
    assert unweighted.keys() == nominal["cutflow"]["ttbar"].keys()
    reco = [name for name, h in output["histograms"].items() if h.sum(flow=True)]
    assert reco
    assert len(reco) < len(nominal["histograms"])


def test_two_methods_need_two_names(toy_model):
    with pytest.raises(TopRecoError, match="every method needs a name of its own"):
        DileptonProcessor([toy_model, toy_model])
    assert len(DileptonProcessor([load(toy_model, name="a"), load(toy_model, name="b")]).methods) == 2
