"""A method made of the samples of another one: chosen summary, and a prior of one's own."""

import dataclasses
from typing import get_args

import numpy as np

from topreco.config import Summary
from topreco.core.constants import M_TOP
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, Posterior, TopPair, mass_quality
from topreco.core.method import Sampler, as_sampler, fingerprint_of
from topreco.core.observables import OBSERVABLES
from topreco.core.posterior import (
    mean_tops,
    observable_mean,
    sample_mean,
    sample_mode,
    sample_quantiles,
    sample_values,
)
from topreco.core.prior import Prior

_CHUNK = 2000
"""Events at a time: 64 samples of every observable take 40 MB."""


class FromSamples:
    """A method whose answers are summaries of the samples of another one, under a prior if one is given.

    `TopPair.p4` are the on-shell tops with the weighted mean three-momenta, `observables` has the summary of
    every observable of the package, `quantiles` those of every one, `uncertainty` the standard deviation of
    the samples, and `quality` is that of m(tt̄). An event whose samples all have a weight of 0, as all lie
    outside of the prior, is not valid.

    Parameters
    ----------
    method
        Method that gives samples.
    summary
        Mean (`topreco.core.posterior.observable_mean`), median or half-sample mode of each observable.
    n_samples
        Samples of each event.
    prior
        Prior in place of that of the training; None leaves the weights as they are. Without spectra of the
        training it takes those of the method, its attribute `spectra`.
    name
        Name in histograms and tables; by default that of the method.

    Raises
    ------
    TopRecoError
        If the method gives no samples, a setting is not allowed, or the spectra of the training are unknown.
    """

    uses_event_key = True
    """Samples depend on the event's key, even where other predictions of the method do not."""

    def __init__(
        self,
        method: Sampler,
        *,
        summary: Summary = "mean",
        n_samples: int = 64,
        prior: Prior | None = None,
        name: str | None = None,
    ) -> None:
        as_sampler(method)
        if summary not in get_args(Summary):
            raise TopRecoError(f"summary: {summary!r}, one of {', '.join(get_args(Summary))} expected")
        if n_samples < 1:
            raise TopRecoError(f"n_samples: {n_samples}, at least 1 expected")
        if prior is not None and prior.training is None:
            spectra = getattr(method, "spectra", None)
            if spectra is None:
                raise TopRecoError(
                    f"prior {prior.name!r}: the spectra of the events that {method.name!r} was trained with "
                    "are unknown; give them by Prior.relative_to(sum_spectra(metadata of its skims))"
                )
            prior = prior.relative_to(spectra)
        self.method = method
        self.summary: Summary = summary
        self.n_samples = n_samples
        self.prior = prior
        self.name = method.name if name is None else name

    @property
    def fingerprint(self) -> str:
        """Digest of the method and of all settings."""
        prior = None if self.prior is None else self.prior.fingerprint
        return fingerprint_of("samples", self.method.fingerprint, self.summary, self.n_samples, prior)

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Samples of the method with the weights of the prior.

        Parameters
        ----------
        events
            Selected events.
        n_samples
            Samples of each event; None takes those of this object.
        """
        found = self.method.sample(events, self.n_samples if n_samples is None else n_samples)
        if self.prior is None:
            return found
        ratio = self.prior.log_ratio(found.samples)
        return dataclasses.replace(found, log_weight=found.log_weight + ratio)

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Summaries of the samples of each event."""
        starts = range(0, max(len(events), 1), _CHUNK)
        return TopPair.concatenate([self._summarised(events[start : start + _CHUNK]) for start in starts])

    def _summarised(self, events: DileptonEvents) -> TopPair:
        posterior = self.sample(events)
        weight = posterior.weight
        values = sample_values(posterior, events.lepton_p4, OBSERVABLES)
        quantiles = {name: sample_quantiles(column, weight) for name, column in values.items()}
        mean = sample_mean(posterior.samples, weight)
        deviation = posterior.samples - mean[:, None]
        return TopPair(
            p4=mean_tops(posterior, M_TOP),
            valid=posterior.valid,
            observables={name: self._summary(name, column, weight) for name, column in values.items()},
            quality=mass_quality(quantiles),
            uncertainty=np.sqrt(sample_mean(deviation**2, weight)),
            quantiles=quantiles,
        )

    def _summary(self, name: str, values: FloatArray, weight: FloatArray) -> FloatArray:
        match self.summary:
            case "mean":
                return observable_mean(name, values, weight)
            case "median":
                return sample_quantiles(values, weight, [0.5])[:, 0]
            case _:
                return sample_mode(values, weight)
