"""The whole workflow on a small cohort: pre-train, transfer, fine-tune, and a control arm trained from scratch.

Every step is a real command, printed as one would type it. The network is tiny and the budget is minutes: the demo
shows how things are done and that they run, not what pre-training is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohort import Cohort, make_cohort, split_decathlon

REPOSITORY = Path(__file__).resolve().parent.parent
MARKER = "made_by_demo"
CONFIGURATION = "3d_fullres"
UNLABELED, TARGET = 501, 4
PLANS = "nnUNetPlans"
PRETRAINER, FINETUNER = "nnUNetTrainerGenesisPretrain", "nnUNetTrainerGenesisFinetune"
ARMS = {"Genesis": f"{PLANS}_genesis", "scratch": f"{PLANS}_scratch"}
TAIL = 40


@dataclass
class Shell:
    """Runs commands in the workspace's environment, prints them, keeps their output in `logs`."""

    workspace: Path
    verbose: bool
    environment: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def export(self, **variables: str) -> None:
        """Set environment variables for all commands to come."""
        self.environment |= variables
        for name, value in variables.items():
            print(f"$ export {name}={shlex.quote(value)}")

    def run(self, step: str, *words: str | int | Path) -> str:
        """Run one command; its output. A failing command ends the demo with the end of its output and its code."""
        command = [str(word) for word in words]
        print(f"$ {shlex.join(command)}", flush=True)
        log = self.workspace / "logs" / f"{len(self.seconds) + 1:02d}_{step}.txt"
        began = time.monotonic()
        # into a file and not a pipe: a worker process that outlives its command must not hold up the demo
        with log.open("wb") as sink, log.open(errors="replace") as source:
            environment = os.environ | self.environment
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
            )
            while self.verbose and process.poll() is None:
                print(source.read(), end="", flush=True)
                time.sleep(0.2)
            code = process.wait()
            if self.verbose:
                print(source.read(), end="", flush=True)
        output = log.read_text(errors="replace")
        if code:
            print("\n".join(output.splitlines()[-TAIL:]), file=sys.stderr)
            print(f"demo: {command[0]} failed with code {code}. Its output: {log}", file=sys.stderr)
            sys.exit(code if 0 < code < 256 else 1)
        self.seconds[step] = round(time.monotonic() - began, 1)
        print(f"  done in {self.seconds[step]:.0f} s", flush=True)
        return output


def main() -> None:
    """Run the demo."""
    options = parse_options()
    began = time.monotonic()
    workspace: Path = options.workspace.resolve()
    fresh_workspace(workspace)
    device = options.device or available_device()
    shell = Shell(workspace, options.verbose)

    heading("A cohort: many scans without labels, a few labeled ones, some to test on")
    cohort = get_cohort(options, workspace)
    set_environment(shell, workspace)

    heading("The target: plan and preprocess the labeled dataset, as always with nnU-Net (here with tiny plans)")
    plan_target(shell)

    heading("Pre-training: import the unlabeled scans, plan like the target, preprocess, train")
    checkpoint = pretrain(shell, cohort, options, device)

    heading("Both arms, same trainer and budget: from the transferred weights, and from scratch")
    for arm in ARMS:
        fine_tune(shell, arm, checkpoint, options, device)

    heading("Test cases: predict and evaluate")
    dice = {arm: evaluate(shell, arm, cohort, device) for arm in ARMS}

    results = {
        "data": str(options.msd or "synthetic subjects from the MNI152 template"),
        "cases": count_cases(cohort),
        "dice": dice,
        "restoration": read_json(checkpoint.parent / "restoration_summary.json")["errors"]["recipe"],
        "pictures": [str(path) for path in (workspace / "corruptions.png", *pictures(checkpoint.parent))],
        "options": vars(options),
        "device": device,
        "python": platform.python_version(),
        "seconds": shell.seconds | {"everything": round(time.monotonic() - began, 1)},
    }
    path = workspace / "results.json"
    path.write_text(json.dumps(results, indent=4, default=str) + "\n")
    heading("Measured")
    report(results, cohort)
    print(f"\nAll numbers: {path}")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo.sh", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--workspace", type=Path, default=REPOSITORY / "demo_workspace", metavar="DIR", help="made anew each time")
    add(
        "--msd",
        type=Path,
        metavar="DIR",
        help="a single-channel Decathlon task with small images, e.g. Task04_Hippocampus, in place of synthetic scans",
    )
    add("--unlabeled", type=int, metavar="N", help="scans without labels (60, with --msd 150)")
    add("--labeled", type=int, metavar="N", help="labeled training cases (6, with --msd 30)")
    add("--test", type=int, metavar="N", help="test cases (10, with --msd 20)")
    add("--epochs", type=int, default=5, metavar="N", help="epochs of pre-training")
    add("--iterations", type=int, default=50, metavar="N", help="steps per epoch of pre-training")
    add(
        "--lr",
        type=float,
        default=0.003,
        metavar="X",
        help="learning rate of pre-training; a network this small bears it",
    )
    add("--tune-epochs", type=int, default=3, metavar="N", help="epochs of fine-tuning and of the control arm")
    add("--tune-iterations", type=int, default=30, metavar="N", help="steps per epoch of both")
    add("--seed", type=int, default=0, metavar="N", help="seed of cohort and pre-training; nnU-Net's own is random")
    add("--device", choices=("cpu", "cuda"), help="cuda where there is one, otherwise cpu")
    add("--verbose", action="store_true", help="show the output of the commands")
    return parser.parse_args()


