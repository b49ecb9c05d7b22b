"""The command as a user runs it: page and JSON, independent of workers, whole or not at all."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from topreco.cli import app
from topreco.config import SolverConfig, ValidationConfig
from topreco.core.errors import TopRecoError
from topreco.core.observables import OBSERVABLES
from topreco.core.skim import read_skims
from topreco.evaluation.report import format_estimate
from topreco.runs.columns import event_columns
from topreco.validation.gather import OBSERVED
from topreco.validation.page import Table
from topreco.validation.pdf import table_lines
from topreco.validation.validate import parse_joined, parse_masses, validate

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
METHODS = ["sonnenschein_unsmeared", "ellipse_unsmeared"]


@pytest.fixture(scope="module")
def report(skims, leptons, write_skim, tmp_path_factory):
    """Folder of a report with everything that it can hold."""
    folder = tmp_path_factory.mktemp("report")
    scan = {m: [write_skim(folder / f"{m}.parquet", 200, 7, m_top=m)] for m in (165.0, 180.0)}
    background = write_skim(folder / "dy.parquet", 100, 9, with_truth=False)
    validate(
        skims,
        folder / "out",
        methods=[leptons, "sonnenschein_unsmeared"],
        background=[background],
        mass_scan=scan,
        command="topreco validate <this> & that",
        pdf=True,
        formats=["png"],
        progress=False,
    )
    return folder / "out"


@pytest.fixture(scope="module")
def results(report):
    return json.loads((report / "results.json").read_text())


@pytest.fixture(scope="module")
def page(report):
    return (report / "index.html").read_text(encoding="utf-8")


def test_every_part_is_there(results):
    assert results["metadata"]["n_events"] == 750
    assert [skim["n_events"] for skim in results["metadata"]["skims"]] == [450, 300]
    assert set(results["response"]) == set(OBSERVABLES)
    assert results["metadata"]["shown"] == list(OBSERVED)
    assert set(results["response"]["m_tt"]) == {"leptons", "sonnenschein_unsmeared"}
    assert set(results["uncertainty"]["m_tt"]) == {"leptons"}
    assert results["quality"]["sonnenschein_unsmeared"] == {}
    assert results["symmetries"]["leptons"]["rotation"]["verdict"] == "exact"
    assert results["background"]["leptons"]["n"] == 100
    assert len(results["background"]["leptons"]["cuts"]) == 4
    assert [p["m_top"] for p in results["mass_scan"]["m_tt"]["leptons"]["points"]] == [165, 180]
    assert results["methods"]["leptons"] == {"kind": "analytic"}
    assert set(results["speed"]) == {"leptons", "sonnenschein_unsmeared"}


def test_page_needs_nothing_else(page):
    assert "<script" not in page
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "url(" not in page
    assert len(page) < 10_000_000
    assert '<meta name="viewport"' in page


def test_page_is_well_formed(page):
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert {"summary", "complementarity", "background", "mass-scan", "provenance"} <= set(anchors)
    assert sorted(anchors) == sorted(re.findall(r'<section id="([^"]+)"', page))
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) > 30
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert "topreco validate &lt;this&gt; &amp; that" in page
    assert not re.search(r"\bnan\b", re.sub(r"data:[^\"]*", "", page))


def test_the_page_says_who_is_right_where_another_fails(page, results):
    found = results["complementarity"]["m_tt"]
    section = page[page.index('<section id="complementarity">') :].partition("</section>")[0]
    text = re.sub(r"(\s*<[^>]+>\s*)+", " ", section)
    for i, method in enumerate(("leptons", "sonnenschein_unsmeared")):
        right, error = (found["right"][key][i] for key in ("value", "error"))
        rescued = format_estimate(*(found["rescued"][key][i][1 - i] for key in ("value", "error")))
        assert re.search(rf"{method} {re.escape(format_estimate(right, error))} .*{re.escape(rescued)}", text)
    assert section.count("<table>") == len(results["metadata"]["shown"])
    assert f"up to {found['tolerance']:.3g}, where" in text


@pytest.mark.usefixtures("no_page")
def test_workers_change_nothing_but_the_speed(skims, tmp_path):
    found = []
    for workers in (1, 2):
        validate(skims, tmp_path / str(workers), methods=METHODS, workers=workers, progress=False)
        content = json.loads((tmp_path / str(workers) / "results.json").read_text())
        del content["speed"]
        found.append(content)
    assert found[0] == found[1]


@pytest.mark.usefixtures("no_page")
@pytest.mark.usefixtures("no_page")
def test_summaries(write_skim, tmp_path):
    """The median in place of the mean, and metrics that belong to it."""
    skim = write_skim(tmp_path / "one.parquet", 300, 1)
    found = {}
    for summary in ("mean", "median", "mode"):
        config = ValidationConfig(summary=summary, solvers=SolverConfig(n_draws=10))
        folder = tmp_path / summary
        validate([skim], folder, methods=["sonnenschein", "loose"], config=config, progress=False)
        found[summary] = json.loads((folder / "results.json").read_text())
        assert found[summary]["metadata"]["config"]["summary"] == summary
    metrics = {name: of["response"]["m_tt"] for name, of in found.items()}
    assert len({json.dumps(of["sonnenschein"]) for of in metrics.values()}) == 3
    assert metrics["mean"]["loose"] == metrics["median"]["loose"] == metrics["mode"]["loose"]
    assert found["median"]["methods"]["sonnenschein"] == {"kind": "analytic"}


def test_command(skims, tmp_path):
    arguments = [
        *("validate", *map(str, skims), "--methods", "ellipse_unsmeared", "-o", str(tmp_path / "out")),
        *("--workers", "1", "--quiet", "histograms.bins={m_tt: [300, 500, 900]}"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == f"page: {tmp_path / 'out' / 'index.html'}"
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    bins = content["response"]["m_tt"]["ellipse_unsmeared"]["truth_bins"]
    assert [b["low"] for b in bins] == [None, 300, 500, 900]


@pytest.fixture
def write_joined(skims, leptons, tmp_path):
    """Write the predictions of `leptons` as a file to join, with changes of the events' key."""

    def write(name, **key):
        events, _ = read_skims(skims)
        for column, value in key.items():
            getattr(events, column)[:] = value
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(event_columns(events, {name: leptons(events)})), path)
        return {name: path}

    return write


