"""Preprocessed volumes → batches of (corrupted, original) patches; batch n is a function of the seed and n alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunet_genesis.corruption import PairParams, Recipe, apply_params, apply_params_batch, sample_params
from nnunet_genesis.ignored_regions import IGNORED, digest_in
from nnunet_genesis.nnunet_dataset import configuration_of, encoder_stride

ATTEMPTS = 10
"""Crops tried before one that is nearly empty is accepted."""

TRAINING, VALIDATION = 0, 1
"""Streams of random numbers: no validation patch is cut and corrupted like a training patch."""


@dataclass
class PatchBatches(Dataset[dict[str, Any]]):
    """Batches to train or validate restoration on, addressed by their number.

    Sample `k` of a stream has a generator of its own, `default_rng([seed, stream, k])`. Hence the same
    patches come in the same order whatever the number of workers or GPUs, and after a restart as without one.

    A batch is nnU-Net's dictionary: `data` float32 (B, C, *patch), `target` alike, `keys` the case identifiers.
    Where a volume is smaller than the patch, `data` is padded with 0, as in nnU-Net, and `target` with NaN:
    voxels without a finite target carry no loss; nor do those that are ignored. If `corrupt` is false, `target` holds
    the patches as they were cut, and there is no `data` but `params` and `ignored`: `corrupted_on` makes both of them.
    """

    volumes: Any
    """A dataset of nnU-Net: `identifiers` and `load_case(identifier)`."""
    patch_size: tuple[int, ...]
    """Two entries (a random slice along the first axis) or three, in voxels."""
    batch_size: int
    """Patches of this process per batch."""
    global_batch_size: int
    """Patches of all processes per batch."""
    first: int
    """Position of this process' first patch in the global batch."""
    recipe: Recipe
    seed: int
    stream: int
    minimum_contrast: float
    corrupt: bool = True
    """Whether patches are corrupted here, or later in batches."""
    _spread: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Fix the order in which validation walks through the volumes."""
        self._walk = ranked(self.volumes.identifiers, self.seed + 1)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Batch `number`, counted from 0."""
        begin = number * self.global_batch_size + self.first
        crops, params, keys, ignored = zip(*(self.crop(begin + i) for i in range(self.batch_size)), strict=True)
        if not self.corrupt:
            batch = {"keys": list(keys), "params": list(params), "target": self._padded(crops, math.nan)}
            return batch | {"ignored": list(ignored)}
        corrupted, target = zip(*map(apply_params, crops, params, ignored), strict=True)
        return {
            "keys": list(keys),
            "data": self._padded(corrupted, 0.0),
            "target": self._padded(target, math.nan),
        }

    def _padded(self, patches: Iterable[torch.Tensor], value: float) -> torch.Tensor:
        return torch.stack([pad(patch, self.patch_size, value) for patch in patches])

    def crop(self, k: int) -> tuple[torch.Tensor, PairParams, str, torch.Tensor | None]:
        """Sample `k`: a clean crop, float32 (C, *at most the patch), params of its pair, the case, what is ignored.

        Voxels that are ignored are bool (*at most the patch); None: the case has no mask.
        """
        crops = np.random.default_rng([self.seed, self.stream, k, 0])
        corruptions = np.random.default_rng([self.seed, self.stream, k, 1])
        cases = self.volumes.identifiers
        # validation walks through the volumes, in random order in case there are more of them than patches
        case = self._walk[k % len(cases)] if self.stream == VALIDATION else cases[crops.integers(len(cases))]
        crop, ignored = self._informative_crop(case, crops)
        return crop, sample_params(crop.shape, self.recipe, corruptions), case, ignored

    def _informative_crop(self, case: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A random crop that is not empty air, nor ignored, as `crop` gives it, and what of it is ignored."""
        volume, segmentation, *_ = self.volumes.load_case(case)
        marked = bool(digest_in(segmentation))
        if case not in self._spread:
            self._spread[case] = spread(volume)
        best, most = None, -1.0
        for _ in range(ATTEMPTS):
            window = random_window(volume.shape, self.patch_size, rng)
            crop = np.array(volume[window], dtype=np.float32)
            ignored = torch.from_numpy(segmentation[window][0] == IGNORED) if marked else None
            seen = crop.reshape(len(crop), -1) if ignored is None else crop[:, ~ignored.numpy()]
            variation = np.nanstd(seen, axis=1) if seen.size else np.zeros(len(crop))
            contrast = float(np.nanmax(variation / np.maximum(self._spread[case], 1e-12)))
            if best is None or contrast > most:
                best, most = (torch.from_numpy(crop), ignored), contrast
            if most >= self.minimum_contrast:
                break
        return best  # type: ignore[return-value]


def fitted(recipe: Recipe, plans: Mapping[str, Any], configuration: str) -> Recipe:
    """The recipe for patches and network of a configuration: edges of masked cells are numbers, one per axis.

    Raises:
        DatasetError: They follow from the network's strides, which the plans do not name.
        SettingsError: There is a number for each axis, but patches have others.
    """
    if recipe.masking.probability == 0:
        return recipe
    if 0 in np.atleast_1d(recipe.masking.cell_size):
        return recipe.fitted(encoder_stride(plans, configuration))
    return recipe.fitted((1,) * len(configuration_of(plans, configuration).patch_size))


def ranked(cases: Iterable[str], seed: int) -> list[str]:
    """Cases in a random order in which each keeps its place relative to the others when cases are added."""
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed}/{case}".encode()).digest())


def hold_out(cases: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split cases into training and validation: a seeded share of them, at least one, is held out.

    The split hardly changes when scans are added. A single case is used for both.
    """
    cases = ranked(cases, seed)
    if len(cases) < 2:
        return cases, cases
    count = min(len(cases) - 1, max(1, round(share * len(cases))))
    return sorted(cases[count:]), sorted(cases[:count])


def random_window(
    shape: Sequence[int], patch_size: tuple[int, ...], rng: np.random.Generator
) -> tuple[slice | int, ...]:
    """Where to cut a patch, at a uniformly random position.

    Args:
        shape: Shape (C, z, y, x) of the volume.
        patch_size: Three entries, or two for a patch (y, x) of a random slice; voxels.
        rng: Source of the position.

    Returns:
        An index of the volume that gives (C, *patch), smaller than the patch along axes on which the volume is smaller.
    """
    size = (1, *patch_size) if len(patch_size) == 2 else patch_size
    starts = [int(rng.integers(max(0, have - want) + 1)) for have, want in zip(shape[1:], size, strict=True)]
    window = [slice(start, start + want) for start, want in zip(starts, size, strict=True)]
    return (slice(None), starts[0], *window[1:]) if len(patch_size) == 2 else (slice(None), *window)


def spread(volume: Any) -> np.ndarray[Any, Any]:
    """Standard deviation of each channel over the volume's three central planes, (C,).

    A cheap stand-in for that of the whole volume, which would have to be decompressed.
    """
    planes = []
    for axis, length in enumerate(volume.shape[1:], start=1):
        window = [slice(None)] * len(volume.shape)
        window[axis] = slice(length // 2, length // 2 + 1)
        planes.append(np.asarray(volume[tuple(window)], dtype=np.float32).reshape(volume.shape[0], -1))
    return np.asarray(np.nanstd(np.concatenate(planes, axis=1), axis=1))


def pad(patch: torch.Tensor, patch_size: tuple[int, ...], value: float) -> torch.Tensor:
    """Pad (C, *spatial) on both sides to (C, *patch_size)."""
    missing = [want - have for have, want in zip(patch.shape[1:], patch_size, strict=True)]
    sides = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
    return torch.nn.functional.pad(patch, sides, value=value)


def corrupted_on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with `params` → the same batch with `data` and `target`, made on a device without the padding."""
    clean, params = batch["target"].to(device, non_blocking=True), batch["params"]
    data, target = torch.zeros_like(clean), clean.clone()
    for shape in sorted({one.shape for one in params}):
        members = [n for n, one in enumerate(params) if one.shape == shape]
        window = [slice(None)]
        for have, want in zip(clean.shape[2:], shape[1:], strict=True):
            start = (have - want) // 2  # where `pad` puts it
            window.append(slice(start, start + want))
        crops = torch.stack([clean[n][tuple(window)] for n in members])
        ignored = None
        if any(batch["ignored"][n] is not None for n in members):
            nothing = torch.zeros(shape[1:], dtype=torch.bool)
            found = [nothing if batch["ignored"][n] is None else batch["ignored"][n] for n in members]
            ignored = torch.stack(found).to(device)
        pairs = apply_params_batch(crops, [params[n] for n in members], ignored)
        for n, corrupted, restored in zip(members, *pairs, strict=True):
            data[n][tuple(window)], target[n][tuple(window)] = corrupted, restored
    return {**batch, "data": data, "target": target}


def corrupted_ahead(device: torch.device, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`corrupted_on` for endless batches, in a thread, one batch ahead: a GPU is fed while it trains."""
    with ThreadPoolExecutor(1, "corruption") as thread:
        following = thread.submit(lambda: corrupted_on(device, next(batches)))
        while True:
            batch = following.result()
            following = thread.submit(lambda: corrupted_on(device, next(batches)))
            yield batch
