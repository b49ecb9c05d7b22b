"""The examples for other frameworks with stand-ins for these: what they hand to the reader, and back."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import awkward as ak
import numpy as np
import pytest

import topreco
from topreco.core.events import toy_events
from topreco.core.fourvector import eta, mass_squared, phi, pt
from topreco.network.export import reader

EXAMPLES = Path(__file__).parents[2] / "docs" / "integrations"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def events():
    """Toy events, the eighth without an answer, whose leptons have one mass as the reader gives them."""
    return toy_events(20, seed=1)


@pytest.fixture
def expected(toy_onnx, events):
    model = reader.TopModel(toy_onnx, btag_threshold=0.2783, max_jets=12, m_lb_max=180.0)
    leptons, jets = columns(events)
    arrays = {f"lepton_{name.lower()}": ak.to_numpy(leptons[name]) for name in leptons.fields}
    arrays |= {
        f"jet_{name}": ak.to_numpy(ak.pad_none(jets[name], 12, clip=True))
        for name in ("pt", "eta", "phi", "mass", "btag")
    }
    tops = model(**arrays, met_pt=np.hypot(*events.met.T), met_phi=np.arctan2(*events.met.T[::-1]))
    assert tops.valid.tolist() == [n != 7 for n in range(20)]
    return tops


def columns(events):
    """Leptons in falling pT and jets as awkward arrays with the fields of NanoAOD."""
    p4 = np.stack([events.lepton_plus, events.lepton_minus], axis=1)
    charge = np.tile([1, -1], (len(events), 1))
    leptons = {"charge": charge, "pdgId": -charge * events.lepton_flavour}
    leptons |= {"pt": pt(p4), "eta": eta(p4), "phi": phi(p4)}
    leptons["phi"][7, 0] = np.nan
    leptons = ak.from_regular(ak.zip({name: ak.from_numpy(values) for name, values in leptons.items()}))
    leptons = leptons[ak.argsort(leptons.pt, ascending=False)]
    p4, counts = events.jets[events.jet_mask], events.n_jets
    jets = {"pt": pt(p4), "eta": eta(p4), "phi": phi(p4), "btag": events.jet_btag[events.jet_mask]}
    jets["mass"] = np.sqrt(np.maximum(mass_squared(p4), 0))
    jets = ak.zip({name: ak.unflatten(values, counts) for name, values in jets.items()})
    # The reader must order them.
    return leptons, jets[:, ::-1]


def met(events):
    return ak.Array({"pt": np.hypot(*events.met.T), "phi": np.arctan2(*events.met.T[::-1])})


def load(monkeypatch, name, **modules):
    """An example with modules that are not installed here."""
    for path, content in ({"model_reader": vars(reader)} | modules).items():
        module = ModuleType(path)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, path, module)
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_in_the_table():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(FILES) == 5
    for file in FILES:
        assert f"[`{file.name}`]({file.name})" in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_example_is_python_3_9_without_topreco(file):
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        assert not any(name.partition(".")[0] in {"topreco", "torch"} for name in names)


def test_pepper(monkeypatch, toy_onnx, events, expected):
    class ProcessorTTbarLL:
        def __init__(self, config, eventdir):
            self.config = config

    example = load(monkeypatch, "pepper_processor", pepper={"ProcessorTTbarLL": ProcessorTTbarLL})
    monkeypatch.setattr(example, "MODEL", toy_onnx)
    instance = example.Processor({}, None)
    instance.model.max_jets, instance.model.m_lb_max = 12, 180.0  # the toy has no training data to tell
    leptons, jets = columns(events)
    tops = instance.ttbar_system(
        "sonnenschein", None, {"recolepton": leptons, "Jet": jets, "MET": met(events)}
    )
    assert ak.num(tops).tolist() == [0 if n == 7 else 2 for n in range(20)]
    for leg, p4 in enumerate((expected.top, expected.antitop)):
        own = tops[expected.valid][:, leg]
        np.testing.assert_allclose(own.pt, pt(p4[expected.valid]))
        np.testing.assert_allclose(own.eta, eta(p4[expected.valid]))
        np.testing.assert_allclose(own.phi, phi(p4[expected.valid]))
        np.testing.assert_allclose(own.mass, np.sqrt(mass_squared(p4[expected.valid])))


def test_columnflow(monkeypatch, toy_onnx, events, expected):
    class Producer:
        """The decorated function with its hooks, as columnflow makes an instance of."""

        def __init__(self, function, options):
            self.uses, self.produces = set(options["uses"]), set(options["produces"])
            self.function, self.hooks = function, {}

        def __getattr__(self, hook):
            return lambda function: self.hooks.setdefault(hook, function)

    def set_ak_column(array, route, values, value_type):
        first, _, field = route.partition(".")
        values = ak.from_numpy(values.astype(value_type))
        if not field:
            return ak.with_field(array, values, first)
        own = ak.with_field(array[first], values, field) if first in array.fields else ak.zip({field: values})
        return ak.with_field(array, own, first)

    example = load(
        monkeypatch,
        "columnflow_producer",
        law={"Task": object},
        **{
            "columnflow": {},
            "columnflow.columnar_util": {"EMPTY_FLOAT": -99999.0, "set_ak_column": set_ak_column},
            "columnflow.production": {
                "Producer": Producer,
                "producer": lambda **options: lambda function: Producer(function, options),
            },
            "columnflow.util": {"dev_sandbox": str, "maybe_import": importlib.import_module},
            "examples": {"__path__": []},
            "examples.model_reader": vars(reader),
        },
    )
    instance = example.top_quarks
    settings = SimpleNamespace(btag="btag", btag_threshold=0.2783, met="PuppiMET")
    instance.config_inst = SimpleNamespace(x=SimpleNamespace(topreco=settings))
    instance.hooks["init"](instance)
    assert {"Jet.btag", "PuppiMET.{pt,phi}"} <= instance.uses
    reqs = {
        "external_files": SimpleNamespace(
            files=SimpleNamespace(topreco_model=SimpleNamespace(abspath=toy_onnx))
        )
    }
    instance.hooks["requires"](instance, None, reqs)
    instance.hooks["setup"](instance, None, reqs)
    instance.model.max_jets, instance.model.m_lb_max = 12, 180.0
    leptons, jets = columns(events)
    muon = abs(leptons.pdgId) == 13
    chunk = ak.Array(
        {"Electron": leptons[~muon], "Muon": leptons[muon], "Jet": jets, "PuppiMET": met(events)}
    )
    found = instance.function(instance, chunk)
    for name, p4 in (("Top", expected.top), ("AntiTop", expected.antitop)):
        for component, values in zip(("energy", "px", "py", "pz"), p4.T, strict=True):
            wanted = np.where(expected.valid, values, -99999.0).astype(np.float32)
            np.testing.assert_allclose(found[name][component], wanted, rtol=1e-6)
    m_tt = topreco.core.observables.m_tt(np.stack([expected.top, expected.antitop], axis=1)[expected.valid])
    np.testing.assert_allclose(found.m_tt[expected.valid], m_tt, rtol=1e-5)
    assert found.m_tt[7] == -99999


class InferenceServerError(Exception):
    """As tritonclient's exception, which tells a status."""

    def status(self):
        return f"StatusCode.{self.args[0]}"


