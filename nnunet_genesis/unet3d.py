"""The 3D U-Net of the original Models Genesis as a network that nnU-Net's plans can name: image → logits."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

Size = tuple[int, int, int]


class ConvNormReLU(nn.Module):
    """Convolution with kernel 3, batch normalisation, ReLU; spatial size is kept.

    The normalisation uses the statistics of the batch at hand in evaluation too, as the original network does. Running
    statistics are therefore not kept.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Numbers of channels."""
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm3d(outputs, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, *spatial) → (N, outputs, *spatial)."""
        return torch.relu(self.norm(self.conv(x)))


class Stage(nn.Module):
    """Two convolutions of different widths."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        """Numbers of channels before, between and after them."""
        super().__init__()
        self.convs = nn.Sequential(ConvNormReLU(inputs, middle), ConvNormReLU(middle, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, *spatial) → (N, outputs, *spatial)."""
        return self.convs(x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Stages with max pooling before all but the first; the width doubles within a stage."""

    def __init__(self, inputs: int, features: Sequence[int], strides: Sequence[Size]) -> None:
        """Channels of the image, and per stage its width and the pooling before it."""
        super().__init__()
        before = [inputs, *features[:-1]]
        # nnU-Net keeps the convolutions of a stage in a sequence of one: the same names here
        self.stages = nn.ModuleList(
            nn.Sequential(Stage(given, width // 2, width)) for given, width in zip(before, features, strict=True)
        )
        self.pools = nn.ModuleList(nn.Identity() if prod(stride) == 1 else nn.MaxPool3d(stride) for stride in strides)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image (N, C, *spatial) → output of every stage, finest first."""
        skips = []
        for pool, stage in zip(self.pools, self.stages, strict=True):
            x = stage(pool(x))
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Transposed convolutions that keep the width, skips, stages, and a segmentation head per resolution."""

    def __init__(self, features: Sequence[int], strides: Sequence[Size], classes: int, deep_supervision: bool) -> None:
        """Those of the encoder; stage 0 of the decoder has the lowest resolution."""
        super().__init__()
        self.deep_supervision = deep_supervision  # nnU-Net's trainer switches it
        levels = list(zip(features[:0:-1], features[-2::-1], strides[:0:-1], strict=True))
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(below, below, stride, stride) for below, _, stride in levels
        )
        self.stages = nn.ModuleList(Stage(below + skip, skip, skip) for below, skip, _ in levels)
        self.seg_layers = nn.ModuleList(nn.Conv3d(skip, classes, 1) for _, skip, _ in levels)

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Outputs of the encoder → logits (N, classes, *spatial), or a list of them, finest first."""
        x, levels = skips[-1], []
        for up, stage, skip in zip(self.transpconvs, self.stages, skips[-2::-1], strict=True):
            x = stage(torch.cat([up(x), skip], dim=1))
            levels.append(x)
        if not self.deep_supervision:
            return self.seg_layers[-1](x)  # type: ignore[no-any-return]
        return [head(level) for head, level in zip(self.seg_layers, levels, strict=True)][::-1]


class UNet3D(nn.Module):
    """The 3D U-Net of Models Genesis (Zhou et al., Medical Image Analysis 2021), for segmentation.

    Same computation as the published PyTorch weights (`Genesis_Chest_CT.pt`) up to the last feature map. Ours differs:
    logits in place of the final sigmoid, heads at lower resolutions for deep supervision, any number of input
    channels, and the names of nnU-Net's own networks (`encoder.stages.0.0.convs.0.conv.weight`, …).
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[Size] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        deep_supervision: bool = False,
    ) -> None:
        """Arguments as nnU-Net passes them.

        Args:
            input_channels: Channels of the image.
            num_classes: Channels of the logits.
            features_per_stage: Width of each encoder stage; even numbers.
            strides: Pooling before each stage; patches must be divisible by their product.
            deep_supervision: Whether `forward` returns the logits of all resolutions.
        """
        super().__init__()
        self.encoder = Encoder(input_channels, features_per_stage, strides)
        self.decoder = Decoder(features_per_stage, strides, num_classes, deep_supervision)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Image (N, C, *spatial) → logits (N, classes, *spatial), or a list of them, finest first."""
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialise a layer as nnU-Net does."""
        InitWeights_He(1e-2)(module)
