"""Which correlations do different scans have, and the same scan after it was resampled or saved again?

Real scans → a JSON file and tables: how alike the most similar different cases are, how alike copies are, and how many
of each are taken for the same image, at the threshold of `nnunet_genesis leaks`; seconds and bytes for each case.

    python benchmarks/leaks.py FOLDER_OF_IMAGES [--others FOLDER …] [--cases N] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from measuring import facts, machine, table

from nnunet_genesis.leaks.case_record import CaseRecord
from nnunet_genesis.leaks.search import SIMILAR, search
from nnunet_genesis.leaks.signature import DIGEST, LENGTH, Array, digest, oriented, pooled, shifted, signature, unit

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


def scans(folder: Path, most: int | None = None) -> Iterator[tuple[str, sitk.Image]]:
    """Three-dimensional images below a folder, as float32."""
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(ENDINGS))
    for path in files[:most]:
        image = sitk.ReadImage(str(path))
        if image.GetDimension() == 3 and min(image.GetSize()) > 3 and image.GetNumberOfComponentsPerPixel() == 1:
            yield path.name, sitk.Cast(image, sitk.sitkFloat32)


def normalised(image: sitk.Image) -> Array:
    """(z, y, x), cropped to nonzero, mean 0 and deviation 1: what nnU-Net's preprocessing does, resampling aside."""
    voxels = sitk.GetArrayFromImage(image)
    inside = np.argwhere(voxels != 0)
    low, high = inside.min(0), inside.max(0) + 1
    voxels = voxels[tuple(slice(begin, end) for begin, end in zip(low, high, strict=True))]
    return np.asarray((voxels - voxels.mean()) / max(voxels.std(), 1e-8))


def respaced(image: sitk.Image, factors: Sequence[float], interpolator: int, box: bool = False) -> sitk.Image:
    """With voxels `factors` times as large; the centre of the first voxel stays, or with `box` the outer border."""
    spacing = [old * factor for old, factor in zip(image.GetSpacing(), factors, strict=True)]
    size = [max(2, round(old / factor)) for old, factor in zip(image.GetSize(), factors, strict=True)]
    first = [0.5 * factor - 0.5 if box else 0.0 for factor in factors]
    origin = image.TransformContinuousIndexToPhysicalPoint(first)
    grid = (origin, spacing, image.GetDirection())
    edge = float(sitk.GetArrayViewFromImage(image).min())
    return sitk.Resample(image, size, sitk.Transform(), interpolator, *grid, edge)


def thicker(image: sitk.Image, times: float) -> sitk.Image:
    """With slices `times` as thick, along the axis with the fewest of them."""
    axis = int(np.argmin(image.GetSize()))
    return respaced(image, [times if each == axis else 1.0 for each in range(3)], sitk.sitkLinear)


def saved_as_bytes(image: sitk.Image) -> sitk.Image:
    """In 256 grey levels."""
    return sitk.Cast(sitk.RescaleIntensity(image, 1, 255), sitk.sitkUInt8)


def flipped(image: sitk.Image) -> sitk.Image:
    """Stored with other axes in other directions, as some converters do."""
    return sitk.Flip(sitk.PermuteAxes(image, [1, 0, 2]), [True, False, True])