def fresh_workspace(workspace: Path) -> None:
    """An empty folder; an earlier workspace of this demo is removed, anything else is left alone."""
    if workspace.exists() and not (workspace / MARKER).is_file() and not is_empty(workspace):
        sys.exit(f"demo: {workspace} exists and was not made by this demo. Name another --workspace.")
    if workspace.exists():
        shutil.rmtree(workspace)
    (workspace / "logs").mkdir(parents=True)
    (workspace / MARKER).write_text("The next demo removes this folder.\n")


def is_empty(folder: Path) -> bool:
    """Whether it is a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def available_device() -> str:
    """Cuda or cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def get_cohort(options: argparse.Namespace, workspace: Path) -> Cohort:
    """Write the cohort; its labeled part moves into nnUNet_raw."""
    wanted = (options.unlabeled, options.labeled, options.test)
    folder = workspace / "cohort"
    if options.msd:
        shares = [given or usual for given, usual in zip(wanted, (150, 30, 20), strict=True)]
        try:
            cohort = split_decathlon(options.msd, folder, shares=shares, seed=options.seed)
        except ValueError as error:
            sys.exit(f"demo: {error}")
    else:
        unlabeled, labeled, test = (given or usual for given, usual in zip(wanted, (60, 6, 10), strict=True))
        cohort = make_cohort(folder, unlabeled=unlabeled, labeled=labeled, test=test, seed=options.seed)
    raw = workspace / "nnUNet_raw"
    raw.mkdir()
    dataset = Path(shutil.move(cohort.dataset, raw))
    cohort = Cohort(cohort.unlabeled, dataset, cohort.channel, cohort.labels)
    counts = count_cases(cohort)
    print(", ".join(f"{count} {part}" for part, count in counts.items()), f"in {folder} and {dataset}")
    return cohort


def count_cases(cohort: Cohort) -> dict[str, int]:
    """Number of cases in each part."""
    return {
        "unlabeled": len(list(cohort.unlabeled.iterdir())),
        "labeled": len(list((cohort.dataset / "labelsTr").iterdir())),
        "test": len(list((cohort.dataset / "labelsTs").iterdir())),
    }


