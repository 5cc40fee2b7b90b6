"""Which cases of a labeled dataset was a checkpoint pre-trained on: leaks, and the same question before a transfer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nnunet_genesis.commands.parsing import add_checkpoint, add_command, read_cases
from nnunet_genesis.errors import DatasetError, LeakError, printable

if TYPE_CHECKING:
    from nnunet_genesis.leaks.search import Hit


def add_leaks(commands: Any) -> None:
    """Add the command `leaks`."""
    parser = add_command(
        commands,
        "leaks",
        _leaks,
        "Say which cases of a labeled dataset a checkpoint was pre-trained on, also under other names, in other "
        "formats, spacings and orientations.",
        "nnunet_genesis leaks checkpoint_final.pth -d 4 -c 3d_fullres --fold 0",
    )
    add_checkpoint(parser, "of a pre-training, or transferred weights")
    parser.add_argument("-d", required=True, metavar="ID", help="labeled dataset, preprocessed; id or name")
    parser.add_argument(
        "-c", default="3d_fullres", metavar="CONFIGURATION", help="whose volumes to compare (%(default)s)"
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the dataset (%(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fold", type=int, metavar="K", help="only the validation cases of this fold (all cases)")
    which.add_argument("--cases", nargs="+", metavar="CASE", help="only these, or those in a .txt file")


def _leaks(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.hub.locating import located
    from nnunet_genesis.leaks.search import unknown
    from nnunet_genesis.nnunet_dataset import dataset_name

    dataset = dataset_name(chosen.d)
    chosen.checkpoint = located(chosen.checkpoint)
    cases, hits = _compared(chosen, dataset, chosen.cases)
    if hits is None:
        raise LeakError(f"{unknown(chosen.checkpoint)}. Checkpoints of earlier versions and of others have no record.")
    if not hits:
        print(f"None of {len(cases)} cases of {dataset} was found among those of the pre-training.")
        return 0
    rows = [("case", "what it is", "in the pre-training", "similarity")]
    rows += [(hit.case, hit.kind, printable(hit.other, 80), "" if hit.similarity is None else f"{hit.similarity:.3f}")
             for hit in hits]  # fmt: skip
    widths = [max(len(printable(row[column])) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    raise LeakError(
        f"{len(hits)} of {len(cases)} cases were pre-trained on: {', '.join(hit.case for hit in hits)}. "
        "Pre-train without them (plan --exclude), or test on others."
    )


def leaks_in_words(chosen: argparse.Namespace, dataset: str) -> list[str]:
    """Validation cases of a fold that a checkpoint was pre-trained on; one line if it does not say.

    Raises:
        LeakError: There are some, and they were not allowed.
    """
    from nnunet_genesis.leaks.search import unknown

    cases, hits = _compared(chosen, dataset, None)
    if hits is None:
        print(f"WARNING: {unknown(chosen.checkpoint)}")
        return [unknown(chosen.checkpoint)]
    if hits and not chosen.allow_leaks:
        raise LeakError(
            f"The checkpoint was pre-trained on {len(hits)} of {len(cases)} validation cases of fold {chosen.fold}: "
            f"{'; '.join(map(str, hits))}. Pre-train without them (plan --fold {chosen.fold}), or add --allow-leaks."
        )
    words = [str(hit) for hit in hits]
    print(f"Validation cases of fold {chosen.fold} that were pre-trained on: {'; '.join(words) or 'none found'}")
    return words


def _compared(chosen: argparse.Namespace, dataset: str, names: list[str] | None) -> tuple[list[str], list[Hit] | None]:
    """The cases that were meant, and what was found of them."""
    from nnunet_genesis.folds import preprocessed_cases, validation_cases
    from nnunet_genesis.leaks.search import leaks
    from nnunet_genesis.nnunet_dataset import check_configuration, read_plans
    from nnunet_genesis.preflight import volumes_folder

    plans = read_plans(dataset, chosen.p)
    check_configuration(plans, chosen.c)
    cases = preprocessed_cases(plans, chosen.c)
    wanted = validation_cases(plans, chosen.fold) if chosen.fold is not None else read_cases(names or []) or cases
    if unknown := sorted(set(wanted) - set(cases)):
        raise DatasetError(
            f"{printable(unknown[0], 80)} is no preprocessed case of {dataset}. Correct or preprocess it."
        )
    return wanted, leaks(chosen.checkpoint, volumes_folder(plans, chosen.c), wanted)
