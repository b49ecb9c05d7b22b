"""Names of features: what is a measurement, and what is refused."""

import pytest
from pydantic import ValidationError

from topreco.config import FeaturesConfig, SelectionConfig, TokensConfig, lepton_branches


def test_names_and_branches():
    features = FeaturesConfig(
        jet=("Jet_PNetRegPtRawRes", "Jet_mass"),
        lepton=("pfRelIso03_all", "Electron_mvaIso/Muon_mvaMuID"),
        event=("PV_npvsGood", "Rho_fixedGridRhoFastjetAll"),
    )
    assert features.names == (
        "jet:Jet_PNetRegPtRawRes",
        "jet:Jet_mass",
        "lepton:pfRelIso03_all",
        "lepton:Electron_mvaIso/Muon_mvaMuID",
        "event:PV_npvsGood",
        "event:Rho_fixedGridRhoFastjetAll",
    )
    assert features.branches == {
        "Jet_PNetRegPtRawRes": "features.jet",
        "Jet_mass": "features.jet",
        "Electron_pfRelIso03_all": "features.lepton",
        "Muon_pfRelIso03_all": "features.lepton",
        "Electron_mvaIso": "features.lepton",
        "Muon_mvaMuID": "features.lepton",
        "PV_npvsGood": "features.event",
        "Rho_fixedGridRhoFastjetAll": "features.event",
    }
    assert lepton_branches("Electron_a/Muon_b") == ("Electron_a", "Muon_b")


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("jet", "Jet_hadronFlavour", "tells the true flavour"),
        ("jet", "Jet_partonFlavour", "tells the true flavour"),
        ("jet", "Jet_nBHadrons", "tells the true flavour"),
        ("jet", "Jet_genJetIdx", "is of the generator"),
        ("lepton", "genPartIdx", "is of the generator"),
        ("lepton", "genPartFlav", "is of the generator"),
        ("lepton", "Electron_pt/Muon_genPartIdx", "is of the generator"),
        ("event", "GenMET_pt", "is of the generator"),
        ("event", "Generator_x1", "is of the generator"),
        ("event", "MET_fiducialGenPt", "is of the generator"),
        ("event", "LHE_HT", "is of the generator"),
        ("event", "HTXS_njets30", "is of the generator"),
        ("event", "genWeight", "is of the generator"),
        ("event", "PSWeight", "is of the generator"),
        ("event", "L1PreFiringWeight_Nom", "is a weight"),
        ("event", "Pileup_nTrueInt", "is of the truth"),
        ("event", "Pileup_nPU", "is the simulated pile-up"),
        ("event", "run", "numbers events"),
        ("event", "event", "numbers events"),
    ],
)
def test_what_the_detector_did_not_measure_is_refused(kind, name, reason):
    match = rf"{name}.* {reason}.*only reconstructed"
    with pytest.raises(ValidationError, match=match):
        FeaturesConfig(**{kind: (name,)})
    with pytest.raises(ValidationError, match=match):
        TokensConfig.model_validate({"features": {kind: [name]}})


@pytest.mark.parametrize(
    "name",
    ["PV_npvsGood", "MET_significance", "Flag_goodVertices", "Electron_energyErr/Muon_ptErr", "btag_x"],
)
def test_measurements_are_not_refused(name):
    kind = "lepton" if "/" in name else "event"
    assert FeaturesConfig(**{kind: (name,)}).names == (f"{kind}:{name}",)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"jet": ["mass"]}, "'mass': a branch of jets expected"),
        ({"jet": ["Jet_mass", "Jet_mass"]}, "'Jet_mass' is given twice"),
        ({"lepton": ["Electron_pt"]}, "'Electron_pt': a field that electrons and muons both have"),
        ({"lepton": ["Muon_pt/Electron_pt"]}, "a pair such as"),
        ({"event": ["Jet_mass"]}, "a branch with one value per event expected"),
        ({"event": ["a b"]}, "a name of NanoAOD expected"),
        ({"met": ["MET_significance"]}, "Extra inputs"),
    ],
)
def test_names_that_are_none(features, message):
    with pytest.raises(ValidationError, match=message):
        FeaturesConfig.model_validate(features)


def test_another_name_in_the_file_hides_nothing():
    with pytest.raises(
        ValidationError, match=r"'Jet_hadronFlavour', taken for Jet_mine of features\.jet, tells"
    ):
        SelectionConfig(features={"jet": ["Jet_mine"]}, branches={"Jet_mine": "Jet_hadronFlavour"})
    selection = SelectionConfig(branches={"Jet_mine": "Jet_hadronFlavour"})
    with pytest.raises(ValidationError, match="taken for Jet_mine"):
        selection.with_features([FeaturesConfig(jet=("Jet_mine",))])


def test_features_of_models_are_added_to_the_selection():
    selection = SelectionConfig(era="UL2017", features={"jet": ["Jet_b", "Jet_a"]})
    assert selection.with_features([FeaturesConfig(jet=("Jet_a",)), FeaturesConfig()]) is selection
    more = selection.with_features([FeaturesConfig(jet=("Jet_c", "Jet_a"), event=("PV_npvs",))])
    assert more.features == FeaturesConfig(jet=("Jet_b", "Jet_a", "Jet_c"), event=("PV_npvs",))
    assert more.era == "UL2017"
    # What was not set still follows the preset.
    assert "met" not in more.model_fields_set


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"L": 0.1, "T": 0.5}, r"L, T found, L or L, M, \.\.\. without gaps"),
        ({}, "nothing found"),
        ({"L": 0.5, "M": 0.1}, "rising scores expected"),
        ({"X": 0.5}, "Input should be 'L'"),
    ],
)
def test_working_points_without_gaps(points, message):
    with pytest.raises(ValidationError, match=message):
        SelectionConfig(jet={"btag_working_points": points})
