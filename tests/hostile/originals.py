"""A small world of valid files of every kind: nnU-Net's folders, a model, checkpoints, scans."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import locale
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from safetensors.torch import save_file

from nnunet_genesis.export import OURS
from nnunet_genesis.leaks.case_record import KEY, CaseRecord
from nnunet_genesis.leaks.signature import digest, pooled, signature
from nnunet_genesis.networks.build import build_network, target_network
from nnunet_genesis.nnunet_dataset import channel_names
from tests.checkpoints.keras_files import write_keras
from tests.checkpoints.replicas import generic_unet, original_unet3d
from tests.conftest import blob, run_genesis, use_folders, write_dataset

TARGET = "nnUNet_preprocessed/Dataset004_Target"
SCANS = "nnUNet_preprocessed/Dataset501_Scans"
RAW = "nnUNet_raw/Dataset501_Scans"
IMPORTED = "nnUNet_raw/Dataset600_Imported"
MODEL = f"nnUNet_results/Dataset004_Target/{OURS}__nnUNetPlans_scratch__3d_fullres"
CHECKPOINTS = {
    "nnU-Net v2": "files/v2.pth",
    "pre-training": "files/genesis.pth",
    "nnU-Net v1": "files/v1.model",
    "nnU-Net v1, file of plans": "files/v1.model.pkl",
    "nnssl": "files/nnssl.pth",
    "Models Genesis": "files/original.pt",
    "Models Genesis, Keras": "files/original.h5",
    "state dict .pth": "files/weights.pth",
    "safetensors": "files/weights.safetensors",
}
PRIMUS = "files/primus.pth"
PRIMUS_PLANS = f"{TARGET}/Primus.json"
SCAN_FILES = {kind: f"scans{kind}/scan{kind}" for kind in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")}
RESTORED = "restored"
SLICE = "scans.dcm/slice01.dcm"


def make_world(base: Path) -> Path:
    """Write the world into the new folder `base`; a second of work, nothing is trained."""
    base.mkdir()
    (base / RESTORED).mkdir()
    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with pytest.MonkeyPatch.context() as patch, silence[0], silence[1]:
        use_folders(base, patch)
        write_dataset(base, 4, "Target", 1)
        write_dataset(base, 501, "Scans", 1, labeled=False)
        for dataset, name in ((4, "nnUNetPlans"), (501, "nnUNetGenesisPlans")):
            run_genesis("plan", "-d", dataset, "--template", "tiny", "-p", name)
            path = next((base / "nnUNet_preprocessed").glob(f"Dataset{dataset:03d}_*")) / f"{name}.json"
            plans = json.loads(path.read_text())
            _shrink(plans)
            path.write_text(json.dumps(plans, indent=1))
        run_genesis("plan", "-d", 4, "--template", "tiny_primus", "-p", "Primus")
        _write_checkpoints(base)
        _write_scans(base)
        run_genesis("transfer", base / CHECKPOINTS["nnU-Net v2"], "-d", 4, "-c", "3d_fullres", "--to", "Earlier")
        run_genesis("preprocess", "-d", 501, "-c", "2d", "-np", 1)
        (base / SCANS / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["case0"]}]))
        run_genesis("import", "-d", 600, "-n", "Imported", "--channels", "T1", "-np", 1, base / SCAN_FILES[".nrrd"])
        run_genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "--epochs", 1)
        _write_model(base)
    (base / "template.json").write_text((base / TARGET / "nnUNetPlans.json").read_text())
    return base


def _shrink(plans: dict[str, Any]) -> None:
    for name, configuration in plans["configurations"].items():
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 4]
        configuration["patch_size"] = [8, 8] if name == "2d" else [8, 8, 8]
        configuration["batch_size"] = 2


def _checkpoint(base: Path, plans_name: str, trainer: str) -> dict[str, Any]:
    """As nnUNetTrainer.save_checkpoint writes it."""
    plans = json.loads((base / TARGET / f"{plans_name}.json").read_text())
    description = json.loads((base / TARGET / "dataset.json").read_text())
    network, _ = target_network(plans, "3d_fullres", description)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [0.5]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": description},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def _write_checkpoints(base: Path) -> None:
    (base / "files").mkdir()
    content = _checkpoint(base, "nnUNetPlans", "nnUNetTrainer")
    torch.save(content, base / CHECKPOINTS["nnU-Net v2"])
    weights = content["network_weights"]
    torch.save(_pretrained(content), base / CHECKPOINTS["pre-training"])
    torch.save(weights, base / CHECKPOINTS["state dict .pth"])
    save_file({name: tensor.clone() for name, tensor in weights.items()}, base / CHECKPOINTS["safetensors"])
    v1 = {"epoch": 6, "state_dict": OrderedDict(generic_unet([2, 4, 4], [[2, 2, 2]] * 2)), "optimizer_state_dict": {}}
    torch.save(v1, base / CHECKPOINTS["nnU-Net v1"], _use_new_zipfile_serialization=False)
    stage = {"patch_size": np.array([8, 8, 8]), "current_spacing": np.array([1.0, 1.0, 1.0])}
    schemes = {"modalities": {0: "CT"}, "normalization_schemes": OrderedDict({0: "CT"}), "plans_per_stage": {0: stage}}
    init = ("plans.pkl", 0, None, None, True, 0, True)
    sidecar = {"init": init, "name": "nnUNetTrainerV2", "class": "x", "plans": schemes | {"num_classes": 1}}
    (base / CHECKPOINTS["nnU-Net v1, file of plans"]).write_bytes(pickle.dumps(sidecar))
    original = {"epoch": 6, "state_dict": original_unet3d(4), "optimizer_state_dict": {"state": {}}}
    torch.save(original, base / CHECKPOINTS["Models Genesis"], _use_new_zipfile_serialization=False)
    write_keras(base / CHECKPOINTS["Models Genesis, Keras"], original["state_dict"])
    torch.save(_nnssl(weights, content), base / CHECKPOINTS["nnssl"])
    torch.save(_masked_autoencoder(_checkpoint(base, "Primus", "nnUNetTrainerGenesisPretrain")), base / PRIMUS)


def _pretrained(content: dict[str, Any]) -> dict[str, Any]:
    """As nnUNetTrainerGenesisPretrain writes it: one output, and a record of a case that is in no dataset here."""
    plans, description = content["init_args"]["plans"], content["init_args"]["dataset_json"]
    network = build_network(PlansManager(plans), PlansManager(plans).get_configuration("3d_fullres"), 1, 1, False)
    volume = blob(99, (8, 8, 8))[0][0]
    record = CaseRecord(
        ("elsewhere",), np.frombuffer(digest(volume), np.uint8)[None].copy(), signature(pooled(volume))[None]
    )
    facts = {"channel_names": channel_names(description), "spacing": [1.0, 1.0, 1.0], KEY: record.block()}
    return content | {
        "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainerGenesisPretrain", "genesis": facts
    }  # fmt: skip


def _masked_autoencoder(content: dict[str, Any]) -> dict[str, Any]:
    """As the recipe mae writes it: the names of a Primus within another network, and a decoder of its own."""
    weights = {f"network.{name}": tensor for name, tensor in content["network_weights"].items()}
    facts = {"channel_names": ["T1"], "spacing": [1.0, 1.0, 1.0]}
    own = {"decoder_of_tokens.narrow.weight": torch.ones(24, 48)}
    return content | {"network_weights": weights | own, "genesis": facts}


def _nnssl(weights: dict[str, torch.Tensor], content: dict[str, Any]) -> dict[str, Any]:
    architecture = content["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    plan = {
        "architecture_plans": {
            "arch_class_name": "PlainConvUNet",
            "arch_kwargs": architecture["arch_kwargs"],
            "arch_kwargs_requiring_import": architecture["_kw_requires_import"],
        },
        "pretrain_plan": content["init_args"]["plans"],
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": (),
        "key_to_lpe": None,
    }
    return {"network_weights": encoder, "nnssl_adaptation_plan": plan, "trainer_name": "BaseMAETrainer"}


def _write_scans(base: Path) -> None:
    image = sitk.GetImageFromArray(blob(7, (6, 8, 7))[0][0])
    for name in SCAN_FILES.values():
        (base / name).parent.mkdir()
        sitk.WriteImage(image, str(base / name))
    (base / SLICE).parent.mkdir()
    writer, volume = sitk.ImageFileWriter(), sitk.Cast(image, sitk.sitkInt16)
    writer.KeepOriginalImageUIDOn()
    for number in range(volume.GetDepth()):
        part = volume[:, :, number]
        for tag, value in (("0008|0060", "MR"), ("0020|000e", "1.2.3"), ("0020|000d", "1.2"), ("0020|0013", str(number)),
                           ("0008|0018", f"1.2.3.{number}"), ("0020|0032", f"0\\0\\{number}"),
                           ("0020|0037", "1\\0\\0\\0\\1\\0")):  # fmt: skip
            part.SetMetaData(tag, value)
        writer.SetFileName(str(base / SLICE).replace("01", f"{number:02d}"))
        writer.Execute(part)
    locale.setlocale(locale.LC_ALL, "")  # writing DICOM has made it C, in which text files are ASCII


def _write_model(base: Path) -> None:
    """A fine-tuned model as nnU-Net leaves it, one fold."""
    fold = base / MODEL / "fold_0"
    fold.mkdir(parents=True)
    shutil.copy(base / TARGET / "nnUNetPlans_scratch.json", base / MODEL / "plans.json")
    shutil.copy(base / TARGET / "dataset.json", base / MODEL)
    torch.save(copy.deepcopy(_checkpoint(base, "nnUNetPlans_scratch", OURS)), fold / "checkpoint_final.pth")
