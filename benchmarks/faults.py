"""Every step of the workflow killed at random moments, without space, access or memory → what was lost or half-written.

A step runs once to its end. Then, again and again: it starts anew, is killed (SIGKILL, with all it has started) after a
random part of that time, what lies there is looked at, and the same command runs to its end. Every file that reads as
complete must be what the first run wrote; after the second command all must be.

    PYTHONPATH=. python benchmarks/faults.py --moments 200 --soak 120 -o benchmarks/results/faults.md
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "0"}

import numpy as np
from measuring import facts, table
from workflow_steps import DONE, STEPS, Step, begin, make_world, place_of, remove, restore, start, wait

SPACE = 2**28
"""Bytes of the small file system."""
NOBODY = 65534
"""A user who owns nothing."""


class Tally:
    """What became of the tries of one step under one kind of fault."""

    def __init__(self, fault: str, step: str) -> None:
        """No try yet."""
        self.fault, self.step, self.tries, self.lost, self.wrong = fault, step, 0, 0, []  # type: ignore[var-annotated]

    def row(self) -> tuple[Any, ...]:
        """Cells of the table."""
        return self.fault, self.step, self.tries, self.lost, len(self.wrong)

    def attempt(self, step: Step, world: Path, fault: Callable[[], list[str]]) -> None:
        """Run a step from nothing into a fault, look at what is there, and let it end without."""
        remove(world, step)
        self.tries += 1
        self.wrong += fault()  # what it makes of the fault itself
        finished, wrong = step.look(world, step)
        code, said = wait(start(world, step.command + step.again))
        if finished and "it is a finished export" in said:
            code = 0
        kept = step.kept(said)
        self.lost = max(self.lost, finished - kept)
        self.wrong += wrong + ([] if code == 0 else [f"the second run ended with {code}: {said[-300:]}"])
        self.wrong += step.compare(world, step)


def killed(world: Path, step: Step, delay: float) -> list[str]:
    """Kill the step and all that it has started after some seconds, unless it has ended."""
    process = start(world, step.command)
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline and not process.ended():
        time.sleep(0.002)
    process.kill()
    return []


def refused(world: Path, step: Step, **limits: Any) -> list[str]:
    """Run the step under limits: it must end, without 0 unless it had enough, and in one line if it is ours."""
    code, said = wait(start(world, step.command, **limits))
    wrong = [f"called complete: {text}" for text in step.compare(world, step)] if code == 0 else []
    ours = step.command[0] == "nnunet_genesis"  # nnU-Net's trainings say so in many lines
    if code < 0 or (ours and "Traceback" in said):
        wrong.append(f"ended with {code} and a traceback, {limits}: {said[-300:]}")
    return wrong


def without_space(world: Path, step: Step, left: int) -> list[str]:
    """Fill the file system but for some bytes."""
    ballast = world / "ballast"
    facts_of = os.statvfs(world)
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, facts_of.f_bavail * facts_of.f_frsize - left))
    try:
        return refused(world, step)
    finally:
        ballast.unlink()


def worker_killed(world: Path, step: Step) -> list[str]:
    """Kill one worker of several, as a system without memory does."""
    process = start(world, [*step.command, "-np", "2"])
    while not process.ended():
        if step.look(world, step)[0] and (workers := process.workers()):
            os.kill(workers[-1], 9)
            break
        time.sleep(0.01)
    code, said = wait(process)
    told = code == 0 or "A worker process was killed" in said
    return [] if told else [f"a killed worker ended with {code}: {said[-300:]}"]


def kills(world: Path, moments: int, seconds: float, chosen: Sequence[str], rng: np.random.Generator) -> list[Tally]:
    """The first kind of fault, for every chosen step an equal share of the moments; the others run once."""
    tallies, began = [], time.monotonic()
    for number, step in enumerate(STEPS):
        done = sum(one.tries for one in tallies)
        tally, spent = Tally("SIGKILL", step.name), begin(world, step)
        if step.name not in chosen:
            continue
        left, now = sum(one.name in chosen for one in STEPS[number:]), time.monotonic()
        share, deadline = -(-(moments - done) // left), now + (began + seconds - now) / left
        while tally.tries < share and time.monotonic() < deadline:
            tally.attempt(step, world, lambda: killed(world, step, rng.uniform(0, spent)))  # noqa: B023
        restore(world, step)
        tallies.append(tally)
        print(number + 1, *tally.row(), *tally.wrong[:3], f"{spent:.2f} s", flush=True)
    return tallies


def others(world: Path, small: bool, tries: int, chosen: Sequence[str], rng: np.random.Generator) -> list[Tally]:
    """No space, no access, no memory."""
    tallies: list[Tally] = []
    for step in (one for one in STEPS if tries and one.name in chosen):
        size = sum(path.stat().st_size for path in step.files(world))
        full = Tally("disk full" if small else "file size limit", step.name)
        for _ in range(tries):
            room = int(rng.uniform(0, size))
            if small:
                full.attempt(step, world, lambda: without_space(world, step, room))  # noqa: B023
            else:
                largest = max(path.stat().st_size for path in place_of(world, step).rglob("*") if path.is_file())
                limit = int(rng.uniform(100, largest))
                full.attempt(step, world, lambda: refused(world, step, file_size=limit))  # noqa: B023
        closed = Tally("read-only folder", step.name)
        closed.attempt(step, world, lambda: refused(world, step, user=NOBODY))  # noqa: B023
        memory = Tally("memory limit", step.name)
        for _ in range(tries):
            more = int(rng.uniform(1, 64)) * 2**20
            memory.attempt(step, world, lambda: refused(world, step, memory=more))  # noqa: B023
        tallies += [full, closed, memory]
        if step.parallel:
            tallies.append(Tally("worker killed", step.name))
            tallies[-1].attempt(step, world, lambda: worker_killed(world, step))  # noqa: B023
        restore(world, step)
        for tally in (one for one in tallies if one.step == step.name):
            print(*tally.row(), *tally.wrong[:2], flush=True)
    return tallies


def resident(number: int) -> int:
    """Bytes of a process in memory."""
    return 4096 * int(Path(f"/proc/{number}/statm").read_text().split()[1])


def soak(world: Path, seconds: float) -> str:
    """Resident memory of a pre-training over a while, in words."""
    (step,) = (step for step in STEPS if step.name == "pre-train")
    remove(world, step)
    plans = world / DONE / "Dataset501_Scans" / "nnUNetGenesisPlans.json"
    content = json.loads(plans.read_text())
    content["genesis"]["pretraining"]["epochs"] = 100000
    plans.write_text(json.dumps(content))
    process, samples = start(world, step.command), []
    began = time.monotonic()
    while time.monotonic() - began < seconds and not process.ended():
        time.sleep(1)
        samples.append(resident(process.number))
    if process.ended():
        raise RuntimeError(process.log.read_text()[-3000:])
    epochs = step.look(world, step)[0]
    process.kill()
    samples = samples[len(samples) // 5 :]  # imports, compilation, first batches
    half = len(samples) // 2
    first, second = (float(np.median(part)) / 2**20 for part in (samples[:half], samples[half:]))
    return (
        f"Pre-training for {seconds / 60:.0f} minutes ({epochs} epochs): {first:.1f} MiB resident in the first half "
        f"(median, without the first fifth), {second:.1f} MiB in the second, {max(samples) / 2**20:.1f} MiB at most."
    )


def main() -> None:
    """Run all faults and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=200, help="kills, over all steps (%(default)s)")
    names = [step.name for step in STEPS]
    parser.add_argument("--steps", nargs="+", choices=names, default=names, help="those that faults happen to (all)")
    parser.add_argument("--minutes", type=float, default=60, help="no more kills after these (%(default)g)")
    parser.add_argument("--tries", type=int, default=3, help="tries of the other faults, each step (%(default)s)")
    parser.add_argument("--soak", type=float, default=120, help="minutes of a pre-training (%(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", type=Path, help="report to write")
    chosen = parser.parse_args()
    rng, began = np.random.default_rng(chosen.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        world.chmod(0o755)  # nobody may read
        small = os.system(f"mount -t tmpfs -o size={SPACE} tmpfs {world} 2>/dev/null") == 0
        try:
            make_world(world)
            tallies = kills(world, chosen.moments, 60 * chosen.minutes, chosen.steps, rng)
            tallies += others(world, small, chosen.tries, chosen.steps, rng)
            memory = soak(world, 60 * chosen.soak) if chosen.soak else ""
        finally:
            if small:
                os.system(f"umount -l {world}")
    wrong = [f"- {one.fault}, {one.step}: {text}" for one in tallies for text in one.wrong]
    count = sum(one.tries for one in tallies if one.fault == "SIGKILL")
    lines = [
        f"{date.today()}, {count} kills, {(time.monotonic() - began) / 60:.0f} minutes. {facts(None)}.", "",
        table(("fault", "step", "tries", "lost at most", "half-written or other"), [one.row() for one in tallies]), "",
        memory, "", *wrong,
    ]  # fmt: skip
    report = "\n".join(lines).rstrip() + "\n"
    print(report)
    if chosen.o:
        chosen.o.write_text(report)


if __name__ == "__main__":
    main()
