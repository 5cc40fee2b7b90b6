"""What commands share: a parser with an example, processes, shards, shares, names of cases, what was left out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import DatasetError, GenesisError, printable

LEFT_OUT = 2
"""Exit code when the work was done but for some cases."""


def add_command(commands: Any, name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand that calls `run`; its help ends with an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_checkpoint(parser: argparse.ArgumentParser, text: str, **options: Any) -> None:
    """Add CHECKPOINT, which `nnunet_genesis.hub.locating.located` makes a file of."""
    where = "; a file, a folder that card wrote, hf://owner/repo[@revision][/file] or https://…"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=text + where, **options)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add -np, the number of processes."""
    parser.add_argument("-np", type=int, default=4, metavar="N", help="number of processes (%(default)s)")


def add_shard(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --shard, the part of the work that is to be done."""
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help=f"only every N-th {what}, from the I-th on"
    )


def _shard(text: str) -> tuple[int, int]:
    """2/4 → (2, 4)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not a shard such as 1/4")
    return int(number), int(count)


def say_what_completes(shard: tuple[int, int], what: str) -> None:
    """After a shard: the run that all shards are followed by."""
    if shard[1] > 1:
        print(f"When all {shard[1]} shards have run, run the same command without --shard: it {what}.")


def named_datasets(words: Sequence[str]) -> list[str]:
    """Names of datasets, of which ids or names were given.

    Raises:
        DatasetError: There is no such dataset, or one of them is named twice.
    """
    from nnunet_genesis.nnunet_dataset import dataset_name

    names = [dataset_name(word) for word in words]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DatasetError(f"-d names {printable(twice[0], 80)} twice. Name each dataset once.")
    return names


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def left_out(reasons: dict[str, str], advice: str) -> int:
    """Print what was left out and why; the exit code."""
    if not reasons:
        return 0
    print(f"{len(reasons)} left out ({advice}):", file=sys.stderr)
    for what, why in reasons.items():
        print(f"  {printable(what)}: {printable(why)}", file=sys.stderr)
    return LEFT_OUT


def read_cases(words: Sequence[str]) -> list[str]:
    """Names of cases, each once, as given, or of a text file with one in each line.

    Raises:
        GenesisError: The file cannot be read as text, or holds no name, which would stand for all cases or for none.
    """
    names: list[str] = []
    for word in words:
        path = Path(word)
        if path.suffix != ".txt":
            names.append(word)
            continue
        try:
            inside = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError):
            raise GenesisError(f"{path} cannot be read as text. Write one name of a case in each line.") from None
        if not inside:
            raise GenesisError(f"{path} is empty. Write one name of a case in each line.")
        names += inside
    return list(dict.fromkeys(names))
