"""Checked settings ↔ flags of a command."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

FLAGS = {"learning_rate": "--lr"}
"""Settings whose flag is not their name."""


def add_flags(parser: Any, kind: Any, names: Iterable[str] = (), prefix: str = "") -> None:
    """One flag per declared setting: `--cutout-windows` for `windows` of `cutout_`; the default is not filled in."""
    for declared in fields(kind):
        if not declared.metadata.get("flag") or (names and declared.name not in names):
            continue
        default: Any = declared.default
        listed, pair = default == (), isinstance(default, tuple) and default != ()
        values = tuple(dict.fromkeys(default)) if pair else (default,)
        shown = "" if default in (None, ()) else f" ({' '.join(map(str, values))})"
        flexible = listed or declared.metadata["per_axis"] or (pair and len(values) == 1)
        parser.add_argument(
            FLAGS.get(declared.name, "--" + (prefix + declared.name).replace("_", "-")),
            dest=prefix + declared.name,
            default=argparse.SUPPRESS,
            type=declared.metadata["entries"] if listed else float if default is None else type(values[0]),
            nargs="+" if flexible else 2 if pair else None,
            choices=declared.metadata["choices"] or None,
            metavar=_placeholder(declared),
            help=f"{declared.metadata['text']}{shown}".replace("%", "%%"),
        )


def _placeholder(declared: Any) -> Any:
    if declared.default == ():
        return "CASE" if declared.metadata["entries"] is str else "X"
    if isinstance(declared.default, tuple):
        return ("LOW", "HIGH")
    return None if declared.metadata["choices"] else "X" if isinstance(declared.default, float | None) else "N"


def given(chosen: argparse.Namespace, kind: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of one kind that were given as flags."""
    names = [declared.name for declared in fields(kind) if "text" in declared.metadata]
    return {name: getattr(chosen, prefix + name) for name in names if prefix + name in chosen}
