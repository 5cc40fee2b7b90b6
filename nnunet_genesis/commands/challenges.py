"""A challenge's download → a dataset; predictions → the challenge's archive: dataset, submission."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_genesis.commands.parsing import add_command, add_processes, add_shard, left_out, say_what_completes
from nnunet_genesis.errors import GenesisError, printable

COMPLETES = "imports what is missing and writes the files that describe the dataset"
"""What a command without --shard does after those with it."""
SUBMISSIONS = ("msd", "lits", "brats")
"""Challenges with an archive; each has a module of its name with `plan_submission`."""

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
    for add in (_add_msd, _add_lits, _add_brats, _add_luna16, _add_chestxray):
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


def _add_lits(challenges: Any) -> None:
    parser = _add_challenge(
        challenges,
        "lits",
        _lits,
        "LiTS 2017, the Liver Tumor Segmentation benchmark.",
        "folder with volume-N.nii, segmentation-N.nii and test-volume-N.nii, subfolders included",
        "nnunet_genesis dataset lits /data/LiTS -d 17",
    )
    parser.add_argument("--keep-identity-affine", action="store_true", help="take volumes whose header has no spacing "
                        "(28 to 47) for scans of 1 mm, in place of leaving them out")  # fmt: skip


def _lits(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.challenges.lits import find_download

    return _write(chosen, find_download(chosen.source, chosen.keep_identity_affine))


def _add_brats(challenges: Any) -> None:
    parser = _add_challenge(
        challenges,
        "brats",
        _brats,
        "BraTS, gliomas, 2013 to 2024: names of files tell the years and the meaning of labels.",
        "unpacked folder of the download, training and, for a submission, validation cases",
        "nnunet_genesis dataset brats /data/BraTS2021 -d 137 --regions",
    )
    parser.add_argument("--regions", action="store_true", help="train on whole tumor, tumor core and enhancing tumor, "
                        "which overlap, in place of labels")  # fmt: skip


def _brats(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.challenges.brats import find_download

    return _write(chosen, find_download(chosen.source, chosen.regions))


def _write(chosen: argparse.Namespace, download: Download) -> int:
    """Write the dataset and say what became of the cases."""
    from nnunet_genesis.challenges.case_log import REPORT
    from nnunet_genesis.challenges.download import FOLDS_FILE
    from nnunet_genesis.challenges.raw_dataset import write_dataset
    from nnunet_genesis.nnunet_dataset import nnunet_folder

    report = write_dataset(download, nnunet_folder("nnUNet_raw"), chosen.d, chosen.n, processes=chosen.np)
    print(f"{report.written} cases written to {report.folder}, {report.already_there} were there already.")
    for case, note in report.mended.items():
        print(f"  {printable(case)}: {printable(note)}")
    if report.splits:
        print(f"{FOLDS_FILE}: {report.splits} folds that keep the cases of a patient together.")
    for note in download.notes:
        print(f"NOTE: {note}")
    return left_out(report.left_out, f"details: {report.folder / REPORT}")


def add_submission(commands: Any) -> None:
    """Add the command `submission`."""
    parser = add_command(
        commands,
        "submission",
        _submission,
        "Make the archive that a challenge takes from nnU-Net's predictions, or check one: names, geometry, labels.",
        "nnunet_genesis submission msd predictions --images /data/MSD -o submission.zip",
    )
    parser.add_argument("challenge", choices=SUBMISSIONS, metavar="NAME", help=", ".join(SUBMISSIONS))
    parser.add_argument("predictions", nargs="?", type=Path, metavar="PREDICTIONS",
                        help="folder of nnUNetv2_predict; for msd with a folder for each task")  # fmt: skip
    parser.add_argument("--images", required=True, type=Path, metavar="IMAGES",
                        help="test images, as downloaded or as datasets of nnU-Net")  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", type=Path, metavar="ZIP", help="archive to write, if all is well")
    what.add_argument("--check", type=Path, metavar="ZIP", help="archive to check, without predictions")
    parser.add_argument("--partial", action="store_true", help="single tasks of msd, single volumes of lits")
    add_processes(parser)


def _submission(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.challenges.archive import check_archive, write_archive

    if bool(chosen.o) != bool(chosen.predictions):
        raise GenesisError("Name PREDICTIONS and -o ZIP to write an archive, or --check ZIP alone to check one.")
    challenge = import_module(f"nnunet_genesis.challenges.{chosen.challenge}")
    submission = challenge.plan_submission(chosen.predictions, chosen.images, chosen.partial)
    if chosen.check:
        wrong = check_archive(submission, chosen.check, chosen.np)
    else:
        wrong = write_archive(submission, chosen.predictions, chosen.o, chosen.np)
    for line in wrong:
        print(f"  {printable(line)}", file=sys.stderr)
    if wrong:
        what = f"{chosen.check} would not be taken" if chosen.check else "no archive was written"
        print(f"{len(wrong)} findings: {what}. Correct them and run the same command again.", file=sys.stderr)
        return 1
    if submission.excluded:
        names = ", ".join(file.name.removesuffix(".nii.gz") for file in submission.excluded)
        print(f"Left out, as the challenge asks: {names}.")
    print(f"{chosen.check or chosen.o}: {len(submission.wanted)} segmentations, all as the challenge wants them.")
    return 0


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
    add_shard(parser, "scan")
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
    parser = _add_challenge(
        challenges,
        "chestxray",
        _chestxray,
        "ChestX-ray14 of the NIH, to pre-train on: the official training and validation images, and no others.",
        "folder with train_val_list.txt, test_list.txt and images_001 … images_012",
        "nnunet_genesis dataset chestxray /data/CXR8 -d 514",
    )
    add_shard(parser, "image")


def _chestxray(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.challenges.chestxray import find_images_of

    return _import(chosen, find_images_of(chosen.source))


def _import(chosen: argparse.Namespace, selection: Selection) -> int:
    """Import scans without labels and say what became of them."""
    from nnunet_genesis.challenges.download import FOLDS_FILE
    from nnunet_genesis.challenges.unlabeled import import_selection
    from nnunet_genesis.importing.journal import REPORT
    from nnunet_genesis.nnunet_dataset import nnunet_folder

    report = import_selection(
        selection, nnunet_folder("nnUNet_raw"), chosen.d, chosen.n, shard=chosen.shard, processes=chosen.np
    )
    print(f"{report.imported} cases imported into {report.folder}, {report.already_there} were there already.")
    say_what_completes(chosen.shard, COMPLETES)
    print(f"{selection.held_out} other scans of the download are held out: they were not imported.")
    if selection.validation and chosen.shard == (1, 1):
        print(f"{FOLDS_FILE}: fold 0 trains and validates as chosen; name fold 0, not all, to nnUNetv2_train.")
    for note in selection.notes:
        print(f"NOTE: {note}")
    return left_out(report.rejected, f"details: {report.folder / REPORT}")
