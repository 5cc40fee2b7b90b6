"""Pickle → a refusal of what it would do, before it is loaded: its operations are followed, not carried out."""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from typing import IO, Any

from nnunet_genesis.checkpoints.bounds import DEPTH, TEXT, values_allowed

BITS = 128
"""Of the largest integer that files of PyTorch hold."""
KEY = 1000
"""Values within a key of a dictionary, which is a name or a number: nested tuples are numbered anew for each use."""
LATIN = ("latin1", "latin-1")
"""How pickles encode bytes in texts: the result is as long as the text."""

CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD"})
FILLS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
TAKES = {
    operation.name: (
        operation.stack_before.index(pickletools.markobject)
        if pickletools.markobject in operation.stack_before
        else len(operation.stack_before),
        pickletools.markobject in operation.stack_before,
        bool(operation.stack_after),
    )
    for operation in pickletools.opcodes
}
"""Operation → how many values it takes from the stack, whether also all above a mark, whether it puts one there."""

REPEATS = "it repeats or nests its values beyond reason"


class RefusedPickleError(Exception):
    """Loading a pickle would do more than make values; says what, in words that follow "is refused: "."""


class WholeObjectError(RefusedPickleError):
    """A pickle is an object of a class of its own, e.g. a network; says the class."""


class _Item:
    """What is known of a value: values within it, containers within each other, a text or the name of a global."""

    __slots__ = ("depth", "said", "second", "weight")

    def __init__(self, weight: int = 1, depth: int = 1, said: str | None = None, second: str | None = None) -> None:
        """`second` is the second text of a tuple."""
        self.weight, self.depth, self.said, self.second = weight, depth, said, second


def scan(stream: IO[bytes], size: int, makers: Collection[str]) -> None:
    """Follow one pickle to its end, and leave the stream there.

    Args:
        stream: At the start of a pickle.
        size: Bytes of the file.
        makers: Functions and classes that it may call, with their modules.

    Raises:
        RefusedPickleError: It calls others, or asks for more values than a file of this size holds.
        ValueError, LookupError, AttributeError: It is cut off, or no pickle.
    """
    machine = _Machine(size, makers)
    for operation, argument, _ in pickletools.genops(stream):
        machine.follow(operation.name, argument)


class _Machine:
    """Stack and memo of a pickle, with weights in place of values."""

    def __init__(self, size: int, makers: Collection[str]) -> None:
        self.stack: list[Any] = []  # items, and None for a mark
        self.memo: dict[int, _Item] = {}
        self.makers, self.size, self.most = makers, size, values_allowed(size)
        self.left = self.most

    def follow(self, name: str, argument: Any) -> None:
        if "PUT" in name or name == "MEMOIZE":
            self._remember(len(self.memo) if argument is None else argument)
        elif "GET" in name:
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.stack.append(None)
        elif name == "POP":
            self.stack.pop()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            self._compute(name, argument)

    def _remember(self, place: int) -> None:
        if not 0 <= place <= self.size:  # the memo is a table: room for all places below would be taken
            raise RefusedPickleError("it is numbered as no program writes it")
        if self.stack[-1] is None:
            raise ValueError("a mark cannot be remembered")
        self.memo[place] = self.stack[-1]

    def _compute(self, name: str, argument: Any) -> None:
        count, above, puts = TAKES[name]
        if not count and not above:
            if puts:
                self.stack.append(self._constant(name, argument))
            return
        start = len(self.stack) - count
        if above:
            start = self._mark() - count
        items = [item for item in self.stack[start:] if item is not None]
        if start < 0 or len(items) < len(self.stack) - start - above:
            raise ValueError("values are missing")
        del self.stack[start:]
        if name in CALLS:
            self._refuse_call(name, argument, items)
        if puts:
            self.stack.append(self._made(name, argument, items))

    def _mark(self) -> int:
        place = len(self.stack) - 1
        while self.stack[place] is not None:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        return place

    def _constant(self, name: str, argument: Any) -> _Item:
        if isinstance(argument, str | bytes | bytearray):
            said = argument if isinstance(argument, str) and len(argument) < KEY else None
            if name == "GLOBAL" and said is not None:
                said = said.replace(" ", ".", 1)
            return _Item(1 + len(argument) // TEXT, 1, said)
        if isinstance(argument, int) and argument.bit_length() > BITS:
            raise RefusedPickleError(f"it holds an integer of {argument.bit_length()} bits")
        return _Item()

    def _made(self, name: str, argument: Any, items: list[_Item]) -> _Item:
        """What an operation makes of the values that it takes."""
        weight, depth = 1 + sum([item.weight for item in items]), 1 + max([item.depth for item in items], default=0)
        if depth > DEPTH or weight > self.most:
            raise RefusedPickleError(REPEATS)
        if name in FILLS:
            keys = items[1::2] if name.startswith("SETITEM") else items[1:] if name == "ADDITEMS" else []
            if any(item.weight > KEY for item in keys):
                raise RefusedPickleError(REPEATS)
            filled = items[0]
            filled.weight, filled.depth = weight, max(filled.depth, depth - 1)
            return filled
        said = f"{items[0].said}.{items[1].said}" if name == "STACK_GLOBAL" else None
        if name == "BINPERSID":  # older files keep classes of networks so, with their source
            said = items[0].second
        second = items[1].said if name.startswith("TUPLE") and len(items) > 1 else None
        return _Item(weight, depth, said, second)

    def _refuse_call(self, name: str, argument: Any, items: list[_Item]) -> None:
        self.left -= sum([item.weight for item in items])
        if self.left < 0:
            raise RefusedPickleError(REPEATS)
        if name == "BUILD":
            if items[0].said is not None:
                raise RefusedPickleError("it alters functions or classes")
            return
        called = str(argument.replace(" ", ".", 1) if name == "INST" else items[0].said)
        if called not in self.makers:
            whole = name != "REDUCE" and not self.stack
            raise WholeObjectError(called) if whole else RefusedPickleError(_foreign(called))
        if called == "_codecs.encode" and (len(items) < 2 or items[1].second not in LATIN):
            raise RefusedPickleError("it encodes texts as no pickle does")


def _foreign(called: str) -> str:
    if called.startswith(("torch._utils._rebuild", "torch._tensor._rebuild")):
        return f"it holds tensors of a kind that weights do not have ({called})"
    return f"reading it would run code that it names ({called})"
