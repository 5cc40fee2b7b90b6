"""Pickle → a refusal of what it would do, before it is loaded: its operations are followed, not carried out."""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from typing import IO, Any, NamedTuple

from nnunet_genesis.checkpoints.bounds import DEPTH, TEXT, values_allowed

BITS = 128
"""Of the largest integer that files of PyTorch hold."""
LATIN = ("latin1", "latin-1")
KEY = 1000
"""Values of a key of a dictionary, which is a name or a number."""

MAKES = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD")
FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
NAMED = ("GLOBAL", "INST", "STACK_GLOBAL")


class RefusedPickleError(Exception):
    """Loading a pickle would do more than make values; says what, in words that follow "is refused: "."""


class WholeObjectError(RefusedPickleError):
    """A pickle is an object of a class of its own, e.g. a network; says the class."""


class _Item:
    """What is known of a value on the stack."""

    __slots__ = ("depth", "parts", "said", "weight")

    def __init__(self, weight: int, depth: int, said: str | None = None, parts: tuple[str | None, ...] = ()) -> None:
        """Values within it, containers within each other, a text or the name of a global, texts of a short tuple."""
        self.weight, self.depth, self.said, self.parts = weight, depth, said, parts


class _Taken(NamedTuple):
    """What an operation takes from the stack, the deepest first."""

    below_mark: list[_Item]
    above_mark: list[_Item]

    @property
    def all(self) -> list[_Item]:
        return self.below_mark + self.above_mark


def scan(stream: IO[bytes], size: int, makers: Collection[str]) -> None:
    """Follow one pickle to its end, and leave the stream there.

    Args:
        stream: At the start of a pickle.
        size: Bytes of the file.
        makers: Functions and classes that it may call, with their modules.

    Raises:
        RefusedPickleError: It calls others, or asks for more values than a file of this size holds.
        ValueError, LookupError: It is cut off, or no pickle.
    """
    machine = _Machine(size, makers)
    for operation, argument, _ in pickletools.genops(stream):
        machine.follow(operation, argument)


class _Machine:
    """Stack and memo of a pickle's operations, with weights in place of values."""

    def __init__(self, size: int, makers: Collection[str]) -> None:
        self.stack: list[_Item | None] = []  # None is a mark
        self.memo: dict[int, _Item] = {}
        self.makers, self.size, self.left = makers, size, values_allowed(size)

    def follow(self, operation: Any, argument: Any) -> None:
        name = operation.name
        if isinstance(argument, int) and argument.bit_length() > BITS:
            raise RefusedPickleError(f"it holds an integer of {argument.bit_length()} bits")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._remember(len(self.memo) if argument is None else argument)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "POP":
            self.stack.pop()
        elif name == "MARK":
            self.stack.append(None)
        else:
            taken = self._take(operation.stack_before)
            if name in MAKES:
                self._refuse_call(name, argument, taken)
            if operation.stack_after:
                self.stack.append(self._result(name, argument, taken))

    def _remember(self, place: int) -> None:
        if not 0 <= place <= self.size:  # the memo is a table: room for all places below would be taken
            raise RefusedPickleError("it is numbered as no program writes it")
        top = self.stack[-1]
        if top is None:
            raise ValueError("a mark cannot be remembered")
        self.memo[place] = top

    def _take(self, before: list[Any]) -> _Taken:
        above: list[_Item] = []
        count = len(before)
        if pickletools.markobject in before:
            while (item := self.stack.pop()) is not None:
                above.append(item)
            count = before.index(pickletools.markobject)
        below = [self.stack.pop() for _ in range(count)]
        if None in below:
            raise ValueError("a mark is no value")
        return _Taken([item for item in reversed(below) if item is not None], above[::-1])

    def _result(self, name: str, argument: Any, taken: _Taken) -> _Item:
        items = taken.all
        weight = 1 + sum(item.weight for item in items)
        depth = 1 + max((item.depth for item in items), default=0)
        if isinstance(argument, str | bytes | bytearray):
            weight += len(argument) // TEXT
        if depth > DEPTH or weight > values_allowed(self.size):
            raise RefusedPickleError("it repeats or nests its values beyond reason")
        if name in FILLS:
            self._refuse_heavy_keys(name, taken)
            filled = items[0]
            filled.weight, filled.depth = weight, max(filled.depth, depth - 1)
            return filled
        said = argument if isinstance(argument, str) and len(argument) < 1000 else None
        if name == "STACK_GLOBAL":
            said = f"{items[0].said}.{items[1].said}"
        elif name in NAMED and said is not None:
            said = said.replace(" ", ".", 1)
        parts = tuple(item.said for item in items) if name.startswith("TUPLE") and len(items) < 4 else ()
        return _Item(weight, depth, said, parts)

    def _refuse_heavy_keys(self, name: str, taken: _Taken) -> None:
        """Nested tuples are numbered for a dictionary each time anew, however often they are repeated."""
        keys = {"SETITEM": taken.below_mark[1:2], "SETITEMS": taken.above_mark[::2], "ADDITEMS": taken.above_mark}
        if any(item.weight > KEY for item in keys.get(name, [])):
            raise RefusedPickleError("it repeats or nests its values beyond reason")

    def _refuse_call(self, name: str, argument: Any, taken: _Taken) -> None:
        items = taken.all
        self.left -= sum(item.weight for item in items)
        if self.left < 0:
            raise RefusedPickleError("it repeats or nests its values beyond reason")
        if name == "BUILD":
            if items[0].said is not None:
                raise RefusedPickleError("it alters functions or classes")
            return
        called = argument.replace(" ", ".", 1) if name == "INST" else items[0].said
        if called not in self.makers:
            whole = name != "REDUCE" and not self.stack
            raise WholeObjectError(str(called)) if whole else RefusedPickleError(_foreign(str(called)))
        if called == "_codecs.encode" and (items[1].parts[1:] or ("",))[0] not in LATIN:
            raise RefusedPickleError("it encodes texts as no pickle does")


def _foreign(called: str) -> str:
    if called.startswith(("torch._utils._rebuild", "torch._tensor._rebuild")):
        return f"it holds tensors of a kind that weights do not have ({called})"
    return f"reading it would run code that it names ({called})"
