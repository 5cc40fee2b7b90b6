"""Pre-trained checkpoint and scans → restored volumes and difference maps: restore."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_genesis.commands.parsing import add_checkpoint, add_command, left_out


def add_restore(commands: Any) -> None:
    """Add the command `restore`."""
    parser = add_command(
        commands,
        "restore",
        _restore,
        "Restore scans with a pre-trained network: what it would have expected, and where the scan differs from that, "
        "as a hint at anomalies. For research only.",
        "nnunet_genesis restore checkpoint_final.pth -i SCANS -o RESTORED",
    )
    add_checkpoint(parser, "of nnUNetTrainerGenesisPretrain")
    parser.add_argument("-i", required=True, nargs="+", type=Path, metavar="IN", help="scans: files and folders, in "
                        "the formats and with the names that import takes")  # fmt: skip
    parser.add_argument("-o", required=True, type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--hide", type=int, default=0, metavar="N", help="show the network one N-th of the image at a "
                        "time, take what it restores in the rest; masking recipe: 4 (0: show all)")  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), default="cuda", help="(%(default)s)")


def _restore(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.restoring.into_folder import SHEET, restore_scans

    done = restore_scans(chosen.checkpoint, chosen.i, chosen.o, device=chosen.device, hide=chosen.hide)
    print(f"{len(done.scores)} scans restored. Mean difference in normalised intensities, the largest first:")
    for case, (mean, _) in list(done.scores.items())[:MOST_SHOWN]:
        print(f"  {mean:.4f}  {case}")
    print(f"Wrote {chosen.o / SHEET}.")
    return left_out(done.left_out, "nothing was written for them")


MOST_SHOWN = 10
"""Cases on the screen; all are in the files."""
