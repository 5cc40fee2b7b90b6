"""Figures of a report: label curves with differences, and convergence; as PNG and as SVG, the same bytes every time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from nnunet_genesis.files import written_atomically
from nnunet_genesis.study.comparisons import Comparison, run_means, tenth
from nnunet_genesis.study.conclusions import counted
from nnunet_genesis.study.results import MAIN, Results
from nnunet_genesis.study.statistics import mean_of_defined, t_interval

PLAIN_STYLE = style.context("default")
"""nnU-Net's own pictures change fonts and grids of all that are drawn after them."""
COLOURS = ("#333333", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The first arm's grey, then those of Okabe and Ito (2008), which colour-blind people tell apart."""
DASHES = ("-", "--", ":", "-.")
MOST_ARMS_NAMED = 14
"""Arms in a legend; more would cover the figure."""


def look_of(number: int) -> dict[str, Any]:
    """Colour and dashes of an arm, the first one's in grey."""
    colour = COLOURS[0] if number == 0 else COLOURS[1 + (number - 1) % (len(COLOURS) - 1)]
    return {"color": colour, "linestyle": DASHES[(number - 1) // (len(COLOURS) - 1) % len(DASHES)] if number else "-"}


@PLAIN_STYLE
def label_curves(results: Results, comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw mean Dice over the number of labels, with seeds and bands, and differences to the first arm.

    Args:
        results: The study.
        comparisons: Those of mean Dice are drawn, with their intervals.
        path: File to write, without ending.
    """
    study, means = results.study, run_means(results.scores[MAIN])
    drawn = [one for one in comparisons if one.in_family and one.count is not None]
    figure = Figure(figsize=(11 if drawn else 6, 4.6), layout="constrained")
    axes = figure.subplots(1, 2 if drawn else 1, squeeze=False)[0]
    for a, arm in enumerate(study.arms):
        bands = np.clip([t_interval(means[a, n]) for n in range(len(study.labels))], 0, 1)
        axes[0].plot(study.labels, mean_of_defined(means[a], -1), marker="o", markersize=4, label=arm, **look_of(a))
        axes[0].fill_between(study.labels, bands[:, 0], bands[:, 1], color=look_of(a)["color"], alpha=0.12, lw=0)
        places = np.repeat(study.labels, len(study.seeds)) * _beside(a, len(study.arms))
        axes[0].plot(places, means[a].ravel(), ".", color=look_of(a)["color"], markersize=3.5, alpha=0.5)
    axes[0].set_ylabel("mean Dice of the test cases")
    _legend(axes[0], "lower right")
    if drawn:
        axes[1].axhline(0, color=COLOURS[0], linewidth=1)
        for a, arm in list(enumerate(study.arms))[1:]:
            own = [one for one in drawn if one.arm == arm]
            places = np.array([one.count for one in own]) * _beside(a - 1, len(study.arms) - 1)
            middle = np.array([one.difference for one in own])
            ends = np.array([[one.low, one.high] for one in own])
            reach = np.abs(ends - middle[:, None]).T
            axes[1].errorbar(places, middle, reach, fmt="o", color=look_of(a)["color"], capsize=3, markersize=4.5)
        axes[1].set_ylabel(f"paired difference to {next(iter(study.arms))}")
    for ax in axes:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(study.labels))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels([str(count) for count in study.labels])
        ax.set_xlim(study.labels[0] / 1.25, study.labels[-1] * 1.25)
        ax.set_xlabel("labeled cases")
        ax.grid(alpha=0.25)
    _save(figure, path)


@PLAIN_STYLE
def convergence(results: Results, path: Path) -> None:
    """Draw mean Dice on patches over training steps, a panel for each label count; dashed: the first arm's end."""
    study, dice = results.study, results.curves["dice"]
    columns = min(3, len(study.labels))
    rows = -(-len(study.labels) // columns)
    figure = Figure(figsize=(max(6.0, 3.7 * columns), 3.0 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for n, (ax, count) in enumerate(itertools.zip_longest(axes, study.labels)):
        if count is None:
            ax.set_visible(False)
            continue
        for a, arm in enumerate(study.arms):
            curve = mean_of_defined(dice[a, n], 0)
            ax.plot(results.steps, curve, linewidth=1.2, label=arm, **look_of(a))
            if a == 0:
                final = curve[-tenth(len(curve)) :].mean()
                ax.axhline(final, color=COLOURS[0], linewidth=0.8, linestyle="--")
        ax.set_title(counted(count, "labeled case"), fontsize=10)
        ax.grid(alpha=0.25)
    axes[0].set_ylim(bottom=0)
    _legend(axes[0], "lower right")
    figure.supxlabel("training steps", fontsize=10)
    figure.supylabel("mean Dice on patches of the test cases", fontsize=10)
    _save(figure, path)


def _beside(number: int, of: int) -> float:
    """A factor that keeps arms apart on a logarithmic axis."""
    return float(1.035 ** (number - (of - 1) / 2))


def _legend(ax: Any, place: str) -> None:
    handles, names = ax.get_legend_handles_labels()
    more = len(names) - MOST_ARMS_NAMED
    names = [*names[:MOST_ARMS_NAMED], *([f"and {more} more"] if more > 0 else [])]
    ax.legend(handles[: len(names)], names, fontsize=8, loc=place, framealpha=0.8)


def _save(figure: Figure, path: Path) -> None:
    """Write PNG and SVG; no date, and no random names in them."""
    with mpl.rc_context({"svg.hashsalt": path.name}):
        for ending, facts in (("png", {"Software": None}), ("svg", {"Date": None})):
            with written_atomically(path.with_name(f"{path.name}.{ending}")) as temporary:
                figure.savefig(temporary, dpi=130, metadata=facts)
