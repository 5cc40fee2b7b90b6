"""First bytes of a file, or names of tensors → what it is, where it is no checkpoint that can be read."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from nnunet_genesis.errors import CheckpointError, printable

READABLE = (
    "Read are files of nnU-Net v2, nnU-Net v1 and nnssl with convolutional U-Nets or Primus, of the 3D U-Net of Models "
    "Genesis (also of Keras, .h5) and SuPreM, and state dicts of these networks (.pth, .pt, .model, .safetensors)."
)

ENDINGS = (".pth", ".pt", ".model", ".safetensors", ".h5")
"""Of checkpoints that are looked for in a folder."""
DEPTH = 4
"""As far down as they lie in nnUNet_results: dataset, trainer, fold, file."""

LAYER = r"(?:^|\.)"
NETWORKS = (
    # name of a tensor -> network; the first that is found
    (
        rf"{LAYER}conv_blocks_context\.\d+\.\d+\.conv1\.",
        "STU-Net, whose blocks add a convolution of what they read without "
        "a norm, and whose decoder has such blocks too: nnU-Net's have neither",
    ),
    (rf"{LAYER}swinViT\.", "SwinUNETR (a transformer of MONAI)"),
    (rf"{LAYER}vit\.(patch_embedding|blocks)\.", "UNETR (a transformer of MONAI)"),
    (rf"{LAYER}(patch_embed|patch_embedding|cls_token|blocks\.\d+\.attn)", "a vision transformer"),
    (rf"{LAYER}encoder\.initial_conv\.", "the residual U-Net of nnU-Net v1, whose blocks differ from nnU-Net v2's"),
    (rf"{LAYER}(convInit|down_layers\.\d+\.\d+)\.", "SegResNet (of MONAI)"),
    (rf"{LAYER}input_block\.conv1\.conv\.", "DynUNet (of MONAI)"),
    (rf"{LAYER}model\.\d+\.(conv|submodule)\.", "UNet (of MONAI)"),
    (rf"{LAYER}layer1\.0\.(conv1|bn1)\.", "a ResNet"),
)

STARTS = (
    (b"\x89HDF", "is an HDF5 file (Keras)"),
    (b"\x08\x01\x12", "is a model of TensorFlow"),
    (b"\x08", "looks like a model in ONNX"),
    (b"\x1f\x8b", "is compressed (gzip), as images (.nii.gz) and archives (.tar.gz) are"),
    (b"\x5c\x01\x00\x00", "is an image (NIfTI)"),
    (b"\x00\x00\x01\x5c", "is an image (NIfTI)"),
    (b"NRRD", "is an image (NRRD)"),
    (b"ObjectType", "is an image (MetaImage)"),
    (b"\x89PNG", "is a picture (PNG)"),
    (b"%PDF", "is a document (PDF)"),
    (b"\x93NUMPY", "is an array of NumPy"),
    (b"version https://git-lfs", "is a pointer of git LFS in place of the file: run git lfs pull"),
    (b"<", "is a web page or XML: the download went wrong"),
)
ONNX = re.compile(rb"\x08[\x02-\x40][\x12\x1a\x22\x3a\x42]")
"""Version of the format, then one of the fields that come next."""

ARCHIVES = (
    # name of a file in a zip archive -> what that archive is
    (r"(.*/)?constants\.pkl", "holds a model with its code (TorchScript, torch.jit.save). Save its weights in Python: "
                              "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"),
    (r"model\.weights\.h5", "is a model of Keras"),
    (r".*\.npy", "is a collection of NumPy's arrays"),
)  # fmt: skip


def unknown_network(weights: Mapping[str, torch.Tensor]) -> str:
    """The sentence on tensors of a network that is not read, after the name of its file."""
    for pattern, network in NETWORKS:
        if any(re.search(pattern, name) for name in weights):
            return f"holds weights of {network}. {READABLE}"
    shown = ", ".join(f"{name[:100]} {tuple(tensor.shape)}" for name, tensor in list(weights.items())[:3])
    return f"holds {len(weights)} tensors of an unknown network: {shown}. {READABLE}"


def refuse_other_kinds(path: Path) -> None:
    """Name what is often given in place of a checkpoint, by its content; nothing in it is run.

    Raises:
        CheckpointError: There is no file, or it is a folder, an archive of checkpoints, a model of another library, an
            image or a text.
    """
    if path.is_dir():
        places = ("*/" * depth + "*" for depth in range(DEPTH))
        inside = [found for place in places for found in path.glob(place) if found.suffix in ENDINGS]
        raise CheckpointError(f"{path} is a folder. {_choice(sorted(str(found) for found in inside))}")
    if not path.is_file():
        raise CheckpointError(f"The checkpoint {path} does not exist. Check the path.")
    with path.open("rb") as stream:
        start = stream.read(512)
    if what := _by_first_bytes(start):
        raise CheckpointError(f"{path} {what}. {READABLE}")
    if start.startswith(b"PK"):
        _refuse_archive(path)


def _by_first_bytes(start: bytes) -> str:
    for begin, what in STARTS:
        if start.startswith(begin) and (begin != b"\x08" or ONNX.match(start)):
            return what
    if start[4:8] == b"TFL3":
        return "is a model of TensorFlow Lite"
    if start[128:132] == b"DICM":
        return "is an image (DICOM)"
    # pickles of protocol 0 are text too, but end in a full stop, and safetensors begin with eight bytes of length
    text = start.lstrip()[:1] in (b"{", b"[") or re.match(rb"[\w ,;:#'\"-]{16}", start)
    return "is a text" if text and start.isascii() and b"\x00" not in start else ""


def _refuse_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # whatever zipfile says of damaged files; what reads the file says so too
        return
    packed = sorted(name for name in names if name.endswith(".pth"))
    if packed:
        raise CheckpointError(f"{path} is an archive, as of nnUNetv2_export_model_to_zip. Unpack it. {_choice(packed)}")
    for pattern, what in ARCHIVES:
        if any(re.fullmatch(pattern, name) for name in names):
            raise CheckpointError(f"{path} {what}. {READABLE}")
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path} is an archive without a checkpoint in it. {READABLE}")


def _choice(checkpoints: list[str]) -> str:
    """What to do next, with some of the checkpoints that were found."""
    if not checkpoints:
        return "Name a checkpoint; there is none in it."
    # every fold has two: the final ones say most
    shown = [name for name in checkpoints if name.endswith("checkpoint_final.pth")] or checkpoints
    more = f" (or one of {len(checkpoints) - 1} others)" if len(checkpoints) > 1 else ""
    return f"Name the checkpoint in it: {printable(shown[0], 300)}{more}."
