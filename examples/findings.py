"""Pre-trained against fresh 2D encoders on the findings of ChestX-ray14, several in one image: prints AUC per finding.

    python examples/findings.py CHECKPOINT /data/CXR8 --train 5000 --test 2000

The folder is that of the NIH (`train_val_list.txt`, `test_list.txt`, `Data_Entry_2017.csv`, `images_001` …). Images to
train on are drawn from the first list, those to test on from the second: no patient is in both. An encoder gets the
whole X-ray, shrunk to --edge, z-scored as by nnU-Net, and the papers' head with one logit for each finding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

import nnunet_genesis
from nnunet_genesis.challenges.chestxray import FINDINGS, findings, images_below, official_split
from nnunet_genesis.errors import GenesisError


def read_images(files: Sequence[Path], edge: int) -> torch.Tensor:
    """X-rays (N, 1, edge, edge), z-scored each."""
    images = np.empty((len(files), 1, edge, edge), "f4")
    for number, file in enumerate(files):
        with Image.open(file) as image:
            shrunk = image.convert("L").resize((edge, edge), Image.Resampling.BILINEAR)
        values = np.asarray(shrunk, "f4")
        images[number, 0] = (values - values.mean()) / max(float(values.std()), 1e-8)
    return torch.from_numpy(images)


def targets(names: Sequence[str], found: Mapping[str, frozenset[str]]) -> torch.Tensor:
    """1 where an image has a finding, else 0: (N, 14)."""
    return torch.tensor([[float(finding in found[name]) for finding in FINDINGS] for name in names])


def train(
    classifier: nn.Module, images: torch.Tensor, wanted: torch.Tensor, steps: int, rate: float, rng: np.random.Generator
) -> None:
    """AdamW on batches of 16; each finding is a decision of its own."""
    device = next(classifier.parameters()).device
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=1e-2)
    classifier.train()
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(len(images), size=16))
        logits = classifier(images[batch].to(device))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def auc_of_each(classifier: nn.Module, images: torch.Tensor, wanted: torch.Tensor) -> np.ndarray:
    """Areas under the ROC curves (14,); NaN for a finding that all or none of the images have."""
    device = next(classifier.parameters()).device
    classifier.eval()
    logits = torch.cat([classifier(batch.to(device)).cpu() for batch in images.split(32)]).numpy()
    both = (wanted.numpy().min(0) == 0) & (wanted.numpy().max(0) == 1)
    return np.array(
        [roc_auc_score(wanted[:, one], logits[:, one]) if both[one] else np.nan for one in range(len(FINDINGS))]
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="pre-trained checkpoint; one input channel, 2D")
    parser.add_argument("folder", type=Path, help="folder of ChestX-ray14")
    parser.add_argument("--train", type=int, default=5000, metavar="N", help="images to train on (%(default)s)")
    parser.add_argument("--test", type=int, default=2000, metavar="N", help="images to test on (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each arm (%(default)s)")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of a training (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-4, metavar="X", help="learning rate (%(default)s)")
    parser.add_argument("--edge", type=int, default=256, metavar="N", help="of an image, in pixels (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (%(default)s)")
    return parser.parse_args()


def draw(chosen: argparse.Namespace) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and targets to train on, and to test on: of the official lists, the same for every seed."""
    try:
        files, found, lists = images_below(chosen.folder), findings(chosen.folder), official_split(chosen.folder)
    except GenesisError as error:
        sys.exit(str(error))
    drawn = []
    for names, most in zip(lists, (chosen.train, chosen.test), strict=True):
        there = [name for name in names if name in files and name in found]
        names = [there[one] for one in np.random.default_rng(0).permutation(len(there))[:most]]
        if not names:
            sys.exit(
                f"{chosen.folder} has no images of one of the two lists: unpack them, or raise --train and --test."
            )
        drawn.append((read_images([files[name] for name in names], chosen.edge), targets(names, found)))
    if not any(0 < positive < len(drawn[1][1]) for positive in drawn[1][1].sum(0)):
        sys.exit(f"Among {len(drawn[1][1])} test images, no finding is in some and not in others. Raise --test.")
    return drawn


def refuse_unsuitable(checkpoint: Path, edge: int) -> None:
    """End the process where the encoder cannot be read or does not take such images."""
    try:
        nnunet_genesis.encoder(checkpoint)(torch.zeros(1, 1, edge, edge))
    except GenesisError as error:
        sys.exit(f"{error} X-rays are 2D, of one channel; --edge, now {edge}, sets their size.")


def main() -> None:
    """Train both arms with every seed on the same images, in the same order."""
    chosen, began = arguments(), time.monotonic()
    refuse_unsuitable(chosen.checkpoint, chosen.edge)
    training, testing = draw(chosen)
    print(f"{len(training[0])} images to train on, {len(testing[0])} to test on")
    scores: dict[str, list[np.ndarray]] = {"pre-trained": [], "scratch": []}
    for seed in range(chosen.seeds):
        for arm, of_arm in scores.items():
            torch.manual_seed(seed)
            encoder = nnunet_genesis.encoder(chosen.checkpoint, pretrained=arm == "pre-trained")
            classifier = nnunet_genesis.Classifier(encoder, classes=len(FINDINGS)).to(chosen.device)
            train(classifier, *training, chosen.steps, chosen.lr, np.random.default_rng(seed))
            of_arm.append(auc_of_each(classifier, *testing))
            print(f"seed {seed}, {arm}: mean AUC {np.nanmean(of_arm[-1]):.3f}", flush=True)
    means = {arm: np.mean(of_arm, axis=0) for arm, of_arm in scores.items()}
    print(f"{'finding':<20}{'images':>7}" + "".join(f"{arm:>13}" for arm in means))
    for number, finding in enumerate(FINDINGS):
        if not np.isnan(means["scratch"][number]):
            count = int(testing[1][:, number].sum())
            print(f"{finding:<20}{count:>7}" + "".join(f"{mean[number]:>13.3f}" for mean in means.values()))
    print(f"{'mean':<20}{'':>7}" + "".join(f"{np.nanmean(mean):>13.3f}" for mean in means.values()))
    print(f"{time.monotonic() - began:.0f} s; AUC, mean of {chosen.seeds} seeds; others are in all images or in none")


if __name__ == "__main__":
    main()
