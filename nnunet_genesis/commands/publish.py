"""Weights → a folder to publish, and the hub: card, push."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_genesis.commands.parsing import add_checkpoint, add_command
from nnunet_genesis.errors import HubError


def add_card(commands: Any) -> None:
    """Add the command `card`."""
    parser = add_command(
        commands,
        "card",
        _card,
        "Write what is to be published of a checkpoint: its weights as safetensors, under the names of nnU-Net's "
        "network, config.json, and a model card. Names of cases, datasets and files stay out of it.",
        'nnunet_genesis card checkpoint_final.pth -o weights --licence cc-by-4.0 --data "LUNA16, subsets 0 to 4"',
    )
    add_checkpoint(parser, "of any kind that inspect knows")
    parser.add_argument("-o", required=True, type=Path, metavar="FOLDER", help="new folder")
    parser.add_argument("--licence", required=True, metavar="ID", help="of the weights, as the hub names it: "
                        "cc-by-4.0, apache-2.0, …")  # fmt: skip
    parser.add_argument("--data", required=True, metavar="TEXT", help="what the weights were trained on, in words")
    parser.add_argument("--title", default="", metavar="TEXT", help="of the model card (the architecture)")
    parser.add_argument("--citation", type=Path, metavar="FILE", help="BibTeX to be cited besides nnU-Net, and Models "
                        "Genesis for our pre-training")  # fmt: skip
    parser.add_argument("--cases", action="store_true", help="publish the record of the cases, so that others find "
                        "leaks: names and small blurred images, which may identify patients")  # fmt: skip


def _card(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.publishing.bundle import About, write_bundle

    try:
        citation = "" if chosen.citation is None else chosen.citation.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HubError(f"{chosen.citation} cannot be read as text. Name a file of BibTeX.") from None
    about = About(chosen.licence, chosen.data, chosen.title, citation, chosen.cases)
    config = write_bundle(chosen.checkpoint, chosen.o, about)
    print(f"Wrote {chosen.o}: {config['parameters']:,} parameters, SHA-256 {config['weights_sha256']}")
    if chosen.cases:
        print("WARNING: cases.npz holds the names of the cases and small blurred images of them.")
    print(f"Read {chosen.o / 'README.md'}, then: nnunet_genesis push {chosen.o} hf://owner/repo --private")
    return 0


def add_push(commands: Any) -> None:
    """Add the command `push`."""
    parser = add_command(
        commands,
        "push",
        _push,
        "Upload a folder that card wrote to a repository on the Hugging Face hub, which is made if need be. Log in "
        "first: hf auth login, or set HF_TOKEN.",
        "nnunet_genesis push weights hf://owner/repo --private",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="written by card")
    parser.add_argument("repository", metavar="REPOSITORY", help="hf://owner/repo")
    parser.add_argument("--private", action="store_true", help="stop if others can read the repository")


def _push(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.publishing.pushing import push

    address = push(chosen.folder, chosen.repository, chosen.private)
    print(f"Uploaded. For others: nnunet_genesis inspect {address}")
    return 0
