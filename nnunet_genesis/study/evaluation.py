"""A predicted and a reference segmentation → Dice, NSD and Hausdorff distance of every label."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_genesis.errors import StudyError

Scores = dict[str, dict[str, float | None]]
"""Label → metric → value; None where it is not defined."""


def label_values(dataset_json: Mapping[str, Any]) -> dict[str, int | tuple[int, ...]]:
    """Foreground labels, or regions of several labels, by name."""
    labels = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in labels.items()}


def evaluate(
    prediction: Path, reference: Path, reader: Any, dataset_json: Mapping[str, Any], tolerance: float
) -> Scores:
    """Compare two segmentations of a case.

    Dice is nnU-Net's own, not defined (None) where a label is in neither of them. NSD is the share of both surfaces
    that lies within the tolerance of the other one (Nikolov et al. 2021), HD95 the 95th percentile of the distances
    between them, in mm; both are MONAI's. Where only one of them has the label, NSD is 0 and HD95 is not defined.

    Args:
        prediction: File of the predicted segmentation.
        reference: File of the reference.
        reader: nnU-Net's reader of the dataset.
        dataset_json: Names of the labels.
        tolerance: Of NSD, in mm.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics, region_or_label_to_mask

    values, ignore = label_values(dataset_json), dataset_json["labels"].get("ignore")
    overlap = compute_metrics(str(reference), str(prediction), reader, list(values.values()), ignore)["metrics"]
    (truth, facts), (predicted, _) = (reader.read_seg(str(path)) for path in (reference, prediction))
    spacing = [float(step) for step in facts["spacing"]]
    counted = np.ones_like(truth, bool) if ignore is None else truth != ignore
    scores: Scores = {}
    for name, value in values.items():
        masks = [(region_or_label_to_mask(image, value) & counted)[0] for image in (predicted, truth)]
        nsd, distance = surface_scores(masks[0], masks[1], spacing, tolerance)
        found = {"Dice": overlap[value]["Dice"], "NSD": nsd, "HD95": distance}
        scores[name] = {metric: defined(number) for metric, number in found.items()}
    return scores


def surface_scores(
    predicted: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], spacing: list[float], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95 of two masks (*spatial) of one shape, by MONAI; NaN where not defined.

    Raises:
        StudyError: MONAI is not installed.
    """
    surface_dice, hausdorff = surface_metrics()
    if not (predicted.any() and truth.any()):
        return (0.0 if predicted.any() or truth.any() else math.nan), math.nan
    if predicted.shape[0] == 1:  # a 2D image
        predicted, truth, spacing = predicted[0], truth[0], spacing[1:]
    box = tuple(
        slice(max(0, where.min() - 2), where.max() + 3) for where in np.nonzero(predicted | truth)
    )  # surfaces are nowhere else
    one_hot = [torch.from_numpy(np.ascontiguousarray(mask[box])[None, None]).float() for mask in (predicted, truth)]
    options = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, at its own call
        return (
            float(surface_dice(*one_hot, class_thresholds=[tolerance], **options)),
            float(hausdorff(*one_hot, percentile=95, **options)),
        )


def surface_metrics() -> tuple[Any, Any]:
    """MONAI's functions for NSD and HD95.

    Raises:
        StudyError: MONAI is not installed.
    """
    try:
        from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    except ImportError:
        raise StudyError(
            'Surface distances need MONAI. Install it: pip install "nnunet-genesis[study]", and run the study again.'
        ) from None
    return compute_surface_dice, compute_hausdorff_distance


def defined(value: float) -> float | None:
    """Six digits, so that files say what was measured and no more."""
    return round(float(value), 6) if math.isfinite(value) else None
