"""The steps of the workflow, each as a command that a forked process runs, and what its files must be like."""

from __future__ import annotations

import filecmp
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from nnunet_genesis.corruption import compile_loops
from tests.conftest import run_genesis, run_stock, shrink_plans, use_folders, write_dataset

CASES, EPOCHS = 12, 4
RAW, DONE, MODELS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
REFERENCE = "reference"


@dataclass(frozen=True)
class Step:
    """A step of the workflow.

    Attributes:
        name: Its name.
        command: Words of the command.
        place: The folder that it writes to, below the world.
        made: What it makes there, as patterns.
        look: World and step, after a fault → number of finished pieces of work, and what is wrong.
        again: Further words of the command that goes on.
        parallel: Whether it has worker processes.
    """

    name: str
    command: list[str]
    place: str
    made: tuple[str, ...]
    look: Callable[[Path, Step], tuple[int, list[str]]]
    again: list[str] = field(default_factory=list)
    parallel: bool = False

    def paths(self, world: Path) -> list[Path]:
        """What it has made."""
        return sorted({path for pattern in self.made for path in place_of(world, self).glob(pattern)})

    def files(self, world: Path) -> list[Path]:
        """The files among and below these, without locks."""
        inside = [one for path in self.paths(world) for one in ([path] if path.is_file() else path.rglob("*"))]
        return [path for path in inside if path.is_file() and ".locks" not in path.parts]

    @property
    def trains(self) -> bool:
        """Whether it is a training."""
        return self.look is look_at_training

    def kept(self, said: str) -> int:
        """How many finished pieces of work the command that went on has found."""
        if found := re.search(r"(\d+) were (?:there|finished) already", said):
            return int(found[1])
        if found := re.search(r"RESUMED AT (\d+)", said):
            return int(found[1])
        return int(not self.trains)  # a step of one piece; a training that began anew

    def compare(self, world: Path, step: Step) -> list[str]:
        """What is otherwise than after the first run."""
        if self.trains:
            return compare_weights(world, step)
        left = [path.name for path in self.files(world) if "incomplete" in path.name or "unfinished" in path.name]
        return [f"left: {name}" for name in left] + [
            f"{path.name} is missing after the second run" if not path.exists() else f"{path.name} differs"
            for path, first in reference_files(world, step) if not same(path, first)
        ]  # fmt: skip


def place_of(world: Path, step: Step) -> Path:
    """The folder that a step writes to."""
    return world / step.place


def reference_files(world: Path, step: Step) -> list[tuple[Path, Path]]:
    """(where a file of the first run belongs, the file)."""
    kept = world / REFERENCE / step.name
    return [(place_of(world, step) / path.relative_to(kept), path) for path in kept.rglob("*")
            if path.is_file() and ".locks" not in path.parts]  # fmt: skip


def same(path: Path, first: Path) -> bool:
    """Whether a file is that of the first run; counts of what a run did may differ."""
    if not path.is_file() or path.suffix == ".png":
        return path.is_file() and path.stat().st_size > 0
    if path.name.endswith("_preprocessing.json"):
        return all(json.loads(one.read_text())["failed"] == {} for one in (path, first))
    return filecmp.cmp(path, first, shallow=False) or (path.suffix in (".b2nd", ".npz") and same_arrays(path, first))


def same_arrays(path: Path, first: Path) -> bool:
    """Of volumes, whose blocks threads write in any order, the voxels; of an index all but the times of files."""
    try:
        if path.suffix == ".b2nd":
            return np.array_equal(*(blosc2.open(str(one), mode="r")[:] for one in (path, first)))
        np.testing.assert_equal(*({**np.load(one), "changed": 0, "stamps": 0} for one in (path, first)))
    except Exception:
        return False
    return True


def look_at_cases(world: Path, step: Step) -> tuple[int, list[str]]:
    """Cases that nnU-Net takes for finished: all of their files must be those of the first run. JSON must be whole."""
    wrong, cases = unreadable_json(world, step), 0
    files = [(path, first) for path, first in reference_files(world, step) if path.suffix != ".json"]
    shown = ".nii.gz" if step.name == "import" else ".b2nd"
    for path, _ in files:
        if path.name.endswith(shown) and not path.name.endswith("_seg.b2nd") and path.exists():
            case = path.name.removesuffix(shown)
            parts = [pair for pair in files if pair[0].name.split(".")[0].removesuffix("_seg") == case]
            cases += all(same(*pair) for pair in parts)
            wrong += [f"{pair[0].name} is half-written" for pair in parts if not same(*pair)]
    return cases, wrong


def unreadable_json(world: Path, step: Step) -> list[str]:
    """Files that are no JSON although their name says so."""
    wrong = []
    for path in step.files(world):
        if path.suffix == ".json" and "incomplete" not in path.name:
            try:
                json.loads(path.read_text())
            except ValueError:
                wrong.append(f"{path.name} is half-written")
    return wrong