@pytest.mark.usefixtures("no_page")
def test_joined_method(skims, leptons, write_joined, tmp_path):
    """Tops that went through a file are validated as if they had been made here."""
    validate(skims, tmp_path / "out", methods=[leptons], joined=write_joined("other"), progress=False)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    ours, theirs = (content["response"]["m_tt"][name]["inclusive"] for name in ("leptons", "other"))
    assert theirs["n"] == ours["n"]
    assert theirs["rb"] == pytest.approx(ours["rb"], abs=1e-5)
    assert "other" not in content["symmetries"]


def test_a_file_of_other_events(skims, write_joined, tmp_path):
    joined = write_joined("x", run=5)
    with pytest.raises(TopRecoError, match=r"x\.parquet: has none of the 750 events of the skims"):
        validate(skims, tmp_path / "o", methods=["ellipse_unsmeared"], joined=joined, progress=False)
    assert list((tmp_path / "o").glob("*")) == []


def _no_truth(skims, tmp_path, write_skim):
    return {"skims": [write_skim(tmp_path / "data.parquet", 20, 1, with_truth=False)]}


def _no_events(skims, tmp_path, _):
    path = tmp_path / "empty.parquet"
    schema = pq.read_metadata(skims[0]).metadata
    pq.write_table(pq.read_table(skims[0]).slice(0, 0).replace_schema_metadata(schema), path)
    return {"skims": [path]}


