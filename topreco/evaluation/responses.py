"""Booking and filling of response matrices, with what is not in them: fakes, and unsolved events.

All histograms merge exactly by addition, and hold sums of weights and of their squares. By key:

============================  ==============================================================================
response/OBSERVABLE           truth, reco: events of the phase space that a method reconstructs
measured/OBSERVABLE           reco: all events that a method reconstructs, in data too
fakes/OBSERVABLE              reco: those of them that are not of the phase space, of simulation only
not_reconstructed/OBSERVABLE  truth: selected events of the phase space that a method does not solve
generated/OBSERVABLE          truth: all events of the phase space, whether selected or not
============================  ==============================================================================

They start with the axes dataset, method and variation, which grow, and channel; ``generated`` has no method
and no channel, and only the variations of the generator. Every axis of an observable has under- and
overflow. A pair of observables, such as ``m_tt_x_c_hel``, has its bins one after the other, and what is
outside of the range of one of them in the overflow. But for rounding, measured is the sum over truth of
response, plus fakes.
"""

from collections.abc import Iterable, Mapping

import hist
import numpy as np

from topreco.config import NOMINAL, PhaseSpaceConfig, UnfoldingConfig
from topreco.core import fourvector
from topreco.core.events import BoolArray, DileptonEvents, TopPair, Truth
from topreco.core.statistics import Array, check_weights
from topreco.evaluation.fill import Filler, predicted_values, true_values
from topreco.evaluation.histograms import DEFAULT_BINS, category_axes, fine_edges, reco_axis, truth_axis
from topreco.evaluation.pairs import coordinate, members, unrolled_of


def book_responses(config: UnfoldingConfig) -> dict[str, hist.Hist]:
    """Empty response matrices of the configured observables.

    Parameters
    ----------
    config
        Observables and pairs of them, and their bins.
    """
    histograms = {}
    axes_of = {}
    for name, bins in config.observables.items():
        edges = fine_edges(np.asarray(DEFAULT_BINS[name], float)) if bins.truth is None else bins.truth
        axes_of[name] = truth_axis(name, edges), reco_axis(name, edges if bins.reco is None else bins.reco)
    for pair in config.pairs:
        both = pair.truth, pair.truth if pair.reco is None else pair.reco
        unrolled = [tuple((name, tuple(edges)) for name, edges in bins.items()) for bins in both]
        axes_of[pair.name] = truth_axis(pair.name, (), unrolled[0]), reco_axis(pair.name, (), unrolled[1])
    for name, (truth, reco) in axes_of.items():
        common = category_axes()
        dataset, _, variation, _ = common
        axes = {
            "response": (*common, truth, reco),
            "measured": (*common, reco),
            "fakes": (*common, reco),
            "not_reconstructed": (*common, truth),
            "generated": (dataset, variation, truth),
        }
        for kind, of_kind in axes.items():
            histograms[f"{kind}/{name}"] = hist.Hist(*of_kind, storage=hist.storage.Weight())
    return histograms


def in_phase_space(truth: Truth, config: PhaseSpaceConfig) -> BoolArray:
    """Mask of the generated events in the phase space that is unfolded to, shape (n,).

    Parameters
    ----------
    truth
        Generated events, n of them; without two tops they belong to none.
    config
        Decay and cuts on the partons.
    """
    inside = truth.valid
    if config.level == "particle":
        return inside  # decided by `topreco.input.particle`
    if config.decay != "any":
        inside &= truth.dileptonic
    if config.decay == "prompt":
        inside &= ~truth.via_tau.any(axis=1)
    for p4, pt_min, eta_max in (
        (truth.lepton, config.lepton_pt_min, config.lepton_eta_max),
        (truth.b, config.b_pt_min, config.b_eta_max),
    ):
        # Unknown partons are NaN, which pass no cut.
        if pt_min > 0:
            inside &= (fourvector.pt(p4) > pt_min).all(axis=1)
        if eta_max is not None:
            inside &= (np.abs(fourvector.eta(p4)) < eta_max).all(axis=1)
    return inside