def look_at_training(world: Path, step: Step) -> tuple[int, list[str]]:
    """Epochs that the log has as finished; every checkpoint must be readable."""
    wrong, epochs = unreadable_json(world, step), 0
    for path in step.files(world):
        if path.name.startswith("training_log"):
            epochs = max(epochs, len(re.findall("Epoch time", path.read_text(errors="replace"))))
        if path.suffix == ".pth" and "incomplete" not in path.name:
            try:
                torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                wrong.append(f"{path.name} is half-written: {str(error)[:100]}")
    return epochs, wrong


def look_at_all(world: Path, step: Step) -> tuple[int, list[str]]:
    """A step of one piece: once its last file is there, all must be those of the first run."""
    pairs = reference_files(world, step)
    last = place_of(world, step) / ("nnUNetPlans_genesis.json" if step.name == "transfer" else EXPORTED)
    there = last.exists()
    return int(there), [f"{path.name} is half-written" for path, first in pairs if there and not same(path, first)]


def compare_weights(world: Path, step: Step) -> list[str]:
    """The trained weights must be those of the first run, but for rounding."""
    for path, first in reference_files(world, step):
        if path.name == "checkpoint_final.pth":
            if not path.is_file():
                return ["no checkpoint_final.pth after the second run"]
            now, then = (torch.load(one, weights_only=True) for one in (path, first))
            off = [name for name, tensor in then["network_weights"].items()
                   if not torch.allclose(tensor, now["network_weights"][name], rtol=1e-3, atol=1e-5)]  # fmt: skip
            epochs = len(now["logging"]["lrs"])
            return ([f"other weights: {len(off)} tensors"] if off else []) + (
                [f"{epochs} epochs"] if epochs != EPOCHS else []
            )
    return ["no reference"]


PRETRAINED = f"{MODELS}/Dataset501_Scans/nnUNetTrainerGenesisPretrain__nnUNetGenesisPlans__3d_fullres"
TUNED = "nnUNetTrainerGenesisFinetune__nnUNetPlans_genesis__3d_fullres"
EXPORTED = "nnUNetTrainer__nnUNetPlans_genesis__3d_fullres"
TRAIN = ["nnUNetv2_train", "-device", "cpu"]
STEPS = [
    Step("import", ["nnunet_genesis", "import", "-d", "501", "-n", "Scans", "--channels", "T1", "scans", "-np", "1"],
         RAW, ("Dataset501_Scans",), look_at_cases, parallel=True),
    Step("preprocess", ["nnunet_genesis", "preprocess", "-d", "501", "-c", "3d_fullres", "-np", "1"],
         f"{DONE}/Dataset501_Scans", ("nnUNetGenesisPlans_3d_fullres*", ".locks"), look_at_cases, parallel=True),
    Step("pre-train", [*TRAIN, "501", "3d_fullres", "all", "-tr", "nnUNetTrainerGenesisPretrain", "-p",
                       "nnUNetGenesisPlans"], f"{MODELS}", ("Dataset501_Scans",), look_at_training, again=["--c"]),
    Step("transfer", ["nnunet_genesis", "transfer", f"{PRETRAINED}/fold_all/checkpoint_final.pth", "-d", "4", "-c",
                      "3d_fullres", "--epochs", str(EPOCHS), "--iterations", "2"], f"{DONE}/Dataset004_Target",
         ("nnUNetPlans_genesis*", "transfer_report.json", ".incomplete*"), look_at_all),
    Step("fine-tune", [*TRAIN, "4", "3d_fullres", "0", "-tr", "nnUNetTrainerGenesisFinetune", "-p",
                       "nnUNetPlans_genesis"], f"{MODELS}/Dataset004_Target", (TUNED,), look_at_training,
         again=["--c"]),
    Step("export", ["nnunet_genesis", "export", f"{MODELS}/Dataset004_Target/{TUNED}"], f"{MODELS}/Dataset004_Target",
         (f"{EXPORTED}*", ".incomplete*"), look_at_all),
]  # fmt: skip


# processes


@dataclass
class Process:
    """A forked process that runs a command, the leader of a group."""

    number: int
    log: Path
    code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            number, status = os.waitpid(self.number, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if number else None
        return self.code is not None

    def kill(self) -> None:
        """End it and all that it has started, at once."""
        if not self.ended():
            os.killpg(self.number, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])

    def workers(self) -> list[int]:
        """Processes that it has started and that do its work."""
        found = Path(f"/proc/{self.number}/task/{self.number}/children").read_text().split()
        return [int(number) for number in found if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()]


def call(words: Sequence[str]) -> int:
    """Run a command in this process; its exit code."""
    program, *rest = words
    if program == "nnunet_genesis":
        return run_genesis(*rest)
    with quick_trainings() as patch:
        run_stock(patch, program, *rest)
    return 0