COPIES: dict[str, Callable[[sitk.Image], sitk.Image]] = {
    "256 grey levels": saved_as_bytes,
    "float16": lambda image: sitk.GetImageFromArray(
        sitk.GetArrayFromImage(sitk.RescaleIntensity(image, 1, 1000)).astype(np.float16).astype(np.float32)
    ),
    "other order and direction of axes": flipped,
    "intensities clipped at 1 % and 99 %": lambda image: sitk.Clamp(
        image, sitk.sitkFloat32, *map(float, np.percentile(sitk.GetArrayViewFromImage(image), (1, 99)))
    ),
    "voxels x 0.5, linear": lambda image: respaced(image, [0.5] * 3, sitk.sitkLinear),
    "voxels x 0.7, nearest": lambda image: respaced(image, [0.7] * 3, sitk.sitkNearestNeighbor),
    "voxels x 1.3, cubic": lambda image: respaced(image, [1.3] * 3, sitk.sitkBSpline),
    "voxels x 1.5, linear": lambda image: respaced(image, [1.5] * 3, sitk.sitkLinear),
    "voxels x 2, cubic, borders kept": lambda image: respaced(image, [2.0] * 3, sitk.sitkBSpline, True),
    "voxels x 2, linear": lambda image: respaced(image, [2.0] * 3, sitk.sitkLinear),
    "slices x 2, linear": lambda image: thicker(image, 2.0),
    "slices x 3, linear": lambda image: thicker(image, 3.0),
    "one voxel cut off each side": lambda image: sitk.Crop(image, [1] * 3, [1] * 3),
    "a tenth cut off each side": lambda image: sitk.Crop(image, *[[max(1, n // 10) for n in image.GetSize()]] * 2),
}


def record(volumes: Iterable[tuple[str, Array]]) -> CaseRecord:
    """The record of one-channel cases."""
    rows = [(name, digest(volume), signature(pooled(volume))) for name, volume in volumes]
    digests = np.array([np.frombuffer(row[1], np.uint8) for row in rows]).reshape(-1, DIGEST)
    return CaseRecord(tuple(row[0] for row in rows), digests, np.array([row[2] for row in rows]).reshape(-1, LENGTH))


def different(volumes: Sequence[tuple[str, Array]], known: CaseRecord) -> dict[str, Any]:
    """Largest correlation of each pair of different cases, over shifts, and over orientations without shifts."""
    references = unit(known.signatures)
    shifts, turns = [], []
    for row, (_, volume) in enumerate(volumes):
        points = pooled(volume)
        others = np.arange(len(volumes)) != row
        shifts.append((shifted(points) @ references.T).max(0)[others])
        vector = unit(signature(points)[None])
        turned = np.concatenate([oriented(vector, number) for number in range(1, 48)])
        turns.append((turned @ references.T).max(0)[others])
    return {"pairs": len(volumes) * (len(volumes) - 1), "own orientation": spread(shifts),
            "another orientation": spread(turns)}  # fmt: skip


def spread(values: Any) -> dict[str, float]:
    """Smallest, middle, largest of some correlations, and how many reach the threshold."""
    values = np.concatenate([np.ravel(value) for value in values])
    low, middle, high, top = np.quantile(values, (0, 0.5, 0.999, 1))
    found = int((values >= SIMILAR).sum())
    return {"smallest": low, "median": middle, "99.9 %": high, "largest": top, "found": found, "of": len(values)}


def copies(images: Sequence[tuple[str, sitk.Image]], known: CaseRecord) -> dict[str, dict[str, float]]:
    """For each kind of copy: correlations with the original, how many were found, and how many as another case."""
    rows, references = {}, unit(known.signatures)
    for kind, copy in COPIES.items():
        similar, found, wrong = [], 0, 0
        for row, (name, image) in enumerate(images):
            volume = normalised(copy(image))
            hits = search(known, [("copy", [volume])])
            found += any(hit.other == name for hit in hits)
            wrong += any(hit.other != name for hit in hits)
            variants = shifted(pooled(volume))
            turns = range(48) if kind.startswith("other order") else range(1)
            similar.append(max((oriented(variants, turn) @ references[row]).max() for turn in turns))
        rows[kind] = spread([similar]) | {"found": found, "found as another case": wrong}
    return rows


def cost(volumes: Sequence[tuple[str, Array]]) -> dict[str, float]:
    """Seconds for a case and its voxels, and for searching records of several sizes."""
    began = time.perf_counter()
    known = record(volumes)
    result = {"seconds per case": (time.perf_counter() - began) / len(volumes),
              "voxels per case": float(np.mean([volume.size for _, volume in volumes]))}  # fmt: skip
    large = np.random.default_rng(0).normal(size=(256, 256, 256)).astype(np.float32)
    began = time.perf_counter()
    record([("large", large)])
    result["seconds for 256 x 256 x 256 voxels"] = time.perf_counter() - began
    rng = np.random.default_rng(0)
    for rows in (1_000, 100_000):
        names = tuple(f"scan{number}" for number in range(rows))
        digests = rng.integers(0, 256, (rows, DIGEST), np.uint8)
        many = CaseRecord(names, digests, rng.integers(-40, 41, (rows, LENGTH), np.int8))
        began = time.perf_counter()
        search(many, ((name, [volume]) for name, volume in itertools.islice(volumes, 16)))
        result[f"seconds per case, {rows} cases pre-trained on"] = (time.perf_counter() - began) / min(16, len(volumes))
    return result | {"bytes per channel of a case": LENGTH + DIGEST, "cases": len(known.names)}


def measure(images: list[tuple[str, sitk.Image]]) -> dict[str, Any]:
    """All of it for one set of scans."""
    volumes = [(name, normalised(image)) for name, image in images]
    known = record(volumes)
    return {"cases": len(images), "different": different(volumes, known), "copies": copies(images, known)}


def show(title: str, result: dict[str, Any]) -> None:
    """Print the tables of one set of scans."""
    columns = ("smallest", "median", "99.9 %", "largest")
    rows = [
        (f"different cases, {name}", *(f"{row[column]:.3f}" for column in columns), f"{row['found']} of {row['of']}")
        for name, row in result["different"].items() if name != "pairs"
    ]  # fmt: skip
    rows += [
        (name, *(f"{row[column]:.3f}" for column in columns), f"{row['found']} of {row['of']}")
        for name, row in result["copies"].items()
    ]
    print(f"\n{title}: {result['cases']} scans\n")
    print(table(("pair", *columns, f"taken for the same image (from {SIMILAR})"), rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images of one kind")
    parser.add_argument("--others", nargs="*", type=Path, default=[], help="folders of other images, one set")
    parser.add_argument("--cases", type=int, help="only the first images of the folder")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    chosen = parser.parse_args()
    images = list(scans(chosen.folder, chosen.cases))
    results: dict[str, Any] = {"machine": machine(None), chosen.folder.parent.name: measure(images)}
    show(chosen.folder.parent.name, results[chosen.folder.parent.name])
    if chosen.others:
        results["others"] = measure([scan for folder in chosen.others for scan in scans(folder)])
        show("others", results["others"])
    results["cost"] = cost([(name, normalised(image)) for name, image in images])
    print()
    print(facts(None))
    print(table(("cost", ""), [(name, f"{value:.4g}") for name, value in results["cost"].items()]))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1, default=float))


if __name__ == "__main__":
    main()
