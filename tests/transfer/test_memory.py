"""A transfer of stock size holds little more than the checkpoint's weights and the target's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_genesis.checkpoints.architectures import PLAIN, unet
from tests.checkpoints.files import small_plans, stock
from tests.transfer.networks import build

RESET = Path("/proc/self/clear_refs")
FEATURES = [32, 64, 128, 256, 320, 320]
"""The network that nnU-Net plans for most 3D datasets: 31 million parameters."""
MEASURED = """
import os, sys
from pathlib import Path
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # what transfer imports late is no cost of it
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunet_genesis.transfer.into_plans import transfer
def memory(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = memory("VmRSS")
done = transfer(Path(sys.argv[1]), "Dataset004_Target", "nnUNetPlans", "3d_fullres", "nnUNetPlans_genesis", {})
assert done.report.coverage == 1
print((memory("VmHWM") - before) * 1024 / os.path.getsize(sys.argv[1]))
"""


def stock_plans(kernel: list[int]) -> dict[str, Any]:
    strides = [[1, 1, 1], *[[2, 2, 2]] * 5]
    plans = small_plans() | {"dataset_name": "Dataset004_Target", "plans_name": "nnUNetPlans"}
    plans["configurations"]["3d_fullres"]["architecture"] = unet(
        PLAIN, FEATURES, [kernel] * 6, strides, [2] * 6, [2] * 5
    )
    return plans


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint of 125 MB, its plans inside."""
    plans = stock_plans([3, 3, 3])
    network = build(plans["configurations"]["3d_fullres"]["architecture"], 1)
    path = tmp_path_factory.mktemp("stock") / "checkpoint_final.pth"
    torch.save(stock(plans, network=network), path)
    assert 120e6 < path.stat().st_size < 130e6
    return path


@pytest.mark.skipif(not RESET.exists(), reason="resident memory is measured on Linux only")
@pytest.mark.parametrize("adapted", [False, True])
def test_a_transfer_takes_less_than_three_times_the_files_size(nnunet: Path, checkpoint: Path, adapted):
    """Beyond what the imports take; adapted: every kernel is flattened."""
    plans = stock_plans([1, 3, 3] if adapted else [3, 3, 3])
    folder = nnunet / "nnUNet_preprocessed" / "Dataset004_Target"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    description = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "core": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description | {"numTraining": 1}))
    command = [sys.executable, "-c", MEASURED, str(checkpoint)]
    times = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    assert 1 < times < 3
