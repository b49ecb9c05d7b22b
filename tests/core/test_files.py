"""Files appear whole or not at all."""

import errno
import hashlib
import json
import math
import os
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from topreco.core.errors import TopRecoError, needs_extra
from topreco.core.files import (
    check_outputs,
    complete_file,
    plain,
    sha256_of,
    to_json,
    writable_folder,
    write_csv,
    write_text,
)


def test_success_and_failure(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "first")
    assert (tmp_path / "new" / "a.txt").read_text() == "first"

    def fails():
        with complete_file(tmp_path / "new" / "a.txt") as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert (tmp_path / "new" / "a.txt").read_text() == "first"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TopRecoError, match=r"output folder .*file/below: cannot write there"):
        writable_folder(tmp_path / "file" / "below")
    with (
        pytest.raises(TopRecoError, match="is a folder, a file name expected"),
        complete_file(tmp_path),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_full_disk(tmp_path, number):
    """Whatever a library makes of it; and without an OSError behind it, which coffea may skip."""

    def fails():
        with complete_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError("unexpected position") from OSError(number, "as the system says")

    with pytest.raises(TopRecoError, match=r"a\.txt: cannot be written \((No space|File too)") as error:
        fails()
    assert error.value.__cause__ is None
    assert list(tmp_path.iterdir()) == []


def test_input_errors_are_not_those_of_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), complete_file(tmp_path / "a.txt"):
        (tmp_path / "absent").read_text()


def test_what_is_wrong_with_an_extra(tmp_path, monkeypatch):
    """A library that is missing, and one that is there but fails as when memory ends while it is mapped."""
    (tmp_path / "mapped.py").write_text("raise ImportError('failed to map segment from shared object')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as failed:
        import_module("mapped")
    assert needs_extra("sim", failed.value) == (
        "the extra 'sim' is installed but cannot be loaded; is there enough memory? "
        "(failed to map segment from shared object)"
    )
    with pytest.raises(ImportError) as missing:
        import_module("no_such_library")
    assert needs_extra("sim", missing.value) == "needs the extra: pip install 'topreco[sim]'"


class Numbers(NamedTuple):
    value: float
    path: Path


def test_plain_data_for_json():
    content = {"a": Numbers(math.nan, Path("x/y")), "b": (1, np.array([math.inf, 2.5])), "c": None, 4: "text"}
    assert plain(content) == {
        "a": {"value": None, "path": "x/y"},
        "b": [1, [None, 2.5]],
        "c": None,
        4: "text",
    }
    assert json.loads(to_json(content))["b"] == [1, [None, 2.5]]
    assert to_json({"µ": 1}).endswith('"µ": 1\n}\n')


@pytest.mark.parametrize(
    "content", [{}, [], {"a": [], "b": {}}, [[], [1, {"c": None, "d": [True, "x\n"]}]], {"k": {"v": 1.5}}, 3]
)
def test_json_is_indented_as_by_the_standard_library(content: object) -> None:
    assert to_json(content) == json.dumps(content, indent=1) + "\n"


def test_digest_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("there", [True, False])
def test_files_are_written_through_links(tmp_path, there):
    """The link stays; what it leads to changes, if it is there or not, on whatever disk."""
    data = tmp_path / "disk" / "data.txt"
    data.parent.mkdir()
    if there:
        data.write_text("old")
    link, second = tmp_path / "link.txt", tmp_path / "second.txt"
    link.symlink_to("disk/data.txt")
    second.symlink_to(link)
    write_text(second, "new")
    assert link.is_symlink()
    assert second.is_symlink()
    assert data.read_text() == "new"
    assert list(data.parent.iterdir()) == [data]


def test_only_regular_files_are_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "to-folder").symlink_to(tmp_path)
    for name, problem in {
        "pipe": "pipe: is not a regular file",
        "/dev/null": "/dev/null: is not a regular file",
        "null": "/dev/null: is not a regular file",
        "loop": "loop: cannot be written",
        "to-folder": "is a folder, a file name expected",
    }.items():
        with pytest.raises(TopRecoError, match=problem):
            write_text(tmp_path / name, "text")
        with pytest.raises(TopRecoError, match=problem):
            check_outputs([tmp_path / name], [])


def test_inputs_are_no_outputs(tmp_path, monkeypatch):
    """By identity: relative, through links of folders and files, as URL, as a second name."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "folder" / "a.root"
    data.parent.mkdir()
    data.write_text("")
    (tmp_path / "link.root").symlink_to(data)
    (tmp_path / "elsewhere").symlink_to("folder")
    os.link(data, tmp_path / "hard.root")
    same = (
        *("folder/a.root", "folder/../folder/./a.root", "link.root", "elsewhere/a.root", "hard.root"),
        str(data),
    )
    for one in (*same, f"file://{data}", f"file:{data}"):
        for other in same:
            with pytest.raises(TopRecoError, match=rf"root: would replace the input {one};"):
                check_outputs(["new.root", Path(other)], ["root://host//b.root", None, "absent.root", one])
    check_outputs(["new.root", "absent.root"], [data, "absent.root", "root://host//new.root", None])


def test_csv_has_the_columns_of_all_rows(tmp_path):
    path = tmp_path / "folder" / "table.csv"
    write_csv(path, [{"a": 1, "b": "x,y"}, {"c": 0.5, "a": 2}])
    assert path.read_bytes() == b'a,b,c\n1,"x,y",\n2,,0.5\n'
