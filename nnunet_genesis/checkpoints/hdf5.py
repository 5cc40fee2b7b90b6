"""A file of Keras (HDF5) → its weights by layer, read by a process with limits, or one line on what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load

from nnunet_genesis.checkpoints.hdf5_arrays import REFUSED
from nnunet_genesis.errors import CheckpointError, printable

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of HDF5."""
SECONDS, BYTES_PER_SECOND = 60, 10 << 20
"""The process may take as long as this, and as long as such a slow disk takes."""

PROCESS = "import sys; sys.path[:] = sys.argv[1].split('\\n')\nfrom nnunet_genesis.checkpoints.hdf5_arrays import main"
"""The same modules as here, in whatever folder it is started."""


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(SIGNATURE)) == SIGNATURE


def read_hdf5(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a model of Keras, or of a file of its weights alone.

    Returns:
        `layer/weight`, for example `depth_0_conv/kernel` (z, y, x, in, out) → values.

    Raises:
        CheckpointError: h5py is not installed, or the file is damaged, or holds what Keras does not write.
    """
    if find_spec("h5py") is None:
        raise CheckpointError(
            f'{path} is an HDF5 file (Keras), which h5py reads. Install it (pip install "nnunet-genesis[keras]"), or '
            "take Genesis_Chest_CT.pt."
        )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "arrays.safetensors"
        command = [sys.executable, "-c", f"{PROCESS}\nmain(*sys.argv[2:])", "\n".join(sys.path), str(path), str(made)]
        own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PATH": folder}  # no plugins
        seconds = SECONDS + path.stat().st_size / BYTES_PER_SECOND
        try:
            ended = subprocess.run(command, capture_output=True, env={**os.environ, **own}, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{path} takes longer to read than any file of its size; it is damaged.") from None
        if ended.returncode == REFUSED:
            raise CheckpointError(f"{path} {printable(ended.stdout.decode(errors='replace'), 300)}")
        if ended.returncode or not made.is_file():
            raise CheckpointError(
                f"{path} cannot be read; it is cut off, damaged or no HDF5 file. Copy or download it again."
            )
        return load(made.read_bytes())
