"""Damaged and malicious copies of every kind of file that is read → a table of what the commands made of them.

Every case is one mutated file and one command (`tests/hostile`), and keeps these rules or is printed: exit code 0, 1 or
2; no traceback and one line of error; nothing written outside the command's own folder, nothing run that a file names;
at most 10 seconds of processor time and 1.5 GiB of memory for files below 1 MB (DICOM: 6 GiB, since GDCM reserves
what a field of length says, at most 4 GiB).

    PYTHONPATH=. python benchmarks/hostile_files.py --cases 1500 --seed 0
    PYTHONPATH=. python benchmarks/hostile_files.py --seed 0 --only 248    # one case again
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import resource
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measuring import facts, table

from tests.hostile.cases import KINDS, LARGEST, Outcome, peak_memory, run_case
from tests.hostile.originals import make_world

RESULTS = Path(__file__).parent / "results" / "hostile-files.md"
CEILING = 12 * 2**30
"""Bytes of address space of a worker; what a file wants beyond it fails."""
PATIENCE = 120
"""Seconds until a worker that says nothing is ended, and its case counted as hanging."""
OUTCOMES = {0: "done", 1: "refused", 2: "left out", None: "broken"}


def work(numbers: list[int], world: Path, workshop: Path, seed: int, answers: Any) -> None:
    """Run cases one after another in this process, and send what became of each."""
    resource.setrlimit(resource.RLIMIT_AS, (CEILING, CEILING))
    multiprocessing.set_start_method("fork", force=True)  # nnU-Net lists files with a pool of twelve processes
    peak_memory()
    for number in numbers:
        answers.send(run_case(world, workshop / str(number), seed, number))
        if peak_memory() > LARGEST:  # kept by a library: the next cases would be blamed
            answers.send("large")
            return
    answers.send(None)


def run(cases: list[int], world: Path, workshop: Path, seed: int, workers: int) -> list[Outcome]:
    """Share the cases among workers that live until their last case, or until one of theirs kills them."""
    spawn = multiprocessing.get_context("spawn")
    waiting, outcomes = [cases[first::workers] for first in range(workers)], []
    running: dict[Any, tuple[Any, list[int]]] = {}
    while waiting or running:
        while waiting:
            numbers = waiting.pop()
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=work, args=(numbers, world, workshop, seed, theirs))
            process.start()
            theirs.close()
            running[ours] = process, numbers
        ready = multiprocessing.connection.wait(list(running), timeout=PATIENCE)
        for pipe in ready or list(running):
            process, numbers = running[pipe]
            answer = received(pipe) if ready else "hanging"
            if isinstance(answer, Outcome):
                numbers.pop(0)
            else:
                running.pop(pipe)
                process.kill()
                answer = lost(numbers.pop(0), answer) if answer in ("killed", "hanging") else None
                waiting += [numbers] if numbers else []
            if answer:
                outcomes.append(answer)
            if answer and answer.broken:
                print(
                    f"{answer.number} {answer.kind}, {answer.mutation}, {answer.command}: {answer.broken}", flush=True
                )
    return sorted(outcomes, key=lambda outcome: outcome.number)


def received(pipe: Any) -> Any:
    """What a worker sends: an outcome, None at its end or "large" at an early one; "killed" if it is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return "killed"


def lost(number: int, how: str) -> Outcome:
    """A case that took its worker with it."""
    kind, _, commands = KINDS[number % len(KINDS)]
    return Outcome(number, kind, "?", commands[0][0], None, (how,), "", 0.0)


def tally(outcomes: list[Outcome]) -> str:
    """Cases of each kind and command, by outcome."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for outcome in outcomes:
        counter = rows.setdefault((outcome.kind, outcome.command), Counter())
        counter["broken" if outcome.broken else OUTCOMES[outcome.code]] += 1
    order = [kind for kind, _, _ in KINDS]
    lines = [
        [kind, command, *(counts[name] for name in OUTCOMES.values()), counts.total()]
        for (kind, command), counts in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), row[0][1]))
    ]
    sums = [sum(line[column] for line in lines) for column in range(2, 7)]  # type: ignore[misc]
    return table(["file", "command", *OUTCOMES.values(), "cases"], [*lines, ["**all**", "", *sums]])


def report(outcomes: list[Outcome], seed: int) -> str:
    """The results as a page."""
    broken = [outcome for outcome in outcomes if outcome.broken]
    shown = [[o.number, o.kind, o.mutation, o.command, "; ".join(o.broken)[:200].replace("|", "/")] for o in broken]
    listed = table(["number", "file", "mutation", "command", "rule broken"], shown) if broken else "None."
    longest = max(outcome.seconds for outcome in outcomes)
    return f"""# What damaged and malicious files do

{(__doc__ or "").split(chr(10), 2)[2].strip().split("    PYTHONPATH")[0].strip()}

Mutations: flipped bits, cut ends, inserted, doubled and zeroed blocks; JSON with other types, numbers without bounds,
deep nesting, names of code, paths that lead elsewhere, missing and doubled keys; checkpoints with tensors of other
types and shapes, NaN, tensors without bounds in a few bytes, missing, renamed and further ones; pickles with opcodes
that call code.

```bash
PYTHONPATH=. python benchmarks/hostile_files.py --cases {len(outcomes)} --seed {seed}
```

*done*: the file was still one to work with; *refused*: one line, exit code 1; *left out*: the scan alone, exit code 2;
*broken*: a rule was not kept. The longest case took {longest:.1f} s of processor time.

{tally(outcomes)}

Broken rules:

{listed}

{date.today().isoformat()}; {facts(None)}
"""


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these cases alone; nothing is written")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="page to write (%(default)s)")
    chosen = parser.parse_args()
    cases = chosen.only or list(range(chosen.cases))
    with tempfile.TemporaryDirectory() as base:
        workshop = Path(base, "cases")
        workshop.mkdir()
        outcomes = run(cases, make_world(Path(base, "world")), workshop, chosen.seed, min(chosen.workers, len(cases)))
    page = report(outcomes, chosen.seed)
    print(page)
    if not chosen.only:
        chosen.results.write_text(page)


if __name__ == "__main__":
    main()
