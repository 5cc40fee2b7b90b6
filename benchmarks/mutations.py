"""Modules and their own tests → share of small faults, a seeded sample of them, that these tests notice.

Each fault is written into a copy of the repository and tested in a process that has the heavy imports behind it, by
those tests that reach its line, the quickest first. Runs that take their time to be killed (`kill_and_go_on`) are left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from small_faults import faults

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = {
    "importing/find.py": ("importing/test_find.py", "importing"),
    "planning.py": ("test_planning.py", "test_planning_and_preprocessing.py"),
    "transfer/into_plans.py": ("trainers/test_into_plans.py", "trainers/test_transfer_command.py"),
    "pretraining/figures.py": ("pretraining/test_figures.py", "pretraining/test_preview.py"),
    "pretraining/preview.py": ("pretraining/test_preview_columns.py", "pretraining/test_preview.py"),
    "pretraining/patches.py": ("pretraining/test_crops.py", "pretraining/test_patches.py"),
    "preprocessing.py": ("test_preprocessing.py", "test_planning_and_preprocessing.py"),
    "finetuning.py": ("trainers/test_finetuning_rules.py", "trainers/test_finetuning.py"),
    "pretraining/trainer.py": ("trainers/test_pretraining_outputs.py", "trainers/test_pretraining.py"),
    "parallel.py": ("test_files_and_parallel.py",),
    "shards.py": ("importing/test_shards.py",),
    "checkpoints/case_files.py": ("leaks/test_case_record.py", "hub/test_publishing.py"),
    "volume_index.py": ("test_volume_index.py", "test_volume_index_rows.py"),
    "interruption.py": ("trainers/test_ranks.py", "trainers/test_distributed.py"),
    "distributed.py": ("trainers/test_ranks.py", "trainers/test_distributed.py"),
    "ranks.py": ("trainers/test_ranks.py", "trainers/test_distributed.py"),
    "pretraining/volumes.py": ("pretraining/test_several_datasets.py", "trainers/test_several_datasets.py",
                               "trainers/test_pretraining_outputs.py"),
    "export.py": ("test_export.py",),
    "checkpoints/reading.py": (*(f"checkpoints/test_{name}.py" for name in ("reading", "bounds", "foreign", "nnunet_v1",
                               "nnunet_v2", "models_genesis", "nnssl")), "hub/test_publishing.py"),
    "checkpoints/pickle_scan.py": tuple(f"checkpoints/test_{name}.py" for name in ("pickle_scan", "reading", "bounds",
                                        "nnunet_v1")),
    **dict.fromkeys(("transfer/layers.py", "transfer/matching.py"), tuple(f"transfer/test_{name}.py" for name in (
        "structure", "sources", "report", "axes", "heads", "original_sizes", "comparison", "channels"))),
    "transfer/kernels.py": ("transfer/test_kernels.py", "transfer/test_structure.py"),
    "folds.py": ("test_folds.py",),
    "files.py": ("test_files_and_parallel.py", "test_plans_checks.py", "test_volume_index.py"),
    "nnunet_dataset.py": ("test_nnunet_dataset.py", "test_planning.py", "test_plans_checks.py", "test_primus_plans.py",
                          "test_preprocessing.py", "transfer/test_channels.py", "trainers/test_into_plans.py",
                          "test_planning_several.py"),
    "settings.py": ("test_settings_base.py", "test_settings_ranges.py", "corruption/test_recipe.py", "test_folds.py",
                    "test_planning.py", "trainers/test_finetuning_rules.py", "trainers/test_layer_rates.py",
                    "pretraining/test_optimiser.py", "pretraining/test_several_datasets.py",
                    "corruption/test_documented.py"),
    **{f"corruption/{name}.py": (*(f"corruption/test_{test}.py" for test in tests), "test_settings_ranges.py")
       for name, tests in {
           "boxes": ("cutout", "shuffling", "pair"),
           "compiled": ("cutout", "shuffling", "intensity", "pair", "compiled"),
           "corruption": ("recipe", "pair", "masking", "documented"),
           **{name: (name, "pair", "recipe", "documented") for name in ("cutout", "intensity", "masking", "shuffling")},
           "pair": ("pair", "transforms", "documented", "compiled"), "recipe": ("recipe", "documented", "pair"),
           "transforms": ("transforms", "documented"), "value_range": ("value_range", "pair"),
       }.items()},
}  # fmt: skip
"""Module → its tests; those that do not exist are passed over."""

UNSEEN = ("parallel.py", "interruption.py", "distributed.py", "ranks.py", "corruption/compiled.py",
          "checkpoints/reading.py", "checkpoints/pickle_scan.py")  # fmt: skip
"""Modules that other processes or machine code run, where no line is noted: every test may reach every line."""

MAKES_READY = ("planning.py", "preprocessing.py")
"""Modules whose faults change the datasets that trainings start from; for others these are made once."""

LIMIT = 120
"""Seconds of processor time after which a fault counts as noticed: its tests hang. Often it is fewer."""


class Reached:
    """A plugin of pytest that notes which lines of a file each test reaches, and how long it takes."""

    def __init__(self, path: Path) -> None:
        """Watch the module at `path`."""
        self.path, self.here = str(path), set[int]()
        self.lines: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}
        self.shared: dict[str, set[int]] = defaultdict(set)

    def trace(self, frame: Any, event: str, _: Any) -> Any:
        """Note the lines of the file that is watched."""
        if frame.f_code.co_filename != self.path:
            return None
        self.here.add(frame.f_lineno)
        return self.trace

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """What a shared fixture reaches counts for every test that uses it."""
        before, self.here = self.here, set()
        result = yield
        if fixturedef.scope != "function":
            self.shared[fixturedef.argname] |= self.here
        self.here |= before
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        """Watch one test."""
        began, self.here = time.time(), set()
        sys.settrace(self.trace)
        threading.settrace(self.trace)
        result = yield
        sys.settrace(None)
        self.lines[item.nodeid] = self.here.union(*(self.shared[name] for name in item.fixturenames))
        self.seconds[item.nodeid] = time.time() - began
        return result


def in_a_process(work: Callable[[], int], seconds: int = 5 * LIMIT) -> int:
    """Exit code of some work in a process of its own; negative where it was killed, as it is after some seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silent, stream)
        resource.setrlimit(resource.RLIMIT_CPU, (min(seconds, LIMIT),) * 2)
        signal.alarm(seconds)
        os._exit(work())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has started, and left behind when it was killed
    return code


