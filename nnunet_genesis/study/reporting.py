"""A study's folder → its report: one HTML page, figures and CSV files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_genesis.errors import GenesisError, StudyError, printable, reason
from nnunet_genesis.files import sha256, written_atomically
from nnunet_genesis.study import tables
from nnunet_genesis.study.comparisons import Comparison, compare_all, equivalences, speeds
from nnunet_genesis.study.conclusions import Conclusion, cautions, conclude, counted, definitions
from nnunet_genesis.study.design import FILE, Study, read_study
from nnunet_genesis.study.drawing import convergence, label_curves
from nnunet_genesis.study.page import box, folded, heading, listed, page, paragraph, picture, table
from nnunet_genesis.study.results import Results, read_results
from nnunet_genesis.study.worst_cases import draw_case, read_case, worst_cases

FOLDER, PAGE = "report", "report.html"
CURVES_SHOWN = (
    "Left: mean Dice of the test cases, points are seeds, lines their means, bands 95 % intervals (Student's, over "
    "seeds) of each arm alone. Right: paired differences to the first arm with 95 % intervals, which is what is "
    "tested: bands may overlap where these are clearly not zero."
)
CONVERGENCE_SHOWN = (
    "Mean of the seeds after every epoch, for every number of labeled cases. Dashed: the first arm's score in the last "
    "tenth of its training. These scores decide nothing."
)


@dataclass(frozen=True)
class Report:
    """What was written, and what it says in short."""

    path: Path
    conclusions: list[Conclusion]
    cautions: list[str]


def report_study(folder: Path, output: Path | None = None) -> Report:
    """Write the report of a study, finished or not, over an older one.

    Args:
        folder: The study.
        output: Where to; `report` in the study's folder by default.

    Raises:
        StudyError: There is no result yet, a file is not as `study run` writes it, or the folder cannot be written.
        DatasetError: There is no study, or a file is no valid JSON.
    """
    study = read_study(folder)
    results = read_results(study, folder)
    output = folder / FOLDER if output is None else output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{output} cannot be written ({reason(error)}). Name another folder: -o FOLDER") from None
    comparisons, equal, fast = compare_all(results), equivalences(results), speeds(results)
    concluded, careful = conclude(study, comparisons, equal, fast), cautions(results, comparisons, fast)
    tables.write_csv(results, comparisons, output)
    label_curves(results, comparisons, output / "label_curve")
    convergence(results, output / "convergence")
    first = next(iter(study.arms))
    parts = [
        *_beginning(results, concluded, careful),
        *_figure(output / "label_curve.svg", "Label curves of all arms, and differences to the first", CURVES_SHOWN),
        *_compared(comparisons, first),
        *([heading("How many labels is it worth?"), table(tables.equivalence_table(equal, first))] if equal else []),
        heading("How fast does it learn?"),
        *_figure(output / "convergence.svg", "Dice on patches over training steps of all arms", CONVERGENCE_SHOWN),
        table(tables.speed_table(fast, first)),
        heading("Scores"), *map(table, tables.scores_tables(results)),
        heading("Test cases"), paragraph("Mean Dice over labels.", "note"), *map(table, tables.cases_tables(results)),
        heading("Worst cases"), *_pictures(results, folder),
        heading("How this was concluded"), listed(definitions(results, comparisons)),
        *_facts(results, folder),
    ]  # fmt: skip
    with written_atomically(output / PAGE) as temporary:
        temporary.write_text(page(_title(study), parts), encoding="utf-8")
    return Report(output / PAGE, concluded, careful)


def _title(study: Study) -> str:
    return f"What is pre-training worth on {study.dataset}?"


def _beginning(results: Results, concluded: Sequence[Conclusion], careful: Sequence[str]) -> list[str]:
    """What may be concluded, in words."""
    study, hours = results.study, float(np.nansum(results.seconds)) / 3600
    runs = f"{int(results.finished.sum())} of {len(study.runs())} runs finished"
    said = (
        f"{study.configuration} of {study.plans}: {counted(len(study.arms), 'arm')} ({', '.join(study.arms)}), trained "
        f"with {', '.join(map(str, study.labels))} labeled cases, {counted(len(study.seeds), 'seed')}, compared on "
        f"{counted(len(study.test), 'test case')}; {runs}, {hours:.2g} hours of computing."
    )
    found = [
        box("conclusion", [heading(one.headline, 3), listed(one.sentences)]) for one in concluded
    ] or [paragraph("There is a single arm: nothing is compared.")]  # fmt: skip
    warned = [paragraph(text, "caution leak" if text.startswith("Leak") else "caution") for text in careful]
    return [heading(_title(study), 1), paragraph(said, "note"), *warned, heading("What may be concluded"), *found]


def _figure(path: Path, described: str, caption: str) -> list[str]:
    return [picture(path.read_bytes(), "svg+xml", described, caption)]


def _compared(comparisons: Sequence[Comparison], first: str) -> list[str]:
    if not comparisons:
        return []
    return [
        table(tables.comparisons_table(comparisons, first)),
        table(tables.further_tests(comparisons, first)),
        *map(table, tables.other_comparisons(comparisons, first)),
    ]


def _pictures(results: Results, folder: Path) -> list[str]:
    """The worst cases, and which of them cannot be drawn, and why."""
    drawn: list[str] = []
    gone: dict[str, list[str]] = {}
    for worst in worst_cases(results):
        try:
            found = read_case(results.study, folder, worst)
        except GenesisError as error:
            gone.setdefault(reason(error, 300), []).append(f"{worst.case} ({worst.why})")
            continue
        where = f"{worst.case}, {counted(worst.count, 'labeled case')}, seed {worst.seed}"
        caption = f"{where}: {worst.why}. Dotted: the reference."
        described = f"{found.channel} image of {worst.case} with reference and predictions of {', '.join(worst.arms)}"
        drawn.append(picture(draw_case(found), "png", described, caption))
    shown = "Each is shown as the seed predicted it that is worst there, in the slice with most errors."
    missing = [paragraph(f"Not drawn: {why}", "note") + listed(cases) for why, cases in gone.items()]
    return [*([paragraph(shown, "note"), *drawn] if drawn else []), *missing]


def _facts(results: Results, folder: Path) -> list[str]:
    """What the study consists of: settings, digests, versions, devices, cases."""
    study = results.study
    arms = [[name, _arm_in_words(arm)] for name, arm in study.arms.items()]
    known = np.isfinite(results.seconds)
    facts = {
        "settings of all arms": _in_words(study.fine_tuning),
        "prediction": f"nnU-Net's sliding window, {'with' if study.mirroring else 'without'} mirroring",
        "tolerance of NSD": f"{study.tolerance_mm:g} mm",
        "planned with": _in_words(study.versions),
        "run with": "; ".join(f"{name} {' and '.join(sorted(found))}" for name, found in results.versions.items()),
        "devices": "; ".join(f"{device}: {count} runs" for device, count in results.devices.items()) or "not known",
        "hours of computing": f"{results.seconds[known].sum() / 3600:.2f} in all, of {int(known.sum())} runs",
        f"SHA-256 of {FILE}": sha256(folder / FILE),
    }
    hours = [
        [arm, str(int(known[a].sum())), f"{np.nansum(results.seconds[a]) / 3600:.2f}"]
        for a, arm in enumerate(study.arms)
    ]
    labeled = [[f"seed {seed}", ", ".join(cases)] for seed, cases in study.labeled.items()]
    return [
        heading("The study"),
        table(tables.Table("Arms", [], arms), "facts"),
        table(tables.Table("Settings and versions", [], [[name, text] for name, text in facts.items()]), "facts"),
        table(tables.Table("Computing", ["arm", "runs", "hours"], hours)),
        folded(f"{len(study.test)} test cases", [paragraph(", ".join(study.test), "note")]),
        folded("Labeled cases, in order", [table(tables.Table("", [], labeled), "facts")]),
    ]


def _arm_in_words(arm: dict[str, Any]) -> str:
    """What it starts from, digests and settings of its own."""
    checkpoint = arm.get("checkpoint")
    said = [f"checkpoint {printable(Path(checkpoint).name, 100)}" if isinstance(checkpoint, str) else "random weights"]
    others = {name: value for name, value in arm.items() if name not in ("checkpoint", "settings") and value}
    said += [_in_words(others)] * bool(others)
    if settings := arm.get("settings"):
        said.append(f"own settings: {_in_words(settings)}")
    return "; ".join(said)


def _in_words(block: dict[str, Any]) -> str:
    return ", ".join(f"{printable(name, 60)} {printable(json.dumps(value), 200)}" for name, value in block.items())
