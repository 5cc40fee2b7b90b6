"""The examples' mistakes are one line."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.challenges.unlabeled_layouts import write_chestxray
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


EXAMPLE = str(REPOSITORY / "examples" / "findings.py")


def x_rays(count: int) -> tuple[list[np.ndarray], list[str]]:
    """Noise with a bright spot for one finding and a dark base for another; a third is in none."""
    images, found = [], []
    for number in range(count):
        image = np.random.default_rng(number).integers(90, 110, (16, 16)).astype("u1")
        spot, base = number % 2, number // 2 % 2
        image[5:9, 5:9] += np.uint8(60 * spot)
        image[12:] -= np.uint8(60 * base)
        images.append(image)
        found.append("|".join(["Nodule"] * spot + ["Effusion"] * base) or "No Finding")
    return images, found


@pytest.fixture
def findings_example(tmp_path: Path, monkeypatch):
    """Run examples/findings.py on generated X-rays."""
    folder = write_chestxray(tmp_path / "cxr", *x_rays(40), tests=16)

    def run(*flags: object, kind: str = "plain 2D", channels: tuple[str, ...] = ("Xray",)) -> None:
        path, _ = checkpoint(tmp_path, kind, list(channels))
        monkeypatch.setattr("sys.argv", ["findings.py", str(path), str(folder), *map(str, flags)])
        runpy.run_path(EXAMPLE, run_name="__main__")

    return run


def test_findings_are_scored_each_on_its_own(findings_example, capsys):
    findings_example("--seeds", 1, "--steps", 1, "--edge", 16)
    shown = capsys.readouterr().out
    assert "24 images to train on, 16 to test on" in shown
    rows = {words[0]: words[1:] for words in map(str.split, shown.splitlines()) if words}
    for finding in ("Nodule", "Effusion"):
        count, *scores = rows[finding]
        assert (count, len(scores)) == ("8", 2)
    assert "Hernia" not in rows
    assert len(rows["mean"]) == 2


def test_findings_are_learned_together(tmp_path):
    example = runpy.run_path(EXAMPLE)
    images, found = x_rays(40)
    folder = write_chestxray(tmp_path, images, found)
    names = [f"{number:08d}_000.png" for number in range(1, 41)]
    files = example["images_below"](folder)
    pictures = example["read_images"]([files[name] for name in names], 16)
    np.testing.assert_allclose(pictures[7, 0], (images[7] - images[7].mean()) / images[7].std(), rtol=1e-5)
    wanted = example["targets"](names, example["findings"](folder))
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 14))
    example["train"](classifier, pictures[:24], wanted[:24], 60, 0.01, np.random.default_rng(0))
    scores = example["auc_of_each"](classifier, pictures[24:], wanted[24:])
    nodule, effusion = (example["FINDINGS"].index(finding) for finding in ("Nodule", "Effusion"))
    assert min(scores[nodule], scores[effusion]) > 0.9
    assert np.isnan(scores).sum() == 12


def test_auc_is_the_share_of_pairs_in_order():
    example = runpy.run_path(EXAMPLE)
    rng = np.random.default_rng(0)
    wanted, logits = (torch.from_numpy(rng.integers(0, most, (30, 14)).astype("f4")) for most in (2, 9))
    wanted[:, 3] = 0

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return batch

    found = example["auc_of_each"](Fixed(), logits, wanted)
    for one in range(14):
        positive, negative = (logits[wanted[:, one] == value, one] for value in (1, 0))
        order = positive[:, None] - negative[None]
        share = ((order > 0).float() + 0.5 * (order == 0)).mean() if len(positive) else torch.tensor(np.nan)
        np.testing.assert_allclose(found[one], share.item(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        ({}, ("--edge", 18), r"18x18 voxels .*multiples of 4x2.* --edge, now 18"),
        ({"kind": "plain 3D"}, (), r"reads images \(N, 1, z, y, x\)"),
        ({}, ("--edge", 16, "--train", 0), "has no images of one of the two lists"),
        ({}, ("--edge", 16, "--test", 1), "Among 1 test images, no finding is in some"),
    ],
)
def test_mistakes_with_findings_are_one_line(findings_example, options, flags, message):
    with pytest.raises(SystemExit, match=message) as end:
        findings_example(*flags, **options)
    assert "\n" not in str(end.value)
