"""Plain re-tellings of the networks behind foreign checkpoints: named tensors, and what is computed with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812

LUNA16_POOLS = [[2, 2, 2]] * 4 + [[1, 2, 2]]
"""Of genesis_nnunet_luna16_006.model."""

Weights = dict[str, torch.Tensor]


def generic_unet(
    features: Sequence[int],
    pools: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]] | None = None,
    convs: int = 2,
    channels: int = 1,
    classes: int = 2,
    norm: str = "instance",
) -> Weights:
    """Random weights under the names of nnU-Net v1's Generic_UNet.

    Args:
        features: Width of each stage.
        pools: Stride into every stage but the first.
        kernels: Kernel of each stage, 3 by default.
        convs: Convolutions of each stage, at least 2.
        channels: Input channels.
        classes: Outputs of each head.
        norm: "instance", "batch" (with running statistics) or "none".
    """
    generator, weights, last = torch.Generator().manual_seed(0), {}, len(pools)
    kernels = kernels or [[3] * len(pools[0])] * len(features)

    def block(name: str, given: int, made: int, kernel: Sequence[int]) -> None:
        scale = (given * torch.Size(kernel).numel()) ** -0.5
        weights[f"{name}.conv.weight"] = scale * torch.randn(made, given, *kernel, generator=generator)
        weights[f"{name}.conv.bias"] = torch.randn(made, generator=generator)
        weights.update({f"{name}.instnorm.{key}": tensor for key, tensor in _norm(norm, made, generator).items()})

    def halves(name: str, given: int, made: int, kernel: Sequence[int]) -> None:
        for number in range(convs - 1):
            block(f"{name}.0.blocks.{number}", made if number else given, made, kernel)
        block(f"{name}.1.blocks.0", made, made, kernel)

    for level in range(last):  # the decoder comes first in v1's dictionaries; order must not matter
        width, below = features[last - 1 - level], features[last - level]
        halves(f"conv_blocks_localization.{level}", 2 * width, width, kernels[last - level])
        weights[f"tu.{level}.weight"] = torch.randn(below, width, *pools[last - 1 - level], generator=generator) / below
        ones = [1] * len(pools[0])
        weights[f"seg_outputs.{level}.weight"] = torch.randn(classes, width, *ones, generator=generator)
    for stage in range(last):
        for number in range(convs):
            given = features[stage] if number else (features[stage - 1] if stage else channels)
            block(f"conv_blocks_context.{stage}.blocks.{number}", given, features[stage], kernels[stage])
    halves(f"conv_blocks_context.{last}", features[last - 1], features[last], kernels[last])
    return weights


def _norm(kind: str, width: int, generator: torch.Generator) -> Weights:
    weights: Weights = {}
    if kind != "none":
        weights["weight"] = 1 + 0.5 * torch.randn(width, generator=generator)
        weights["bias"] = torch.randn(width, generator=generator)
    if kind == "batch":
        weights["running_mean"] = torch.randn(width, generator=generator)
        weights["running_var"] = 0.5 + torch.rand(width, generator=generator)
        weights["num_batches_tracked"] = torch.tensor(7)
    return weights


def run_generic_unet(
    weights: Weights,
    image: torch.Tensor,
    pools: Sequence[Sequence[int]],
    features: list[torch.Tensor] | None = None,
    activation: Callable[[torch.Tensor], torch.Tensor] = lambda x: F.leaky_relu(x, 0.01),
    activation_first: bool = False,
) -> list[torch.Tensor]:
    """Logits of every head in evaluation, finest first; the encoder's features are appended to `features`."""
    conv, up = (F.conv3d, F.conv_transpose3d) if image.ndim == 5 else (F.conv2d, F.conv_transpose2d)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        own = {key: weights.get(f"{name}.instnorm.{key}") for key in ("weight", "bias", "running_mean", "running_var")}
        if own["weight"] is None:
            return x
        if own["running_mean"] is not None:
            return F.batch_norm(x, **own, eps=1e-5)
        return F.instance_norm(x, weight=own["weight"], bias=own["bias"], eps=1e-5)

    def blocks(name: str, x: torch.Tensor, stride: Sequence[int] | int = 1) -> torch.Tensor:
        number = 0
        while (own := f"{name}.blocks.{number}") + ".conv.weight" in weights:
            kernel = weights[f"{own}.conv.weight"]
            padding = [1 if size == 3 else 0 for size in kernel.shape[2:]]
            x = conv(x, kernel, weights[f"{own}.conv.bias"], stride=stride, padding=padding)
            x = norm(own, activation(x)) if activation_first else activation(norm(own, x))
            stride, number = 1, number + 1
        return x

    skips, last = [], len(pools)
    for stage in range(last):
        image = blocks(f"conv_blocks_context.{stage}", image, pools[stage - 1] if stage else 1)
        skips.append(image)
    x = blocks(f"conv_blocks_context.{last}.1", blocks(f"conv_blocks_context.{last}.0", image, pools[-1]))
    if features is not None:
        features += [*skips, x]
    logits = []
    for level in range(last):
        x = up(x, weights[f"tu.{level}.weight"], stride=pools[last - 1 - level])
        x = torch.cat([x, skips[last - 1 - level]], dim=1)
        x = blocks(f"conv_blocks_localization.{level}.1", blocks(f"conv_blocks_localization.{level}.0", x))
        logits.append(conv(x, weights[f"seg_outputs.{level}.weight"]))
    return logits[::-1]


