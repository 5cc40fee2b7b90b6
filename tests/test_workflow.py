"""The whole workflow through the real commands: unlabeled scans → pre-train → transfer → fine-tune → predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from tests.conftest import blob, run_stock, shrink_plans

PRETRAINING = ("--epochs", 2, "--iterations", 3, "--validation-iterations", 2, "--plot-every", 2, "--save-every", 1)
PICTURES = ("progress.png", "restoration_epoch_0002.png", "restoration_final.png")


@pytest.mark.parametrize(
    ("template", "configuration", "channels", "processes"),
    [
        ("tiny", "3d_fullres", ("T1",), True),
        ("tiny_resenc", "3d_fullres", ("T1", "T2"), False),
        ("tiny_resenc", "2d", ("T1",), False),
    ],
)
def test_from_scans_to_predictions(
    template, configuration, channels, processes, nnunet: Path, make_dataset, genesis, stock, monkeypatch
):
    """Once with processes where nnU-Net starts some, for validation and prediction."""
    make_dataset(4, "Target", 5, channels)
    scans = nnunet / "scans"
    scans.mkdir()
    for i in range(4):
        for c, channel in enumerate(blob(i, channels=len(channels))[0]):
            sitk.WriteImage(sitk.GetImageFromArray(channel), str(scans / f"scan{i}_{c:04d}.mha"))
    assert genesis("plan", "-d", 4, "--template", template, "-p", "nnUNetPlans") == 0
    shrink_plans(nnunet / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans.json")
    stock("nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", configuration, "-np", 1)

    assert genesis("import", "-d", 501, "-n", "Scans", "-np", 1, scans, "--channels", ",".join(channels)) == 0
    assert genesis("plan", "-d", 501, "--like", 4, *PRETRAINING) == 0
    assert genesis("preprocess", "-d", 501, "-c", configuration, "-np", 1) == 0
    pretrain = [501, configuration, "all", "-tr", "nnUNetTrainerGenesisPretrain", "-p", "nnUNetGenesisPlans"]
    stock("nnUNetv2_train", *pretrain, "-device", "cpu")

    run = nnunet / f"nnUNet_results/Dataset501_Scans/nnUNetTrainerGenesisPretrain__nnUNetGenesisPlans__{configuration}"
    pretrained = run / "fold_all" / "checkpoint_final.pth"
    summary = json.loads((run / "fold_all" / "restoration_summary.json").read_text())
    assert set(summary["errors"]) == {"recipe"} | {
        f"{name} alone" for name in ("intensity", "shuffling", "outer_cutout", "inner_cutout")
    }
    for picture in PICTURES:
        assert (run / "fold_all" / picture).stat().st_size > 1000
    description = torch.load(pretrained, weights_only=True)["genesis"]
    assert description["channel_names"] == list(channels)

    schedule = ["--epochs", 1, "--iterations", 2]
    assert genesis("transfer", pretrained, "-d", 4, "-c", configuration, *schedule) == 0
    finetune = [4, configuration, 0, "-tr", "nnUNetTrainerGenesisFinetune", "-p", "nnUNetPlans_genesis"]
    run_stock(monkeypatch, "nnUNetv2_train", *finetune, "-device", "cpu", processes=processes)

    # neither resuming nor predicting needs the transferred weights
    (nnunet / f"nnUNet_preprocessed/Dataset004_Target/nnUNetPlans_genesis_{configuration}.pth").unlink()
    stock("nnUNetv2_train", *finetune, "-device", "cpu", "--c")
    images = nnunet / "nnUNet_raw/Dataset004_Target/imagesTr"
    stock("nnUNetv2_predict", "-d", 4, "-c", configuration, "-f", 0, "-tr", "nnUNetTrainerGenesisFinetune", "-p",
          "nnUNetPlans_genesis", "-i", images, "-o", nnunet / "predicted", "-device", "cpu", "--disable_tta",
          "-npp", int(processes), "-nps", int(processes))  # fmt: skip
    predicted = sitk.ReadImage(str(nnunet / "predicted" / "case0.nii.gz"))
    assert predicted.GetSize() == (22, 24, 20)
