"""Tops of another tool: looked up by key, in any order; every fault of a file is one clear error."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.runs.columns import event_columns
from topreco.validation.joined import JoinedMethod


@pytest.fixture(scope="module")
def events():
    return toy_events(50, seed=3)


@pytest.fixture(scope="module")
def pair(events, leptons):
    return leptons(events)


def friend_tree(events, pair, **changes):
    columns = event_columns(events, {"leptons": pair}) | changes
    return pa.table({name: pa.array(v) for name, v in columns.items() if v is not None})


def plain_columns(events, pair):
    columns = {"run": events.run, "luminosityBlock": events.luminosity_block, "event": events.event}
    for i, leg in enumerate(("top", "antitop")):
        for name, values in fourvector.to_pt_eta_phi_mass(pair.p4[:, i]).items():
            columns[f"{leg}_{name}"] = values
    return columns


@pytest.mark.parametrize("kind", ["friend tree", "no prefix"])
def test_predictions_come_back(events, pair, tmp_path, kind):
    table = friend_tree(events, pair) if kind == "friend tree" else pa.table(plain_columns(events, pair))
    order = np.random.default_rng(1).permutation(len(events))[:40]
    pq.write_table(table.take(order), tmp_path / "other.parquet")
    found = JoinedMethod("leptons", tmp_path / "other.parquet")(events)
    there = np.isin(np.arange(len(events)), order)
    assert (found.valid == (pair.valid & there)).all()
    np.testing.assert_allclose(found.p4[found.valid], pair.p4[found.valid], rtol=1e-5, atol=1e-3)
    assert np.isnan(found.p4[~found.valid]).all()
    if kind == "friend tree":
        np.testing.assert_allclose(found.quality[found.valid], pair.quality[found.valid], rtol=1e-5)
        known = pair.quantiles["m_tt"][found.valid]
        np.testing.assert_allclose(found.quantiles["m_tt"][found.valid], known, rtol=1e-5)
    else:
        assert found.quality is None
        assert found.quantiles is None


def test_dataset_and_variation(events, pair, tmp_path):
    """Rows of other datasets and variations are not those of the event."""
    n = len(events)
    nominal = friend_tree(events, pair, dataset=["toy"] * n, variation=["nominal"] * n)
    other = friend_tree(
        events, pair, dataset=["other"] * n, variation=["nominal"] * n, leptons_valid=[False] * n
    )
    varied = friend_tree(
        events, pair, dataset=["toy"] * n, variation=["jesUp"] * n, leptons_valid=[False] * n
    )
    pq.write_table(pa.concat_tables([other, varied, nominal]), tmp_path / "all.parquet")
    method = JoinedMethod("leptons", tmp_path / "all.parquet")
    assert method.has_dataset
    assert (method(events).valid == pair.valid).all()


def test_a_joined_method_is_known_by_its_content(tmp_path, leptons):
    events = toy_events(20)
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet")]
    for path, n in zip(paths, (20, 20, 10), strict=True):
        pq.write_table(friend_tree(events[:n], leptons(events[:n])), path)
    first, same, other = (JoinedMethod("leptons", path).fingerprint for path in paths)
    assert first == same != other


def test_a_joined_file_that_is_written_again_is_read_again(tmp_path, leptons):
    events = toy_events(20)
    path = tmp_path / "a.parquet"
    for n in (20, 10):
        pq.write_table(friend_tree(events[:n], leptons(events[:n])), path)
        method = JoinedMethod("leptons", path)
        assert not method(events).valid[n:].any()
    assert method(events).valid[:10].any()


FAULTS = {
    "column": (lambda e, p: friend_tree(e, p, leptons_top_eta=None), "column 'leptons_top_eta'.* is missing"),
    "key": (lambda e, p: friend_tree(e, p, luminosityBlock=None), "column 'luminosityBlock' is missing"),
    "twice": (
        lambda e, p: pa.concat_tables([friend_tree(e, p)] * 2),
        "50 of 100 rows repeat the columns run, lumi",
    ),
    "text": (
        lambda e, p: friend_tree(e, p, leptons_top_pt=["x"] * len(e)),
        "column 'leptons_top_pt': string found",
    ),
    "empty key": (
        lambda e, p: friend_tree(e, p, run=[None] * len(e)),
        "column 'run' has 50 rows without a value",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(events, pair, tmp_path, fault):
    make, message = FAULTS[fault]
    pq.write_table(make(events, pair), tmp_path / "bad.parquet")
    with pytest.raises(TopRecoError, match=rf"bad\.parquet: {message}"):
        JoinedMethod("leptons", tmp_path / "bad.parquet")


def test_files_that_are_none(tmp_path):
    with pytest.raises(TopRecoError, match=r"absent\.parquet: no such file"):
        JoinedMethod("x", tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(TopRecoError, match=r"text\.parquet: not a readable Parquet file"):
        JoinedMethod("x", tmp_path / "text.parquet")
