"""Top quarks as a columnflow producer: run it with `ProduceColumns`, behind a selection of two leptons.

    topreco export dilepton -o dilepton.onnx    # anywhere with topreco; writes model_reader.py too

Put `model_reader.py` beside this file, in a package that `law.cfg` lists under `production_modules`; name the
model in the config, which ships it to the jobs,

    cfg.x.external_files = DotDict.wrap({"topreco_model": "/path/to/dilepton.onnx"})
    cfg.x.topreco = DotDict.wrap({"btag": "btagDeepFlavB", "btag_threshold": 0.2783, "met": "PuppiMET"})

and make a sandbox with onnxruntime: a copy of columnflow's `venv_columnar.sh` whose requirements have that
line more.
"""

import law
from columnflow.columnar_util import EMPTY_FLOAT, set_ak_column
from columnflow.production import Producer, producer
from columnflow.util import dev_sandbox, maybe_import

np = maybe_import("numpy")
ak = maybe_import("awkward")

COMPONENTS = ("energy", "px", "py", "pz")


@producer(
    uses={"{Electron,Muon}.{pt,eta,phi,charge,pdgId}", "Jet.{pt,eta,phi,mass}"},
    produces={"{Top,AntiTop}.{energy,px,py,pz}", "m_tt"},
    sandbox=dev_sandbox("bash::$CF_BASE/sandboxes/venv_columnar_onnx.sh"),
)
def top_quarks(self: Producer, events: "ak.Array", **kwargs) -> "ak.Array":
    """Columns `Top`, `AntiTop` and `m_tt` in GeV, `EMPTY_FLOAT` where there is no answer.

    Electrons and muons are those that the selection kept, two in all; jets must be apart from them.
    """
    leptons = ak.concatenate(
        [
            ak.zip({name: events[kind][name] for name in ("pt", "eta", "phi", "charge", "pdgId")})
            for kind in ("Electron", "Muon")
        ],
        axis=1,
    )
    jets = events.Jet[ak.argsort(events.Jet.pt, ascending=False)]
    settings = self.config_inst.x.topreco

    def padded(values):
        return ak.to_numpy(ak.pad_none(values, 12, clip=True))

    tops = self.model(
        lepton_pt=ak.to_numpy(leptons.pt),
        lepton_eta=ak.to_numpy(leptons.eta),
        lepton_phi=ak.to_numpy(leptons.phi),
        lepton_charge=ak.to_numpy(leptons.charge),
        lepton_pdgid=ak.to_numpy(leptons.pdgId),
        jet_pt=padded(jets.pt),
        jet_eta=padded(jets.eta),
        jet_phi=padded(jets.phi),
        jet_mass=padded(jets.mass),
        jet_btag=padded(jets[settings.btag]),
        met_pt=ak.to_numpy(events[settings.met].pt),
        met_phi=ak.to_numpy(events[settings.met].phi),
    )

    def column(events, name, values):
        values = np.where(tops.valid, values, EMPTY_FLOAT)
        return set_ak_column(events, name, values, value_type=np.float32)

    for name, p4 in (("Top", tops.top), ("AntiTop", tops.antitop)):
        for component, values in zip(COMPONENTS, p4.T):
            events = column(events, f"{name}.{component}", values)
    system = tops.top + tops.antitop
    return column(events, "m_tt", np.sqrt(system[:, 0] ** 2 - (system[:, 1:] ** 2).sum(axis=1)))


@top_quarks.init
def top_quarks_init(self: Producer, **kwargs) -> None:
    """Ask for the columns that the config names."""
    settings = self.config_inst.x.topreco
    self.uses |= {f"Jet.{settings.btag}", f"{settings.met}.{{pt,phi}}"}


@top_quarks.requires
def top_quarks_requires(self: Producer, task: law.Task, reqs: dict, **kwargs) -> None:
    """Ask for the model's file."""
    if "external_files" not in reqs:
        from columnflow.tasks.external import BundleExternalFiles

        reqs["external_files"] = BundleExternalFiles.req(task)


@top_quarks.setup
def top_quarks_setup(self: Producer, task: law.Task, reqs: dict, **kwargs) -> None:
    """Open the model once per job."""
    from .model_reader import TopModel

    path = reqs["external_files"].files.topreco_model.abspath
    self.model = TopModel(path, btag_threshold=self.config_inst.x.topreco.btag_threshold)
