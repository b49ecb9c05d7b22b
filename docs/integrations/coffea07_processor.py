"""Top quarks in a bare coffea 0.7 processor (awkward 1): copy what you need.

    topreco export dilepton -o dilepton.onnx    # anywhere with topreco; writes model_reader.py too
    PYTHONPATH=. python coffea07_processor.py dilepton.onnx nano.root tops.npz    # coffea 0.7, onnxruntime

The cuts are the default selection of topreco for UL2018 NanoAOD. Only `reconstruct` deals with the model.
"""

import sys

import awkward as ak
import hist
import numpy as np
from coffea import processor
from coffea.nanoevents import NanoAODSchema
from model_reader import TopModel

NanoAODSchema.warn_missing_crossrefs = False
BTAG_MEDIUM = 0.2783  # DeepJet, UL2018


def good_leptons(events):
    """Electrons and muons, with what the reader needs of them."""
    electrons, muons = events.Electron, events.Muon
    # Newer versions of NanoAOD store it.
    eta_sc = abs(
        electrons.superclusterEta
        if "superclusterEta" in electrons.fields
        else electrons.eta + electrons.deltaEtaSC
    )
    electrons = electrons[
        (electrons.pt > 20)
        & (abs(electrons.eta) < 2.4)
        & (electrons.cutBased >= 4)
        & ((eta_sc < 1.4442) | (eta_sc > 1.566))
    ]
    muons = muons[(muons.pt > 20) & (abs(muons.eta) < 2.4) & muons.tightId & (muons.pfRelIso04_all < 0.15)]
    fields = ("pt", "eta", "phi", "mass", "charge", "pdgId")
    both = [ak.zip({field: part[field] for field in fields}) for part in (electrons, muons)]
    return ak.with_name(ak.concatenate(both, axis=1), "PtEtaPhiMCandidate")


def good_jets(events, leptons):
    """Jets away from both leptons."""
    jets = events.Jet[(events.Jet.pt > 30) & (abs(events.Jet.eta) < 2.4) & ((events.Jet.jetId & 2) > 0)]
    distance = jets.metric_table(leptons)
    return jets[ak.all(distance > 0.4, axis=2)]


def reconstruct(model, leptons, jets, met, btag):
    """Top and antitop of events with two leptons, by a `TopModel`."""
    jets = jets[ak.argsort(jets.pt, ascending=False)]

    def padded(values):
        return ak.to_numpy(ak.pad_none(values, 12, clip=True))

    return model(
        lepton_pt=ak.to_numpy(leptons.pt),
        lepton_eta=ak.to_numpy(leptons.eta),
        lepton_phi=ak.to_numpy(leptons.phi),
        lepton_charge=ak.to_numpy(leptons.charge),
        lepton_pdgid=ak.to_numpy(leptons.pdgId),
        jet_pt=padded(jets.pt),
        jet_eta=padded(jets.eta),
        jet_phi=padded(jets.phi),
        jet_mass=padded(jets.mass),
        jet_btag=padded(jets[btag]),
        met_pt=ak.to_numpy(met.pt),
        met_phi=ak.to_numpy(met.phi),
    )


class TopProcessor(processor.ProcessorABC):
    """Selects dileptonic events and reconstructs their top quarks.

    Parameters
    ----------
    model
        File written by `topreco export`. The processor pickles with its path, and each worker opens it once.
    """

    def __init__(self, model):
        self.model = TopModel(model, btag_threshold=BTAG_MEDIUM)

    def process(self, events):
        """Histogram of m(tt̄) and, to look at them, the momenta of one chunk."""
        leptons = good_leptons(events)
        events, leptons = events[ak.num(leptons) == 2], leptons[ak.num(leptons) == 2]
        jets = good_jets(events, leptons)
        met = events.PuppiMET
        m_ll = (leptons[:, 0] + leptons[:, 1]).mass
        same_flavour = abs(leptons[:, 0].pdgId) == abs(leptons[:, 1].pdgId)
        selected = (
            (leptons[:, 0].charge + leptons[:, 1].charge == 0)
            & (ak.max(leptons.pt, axis=1) > 25)
            & (m_ll > 20)
            & (~same_flavour | ((abs(m_ll - 91.19) > 15) & (met.pt > 40)))
            & (ak.num(jets) >= 2)
            & ak.any(jets.btagDeepFlavB > BTAG_MEDIUM, axis=1)
        )
        events = events[selected]
        tops = reconstruct(self.model, leptons[selected], jets[selected], met[selected], "btagDeepFlavB")

        system = tops.top + tops.antitop
        mass = np.sqrt(system[:, 0] ** 2 - (system[:, 1:] ** 2).sum(axis=1))
        histogram = hist.Hist.new.Reg(50, 300, 1300, name="m_tt", label="m(tt) [GeV]").Weight()
        weight = ak.to_numpy(events.genWeight) if "genWeight" in events.fields else np.ones(len(events))
        histogram.fill(m_tt=mass[tops.valid], weight=weight[tops.valid])
        return {
            "m_tt": histogram,
            "event": processor.column_accumulator(ak.to_numpy(events.event)),
            "p4": processor.column_accumulator(np.stack([tops.top, tops.antitop], axis=1)),
        }

    def postprocess(self, accumulator):
        """Nothing is left to do."""
        return accumulator


if __name__ == "__main__":
    model, *files, output = sys.argv[1:]
    run = processor.Runner(processor.IterativeExecutor(status=False), schema=NanoAODSchema, chunksize=200)
    result = run({"ttbar": files}, "Events", processor_instance=TopProcessor(model))
    np.savez(output, event=result["event"].value, p4=result["p4"].value)
    print(f"{len(result['event'].value)} events in {output}")
