"""Figures: which there are, what they say, and that they can be drawn from hardly any events."""

import dataclasses
import logging

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from topreco.config import HistogramConfig
from topreco.core.errors import TopRecoError
from topreco.core.observables import OBSERVABLES
from topreco.evaluation.draw import METRICS, Spectrum, plot_metric, plot_migration, plot_variations
from topreco.evaluation.figures import figures, save, save_all
from topreco.evaluation.fill import fill
from topreco.evaluation.histograms import book
from topreco.evaluation.style import Label, canvas

CONFIG = HistogramConfig(observables=("m_tt", "pt_top", "y_top"))
M_TT = OBSERVABLES["m_tt"]


def filled(toy, n, *, truth=True, negative=False, observables=CONFIG.observables):
    histograms = book(HistogramConfig(observables=observables))
    events, a, true = toy(n)
    _, b, _ = toy(n, shrink=0.5)
    if negative:
        events = dataclasses.replace(events, weight=-events.weight)
    sample = {"dataset": "tt/2018", "events": events, "truth": true if truth else None}
    for method, pair in (("network", a), ("a $strange_ name/", b)):
        fill(histograms, method=method, pair=pair, **sample)
    return histograms


def texts(figure):
    return " ".join(t.get_text() for a in figure.axes for t in a.texts)


def test_all_figures_are_written(toy, tmp_path):
    histograms = filled(toy, 3000, observables=("m_tt", "y_top"))
    paths = save_all(histograms, tmp_path, label=Label(sqrt_s=13), every=True, formats=("png", "pdf"))
    assert {p.suffix for p in paths} == {".png", ".pdf"}
    assert all(p.stat().st_size > 1000 for p in paths)
    assert {p.parent for p in paths} == {tmp_path / "tt_2018"}
    assert len(set(paths)) == len(paths) == len(list((tmp_path / "tt_2018").iterdir()))
    stems = {p.stem for p in paths}
    for name in ("m_tt", "y_top"):
        assert {f"{m.field}_{name}" for m in METRICS} | {f"spectrum_{name}", f"residual_{name}"} <= stems
        assert f"migration_{name}_network" in stems
    assert "rb_y_top_vs_m_tt" in stems


def test_the_usual_figures_and_their_overview_are_the_same_from_any_number_of_processes(
    toy, tmp_path, monkeypatch
):
    monkeypatch.setattr("topreco.evaluation.figures._FIGURES_PER_PROCESS", 12)
    histograms = filled(toy, 3000, observables=("m_tt", "pt_top", "y_top", "c_han", "m_top", "y_tt"))
    paths = save_all(histograms, tmp_path / "one")
    usual = ("m_tt", "pt_top", "y_top", "c_han")
    assert {path.name for path in paths} == {
        "overview.png",
        *(f"{kind}_{name}.png" for name in usual for kind in ("residual", "rb", "res", "width68")),
        *(f"migration_{name}_{m}.png" for name in usual for m in ("network", "a_strange__name")),
    }
    again = save_all(histograms, tmp_path / "two", workers=2)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    sheet = Image.open(tmp_path / "one" / "tt_2018" / "overview.png")
    assert sheet.size == (4 * 400 + 2 * 480, 4 * 400)
    assert all(np.ptp(np.asarray(sheet)[:, at : at + 400]) > 0 for at in range(0, sheet.width - 80, 400))


def test_chosen_figures_have_no_overview_and_the_usual_ones_of_a_chosen_observable_do(toy, tmp_path):
    histograms = filled(toy, 300)
    assert [p.name for p in save_all(histograms, tmp_path, only="spectrum_y*")] == ["spectrum_y_top.png"]
    assert {p.name for p in save_all(histograms, tmp_path, formats=("svg",))}.isdisjoint({"overview.png"})
    data = filled(toy, 300, truth=False, observables=("m_tt", "m_top"))
    found = save_all(data, tmp_path, observables=["m_top"])
    assert [p.name for p in found] == ["spectrum_m_top.png", "overview.png"]


def test_labels_of_axes_are_inside_the_figure_and_apart_from_each_other():
    counts = np.pad(np.ones((2, 2)), 1)
    spectrum = Spectrum(np.array([123456.0, 2e5]), np.array([1.0, 1]))
    for figure in (
        plot_migration(
            counts, np.arange(3.0) * 1e5, M_TT, method="a", label=Label("Private work", "CMS", 13)
        ),
        plot_variations(spectrum, {"a_up": spectrum}, np.arange(3.0), M_TT, method="a"),
    ):
        FigureCanvasAgg(figure).draw()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        assert all(box.min.min() >= 0 and np.all(box.max <= figure.bbox.max) for box in boxes)
        assert min(box.x0 for box in boxes) < 40
        assert max(box.x1 for box in boxes) > figure.bbox.x1 - 60
        assert min(box.y0 for box in boxes) < 40


@pytest.mark.parametrize("n", [0, 1, 2, 30])
@pytest.mark.parametrize("negative", [False, True], ids=["positive", "negative"])
def test_few_events_draw_without_warnings(toy, tmp_path, n, negative):
    histograms = filled(toy, n, negative=negative, observables=("pt_top",))
    save_all(histograms, tmp_path, formats=("png",))


def test_empty_histograms_give_no_figures_but_a_message(tmp_path, caplog):
    assert save_all(book(CONFIG), tmp_path) == []
    assert "no events" in caplog.text


