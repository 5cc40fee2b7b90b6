"""Scans → a dataset that a network can be pre-trained on: import, plan, preprocess, preview."""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_genesis.cli_settings import add_flags, given
from nnunet_genesis.commands.parsing import (
    add_command,
    add_processes,
    add_shard,
    left_out,
    named_datasets,
    read_cases,
    say_what_completes,
    share,
)
from nnunet_genesis.errors import GenesisError, SettingsError, printable

COMPLETES = "imports what is missing and writes dataset.json"
"""What an import without --shard does after those with it."""

if TYPE_CHECKING:
    from nnunet_genesis.corruption import Recipe


def add_import(commands: Any) -> None:
    """Add the command `import`."""
    parser = add_command(
        commands,
        "import",
        _import,
        "Make an nnU-Net raw dataset, without labels, from scans.",
        "nnunet_genesis import -d 501 -n ChestCT --channels CT /data/scans",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="PATH", help="files or folders (searched "
                        "recursively): .nii .nii.gz .nrrd .mha .mhd and DICOM series; with --2d .png .jpg .tif .bmp "
                        "and DICOM radiographs")  # fmt: skip
    parser.add_argument("-d", required=True, type=int, metavar="ID", help="id of the new dataset, 1 to 999")
    parser.add_argument("-n", required=True, metavar="NAME", help="its name, e.g. ChestCT")
    parser.add_argument(
        "--channels",
        required=True,
        metavar="NAME[,NAME…]",
        help="channel names as in the target dataset, e.g. CT, or FLAIR,T1w,t1gd,T2w for files that end in _0000 … "
        "_0003; CT chooses nnU-Net's CT normalisation",
    )
    parser.add_argument("--2d", dest="flat", action="store_true", help="import X-rays or other 2D images, for the "
                        "configuration 2d; files with three colours: --channels R,G,B")  # fmt: skip
    parser.add_argument("--link", action="store_true", help="link .nii.gz (--2d: grey .png) files instead of copying")
    add_shard(parser, "scan")
    add_processes(parser)


