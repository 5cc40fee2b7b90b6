"""A seed and a number → one mutated file, one command on it, and what happened: all rules kept, or which one was not."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_genesis import cli
from nnunet_genesis.resources import trainers_folder
from tests.hostile.mutations import BYTES, TRAP, changed_json, changed_pickle, changed_tensors
from tests.hostile.originals import (
    CHECKPOINTS,
    IMPORTED,
    MODEL,
    PRIMUS,
    PRIMUS_PLANS,
    RAW,
    RESTORED,
    SCAN_FILES,
    SCANS,
    SLICE,
    TARGET,
)

LONGEST = 10.0
"""Seconds of processor time for a file below 1 MB."""
LARGEST = 2**30
"""Bytes of memory, beyond what the process held before."""
LARGEST_DICOM = 6 * 2**30
"""Of a process that reads DICOM: GDCM reserves what a field of length says, at most 4 GiB, and keeps it."""
MOST_LINES = 8
"""Lines on standard error, progress bars aside: one of ours, and what libraries write below Python."""
PROGRESS = re.compile(r"\| \d+/\d+ \[")
"""In every line of a progress bar."""

TRANSFER = ("transfer", "files/v2.pth", "-d", "4", "-c", "3d_fullres")
TO_PRIMUS = ("transfer", PRIMUS, *TRANSFER[2:], "-p", Path(PRIMUS_PLANS).stem)
PREPROCESS = ("preprocess", "-d", "501", "-np", "1", "-c")
EXPORT = ("export", MODEL)
IMPORT = ("import", "-d", "600", "-n", "Imported", "--channels", "T1", "-np", "1")
LIKE = ("plan", "-d", "501", "--like", "4")
TEMPLATE = ("plan", "-d", "501", "--template", "template.json")
RESTORE = ("restore", "files/genesis.pth", "-o", RESTORED, "--device", "cpu", "-i")
LEAKS = ("leaks", "files/genesis.pth", "-d", "501", "-p", "nnUNetGenesisPlans", "-c", "2d")

KINDS: list[tuple[str, str, list[tuple[str, ...]]]] = [
    *((kind, file, [("inspect", file.removesuffix(".pkl")), ("transfer", file.removesuffix(".pkl"), *TRANSFER[2:])])
      for kind, file in CHECKPOINTS.items()),
    ("checkpoint to restore with", CHECKPOINTS["pre-training"], [(*RESTORE, SCAN_FILES[".mha"])]),
    ("checkpoint with a record", CHECKPOINTS["pre-training"], [LEAKS]),
    ("splits_final.json", f"{SCANS}/splits_final.json", [(*LEAKS, "--fold", "0")]),
    ("checkpoint of a model", f"{MODEL}/fold_0/checkpoint_final.pth", [EXPORT]),
    ("plans of a model", f"{MODEL}/plans.json", [EXPORT]),
    ("dataset.json of a model", f"{MODEL}/dataset.json", [EXPORT]),
    ("plans of the target", f"{TARGET}/nnUNetPlans.json", [TRANSFER, LIKE]),
    ("Primus", PRIMUS, [("inspect", PRIMUS), TO_PRIMUS]),
    ("plans of a Primus", PRIMUS_PLANS, [TO_PRIMUS, (*LIKE, "--like-plans", Path(PRIMUS_PLANS).stem)]),
    ("plans template", "template.json", [TEMPLATE]),
    ("plans to pre-train with", f"{SCANS}/nnUNetGenesisPlans.json", [(*PREPROCESS, "3d_fullres"), TEMPLATE]),
    ("dataset.json, raw", f"{RAW}/dataset.json", [(*PREPROCESS, "3d_fullres"), TEMPLATE, LIKE]),
    ("dataset.json of the target", "nnUNet_raw/Dataset004_Target/dataset.json", [TRANSFER, LIKE]),
    ("dataset.json, imported", f"{IMPORTED}/dataset.json", [(*IMPORT, SCAN_FILES[".mha"])]),
    ("import_report.json", f"{IMPORTED}/import_report.json", [(*IMPORT, SCAN_FILES[".mha"])]),
    ("transfer_report.json", f"{TARGET}/transfer_report.json", [TRANSFER]),
    ("plans of an earlier transfer", f"{TARGET}/Earlier.json", [(*TRANSFER, "--to", "Earlier")]),
    ("record of preprocessing", f"{SCANS}/nnUNetGenesisPlans_2d_preprocessing.json", [(*PREPROCESS, "2d")]),
    *((f"scan {kind}", file, [(*IMPORT, file), (*RESTORE, file)]) for kind, file in SCAN_FILES.items()),
    ("scan, DICOM", SLICE, [(*IMPORT, str(Path(SLICE).parent))]),
    ("scan, raw dataset", f"{RAW}/imagesTr/case0_0000.nii.gz", [(*PREPROCESS, "3d_fullres"), TEMPLATE]),
]  # fmt: skip
"""What is mutated, its file in the world of `originals`, and the commands that read it."""

MAY_WRITE = {"inspect": (), "leaks": (), "transfer": (TARGET,), "plan": (SCANS,), "preprocess": (SCANS,), "import": (IMPORTED,),
             "export": (str(Path(MODEL).parent),), "restore": (RESTORED,)}  # fmt: skip
"""Folders of the world in which a command may make and change files."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        number: Together with the seed the address of the case.
        kind: What was mutated.
        mutation: How.
        command: The command's name.
        code: Its exit code; None if it ended with a traceback.
        broken: The rules that were broken, in words; empty if none.
        message: The first line on standard error.
        seconds: Processor time.
    """

    number: int
    kind: str
    mutation: str
    command: str
    code: int | None
    broken: tuple[str, ...]
    message: str
    seconds: float


def run_case(world: Path, workshop: Path, seed: int, number: int) -> Outcome:
    """Mutate a copy of the world and run a command on it, in this process.

    Args:
        world: From `make_world`; it stays as it is.
        workshop: An empty folder for this case; it is removed.
        seed: Of the whole run.
        number: Of the case; consecutive numbers walk through the kinds.
    """
    rng = random.Random(f"{seed}-{number}")
    kind, file, commands = KINDS[number % len(KINDS)]
    command = rng.choice(commands)
    here, canary = workshop / "world", workshop / "canary"
    shutil.copytree(world, here)
    canary.mkdir()
    (canary / "precious").write_text("unchanged")
    mutation = _mutate(here / file, kind, rng)
    before = _snapshot(workshop)
    if kind == "import_report.json" and rng.random() < 0.5:
        shutil.rmtree(here / IMPORTED / "imagesTr")
        before = _snapshot(workshop)
    arguments = [str(here / word) if (here / word).exists() else word for word in command]
    peak_memory()  # what the process needed before is not this case's,
    held = peak_memory()  # nor is what it keeps
    code, said, seconds = _run(arguments, here, canary, workshop / "errors")
    broken = list(_broken(code, said, seconds, held + (LARGEST_DICOM if kind == "scan, DICOM" else LARGEST)))
    writable = tuple(str(Path("world", folder)) for folder in MAY_WRITE[command[0]])
    after = _snapshot(workshop)
    moved = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    outside = [path for path in moved if path != "errors" and not path.startswith(writable or ("nothing",))]
    broken += [f"wrote {path}" for path in outside[:3]]
    if Path("/tmp/genesis-escaped").exists():
        broken.append("wrote /tmp/genesis-escaped")
    shutil.rmtree(workshop)
    lines = [line for line in said.splitlines() if line.strip()]
    return Outcome(number, kind, mutation, command[0], code, tuple(broken), lines[-1][:300] if lines else "", seconds)


def _mutate(path: Path, kind: str, rng: random.Random) -> str:
    """Change a file in place; the name of the mutation."""
    content = path.read_bytes()
    special = "json" if path.suffix == ".json" else "pickle" if path.suffix == ".pkl" else ""
    if path.suffix in (".pth", ".pt", ".model"):
        special = rng.choice(("tensors", "tensors", "pickle"))
    elif path.suffix == ".safetensors":
        special = rng.choice(("tensors", "header"))
    name = special if special and rng.random() < 0.75 else rng.choice(list(BYTES))
    if name == "tensors":
        changed_tensors(path, rng)
    elif name == "header":
        size = int.from_bytes(content[:8], "little")
        header = changed_json(content[8 : 8 + size], rng)
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    else:
        change = {"json": changed_json, "pickle": changed_pickle}.get(name) or BYTES[name]
        path.write_bytes(change(content, rng))
    return name


def _run(arguments: list[str], here: Path, canary: Path, errors: Path) -> tuple[int | None, str, float]:
    """Exit code (None after a traceback), all of standard error, processor time; the canary is the working folder."""
    folders = {name: str(here / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    before, folder = dict(os.environ), os.getcwd()
    os.environ |= folders | {"nnUNet_extTrainer": str(trainers_folder())}
    os.chdir(canary)
    began = time.process_time()
    try:
        with _standard_error(errors), open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), _trap():
            try:
                code: int | None = cli.main(arguments)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except Exception:
                traceback.print_exc()
                code = None
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ |= before
    return code, errors.read_text(errors="replace"), time.process_time() - began


@contextlib.contextmanager
def _standard_error(file: Path) -> Iterator[None]:
    """Standard error of Python and of the libraries below it goes to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("w") as stream, contextlib.redirect_stderr(stream):
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            stream.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _trap() -> Iterator[None]:
    """A module that leaves a file in the working folder when it is imported."""
    sys.path.insert(0, str(Path(__file__).parent / "trap"))
    try:
        yield
    finally:
        sys.path.pop(0)
        sys.modules.pop(TRAP, None)


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def _broken(code: int | None, said: str, seconds: float, most: float) -> Iterator[str]:
    lines = [line for line in said.splitlines() if line.strip() and not PROGRESS.search(line)]
    if code not in (0, 1, 2):
        yield f"exit code {code}"
    if "Traceback" in said:
        yield "traceback: " + lines[-1][:300]
    if code == 1 and sum(line.startswith("nnunet_genesis ") for line in lines) != 1:
        yield f"{sum(line.startswith('nnunet_genesis ') for line in lines)} lines of error"
    if len(lines) > MOST_LINES:
        yield f"{len(lines)} lines on standard error"
    if any(not character.isprintable() and character not in "\n\r\t" for character in "\n".join(lines)):
        yield "control characters on standard error"
    if seconds > LONGEST:
        yield f"took {seconds:.0f} s"
    memory = peak_memory()
    if memory > most:
        yield f"took {memory / 2**30:.1f} GiB"


def peak_memory() -> int:
    """Most bytes of this process in memory since the last call, where the system tells; 0 elsewhere."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.is_file():
        return 0
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    with contextlib.suppress(OSError):
        clear.write_text("5")
    return int(peak.split()[1]) * 1024
