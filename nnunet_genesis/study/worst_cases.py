"""Results → the cases an arm loses most in, or all are lowest in, and pictures of image, reference, predictions."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_genesis.errors import GenesisError, printable, reason
from nnunet_genesis.nnunet_dataset import (
    channel_names,
    nnunet_folder,
    preprocessed_folder,
    read_dataset_json,
    read_plans,
)
from nnunet_genesis.study.design import Run, Study
from nnunet_genesis.study.drawing import PLAIN_STYLE
from nnunet_genesis.study.results import MAIN, Array, Results
from nnunet_genesis.study.statistics import mean_of_defined

MOST = 3
"""Pictures of each kind."""
MOST_ARMS = 5
"""Predictions in a picture."""
MARGIN = 12
"""Pixels that are shown around what is segmented."""
WIDTH = 2.6
"""Of a panel, in inches."""
COLOURS = ("#ffd400", "#ff4fa3", "#35d0ff", "#8dff57", "#ff8a3d", "#b48cff")


@dataclass(frozen=True)
class WorstCase:
    """A test case to look at, as networks of one seed and number of labels predicted it; `why` in words."""

    case: str
    count: int
    seed: int
    arms: list[str]
    why: str


def worst_cases(results: Results) -> list[WorstCase]:
    """The cases in which each arm loses most against the first one, and those of the lowest mean of all arms.

    Scores are mean Dice over labels; what counts is the mean over seeds, what is shown the worst of the seeds.
    """
    scores = mean_of_defined(results.scores[MAIN], -1)  # (arms, label counts, seeds, cases)
    study, first = results.study, next(iter(results.study.arms))
    found = []
    for a, arm in list(enumerate(study.arms))[1:]:
        lost = scores[a] - scores[0]
        for n, c in _lowest(mean_of_defined(lost, 1)):
            seed = int(np.nanargmin(lost[n, :, c]))
            if (loss := float(mean_of_defined(lost[n, :, c], 0))) < 0:
                why = f"{arm} loses most against {first}: {loss:.3f} Dice on average, {lost[n, seed, c]:.3f} here"
                found.append(WorstCase(study.test[c], study.labels[n], study.seeds[seed], [first, arm], why))
    last = scores[:, -1]
    for _, c in _lowest(mean_of_defined(last, (0, 1))[None]):
        seed = int(np.nanargmin(mean_of_defined(last[:, :, c], 0)))
        arms = [arm for arm, finished in zip(study.arms, results.finished[:, -1, seed], strict=True) if finished]
        why = f"lowest mean of all arms: {float(mean_of_defined(last[:, :, c], (0, 1))):.3f} Dice"
        found.append(WorstCase(study.test[c], study.labels[-1], study.seeds[seed], arms[:MOST_ARMS], why))
    return found


def _lowest(scores: Array) -> Iterator[tuple[int, int]]:
    """Places of the lowest numbers of (label counts, cases), a case once."""
    seen: set[int] = set()
    for place in np.argsort(scores, axis=None, kind="stable"):
        n, c = (int(index) for index in np.unravel_index(place, scores.shape))
        if c not in seen and len(seen) < MOST and np.isfinite(scores[n, c]):
            seen.add(c)
            yield n, c


@dataclass(frozen=True)
class Segmented:
    """What a picture is drawn from.

    Attributes:
        image: First channel (z, y, x).
        spacing: Of z, y and x, in mm.
        reference: Labels (z, y, x).
        predictions: Arm → labels (z, y, x).
        names: Label → name.
        channel: Name of the channel.
    """

    image: Array
    spacing: Sequence[float]
    reference: Array
    predictions: dict[str, Array]
    names: dict[int, str]
    channel: str


def read_case(study: Study, folder: Path, worst: WorstCase) -> Segmented:
    """Read image, reference and predictions, by nnU-Net's reader.

    Raises:
        GenesisError: One of them is not there, or cannot be read; says which.
    """
    description = read_dataset_json(study.dataset)
    ending = description["file_ending"]
    files = {
        arm: folder / "predictions" / Run(arm, worst.count, worst.seed).name / f"{worst.case}{ending}"
        for arm in worst.arms
    }
    reference = preprocessed_folder(study.dataset) / "gt_segmentations" / f"{worst.case}{ending}"
    image = _image_file(study.dataset, description, worst.case)
    for what, path in [("image", image), ("reference", reference), *(("prediction", path) for path in files.values())]:
        if not path.is_file():
            raise GenesisError(f"the {what} is gone ({path.parent.name}/{path.name})")
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = read_plans(study.dataset, study.plans)
    try:
        reader = PlansManager(plans).image_reader_writer_class()
        voxels, facts = reader.read_images((str(image),))
        truth, *found = (np.asarray(reader.read_seg(str(path))[0][0]) for path in (reference, *files.values()))
    except Exception as error:  # of any reader, on any file
        raise GenesisError(f"a file cannot be read ({reason(error)})") from None
    if any(array.shape != voxels[0].shape for array in (truth, *found)):
        raise GenesisError("image, reference and predictions have different shapes")
    names = {value: str(name) for name, value in description["labels"].items() if isinstance(value, int)}
    predictions = dict(zip(files, found, strict=True))
    return Segmented(voxels[0], facts["spacing"], truth, predictions, names, channel_names(description)[0])


def _image_file(dataset: str, description: dict[str, Any], case: str) -> Path:
    """The file of a case's first channel."""
    folder = nnunet_folder("nnUNet_raw") / dataset
    if "dataset" in description:  # nnU-Net's way of naming files that lie elsewhere
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        try:
            return Path(get_filenames_of_train_images_and_targets(str(folder), description)[case]["images"][0])
        except (KeyError, TypeError, IndexError):
            raise GenesisError('the image is not in the "dataset" block of dataset.json') from None
    return folder / "imagesTr" / f"{case}_0000{description['file_ending']}"