def fill_generated(
    histograms: Mapping[str, hist.Hist],
    phase_space: PhaseSpaceConfig,
    *,
    dataset: str,
    truth: Truth,
    weights: Iterable[tuple[str, Array]],
) -> None:
    """Fill the generated spectra of the phase space.

    Parameters
    ----------
    histograms
        Histograms of `book_responses`, filled in place.
    phase_space
        Definition of the events to count.
    dataset
        Category to fill.
    truth
        All generated events, n of them, whether selected or not.
    weights
        Variations and their weights before the detector, shape (n,) each.

    Raises
    ------
    ValueError
        If a weight is not finite.
    """
    names = responses_of(histograms)
    inside = in_phase_space(truth, phase_space)
    values = true_values(_members(names), truth[inside])
    for variation, weight in weights:
        check_weights(weight, f"generated weight ({dataset}, {variation})")
        for name in names:
            histogram = histograms[f"generated/{name}"]
            value, known = coordinate(name, unrolled_of(histogram.axes["truth"]), values)
            histogram.fill(dataset, variation, value[known], weight=weight[inside][known])


def fill_responses(
    histograms: Mapping[str, hist.Hist],
    phase_space: PhaseSpaceConfig,
    *,
    dataset: str,
    method: str,
    events: DileptonEvents,
    pair: TopPair,
    truth: Truth | None = None,
    weights: Mapping[str, Array] | None = None,
) -> None:
    """Fill the response matrices of one method with selected events.

    Parameters
    ----------
    histograms
        Histograms of `book_responses`, filled in place.
    phase_space
        Definition of the signal; all other events are fakes.
    dataset, method
        Categories to fill.
    events
        Selected events, n of them, whether solved or not.
    pair
        Prediction of the method for them.
    truth
        Generated tops, None in data.
    weights
        Weights by variation, shape (n,) each; None takes that of the events as "nominal".

    Raises
    ------
    ValueError
        If lengths differ or a weight is not finite.
    """
    n = len(events)
    for what, length in {"pair": len(pair), "truth": n if truth is None else len(truth)}.items():
        if length != n:
            raise ValueError(f"fill_responses: {n} events but {length} entries in {what} ({dataset})")
    names = responses_of(histograms)
    channel = events.channel.astype(np.intp)
    predicted = predicted_values(_members(names), events, pair)
    inside = np.zeros(n, np.bool_) if truth is None else in_phase_space(truth, phase_space)
    true = {} if truth is None else true_values(_members(names), truth)
    for name in names:
        truth_axis, reco_axis = histograms[f"response/{name}"].axes[-2:]
        value, solved = coordinate(name, unrolled_of(reco_axis), predicted)
        # Counted from the underflow on; the zeros in place of missing values are not filled.
        reco = reco_axis.index(np.where(solved, value, 0.0)) + 1
        signal, generated = inside, reco
        if truth is not None:
            value, known = coordinate(name, unrolled_of(truth_axis), true)
            signal = inside & known
            generated = truth_axis.index(np.where(signal, value, 0.0)) + 1
        parts = {"measured": (solved, [reco])}
        if truth is not None:
            parts |= {
                "response": (solved & signal, [generated, reco]),
                "fakes": (solved & ~signal, [reco]),
                "not_reconstructed": (~solved & signal, [generated]),
            }
        for variation, weight in ({NOMINAL: events.weight} if weights is None else weights).items():
            check_weights(weight, f"weight ({dataset}, {variation})")
            for kind, (keep, bins) in parts.items():
                filler = Filler(histograms[f"{kind}/{name}"], dataset, method, variation)
                filler.add({}, None, [channel[keep], *(index[keep] for index in bins)], weight[keep])


def _members(names: Iterable[str]) -> list[str]:
    """Observables that response matrices need, each once."""
    return list(dict.fromkeys(member for name in names for member in members(name)))


def responses_of(histograms: Mapping[str, hist.Hist]) -> tuple[str, ...]:
    """Names of the observables and pairs with a response matrix, in the order of booking."""
    return tuple(key.removeprefix("response/") for key in histograms if key.startswith("response/"))
