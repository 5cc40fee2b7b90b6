"""Does a difference map of `restore` find anomalies? Plants some into healthy scans, and compares with simple maps.

    python benchmarks/anomalies.py masking.pth paper.pth -i SCANS -n 40 --json results.json

Into every scan one anomaly of each kind is planted, one scan for each: a sphere that is brighter or darker than its
surroundings by one standard deviation of the scan, with a soft edge, or one whose voxels are those of another place in
the scan. Scores are areas under the ROC curve of the voxels of the foreground (those above the scan's median and the
anomaly itself): 0.5 is a map that knows nothing. The scans must not be among those of the pre-training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from measuring import add_device, facts, machine, table
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from nnunet_genesis.files import sha256, write_json
from nnunet_genesis.importing.find import find_scans
from nnunet_genesis.importing.read import read_channels
from nnunet_genesis.restoring.restorer import Restorer

RADII = (3.0, 6.0)
"""Smallest and largest radius of a sphere in voxels."""
SOFT = 0.7
"""Standard deviation of the edge of a sphere in voxels."""
Volume = np.ndarray[Any, np.dtype[np.float32]]
Planted = tuple[Volume, np.ndarray[Any, np.dtype[np.bool_]]]


def sphere(shape: tuple[int, ...], centre: Any, radius: float) -> np.ndarray[Any, Any]:
    """The voxels of a sphere."""
    axes = np.ogrid[tuple(slice(0, edge) for edge in shape)]
    return np.asarray(sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)) <= radius**2)


def plant(image: Volume, kind: str, rng: np.random.Generator) -> Planted:
    """A scan with an anomaly, and where it is."""
    radius = rng.uniform(*RADII)
    margin = int(np.ceil(radius)) + 1
    inner = np.zeros(image.shape, dtype=bool)
    inner[(slice(margin, -margin),) * 3] = True
    places = np.argwhere(inner & (image > np.median(image)))
    centre = rng.choice(places)
    where = sphere(image.shape, centre, radius)
    weight = gaussian_filter(where.astype(np.float32), SOFT)
    if kind == "swapped":
        far = places[np.linalg.norm(places - centre, axis=1) > 2 * radius]
        other = np.roll(image, centre - rng.choice(far), axis=(0, 1, 2))
        return image + weight * (other - image), where
    step = image.std() * {"bright": 1, "dark": -1}[kind]
    return (image + weight * step).astype(np.float32), where


def auroc(scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """Area under the ROC curve: the probability that an anomalous voxel scores higher than another one."""
    ranks, positives = rankdata(scores), int(truth.sum())
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))


def blurred(sigma: float) -> Callable[[Volume, Any], Volume]:
    """The map of differences to a blurred scan."""
    return lambda image, _: np.abs(image - gaussian_filter(image, sigma))


BASELINES: dict[str, Callable[[Volume, Any], Volume]] = {
    "absolute z-score": lambda image, _: np.abs(image - image.mean()),
    **{f"difference to a blurred scan, sigma {sigma:g}": blurred(sigma) for sigma in (1, 2, 4)},
}


def networks(
    paths: list[Path], passes: list[int], device: str
) -> Iterator[tuple[str, Callable[[Volume, Any], Volume]]]:
    """Maps of checkpoints, by the names of their files, seen whole and in parts."""
    for path in paths:
        for hide in passes:
            restorer = Restorer(path, device, hide)
            name = f"{path.stem}, {f'in {hide} parts' if hide else 'seen whole'}"

            def difference(image: Volume, spacing: Any, restorer: Restorer = restorer) -> Volume:
                return restorer.restore(image[None], spacing).difference

            yield name, difference


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("-i", nargs="+", type=Path, required=True, help="scans of one channel")
    parser.add_argument("-n", type=int, default=40, help="number of scans (%(default)s)")
    parser.add_argument("--hide", nargs="+", type=int, default=[0, 2, 4, 8], help="parts, 0: seen whole (%(default)s)")
    parser.add_argument(
        "--smooth", type=float, default=1.0, help="every map is blurred too, by that sigma (%(default)s)"
    )
    parser.add_argument("--json", type=Path)
    add_device(parser, "cpu")
    chosen = parser.parse_args()
    maps = BASELINES | dict(networks(chosen.checkpoints, chosen.hide, chosen.device))
    found: dict[str, dict[str, list[float]]] = {f"{name}{more}": {} for name in maps for more in ("", ", smoothed")}
    scans = find_scans(chosen.i, 1, Path("/nowhere"))[: chosen.n]
    for number, scan in enumerate(scans):
        (file,) = read_channels(scan.channels)
        healthy = sitk.GetArrayFromImage(file).astype(np.float32)
        for kind_number, kind in enumerate(("bright", "dark", "swapped")):
            image, where = plant(healthy, kind, np.random.default_rng([number, kind_number]))
            counted = (healthy > np.median(healthy)) | where
            for name, make in maps.items():
                difference = make(image, file.GetSpacing()[::-1])
                for more, scores in (("", difference), (", smoothed", gaussian_filter(difference, chosen.smooth))):
                    found[name + more].setdefault(kind, []).append(auroc(scores[counted], where[counted]))
    rows = [[name, *(f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"
                     for values in kinds.values())] for name, kinds in found.items()]  # fmt: skip
    print(table(["map", "bright", "dark", "swapped"], rows))
    device = torch.device(chosen.device)
    print(f"\n{len(scans)} scans; mean ± standard error. {facts(device)}")
    if chosen.json:
        sums = {path.name: sha256(path) for path in chosen.checkpoints}
        write_json({"auroc": found, "scans": len(scans), "sha256": sums, "machine": machine(device)}, chosen.json)


if __name__ == "__main__":
    main()
