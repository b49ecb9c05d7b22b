"""How kernels are run, whatever they compute."""

import threading

import numpy as np
import pytest
import torch

from topreco.network.kernels.packed import compiled, run


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_share_and_sums_are_added_up():
    @compiled
    def kernel(start, stop, x, y, total):
        for i in range(start, stop):
            y[i] = 2 * x[i]
            total[0] += x[i]

    x = torch.arange(100.0)
    y, total = torch.zeros(100), torch.zeros(1)
    run(kernel, 100, x, y, sums=(total,))
    np.testing.assert_array_equal(y, 2 * x)
    assert total.item() == 4950
    assert len(kernel.signatures) == 1


@pytest.mark.usefixtures("two_threads")
def test_only_one_thread_compiles():
    """Numba now and then fails where two do."""

    class Kernel:
        def __init__(self):
            self.signatures = []
            self.calls = []

        def __call__(self, start, stop):
            self.calls.append((start, stop, bool(self.signatures), threading.get_ident()))
            self.signatures.append("compiled")

    kernel = Kernel()
    run(kernel, 100)
    (first, *shares) = kernel.calls
    assert first == (0, 0, False, threading.get_ident())
    assert sorted(share[:3] for share in shares) == [(0, 50, True), (50, 100, True)]
    run(kernel, 100)
    assert len(kernel.calls) == 5
