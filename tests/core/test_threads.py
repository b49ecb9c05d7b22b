"""Numbers of threads and cores."""

import os

import pytest

from topreco.core.errors import TopRecoError
from topreco.core.threads import available_cores, checked_threads


def test_no_threads_is_an_error():
    assert checked_threads(2) == 2
    assert checked_threads(None) is None
    with pytest.raises(TopRecoError, match="threads: 0 found, 1 or more expected"):
        checked_threads(0)


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
