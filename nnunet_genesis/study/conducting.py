"""The unfinished runs of a study → finished ones, several at a time, on machines that share its folder."""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from nnunet_genesis.errors import StudyError, reason
from nnunet_genesis.parallel import each_case, variable
from nnunet_genesis.preflight import refuse_missing_gpu
from nnunet_genesis.shards import EVERYTHING, Shard, share_of
from nnunet_genesis.study.design import Run, Study, read_study
from nnunet_genesis.study.evaluation import surface_metrics

LOCKS = "locks"
WAIT = 10.0
"""Seconds after which runs that another process had are looked at once more: it may have been killed."""


@dataclass(frozen=True)
class Job:
    """One run to finish: small enough to send to a worker."""

    study: Study
    run: Run
    folder: Path
    device: str
    keep_models: bool


@dataclass
class Outcome:
    """What became of the runs: number finished in all, names of those that others work on, failures with reason."""

    finished: int = 0
    elsewhere: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_study(
    folder: Path,
    *,
    jobs: int = 1,
    shard: Shard = EVERYTHING,
    device: str = "cuda",
    keep_models: bool = False,
    progress: bool = True,
) -> Outcome:
    """Train, predict and evaluate every run that has no results yet.

    May be killed at any moment and started again, and may run on several machines at a time: a run belongs to the
    process that holds its lock, which the system takes away from a process that ends.

    Args:
        folder: The study.
        jobs: Runs at a time.
        shard: (i, n): only every n-th run, from the i-th on; counted from 1.
        device: "cuda", "cpu" (one thread for each run, so that results do not depend on `jobs`) or "mps".
        keep_models: Whether the networks are kept.
        progress: Whether a progress bar is shown.

    Raises:
        StudyError: There is no study, MONAI is missing, or a worker was killed.
        DatasetError: There is no GPU.
    """  # fmt: skip
    import torch

    study = read_study(folder)
    refuse_missing_gpu(torch.device(device))
    surface_metrics()
    mine = list(share_of(study.runs(), shard))
    (folder / LOCKS).mkdir(exist_ok=True)
    outcome = Outcome()
    with _results_in(folder.resolve() / "trainings"), tqdm(
        total=len(mine), initial=len(mine) - len(unfinished(mine, folder)), unit="run", desc=folder.name,
        disable=not progress,
    ) as bar:  # fmt: skip
        for attempt in range(2):
            if attempt and outcome.elsewhere:
                time.sleep(WAIT)
            waiting = [run for run in unfinished(mine, folder) if run.name not in outcome.failed]
            outcome.elsewhere = _work(
                [Job(study, run, folder, device, keep_models) for run in waiting], jobs, outcome, bar
            )
            if not outcome.elsewhere:
                break
    outcome.finished = len(mine) - len(unfinished(mine, folder))
    return outcome


def _work(work: list[Job], jobs: int, outcome: Outcome, bar: tqdm) -> list[str]:
    """Finish runs; names of those that another process had."""
    elsewhere = []
    for job, result in each_case(finish_alone, work, jobs, apart=True):
        if isinstance(result, Exception):
            outcome.failed[job.run.name] = reason(result, 400)
        elif result:
            bar.update()
        else:
            elsewhere.append(job.run.name)
    return elsewhere


def finish_alone(job: Job) -> bool:
    """Finish a run unless another process is at it; whether it is finished."""
    try:
        with FileLock(job.folder / LOCKS / f"{job.run.name}.lock", timeout=0):
            if unfinished([job.run], job.folder):
                from nnunet_genesis.study.training import finish  # nnU-Net reads its folders when it is imported

                finish(job.study, job.run, job.folder, job.device, job.keep_models)
            return True
    except Timeout:
        return False


def unfinished(runs: list[Run], folder: Path) -> list[Run]:
    """The runs that have no results yet."""
    return [run for run in runs if not (folder / "results" / f"{run.name}.json").is_file()]


def _results_in(folder: Path) -> AbstractContextManager[None]:
    """Workers that start in this block train into `folder`."""
    return variable("nnUNet_results", str(folder))


def measured(study: Study, folder: Path, device: str) -> tuple[float, float]:
    """Seconds of a training step and of a predicted test case.

    Raises:
        StudyError: It could not be trained; says why.
    """
    with tempfile.TemporaryDirectory() as place, _results_in(Path(place)):
        ((_, result),) = each_case(_measure, [Job(study, study.runs()[0], folder, device, False)], 1, apart=True)
    if isinstance(result, Exception):
        raise StudyError(f"The first steps of the study failed: {reason(result, 400)}")
    return result


def _measure(job: Job) -> tuple[float, float]:
    from nnunet_genesis.study.training import measure

    return measure(job.study, job.folder, job.device)