def suprem(base: int = 8) -> Weights:
    """Random weights under the names of SuPreM's model with that network: no restoration head, heads of its own."""
    backbone = {name.replace("module.", "module.backbone."): tensor for name, tensor in original_unet3d(base).items()
                if "out_tr" not in name}  # fmt: skip
    return backbone | {"module.organ_embedding": torch.ones(25, 512), "module.precls_conv.0.weight": torch.ones(64),
                       "module.controller.weight": torch.ones(153, 512, 1, 1, 1)}  # fmt: skip


def original_unet3d(base: int = 64, channels: int = 1) -> Weights:
    """Random weights under the names of the original Models Genesis 3D U-Net; the published one has a base of 64."""
    generator, weights = torch.Generator().manual_seed(0), {}

    def ops(name: str, widths: Sequence[int]) -> None:
        for number in (0, 1):
            given, made = widths[number : number + 2]
            place = f"module.{name}.ops.{number}"
            weights[f"{place}.conv1.weight"] = torch.randn(made, given, 3, 3, 3, generator=generator) / given**0.5 / 5
            weights[f"{place}.conv1.bias"] = torch.randn(made, generator=generator)
            weights[f"{place}.bn1.weight"] = 1 + 0.5 * torch.randn(made, generator=generator)
            weights[f"{place}.bn1.bias"] = torch.randn(made, generator=generator)
            weights[f"{place}.bn1.running_mean"] = 100 * torch.ones(made)  # must not matter
            weights[f"{place}.bn1.running_var"] = 100 * torch.ones(made)
            weights[f"{place}.bn1.num_batches_tracked"] = torch.tensor(7)

    ops("down_tr64", (channels, base // 2, base))
    ops("down_tr128", (base, base, 2 * base))
    ops("down_tr256", (2 * base, 2 * base, 4 * base))
    ops("down_tr512", (4 * base, 4 * base, 8 * base))
    for number, below in ((256, 8 * base), (128, 4 * base), (64, 2 * base)):
        place = f"module.up_tr{number}.up_conv"
        weights[f"{place}.weight"] = torch.randn(below, below, 2, 2, 2, generator=generator) / below**0.5
        weights[f"{place}.bias"] = torch.randn(below, generator=generator)
        ops(f"up_tr{number}", (below + below // 2, below // 2, below // 2))
    weights["module.out_tr.final_conv.weight"] = torch.randn(1, base, 1, 1, 1, generator=generator) / base
    weights["module.out_tr.final_conv.bias"] = torch.randn(1, generator=generator)
    return weights


def run_original_unet3d(
    weights: Weights, image: torch.Tensor, features: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """The restored image, 0 to 1; the encoder's and the last features are appended to `features`."""

    def ops(name: str, x: torch.Tensor) -> torch.Tensor:
        for number in (0, 1):
            own = {key: weights[f"module.{name}.ops.{number}.{key}"] for key in (
                "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias")}  # fmt: skip
            x = F.conv3d(x, own["conv1.weight"], own["conv1.bias"], padding=1)
            mean, variance = x.mean((0, 2, 3, 4), keepdim=True), x.var((0, 2, 3, 4), unbiased=False, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt()
            x = F.relu(x * own["bn1.weight"].view(1, -1, 1, 1, 1) + own["bn1.bias"].view(1, -1, 1, 1, 1))
        return x

    levels = [ops("down_tr64", image)]
    for name in ("down_tr128", "down_tr256", "down_tr512"):
        levels.append(ops(name, F.max_pool3d(levels[-1], 2)))
    if features is not None:
        features += levels
    x = levels.pop()
    for name in ("up_tr256", "up_tr128", "up_tr64"):
        place = f"module.{name}.up_conv"
        x = F.conv_transpose3d(x, weights[f"{place}.weight"], weights[f"{place}.bias"], stride=2)
        x = ops(name, torch.cat([x, levels.pop()], dim=1))
    if features is not None:
        features.append(x)
    head = "module.out_tr.final_conv"
    return torch.sigmoid(F.conv3d(x, weights[f"{head}.weight"], weights[f"{head}.bias"]))
