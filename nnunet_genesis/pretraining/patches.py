"""Preprocessed volumes → batches of (corrupted, original) patches; batch n is a function of the seed and n alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from nnunet_genesis.corruption import PairParams, Recipe, apply_params, room_for, sample_params
from nnunet_genesis.errors import DatasetError, GenesisError, SettingsError, printable, reason
from nnunet_genesis.ignored_regions import IGNORED, digest_in
from nnunet_genesis.named_classes import names_primus
from nnunet_genesis.nnunet_dataset import configuration_of, encoder_stride
from nnunet_genesis.volume_index import spread

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
    voxels without a finite target carry no loss; nor do those that are ignored.

    Where the recipe leaves masked cells out, crops are padded before they are masked: the cells are those of the patch.
    `data` is then NaN in masked voxels that are to be restored, and nowhere else.
    """

    volumes: Any
    """A dataset of nnU-Net: `identifiers` and `load_case(identifier)`, whose properties may hold the `spread`."""
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
    crops_per_volume: int = 1
    """Training patches that are cut from a volume, one after the other."""
    weights: tuple[float, ...] = ()
    """How often training patches come from each of the datasets in `volumes.counts`; empty: each volume alike."""
    _opened: tuple[str, Any] | None = field(default=None, repr=False)
    _room: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Fix the order in which validation walks through the volumes."""
        if self.stream == VALIDATION:
            cases = self.volumes.identifiers
            order = sorted(range(len(cases)), key=lambda place: _rank(cases[place], self.seed + 1))
            self._walk = np.array(order, dtype=np.int32)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Batch `number`, counted from 0."""
        begin = number * self.global_batch_size + self.first
        crops, params, keys, ignored = zip(*(self.crop(begin + i) for i in range(self.batch_size)), strict=True)
        corrupted, target = zip(*map(apply_params, crops, params, ignored, self._rooms(crops)), strict=True)
        data, goal = stacked(corrupted, self.patch_size, 0.0), stacked(target, self.patch_size, math.nan)
        if self.recipe.masking.leaves_out:
            data = shown_unless_restored(data, goal)
        return {"keys": list(keys), "data": data, "target": goal}

    def crop(self, k: int) -> tuple[torch.Tensor, PairParams, str, torch.Tensor | None]:
        """Sample `k`: a clean crop, float32 (C, *at most the patch), params of its pair, the case, what is ignored.

        Voxels that are ignored are bool (*at most the patch); None: the case has no mask.
        """
        corruptions = np.random.default_rng([self.seed, self.stream, k, 1])
        case, crops = self._drawn(k)
        crop, ignored = self._informative_crop(case, crops)
        if self.recipe.masking.leaves_out:
            crop, ignored = self._whole(crop, ignored)
        return crop, sample_params(crop.shape, self.recipe, corruptions), case, ignored

    def _rooms(self, crops: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """Memory for the pairs of whole patches, which the next batch uses again; None: the crop is smaller."""
        whole = [tuple(crop.shape[1:]) == self.patch_size for crop in crops]
        self._room += [room_for(crops[whole.index(True)]) for _ in range(sum(whole) - len(self._room))]
        free = iter(self._room)
        return [next(free) if fits else None for fits in whole]

    def _drawn(self, k: int) -> tuple[str, np.random.Generator]:
        """The case of sample `k`, and the generator that places its crop."""
        crops = np.random.default_rng([self.seed, self.stream, k, 0])
        cases = self.volumes.identifiers
        if self.stream == VALIDATION:  # walks through the volumes, in random order: there may be more than patches
            return cases[self._walk[k % len(cases)]], crops
        place = self._place(crops)
        if leader := k % self.crops_per_volume:  # the sample that opens the volume draws the case
            place = self._place(np.random.default_rng([self.seed, self.stream, k - leader, 0]))
        return cases[place], crops

    def _place(self, rng: np.random.Generator) -> int:
        """The place of a case: all are equally likely, or those of a dataset that is drawn by its weight."""
        if not self.weights:
            return int(rng.integers(len(self.volumes.identifiers)))
        counts = self.volumes.counts
        dataset = rng.choice(len(counts), p=np.divide(self.weights, sum(self.weights)))
        return int(sum(counts[:dataset]) + rng.integers(counts[dataset]))

    def _load(self, case: str) -> tuple[Any, Any, np.ndarray[Any, Any]]:
        """Volume, segmentation and spread of a case; the last one stays open where several crops are cut from it."""
        if self._opened is None or self._opened[0] != case:
            with _reading(case):
                volume, segmentation, _, properties = self.volumes.load_case(case)
                usual = properties["spread"] if "spread" in properties else spread(volume)
            self._opened = (case, (volume, segmentation, usual))
        _, found = self._opened
        if self.crops_per_volume == 1:
            self._opened = None
        return found

    def example(self, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
        """Sample `k` to look at: the patch, NaN where it is padding or ignored; input and target of it; the case.

        Not to be called with a recipe that mirrors patches.
        """
        crop, params, case, ignored = self.crop(k)
        corrupted, target = apply_params(crop, params, ignored)
        known = crop if ignored is None else crop.masked_fill(ignored, math.nan)
        original, target = (pad(patch, self.patch_size, math.nan) for patch in (known, target))
        corrupted = pad(corrupted, self.patch_size, 0.0)
        if self.recipe.masking.leaves_out:
            corrupted = shown_unless_restored(corrupted, target)
        return original, corrupted, target, case

    def _whole(self, crop: torch.Tensor, ignored: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A crop as large as the patch, in which padding is ignored."""
        if tuple(crop.shape[1:]) == self.patch_size:
            return crop, ignored
        nothing = torch.zeros(crop.shape[1:], dtype=torch.bool) if ignored is None else ignored
        return pad(crop, self.patch_size, 0.0), pad(nothing[None], self.patch_size, 1.0)[0]

    def _informative_crop(self, case: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A random crop that is not empty air, nor ignored, as `crop` gives it, and what of it is ignored."""
        volume, segmentation, usual = self._load(case)
        marked = bool(digest_in(segmentation))
        best, most = None, -1.0
        for _ in range(ATTEMPTS):
            window = random_window(volume.shape, self.patch_size, rng)
            with _reading(case):  # which takes place here, for blosc2
                crop = np.array(volume[window], dtype=np.float32)
            ignored = torch.from_numpy(segmentation[window][0] == IGNORED) if marked else None
            found = contrast(crop, ignored, usual)
            if best is None or found > most:
                best, most = (torch.from_numpy(crop), ignored), found
            if most >= self.minimum_contrast:
                break
        return best  # type: ignore[return-value]


@contextmanager
def _reading(case: str) -> Iterator[None]:
    """Say of a volume that it cannot be read.

    Raises:
        DatasetError: It was damaged after it was preprocessed or indexed.
    """
    try:
        yield
    except GenesisError:
        raise
    except Exception as error:  # whatever nnU-Net's readers raise for damaged files
        raise DatasetError(
            f"The volume of {printable(case, 80)} cannot be read ({reason(error, 80)}). Preprocess it again."
        ) from None


def contrast(crop: np.ndarray[Any, Any], ignored: torch.Tensor | None, usual: np.ndarray[Any, Any]) -> float:
    """How much a crop varies, as a multiple of what its volume does: 0 for empty air.

    Args:
        crop: (C, *spatial), NaN where nothing is known.
        ignored: Voxels that do not count, bool (*spatial).
        usual: Standard deviation of each channel of the volume, (C,).

    Returns:
        The largest multiple of all channels; 0 where all voxels are ignored.
    """
    seen = crop.reshape(len(crop), -1) if ignored is None else crop[:, ~ignored.numpy()]
    variation = np.std(seen, axis=1) if seen.size else np.zeros(len(crop))
    if np.isnan(variation).any():
        variation = np.nanstd(seen, axis=1)  # which gives the same where there is no NaN, in three times the time
    return float(np.nanmax(variation / np.maximum(usual, 1e-12)))


def fitted(recipe: Recipe, plans: Mapping[str, Any], configuration: str) -> Recipe:
    """The recipe for patches and network of a configuration: edges of masked cells are numbers, one per axis.

    Raises:
        DatasetError: They follow from the network's strides, which the plans do not name.
        SettingsError: There is a number for each axis, but patches have others; or masked cells are left out, and the
            network is no Primus for patches of this size, or the cells are not its tokens.
    """
    if recipe.masking.probability == 0:
        return recipe
    if recipe.masking.leaves_out:
        return recipe.fitted(_cells_of_tokens(recipe, plans, configuration))
    if 0 in np.atleast_1d(recipe.masking.cell_size):
        return recipe.fitted(encoder_stride(plans, configuration))
    return recipe.fitted((1,) * len(configuration_of(plans, configuration).patch_size))


def _cells_of_tokens(recipe: Recipe, plans: Mapping[str, Any], configuration: str) -> tuple[int, ...]:
    """Edges of the cells that a Primus makes tokens of, which are those of the recipe."""
    manager = configuration_of(plans, configuration)
    patch, otherwise = tuple(manager.patch_size), "with the recipe masking, which shows zeros to any network."
    if len(patch) != 3 or not names_primus(manager.network_arch_class_name):
        name = printable(manager.network_arch_class_name.rpartition(".")[2], 80)
        raise SettingsError(
            f"A masked autoencoder (recipe mae) needs a Primus, which is 3D only; {configuration} has patches with "
            f"{len(patch)} axes and a {name}, which cannot leave cells out. Plan with --network, or {otherwise}"
        )
    arguments = manager.network_arch_init_kwargs
    cell = tuple(arguments["patch_embed_size"])
    if math.prod(patch) < 2 * math.prod(cell):
        raise SettingsError(
            f"The Primus of {configuration} makes one token of a patch of {patch} voxels: a masked autoencoder needs "
            "two or more, to hide one. Plan larger patches."
        )
    if recipe.fitted(cell).masking.cell_size != cell:
        raise SettingsError(
            f'"cell_size" is {recipe.masking.cell_size}, but the cells that the Primus of {configuration} makes tokens '
            f"of have {cell} voxels. Set it to 0, which stands for them, or to these. Or plan {otherwise}"
        )
    return cell


def ranked(cases: Iterable[str], seed: int) -> list[str]:
    """Cases in a random order in which each keeps its place relative to the others when cases are added."""
    return sorted(cases, key=lambda case: _rank(case, seed))


def _rank(case: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{case}".encode()).digest()


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


def stacked(patches: Iterable[torch.Tensor], patch_size: tuple[int, ...], value: float) -> torch.Tensor:
    """Padded patches (C, *spatial) as one tensor (B, C, *patch_size); in a loading process in memory that is shared."""
    batch: torch.Tensor = default_collate([pad(patch, patch_size, value) for patch in patches])
    return batch


def pad(patch: torch.Tensor, patch_size: tuple[int, ...], value: float) -> torch.Tensor:
    """Pad (C, *spatial) on both sides to (C, *patch_size); the same tensor where nothing is missing."""
    missing = [want - have for have, want in zip(patch.shape[1:], patch_size, strict=True)]
    if not any(missing):
        return patch
    sides = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
    return torch.nn.functional.pad(patch, sides, value=value)


def shown_unless_restored(data: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Input (B, C, *patch) of a network that gets nothing of NaN, with 0 for NaN that is not to be restored."""
    return data.masked_fill(data.isnan() & ~target.isfinite(), 0.0)