def test_data_give_spectra_only(toy, caplog):
    caplog.set_level(logging.INFO)
    histograms = filled(toy, 300, truth=False)
    found = dict(figures(histograms, "tt/2018", label=Label(experiment="CMS")))
    assert set(found) == {f"spectrum_{name}" for name in CONFIG.observables}
    assert "no truth" in caplog.text
    assert "CMS" in texts(found["spectrum_m_tt"])
    assert "Simulation" not in texts(found["spectrum_m_tt"])


def test_variations_have_a_figure_per_method(toy, tmp_path):
    histograms = filled(toy, 300)
    assert not dict(figures(histograms, "tt/2018", only="variations_*"))
    for number in range(12):
        events, pair, true = toy(300, shrink=0.8 + 0.01 * number)
        sample = {"dataset": "tt/2018", "events": events, "pair": pair, "truth": true, "metrics": False}
        for name in (f"jes{number}_up", f"jes{number}_down"):
            fill(histograms, method="network", variation=name, **sample)
    ((name, figure),) = figures(histograms, "tt/2018", only="variations_*")
    assert name == "variations_m_tt_network"
    legend = figure.axes[0].get_legend()
    assert "2 smaller not drawn" in legend.get_title().get_text()
    assert "jes11" in [text.get_text() for text in legend.get_texts()]
    assert len(save_all(histograms, tmp_path, only="variations_*", formats=("png",))) == 1


@pytest.mark.parametrize("n", [0, 1])
def test_variations_of_few_events_draw_without_warnings(tmp_path, n):
    edges = np.array([0.0, 1, 2])
    spectrum = Spectrum(np.array([n, 0.0]), np.array([n, 0.0]))
    figure = plot_variations(spectrum, {"a_up": spectrum}, edges, M_TT, method="a")
    assert ("no events" in texts(figure)) == (n == 0)
    save(figure, tmp_path / "figure")


def test_figures_say_when_there_is_nothing():
    assert "no events" in texts(plot_metric({}, METRICS[0], M_TT))
    assert "no events" in texts(plot_migration(np.zeros((5, 5)), np.arange(4.0), M_TT, method="a"))


@pytest.mark.parametrize(
    ("label", "there", "absent"),
    [
        (None, ["Simulation"], ["Preliminary", "TeV"]),
        (Label("Private work", experiment="CMS", sqrt_s=13.6), ["CMS", "Private work", "13.6 TeV"], []),
        (Label("costs $1 or $2", experiment="a_b"), ["a_b", r"costs \$1 or \$2"], ["Simulation"]),
    ],
)
def test_labels_say_what_they_are_told(label, there, absent, tmp_path):
    figure = plot_metric({}, METRICS[0], M_TT, label=label)
    assert all(text in texts(figure) for text in there)
    assert not any(text in texts(figure) for text in absent)
    save(figure, tmp_path / "figure", formats=("png",))


def test_a_label_does_not_run_into_the_name_of_the_experiment(tmp_path):
    """The text beside the name is placed for the layout that is saved, colour bar included."""
    counts = np.pad(np.ones((2, 2)), 1)
    figure = plot_migration(counts, np.arange(3.0), M_TT, method="a", label=Label("Private work", "CMS"))
    save(figure, tmp_path / "figure", formats=("png",))
    name, text = (
        next(t for t in figure.axes[0].texts if t.get_text() == words).get_window_extent()
        for words in ("CMS", "Private work")
    )
    assert 0 < text.x0 - name.x1 < 0.2 * name.width


@pytest.mark.parametrize(
    ("per", "words", "share"), [("truth", "true", "75"), ("reco", "reconstructed", "86")]
)
def test_migration_says_how_it_is_normalised(per, words, share):
    counts = np.array([[0.0, 0, 0, 0], [0, 6, 2, 0], [0, 1, 3, 0], [0, 0, 0, 0]])
    figure = plot_migration(counts, np.array([0.0, 1, 2]), OBSERVABLES["y_top"], method="a", per=per)
    assert f"{words} bin" in figure.axes[1].get_ylabel()
    assert share in texts(figure)


def test_errors_name_the_cause(toy, tmp_path):
    histograms = filled(toy, 30)
    (tmp_path / "file").touch()
    for folder, options, message in (
        ("file", {"observables": ["m_tt"], "only": "res_*"}, r"output folder .*file.*cannot write there"),
        ("x", {"observables": ["m_lb"]}, r"no observable 'm_lb'.*only m_tt, pt_top, y_top"),
        ("x", {"only": "res_*", "formats": ["doc"]}, r"unknown format 'doc' of a figure; allowed: .*pdf"),
    ):
        with pytest.raises(TopRecoError, match=message):
            save_all(histograms, tmp_path / folder, **options)
    with pytest.raises(ValueError, match="'truth' or 'reco' expected, found 'row'"):
        plot_migration(np.zeros((3, 3)), np.arange(2.0), M_TT, method="a", per="row")


def test_settings_of_the_user_change_nothing(tmp_path):
    """Not even those that no style sets, and those that would need LaTeX."""

    def drawn(name):
        with canvas(Label("Simulation")) as (figure, panels):
            panels[0].hist([1, 2, 2], label="$m$ of t")
            panels[0].plot([1, 2], [0.5, 1.5])
            panels[0].legend()
            panels[0].set_xlabel("$p_T$")
        return save(figure, tmp_path / name, formats=["png"])[0].read_bytes()

    expected = drawn("plain")
    users = {"text.usetex": True, "font.size": 40.0, "lines.linestyle": ":", "hist.bins": 3}
    with mpl.rc_context({**users, "axes.spines.top": False, "savefig.dpi": 33, "image.cmap": "hot"}):
        assert drawn("user") == expected
        assert mpl.rcParams["text.usetex"]
