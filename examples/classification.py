"""Pre-trained against fresh encoders on a problem of two classes, cut out of a labeled dataset: prints AUC.

    python examples/classification.py CHECKPOINT Task04_Hippocampus

The problem: does the voxel in the middle of a patch belong to label 1 or label 2, e.g. to the anterior or the posterior
hippocampus? No edge or intensity tells them apart: the patch must be recognised as a place in the anatomy. Patches lie
inside the volume, so that padding does not give the answer away. Training and test patches come from different cases;
leave cases that the checkpoint was pre-trained on out of the folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import nnunet_genesis
from nnunet_genesis.errors import GenesisError

LABELS = (1, 2)


def read_case(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Image, z-scored as by nnU-Net, and labels, both (z, y, x); spacings other than the checkpoint's are kept."""
    found = [folder / "imagesTr" / f"{name}{ending}" for ending in ("_0000.nii.gz", ".nii.gz")]
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(next(path for path in found if path.is_file())))).astype("f4")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{name}.nii.gz")))
    return (image - image.mean()) / max(float(image.std()), 1e-8), labels


def draw_patches(
    cases: Sequence[tuple[np.ndarray, np.ndarray]], each: int, edge: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (N, 1, edge, edge, edge) around random voxels, `each` per case and label, and classes 0 and 1.

    Ends the process where a class has no patch.
    """
    patches, classes, half = [], [], edge // 2
    for image, labels in cases:
        for number, label in enumerate(LABELS):
            starts = np.argwhere(labels == label) - half
            starts = starts[((starts >= 0) & (starts + edge <= image.shape)).all(1)]
            for z, y, x in starts[rng.integers(len(starts), size=each)] if len(starts) else ():
                patches.append(image[z : z + edge, y : y + edge, x : x + edge])
                classes.append(number)
    if len(set(classes)) < len(LABELS):
        sys.exit(
            f"Among {len(cases)} cases, labels {LABELS[0]} and {LABELS[1]} do not both have a patch of {edge} voxels "
            "per edge that lies inside its volume. Name a smaller --edge or a folder with larger volumes."
        )
    return torch.from_numpy(np.stack(patches))[:, None], torch.tensor(classes)


def train(
    classifier: nn.Module, patches: torch.Tensor, classes: torch.Tensor, steps: int, rng: np.random.Generator
) -> None:
    """AdamW on batches of 16."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=1e-2)
    classifier.train()
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(len(patches), size=16))
        loss = nn.functional.cross_entropy(classifier(patches[batch]), classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def auc(classifier: nn.Module, patches: torch.Tensor, classes: torch.Tensor) -> float:
    """Area under the ROC curve."""
    classifier.eval()
    logits = torch.cat([classifier(batch) for batch in patches.split(32)])
    return float(roc_auc_score(classes.numpy(), (logits[:, 1] - logits[:, 0]).numpy()))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="pre-trained checkpoint, or its address; one input channel, 3D")
    parser.add_argument("dataset", type=Path, help="folder with imagesTr and labelsTr, one channel, labels 1 and 2")
    parser.add_argument("--train", type=int, default=8, metavar="N", help="cases to train on (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each arm (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of a training (%(default)s)")
    parser.add_argument("--edge", type=int, default=16, metavar="N", help="of a patch, in voxels (%(default)s)")
    return parser.parse_args()


def refuse_unsuitable(checkpoint: str, edge: int) -> None:
    """End the process where the encoder cannot be read or does not take such patches."""
    try:
        nnunet_genesis.encoder(checkpoint)(torch.zeros(1, 1, edge, edge, edge))
    except GenesisError as error:
        sys.exit(f"{error} Patches are 3D, of one channel; --edge, now {edge}, sets their size.")


def main() -> None:
    """Train both arms with every seed on the same patches, in the same order."""
    chosen, began = arguments(), time.monotonic()
    refuse_unsuitable(chosen.checkpoint, chosen.edge)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (chosen.dataset / "labelsTr").glob("[!.]*.nii.gz"))
    if not 0 < chosen.train < len(names):
        sys.exit(
            f"{chosen.dataset} has {len(names)} labeled cases: --train {chosen.train} does not leave one to train and "
            "one to test on. Name another number or folder."
        )
    np.random.default_rng(0).shuffle(names)
    cases = [read_case(chosen.dataset, name) for name in names]
    testing = draw_patches(cases[chosen.train :], 8, chosen.edge, np.random.default_rng(0))
    print(f"{chosen.train} cases to train on, {len(cases) - chosen.train} with {len(testing[0])} patches to test on")
    found: dict[str, list[float]] = {"pre-trained": [], "scratch": []}
    for seed in range(chosen.seeds):
        training = draw_patches(cases[: chosen.train], 8, chosen.edge, np.random.default_rng(seed))
        for arm, scores in found.items():
            torch.manual_seed(seed)
            encoder = nnunet_genesis.encoder(chosen.checkpoint, pretrained=arm == "pre-trained")
            classifier = nnunet_genesis.Classifier(encoder, classes=len(LABELS))
            train(classifier, *training, chosen.steps, np.random.default_rng(seed))
            scores.append(auc(classifier, *testing))
            print(f"seed {seed}, {arm}: AUC {scores[-1]:.3f}", flush=True)
    for arm, scores in found.items():
        print(f"{arm:<12} AUC {np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} (mean ± sd of {len(scores)} seeds)")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