def run(folder: Path, tests: list[str], *plugins: Any) -> int:
    """Exit code of pytest in this process, which forgets what it has imported of the package."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("nnunet_genesis", "tests")]:
        del sys.modules[name]
    where = ("-p", "no:cacheprovider", f"--basetemp={folder.parent / 'tmp'}")
    return int(pytest.main(["-x", "-q", "-k", "not kill_and_go_on", *where, *tests], plugins=list(plugins)))


def who_reaches(
    folder: Path, path: Path, tests: list[str], unseen: bool
) -> Callable[[dict[str, Any]], dict[str, float]]:
    """A function from a fault to the tests that reach it, or to all where that is not known, and their seconds.

    The quickest test comes first.
    """
    note = folder.parent / "reached.json"

    def watched() -> int:
        plugin = Reached(path)
        code = run(folder, tests, plugin)
        note.write_text(json.dumps([{name: sorted(lines) for name, lines in plugin.lines.items()}, plugin.seconds]))
        return code

    if in_a_process(watched):
        raise SystemExit(f"The tests of {path.name} fail as they are: {' '.join(tests)}")
    lines, seconds = json.loads(note.read_text())
    order = sorted(lines, key=seconds.__getitem__)
    return lambda fault: {
        name: seconds[name]
        for name in order
        if unseen or not fault["inside"] or any(fault["lines"][0] <= at <= fault["lines"][1] for at in lines[name])
    }


def measure(module: str, count: int, seed: int, folder: Path, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Try a sample of a module's faults, or those that an earlier run with other tests did not notice."""
    path, began = folder / "nnunet_genesis" / module, time.time()
    source = path.read_text()
    tests = [f"tests/{name}" for name in TESTS[module] if (folder / "tests" / name).exists()]
    everything = faults(source)
    sample = random.Random(f"{seed}/{module}").sample(everything, min(count, len(everything)))
    tried = len(sample)
    if earlier:
        keys = [(one["lines"], one["before"], one["after"]) for one in earlier["survivors"]]
        sample = [one for one in everything if (list(one["lines"]), one["before"], one["after"]) in keys]
        tried = earlier["tried"]
    reaching, survivors = who_reaches(folder, path, tests, module in UNSEEN), []
    none = {"inside": False, "source": source}
    for number, fault in enumerate([none, *sample]):
        path.write_text(fault.pop("source"))
        os.utime(path, (began + number, began + number))  # bytecode is renewed when the second changes
        chosen = reaching(fault)
        limit = 30 + 3 * round(sum(chosen.values()))
        passed = not chosen or in_a_process(lambda names=list(chosen): run(folder, names), limit) == 0  # type: ignore[misc]
        if fault is none and not passed:
            raise SystemExit(f"The tests of {module} fail in another order, or take more than {limit} s, as they are.")
        if fault is not none and passed:
            survivors.append(fault)
            print(f"  survives, line {fault['lines'][0]}: {fault['before']}  ->  {fault['after']}", flush=True)
    path.write_text(source)
    os.utime(path, (began, began))
    killed = tried - len(survivors)
    print(f"| {module} | {len(everything)} | {tried} | {killed} | {killed / tried:.0%} | {time.time() - began:.0f} s |",
          flush=True)  # fmt: skip
    return {"module": module, "faults": len(everything), "tried": tried, "survivors": survivors}


