"""A value with numpy's and torch's types in it → the same in Python's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def plain(value: Any, *, as_json: bool = False) -> Any:
    """The value with numpy scalars and arrays as numbers and lists, within dictionaries, lists and tuples too.

    Args:
        value: Anything; what is not named here stays as it is.
        as_json: Whether tensors and tuples become lists as well, and every mapping a dictionary.
    """
    if isinstance(value, np.generic | np.ndarray) or (as_json and isinstance(value, torch.Tensor)):
        return value.tolist()
    if isinstance(value, dict):
        kind = dict if as_json else type(value)
        return kind((plain(key, as_json=as_json), plain(entry, as_json=as_json)) for key, entry in value.items())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return (list if as_json else type(value))(plain(entry, as_json=as_json) for entry in value)
    return value
