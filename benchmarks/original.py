"""The released Models Genesis code in a clone that the user has (none of it is here), as something to be timed."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

RATES = {"flip_rate": 0.4, "local_rate": 0.5, "nonlinear_rate": 0.9, "paint_rate": 0.9, "inpaint_rate": 0.2}
"""The released probabilities: competition/config.py."""

FILE = Path("competition") / "utils.py"

Patch = npt.NDArray[np.floating[Any]]


class Original:
    """Pairs and single corruptions of the released code.

    Args:
        folder: A clone of https://github.com/MrGiovanni/ModelsGenesis.

    Raises:
        FileNotFoundError: It has no competition/utils.py.
    """

    def __init__(self, folder: Path) -> None:
        """Load competition/utils.py (which needs SciPy) under a name of its own."""
        self.code = _loaded(folder / FILE)

    def seed(self, number: int) -> None:
        """Seed both global generators that it draws from."""
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 (the generator that is used there)

    def pair(self, patch: Patch, shuffled: bool) -> None:
        """Make one pair of a patch (C, z, y, x), at the released rates but for shuffling, which is said."""
        self.code.generate_single_pair(patch, SimpleNamespace(**RATES | {"local_rate": float(shuffled)}))

    @property
    def parts(self) -> dict[str, Callable[[Patch], Any]]:
        """Single corruptions, always applied, by the name that they have here."""
        return {
            "shuffling": lambda patch: self.code.local_pixel_shuffling(patch, prob=1.0),
            "intensity": lambda patch: self.code.nonlinear_transformation(patch, 1.0),
            "outer_cutout": lambda patch: self.code.image_out_painting(patch[0].copy()),
            "inner_cutout": lambda patch: self.code.image_in_painting(patch[0].copy()),
        }


def _loaded(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: name a clone of https://github.com/MrGiovanni/ModelsGenesis")
    spec = importlib.util.spec_from_file_location("models_genesis_competition_utils", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
