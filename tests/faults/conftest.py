"""The campaigns of scripts/faults, which these tests run in short."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "faults"
# They import each other.
sys.path.insert(0, str(SCRIPTS))


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Folder of inputs that several commands use."""
    return tmp_path_factory.mktemp("shared")
