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

from measuring import add_device

from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.resources import trainers_folder

HERE = Path(__file__).parent
CASES = HERE / "results" / "label-curve" / "cases.json"
SETTINGS = HERE / "results" / "label-curve" / "settings.json"
TARGET, UNLABELED = "Dataset004_Hippocampus", "Dataset501_Unlabeled"
TRAINER = "nnUNetTrainerGenesisPretrain"


def command(*words: object) -> None:
    """Run a command of the environment that this script runs in; end with it where it fails."""
    print("$", *words, flush=True)
    done = subprocess.run([str(Path(sys.executable).parent / str(words[0])), *map(str, words[1:])])
    if done.returncode:
        sys.exit(done.returncode)


def set_folders(folder: Path) -> None:
    """nnU-Net's folders, all in FOLDER; one thread for each process."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder / name)
    os.environ |= {"nnUNet_extTrainer": str(trainers_folder()), "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}


def write_raw(data: Path, folder: Path, cases: list[str]) -> None:
    """The cases in nnU-Net's raw layout, as links to the task's files."""
    raw = folder / "nnUNet_raw" / TARGET
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / part).mkdir(parents=True, exist_ok=True)
        for case in cases:
            source, link = (data / part / f"{case}.nii.gz").resolve(strict=True), raw / part / f"{case}{ending}"
            if not link.exists():
                link.symlink_to(source)
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    facts = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    write_json(facts, raw / "dataset.json")


def plan_target(folder: Path, settings: dict[str, dict[str, object]]) -> None:
    """Plans for two cores: the shipped template `tiny`, with the patches and batches of the settings."""
    plans = read_json(HERE.parent / "plans" / "tiny.json", "The template", "Run from a clone.")
    for configuration, block in settings.items():
        plans["configurations"][configuration].update(block)
    write_json(plans, folder / "template.json")
    command("nnunet_genesis", "plan", "-d", 4, "--template", folder / "template.json", "-p", "nnUNetPlans")
    command("nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", *settings, "-np", *[2] * len(settings))


def import_unlabeled(data: Path, folder: Path, cases: list[str]) -> None:
    """The scans to pre-train on, without their labels."""
    scans = folder / "scans"
    scans.mkdir(exist_ok=True)
    for case in cases:
        shutil.copy(data / "imagesTr" / f"{case}.nii.gz", scans)
    command("nnunet_genesis", "import", "-d", 501, "-n", "Unlabeled", "--channels", "MRI", scans, "-np", 2)


def checkpoint_of(folder: Path, arm: str, configuration: str) -> Path:
    """Where the pre-training of an arm ends."""
    results = folder / "nnUNet_results" / UNLABELED / f"{TRAINER}__Genesis_{arm}__{configuration}"
    return results / "fold_all" / "checkpoint_final.pth"


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


def main() -> None:
    """Prepare, pre-train, plan the study, run it, report it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to work in")
    parser.add_argument("--data", type=Path, required=True, metavar="TASK", help="the Decathlon's Task04_Hippocampus")
    parser.add_argument("-c", default="2d", choices=("2d", "3d_fullres"), metavar="CONFIGURATION")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time (%(default)s)")
    parser.add_argument("--only-pretrain", action="store_true", help="stop before the study")
    add_device(parser, "cpu")
    chosen = parser.parse_args()
    folder, settings = chosen.folder.resolve(), json.loads(SETTINGS.read_text())
    cases, own = json.loads(CASES.read_text()), settings[chosen.c]
    set_folders(folder)
    (folder / "nnUNet_results").mkdir(exist_ok=True)
    if not (folder / "prepared").exists():
        development = cases["development"]
        write_raw(
            chosen.data,
            folder,
            sorted(cases["unlabeled"] + cases["test"] + development["labeled"] + development["test"]),
        )
        plan_target(folder, settings["plans"])
        import_unlabeled(chosen.data, folder, cases["unlabeled"])
        (folder / "prepared").touch()
    waiting = [arm for arm in own["pretraining"] if not checkpoint_of(folder, arm, chosen.c).exists()]
    for arm in waiting:
        plans = f"Genesis_{arm}"
        command("nnunet_genesis", "plan", "-d", 501, "--like", 4, "-p", plans, *own["pretraining"][arm])
        command("nnunet_genesis", "preprocess", "-d", 501, "-c", chosen.c, "-p", plans, "-np", 2)
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(pretrain, [(arm, chosen.c, chosen.device) for arm in waiting]))
    if chosen.only_pretrain:
        return
    study = folder / f"study_{chosen.c}"
    if not (study / "study.json").exists():
        arms = [
            f"{name}={start if start == 'scratch' else checkpoint_of(folder, start, chosen.c)}"
            for name, start in own["arms"].items()
        ]  # fmt: skip
        lists = {name: folder / f"{name}.txt" for name in ("unlabeled", "test")}
        for name, file in lists.items():
            file.write_text("\n".join(cases[name]) + "\n")
        command(
            "nnunet_genesis", "study", "plan", study, "-d", 4, "-c", chosen.c,
            *[word for arm in arms for word in ("--arm", arm)], "--pool", lists["unlabeled"], "--test", lists["test"],
            *own["study"], "--device", chosen.device,
        )  # fmt: skip
    command("nnunet_genesis", "study", "run", study, "--jobs", chosen.jobs, "--device", chosen.device)
    command("nnunet_genesis", "study", "report", study)


if __name__ == "__main__":
    main()
