"""The examples' mistakes are one line."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.conftest import REPOSITORY
from tests.test_encoders import checkpoint


@pytest.fixture
def classification(tmp_path: Path, monkeypatch):
    """Run examples/classification.py on three small cases; its output."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "task" / folder).mkdir(parents=True)
    for case in range(3):
        image = np.random.default_rng(case).normal(size=(20, 20, 20)).astype("f4")
        labels = np.zeros(image.shape, "u1")
        labels[8:12, 8:12, 8:10], labels[8:12, 8:12, 10:12] = 1, 2
        for folder, volume in (("imagesTr", image), ("labelsTr", labels)):
            sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "task" / folder / f"c{case}.nii.gz"))

    def run(channels: list[str], *flags: object) -> None:
        path, _ = checkpoint(tmp_path, "plain 3D", channels)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
        monkeypatch.setattr("sys.argv", ["classification.py", str(path), str(tmp_path / "task"), *map(str, flags)])
        runpy.run_path(str(REPOSITORY / "examples" / "classification.py"), run_name="__main__")

    return run


def test_classification_prints_a_score_of_each_arm(classification, capsys):
    classification(["T1"], "--train", 2, "--seeds", 2, "--steps", 1)
    shown = capsys.readouterr().out
    assert "2 cases to train on, 1 with 16 patches to test on" in shown
    assert shown.count("mean ± sd of 2 seeds") == 2


@pytest.mark.parametrize(
    ("channels", "flags", "message"),
    [
        (["T1"], ("--edge", 6), "6x6x6 voxels .* multiples of 2x4x4.* --edge, now 6, sets"),
        (["T1", "T2"], (), r"reads images \(N, 2, z, y, x\)"),
        (["T1"], (), "has 3 labeled cases: --train 8 does not leave one"),
        (["T1"], ("--train", 0), "--train 0 does not leave one"),
        (["T1"], ("--train", 2, "--edge", 24), "Among 1 cases, labels 1 and 2 do not both have a patch of 24 voxels"),
    ],
)
def test_mistakes_with_classification_are_one_line(classification, channels, flags, message):
    with pytest.raises(SystemExit, match=message) as end:
        classification(channels, *flags)
    assert "\n" not in str(end.value)
