"""Edges and axes in words."""

from __future__ import annotations

from collections.abc import Iterable

AXES = ("z", "y", "x")


def times(edges: Iterable[int]) -> str:
    """Edge lengths, e.g. "3x3x1"."""
    return "x".join(map(str, edges))


def axes_where(chosen: Iterable[bool]) -> str:
    """The axes chosen, e.g. "z and y"."""
    return " and ".join(name for name, differs in zip(AXES, chosen, strict=True) if differs)
