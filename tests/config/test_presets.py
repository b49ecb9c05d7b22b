"""Presets: each loads, versions exclude each other, the user's keys win, mistakes are one line."""

import itertools
import re

import pytest

from topreco.config import ConfigError, JetSelection, SelectionConfig, shipped_configs
from topreco.config.presets import (
    NO_PRESET,
    Evidence,
    btag_threshold,
    describe_preset,
    detect_preset,
    find_preset,
    presets,
    resolve_selection,
    runs_of_eras,
    working_points,
)

V9 = {"Jet_puIdDisc", "Jet_jetId", "Jet_puId"}
BRANCHES = {
    "nano_v7": {"MET_pt", "Jet_jetId", "Jet_puId"},
    "nano_v9": V9,
    "nano_v11": {"Electron_mvaIso_WP90", "Jet_jetId"},
    "nano_v12": {"Electron_mvaIso_WP90", "Jet_btagPNetB", "Jet_jetId"},
    "nano_v14": {
        "Electron_mvaIso_WP90",
        "Jet_btagPNetB",
        "Jet_btagUParTAK4B",
        "Jet_chMultiplicity",
        "Jet_jetId",
    },
    "nano_v15": {"Electron_mvaIso_WP90", "Jet_btagPNetB", "Jet_btagUParTAK4B", "Jet_chMultiplicity"},
}


def test_there_is_one_for_each_version():
    assert set(presets()) == set(BRANCHES)
    assert not any("presets" in name for name in shipped_configs())


@pytest.mark.parametrize("name", BRANCHES)
def test_every_preset_resolves_in_its_eras(name):
    preset = presets()[name]
    assert preset.era in preset.eras
    for era in preset.eras:
        config = SelectionConfig(preset=name, era=era, jet=JetSelection(btag_threshold=0.5))
        resolved = resolve_selection(config, set())
        assert (resolved.preset, resolved.era) == (name, era)
        assert resolved.met == preset.selection["met"]
    # The default era has a working point.
    default = resolve_selection(SelectionConfig(preset=name), set())
    assert default.jet.btag_threshold == btag_threshold(preset.era, default.jet.btag, "M")


@pytest.mark.parametrize(("name", "branches"), BRANCHES.items())
def test_a_version_is_recognised_by_its_preset_alone(name, branches):
    def recognises(preset):
        clues = preset.detect.one_of
        return preset.detect.fits(branches) and (not clues or any(clue.fits(branches) for clue in clues))

    assert [own for own, preset in presets().items() if recognises(preset)] == [name]
    assert detect_preset(branches) == name
    assert detect_preset(branches - {"Jet_jetId", "Jet_chMultiplicity"}) == NO_PRESET


OF_106X = {"Jet_btagDeepFlavCvL", "Jet_btagDeepFlavCvB", "Jet_btagDeepCvL", "Jet_btagDeepCvB"}
PRE_UL = {"Jet_btagCMVA", "Jet_btagDeepC", "Electron_cutBased_Fall17_V1", "MET_pt"}
V8 = V9 | OF_106X | {"Jet_btagCMVA", "Jet_btagDeepC", "MET_pt"}
SLIMMED = {"Jet_puId", "Jet_jetId", "MET_pt"}


