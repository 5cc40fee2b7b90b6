"""X-rays and photographs through the real commands: PNG files → pre-train → transfer → fine-tune → predict."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import io

from nnunet_genesis.ignored_regions import IGNORED
from tests.conftest import shrink_plans

PRETRAINING = ("--epochs", 1, "--iterations", 1, "--validation-iterations", 1)


def picture(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A disc: grey of 16 bits (y, x) or colours of 8 bits (y, x, 3), and labels 0, 1 (y, x)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :32]
    labels = ((y - rng.integers(9, 15)) ** 2 + (x - rng.integers(12, 20)) ** 2 < 40).astype(np.uint8)
    most = np.iinfo(kind).max
    values = labels[..., None] * rng.uniform(0.3, 0.6, 3) + rng.uniform(0.1, 0.3, (24, 32, 3))
    return (values * most).astype(kind)[..., slice(None) if kind == "u1" else 0], labels


@pytest.fixture
def threads(monkeypatch):
    """nnU-Net's pools are of threads: its processes would take most of the time to import torch."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))


def write_target(folder: Path, kind: str, channels: list[str]) -> None:
    """A labeled dataset as nnU-Net's users have it: one PNG for a case, no reader named."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case in range(2):
        image, labels = picture(case, kind)
        Image.fromarray(image).save(folder / "imagesTr" / f"c{case}_0000.png")
        Image.fromarray(labels).save(folder / "labelsTr" / f"c{case}.png")
    names = {str(number): name for number, name in enumerate(channels)}
    description = {"channel_names": names, "labels": {"background": 0, "disc": 1}, "numTraining": 2, "file_ending": ".png"}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("kind", "channels"), [("u2", ["Xray"]), ("u1", ["R", "G", "B"])], ids=["16-bit grey", "8-bit RGB"]
)
def test_from_pictures_to_predictions(kind, channels, nnunet: Path, threads, genesis, stock, capsys):
    write_target(nnunet / "nnUNet_raw" / "Dataset004_Discs", kind, channels)
    assert genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
    plans_file = nnunet / "nnUNet_preprocessed/Dataset004_Discs/nnUNetPlans.json"
    shrink_plans(plans_file)
    assert json.loads(plans_file.read_text())["image_reader_writer"] == "NaturalImage2DIO"
    stock("nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", "2d", "-np", 1)

    (nnunet / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(picture(100 + number, kind)[0]).save(nnunet / "pictures" / f"p{number}.png")
    assert genesis("import", "--2d", "-d", 501, "-n", "Pictures", "-np", 1, nnunet / "pictures", "--channels", ",".join(channels)) == 0  # fmt: skip
    assert genesis("plan", "-d", 501, "--like", 4, *PRETRAINING) == 0
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 1
    assert "2D images, of which 3d_fullres cannot be trained" in capsys.readouterr().err
    ignored = nnunet / "nnUNet_raw/Dataset501_Pictures/ignoreTr/p0.png"
    ignored.parent.mkdir()
    Image.fromarray(picture(100, kind)[1] * 255).save(ignored)
    assert genesis("preprocess", "-d", 501, "-c", "2d", "-np", 1) == 0
    marks = blosc2.open(str(nnunet / "nnUNet_preprocessed/Dataset501_Pictures/nnUNetGenesisPlans_2d/p0_seg.b2nd"))[:]
    assert np.array_equal(marks[0, 0] == IGNORED, picture(100, kind)[1] == 1)
    fingerprint = json.loads((nnunet / "nnUNet_preprocessed/Dataset501_Pictures/dataset_fingerprint.json").read_text())
    assert fingerprint["shapes_after_crop"] == [[1, 24, 32]] * 3
    assert fingerprint["spacings"] == [[999, 1, 1]] * 3
    stock("nnUNetv2_train", 501, "2d", "all", "-tr", "nnUNetTrainerGenesisPretrain", "-p", "nnUNetGenesisPlans", "-device", "cpu")  # fmt: skip

    run = nnunet / "nnUNet_results/Dataset501_Pictures/nnUNetTrainerGenesisPretrain__nnUNetGenesisPlans__2d/fold_all"
    assert torch.load(run / "checkpoint_final.pth", weights_only=True)["genesis"]["channel_names"] == channels
    schedule = ("--epochs", 1, "--iterations", 2)
    assert genesis("transfer", run / "checkpoint_final.pth", "-d", 4, "-c", "2d", *schedule) == 0
    finetuned = ("-tr", "nnUNetTrainerGenesisFinetune", "-p", "nnUNetPlans_genesis", "-device", "cpu")
    stock("nnUNetv2_train", 4, "2d", "all", *finetuned)
    images = nnunet / "nnUNet_raw/Dataset004_Discs/imagesTr"
    stock("nnUNetv2_predict", "-d", 4, "-c", "2d", "-f", "all", "-i", images, "-o", nnunet / "predicted", *finetuned,
          "--disable_tta", "-npp", 0, "-nps", 0)  # fmt: skip
    predicted = io.imread(nnunet / "predicted" / "c0.png")
    assert predicted.shape == (24, 32)
    assert set(np.unique(predicted)) <= {0, 1}