@contextmanager
def quick_trainings() -> Iterator[pytest.MonkeyPatch]:
    """Trainings that say where they go on, save after each epoch, draw nothing and validate little."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_genesis.finetuning import nnUNetTrainerGenesisFinetune
    from nnunet_genesis.pretraining.restoration_log import RestorationLog
    from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

    resume, tuning = nnUNetTrainer.load_checkpoint, nnUNetTrainerGenesisFinetune.on_train_start
    with pytest.MonkeyPatch.context() as patch:

        def told(self: Any, file: Any) -> None:
            resume(self, file)
            print(f"RESUMED AT {self.current_epoch}")

        def short(self: Any) -> None:
            self.num_val_iterations_per_epoch, self.save_every = 2, 1
            tuning(self)

        patch.setattr(nnUNetTrainer, "load_checkpoint", told)
        patch.setattr(nnUNetTrainerGenesisFinetune, "on_train_start", short)
        for kind in (LocalLogger, RestorationLog):  # pictures take seconds, an epoch milliseconds
            patch.setattr(kind, "plot_progress_png", lambda *_: None)
        patch.setattr(nnUNetTrainerGenesisPretrain, "draw_sheet", lambda *_: None)
        yield patch


def start(world: Path, words: Sequence[str], *, by: Callable[[Sequence[str]], int] = call, name: str = "",
          user: int = 0, memory: int = 0, file_size: int = 0) -> Process:  # fmt: skip
    """Run a command in a fork, which has imported everything already.

    Args:
        world: Its working folder.
        words: The command.
        by: What runs it; its exit code.
        name: Of its log, where several run at once.
        user: Who runs it; 0: who runs this.
        memory: Bytes of address space beyond what is taken already; 0: no limit.
        file_size: Bytes of a file; 0: no limit.
    """
    log = world.parent / f"{world.name}{name}.log"
    log.unlink(missing_ok=True)
    number = os.fork()
    if number:
        return Process(number, log)
    code = 1
    try:
        os.setsid()
        os.chdir(world)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        if file_size:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if user:
            os.setgid(user)
            os.setuid(user)
        if memory:
            taken = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
        code = by(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: Process) -> tuple[int, str]:
    """Exit code and all that was said, once it has ended."""
    while not process.ended():
        time.sleep(0.005)
    return int(process.code or 0), process.log.read_text(errors="replace")


# the world

IMPORTED = (
    "blosc2", "matplotlib.pyplot", "multiprocessing.pool", "multiprocessing.popen_fork",
    "multiprocessing.popen_spawn_posix", "nnunet_genesis.export", "nnunet_genesis.finetuning",
    "nnunet_genesis.planning",
    "nnunet_genesis.preprocessing", "nnunet_genesis.importing.into_dataset", "nnunet_genesis.pretraining.trainer",
    "nnunet_genesis.transfer.into_plans", "nnunetv2.evaluation.evaluate_predictions",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training", "nnunetv2.training.nnUNetTrainer.primus.primus_trainers", "torch._dynamo",
)  # fmt: skip
"""What forks find imported already, once nnU-Net's folders are named."""


def make_world(world: Path) -> None:
    """Scans, and a target that is planned and preprocessed; the steps' plans are made between them."""
    patch = pytest.MonkeyPatch()
    use_folders(world, patch)
    compile_loops()
    for module in IMPORTED:
        importlib.import_module(module)
    write_dataset(world, 4, "Target", 5)
    scans = write_dataset(world, 999, "Source", CASES, labeled=False)
    shutil.copytree(scans / "imagesTr", world / "scans")
    shutil.rmtree(scans)
    for path in (world / "scans").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    run(world, "nnunet_genesis", "plan", "-d", "4", "--template", "tiny", "-p", "nnUNetPlans")
    shrink_plans(world / DONE / "Dataset004_Target" / "nnUNetPlans.json")
    run(world, "nnUNetv2_preprocess", "-d", "4", "-plans_name", "nnUNetPlans", "-c", "3d_fullres", "-np", "1")


def run(world: Path, *words: str) -> str:
    """Run a command to its end.

    Raises:
        RuntimeError: It failed.
    """
    code, said = wait(start(world, words))
    if code:
        raise RuntimeError(f"{' '.join(words)} ended with {code}: {said[-3000:]}")
    return said


def begin(world: Path, step: Step, first: Callable[[], None] | None = None) -> float:
    """Run a step for the first time, or what does it, and keep what it has made; the seconds that it took."""
    if step.name == "preprocess":
        run(world, "nnunet_genesis", "plan", "-d", "501", "--like", "4", "--epochs", str(EPOCHS), "--iterations", "2",
            "--validation-iterations", "2", "--save-every", "1", "--plot-every", "100")  # fmt: skip
    began = time.monotonic()
    first() if first else run(world, *step.command)
    spent = time.monotonic() - began
    kept = world / REFERENCE / step.name
    for path in step.paths(world):
        target = kept / path.relative_to(place_of(world, step))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    return spent


def restore(world: Path, step: Step) -> None:
    """Put what the first run has made into the place of what is there: later steps start from it."""
    remove(world, step)
    for path, first in reference_files(world, step):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, path)


def remove(world: Path, step: Step) -> None:
    """Remove what a step has made."""
    for path in step.paths(world):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
