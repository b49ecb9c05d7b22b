"""Choice and weights of the validated events: test split of a training, and another spin correlation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from topreco.config import DataConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, Truth
from topreco.core.spin import event_spin_weight
from topreco.network.splits import TEST, split_of


class HeldOut:
    """Events that the training of a model has set apart.

    Parameters
    ----------
    model
        Model file.

    Raises
    ------
    TopRecoError
        If it is no model file, or does not contain how its training data were split.
    """

    def __init__(self, model: str | Path) -> None:
        from topreco.reconstruction.network import NetworkMethod

        self.model = Path(model)
        metadata = NetworkMethod(model).metadata
        try:
            self.config = build_config(DataConfig, metadata["training"]["data"], f"{model}: data")
            self.dataset_ids = np.array([int(i) for i in metadata["data"]["dataset_ids"]], np.uint64)
        except (KeyError, TypeError) as error:
            raise TopRecoError(
                f"{model}: does not contain how its training data were split; a model of `topreco train` "
                "expected"
            ) from error

    def __call__(self, events: DileptonEvents) -> BoolArray:
        """Events on which the model may be tested.

        With several folds these are all: each event is reconstructed by a network that has not seen it.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        held_out
            Shape (n,).

        Raises
        ------
        TopRecoError
            If there are events of a dataset that the training did not use, so that their hash is meaningless.
        """
        if not np.isin(events.dataset, self.dataset_ids).all():
            raise TopRecoError(
                f"test_split: {self.model} was not trained on this dataset; make the skim with the --dataset "
                "of the training's, and leave out test_split for another sample"
            )
        if self.config.folds > 1:
            return np.ones(len(events), np.bool_)
        return np.asarray(split_of(events, self.config) == TEST)


@dataclass(frozen=True)
class Preparation:
    """Choose events by test splits and change their spin correlation; called with events and truth.

    Attributes
    ----------
    splits
        An event must be held out by all.
    spin_correlation
        "add", "remove", or a factor, as in `topreco.config.ValidationConfig`; None leaves the weights.
    """

    splits: Sequence[HeldOut]
    spin_correlation: str | float | None

    def __call__(self, events: DileptonEvents, truth: Truth) -> tuple[DileptonEvents, Truth]:
        """Return the chosen events with their weights, and their truth."""
        for split in self.splits:
            kept = split(events)
            events, truth = events[kept], truth[kept]
        if self.spin_correlation is not None:
            factor = spin_factor(truth, self.spin_correlation)
            events = replace(events, weight=events.weight * factor)
        return events, truth


def spin_factor(truth: Truth, change: str | float) -> FloatArray:
    """Factor of each event's weight that adds, removes or scales the spin correlation.

    Parameters
    ----------
    truth
        Generated tops and their decay products.
    change
        "add", "remove" or a factor.

    Returns
    -------
    factor
        Shape (n,).

    Raises
    ------
    TopRecoError
        If it is not known for all events.
    """
    if isinstance(change, str):
        scale, present = {"add": (1.0, 0.0), "remove": (0.0, 1.0)}[change]
    else:
        scale, present = change, 1.0
    factor = event_spin_weight(truth, scale, present=present)
    if unknown := int((~np.isfinite(factor)).sum()):
        raise TopRecoError(
            f"spin_correlation {change}: {unknown} of {len(factor)} events were made by neither gg nor qq̄, "
            "or their W bosons or neutrinos are not in the truth"
        )
    return factor
