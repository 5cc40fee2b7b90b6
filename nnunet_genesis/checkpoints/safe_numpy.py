"""Numpy's scalars and arrays in a file, made by stand-ins: numpy's own makers believe whatever a file says."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

KINDS = "?" + np.typecodes["AllInteger"] + "efdFDSU"
"""Numbers that Python has too and text, by numpy's letters; objects, records and dates are refused."""


class Kind:
    """In place of `numpy.dtype`: what a file may set is the byte order, neither fields nor flags."""

    def __init__(self, name: Any, *_: Any) -> None:
        """A name such as `f4`; anything else that a file gives is refused.

        Raises:
            UnpicklingError: It is no number or text.
        """
        self.dtype = np.dtype(name)
        if self.dtype.char not in KINDS or not self.dtype.itemsize:
            raise pickle.UnpicklingError(f"but got <class 'numpy.{self.dtype.type.__name__}'>")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Numpy's version of the format, then the byte order, then what is not used."""
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray[Any, Any]):
    """In place of `numpy.ndarray`; it is saved as one."""

    def __new__(cls, *_: Any) -> Array:
        """Empty, whatever size a file asks for; `__setstate__` fills it."""
        empty: Array = super().__new__(cls, (0,), "b")
        return empty

    def __setstate__(self, state: Any) -> None:
        """Version of the format, shape, kind, order of axes, bytes."""
        _, shape, kind, fortran, content = state
        super().__setstate__((1, shape, kind.dtype, fortran, content))

    def __reduce__(self) -> Any:
        """As numpy's array."""
        return self.view(np.ndarray).__reduce__()


def _reconstruct(*_: Any) -> Any:
    return Array()


def _scalar(kind: Kind, content: bytes) -> Any:
    return np.ndarray((), kind.dtype, content)[()]


def _frombuffer(content: bytes, kind: Kind, shape: tuple[int, ...], order: Any) -> Any:
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _no_bytes(*_: Any) -> bytes:
    return b""


def stand_ins() -> list[Any]:
    """What reads numpy's values, for `torch.serialization.safe_globals`; numpy 1 wrote other names than numpy 2."""
    makers = [(_scalar, "multiarray.scalar"), (_reconstruct, "multiarray._reconstruct"),
              (_frombuffer, "numeric._frombuffer")]  # fmt: skip
    named = [(maker, f"numpy.{core}.{name}") for core in ("core", "_core") for maker, name in makers]
    # an empty array is written with a call of bytes, which older protocols name otherwise
    empty = [(_no_bytes, "builtins.bytes"), (_no_bytes, "__builtin__.bytes")]
    return [*named, (Array, "numpy.ndarray"), (Kind, "numpy.dtype"), *empty]