BAD = {
    "no events": (_no_events, r"empty\.parquet: no events in this skim"),
    "no truth": (_no_truth, r"data\.parquet: no truth in this skim"),
    "no skim": (lambda *_: {"skims": []}, "no skims; Parquet files"),
    "twice": (lambda skims, *_: {"skims": [skims[0]] * 2}, r"a\.parquet: given twice"),
    "missing": (lambda *_: {"skims": ["absent.parquet"]}, r"absent\.parquet: no such file"),
    "method": (lambda *_: {"methods": ["sonenschein"]}, "'sonenschein'"),
    "same name": (
        lambda *_: {"methods": ["ellipse_unsmeared", "ellipse_unsmeared"]},
        "every method needs a name of its own",
    ),
    "workers": (lambda *_: {"workers": 0}, "workers: at least 1 expected, found 0"),
    "one mass": (lambda skims, *_: {"mass_scan": {170.0: skims}}, "at least two masses expected, found one"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_writes_nothing(skims, write_skim, tmp_path, fault):
    make, message = BAD[fault]
    arguments = {"skims": skims, "methods": ["ellipse_unsmeared"]} | make(skims, tmp_path, write_skim)
    with pytest.raises(TopRecoError, match=message):
        validate(output=tmp_path / "out", progress=False, **arguments)
    assert list((tmp_path / "out").glob("*")) == []


def test_output_that_cannot_be_written(skims, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TopRecoError, match="cannot write there"):
        validate(skims, tmp_path / "file" / "out", methods=["ellipse_unsmeared"], progress=False)


@pytest.mark.parametrize("text", ["x", "=x.parquet", "x="])
def test_join_needs_name_and_file(text):
    with pytest.raises(TopRecoError, match="NAME=FILE expected"):
        parse_joined([text])


@pytest.mark.parametrize("text", ["x.parquet", "heavy=x.parquet", "-1=x.parquet", "170="])
def test_mass_scan_needs_mass_and_skim(text):
    with pytest.raises(TopRecoError, match="MASS=SKIM expected"):
        parse_masses([text])


def test_a_mass_may_have_several_skims():
    assert parse_masses(["170=a", "175=b", "170=c"]) == {170.0: [Path("a"), Path("c")], 175.0: [Path("b")]}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f"no browser; looked for {', '.join(BROWSERS)}")
def test_browser_renders_every_figure(page, tmp_path):
    """In a copy with a script that counts images, which the page itself does not have."""
    script = (
        "<script>onload = () => { const all = [...document.images]; document.body.dataset.images ="
        " `${all.filter(i => i.complete && i.naturalWidth > 0).length} of ${all.length}`; "
        "document.body.dataset.overflow = document.documentElement.scrollWidth > innerWidth }</script>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", script + "</body>"), encoding="utf-8")
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=500,2000"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"),
        *("--virtual-time-budget=20000", "--dump-dom", (tmp_path / "page.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    count, total = re.search(r'data-images="(\d+) of (\d+)"', done.stdout).groups()
    assert count == total
    assert int(total) > 30
    assert 'data-overflow="false"' in done.stdout
    assert "CONSOLE" not in done.stderr


def test_figures_as_files(report, page):
    files = sorted((report / "figures").iterdir())
    assert len(files) == page.count("<figure>") > 20
    assert {file.suffix for file in files} == {".png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert "m_tt_bias_in_bins_of_the_truth_m_tt.png" in {file.name for file in files}


def test_pdf(report, page):
    """Every section has a page, every figure one of its own; the text is that of the page."""
    content = (report / "index.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    n_pages = len(re.findall(rb"/Type /Page\b", content))
    assert n_pages >= page.count("<figure>") + page.count("<section") - 1


def test_unknown_format_of_figures(skims, leptons, tmp_path):
    with pytest.raises(TopRecoError, match=r"unknown format 'abc' of a figure; allowed: "):
        validate(skims, tmp_path / "out", methods=[leptons], formats=["abc"], progress=False)
    assert not (tmp_path / "out").exists()


def test_tables_in_characters_of_one_width():
    found = table_lines(Table(["method", "RB m(tt̄)"], [["a", "1(2)"], ["longer", "–0.5"]], "All events"))
    assert found == [
        "All events",
        "method  RB m(tt̄)",
        "-" * 16,
        "a" + "1(2)".rjust(15),
        "longer" + "–0.5".rjust(10),
    ]
    text = table_lines(Table(["", "why"], [["b", "word " * 20]], text=True))
    assert len(text) == 5
    assert max(map(len, text)) <= 1 + 2 + 48
