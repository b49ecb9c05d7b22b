"""Methods in a process that was forked from one whose threads have computed: they answer, and the same."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# The child may take ten times as long as its parent, and a minute at least: the machine may be busy.
CALLS = """
import multiprocessing, sys, time
import numpy as np
import torch
import topreco
from topreco.core.events import toy_events

def call(method, threads_of_child):
    if threads_of_child:
        torch.set_num_threads(threads_of_child)
    return method(toy_events(400)).p4

def outside(_method, _threads):
    ones = torch.ones(500, 500)
    return torch.linspace(0, 1, 1_000_000).exp().sum().item() + ones.mm(ones).sum().item()

def train(method, _threads):
    from topreco.config import TrainConfig
    from topreco.network.train import launch
    launch(TrainConfig(threads=2, accelerator="cpu"), False)
    return outside(None, None)

what = {"call": call, "outside": outside, "train": train}[sys.argv[1]]
method = topreco.load(sys.argv[2], threads=int(sys.argv[3]) or None)
torch.set_num_threads(2)
method(toy_events(400))
start = time.perf_counter()
expected = what(method, 0)
torch.set_num_threads(2)
outside(None, None)
quiet = time.perf_counter() - start
with multiprocessing.get_context("fork").Pool(1) as pool:
    found = pool.apply_async(what, (method, int(sys.argv[4]))).get(max(60, 10 * quiet))
np.testing.assert_allclose(found, expected, rtol=1e-4)
"""


def python(*arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "-c", CALLS, *map(str, arguments)],
        env=environment,
        check=True,
        timeout=600,
    )


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.parametrize(
    ("what", "source", "threads", "of_child"),
    [
        ("call", "dilepton", 2, 0),
        ("call", "MODEL", 0, 2),  # the child asks torch for more threads than it has
        ("outside", "MODEL", 2, 0),
        ("train", "MODEL", 2, 0),
        ("call", "ellipse", 2, 0),
    ],
)
def test_a_fork_does_not_wait_for_the_threads_of_its_parent(toy_model, what, source, threads, of_child):
    python(what, toy_model if source == "MODEL" else source, threads, of_child)
