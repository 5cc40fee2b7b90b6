"""Pre-trained checkpoint and a volume → the volume as the network restores it, and how far that is from the volume."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_genesis.checkpoints.reading import network_weights, read_content
from nnunet_genesis.errors import CheckpointError, DatasetError, GenesisError, printable, reason
from nnunet_genesis.hub.locating import located
from nnunet_genesis.networks.build import build_network
from nnunet_genesis.nnunet_dataset import channel_names, refuse_cascade
from nnunet_genesis.plans_checks import check_description
from nnunet_genesis.preflight import refuse_missing_gpu
from nnunet_genesis.preprocessing import refuse_growth
from nnunet_genesis.pretraining.patches import fitted
from nnunet_genesis.restoring.hiding import shown_in_turn
from nnunet_genesis.settings import PretrainingSettings

TRAINER = "nnUNetTrainerGenesisPretrain"

Volume = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Restored:
    """What a network makes of a volume.

    Attributes:
        volume: (C, z, y, x) in the intensities of the image.
        difference: (z, y, x), |restored - original| in normalised intensities, the mean of the channels; 0 outside
            the box.
        box: What was restored: the image but for the empty (0) margin that nnU-Net's preprocessing crops.
    """

    volume: Volume
    difference: Volume
    box: tuple[slice, ...]


class Restorer:
    """A network that was pre-trained by restoring, and how its plans prepare images for it."""

    def __init__(self, checkpoint: str | Path, device: str = "cpu", hide: int = 0) -> None:
        """Read the checkpoint; no code in it is run.

        Args:
            checkpoint: Of nnUNetTrainerGenesisPretrain; a path or an address.
            device: cpu, cuda or mps.
            hide: 0: the network sees the image (Zhou et al., MedIA 2021, section 5.6). From 2 on: it restores the
                image that many times and sees another part of its cells each time, one n-th; the rest is hidden as the
                recipe's masking hides it. What counts is the mean of what it restores where it does not see. With 4
                it sees as much as the recipe `masking` has shown it.

        Raises:
            CheckpointError: It cannot be read, or its network does not restore.
            GenesisError: Its plans or settings are not as they should be, or `hide` is out of range.
        """
        if hide != 0 and not 2 <= hide <= 64:
            raise GenesisError(f"An image can be shown in 2 to 64 parts, or as a whole with 0, not in {hide}.")
        checkpoint = located(checkpoint)
        content = read_content(checkpoint)
        plans, configuration, description = _plans_of(content, checkpoint)
        self.channels = channel_names(description)
        self.device = torch.device(device)
        refuse_missing_gpu(self.device)
        self.plans = PlansManager(plans)
        self.configuration = self.plans.get_configuration(configuration)
        recipe = PretrainingSettings.of_plans(plans).recipe
        if recipe.masking.leaves_out:
            raise CheckpointError(
                f"{checkpoint} holds a masked autoencoder, which restores hidden cells from visible ones and no whole "
                "image. Name one that was pre-trained with another recipe, such as masking."
            )
        self.network = self._network(content, checkpoint).eval().to(self.device)
        self.hide = hide
        patch = self.configuration.patch_size
        self.cell = fitted(recipe, plans, configuration).masking.edges(patch) if hide else ()

    def _network(self, content: dict[str, Any], path: Path) -> nn.Module:
        count = len(self.channels)
        weights = network_weights(content, path)
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise CheckpointError(
                    f"{path} holds NaN or infinite values in {printable(name, 80)}: its training went wrong. Take an "
                    "earlier checkpoint."
                )
        with torch.device("meta"):  # no memory beyond that of the file, whatever its plans say
            network = build_network(self.plans, self.configuration, count, count, False)
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} does not hold the network that its plans describe ({reason(error)}). Name the file that the "
                "pre-training wrote."
            ) from None
        return network.float()

    def restore(self, image: Volume, spacing: Sequence[float]) -> Restored:
        """Restore an image on its own grid.

        The network works on the grid of the plans. What it changes there is resampled and added to the image: fine
        detail that the plans' grid does not hold is kept, and no difference.

        Args:
            image: (C, z, y, x), not touched.
            spacing: Of the axes z, y, x in mm.

        Raises:
            DatasetError: The image would grow without bounds, or is constant once it is prepared; or what is restored
                is not finite.
        """
        order = self.plans.transpose_forward
        refuse_growth(image.shape[1:], spacing, order, self.configuration.spacing)
        own = [float(spacing[axis]) for axis in order]
        planned = [*own[: 3 - len(self.configuration.spacing)], *self.configuration.spacing]
        normalised, inside, box = self._normalised(image, planned)
        shape = compute_new_shape(normalised.shape[1:], own, planned)
        resampled = np.asarray(self.configuration.resampling_fn_data(normalised, shape, own, planned))
        if resampled.min() == resampled.max():
            raise DatasetError("is constant once it is cropped and resampled as the plans say")
        change = self._changed(torch.from_numpy(resampled).float())
        del resampled
        back = self.configuration.resampling_fn_probabilities(change, normalised.shape[1:], planned, own)
        del change
        changed = np.asarray(back, dtype=np.float32)
        if not np.isfinite(changed).all():
            raise DatasetError("is restored to values that are not finite: are its intensities those of a scan?")
        return self._on_the_image(image, normalised, inside, changed, box)

    def _normalised(self, image: Volume, planned: Sequence[float]) -> tuple[Volume, Any, tuple[slice, ...]]:
        """Transposed, cropped and normalised image; the mask of what is not empty; the box that was cropped.

        nnU-Net's preprocessor gets a spacing that needs no resampling: the normalised image on its own grid tells in
        which unit the network restores.
        """
        order = self.plans.transpose_forward
        properties: dict[str, Any] = {"spacing": [planned[order.index(axis)] for axis in range(3)]}
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        data, empty, properties = preprocessor.run_case_npy(
            image, None, properties, self.plans, self.configuration, {}
        )  # fmt: skip
        return data, empty[0] >= 0, tuple(slice(*ends) for ends in properties["bbox_used_for_cropping"])

    def _on_the_image(
        self, image: Volume, normalised: Volume, inside: Any, change: Volume, box: tuple[slice, ...]
    ) -> Restored:
        """Undo crop, transposition and normalisation."""
        order, back = self.plans.transpose_forward, self.plans.transpose_backward
        restored = image.copy()
        transposed = restored.transpose(0, *(axis + 1 for axis in order))  # a view
        difference = np.zeros(image.shape[1:], dtype=np.float32)
        difference.transpose(order)[box] = np.abs(change).mean(axis=0)
        channels: Iterable[tuple[Volume, Volume, Volume]] = zip(transposed, normalised, change, strict=True)
        for channel, given, changed in channels:
            channel[box] += _unit(channel[box], given, inside) * changed
        return Restored(restored, difference, tuple(box[axis] for axis in back))

    def _changed(self, image: Tensor) -> Tensor:
        """Restored minus given intensities of a normalised image (C, *spatial)."""
        if not self.hide:
            return self._window(image)
        edges = (1,) * (3 - len(self.cell)) + self.cell
        change, passes = torch.zeros_like(image), 0
        # the same cells for every image of that shape
        for shown in shown_in_turn(image.shape[1:], edges, self.hide, np.random.default_rng(0)):
            seen = image.masked_fill(~shown, 0.0)  # as masking does it: 0, in all channels
            change += (self._window(seen) + seen - image).masked_fill_(shown, 0.0)
            passes += 1
        if passes < 2:
            size = " x ".join(map(str, self.cell))
            raise DatasetError(f"is too small to hide a part of it: cells have {size} voxels")
        change /= passes - 1  # every voxel was shown once
        return change

    @torch.inference_mode()
    def _window(self, image: Tensor) -> Tensor:
        """What the network changes in a normalised image (C, *spatial), patch by patch.

        Patches and their weights are those of nnU-Net's sliding window, never mirrored: pre-training does not mirror by
        default. How ours differs: sums are kept in float32. In nnU-Net's float16 the weights of a patch's corners,
        which are all that the corners of an image have, would leave two digits of an intensity, or none.
        """
        patch = self.configuration.patch_size
        padded, inner = pad_nd_image(image, patch, "constant", {"value": 0}, True, None)
        weight = compute_gaussian(
            tuple(patch), sigma_scale=1 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
        )
        total, weights = torch.zeros_like(padded), torch.zeros(padded.shape[1:])
        for where in _windows(padded.shape[1:], patch):
            seen = padded[where]
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                restored = self.network(seen[None].to(self.device))[0]
            total[where] += (restored.float().cpu() - seen) * weight
            weights[where[1:]] += weight
        change: Tensor = (total / weights)[tuple(inner)]
        return change


def _windows(shape: Sequence[int], patch: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Indices of patches in a volume (C, *shape); patches of two axes are cut from every slice of the first axis."""
    steps = compute_steps_for_sliding_window(tuple(shape[-len(patch) :]), tuple(patch), 0.5)
    for number in range(shape[0]) if len(patch) < len(shape) else (None,):
        for starts in itertools.product(*steps):
            within = (slice(start, start + edge) for start, edge in zip(starts, patch, strict=True))
            yield (slice(None), *(() if number is None else (number,)), *within)


