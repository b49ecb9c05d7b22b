"""What every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the sample files; without it the test is skipped."""
    folder = os.environ.get("TOPRECO_TEST_DATA")
    if not folder:
        pytest.skip("TOPRECO_TEST_DATA does not name the folder of sample files")
    return Path(folder)


@pytest.fixture(autouse=True)
def _reproducible_torch():
    """Seed torch in a forked generator, and keep it on one thread: the tests run in parallel."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield
