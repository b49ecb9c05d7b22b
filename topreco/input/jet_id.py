"""Identification of jets from energy fractions and multiplicities, where NanoAOD has it wrong or not at all.

References
----------
.. [1] CMS, JetMET group, https://twiki.cern.ch/twiki/bin/view/CMS/JetID13p6TeV?rev=22: ``run3_puppi``, and
   under "nanoAOD flags" the bug of v12 and its cure, ``nano_v12``. The same numbers are in
   cms-btv-pog/BTVNanoCommissioning, ``utils/selection.py``, and several other public codes.
.. [2] CMS, JetMET group, https://twiki.cern.ch/twiki/bin/view/CMS/JetID13TeVUL: PUPPI jets of UL2016, and of
   UL2017 and UL2018, again as in public codes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from topreco.core.events import BoolArray, FloatArray

_FRACTIONS = ("neHEF", "neEmEF", "chHEF", "muEF", "chEmEF")
_MULTIPLICITIES = ("chMultiplicity", "neMultiplicity")
_TIGHT_BIT, _LEPTON_VETO_BIT = 1, 2

COLUMNS = {
    "branch": (),
    "nano_v12": ("jetId", "neHEF", "neEmEF", "muEF", "chEmEF"),
    **dict.fromkeys(("run3_puppi", "ul2017_puppi", "ul2016_puppi"), (*_FRACTIONS, *_MULTIPLICITIES)),
}
"""Fields of `Jet` that each recipe needs."""

# By largest |η|: upper bounds of energy fractions, and exclusive lower ones (min_).
_CENTRAL = {"min_chHEF": 0.0, "min_chMultiplicity": 0, "min_constituents": 1}
_TIGHT: dict[str, tuple[tuple[float, dict[str, float]], ...]] = {
    "run3_puppi": (
        (2.6, _CENTRAL | {"neHEF": 0.99, "neEmEF": 0.90, "min_chHEF": 0.01}),
        (2.7, {"neHEF": 0.90, "neEmEF": 0.99}),
        (3.0, {"neHEF": 0.99}),
        (np.inf, {"neEmEF": 0.40, "min_neMultiplicity": 1}),
    ),
    "ul2017_puppi": (
        (2.6, _CENTRAL | {"neHEF": 0.90, "neEmEF": 0.90}),
        (2.7, {"neHEF": 0.90, "neEmEF": 0.99}),
        (3.0, {"neHEF": 0.9999}),
        (np.inf, {"neEmEF": 0.90, "min_neMultiplicity": 2}),
    ),
    "ul2016_puppi": (
        (2.4, _CENTRAL | {"neHEF": 0.90, "neEmEF": 0.90}),
        (2.7, {"neHEF": 0.98, "neEmEF": 0.99}),
        (3.0, {"min_neMultiplicity": 0}),
        (np.inf, {"neEmEF": 0.90, "min_neMultiplicity": 2}),
    ),
    # On top of the stored bit.
    "nano_v12": ((2.7, {}), (3.0, {"neHEF": 0.99}), (np.inf, {"neEmEF": 0.40})),
}
_LEPTON_VETO_ETA = {"ul2016_puppi": 2.4}


def identify_jets(recipe: str, bit: int, eta: FloatArray, columns: Mapping[str, Any]) -> BoolArray:
    """Jets that pass the tight identification, or that with lepton veto.

    Parameters
    ----------
    recipe
        A key of `COLUMNS`, not ``branch``.
    bit
        1 for tight, 2 for tight with lepton veto.
    eta
        Pseudorapidities, shape (jets,).
    columns
        The fields that the recipe needs, shape (jets,) each.

    Returns
    -------
    identified
        Shape (jets,).
    """
    values = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    if recipe == "nano_v12":
        identified = (columns["jetId"].astype(np.int64) >> _TIGHT_BIT) & 1 == 1
    else:
        identified = np.ones(len(eta), dtype=bool)
        values["constituents"] = values["chMultiplicity"] + values["neMultiplicity"]
    abs_eta = np.abs(eta)
    inner = -np.inf
    for outer, bounds in _TIGHT[recipe]:
        here = (abs_eta > inner) & (abs_eta <= outer)
        for name, bound in bounds.items():
            column = values[name.removeprefix("min_")]
            identified &= ~here | (column > bound if name.startswith("min_") else column < bound)
        inner = outer
    if bit == _LEPTON_VETO_BIT:
        outside = abs_eta > _LEPTON_VETO_ETA.get(recipe, 2.7)
        identified &= outside | ((values["muEF"] < 0.8) & (values["chEmEF"] < 0.8))
    return identified
