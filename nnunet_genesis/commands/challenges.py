"""A challenge's download → a dataset; predictions → the challenge's archive: dataset, submission."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_genesis.commands.parsing import add_command, add_processes, left_out
from nnunet_genesis.errors import printable

if TYPE_CHECKING:
    from nnunet_genesis.challenges.download import Download
    from nnunet_genesis.challenges.unlabeled import Selection


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
    for add in (_add_luna16, _add_chestxray):
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


def _add_luna16(challenges: Any) -> None:
    from nnunet_genesis.challenges.luna16 import SPLITS

    parser = _add_challenge(
        challenges,
        "luna16",
        _luna16,
        "LUNA16, chest CT to pre-train on: scans without labels of the subsets that are named, and no others.",
        "folder with subset0 … subset9, of .mhd and .raw files",
        "nnunet_genesis dataset luna16 /data/LUNA16 -d 516 --split genesis2021",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--split", choices=list(SPLITS), help="subsets of a paper: genesis2019 0-5, genesis2021 0-6, "
                       "released 0-4 and for validation (fold 0) 5-6")  # fmt: skip
    which.add_argument("--subsets", type=_numbers, metavar="N[,N…]", help="numbers of subsets, e.g. 0,1,2")


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers such as 0,1,2") from None


def _luna16(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.challenges.luna16 import SPLITS, find_scans_of

    training, validation = SPLITS[chosen.split] if chosen.split else (chosen.subsets, ())
    return _import(chosen, find_scans_of(chosen.source, training, validation))


def _add_chestxray(challenges: Any) -> None:
    _add_challenge(
        challenges,
        "chestxray",
        _chestxray,
        "ChestX-ray14 of the NIH, to pre-train on: the official training and validation images, and no others.",
        "folder with train_val_list.txt, test_list.txt and images_001 … images_012",
        "nnunet_genesis dataset chestxray /data/CXR8 -d 514",
    )


def _chestxray(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.challenges.chestxray import find_images_of

    return _import(chosen, find_images_of(chosen.source))


def _import(chosen: argparse.Namespace, selection: Selection) -> int:
    """Import scans without labels and say what became of them."""
    from nnunet_genesis.challenges.unlabeled import SPLIT, import_selection
    from nnunet_genesis.importing.journal import REPORT
    from nnunet_genesis.nnunet_dataset import nnunet_folder

    report = import_selection(selection, nnunet_folder("nnUNet_raw"), chosen.d, chosen.n, processes=chosen.np)
    print(f"{report.imported} cases imported into {report.folder}, {report.already_there} were there already.")
    print(f"{selection.held_out} other scans of the download are held out: they were not imported.")
    if selection.validation:
        print(f"{SPLIT}: fold 0 trains and validates as chosen; name fold 0, not all, to nnUNetv2_train.")
    for note in selection.notes:
        print(f"NOTE: {note}")
    return left_out(report.rejected, f"details: {report.folder / REPORT}")
