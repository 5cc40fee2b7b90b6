"""The command `nnunet_genesis`: words → calls → text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_genesis.cli_settings import add_flags, given
from nnunet_genesis.errors import GenesisError, printable

LEFT_OUT = 2
"""Exit code when the work was done but for some cases."""


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
        _add_import, _add_plan, _add_preprocess, _add_preview, _add_inspect, _add_transfer, _add_export,
        _add_trainers,
    ):  # fmt: skip
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_import(commands: Any) -> None:
    parser = _command(
        commands,
        "import",
        _import,
        "Make an nnU-Net raw dataset, without labels, from scans.",
        "nnunet_genesis import -d 501 -n ChestCT --channels CT /data/scans",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="PATH", help="files or folders (searched "
                        "recursively): .nii .nii.gz .nrrd .mha .mhd and DICOM series")  # fmt: skip
    parser.add_argument("-d", required=True, type=int, metavar="ID", help="id of the new dataset, 1 to 999")
    parser.add_argument("-n", required=True, metavar="NAME", help="its name, e.g. ChestCT")
    parser.add_argument(
        "--channels",
        required=True,
        metavar="NAME[,NAME…]",
        help="channel names as in the target dataset, e.g. CT, or FLAIR,T1w,t1gd,T2w for files that end in _0000 … "
        "_0003; CT chooses nnU-Net's CT normalisation",
    )
    parser.add_argument("--link", action="store_true", help="link .nii.gz files instead of copying them")
    _add_processes(parser)


def _import(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.importing.into_dataset import import_scans
    from nnunet_genesis.nnunet_dataset import nnunet_folder

    report = import_scans(
        chosen.sources, nnunet_folder("nnUNet_raw"), chosen.d, chosen.n, chosen.channels.split(","), link=chosen.link,
        processes=chosen.np,
    )  # fmt: skip
    print(f"{report.imported} cases imported into {report.folder}, {report.already_there} were there already.")
    return _left_out(report.rejected, f"details: {report.folder / 'import_report.json'}")


def _add_plan(commands: Any) -> None:
    from nnunet_genesis.corruption import RECIPES, Recipe
    from nnunet_genesis.planning import PLANS_NAME
    from nnunet_genesis.settings import DEFAULT_RECIPE, PretrainingSettings

    parser = _command(
        commands,
        "plan",
        _plan,
        "Give a dataset the plans of the target dataset (or of a template), with settings for pre-training.",
        "nnunet_genesis plan -d 501 --like 4 --epochs 200 --iterations 250 --loss l1",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="dataset to pre-train on, id or name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--like", metavar="ID", help="target dataset, id or name, already planned")
    source.add_argument("--template", metavar="NAME", help="ready plans: a name from the plans folder, or a .json file")
    parser.add_argument(
        "--like-plans", default="nnUNetPlans", metavar="PLANS", help="plans of the target (%(default)s)"
    )
    parser.add_argument("-p", default=PLANS_NAME, metavar="PLANS", help="name of the plans to write (%(default)s)")
    add_flags(parser.add_argument_group("pre-training settings"), PretrainingSettings)
    recipe = parser.add_argument_group("corruption recipe")
    recipe.add_argument(
        "--recipe", default=DEFAULT_RECIPE, choices=list(RECIPES), help="values to start from (%(default)s)"
    )
    add_flags(recipe, Recipe)
    for name, corruption in RECIPES["paper"].corruptions.items():
        add_flags(parser.add_argument_group(f"corruption: {name}"), type(corruption), prefix=f"{name}_")


def _plan(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.corruption import RECIPES, Recipe
    from nnunet_genesis.nnunet_dataset import dataset_name
    from nnunet_genesis.planning import plan_from_template, plan_like
    from nnunet_genesis.settings import PretrainingSettings

    base = RECIPES[chosen.recipe]
    blocks = {name: given(chosen, type(block), f"{name}_") for name, block in base.corruptions.items()}
    recipe = base.updated({**given(chosen, Recipe), **blocks}, "the flags")
    settings = PretrainingSettings(**given(chosen, PretrainingSettings), recipe=recipe)
    dataset = dataset_name(chosen.d)
    if chosen.template:
        path = plan_from_template(dataset, chosen.template, chosen.p, settings)
    else:
        path = plan_like(dataset, dataset_name(chosen.like), chosen.like_plans, chosen.p, settings)
    print(f"Wrote {path}")
    return 0


def _add_preprocess(commands: Any) -> None:
    from nnunet_genesis.planning import PLANS_NAME

    parser = _command(
        commands,
        "preprocess",
        _preprocess,
        "Preprocess images without labels, as nnU-Net would. Goes on where an interrupted run stopped.",
        "nnunet_genesis preprocess -d 501 -c 3d_fullres -np 4",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="dataset, id or name")
    parser.add_argument("-c", required=True, nargs="+", metavar="CONFIGURATION", help="2d, 3d_lowres or 3d_fullres")
    parser.add_argument("-p", default=PLANS_NAME, metavar="PLANS", help="plans to follow (%(default)s)")
    _add_processes(parser)


def _preprocess(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.nnunet_dataset import dataset_name
    from nnunet_genesis.preprocessing import preprocess

    code = 0
    for configuration in chosen.c:
        report = preprocess(dataset_name(chosen.d), chosen.p, configuration, processes=chosen.np)
        print(f"{report.written} cases written to {report.folder}, {report.already_there} were finished already.")
        code = max(code, _left_out(report.failed, "nothing was written for them"))
    return code


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        _inspect,
        "Say what a checkpoint is: nnU-Net v2, nnU-Net v1, nnssl, the 3D U-Net of Models Genesis or SuPreM, or a "
        "state dict (.pth, .safetensors) of one of their networks. No code in the file is run.",
        "nnunet_genesis inspect genesis_nnunet_luna16_006.model",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file to look at")


def _inspect(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.checkpoints.reading import read_pretrained
    from nnunet_genesis.files import sha256

    source = read_pretrained(chosen.checkpoint)
    for label, text in (source.facts() | {"SHA-256": sha256(chosen.checkpoint)}).items():
        print(f"{label + ':':<15} {text}")
    for note in source.notes:
        print(f"{'note:':<15} {note}")
    return 0


def _add_preview(commands: Any) -> None:
    from nnunet_genesis.corruption import RECIPES
    from nnunet_genesis.planning import PLANS_NAME

    parser = _command(
        commands,
        "preview",
        _preview,
        "Draw preprocessed patches under every corruption alone and under the recipe, before hours of training.",
        "nnunet_genesis preview -d 501 -c 3d_fullres -o corruptions.png",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="preprocessed dataset, id or name")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="2d, 3d_lowres or 3d_fullres")
    parser.add_argument("-p", default=PLANS_NAME, metavar="PLANS", help="plans with recipe and seed (%(default)s)")
    parser.add_argument("-o", required=True, type=Path, metavar="PNG", help="picture to write")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="patches, each of another case (%(default)s)")
    parser.add_argument("--channel", metavar="NAME", help="channel to draw (the first)")
    parser.add_argument("--recipe", choices=list(RECIPES), help="recipe to draw in place of that of the plans")


def _preview(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.nnunet_dataset import dataset_name
    from nnunet_genesis.pretraining.preview import preview

    dataset = dataset_name(chosen.d)
    shown = preview(
        dataset, chosen.p, chosen.c, chosen.o, recipe=chosen.recipe, channel=chosen.channel, rows=chosen.n
    )  # fmt: skip
    if shown.defaults:
        print(f"The plans {chosen.p} have no settings for pre-training: the defaults hold.")
    print(f"Wrote {chosen.o}: patches of {', '.join(shown.cases)}.")
    return 0


def _add_transfer(commands: Any) -> None:
    from nnunet_genesis.settings import FineTuningSettings
    from nnunet_genesis.transfer.into_plans import MIN_COVERAGE, SCHEDULE

    parser = _command(
        commands,
        "transfer",
        _transfer,
        "Carry the weights of a checkpoint into the plans of a dataset, ready for nnUNetTrainerGenesisFinetune.",
        "nnunet_genesis transfer checkpoint_final.pth -d 4 -c 3d_fullres --epochs 200",
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="of nnU-Net v2 or v1, nnssl, "
                        "Models Genesis, SuPreM, or a state dict (.pth, .safetensors); see inspect")  # fmt: skip
    parser.add_argument("--from-scratch", action="store_true", help="in place of a checkpoint: plans for a control arm "
                        "with the same trainer and settings but random weights")  # fmt: skip
    parser.add_argument("-d", required=True, metavar="ID", help="target dataset, id or name")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="2d, 3d_lowres or 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the target (%(default)s)")
    parser.add_argument(
        "--to", metavar="PLANS", help="name of the plans to write (those of -p with _genesis or _scratch)"
    )
    parser.add_argument("--min-coverage", type=_share, default=MIN_COVERAGE, metavar="X", help="stop if a smaller "
                        "share of the encoder's parameters comes from the checkpoint (%(default)s)")  # fmt: skip
    parser.add_argument("--resize-widths", action="store_true", help="stages of other widths take over the leading "
                        "channels; otherwise they start anew")  # fmt: skip
    add_flags(parser.add_argument_group("fine-tuning settings"), FineTuningSettings, SCHEDULE)


def _transfer(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.nnunet_dataset import dataset_name
    from nnunet_genesis.settings import FineTuningSettings
    from nnunet_genesis.transfer.into_plans import transfer

    if (chosen.checkpoint is None) == (not chosen.from_scratch):
        raise GenesisError("Name a checkpoint, or --from-scratch for the control arm, and not both.")
    default = f"{chosen.p}_{'scratch' if chosen.from_scratch else 'genesis'}"
    new_plans = default if chosen.to is None else chosen.to
    dataset = dataset_name(chosen.d)
    done = transfer(
        chosen.checkpoint, dataset, chosen.p, chosen.c, new_plans, given(chosen, FineTuningSettings),
        chosen.min_coverage, chosen.resize_widths,
    )  # fmt: skip
    if done.report is not None:
        print(done.report.table())
    print(f"Wrote {done.plans_file}. Now fine-tune{' (from scratch)' if chosen.from_scratch else ''}:")
    print(f"  nnUNetv2_train {chosen.d} {chosen.c} FOLD -tr nnUNetTrainerGenesisFinetune -p {new_plans}")
    return 0


def _share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def _add_export(commands: Any) -> None:
    parser = _command(
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

    print("Both models predict on the CPU, to be compared: minutes for a large network.", flush=True)
    done = export(chosen.folder, chosen.chk)
    _, plans, configuration = done.folder.name.split("__")
    folds = [fold.removeprefix("fold_") for fold in done.folds]
    print(
        f"Logits are equal, bit for bit, on {done.compared}, fold by fold. Wrote {done.folder}. It needs nnU-Net only:"
    )
    print(
        f"  nnUNetv2_predict -d {done.folder.parent.name} -tr nnUNetTrainer -p {plans} -c {configuration} "
        f"-f {' '.join(folds)} -chk {chosen.chk} -i IN -o OUT"
    )
    return _left_out(dict.fromkeys(done.unfinished, f"no {chosen.chk}"), "folds whose training is not finished")


def _add_trainers(commands: Any) -> None:
    _command(
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


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-np", type=int, default=4, metavar="N", help="number of processes (%(default)s)")


def _left_out(reasons: dict[str, str], advice: str) -> int:
    """Print what was left out and why; the exit code."""
    if not reasons:
        return 0
    print(f"{len(reasons)} left out ({advice}):", file=sys.stderr)
    for what, why in reasons.items():
        print(f"  {what}: {why}", file=sys.stderr)
    return LEFT_OUT


if __name__ == "__main__":
    sys.exit(main())
