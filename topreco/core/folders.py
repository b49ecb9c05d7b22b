"""Folders that belong to one configuration: in which keys two configurations differ."""

from collections.abc import Mapping
from typing import Any

ABSENT = "(absent)"
"""Stands for the value of a key that one side does not have."""


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two nested mappings differ, with the value of each.

    Parameters
    ----------
    a, b
        Plain data; mappings inside are compared key by key, everything else as a whole.

    Returns
    -------
    differences
        In the order of `a`, then of `b`; `ABSENT` for a value that is not there.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*a, *b)):
        both = a.get(key, ABSENT), b.get(key, ABSENT)
        if all(isinstance(value, Mapping) for value in both):
            found |= {f"{key}.{inner}": values for inner, values in differences(*both).items()}
        elif both[0] != both[1]:
            found[str(key)] = both
    return found
