"""What pre-training is worth on a dataset: study plan, run, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_genesis.cli_settings import add_flags, given
from nnunet_genesis.commands.parsing import add_command, add_shard, left_out, read_cases
from nnunet_genesis.errors import StudyError, printable

COMMON = ("epochs", "iterations", "warmup", "optimizer", "learning_rate", "weight_decay")
"""Settings of fine-tuning that all arms share unless they have their own."""


def add_study(commands: Any) -> None:
    """Add the command `study` with its verbs."""
    parser = commands.add_parser(
        "study",
        help="What is pre-training worth on your data? Trains arms with few and many labels, and compares them.",
        description="What is pre-training worth on your data? A study trains every arm (scratch, checkpoints) with the "
        "same labeled cases, few and many, several times, and compares them on the same test cases.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_add_plan, _add_run, _add_report):
        add(verbs)


def _add_plan(verbs: Any) -> None:
    from nnunet_genesis.settings import FineTuningSettings

    parser = add_command(
        verbs, "plan", _plan, "List every run of a study, and what it will take.",
        "nnunet_genesis study plan STUDY -d 4 -c 3d_fullres --arm scratch --arm genesis=checkpoint_final.pth "
        "--labels 5 10 20 50 --seeds 5 --test 0.3 --epochs 100",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="STUDY", help="new folder of the study")
    parser.add_argument("-d", required=True, metavar="ID", help="labeled dataset, planned and preprocessed")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="2d, 3d_lowres or 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="its plans (%(default)s)")
    parser.add_argument(
        "--arm", required=True, action="append", metavar="ARM",
        help="scratch, NAME=scratch or NAME=CHECKPOINT (a file or an address), then ,setting=value for settings of its "
        "own, e.g. warm=genesis.pth,learning_rate=0.001; the first arm is what the others are compared with",
    )  # fmt: skip
    parser.add_argument("--labels", required=True, nargs="+", type=int, metavar="N", help="numbers of labeled cases")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="repetitions, each with cases, "
                        "weights, patches and augmentation of its own, as in every arm (%(default)s)")  # fmt: skip
    parser.add_argument("--test", nargs="+", required=True, metavar="CASE", help="cases to test on, a .txt file of "
                        "them, or a share such as 0.3")  # fmt: skip
    parser.add_argument("--pool", nargs="+", default=[], metavar="CASE", help="cases, or a .txt file of them, that "
                        "labeled ones are drawn from (all but the test cases)")  # fmt: skip
    parser.add_argument("--validation-iterations", type=int, default=10, metavar="N", help="batches of patches of the "
                        "test cases per epoch, for the curves only (%(default)s)")  # fmt: skip
    parser.add_argument("--no-mirroring", action="store_true", help="predict without averaging over mirrored patches")
    parser.add_argument("--tolerance", type=float, default=1.0, metavar="MM", help="of the normalised surface distance "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--allow-leaks", action="store_true", help="go on, and write it down, where an arm was "
                        "pre-trained on test cases")  # fmt: skip
    _add_device(parser)
    add_flags(parser.add_argument_group("fine-tuning settings of all arms"), FineTuningSettings, COMMON)


def _plan(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.nnunet_dataset import dataset_name
    from nnunet_genesis.settings import FineTuningSettings
    from nnunet_genesis.study.arms import parse_arm
    from nnunet_genesis.study.conducting import measured
    from nnunet_genesis.study.outline import Wish, plan_study

    common = given(chosen, FineTuningSettings)
    wish = Wish(
        dataset_name(chosen.d), chosen.p, chosen.c, [parse_arm(text) for text in chosen.arm], chosen.labels,
        chosen.seeds, _test(chosen.test), read_cases(chosen.pool), common, chosen.validation_iterations,
        not chosen.no_mirroring, chosen.tolerance, chosen.allow_leaks,
    )  # fmt: skip
    study = plan_study(wish, chosen.folder)
    for arm, words in study.leaks.items():
        print(f"WARNING: arm {arm}: {'; '.join(words)}")
    runs, default = len(study.runs()), FineTuningSettings
    steps = common.get("epochs", default.epochs) * common.get("iterations", default.iterations)
    print(f"{runs} runs: {len(study.arms)} arms, {len(study.labels)} label counts, {len(study.seeds)} seeds; "
          f"{len(study.test)} test cases; {steps:,} steps each.", flush=True)  # fmt: skip
    step, case = measured(study, chosen.folder, chosen.device)
    hours = runs * (steps * step + len(study.test) * case) / 3600
    print(f"A step takes {step:.3g} s on {chosen.device}, the prediction of a case {case:.3g} s: "
          f"about {hours:.3g} hours of computing in all.")  # fmt: skip
    print(
        f"Wrote {chosen.folder / 'study.json'}. Now: nnunet_genesis study run {chosen.folder} --device {chosen.device}"
    )
    return 0


def _test(words: list[str]) -> list[str] | float:
    """A share, or names of cases."""
    try:
        (share,) = map(float, words)
    except ValueError:
        return read_cases(words)
    if not 0 < share < 1:
        raise StudyError(f"--test takes names of cases, or a share between 0 and 1, not {share:g}.")
    return share


def _add_run(verbs: Any) -> None:
    parser = add_command(
        verbs, "run", _run, "Train, predict and evaluate every unfinished run; goes on where it was interrupted.",
        "nnunet_genesis study run STUDY --jobs 2 --device cpu",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="STUDY", help="folder of the study")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (%(default)s)")
    add_shard(parser, "run")
    parser.add_argument("--keep-models", action="store_true", help="keep the networks in the study's folder")
    parser.add_argument("--submit", choices=("slurm", "local"), metavar="CLUSTER", help="hand the work to slurm, or to "
                        "local processes, through submitit, and return")  # fmt: skip
    parser.add_argument("--tasks", type=int, default=1, metavar="N", help="with --submit: number of jobs (%(default)s)")
    parser.add_argument("--cluster-option", type=_option, action="append", default=[], metavar="NAME=VALUE",
                        help="with --submit: a parameter of submitit, e.g. slurm_partition=gpu, gpus_per_node=1, "
                        "timeout_min=600")  # fmt: skip
    _add_device(parser)


def _run(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.study.conducting import run_study

    if chosen.submit:
        return _submit(chosen)
    if chosen.tasks != 1 or chosen.cluster_option:
        raise StudyError("--tasks and --cluster-option are for --submit. Name a cluster, or leave them out.")
    done = run_study(
        chosen.folder, jobs=chosen.jobs, shard=chosen.shard, device=chosen.device, keep_models=chosen.keep_models
    )
    print(f"{done.finished} runs are finished.")
    if done.elsewhere:
        print(f"{len(done.elsewhere)} are being worked on by other processes: {', '.join(done.elsewhere[:5])} …")
    return left_out(done.failed, "they failed; the others are kept")


def _submit(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.study.submitting import FOLDER, submit

    if chosen.tasks < 1 or chosen.shard != (1, 1):
        raise StudyError("--submit shares the runs among --tasks jobs, at least one; leave --shard out.")
    jobs = submit(
        chosen.folder, chosen.submit, chosen.tasks, dict(chosen.cluster_option), device=chosen.device,
        jobs=chosen.jobs, keep_models=chosen.keep_models,
    )  # fmt: skip
    print(f"Submitted {len(jobs)} jobs to {chosen.submit}: {', '.join(job.job_id for job in jobs[:10])}")
    print(f"Their logs: {chosen.folder / FOLDER}. To see what is finished: nnunet_genesis study report {chosen.folder}")
    return 0


def _option(text: str) -> tuple[str, int | str]:
    """timeout_min=600 → ("timeout_min", 600)."""
    name, given, value = text.partition("=")
    if not (name and given):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, int(value) if value.isdecimal() else value


def _add_report(verbs: Any) -> None:
    parser = add_command(
        verbs, "report", _report, "Write what may be concluded: a page, figures and tables.",
        "nnunet_genesis study report STUDY",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="STUDY", help="folder of the study, finished or not")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="folder of the report (STUDY/report)")


def _report(chosen: argparse.Namespace) -> int:
    from nnunet_genesis.study.reporting import report_study

    written = report_study(chosen.folder, chosen.o)
    for line in [*written.cautions, *(one.headline for one in written.conclusions)]:
        print(printable(line))
    print(f"Wrote {written.path}.")
    return 0


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), default="cuda", help="(%(default)s)")
