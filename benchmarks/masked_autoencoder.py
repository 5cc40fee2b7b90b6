"""What hidden tokens save: time of a masked autoencoder's step and of its encoder at several ratios, on one patch.

python benchmarks/masked_autoencoder.py [--size s] [--patch 96] [--batch 1] [--repeats 2] [-o REPORT.md] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import add_device, facts, memory, seconds, size, smooth_volume, synchronize, table

from nnunet_genesis.pretraining.cells import visible_cells, voxels_of
from nnunet_genesis.pretraining.loss import RestorationLoss
from nnunet_genesis.pretraining.masked_autoencoder import MaskedAutoencoder, encode_visible
from nnunet_genesis.primus import PATCH_EMBED, WIDTHS, Primus

RATIOS = (0.0, 0.5, 0.75)
CELL = (PATCH_EMBED,) * 3


def model_of(name: str, patch: Sequence[int], device: torch.device) -> MaskedAutoencoder:
    """The Primus of nnU-Net's trainers, without drop-path, and a decoder of two blocks."""
    width, depth, heads = WIDTHS[name]
    network = Primus(1, 1, embed_dim=width, eva_depth=depth, eva_numheads=heads, patch_embed_size=CELL,
                     input_shape=tuple(patch), scale_attn_inner=True, init_values=0.1)  # fmt: skip
    return MaskedAutoencoder(network, tuple(patch), CELL, 2).to(device)


def hidden_at(patch: torch.Tensor, ratio: float) -> torch.Tensor:
    """Patches (B, 1, *patch) with that share of its cells NaN."""
    cells = math.prod(edge // PATCH_EMBED for edge in patch.shape[2:])
    order = torch.randperm(cells, generator=torch.Generator().manual_seed(0))
    visible = (order >= round(ratio * cells))[None].expand(len(patch), -1).to(patch.device)
    return patch.masked_fill(~voxels_of(visible, CELL, patch.shape[2:]), torch.nan)


def times(model: MaskedAutoencoder, patch: torch.Tensor, ratio: float) -> dict[str, float]:
    """Seconds of the encoder alone, and of the whole step without the optimiser; forward and backward; memory of it."""
    hidden, loss = hidden_at(patch, ratio), RestorationLoss("mse", CELL)
    target = patch.masked_fill(~hidden.isnan(), torch.nan) if ratio else patch
    visible = visible_cells(hidden, CELL)

    def encode() -> None:
        with half_precision(patch.device):
            features = encode_visible(model.network, hidden, visible, CELL)
        features.float().square().mean().backward()

    def step() -> None:
        with half_precision(patch.device):
            restored = model(hidden)
        loss(restored, target).backward()

    spent = []
    for call in (encode, step):
        model.zero_grad()
        memory(patch.device)
        spent.append(seconds(call, patch.device))
    return {"encoder": spent[0], "step": spent[1]} | memory(patch.device)


def half_precision(device: torch.device) -> torch.autocast:
    """As nnU-Net trains: float16 where it serves on CUDA, float32 elsewhere."""
    return torch.autocast(device.type, enabled=device.type == "cuda")


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(WIDTHS), default="s", help="of the Primus (%(default)s)")
    parser.add_argument("--patch", type=int, nargs="+", default=[96], metavar="N", help="edge or edges, in voxels")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="patches (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="of which the fastest counts (%(default)s)")
    parser.add_argument("-o", type=Path, metavar="REPORT", help="Markdown file to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the seconds to")
    add_device(parser, "cpu")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    device, shape = torch.device(chosen.device), chosen.patch * 3 if len(chosen.patch) == 1 else chosen.patch
    model = model_of(chosen.size, shape, device)
    patch = torch.stack([smooth_volume(shape, number) for number in range(chosen.batch)])[:, None].to(device)
    times(model, patch, RATIOS[-1])  # untimed: memory, kernels
    synchronize(device)
    rounds = [{ratio: times(model, patch, ratio) for ratio in RATIOS} for _ in range(chosen.repeats)]
    best = {ratio: {part: min(one[ratio][part] for one in rounds) for part in rounds[0][ratio]} for ratio in RATIOS}
    rows = [
        [f"{ratio:g}", one["encoder"], one["encoder"] / best[0.0]["encoder"], one["step"],
         one["step"] / best[0.0]["step"], one.get("peak_gb")]
        for ratio, one in best.items()
    ]  # fmt: skip
    header = ["ratio", "encoder [s]", "of ratio 0", "whole step [s]", "of ratio 0", "peak GB"]
    edges = " ".join(map(str, shape))
    precision = "float16 autocast" if device.type == "cuda" else "float32"
    report = f"""# What hidden tokens save

Primus-{chosen.size.upper()}, batch of {chosen.batch}, patches of {size(shape)}, forward and backward, {precision},
the fastest of {chosen.repeats}. The whole step has the decoder of two blocks, the up-projection and the loss, and no
optimiser. Peak GB is the most that tensors held on a CUDA device.

{table(header, rows)}

{facts(device)}; threads: {torch.get_num_threads()}

`python benchmarks/masked_autoencoder.py --size {chosen.size} --patch {edges} --batch {chosen.batch}`
"""
    print(report)
    if chosen.o:
        chosen.o.write_text(report)
    if chosen.json:
        chosen.json.write_text(json.dumps({"seconds": best}, indent=1))


if __name__ == "__main__":
    main()
