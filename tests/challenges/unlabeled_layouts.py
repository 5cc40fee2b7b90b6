"""Miniature downloads of LUNA16 and ChestX-ray14 in their own layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.challenges.layouts import voxels, write

PICTURES = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000003_000.png", "00000003_001.png"]
FOUND = ["Cardiomegaly|Emphysema", "No Finding", "Hernia", "No Finding", "Effusion"]
HEADER = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
          "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],")  # fmt: skip


def uid(subset: int, number: int = 0) -> str:
    return f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{100 + subset}{number}"


def write_luna16(folder: Path, subsets: Sequence[int] = range(10)) -> Path:
    """One scan in each subset, two in subset 0, what macOS adds, and a mask of lungs."""
    for subset in subsets:
        for number in range(2 if subset == 0 else 1):
            write(voxels(uid(subset, number))[0], folder / f"subset{subset}" / f"{uid(subset, number)}.mhd")
        (folder / f"subset{subset}" / f"._{uid(subset)}.mhd").write_bytes(b"\0\5\26\7 resource fork")
    write(voxels("mask")[0], folder / "seg-lungs-LUNA16" / f"{uid(0)}.mhd")
    return folder


def write_chestxray(
    folder: Path, images: Sequence[np.ndarray] = (), found: Sequence[str] = FOUND, tests: int = 2
) -> Path:
    """X-rays (y, x), 8 bits, in folders of three; the last `tests` are those of the test list.

    By default five of three patients, of whom the third is tested on. The second image has four channels, three of them
    equal, as some of the download have.
    """
    names = [f"{number:08d}_000.png" for number in range(1, 1 + len(images))] or PICTURES
    images = images or [np.random.default_rng(number).integers(0, 255, (16, 16)).astype("u1") for number in range(5)]
    for number, (name, image) in enumerate(zip(names, images, strict=True)):
        where = folder / f"images_{1 + number // 3:03d}" / "images"
        where.mkdir(parents=True, exist_ok=True)
        colours = np.dstack([image] * 3 + [np.full_like(image, 255)])
        Image.fromarray(colours if number == 1 else image).save(where / name)
        (where / f"._{name}").write_bytes(b"\0\5\26\7 resource fork")
    (folder / "train_val_list.txt").write_text("\n".join(names[:-tests]) + "\n")
    (folder / "test_list.txt").write_text("\n".join(names[-tests:]) + "\n")
    rows = [
        f"{name},{of_it},0,{int(name[:8])},58,M,PA,2682,2749,0.143,0.143,"
        for name, of_it in zip(names, found, strict=True)
    ]
    (folder / "Data_Entry_2017.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder
