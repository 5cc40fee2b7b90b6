"""Checkpoint → what it is, plans that start from it, a model for others: inspect, transfer, export, trainers."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_genesis.cli_settings import add_flags, given
from nnunet_genesis.commands.leakage import leaks_in_words
from nnunet_genesis.commands.parsing import add_checkpoint, add_command, left_out, share
from nnunet_genesis.errors import GenesisError

OF_WEIGHTS = ("axes", "resize_widths", "new_heads")
"""Arguments of `transfer` that say how weights are carried."""


def add_inspect(commands: Any) -> None:
    """Add the command `inspect`."""
    parser = add_command(
        commands,
        "inspect",
        _inspect,
        "Say what a checkpoint is: nnU-Net v2, nnU-Net v1 or nnssl (U-Net or Primus, their transformer), the 3D U-Net "
        "of Models Genesis (also of Keras) or SuPreM, or a state dict (.pth, .safetensors) of one of these networks. "
        "No code in the file is run.",
        "nnunet_genesis inspect genesis_nnunet_luna16_006.model",
    )
    add_checkpoint(parser, "what to look at")


def _inspect(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.checkpoints.reading import read_pretrained
    from nnunet_genesis.files import sha256
    from nnunet_genesis.hub.locating import located, origin

    path = located(chosen.checkpoint)
    source = read_pretrained(path)
    where = {} if (address := origin(path)) is None else {"source": address}
    for label, text in (source.facts() | {"SHA-256": sha256(path)} | where).items():
        print(f"{label + ':':<15} {text}")
    for note in source.notes:
        print(f"{'note:':<15} {note}")
    return 0


def add_transfer(commands: Any) -> None:
    """Add the command `transfer`."""
    from nnunet_genesis.settings import FineTuningSettings
    from nnunet_genesis.transfer.into_plans import MIN_COVERAGE, SCHEDULE

    parser = add_command(
        commands,
        "transfer",
        _transfer,
        "Carry the weights of a checkpoint into the plans of a dataset, ready for nnUNetTrainerGenesisFinetune: of a "
        "U-Net into a U-Net, of a Primus into a Primus (plan --network).",
        "nnunet_genesis transfer checkpoint_final.pth -d 4 -c 3d_fullres --epochs 200",
    )
    add_checkpoint(parser, "of nnU-Net v2 or v1, nnssl, Models Genesis, SuPreM, or a state dict (.pth, .safetensors), "
                   "see inspect", nargs="?")  # fmt: skip
    parser.add_argument("--from-scratch", action="store_true", help="in place of a checkpoint: plans for a control arm "
                        "with the same trainer and settings but random weights")  # fmt: skip
    parser.add_argument("-d", required=True, metavar="ID", help="target dataset, id or name")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="2d, 3d_lowres or 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the target (%(default)s)")
    parser.add_argument(
        "--to", metavar="PLANS", help="name of the plans to write (those of -p with _genesis or _scratch)"
    )
    parser.add_argument("--min-coverage", type=share, default=MIN_COVERAGE, metavar="X", help="stop if a smaller "
                        "share of the encoder's parameters comes from the checkpoint (%(default)s)")  # fmt: skip
    parser.add_argument("--resize-widths", action="store_true", help="stages of other widths take over the leading "
                        "channels; otherwise they start anew")  # fmt: skip
    parser.add_argument("--axes", choices=("xyz", "zyx"), help="order of the axes of the volumes that the checkpoint "
                        "was trained on; nnU-Net's is zyx, and kernels are reversed for xyz (default: by kind of file; "
                        "see inspect)")  # fmt: skip
    parser.add_argument("--new-heads", action="store_true", help="segmentation heads start anew, also where labels "
                        "have a namesake in the checkpoint")  # fmt: skip
    parser.add_argument("--fold", type=int, metavar="K", help="stop if the checkpoint was pre-trained on validation "
                        "cases of this fold")  # fmt: skip
    parser.add_argument("--allow-leaks", action="store_true", help="with --fold: go on, and write it into the report")
    add_flags(parser.add_argument_group("fine-tuning settings"), FineTuningSettings, SCHEDULE)


def _transfer(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.hub.locating import located
    from nnunet_genesis.nnunet_dataset import dataset_name
    from nnunet_genesis.settings import FineTuningSettings
    from nnunet_genesis.transfer.into_plans import transfer

    if (chosen.checkpoint is None) == (not chosen.from_scratch):
        raise GenesisError("Name a checkpoint, or --from-scratch for the control arm, and not both.")
    if chosen.from_scratch and (idle := [name for name in OF_WEIGHTS if getattr(chosen, name)]):
        raise GenesisError(
            f"--{idle[0].replace('_', '-')} is about weights, and --from-scratch carries none. Leave it out."
        )
    if chosen.allow_leaks and chosen.fold is None:
        raise GenesisError("--allow-leaks needs --fold: nothing is looked for without it.")
    default = f"{chosen.p}_{'scratch' if chosen.from_scratch else 'genesis'}"
    new_plans = default if chosen.to is None else chosen.to
    dataset = dataset_name(chosen.d)
    if chosen.checkpoint is not None:
        chosen.checkpoint = located(chosen.checkpoint)
    found = None if chosen.fold is None or chosen.from_scratch else leaks_in_words(chosen, dataset)
    done = transfer(
        chosen.checkpoint, dataset, chosen.p, chosen.c, new_plans, given(chosen, FineTuningSettings),
        chosen.min_coverage, chosen.resize_widths, found, not chosen.new_heads,
        chosen.axes,
    )  # fmt: skip
    if done.report is not None:
        print(done.report.table())
    print(f"Wrote {done.plans_file}. Now fine-tune{' (from scratch)' if chosen.from_scratch else ''}:")
    print(f"  nnUNetv2_train {chosen.d} {chosen.c} FOLD -tr nnUNetTrainerGenesisFinetune -p {new_plans}")
    return 0


def add_export(commands: Any) -> None:
    """Add the command `export`."""
    parser = add_command(
        commands,
        "export",
        _export,
        "Make a fine-tuned model one that nnU-Net predicts with where this package is not installed. Both are run and "
        "compared first.",
        "nnunet_genesis export $nnUNet_results/Dataset004_Hippocampus/"
        "nnUNetTrainerGenesisFinetune__nnUNetPlans_genesis__3d_fullres",
    )
    parser.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="results folder with the folds")
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint of each fold to export (%(default)s)"
    )


def _export(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.export import export

    told = "Both models predict on the CPU, to be compared: minutes for a large network."
    done = export(chosen.folder, chosen.chk, partial(print, told, flush=True))
    trainer, plans, configuration = done.folder.name.split("__")
    folds = [fold.removeprefix("fold_") for fold in done.folds]
    print(
        f"Logits are equal, bit for bit, on {done.compared}, fold by fold. Wrote {done.folder}. It needs nnU-Net only:"
    )
    print(
        f"  nnUNetv2_predict -d {done.folder.parent.name} -tr {trainer} -p {plans} -c {configuration} "
        f"-f {' '.join(folds)} -chk {chosen.chk} -i IN -o OUT"
    )
    return left_out(dict.fromkeys(done.unfinished, f"no {chosen.chk}"), "folds whose training is not finished")


def add_trainers(commands: Any) -> None:
    """Add the command `trainers`."""
    add_command(
        commands,
        "trainers",
        _trainers,
        "Print the folder that nnU-Net must know to find the trainers.",
        'export nnUNet_extTrainer="$(nnunet_genesis trainers)"',
    )


def _trainers(_: argparse.Namespace) -> int:
    from nnunet_genesis.resources import trainers_folder

    print(trainers_folder())
    return 0
