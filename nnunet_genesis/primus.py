"""nnU-Net's transformer Primus (Wald et al., arXiv 2503.01835) as a network that plans can name: image → logits."""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():  # of torch's own functions in libraries that transformers import
    warnings.simplefilter("ignore", FutureWarning)
    from dynamic_network_architectures.architectures import primus

WIDTHS = {"s": (396, 12, 6), "b": (792, 12, 12), "m": (864, 16, 12), "l": (1056, 24, 16)}
"""Size → embed_dim, eva_depth, eva_numheads, as `dynamic_network_architectures` and nnU-Net's trainers have them."""

PATCH_EMBED = 8
"""Edge, in voxels, of the cell that becomes a token; patches must be divisible by it along each axis."""


class _Nameable:
    """Takes what nnU-Net passes to networks that plans name. A Primus has one output and no deep supervision."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **arguments: Any) -> None:
        """Arguments as nnU-Net passes them.

        Args:
            input_channels: Channels of the image.
            num_classes: Channels of the logits.
            deep_supervision: Passed over: there are no lower resolutions.
            arguments: Those of the library's class: embed_dim, eva_depth, eva_numheads, patch_embed_size, input_shape
                (the patch), drop_path_rate, scale_attn_inner, init_values, …
        """
        super().__init__(input_channels=input_channels, num_classes=num_classes, **arguments)  # type: ignore[call-arg]


class Primus(_Nameable, primus.Primus):
    """Cells of voxels are projected to tokens by one convolution."""


class PrimusV2(_Nameable, primus.PrimusV2):
    """Tokens come from residual convolutions."""


class PrimusV3(_Nameable, primus.PrimusV3):
    """Wider convolutions, whose features of all resolutions add to the tokens."""
