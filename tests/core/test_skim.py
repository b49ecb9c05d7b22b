"""Skims: what is written is read, broken files are refused, failures leave nothing."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topreco.core.events import Truth, toy_events
from topreco.core.skim import Skim, SkimError, SkimWriter, read_skims


def toy_truth(n):
    p4 = np.random.default_rng(n).normal(size=(n, 2, 4))
    return Truth(p4, p4, p4, p4, p4, p4[..., 0] > 0, p4[:, 0, 0] > 0, np.zeros(n, dtype=np.int8))


def write(path, events, truth=None, **metadata):
    with SkimWriter(path, row_group_size=40) as writer:
        for start in range(0, len(events), 15):
            part = slice(start, start + 15)
            writer.write(events[part], None if truth is None else truth[part])
        writer.metadata.update(metadata)
    return path


@pytest.mark.parametrize("with_truth", [False, True])
def test_round_trip(tmp_path, with_truth):
    events, truth = toy_events(100), toy_truth(100)
    skim = Skim(write(tmp_path / "a.parquet", events, truth if with_truth else None, note="hello"))
    assert len(skim) == 100
    assert skim.n_row_groups > 1
    assert skim.metadata["note"] == "hello"
    assert skim.has_truth is with_truth
    for part_events, part_truth in [skim.read(), tuple(map(_join, zip(*skim.row_groups(), strict=True)))]:
        for original, read in [(events, part_events), (truth, part_truth)]:
            if read is None:
                assert not with_truth
                continue
            for field in dataclasses.fields(original):
                if getattr(original, field.name) is None:
                    assert getattr(read, field.name) is None
                    continue
                value, again = getattr(original, field.name), getattr(read, field.name)
                assert value.shape == again.shape
                np.testing.assert_allclose(again, value, rtol=1e-6)
    assert skim.read()[0].event.dtype == np.uint64


def _join(parts):
    return None if parts[0] is None else type(parts[0]).concatenate(parts)


def test_empty_skim(tmp_path):
    with SkimWriter(tmp_path / "a.parquet") as writer:
        writer.write(toy_events(0), toy_truth(0))
    events, truth = Skim(tmp_path / "a.parquet").read()
    assert len(events) == len(truth) == 0
    assert events.jets.shape == (0, 12, 4)


def test_several_skims(tmp_path):
    a = write(tmp_path / "a.parquet", toy_events(10), toy_truth(10))
    b = write(tmp_path / "b.parquet", toy_events(5))
    events, truth = read_skims([a, a])
    assert len(events) == len(truth) == 20
    assert read_skims([a, b])[1] is None


def test_failure_leaves_nothing(tmp_path):
    def interrupted():
        with SkimWriter(tmp_path / "out" / "a.parquet", row_group_size=5) as writer:
            writer.write(toy_events(10), None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "out").iterdir()) == []


def test_mixing_with_and_without_truth_is_refused(tmp_path):
    def mixed():
        with SkimWriter(tmp_path / "a.parquet") as writer:
            writer.write(toy_events(10), None)
            writer.write(toy_events(10), toy_truth(10))

    with pytest.raises(ValueError, match="all have truth or none"):
        mixed()
    assert list(tmp_path.iterdir()) == []


def test_broken_files_are_one_clear_error(tmp_path):
    good = write(tmp_path / "good.parquet", toy_events(100))
    with pytest.raises(SkimError, match="no such file"):
        Skim(tmp_path / "absent.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("hello")
    with pytest.raises(SkimError, match="not a readable Parquet file"):
        Skim(text)
    half = tmp_path / "half.parquet"
    half.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(SkimError, match="not a readable Parquet file"):
        Skim(half)
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(SkimError, match="not a topreco skim"):
        Skim(foreign)
    damaged = tmp_path / "damaged.parquet"
    content = bytearray(good.read_bytes())
    content[100:3000] = bytes(2900)
    damaged.write_bytes(content)
    with pytest.raises(SkimError, match="damaged skim"):
        Skim(damaged).read()


def test_missing_column_is_named(tmp_path):
    good = write(tmp_path / "good.parquet", toy_events(10))
    table = pq.read_table(good).drop_columns("events.met")
    table = table.replace_schema_metadata(pq.ParquetFile(good).metadata.metadata)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(SkimError, match=r"column 'events.met' is missing"):
        Skim(tmp_path / "bad.parquet")


def test_no_flipped_bit_gives_other_events(tmp_path):
    path = write(tmp_path / "a.parquet", toy_events(60), toy_truth(60))
    content, expected = path.read_bytes(), Skim(path).read()[0]
    # Most of a footer, and some of each page.
    places = [*range(len(content) - 3000, len(content), 7), *range(0, len(content) - 3000, 97)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            found = Skim(path).read()[0]
        except SkimError as error:
            assert "\n" not in str(error)  # noqa: PT017 - not every flip need raise
            continue
        for field in dataclasses.fields(found):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


def test_changed_metadata_are_noticed(tmp_path):
    good = write(tmp_path / "good.parquet", toy_events(10), datasets={"tt": 7})
    assert "sha256" not in Skim(good).metadata
    content = good.read_bytes()
    assert content.count(b'{"tt": 7}') == 1
    good.write_bytes(content.replace(b'{"tt": 7}', b'{"tt": 8}'))
    with pytest.raises(SkimError, match=r"damaged skim \(metadata and checksum differ\)"):
        Skim(good)


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("weight", ["x"] * 10, "'events.weight' holds string"),
        ("event", [None, *range(9)], "'events.event' holds int64 with 1 nulls"),
        ("run", [1.0] * 10, "'events.run' holds double"),
        ("b_candidates", np.full((10, 2), 12), "'events.b_candidates' beyond the 12 jets"),
    ],
)
def test_columns_of_other_things(tmp_path, name, values, match):
    good = write(tmp_path / "good.parquet", toy_events(10))
    table = pq.read_table(good)
    column = pa.FixedSizeListArray.from_arrays(values.reshape(-1), 2) if name == "b_candidates" else values
    table = table.set_column(table.column_names.index(f"events.{name}"), f"events.{name}", [column])
    table = table.replace_schema_metadata(pq.ParquetFile(good).metadata.metadata)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(SkimError, match=rf"damaged skim \({match}"):
        Skim(tmp_path / "bad.parquet").read()


@pytest.mark.parametrize("text", ["[1]", "[" * 5000])
def test_metadata_of_another_kind(tmp_path, text):
    table = pa.table({"x": [1]}).replace_schema_metadata({"topreco": text})
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(SkimError, match="metadata entry 'topreco' is no"):
        Skim(tmp_path / "bad.parquet")