def _plans_of(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Plans, configuration and dataset.json in a checkpoint of our pre-training.

    Raises:
        CheckpointError: It is none, or they are not as they should be.
    """
    trainer = content.get("trainer_name")
    if trainer != TRAINER:
        whose = "of an unknown trainer" if trainer is None else f"of {printable(trainer, 80)}"
        raise CheckpointError(
            f"{path} is a checkpoint {whose}, which restores no images. Name one of {TRAINER}, which pre-trains."
        )
    try:
        given = content["init_args"]
        plans, configuration, description = given["plans"], str(given["configuration"]), dict(given["dataset_json"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f'{path} is incomplete: "init_args" are not nnU-Net\'s. Copy it again.') from None
    try:
        refuse_cascade(plans, configuration)
        check_description(description, "The dataset description in it")
    except DatasetError as error:
        raise CheckpointError(f"{path} cannot be used. {error}") from None
    return plans, configuration, description


def _unit(raw: Volume, normalised: Volume, inside: Any) -> float:
    """How many raw intensities one normalised unit of a channel is; all schemes of nnU-Net are lines, some clipped.

    Args:
        raw: Intensities of a channel.
        normalised: The same after normalisation.
        inside: Voxels that count; a scheme may leave the others as they are.
    """
    low, high = normalised[inside].min(), normalised[inside].max()
    straight = inside & (normalised > low) & (normalised < high)  # clipped voxels are at the ends
    for chosen in (straight, inside):
        least = np.where(chosen, normalised, np.inf).argmin()
        most = np.where(chosen, normalised, -np.inf).argmax()
        if normalised.flat[most] > normalised.flat[least]:
            return float(raw.flat[most] - raw.flat[least]) / float(normalised.flat[most] - normalised.flat[least])
    return 1.0  # all voxels have one value
