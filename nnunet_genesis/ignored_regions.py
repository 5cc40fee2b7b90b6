"""Masks of regions that are not to be restored → marks in preprocessed volumes, where pre-training finds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.files import sha256
from nnunet_genesis.nnunet_dataset import nnunet_folder

FOLDER = "ignoreTr"
"""Folder of a raw dataset, beside imagesTr, with one mask for each case that has such a region: CASE.nii.gz."""

IGNORED = 1
"""Value of ignored voxels in nnU-Net's segmentation of a marked case."""

DIGEST = "genesis_ignored"
"""Where a marked segmentation holds the SHA-256 of the mask; labels of other segmentations are no marks."""

TOLERANCE = 1e-3


def masks_of(dataset: str, cases: Iterable[str], file_ending: str) -> dict[str, Path]:
    """The masks of a raw dataset, by case.

    Raises:
        DatasetError: A file in the folder is no mask of any case.
    """
    folder = nnunet_folder("nnUNet_raw") / dataset / FOLDER
    files = sorted(path for path in folder.glob("*") if not path.name.startswith("."))
    masks = {path.name.removesuffix(file_ending): path for path in files}
    if strangers := masks.keys() - set(cases):
        name = printable(masks[min(strangers)].name, 80)
        raise DatasetError(f"{folder} holds {name}, no mask of a case. Name it CASE{file_ending}, or remove it.")
    return masks


def mark(case: Path, mask: Path, plans_manager: Any, configuration_manager: Any, properties: Mapping[str, Any]) -> None:
    """Mark the ignored voxels of a preprocessed case: transposed, cropped and resampled like its image.

    Args:
        case: Its files without their endings.
        mask: Image of the same geometry; voxels that are not 0 are ignored.
        plans_manager: nnU-Net's, for reader and order of axes.
        configuration_manager: nnU-Net's, for spacing and resampling of segmentations.
        properties: nnU-Net's, of the case.

    Raises:
        DatasetError: The geometry differs, or nothing but ignored voxels is left.
    """
    import blosc2

    values, geometry = plans_manager.image_reader_writer_class().read_seg(str(mask))
    order = plans_manager.transpose_forward
    values = values.transpose([0, *(axis + 1 for axis in order)])
    if values.shape != (1, *properties["shape_before_cropping"]):
        raise DatasetError(f"its mask in {FOLDER} has another size than the image")
    _refuse_other_geometry(geometry, properties)
    window = (slice(None), *(slice(low, high) for low, high in properties["bbox_used_for_cropping"]))
    ignored = (values[window] != 0).astype(np.float32)
    spacing = [properties["spacing"][axis] for axis in order]
    # 2d keeps the distance of slices, which are along the first axis
    target = [*spacing[: len(spacing) - len(configuration_manager.spacing)], *configuration_manager.spacing]
    segmentation = blosc2.open(f"{case}_seg.b2nd", mode="a")
    resampled = configuration_manager.resampling_fn_seg(ignored, segmentation.shape[1:], spacing, target)
    marked = segmentation[:]
    marked[np.asarray(resampled) > 0.5] = IGNORED
    if (marked == IGNORED).all():
        raise DatasetError(f"its mask in {FOLDER} covers all of the image; remove the case")
    segmentation[:] = marked
    segmentation.schunk.vlmeta[DIGEST] = sha256(mask)


def digest_in(segmentation: Any) -> str:
    """Digest of the mask with which a segmentation was marked; "" if it was not.

    Args:
        segmentation: As nnU-Net's datasets load it; only blosc2's arrays can be marked.
    """
    chunks = getattr(segmentation, "schunk", None)
    return str(chunks.vlmeta[DIGEST]) if chunks is not None and DIGEST in chunks.vlmeta else ""


def _refuse_other_geometry(geometry: Mapping[str, Any], properties: Mapping[str, Any]) -> None:
    """Compare what a reader of nnU-Net says of a mask to what it said of the image: spacing, origin, axes."""
    for name, given in geometry.items():
        if isinstance(given, Mapping):
            _refuse_other_geometry(given, properties[name])
        elif not np.allclose(given, properties[name], rtol=0, atol=TOLERANCE):
            raise DatasetError(f"its mask in {FOLDER} has another {name.replace('_', ' ')} than the image")