@pytest.fixture
def triton(monkeypatch, toy_onnx):
    """The example, and a server that evaluates the model after the failures in a list."""
    session = pytest.importorskip("onnxruntime").InferenceSession(toy_onnx.read_bytes())
    failures, requests = [], []

    class Client:
        def __init__(self, url, ssl):
            assert (url, ssl) == ("server:8001", False)

        def infer(self, model, inputs, *, model_version, outputs, client_timeout):
            assert (model, model_version, client_timeout) == ("toy", "1", 120.0)
            requests.append(len(inputs[0].values))
            if failures:
                raise InferenceServerError(failures.pop(0))
            names = [output.name for output in outputs]
            found = dict(zip(names, session.run(names, {i.name: i.values for i in inputs}), strict=True))
            return SimpleNamespace(as_numpy=found.__getitem__)

    class Input:
        def __init__(self, name, shape, kind):
            self.name, self.shape, self.kind = name, shape, kind

        def set_data_from_numpy(self, values):
            assert (list(values.shape), values.dtype.name) == (self.shape, self.kind)
            self.values = values

    content = {
        "InferenceServerClient": Client,
        "InferInput": Input,
        "InferRequestedOutput": lambda name: SimpleNamespace(name=name),
    }
    grpc = ModuleType("tritonclient.grpc")
    grpc.__dict__.update(content)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", grpc)
    utils = {"InferenceServerException": InferenceServerError, "np_to_triton_dtype": lambda kind: kind.name}
    example = load(monkeypatch, "triton_server", tritonclient={"grpc": grpc}, **{"tritonclient.utils": utils})
    waited = []
    monkeypatch.setattr(example.time, "sleep", waited.append)
    monkeypatch.setattr(example.random, "uniform", lambda low, high: high)
    model = example.ServedModel(
        toy_onnx, url="server:8001", model="toy", btag_threshold=0.2783, max_jets=12, m_lb_max=180.0
    )

    def call(events):
        leptons, jets = columns(events)
        arrays = {f"lepton_{name.lower()}": ak.to_numpy(leptons[name]) for name in leptons.fields}
        arrays |= {f"jet_{name}": ak.to_numpy(ak.pad_none(jets[name], 12, clip=True)) for name in jets.fields}
        return model(**arrays, met_pt=np.hypot(*events.met.T), met_phi=np.arctan2(*events.met.T[::-1]))

    return SimpleNamespace(call=call, failures=failures, waited=waited, requests=requests, model=model)


def test_a_server_that_is_away_for_a_while(triton, events, expected):
    triton.failures += ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"]
    tops = triton.call(events)
    np.testing.assert_array_equal(tops.valid, expected.valid)
    np.testing.assert_array_equal(tops.top, expected.top)
    np.testing.assert_array_equal(tops.antitop, expected.antitop)
    assert triton.waited == [0.5, 1.0, 2.0]
    assert triton.requests == [64] * 4


def test_a_server_that_stays_away(triton, events):
    triton.failures += ["UNAVAILABLE"] * 20
    with pytest.raises(InferenceServerError, match="UNAVAILABLE"):
        triton.call(events)
    assert triton.waited == [0.5, 1, 2, 4, 8, 16, 32]
    assert len(triton.requests) == 8


def test_a_wrong_request_is_not_repeated(triton, events):
    triton.failures += ["INVALID_ARGUMENT"]
    with pytest.raises(InferenceServerError, match="INVALID_ARGUMENT"):
        triton.call(events)
    assert (triton.waited, len(triton.requests)) == ([], 1)
