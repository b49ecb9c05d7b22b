"""Filesets of coffea in all their forms."""

import gzip
import json

import pytest

from topreco.config import ConfigError, RunConfig, build_config, dump_config, load_config


def read(fileset, **content):
    return build_config(RunConfig, {"fileset": fileset, **content}, "test")


ABOUT = {"object_path": "/Events;1", "steps": [[0, 5], [7, 9]], "num_entries": 9, "uuid": "ab"}
FORMS = [
    ["a.root"],
    {"files": ["a.root"], "metadata": {"xsec": 1}},
    {"files": ["a.root"], "treename": "Events"},
    {"files": {"a.root": "Events"}, "metadata": None},
    {"files": {"a.root": None}},
    {"files": {"a.root": {"object_path": "Events", "steps": None}}, "form": "x"},
]


@pytest.mark.parametrize("value", FORMS)
def test_forms(value):
    config = read({"tt": value})
    assert (config.fileset, config.tree) == ({"tt": ("a.root",)}, "Events")


@pytest.mark.parametrize("suffix", ["json", "json.gz", "yaml"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"fileset.{suffix}"
    text = json.dumps({"tt": {"files": {"a.root": ABOUT}, "metadata": {}}}).encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    config = load_config(RunConfig, None, [f"fileset={path}"])
    assert (config.fileset, config.tree) == ({"tt": ("a.root",)}, "Events;1")
    assert config.details["tt"]["a.root"].steps == ((0, 5), (7, 9))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(RunConfig, again) == config
    path.write_bytes(b"[")
    with pytest.raises(ConfigError, match="not readable as"):
        read(str(path))


def with_steps(*steps):
    return {"tt": {"files": {"a.root": {"object_path": "Events", "steps": steps}}}}


@pytest.mark.parametrize(
    ("fileset", "message"),
    [
        ({"tt": {"files": {"a.root": "Events", "b.root": "Runs"}}}, "one tree for all.*Events, Runs"),
        ({"tt": {"a.root": "Events"}}, r"fileset\.tt: unknown key 'a\.root'"),
        ({"tt": {"metadata": {}}}, "key 'files' expected"),
        ({"tt": {"files": {"a.root": {"stepz": []}}}}, "unknown key 'stepz'"),
        (with_steps((0, 5), (4, 8)), "overlap"),
        (with_steps((5, 5)), "has no entries"),
        (with_steps((-1, 5)), "greater than or equal to 0"),
        (with_steps(), "steps: empty"),
        ("a.root", "a mapping or a file"),
    ],
)
def test_one_error(fileset, message):
    with pytest.raises(ConfigError, match=message):
        read(fileset)


def test_the_tree_is_given_once():
    with pytest.raises(ConfigError, match="one tree for all files expected, found Events, Other"):
        read({"tt": {"files": {"a.root": "Events"}}}, tree="Other")
