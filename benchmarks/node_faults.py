"""Trainings on two machines that lose a process or a machine at a random moment → what it cost, and what ends them.

Both machines are torchrun's agents on loopback, with one process each, by gloo. A training runs once to its end. Then,
again and again: it starts anew, and something happens after a random part of that time, or a random number of epochs:

- a process is killed: torchrun has to start both again by itself (`--max-restarts 3`);
- the second machine, an agent with its process, is killed, and the same command is started there again;
- it falls silent instead (SIGSTOP: connections stay open), and the same command is started elsewhere;
- the agent alone is killed, its process is not, and the same command is started again;
- the first machine, where the agents meet, is killed.

Where the agents do not end with 0 after that, they are killed, and both are started again. The end must have as many
epochs and the same weights as without a fault; what reads as complete must be so at any time.

    PYTHONPATH=. python benchmarks/node_faults.py --tries 10 --seed 0
    PYTHONPATH=. python benchmarks/node_faults.py --tries 2 --steps pre-train --agents torchrun
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "0"}
os.environ |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_ELASTIC_WORKER_IDENTICAL": "1"}  # as in the docs

import numpy as np
from measuring import facts, table
from torch.distributed import run as torchrun
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from workflow_steps import EPOCHS, STEPS, Process, Step, begin, make_world, quick_trainings, remove, restore, start

from nnunet_genesis import distributed
from nnunet_genesis.interruption import unwatch
from tests.conftest import threads_for_processes

RESTARTS = 3
PATIENCE = 120
"""Seconds after which agents that have not ended are killed: a lost machine is noticed after 15."""
GRACE = 10
"""Seconds for the second agent once the first has ended well."""


def train(*arguments: str) -> None:
    """The process of a machine."""
    unwatch()  # a fork has the agent's handler of SIGTERM, which a process that waits for others never calls
    sys.argv = ["nnunet_genesis.distributed", *arguments]
    with quick_trainings() as patch:
        threads_for_processes(patch)
        distributed.main()


def forking_agent(number: int, port: int, words: Sequence[str]) -> int:
    """What torchrun is on a machine, but that its process is forked."""
    config = LaunchConfig(2, 2, 1, run_id="1", rdzv_endpoint=f"localhost:{port}", rdzv_backend="c10d",
                          rdzv_configs={"is_host": number == 0}, max_restarts=RESTARTS, start_method="fork",
                          monitor_interval=0.1)  # fmt: skip
    elastic_launch(config, train)(*words[1:])
    return 0


def torchrun_agent(number: int, port: int, words: Sequence[str]) -> int:
    """Torchrun, with a process that imports everything anew."""
    torchrun.main(["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint",
                   f"localhost:{port}", "--rdzv-id", "1", "--rdzv-conf", f"is_host={int(number == 0)}",
                   "--max-restarts", str(RESTARTS), "-m", "nnunet_genesis.distributed", *words[1:]])  # fmt: skip
    return 0


def numbered_agent(number: int, port: int, words: Sequence[str]) -> int:
    """As `forking_agent`, but that each machine is told its number (`--node-rank`); restarts are refused then."""
    config = LaunchConfig(2, 2, 1, run_id="1", rdzv_endpoint=f"localhost:{port}", rdzv_backend="static",
                          rdzv_configs={"rank": number}, max_restarts=0, start_method="fork",
                          monitor_interval=0.1)  # fmt: skip
    elastic_launch(config, train)(*words[1:])
    return 0


AGENTS = {"forking": forking_agent, "torchrun": torchrun_agent, "numbered": numbered_agent}


class Pair:
    """Two machines that train together."""

    def __init__(self, world: Path, step: Step, kind: Callable[..., int]) -> None:
        """Start both."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            self.port = int(probe.getsockname()[1])
        self.world, self.step, self.kind = world, step, kind
        self.others, self.strays = list[Process](), list[int]()
        self.agents = [self.launch(number) for number in (0, 1)]

    def launch(self, number: int) -> Process:
        """Start torchrun on one machine."""
        by = partial(self.kind, number, self.port)
        return start(self.world, self.step.command, by=by, name=f"_{number}")

    def ended(self) -> bool:
        """Whether both have."""
        return not [one for one in self.agents if not one.ended()]

    def codes(self, patience: float) -> list[int | None]:
        """Exit codes, once both have ended, one has ended well some time ago, or patience has; then all are killed."""
        deadline = time.monotonic() + patience
        while not self.ended() and time.monotonic() < deadline:
            if any(one.code == 0 for one in self.agents):
                deadline = min(deadline, time.monotonic() + GRACE)
            time.sleep(0.02)
        codes = [one.code for one in self.agents]
        for one in (*self.agents, *self.others):
            lose(one)
        signal_all(self.strays, signal.SIGKILL)
        return codes

    def said(self) -> str:
        """The ends of what both have printed."""
        return " | ".join(one.log.read_text(errors="replace")[-400:] for one in self.agents)


