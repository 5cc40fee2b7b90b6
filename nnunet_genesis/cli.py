"""The command `nnunet_genesis`: finds the subcommand, and ends with one line where it fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnunet_genesis.commands import challenges, datasets, leakage, publish, restore, studies, weights
from nnunet_genesis.errors import GenesisError, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0, or 2 if some cases were left out, or 1 after an error, which is printed as one line.
    """
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except GenesisError as error:
        print(printable(f"nnunet_genesis {chosen.command}: {error}"), file=sys.stderr)
        return 1
    except OSError as error:
        text = f"nnunet_genesis {chosen.command}: {error.filename or ''}: {error.strerror or error}"
        print(printable(text), file=sys.stderr)
        return 1
    except MemoryError:
        print(
            f"nnunet_genesis {chosen.command}: not enough memory. Is a size in the files named wrong?", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(f"nnunet_genesis {chosen.command}: interrupted; run the same command to go on.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="nnunet_genesis",
        description="Pre-train nnU-Net on unlabeled scans, transfer the weights, fine-tune. The usual order: "
        "import, plan, preprocess, preview, nnUNetv2_train … -tr nnUNetTrainerGenesisPretrain, transfer, "
        "nnUNetv2_train … -tr nnUNetTrainerGenesisFinetune, nnUNetv2_predict; export for others.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        datasets.add_import, challenges.add_dataset, datasets.add_plan, datasets.add_preprocess, datasets.add_preview,
        weights.add_inspect, leakage.add_leaks, weights.add_transfer, weights.add_export, studies.add_study,
        challenges.add_submission, restore.add_restore, publish.add_card, publish.add_push, weights.add_trainers,
    ):  # fmt: skip
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
