"""Friend trees: the same rows in every format, and a chunk that is written twice is there once."""

import dataclasses

import awkward as ak
import numpy as np
import pyarrow.dataset
import pytest
import uproot

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS, Posterior, TopPair, toy_events
from topreco.core.files import folder_name
from topreco.core.observables import OBSERVABLES, pair_values
from topreco.runs.columns import ColumnWriter, event_columns


@pytest.fixture
def events():
    return toy_events(20)


@pytest.fixture
def pairs(events):
    rng = np.random.default_rng(5)
    p4 = fourvector.from_three_momentum(rng.normal(0, 100, (len(events), 2, 3)), 172.5)
    solved = np.arange(len(events)) % 3 > 0
    return {"good-one": TopPair(p4, np.ones(len(events), dtype=bool)), "some": TopPair(p4, solved)}


SOURCE = {"dataset": "tt", "filename": "root://host//store/nano.root", "entrystart": 100, "entrystop": 200}


def write(folder, events, pairs, file_format="parquet", **options):
    index = np.arange(len(events)) * 2
    return ColumnWriter(folder, file_format).write(
        SOURCE | options.pop("source", {}), index, events, pairs, **options
    )


def read(path):
    if path.suffix == ".parquet":
        return ak.from_parquet(path)
    return uproot.open(path)["Friends"].arrays()


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_every_column(tmp_path, events, pairs, file_format):
    entry = write(tmp_path, events, pairs, file_format)
    assert (entry["rows"], entry["entrystart"], entry["entrystop"]) == (20, 100, 200)
    table = read(tmp_path / entry["path"])
    assert table.entry.to_list() == list(range(100, 140, 2))
    assert table.event.to_list() == events.event.tolist()
    assert set(table.file) == {SOURCE["filename"]}
    assert set(table.dataset) == {"tt"}
    assert set(table.variation) == {"nominal"}
    assert table.channel.to_list() == [CHANNELS[i] for i in events.channel]
    leptons = np.stack([events.lepton_plus, events.lepton_minus], axis=1)
    for name, pair in pairs.items():
        prefix = name.replace("-", "_")
        np.testing.assert_array_equal(table[f"{prefix}_valid"], pair.valid)
        tops = np.where(pair.valid[:, None, None], pair.p4, np.nan)
        for i, leg in enumerate(("top", "antitop")):
            for coordinate in ("pt", "eta", "phi", "mass"):
                np.testing.assert_allclose(
                    table[f"{prefix}_{leg}_{coordinate}"],
                    getattr(fourvector, coordinate)(tops[:, i]),
                    rtol=1e-5,
                )
        for key, observable in OBSERVABLES.items():
            expected = np.where(pair.valid, observable.compute(tops, tops.sum(axis=1), leptons), np.nan)
            np.testing.assert_allclose(table[f"{prefix}_{key}"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_uncertainties(tmp_path, events, pairs, file_format):
    quantiles = np.sort(np.random.default_rng(6).uniform(300, 900, (len(events), 5)), axis=1)
    valid = np.arange(len(events)) != 3
    pair = dataclasses.replace(
        pairs["good-one"], valid=valid, quality=-quantiles[:, 2], quantiles={"m_tt": quantiles}
    )
    table = read(tmp_path / write(tmp_path, events, {"net": pair}, file_format)["path"])
    for i, label in enumerate(("q025", "q160", "q500", "q840", "q975")):
        expected = np.where(valid, quantiles[:, i], np.nan)
        np.testing.assert_allclose(table[f"net_m_tt_{label}"], expected, rtol=1e-6)
    np.testing.assert_allclose(table.net_quality, np.where(valid, -quantiles[:, 2], np.nan), rtol=1e-6)


@pytest.fixture
def posterior(events):
    rng = np.random.default_rng(8)
    samples = fourvector.from_three_momentum(rng.normal(0, 100, (len(events), 6, 2, 3)), 172.5)
    log_weight = rng.normal(size=(len(events), 6))
    samples[:, 2], log_weight[:, 2] = np.nan, -np.inf
    return Posterior(samples, log_weight)


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_samples(tmp_path, events, pairs, posterior, file_format):
    posteriors = {"some": posterior}
    entry = write(tmp_path, events, pairs, file_format, posteriors=posteriors)
    table = read(tmp_path / entry["path"])
    valid = pairs["some"].valid[:, None]
    for i, leg in enumerate(("top", "antitop")):
        for j, axis in enumerate(("px", "py", "pz")):
            column = table[f"some_samples_{leg}_{axis}"]
            assert str(column.type) == "20 * 6 * float32" or file_format == "parquet"
            expected = np.where(valid, posterior.samples[:, :, i, 1 + j], np.nan)
            np.testing.assert_array_equal(ak.to_numpy(column), expected.astype(np.float32))
    weight = ak.to_numpy(table.some_samples_weight)
    np.testing.assert_allclose(weight, np.where(valid, posterior.weight, np.nan), rtol=1e-6)
    assert not [name for name in table.fields if name.startswith("good_one_samples")]
    # All else is as without samples.
    plain = read(tmp_path / write(tmp_path, events, pairs, file_format, source={"dataset": "x"})["path"])
    for name in plain.fields:
        if name != "dataset" and table[name].to_list() != plain[name].to_list():
            np.testing.assert_array_equal(table[name].to_numpy(), plain[name].to_numpy())
    none = {name: pair[:0] for name, pair in pairs.items()}
    empty = write(
        tmp_path,
        events[:0],
        none,
        file_format,
        posteriors={"some": posterior[:0]},
        source={"entrystart": 200, "entrystop": 300},
    )
    rows = read(tmp_path / empty["path"])
    assert len(rows) == 0
    assert "6 *" in str(rows.some_samples_weight.type)


def test_observables_of_the_samples_from_columns(tmp_path, events, pairs, posterior):
    """As the documentation reads them."""
    entry = write(tmp_path, events, pairs, posteriors={"some": posterior})
    rows = read(tmp_path / entry["path"])

    def momentum(leg):
        xyz = [ak.to_numpy(rows[f"some_samples_{leg}_{axis}"]) for axis in ("px", "py", "pz")]
        return fourvector.from_three_momentum(np.stack(xyz, axis=-1), 172.5)

    m_tt = fourvector.mass(momentum("top") + momentum("antitop"))
    expected = fourvector.mass(posterior.samples.sum(axis=2))
    valid = pairs["some"].valid
    np.testing.assert_allclose(m_tt[valid], expected[valid], rtol=1e-5)


def test_values_of_the_method(events, pairs):
    own = {"c_hel": np.full(len(events), 0.5)}
    columns = event_columns(events, {"x": dataclasses.replace(pairs["some"], observables=own)})
    expected = pair_values(pairs["some"], events.lepton_p4, ["m_tt"])["m_tt"]
    np.testing.assert_allclose(columns["x_m_tt"], expected, rtol=1e-6)
    np.testing.assert_array_equal(columns["x_c_hel"], np.where(pairs["some"].valid, 0.5, np.nan))


def test_formats_agree(tmp_path, events, pairs):
    one, two = (read(tmp_path / write(tmp_path, events, pairs, form)["path"]) for form in ("parquet", "root"))
    assert one.fields == two.fields
    for name in one.fields:
        if one[name].to_list() != two[name].to_list():
            np.testing.assert_array_equal(one[name].to_numpy(), two[name].to_numpy(), err_msg=name)


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_no_selected_events(tmp_path, events, pairs, file_format):
    write(tmp_path, events, pairs, file_format)
    none = {name: pair[:0] for name, pair in pairs.items()}
    entry = write(tmp_path, events[:0], none, file_format, source={"entrystart": 200, "entrystop": 300})
    assert entry["rows"] == 0
    assert len(read(tmp_path / entry["path"])) == 0
    if file_format == "parquet":
        assert pyarrow.dataset.dataset(tmp_path / "tt" / "nominal").to_table().num_rows == 20
    else:
        assert len(uproot.concatenate(f"{tmp_path}/tt/nominal/*.root:Friends")) == 20


def test_a_chunk_written_twice_is_there_once(tmp_path, events, pairs):
    first = write(tmp_path, events, pairs)
    assert write(tmp_path, events, pairs) == first
    others = [
        write(tmp_path, events, pairs, source=change)
        for change in ({"entrystart": 101}, {"filename": "other/nano.root"}, {"dataset": "dy"})
    ]
    variation = write(tmp_path, events, pairs, variation="jes_up")
    assert set(read(tmp_path / variation["path"]).variation) == {"jes_up"}
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {first["path"], variation["path"], *(entry["path"] for entry in others)}
    assert len(files) == 5


def test_methods_that_would_share_columns(events, pairs):
    with pytest.raises(TopRecoError, match="two methods would both be called 'good_one'"):
        event_columns(events, {"good-one": pairs["some"], "good_one": pairs["some"]})


def test_what_is_not_valid_is_not_kept(events, pairs):
    pair = dataclasses.replace(pairs["some"], ttbar=pairs["some"].p4.sum(axis=1))
    columns = event_columns(events, {"x": pair})
    for name in ("x_top_pt", "x_m_tt", "x_c_hel"):
        np.testing.assert_array_equal(np.isfinite(columns[name]), pair.valid)


def test_a_full_disk_is_no_bad_input_file(tmp_path, events, pairs, monkeypatch):
    """coffea takes an OSError in the chain of causes for a bad file."""
    import pyarrow.parquet

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(
        TopRecoError, match=r"parquet: cannot be written \(No space left on device\)"
    ) as error:
        write(tmp_path, events, pairs)
    assert error.value.__cause__ is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "name", ["/TTTo2L2Nu/RunII-v1/NANOAODSIM", "..", "a b", "", "/TTTo2L2Nu_RunII-v1/NANOAODSIM"]
)
def test_names_of_datasets_become_one_folder(tmp_path, name):
    (tmp_path / folder_name(name)).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [folder_name(name)]
    assert folder_name(name) != folder_name(name + "_")
    assert folder_name("TTTo2L2Nu") == "TTTo2L2Nu"
