"""Pickles are followed as Python's own reader would follow them: nothing hides a call, and limits are exact."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_genesis.checkpoints import pickle_scan
from nnunet_genesis.checkpoints.bounds import DEPTH
from nnunet_genesis.checkpoints.pickle_scan import KEY, RefusedPickleError, scan
from nnunet_genesis.checkpoints.reading import read_checkpoint
from nnunet_genesis.errors import CheckpointError

KNOWN = {"collections.OrderedDict"}
DICTIONARY, FOREIGN = b"ccollections\nOrderedDict\n", b"cbuiltins\nlen\n"


def follow(data: bytes) -> None:
    scan(io.BytesIO(data), len(data), KNOWN)


class Reader(pickle.Unpickler):
    """Finds two names, one of which nobody may call."""

    def find_class(self, module: str, name: str) -> Any:
        def call() -> None:
            raise PermissionError

        return OrderedDict if name == "OrderedDict" else call


@pytest.mark.parametrize("hidden", [
    DICTIONARY + FOREIGN + b"20",  # top of the stack twice, then once less
    FOREIGN + b"q\x00" + DICTIONARY + b"q\x010h\x00",  # put, and got again
    FOREIGN + DICTIONARY + b"0",
    FOREIGN + b"(" + DICTIONARY + DICTIONARY + b"1",  # all above a mark
    FOREIGN + b"\x94" + DICTIONARY + b"\x940h\x00",  # numbered by the order
    DICTIONARY + b"p0\n" + FOREIGN + b"p0\n0" + b"g0\n",  # numbered alike
])  # fmt: skip
def test_no_order_of_values_hides_a_call(hidden):
    data = b"\x80\x04" + hidden + b")R."
    with pytest.raises(PermissionError):
        Reader(io.BytesIO(data)).load()
    with pytest.raises(RefusedPickleError, match="builtins.len"):
        follow(data)


def test_tuples_within_each_other_up_to_a_depth():
    value: Any = 0
    for _ in range(DEPTH - 1):
        value = (value,)
    follow(pickle.dumps(value))
    with pytest.raises(RefusedPickleError, match="repeats or nests"):
        follow(pickle.dumps((value,)))


def test_values_up_to_a_number(monkeypatch):
    monkeypatch.setattr(pickle_scan, "values_allowed", lambda size: 10)
    follow(pickle.dumps(tuple(range(9))))
    with pytest.raises(RefusedPickleError, match="repeats or nests"):
        follow(pickle.dumps(tuple(range(10))))


def test_keys_of_dictionaries_up_to_a_number_of_values():
    follow(pickle.dumps({tuple(range(KEY - 1)): 0}))
    with pytest.raises(RefusedPickleError, match="repeats or nests"):
        follow(pickle.dumps({tuple(range(KEY)): 0}))


def test_a_mark_is_no_value():
    data = b"\x80\x04N(q\x001."
    for read in (follow, pickle.loads):
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            read(data)


@pytest.mark.parametrize("legacy", [False, True])
def test_whole_networks_are_called_by_the_name_of_their_class(tmp_path, legacy):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"whole object in Python \(torch\.nn\.modules\.linear\.Linear\)"):
        read_checkpoint(tmp_path / "a.pth")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats() | st.text() | st.binary(min_size=1),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner)
        | st.dictionaries(st.text(max_size=3), inner).map(OrderedDict)
    ),
)


@given(plain, st.integers(2, 5))
def test_plain_values_pass_and_the_stream_is_left_behind_them(value, protocol):
    data = pickle.dumps(value, protocol)
    stream = io.BytesIO(data + b"rest")
    scan(stream, len(data), KNOWN | {"_codecs.encode"})
    assert stream.read() == b"rest"