@pytest.mark.parametrize(
    ("branches", "title", "name", "era"),
    [
        # v7 with Jet_puIdDisc, made with CMSSW 10_6 and 10_2.
        (V9 | PRE_UL | OF_106X, "Pileup ID discriminant with 94X (2017) training", "nano_v7", "Legacy2017"),
        (V9 | PRE_UL | OF_106X, "Pileup ID discriminant with 102X (2018) training", "nano_v7", "Legacy2018"),
        (V8, "Pileup ID discriminant with 80X (2016) training", "nano_v7", "Legacy2016"),
        (V9, "Pileup ID flags for pre-UL trainings", "nano_v7", "Legacy2018"),
        (V9 | PRE_UL | OF_106X, "", "nano_v7", "Legacy2018"),
        (V9 | {"Jet_btagCMVA"}, "", "nano_v7", "Legacy2018"),
        # v8 and v9, whole and without Jet_puIdDisc.
        (V8, "", "nano_v9", "UL2018"),
        (V8 - {"Jet_puIdDisc"}, "Pileup ID flags with 106X (2017) training", "nano_v9", "UL2017"),
        (V8 - {"Jet_puIdDisc"}, "", "nano_v9", "UL2018"),
        (SLIMMED | OF_106X, "", "nano_v9", "UL2018"),
        (SLIMMED, "Pileup ID flags with 106X (2016) training", "nano_v9", "UL2016postVFP"),
        (V9, "Pileup ID flags with 106X (2016APV) training", "nano_v9", "UL2016preVFP"),
        # CHS jets of Run 3 have a title of Run 2.
        (BRANCHES["nano_v12"], "Pileup ID flags with 106X (2018) training", "nano_v12", "2022EE"),
    ],
)
def test_run_2_is_recognised_by_titles_and_branches_of_taggers(branches, title, name, era):
    resolved = resolve_selection(SelectionConfig(), branches, Evidence((title,)))
    assert (resolved.preset, resolved.era) == (name, era)


@pytest.mark.parametrize(
    ("preset", "runs", "era", "source"),
    [
        ("nano_v12", (367475, 367475), "2023", "from run 367475"),
        ("nano_v12", (1, 370000), "2023BPix", "from run 370000"),
        ("nano_v11", (357000, 357900), "2022", "from run 357000"),
        ("nano_v9", (297050, 306462), "UL2017", "from run 297050"),
        ("nano_v7", (297050, 306462), "Legacy2017", "from run 297050"),
        ("nano_v15", (320000, 320000), "UL2018", "from run 320000"),
        # Taken with both settings of the APV.
        ("nano_v9", (278780, 278780), "UL2016postVFP", "from the title of Jet_puId, 106X (2016) training"),
    ],
)
def test_era_of_data_is_that_of_their_runs(preset, runs, era, source):
    given = SelectionConfig(preset=preset)
    evidence = Evidence(("Pileup ID flags with 106X (2016) training",), runs)
    resolved = resolve_selection(given, set(), evidence)
    assert resolved.era == era
    assert f"era {era} ({source})" in describe_preset(given, resolved, evidence)


def test_runs_of_several_eras_are_refused():
    mixed = Evidence(runs=(367475, 370000))
    with pytest.raises(ConfigError, match=r"selection.era: .* runs 367475 \(2023\) and 370000 \(2023BPix\)"):
        resolve_selection(SelectionConfig(preset="nano_v12"), set(), mixed)
    assert resolve_selection(SelectionConfig(preset="nano_v12", era="2023"), set(), mixed).era == "2023"


@pytest.mark.parametrize(
    ("preset", "run"), [("nano_v15", 278806), ("nano_v15", 392000), ("nano_v12", 320000), ("nano_v9", 306463)]
)
def test_data_of_no_era_need_one(preset, run):
    """Taken with both settings of the APV, too late, of another version, between two years."""
    evidence = Evidence(runs=(run, run))
    with pytest.raises(ConfigError, match=rf"selection.era: run {run} tells no era .*; give one of "):
        resolve_selection(SelectionConfig(preset=preset), set(), evidence)
    era = presets()[preset].era
    assert resolve_selection(SelectionConfig(preset=preset, era=era), set(), evidence).era == era
    # Simulation without weights.
    assert resolve_selection(SelectionConfig(preset=preset), set(), Evidence(runs=(1, 1))).era == era