def _import(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.importing.into_dataset import import_scans
    from nnunet_genesis.nnunet_dataset import nnunet_folder

    report = import_scans(
        chosen.sources, nnunet_folder("nnUNet_raw"), chosen.d, chosen.n, chosen.channels.split(","), flat=chosen.flat,
        link=chosen.link, shard=chosen.shard, processes=chosen.np,
    )  # fmt: skip
    print(f"{report.imported} cases imported into {report.folder}, {report.already_there} were there already.")
    say_what_completes(chosen.shard, COMPLETES)
    return left_out(report.rejected, f"details: {report.folder / 'import_report.json'}")


def add_plan(commands: Any) -> None:
    """Add the command `plan`."""
    from nnunet_genesis.corruption import RECIPES, Recipe
    from nnunet_genesis.planning import PLANS_NAME
    from nnunet_genesis.primus_plans import DROP_PATH, NAMES
    from nnunet_genesis.settings import DEFAULT_RECIPE, PretrainingSettings

    parser = add_command(
        commands,
        "plan",
        _plan,
        "Give a dataset the plans of the target dataset (or of a template), with settings for pre-training.",
        "nnunet_genesis plan -d 501 --like 4 --epochs 200 --iterations 250 --loss l1",
    )
    parser.add_argument("-d", required=True, nargs="+", metavar="ID", help="dataset to pre-train on, id or name; "
                        "of several, the first is the one to train, on the volumes of all")  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--like", metavar="ID", help="target dataset, id or name, already planned")
    source.add_argument("--template", metavar="NAME", help="ready plans: a name from the plans folder, or a .json file")
    parser.add_argument(
        "--like-plans", default="nnUNetPlans", metavar="PLANS", help="plans of the target (%(default)s)"
    )
    parser.add_argument("-p", default=PLANS_NAME, metavar="PLANS", help="name of the plans to write (%(default)s)")
    parser.add_argument("--fold", type=int, metavar="K", help="leave out the validation cases of this fold of the "
                        "target: for pre-training on its own images")  # fmt: skip
    parser.add_argument("--network", choices=NAMES, metavar="NAME", help="a transformer, nnU-Net's Primus, in place of "
                        f"the networks of all 3D configurations: {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument("--drop-path-rate", type=share, metavar="X", help="with --network: share of the steps in which "
                        f"the last block is passed over, falling to 0 at the first ({DROP_PATH})")  # fmt: skip
    add_flags(parser.add_argument_group("pre-training settings"), PretrainingSettings)
    recipe = parser.add_argument_group("corruption recipe")
    recipe.add_argument(
        "--recipe", default=DEFAULT_RECIPE, choices=list(RECIPES),
        help="values to start from (%(default)s); mae, a masked autoencoder, needs a Primus (--network)",
    )  # fmt: skip
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
    dataset, *others = datasets = named_datasets(chosen.d)
    flags = given(chosen, PretrainingSettings) | {"exclude": _excluded(chosen, datasets), "recipe": recipe}
    settings = PretrainingSettings(**flags | {"datasets": others})
    if chosen.network is None and chosen.drop_path_rate is not None:
        raise GenesisError("--drop-path-rate needs --network: it is a setting of a Primus.")
    change = partial(_changed, chosen, recipe)
    if chosen.template:
        path = plan_from_template(dataset, chosen.template, chosen.p, settings, change)
    else:
        path = plan_like(dataset, dataset_name(chosen.like), chosen.like_plans, chosen.p, settings, change)
    print(f"Wrote {path}")
    if others:
        print(f"Wrote plans of that name for {', '.join(others)}, too. Preprocess all of them, and train {dataset}.")
    if settings.exclude:
        print(f"{len(settings.exclude)} cases will be left out of the pre-training: {', '.join(settings.exclude)}")
    return 0


def _changed(chosen: argparse.Namespace, recipe: Recipe, plans: dict[str, Any]) -> dict[str, Any]:
    """Plans with the network that was asked for, which the recipe must suit; says what else changes."""
    from nnunet_genesis.primus_plans import DROP_PATH, with_primus

    if chosen.network is None:
        _refuse_unfit(recipe, plans)
        return plans
    drop_path = DROP_PATH if chosen.drop_path_rate is None else chosen.drop_path_rate
    changed, notes = with_primus(plans, chosen.network, drop_path)
    for note in notes:
        print(printable(note))
    _refuse_unfit(recipe, changed)
    return changed


def _refuse_unfit(recipe: Recipe, plans: dict[str, Any]) -> None:
    """Refuse a recipe that leaves cells out if no configuration has a network that can, before preprocessing."""
    from nnunet_genesis.pretraining.patches import fitted

    refusal: SettingsError | None = None
    for configuration in plans["configurations"] if recipe.masking.leaves_out else ():
        try:
            fitted(recipe, plans, configuration)
            return
        except SettingsError as error:
            refusal = error  # the last tells most: 3D configurations come behind 2d
    if refusal:
        raise refusal


def _excluded(chosen: argparse.Namespace, datasets: list[str]) -> list[str]:
    """Names of the cases that a pre-training leaves out."""
    from nnunet_genesis.nnunet_dataset import dataset_name
    from nnunet_genesis.planning import of_fold
    from nnunet_genesis.settings import by_dataset

    names = read_cases(getattr(chosen, "exclude", []))
    if chosen.fold is not None:
        if not chosen.like:
            raise GenesisError("--fold needs --like: the labeled dataset whose fold is meant.")
        there, absent = of_fold(datasets, dataset_name(chosen.like), chosen.like_plans, chosen.fold)
        names += there
        if absent:
            found = {case for cases in by_dataset(there).values() for case in cases}
            print(
                f"WARNING: {' or '.join(datasets)} has no case of the name of {len(absent)} of "
                f"{len(found) + len(absent)} validation cases ({', '.join(absent[:5])}); under other names they would "
                "not be left out. Check with leaks."
            )
    return sorted(set(names))


def add_preprocess(commands: Any) -> None:
    """Add the command `preprocess`."""
    from nnunet_genesis.planning import PLANS_NAME

    parser = add_command(
        commands,
        "preprocess",
        _preprocess,
        "Preprocess images without labels, as nnU-Net would. Goes on where an interrupted run stopped.",
        "nnunet_genesis preprocess -d 501 -c 3d_fullres -np 4",
    )
    parser.add_argument("-d", required=True, nargs="+", metavar="ID", help="datasets, ids or names")
    parser.add_argument("-c", required=True, nargs="+", metavar="CONFIGURATION", help="2d, 3d_lowres or 3d_fullres")
    parser.add_argument("-p", default=PLANS_NAME, metavar="PLANS", help="plans to follow (%(default)s)")
    add_shard(parser, "case")
    add_processes(parser)


def _preprocess(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.nnunet_dataset import read_plans
    from nnunet_genesis.preprocessing import folder_to_fill, preprocess

    code, work = 0, list(itertools.product(named_datasets(chosen.d), chosen.c))
    for dataset, configuration in work:  # nobody learns after hours that the last one cannot be done
        folder_to_fill(dataset, read_plans(dataset, chosen.p), configuration)
    for dataset, configuration in work:
        report = preprocess(dataset, chosen.p, configuration, shard=chosen.shard, processes=chosen.np)
        print(f"{report.written} cases written to {report.folder}, {report.already_there} were finished already.")
        if report.unreadable:
            print(f"WARNING: {report.unreadable}. Delete their files and run again.")
        code = max(code, left_out(report.failed, "nothing was written for them"))
    say_what_completes(chosen.shard, "does what is missing and says what cannot be done")
    return code


def add_preview(commands: Any) -> None:
    """Add the command `preview`."""
    from nnunet_genesis.corruption import RECIPES
    from nnunet_genesis.planning import PLANS_NAME

    parser = add_command(
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