@PLAIN_STYLE
def draw_case(found: Segmented) -> bytes:
    """PNG: the slice with most errors; image, reference, then each prediction, with the reference dotted."""
    z, box = _where_to_look(found)
    image, reference = found.image[z][box], found.reference[z][box]
    predictions = {arm: prediction[z][box] for arm, prediction in found.predictions.items()}
    labels = [int(label) for label in np.unique([reference, *predictions.values()]) if label > 0]
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    aspect = float(found.spacing[1]) / float(found.spacing[2])
    tall = min(max(WIDTH * image.shape[0] * aspect / image.shape[1], WIDTH / 2), 2 * WIDTH)
    figure = Figure(figsize=(WIDTH * (2 + len(predictions)), tall + 0.7), layout="constrained")
    axes = figure.subplots(1, 2 + len(predictions))
    low, high = np.percentile(image[np.isfinite(image)], (0.5, 99.5)) if np.isfinite(image).any() else (0, 1)
    for ax, title in zip(axes, ["image", "reference", *predictions], strict=True):
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
        ax.set_title(title, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    for label, colour in colours.items():
        _outline(axes[1], reference == label, colour, "-")
        for ax, prediction in zip(axes[2:], predictions.values(), strict=True):
            _outline(ax, prediction == label, colour, "-")
            _outline(ax, reference == label, colour, ":")
    names = [printable(found.names.get(label, f"label {label}"), 40) for label in labels]
    marks = [Line2D([], [], color=colour) for colour in colours.values()]
    legend = figure.legend(marks[:6], names[:6], loc="outside lower center", ncols=6, fontsize=8, facecolor="#555555",
                           labelcolor="white")  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _where_to_look(found: Segmented) -> tuple[int, tuple[slice, ...]]:
    """The slice in which predictions differ most from the reference, and the box around what is segmented there."""
    everything = np.stack([found.reference, *found.predictions.values()])
    wrong = (everything[1:] != everything[0]).sum(axis=(0, 2, 3))
    shown = (everything[0] > 0).sum(axis=(1, 2))
    z = int(np.lexsort((shown, wrong))[-1])
    box = tuple(
        slice(max(0, where.min() - MARGIN), where.max() + MARGIN + 1) if where.size else slice(None)
        for where in np.nonzero((everything[:, z] > 0).any(axis=0))
    )
    return z, box


def _outline(ax: Any, mask: Array, colour: str, dashes: str) -> None:
    if mask.any() and not mask.all():
        ax.contour(mask.astype(float), levels=[0.5], colors=colour, linewidths=1.3, linestyles=dashes)
