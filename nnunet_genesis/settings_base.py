"""Settings as frozen dataclasses whose fields know their range and their help text."""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from typing_extensions import Self

from nnunet_genesis.errors import SettingsError


def setting(
    default: Any,
    text: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    formerly: str | None = None,
    per_axis: bool = False,
    entries: type = str,
    flag: bool = True,
) -> Any:
    """Declare a field: default value, help text, and the values it may take.

    A tuple default declares a (low, high) range: two numbers within the bounds, in ascending order; one number means
    both. An empty tuple declares a list of names, each of them there once, or of numbers where `entries` is float. The
    default None declares a number that follows from other settings unless it is given. `formerly` is the name under
    which older plans have the setting. `per_axis` allows a tuple of two or three numbers beside a number for all axes.
    `flag`: whether commands have a flag of that name.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "choices": choices}
    kind = {"per_axis": per_axis, "entries": entries, "flag": flag}
    return field(default=default, metadata={"text": text, "formerly": formerly, **kind, **bounds})


@dataclass(frozen=True)
class Settings:
    """Base of all settings: checked when made, readable from and writable to a JSON block."""

    def __post_init__(self) -> None:
        """Check every declared field.

        Raises:
            SettingsError: Names the field, the value given and the values allowed.
        """
        for declared in fields(self):
            if "text" in declared.metadata:
                object.__setattr__(self, declared.name, _checked(declared, getattr(self, declared.name)))

    def updated(self, block: Mapping[str, Any], where: str) -> Self:
        """A copy with the values of a JSON block; blocks within it update nested settings alike.

        Args:
            block: Names and values.
            where: Where the block stands, for error messages.

        Raises:
            SettingsError: Unknown key, wrong type or value out of range.
        """
        if not isinstance(block, Mapping):
            raise SettingsError(f"{where} must be a block of settings in braces, not {block!r}.")
        known, values = [declared.name for declared in fields(self)], {}
        former = {declared.metadata.get("formerly"): declared.name for declared in fields(self)}
        for given, entry in block.items():
            key = former.get(given, given)
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f'did you mean "{close[0]}"?' if close else f"known keys are {', '.join(known)}."
                raise SettingsError(f'Unknown key "{key}" in {where}: {hint}')
            if key in values:
                raise SettingsError(f'{where} has "{key}" twice, once as "{given}". Remove one.')
            current = getattr(self, key)
            nested = isinstance(current, Settings) and not isinstance(entry, Settings)
            values[key] = current.updated(entry, f'{where} / "{key}"') if nested else entry
        try:
            return replace(self, **values)
        except SettingsError as error:
            raise SettingsError(f"In {where}: {error}") from None

    def block(self) -> dict[str, Any]:
        """The settings as JSON types, ready for a plans file."""
        return asdict(self, dict_factory=_with_lists)


def _with_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def _checked(declared: Field[Any], value: Any) -> Any:
    """The value in the type of the field's default, or a SettingsError."""
    default, name = declared.default, declared.name
    if default is None and value is None:
        return None
    if default == ():
        return _listed(declared, value)
    if isinstance(default, tuple):
        ends = list(value) if isinstance(value, list | tuple) else [value]
        if not 1 <= len(ends) <= 2 or not all(map(_is_number, ends)) or ends[0] > ends[-1]:
            raise SettingsError(f'"{name}" must be two ascending numbers such as {list(default)}, not {value!r}.')
        return tuple(_bounded(declared, float(end)) for end in (ends[0], ends[-1]))
    if isinstance(default, str):
        choices = declared.metadata["choices"]
        if not isinstance(value, str) or (choices and value not in choices):
            raise SettingsError(f'"{name}" must be {" or ".join(choices) or "a text"}, not {value!r}.')
        return value
    if declared.metadata["per_axis"] and isinstance(value, list | tuple):
        if not 1 <= len(value) <= 3:
            raise SettingsError(f'"{name}" must be one number, or two or three for the axes, not {value!r}.')
        along = tuple(_number(declared, number) for number in value)
        return along if len(along) > 1 else along[0]
    return _number(declared, value)


def _listed(declared: Field[Any], value: Any) -> tuple[Any, ...]:
    """Different names, or numbers within the bounds."""
    name, listed = declared.name, isinstance(value, list | tuple)
    if declared.metadata["entries"] is float:
        if not listed or not all(map(_is_number, value)):
            raise SettingsError(f'"{name}" must be a list of numbers, not {reprlib.repr(value)}.')
        return tuple(_bounded(declared, float(number)) for number in value)
    if not listed or not all(isinstance(entry, str) and entry for entry in value) or len(set(value)) < len(value):
        raise SettingsError(f'"{name}" must be a list of different names, not {reprlib.repr(value)}.')
    return tuple(value)


def _number(declared: Field[Any], value: Any) -> Any:
    whole = isinstance(declared.default, int)
    if not _is_number(value) or (whole and int(value) != value):
        raise SettingsError(f'"{declared.name}" must be a {"whole " if whole else ""}number, not {value!r}.')
    return _bounded(declared, int(value) if whole else float(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _bounded(declared: Field[Any], value: Any) -> Any:
    meta, wrong = declared.metadata, ""
    if meta["at_least"] is not None and value < meta["at_least"]:
        wrong = f"at least {meta['at_least']}"
    if meta["above"] is not None and value <= meta["above"]:
        wrong = f"above {meta['above']}"
    if meta["at_most"] is not None and value > meta["at_most"]:
        wrong = f"at most {meta['at_most']}"
    if wrong:
        raise SettingsError(f'"{declared.name}" must be {wrong}, not {value}.')
    return value