def test_eras_of_a_preset_share_no_runs():
    assert {era for preset in presets().values() for era in preset.eras} == set(runs_of_eras())
    for preset in presets().values():
        ranges = sorted(runs_of_eras()[era] for era in preset.eras)
        assert all(first <= last for first, last in ranges)
        assert all(low[1] < high[0] for low, high in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    ("content", "branches", "has_it"),
    [
        ({}, V8, False),
        ({"preset": "nano_v8"}, set(), False),
        ({"preset": "nano_v9"}, V8, False),
        ({"preset": "nano_v9"}, set(), True),
        # A v9 file that lost the flag is an error later, not a file without the filter.
        ({}, V9, True),
        ({}, V8 | {"Flag_BadPFMuonDzFilter"}, True),
    ],
)
def test_met_filters_of_v8_and_v9(content, branches, has_it):
    given = SelectionConfig.model_validate(content | {"cuts": {"met_filters": "preset"}})
    filters = resolve_selection(given, branches).cuts.met_filters
    assert ("Flag_BadPFMuonDzFilter" in filters) is has_it
    assert {"Flag_BadPFMuonFilter", "Flag_ecalBadCalibFilter"} <= set(filters)


def test_aliases_are_unique_and_found():
    names = [name for own, preset in presets().items() for name in (own, *preset.aliases)]
    assert len(set(names)) == len(names)
    assert find_preset("nano_v6")[0] == "nano_v7"


@pytest.mark.parametrize("era", working_points())
def test_working_points_rise_and_say_where_they_come_from(era):
    points = working_points()[era]
    assert "cern.ch" in points.source or "jsonpog" in points.source
    assert len(points.checked) >= 2
    assert points.taggers
    for scores in points.taggers.values():
        assert list(scores) == ["L", "M", "T", "XT", "XXT"][: len(scores)]
        assert list(scores.values()) == sorted(scores.values())
        assert all(0 < score < 1 for score in scores.values())


@pytest.mark.parametrize(
    ("era", "tagger", "point", "threshold"),
    [
        ("UL2018", "btagDeepFlavB", "M", 0.2783),
        ("UL2017", "btagDeepFlavB", "T", 0.7476),
        ("UL2016preVFP", "btagDeepB", "M", 0.6001),
        ("Legacy2016", "btagDeepFlavB", "L", 0.0614),
        ("2022", "btagPNetB", "M", 0.245),
        ("2023BPix", "btagRobustParTAK4B", "M", 0.3494),
        ("2024", "btagUParTAK4B", "XXT", 0.9739),
    ],
)
def test_some_working_points(era, tagger, point, threshold):
    assert btag_threshold(era, tagger, point) == threshold


def test_ul2018_files_are_selected_as_without_presets():
    """The shipped models were trained for this selection."""
    resolved = resolve_selection(SelectionConfig(), V9)
    assert (resolved.preset, resolved.era) == ("nano_v9", "UL2018")
    assert resolved.jet.btag_working_points == {"L": 0.0490, "M": 0.2783, "T": 0.7100}
    jet = resolved.jet.model_copy(update={"btag_working_points": None})
    same = resolved.model_copy(update={"preset": None, "era": None, "jet": jet})
    assert same == SelectionConfig()


def test_explicit_keys_win_even_with_the_value_of_the_default():
    given = SelectionConfig.model_validate(
        {"met": "PuppiMET", "jet": {"btag": "btagDeepB"}, "era": 2022, "preset": "nano_v12"}
    )
    assert given.era == "2022"
    with pytest.raises(ConfigError, match=r"no working point M of 'btagDeepB' in era '2022'"):
        resolve_selection(given, set())
    explicit = SelectionConfig.model_validate({"met": "PuppiMET", "jet": {"btag_threshold": 0.2783}})
    resolved = resolve_selection(explicit, BRANCHES["nano_v7"])
    assert resolved.preset == "nano_v7"
    assert (resolved.met, resolved.jet.btag_threshold) == ("PuppiMET", 0.2783)
    untouched = resolve_selection(SelectionConfig(), BRANCHES["nano_v7"])
    assert (untouched.met, untouched.jet.btag_threshold) == ("MET", 0.2770)


