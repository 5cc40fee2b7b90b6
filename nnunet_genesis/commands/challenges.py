"""A challenge's download → a dataset; predictions → the challenge's archive: dataset, submission."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_genesis.commands.parsing import add_command, add_processes, left_out
from nnunet_genesis.errors import printable

if TYPE_CHECKING:
    from nnunet_genesis.challenges.download import Download


def add_dataset(commands: Any) -> None:
    """Add the command `dataset`, with a subcommand for each challenge."""
    parser = add_command(
        commands,
        "dataset",
        None,
        "Make an nnU-Net raw dataset from a challenge's download, traps of the data handled and reported.",
        "nnunet_genesis dataset msd /data/Task03_Liver -d 3",
    )
    challenges = parser.add_subparsers(dest="challenge", required=True, metavar="NAME")
    for add in (_add_msd,):
        add(challenges)


def _add_challenge(
    challenges: Any, name: str, run: Any, text: str, source: str, example: str
) -> argparse.ArgumentParser:
    """Add a challenge with what all of them take: the download, id and name of the dataset, processes."""
    parser = add_command(challenges, name, run, text, example)
    parser.add_argument("source", type=Path, metavar="SOURCE", help=source)
    parser.add_argument("-d", required=True, type=int, metavar="ID", help="id of the new dataset, 1 to 999")
    parser.add_argument("-n", metavar="NAME", help="its name (that of the challenge)")
    add_processes(parser)
    return parser


def _add_msd(challenges: Any) -> None:
    _add_challenge(
        challenges,
        "msd",
        _msd,
        "A task of the Medical Segmentation Decathlon.",
        "unpacked folder of a task, e.g. Task03_Liver",
        "nnunet_genesis dataset msd /data/Task03_Liver -d 3",
    )


def _msd(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.challenges.msd import find_download

    return _write(chosen, find_download(chosen.source))


def _write(chosen: argparse.Namespace, download: Download) -> int:
    """Write the dataset and say what became of the cases."""
    from nnunet_genesis.challenges.case_log import REPORT
    from nnunet_genesis.challenges.raw_dataset import write_dataset
    from nnunet_genesis.nnunet_dataset import nnunet_folder

    report = write_dataset(download, nnunet_folder("nnUNet_raw"), chosen.d, chosen.n, processes=chosen.np)
    print(f"{report.written} cases written to {report.folder}, {report.already_there} were there already.")
    for case, note in report.mended.items():
        print(printable(f"  {case}: {note}"))
    if report.splits:
        print(f"splits_final.json: {report.splits} folds that keep the cases of a patient together.")
    for note in download.notes:
        print(f"NOTE: {note}")
    return left_out(report.left_out, f"details: {report.folder / REPORT}")
