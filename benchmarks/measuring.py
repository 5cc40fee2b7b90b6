"""What benchmarks need: a clock, the machine in words, its memory bandwidth, synthetic volumes, tables."""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import avg_pool3d

from nnunet_genesis.checkpoints.saving import versions

LARGE = 2**28
"""Bytes of the array that is copied to measure bandwidth: more than any cache holds."""


def add_device(parser: argparse.ArgumentParser, *others: str) -> None:
    """The flag `--device`: cuda where there is one, otherwise the first of the others."""
    usual = "cuda" if torch.cuda.is_available() else others[0]
    parser.add_argument("--device", type=_present, choices=("cuda", *others), default=usual, help="(%(default)s)")


def _present(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device")
    return device


def synchronize(device: torch.device | None) -> None:
    """Wait until the device has done what it was asked for."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device | None = None) -> float:
    """Wall-clock time of one call, to the end of what it started on the device."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def memory(device: torch.device) -> dict[str, float]:
    """GB on a CUDA device: the most that tensors held since the last call, and all that is taken (as by nvidia-smi)."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    free, everything = torch.cuda.mem_get_info(device)
    return {"peak_gb": peak / 1e9, "taken_gb": (everything - free) / 1e9}


def machine(device: torch.device | None) -> dict[str, Any]:
    """Processor, device and versions, in plain types."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "device": "none" if device is None else torch_device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions() | {"numba": version("numba"), "python": platform.python_version()},
    }


def cpu_model() -> str:
    """The processor's name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def torch_device_name(device: torch.device) -> str:
    """E.g. "NVIDIA H100 80GB HBM3 (cuda)"."""
    return f"{torch.cuda.get_device_name(device)} (cuda)" if device.type == "cuda" else device.type


def bandwidth() -> float:
    """Bytes read and written per second while one core copies a large array with numpy."""
    array, copy = np.ones(LARGE, dtype=np.uint8), np.zeros(LARGE, dtype=np.uint8)
    return 2 * LARGE / min(seconds(lambda: np.copyto(copy, array)) for _ in range(5))


def smooth_volume(shape: Sequence[int], seed: int) -> torch.Tensor:
    """A volume to corrupt: noise smoothed to blobs of some voxels, with 5 % fresh noise; float32 `shape`, z-scored."""
    generator = torch.Generator().manual_seed(seed)
    volume = torch.randn((1, 1, *shape), generator=generator)
    for axis in [2, 3, 4] * 3:  # three box filters along each axis are nearly a Gaussian
        width = min(9, 2 * ((shape[axis - 2] - 1) // 2) + 1)
        kernel, margin = ([w if a == axis else d for a in (2, 3, 4)] for w, d in ((width, 1), (width // 2, 0)))
        volume = avg_pool3d(volume, kernel, stride=1, padding=margin, count_include_pad=False)
    volume = (volume - volume.mean()) / volume.std()
    volume += 0.05 * torch.randn(volume.shape, generator=generator)
    return ((volume - volume.mean()) / volume.std())[0, 0]


def size(shape: Iterable[int]) -> str:
    """(64, 64, 32) → 64x64x32."""
    return "x".join(map(str, shape))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three significant digits, None as a dash."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
        return f"{value:.{max(0, digits)}f}"
    return str(value)


def facts(device: torch.device | None) -> str:
    """The machine as one line below a table."""
    known = machine(device)
    packages = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    return f"{known['cpu']} ({known['cores']} cores), device: {known['device']}, {known['system']}; {packages}"
