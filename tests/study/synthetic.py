"""Results of studies that nobody has computed, written as `study run` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_genesis.study.design import Run, Study, nested_subsets, write_study

LABELS = ("anterior", "posterior")


def write_synthetic(
    folder: Path,
    effects: Mapping[str, float],
    *,
    counts: Sequence[int] = (4, 16),
    seeds: int = 5,
    cases: int = 12,
    epochs: int = 20,
    seed: int = 0,
    labels: Sequence[str] = LABELS,
    copies: Sequence[str] = (),
) -> Study:
    """Write a finished study.

    Args:
        folder: Where to.
        effects: Arm → by how much its Dice is above that of an arm without effect.
        counts: Label counts.
        seeds: Number of seeds.
        cases: Number of test cases.
        epochs: Length of the curves.
        seed: Of all noise.
        labels: Names of labels.
        copies: Arms that are the first one, number by number.
    """
    rng = np.random.default_rng(seed)
    test = [f"case{i:02d}" for i in range(cases)]
    pool = [f"train{i:03d}" for i in range(max(counts))]
    study = Study("Dataset004_X", "nnUNetPlans", "2d", {arm: {"checkpoint": None, "settings": {}} for arm in effects},
                  list(counts), list(range(seeds)), test, nested_subsets(pool, max(counts), range(seeds)),
                  {"epochs": epochs}, versions={"numpy": "1"})  # fmt: skip
    for name in ("results", "times"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_study(study, folder)
    hard = rng.normal(0, 0.03, (cases, len(labels)))
    luck = rng.normal(0, 0.02, (seeds, len(counts)))
    written: dict[tuple[int, int], dict] = {}
    for run in study.runs():
        place = run.seed, study.labels.index(run.labels)
        if run.arm in copies:
            content = written[place]
        else:
            middle = 0.5 + 0.08 * np.log2(run.labels) / 2 + effects[run.arm] + luck[place] + rng.normal(0, 0.015)
            dice = np.clip(middle + hard + rng.normal(0, 0.01, hard.shape), 0, 1)
            content = {"cases": _scores(dice, test, labels), "curve": _curve(middle, epochs)}
        if run.arm == next(iter(effects)):
            written[place] = content
        _write(folder, run, content)
    return study


def _write(folder: Path, run: Run, content: dict) -> None:
    facts = {"run": run.name, "arm": run.arm, "labels": run.labels, "seed": run.seed}
    (folder / "results" / f"{run.name}.json").write_text(
        json.dumps(facts | content | {"versions": {"numpy": "1"}, "device": "cpu"})
    )
    (folder / "times" / f"{run.name}.json").write_text(json.dumps({"seconds": 36.0, "device": "cpu"}))


def _scores(dice: np.ndarray, test: Sequence[str], labels: Sequence[str]) -> dict:
    return {
        case: {
            label: {"Dice": float(value), "NSD": float(value**2), "HD95": float(5 - 4 * value)}
            for label, value in zip(labels, row, strict=True)
        }
        for case, row in zip(test, dice, strict=True)
    }


def _curve(final: float, epochs: int) -> dict:
    curve = final * (1 - np.exp(-np.arange(1, epochs + 1) / (epochs / 6)))
    steps = [10 * (epoch + 1) for epoch in range(epochs)]
    return {"steps": steps, "dice": np.clip(curve, 0, 1).tolist(), "loss": (-curve).tolist()}