def test_threshold_follows_tagger_era_and_working_point():
    given = SelectionConfig.model_validate(
        {"preset": "nano_v12", "era": "2023", "jet": {"btag": "btagPNetB", "working_point": "T"}}
    )
    assert resolve_selection(given, set()).jet.btag_threshold == 0.6172
    without = SelectionConfig.model_validate({"preset": "none", "era": "UL2017"})
    assert resolve_selection(without, V9).jet.btag_threshold == 0.3040


def test_era_changes_more_than_the_working_point():
    run2 = resolve_selection(SelectionConfig(preset="nano_v15", era="UL2018"), set())
    assert (run2.jet.id_recipe, run2.jet.btag_threshold) == ("ul2017_puppi", 0.1610)
    assert resolve_selection(SelectionConfig(preset="nano_v9", era="UL2016preVFP"), set()).jet.pu_id_reversed
    filters = SelectionConfig.model_validate({"cuts": {"met_filters": "preset"}, "preset": "nano_v9"})
    with_calibration = resolve_selection(filters, set()).cuts.met_filters
    assert "Flag_ecalBadCalibFilter" in with_calibration
    older = filters.model_copy(update={"era": "UL2016postVFP"})
    assert set(with_calibration) - set(resolve_selection(older, set()).cuts.met_filters) == {
        "Flag_ecalBadCalibFilter"
    }


@pytest.mark.parametrize("branches", [*BRANCHES.values(), set()])
def test_resolving_twice_changes_nothing(branches):
    once = resolve_selection(SelectionConfig(), branches)
    assert resolve_selection(once, branches) == once
    # Nor for a worker that sees other branches.
    assert resolve_selection(once, {"Jet_jetId"}) == once


def test_renamed_branches_count_for_detection():
    config = SelectionConfig(branches={"Jet_puIdDisc": "jets_pu", "Jet_jetId": "jets_id"})
    assert resolve_selection(config, {"jets_pu", "jets_id"}).preset == "nano_v9"
    assert resolve_selection(config, {"jets_pu"}).preset == NO_PRESET


def test_description_says_what_was_assumed():
    detected = SelectionConfig()
    text = describe_preset(detected, resolve_selection(detected, V9))
    assert text == (
        "preset nano_v9 (detected), era UL2018 (assumed, the file does not say: set --era), "
        "PuppiMET, btagDeepFlavB > 0.2783"
    )
    given = SelectionConfig(preset="nano_v8", era="UL2017")
    text = describe_preset(given, resolve_selection(given, set()))
    assert text.startswith("preset nano_v9 (given), era UL2017 (given),")
    assert "no known NanoAOD version" in describe_preset(detected, resolve_selection(detected, set()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"preset": "nano_v99"},
            r"selection\.preset: no preset 'nano_v99'; known: .*nano_v15, none; did you",
        ),
        ({"preset": "nano_v12", "era": "UL2018"}, "preset nano_v12 has no era 'UL2018'; it has 2022, 2022EE"),
        (
            {"preset": "nano_v15", "era": "UL2017"},
            "no working point M of 'btagUParTAK4B' in era 'UL2017' .*give selection.jet.btag_threshold",
        ),
        ({"preset": "none", "era": "UL2019"}, "era 'UL2019' is known here .known: eras Legacy2016"),
        ({"jet": {"working_point": "T"}}, r"working_point: means nothing without selection\.era"),
        ({"cuts": {"met_filters": "preset"}}, "met_filters: 'preset', but no preset is given"),
    ],
)
def test_mistakes(content, message):
    with pytest.raises(ConfigError, match=message):
        resolve_selection(SelectionConfig.model_validate(content), set())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"jet": {"id_recipe": "run3_puppi", "id_bit": 0}}, "id_bit: 0 with id_recipe 'run3_puppi'"),
    ],
)
def test_impossible_selections(content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SelectionConfig.model_validate(content)