def set_environment(shell: Shell, workspace: Path) -> None:
    """What nnU-Net needs to know, for the commands of this very Python."""
    shell.environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    shell.environment["MPLBACKEND"] = "Agg"
    shell.environment["COLUMNS"] = "120"
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (workspace / name).mkdir(exist_ok=True)
        shell.export(**{name: str(workspace / name)})
    # two processes for everything, one thread in each loader; threads that wait must not keep few cores busy; a
    # network this small is not worth compiling unless that is to be tried
    compiled = os.environ.get("nnUNet_compile", "f")
    shell.export(nnUNet_n_proc_DA="2", nnUNet_def_n_proc="2", nnUNet_compile=compiled)
    shell.export(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    shell.export(nnUNet_extTrainer=shell.run("trainers", "nnunet_genesis", "trainers").splitlines()[-1])


def plan_target(shell: Shell) -> None:
    """Tiny plans for the labeled dataset, then nnU-Net's own preprocessing."""
    shell.run("plan_target", "nnunet_genesis", "plan", "-d", TARGET, "--template", "tiny", "-p", PLANS)
    words = ("-d", TARGET, "-plans_name", PLANS, "-c", CONFIGURATION, "-np", 2)
    shell.run("preprocess_target", "nnUNetv2_preprocess", *words)


def pretrain(shell: Shell, cohort: Cohort, options: argparse.Namespace, device: str) -> Path:
    """From unlabeled scans to a pre-trained checkpoint."""
    plans, name = "nnUNetGenesisPlans", "Unlabeled"
    # fmt: off
    shell.run("import", "nnunet_genesis", "import", "-d", UNLABELED, "-n", name, "-np", 2, cohort.unlabeled,
              "--channels", cohort.channel)
    shell.run("plan", "nnunet_genesis", "plan", "-d", UNLABELED, "--like", TARGET, "--like-plans", PLANS, "-p", plans,
              "--epochs", options.epochs, "--iterations", options.iterations, "--validation-iterations", 10,
              "--plot-every", max(1, options.epochs // 2), "--lr", options.lr, "--seed", options.seed)
    shell.run("preprocess", "nnunet_genesis", "preprocess", "-d", UNLABELED, "-c", CONFIGURATION, "-np", 2)
    shell.run("preview", "nnunet_genesis", "preview", "-d", UNLABELED, "-c", CONFIGURATION, "-p", plans,
              "-o", shell.workspace / "corruptions.png")
    shell.run("pretrain", "nnUNetv2_train", UNLABELED, CONFIGURATION, "all", "-tr", PRETRAINER, "-p", plans,
              "-device", device)
    # fmt: on
    run = f"{PRETRAINER}__{plans}__{CONFIGURATION}"
    folder = shell.workspace / "nnUNet_results" / f"Dataset{UNLABELED}_{name}" / run / "fold_all"
    return folder / "checkpoint_final.pth"


def fine_tune(shell: Shell, arm: str, checkpoint: Path, options: argparse.Namespace, device: str) -> None:
    """Write the arm's plans and train it."""
    start = "--from-scratch" if arm == "scratch" else checkpoint
    target = ("-d", TARGET, "-c", CONFIGURATION, "-p", PLANS)
    warmup = min(1, options.tune_epochs - 1)
    budget = ("--epochs", options.tune_epochs, "--iterations", options.tune_iterations, "--warmup", warmup)
    shell.run(f"transfer_{arm}", "nnunet_genesis", "transfer", start, *target, *budget)
    words = (TARGET, CONFIGURATION, "all", "-tr", FINETUNER, "-p", ARMS[arm], "-device", device)
    shell.run(f"train_{arm}", "nnUNetv2_train", *words)


def evaluate(shell: Shell, arm: str, cohort: Cohort, device: str) -> dict[str, Any]:
    """Predict the test cases with one arm; Dice of each label and of each case."""
    predictions = shell.workspace / "predictions" / arm
    model = ("-d", TARGET, "-c", CONFIGURATION, "-f", "all", "-tr", FINETUNER, "-p", ARMS[arm])
    folders = ("-i", cohort.dataset / "imagesTs", "-o", predictions)
    fast = ("-npp", 1, "-nps", 1, "--disable_tta")
    shell.run(f"predict_{arm}", "nnUNetv2_predict", *model, *folders, *fast, "-device", device)
    labels = sorted(cohort.labels.values())
    words = (cohort.dataset / "labelsTs", predictions, "-l", *labels, "-np", 2)
    shell.run(f"evaluate_{arm}", "nnUNetv2_evaluate_simple", *words)
    summary = read_json(predictions / "summary.json")
    cases = {Path(case["reference_file"]).name: case["metrics"] for case in summary["metric_per_case"]}
    return {
        "mean": {name: summary["mean"][str(value)]["Dice"] for name, value in cohort.labels.items()},
        "cases": {
            case: {name: metrics[str(value)]["Dice"] for name, value in cohort.labels.items()}
            for case, metrics in cases.items()
        },
    }


def read_json(path: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(path.read_text())


def pictures(folder: Path) -> list[Path]:
    """Pictures that the pre-training drew."""
    return [folder / "progress.png", *sorted(folder.glob("restoration_*.png"))]


def heading(text: str) -> None:
    """Print the title of a part."""
    print(f"\n== {text}", flush=True)


def report(results: dict[str, Any], cohort: Cohort) -> None:
    """Print what was measured."""
    cases = results["cases"]["test"]
    print(f"Dice, mean over {cases} test cases (one training per arm, same budget):")
    print(f"  {'label':<20}" + "".join(f"{arm:>12}" for arm in ARMS))
    for label in cohort.labels:
        print(f"  {label:<20}" + "".join(f"{results['dice'][arm]['mean'][label]:>12.4f}" for arm in ARMS))
    errors = results["restoration"]
    print("Restoration of held-out corrupted patches, mean squared error (normalised intensities):")
    named = {"restored by the network": "mse", "copying the input": "copy_mse", "patch mean": "mean_mse"}
    for name, key in named.items():
        print(f"  {name:<30}{errors[key]:>10.4f}")
    print("Pictures:")
    for path in results["pictures"]:
        print(f"  {path}")
    print(f"Took {results['seconds']['everything'] / 60:.1f} minutes on {results['device']}.")
    print("A single run of minutes with a tiny network: not evidence for or against pre-training.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("demo: interrupted")