def make_ready(folder: Path) -> None:
    """Make the datasets of the fixture `ready_once` once, and let the copy's tests use them."""
    kept, maker, shared = folder.parent / "ready", folder / "tests" / "test_ready.py", folder / "tests" / "conftest.py"
    if kept.exists():
        return
    maker.write_text(f"import shutil\ndef test_ready(ready_once): shutil.copytree(ready_once, {str(kept)!r})\n")
    if in_a_process(lambda: run(folder, [str(maker)])):
        raise SystemExit("The fixture ready_once fails.")
    maker.unlink()
    made = f'\n@pytest.fixture(scope="session")\ndef ready_once():\n    return Path({str(kept)!r})\n'
    shared.write_text(shared.read_text() + made)


def main() -> None:
    """Measure the modules named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="of nnunet_genesis/ (all that are known)")
    parser.add_argument("--count", type=int, default=20, help="faults per module (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--after", type=Path, help="results of the same code with other tests: try its survivors")
    arguments = parser.parse_args()
    results = []
    earlier = {one["module"]: one for one in json.loads(arguments.after.read_text())} if arguments.after else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv"))
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        others = [entry for entry in sys.path if REPOSITORY not in (Path(entry), Path(entry).parent)]
        sys.path[:] = [str(folder), str(folder / "benchmarks"), *others]
        run(folder, ["--collect-only", "-qq", *(f"tests/{name}" for name in ("trainers", "pretraining", "importing"))])
        for module in sorted(arguments.modules, key=lambda name: name in MAKES_READY, reverse=True):
            if any(name.startswith(("trainers", "pretraining")) for name in TESTS[module]):
                make_ready(folder)
            results.append(measure(module, arguments.count, arguments.seed, folder, earlier.get(module)))
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
