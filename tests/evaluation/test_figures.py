import dataclasses
import logging

import numpy as np
import pytest

from topreco.config import HistogramConfig
from topreco.core.errors import TopRecoError
from topreco.core.observables import OBSERVABLES
from topreco.evaluation.draw import METRICS, Spectrum, plot_metric, plot_migration, plot_variations
from topreco.evaluation.figures import figures, save, save_all
from topreco.evaluation.fill import fill
from topreco.evaluation.histograms import book
from topreco.evaluation.style import Label

CONFIG = HistogramConfig(observables=("m_tt", "pt_top", "y_top"))


def filled(toy, n, *, truth=True, negative=False, config=CONFIG):
    histograms = book(config)
    events, a, true = toy(n)
    _, b, _ = toy(n, shrink=0.5)
    if negative:
        events = dataclasses.replace(events, weight=-events.weight)
    for method, pair in (("network", a), ("a $strange_ name/", b)):
        fill(
            histograms,
            dataset="tt/2018",
            method=method,
            events=events,
            pair=pair,
            truth=true if truth else None,
        )
    return histograms


def texts(figure):
    axes = figure.axes
    return " ".join(
        [t.get_text() for a in axes for t in a.texts]
        + [a.get_title(loc=side) for a in axes for side in ("left", "right")]
    )


def test_all_figures_are_written(toy, tmp_path):
    histograms = filled(toy, 3000, config=HistogramConfig(observables=("m_tt", "y_top")))
    paths = save_all(histograms, tmp_path, label=Label(sqrt_s=13))
    assert {p.suffix for p in paths} == {".png", ".pdf"}
    assert all(p.stat().st_size > 1000 for p in paths)
    assert {p.parent for p in paths} == {tmp_path / "tt_2018"}
    assert len(set(paths)) == len(paths) == len(list((tmp_path / "tt_2018").iterdir()))
    stems = {p.stem for p in paths}
    for name in ("m_tt", "y_top"):
        assert {f"{m.field}_{name}" for m in METRICS} | {f"spectrum_{name}", f"residual_{name}"} <= stems
        assert f"migration_{name}_network" in stems
    assert "rb_y_top_vs_m_tt" in stems


@pytest.mark.parametrize("n", [0, 1, 2, 30])
@pytest.mark.parametrize("negative", [False, True], ids=["positive", "negative"])
def test_few_events_draw_without_warnings(toy, tmp_path, n, negative):
    histograms = filled(toy, n, negative=negative)
    save_all(histograms, tmp_path, formats=("png",), observables=["pt_top"])


def test_empty_histograms_give_no_figures_but_a_message(tmp_path, caplog):
    assert save_all(book(CONFIG), tmp_path) == []
    assert "no events" in caplog.text


def test_data_give_spectra_only(toy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = dict(figures(filled(toy, 300, truth=False), "tt/2018"))
    assert set(found) == {f"spectrum_{name}" for name in CONFIG.observables}
    assert "no truth" in caplog.text
    assert "Simulation" not in texts(found["spectrum_m_tt"])


def test_variations_have_a_figure_per_method(toy, tmp_path):
    histograms = filled(toy, 300)
    assert not [name for name in dict(figures(histograms, "tt/2018")) if "variations" in name]
    for number in range(12):
        events, pair, true = toy(300, shrink=0.8 + 0.01 * number)
        for name in (f"jes{number}_up", f"jes{number}_down"):
            fill(
                histograms,
                dataset="tt/2018",
                method="network",
                events=events,
                pair=pair,
                truth=true,
                variation=name,
                metrics=False,
            )
    found = dict(figures(histograms, "tt/2018"))
    assert [name for name in found if "variations" in name] == ["variations_m_tt_network"]
    legend = found["variations_m_tt_network"].axes[0].get_legend()
    assert "2 smaller not drawn" in legend.get_title().get_text()
    assert "jes11" in [text.get_text() for text in legend.get_texts()]
    assert len(save_all(histograms, tmp_path, only="variations_*", formats=("png",))) == 1


@pytest.mark.parametrize("n", [0, 1])
def test_variations_of_few_events_draw_without_warnings(toy, tmp_path, n):
    edges = np.array([0.0, 1, 2])
    spectrum = Spectrum(np.array([n, 0.0]), np.array([n, 0.0]))
    figure = plot_variations(spectrum, {"a_up": spectrum}, edges, OBSERVABLES["m_tt"], method="a")
    assert ("no events" in texts(figure)) == (n == 0)
    save(figure, tmp_path / "figure")


def test_figures_say_when_there_is_nothing(toy):
    m_tt = OBSERVABLES["m_tt"]
    assert "no events" in texts(plot_metric({}, METRICS[0], m_tt))
    empty = plot_migration(np.zeros((5, 5)), np.arange(4.0), m_tt, method="a")
    assert "no events" in texts(empty)


def test_labels_say_what_they_are_told(toy):
    figure = plot_metric({}, METRICS[0], OBSERVABLES["m_tt"])
    assert "Simulation" in texts(figure)
    assert "Preliminary" not in texts(figure)
    figure = plot_metric(
        {}, METRICS[0], OBSERVABLES["m_tt"], label=Label("Private work", experiment="CMS", sqrt_s=13.6)
    )
    assert "CMS" in texts(figure)
    assert "Private work" in texts(figure)
    assert "(13.6 TeV)" in texts(figure)


@pytest.mark.parametrize("per", ["truth", "reco"])
def test_migration_says_how_it_is_normalised(per):
    counts = np.array([[0.0, 0, 0, 0], [0, 6, 2, 0], [0, 1, 3, 0], [0, 0, 0, 0]])
    figure = plot_migration(counts, np.array([0.0, 1, 2]), OBSERVABLES["y_top"], method="a", per=per)
    assert ("true bin" if per == "truth" else "reconstructed bin") in figure.axes[1].get_ylabel()
    assert ("75" if per == "truth" else "86") in texts(figure)


def test_errors_name_the_cause(toy, tmp_path):
    histograms = filled(toy, 30)
    (tmp_path / "file").touch()
    with pytest.raises(TopRecoError, match=r"output folder .*file.*cannot write there"):
        save_all(histograms, tmp_path / "file", observables=["m_tt"])
    with pytest.raises(ValueError, match=r"no observable 'm_lb'.*only m_tt, pt_top, y_top"):
        save_all(histograms, tmp_path, observables=["m_lb"])
    with pytest.raises(ValueError, match="'truth' or 'reco' expected, found 'row'"):
        plot_migration(np.zeros((3, 3)), np.arange(2.0), OBSERVABLES["m_tt"], method="a", per="row")