def below(number: int) -> list[int]:
    """A process' children, and theirs."""
    try:
        children = [int(child) for path in Path(f"/proc/{number}/task").iterdir()
                    for child in (path / "children").read_text().split()]  # fmt: skip
    except OSError:  # it has ended
        return []
    return [one for child in children for one in (child, *below(child))]


def lose(one: Process) -> None:
    """Kill an agent and all of its processes."""
    children = below(one.number) if one.code is None else []
    one.kill()
    signal_all(children, signal.SIGKILL)


def signal_all(numbers: Sequence[int], what: signal.Signals) -> None:
    """Send a signal to those processes that have not ended."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, what)


# faults


def process_killed(pair: Pair, rng: np.random.Generator) -> None:
    """Of one of both machines."""
    signal_all(below(pair.agents[rng.integers(2)].number)[:1], signal.SIGKILL)


def second_killed(pair: Pair, rng: np.random.Generator) -> None:
    """And back after a second."""
    lose(pair.agents[1])
    time.sleep(1)
    pair.agents[1] = pair.launch(1)


def second_silent(pair: Pair, rng: np.random.Generator) -> None:
    """Another machine takes its place."""
    silent = pair.agents[1]
    signal_all([silent.number, *below(silent.number)], signal.SIGSTOP)
    pair.others.append(silent)
    pair.agents[1] = pair.launch(1)


def agent_killed(pair: Pair, rng: np.random.Generator) -> None:
    """The second one, alone; the same command is given again, while its process may live on."""
    left = pair.agents[1]
    pair.strays += below(left.number)
    os.kill(left.number, signal.SIGKILL)
    pair.others.append(left)
    pair.agents[1] = pair.launch(1)


def first_killed(pair: Pair, rng: np.random.Generator) -> None:
    """The other is alone."""
    lose(pair.agents[0])


FAULTS = {
    "a process killed": process_killed, "second machine lost, started again": second_killed,
    "second machine silent, another started": second_silent, "second agent killed, started again": agent_killed,
    "first machine lost": first_killed,
}  # fmt: skip


class Tally:
    """What became of the tries of one training under one kind of fault."""

    def __init__(self, name: str, step: Step) -> None:
        """No try yet."""
        self.name, self.step, self.lost, self.both, self.wrong = name, step, 0, 0, list[str]()
        self.moments: Counter[int] = Counter()

    def row(self) -> tuple[Any, ...]:
        """Cells of the table."""
        moments = ", ".join(f"{epochs}: {count}" for epochs, count in sorted(self.moments.items()))
        return self.name, self.step.name, self.moments.total(), moments, self.both, self.lost, len(self.wrong)

    def attempt(self, world: Path, kind: Callable[..., int], spent: float, rng: np.random.Generator) -> None:
        """Train from nothing into a fault, at any time or once some epochs are done by turns, and to the end.

        Args:
            world: Where.
            kind: Of agent.
            spent: Seconds without a fault.
            rng: Chooses the moment, and which process is killed.
        """
        step = self.step
        remove(world, step)
        late = self.moments.total() % 2
        wanted, delay = (int(rng.integers(1, EPOCHS)), 0.0) if late else (0, rng.uniform(0, spent))
        pair, moment = Pair(world, step, kind), time.monotonic() + delay
        while not pair.ended() and (time.monotonic() < moment or epochs_done(world, step) < wanted):
            time.sleep(0.01)
        time.sleep(late * rng.uniform(0, spent / 20))  # about an epoch
        if pair.ended():  # before the fault
            self.moments[-1] += 1
            return
        FAULTS[self.name](pair, rng)
        finished, wrong = step.look(world, step)
        before = logs(world, step)
        codes = pair.codes(PATIENCE)
        if codes != [0, 0]:
            self.both += 1
            print(f"ended with {codes}: {pair.said()}")
            wrong += step.look(world, step)[1]
            pair = Pair(world, step, kind)
            codes = pair.codes(PATIENCE)
        if codes != [0, 0]:
            wrong.append(f"both started again ended with {codes}: {pair.said()}")
        after = [one.read_text(errors="replace") for one in logs(world, step) if one not in before]
        kept = [int(epoch) for text in after for epoch in re.findall(r"Going on after \d+ steps of epoch (\d+)", text)]
        self.lost = max(self.lost, finished - min(kept, default=0 if after else finished))
        self.moments[finished] += 1
        self.wrong += wrong + step.compare(world, step) + step.look(world, step)[1]


def epochs_done(world: Path, step: Step) -> int:
    """Epochs of one start, by its log."""
    return max((one.read_text(errors="replace").count("Epoch time") for one in logs(world, step)), default=0)


def logs(world: Path, step: Step) -> list[Path]:
    """One of each start of a training."""
    return [path for path in step.files(world) if path.name.startswith("training_log")]


def whole(world: Path, step: Step, kind: Callable[..., int]) -> None:
    """Train without a fault.

    Raises:
        RuntimeError: It failed.
    """
    pair = Pair(world, step, kind)
    if (codes := pair.codes(10 * PATIENCE)) != [0, 0]:
        raise RuntimeError(f"{step.name} without a fault ended with {codes}: {pair.said()}")


def main() -> None:
    """Run all faults and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trainings = [step.name for step in STEPS if step.trains]
    parser.add_argument("--tries", type=int, default=10, help="of each fault in each training (%(default)s)")
    parser.add_argument("--steps", nargs="+", choices=trainings, default=trainings, help="trainings (all)")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS), help="(all)")
    parser.add_argument("--agents", choices=list(AGENTS), default="forking", help="torchrun: the command (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", type=Path, help="report to write")
    chosen = parser.parse_args()
    rng, began, tallies = np.random.default_rng(chosen.seed), time.monotonic(), list[Tally]()
    kind = AGENTS[chosen.agents]
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        world.mkdir()
        make_world(world)
        last = max(number for number, step in enumerate(STEPS) if step.name in chosen.steps)
        for step in STEPS[: last + 1]:
            if step.name not in chosen.steps:
                begin(world, step)
                continue
            spent = begin(world, step, lambda: whole(world, step, kind))  # noqa: B023
            for name in chosen.faults:
                tallies.append(Tally(name, step))
                for _ in range(chosen.tries):
                    tallies[-1].attempt(world, kind, spent, rng)
                    print(*tallies[-1].row(), *tallies[-1].wrong[:3], f"{spent:.1f} s", flush=True)
            restore(world, step)
    header = (
        "fault",
        "training",
        "tries",
        "finished epochs: tries",
        "both started again",
        "epochs lost at most",
        "wrong",
    )
    wrong = [f"- {one.name}, {one.step.name}: {text}" for one in tallies for text in one.wrong]
    minutes = f"{date.today()}, {(time.monotonic() - began) / 60:.0f} minutes. {facts(None)}."
    report = "\n".join([table(header, [one.row() for one in tallies]), "", minutes, *wrong]) + "\n"
    print(report)
    if chosen.o:
        chosen.o.write_text(report)


if __name__ == "__main__":
    main()
