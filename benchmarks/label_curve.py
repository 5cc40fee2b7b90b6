"""Does pre-training pay on the hippocampus? From a task of the Medical Segmentation Decathlon to the report of a study.

    python benchmarks/label_curve.py FOLDER --data Task04_Hippocampus -c 2d --jobs 2

Everything is written into FOLDER and nothing is done twice: an interrupted run goes on. In `results/label-curve`,
`cases.json` says which cases are pre-trained on without their labels (labeled ones are drawn from them), which are
tested on, and which served to choose `settings.json`. On the CPU every training has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import add_device

from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.resources import trainers_folder

HERE = Path(__file__).resolve().parent
CASES = HERE / "results" / "label-curve" / "cases.json"
SETTINGS = HERE / "results" / "label-curve" / "settings.json"
STUDIES = ("2d", "3d_fullres", "3d_primus")
"""Configurations of the target's plans; the last is not nnU-Net's own: `3d_fullres` with a Primus for its network."""
TARGET, UNLABELED = "Dataset004_Hippocampus", "Dataset501_Unlabeled"
TRAINER = "nnUNetTrainerGenesisPretrain"


def command(*words: object) -> None:
    """Run a command of the environment that this script runs in; end with it where it fails."""
    print("$", *words, flush=True)
    done = subprocess.run([str(Path(sys.executable).parent / str(words[0])), *map(str, words[1:])])
    if done.returncode:
        sys.exit(done.returncode)


def enter(folder: Path) -> None:
    """Work in FOLDER, with nnU-Net's folders in it and one thread for each process."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        Path(name).mkdir(exist_ok=True)
        os.environ[name] = str(Path(name).resolve())
    os.environ |= {"nnUNet_extTrainer": str(trainers_folder()), "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}


def write_raw(data: Path, cases: list[str]) -> None:
    """The cases in nnU-Net's raw layout, as links to the task's files."""
    raw = Path("nnUNet_raw") / TARGET
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / part).mkdir(parents=True, exist_ok=True)
        for case in cases:
            source, link = (data / part / f"{case}.nii.gz").resolve(strict=True), raw / part / f"{case}{ending}"
            if not link.exists():
                link.symlink_to(source)
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    facts = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    write_json(facts, raw / "dataset.json")


def template_of(changes: dict[str, dict[str, object]]) -> dict[str, Any]:
    """Plans for two cores: the shipped template `tiny`, with the patches, batches and networks of the settings."""
    plans: dict[str, Any] = read_json(HERE.parent / "plans" / "tiny.json", "The template", "Run from a clone.")
    for configuration, block in changes.items():
        plans["configurations"].setdefault(configuration, {}).update(block)
    return plans


def plan_target(changes: dict[str, dict[str, object]]) -> None:
    """Plan and preprocess; configurations that inherit from others read the volumes of these."""
    write_json(template_of(changes), Path("template.json"))
    command("nnunet_genesis", "plan", "-d", 4, "--template", "template.json", "-p", "nnUNetPlans")
    own = [name for name, block in changes.items() if "inherits_from" not in block]
    command("nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", *own, "-np", *[2] * len(own))


def import_unlabeled(data: Path, cases: list[str]) -> None:
    """The scans to pre-train on, without their labels."""
    scans = Path("scans")
    scans.mkdir(exist_ok=True)
    for case in cases:
        shutil.copy(data / "imagesTr" / f"{case}.nii.gz", scans)
    command("nnunet_genesis", "import", "-d", 501, "-n", "Unlabeled", "--channels", "MRI", scans, "-np", 2)


def checkpoint_of(arm: str, configuration: str) -> Path:
    """Where the pre-training of an arm ends."""
    results = Path("nnUNet_results") / UNLABELED / f"{TRAINER}__Genesis_{arm}__{configuration}"
    return results / "fold_all" / "checkpoint_final.pth"


def words_to_pretrain(arm: str, settings: list[str]) -> list[object]:
    """The command that plans a pre-training."""
    return ["nnunet_genesis", "plan", "-d", 501, "--like", 4, "-p", f"Genesis_{arm}", *settings]


def pretrain_all(arms: dict[str, list[str]], configuration: str, device: str, jobs: int) -> None:
    """Plan, preprocess and pre-train the arms that have not been pre-trained."""
    waiting = [arm for arm in arms if not checkpoint_of(arm, configuration).exists()]
    for arm in waiting:
        command(*words_to_pretrain(arm, arms[arm]))
        command("nnunet_genesis", "preprocess", "-d", 501, "-c", configuration, "-p", f"Genesis_{arm}", "-np", 2)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(pretrain, [(arm, configuration, device) for arm in waiting]))


def pretrain(work: tuple[str, str, str]) -> None:
    """Pre-train, from the last checkpoint if there is one."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    arm, configuration, device = work
    if device == "cpu":
        torch.set_num_threads(1)
    trainer = get_trainer_from_args(
        "501", configuration, "all", TRAINER, f"Genesis_{arm}", True, device=torch.device(device)
    )  # fmt: skip
    maybe_load_checkpoint(trainer, True, False)
    trainer.run_training()


def words_to_plan(
    study: Path, block: dict[str, Any], cases: dict[str, Any], configuration: str, device: str
) -> list[object]:
    """The command that plans the study of a block of the settings: arms, name → "scratch" or a pre-training."""
    starts = [
        word
        for name, start in block["arms"].items()
        for word in ("--arm", f"{name}={start if start == 'scratch' else checkpoint_of(start, configuration)}")
    ]
    return [
        "nnunet_genesis", "study", "plan", study, "-d", 4, "-c", configuration, *starts, "--pool", *cases["unlabeled"],
        "--test", *cases["test"], *block["study"], "--device", device,
    ]  # fmt: skip


def main() -> None:
    """Prepare, pre-train, plan the study, run it, report it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to work in")
    parser.add_argument("--data", type=Path, required=True, metavar="TASK", help="the Decathlon's Task04_Hippocampus")
    parser.add_argument("-c", default="2d", choices=STUDIES, help="configuration (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time (%(default)s)")
    parser.add_argument(
        "--settings", type=Path, default=SETTINGS, metavar="FILE", help="others than those of the results"
    )
    add_device(parser, "cpu")
    chosen = parser.parse_args()
    data, cases, settings = (
        chosen.data.resolve(),
        json.loads(CASES.read_text()),
        json.loads(chosen.settings.read_text()),
    )
    own, study = settings[chosen.c], Path(f"study_{chosen.c}")
    enter(chosen.folder)
    if not Path("prepared").exists():
        development = cases["development"]
        write_raw(data, sorted(cases["unlabeled"] + cases["test"] + development["labeled"] + development["test"]))
        plan_target(settings["plans"])
        import_unlabeled(data, cases["unlabeled"])
        Path("prepared").touch()
    pretrain_all(own["pretraining"], chosen.c, chosen.device, chosen.jobs)
    if not (study / "study.json").exists():
        command(*words_to_plan(study, own, cases, chosen.c, chosen.device))
    command("nnunet_genesis", "study", "run", study, "--jobs", chosen.jobs, "--device", chosen.device)
    command("nnunet_genesis", "study", "report", study)


if __name__ == "__main__":
    main()
