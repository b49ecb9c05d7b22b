"""Ratios of weighted events from reconstructed objects, as step 1 of OmniFold learns them again and again.

Unlike `topreco.network.train_ratio` nothing is kept on disk, an event may have weights in both samples, and
the ratio is that of the sums of weights too. The networks are those of the task `ratio`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from topreco.config.omnifold import ObjectRatioConfig
from topreco.core.events import DileptonEvents, FloatArray, IntArray
from topreco.network.fit.loop import evaluation
from topreco.network.fit.optimisers import build_optimisers, learning_rate
from topreco.network.task import Columns, TrainingError
from topreco.network.tasks.ratio import EventNetwork, RatioTask, event_columns

_EVALUATION_BATCH = 1024
_PREPARATION_EVENTS = 20_000


class ObjectRatio:
    """Learns log-ratios of weighted events; a `topreco.measurement.omnifold.FitRatio`.

    Parameters
    ----------
    config
        Networks and their training.
    events
        All events that will be asked for, in the order of their numbers.

    Raises
    ------
    TopRecoError
        If the events lack something that the networks see.
    """

    def __init__(self, config: ObjectRatioConfig, events: DileptonEvents) -> None:
        self.config = config
        self.columns: Columns = event_columns(config.model, events, None)

    def __call__(
        self, rows: IntArray, a: FloatArray, b: FloatArray, seed: Sequence[int]
    ) -> Callable[[IntArray], FloatArray]:
        """Train a network.

        Parameters
        ----------
        rows
            Numbers of the events to learn from, shape (n,).
        a, b
            Their weights ≥ 0 in the numerator and in the denominator, shape (n,), with positive sums.
        seed
            Numbers that seed initial weights and order.

        Returns
        -------
        log_ratio
            Function that gives log ⟨a⟩/⟨b⟩ of events by their numbers, shape (n,).

        Raises
        ------
        TrainingError
            If the loss becomes non-finite.
        """
        config = self.config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        index = torch.from_numpy(np.asarray(rows, np.int64))
        # Half of the loss from each sample, whatever its sum of weights.
        share = [torch.from_numpy(w * (len(rows) / 2 / w.sum())).float() for w in (a, b)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]))
            network = RatioTask(config.model, {"a": 1.0, "b": 1.0}).build()
            stride = math.ceil(len(index) / _PREPARATION_EVENTS)
            network.fit_standardisation(self._take(index[::stride]))
            self._train(network, index, *share)
        offset = math.log(a.sum() / b.sum())

        def log_ratio(wanted: IntArray) -> FloatArray:
            found = np.empty(len(wanted))
            own = torch.from_numpy(np.asarray(wanted, np.int64))
            with torch.no_grad(), evaluation(network):
                for start in range(0, len(own), _EVALUATION_BATCH):
                    part = slice(start, start + _EVALUATION_BATCH)
                    found[part] = network(self._take(own[part]))[:, 0].double().numpy()
            return found + offset

        return log_ratio

    def _take(self, index: torch.Tensor) -> Columns:
        return {name: column[index] for name, column in self.columns.items()}

    def _train(self, network: EventNetwork, index: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        """Minimise cross-entropy, a softplus(−f) + b softplus(f)."""
        fit = self.config.fit
        optimisers = build_optimisers(fit.optimiser, network)
        batch = min(fit.batch_size, len(index))
        steps = len(index) // batch
        network.train()
        for epoch in range(fit.epochs):
            order = torch.randperm(len(index))
            for number in range(steps):
                chosen = order[number * batch : (number + 1) * batch]
                f = network(self._take(index[chosen]))[:, 0]
                loss = (a[chosen] * functional.softplus(-f) + b[chosen] * functional.softplus(f)).mean()
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"omnifold: loss of step 1 is {float(loss)} (epoch {epoch}); a smaller "
                        "objects.learning_rate may help"
                    )
                rate = learning_rate(epoch * steps + number, fit.epochs * steps, fit.optimiser)
                network.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), fit.optimiser.clip_norm or math.inf)
                for optimiser in optimisers:
                    for group in optimiser.param_groups:
                        group["lr"] = rate
                    optimiser.step()
        network.eval()
