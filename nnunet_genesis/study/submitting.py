"""The unfinished runs of a study → jobs of a cluster, each of which works on a share of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import StudyError, reason
from nnunet_genesis.study.conducting import run_study
from nnunet_genesis.study.design import read_study

FOLDER = "cluster"
"""Folder of a study that submitit writes scripts and logs of jobs to."""


@dataclass(frozen=True)
class Shard:
    """What one job does; submitit keeps it in a file, and asks it for `checkpoint` when the time of the job is up."""

    folder: Path
    number: int
    count: int
    device: str
    jobs: int
    keep_models: bool

    def __call__(self) -> int:
        """Finish the shard; the number of its finished runs.

        Raises:
            StudyError: Runs failed; the others are kept.
        """
        outcome = run_study(
            self.folder, jobs=self.jobs, shard=(self.number, self.count), device=self.device,
            keep_models=self.keep_models, progress=False,
        )  # fmt: skip
        if outcome.failed:
            name, why = next(iter(outcome.failed.items()))
            raise StudyError(f"{len(outcome.failed)} runs failed; {name}: {why}")
        return outcome.finished

    def checkpoint(self) -> Any:
        """The same once more: finished runs are kept, and a training goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    folder: Path, cluster: str, tasks: int, parameters: Mapping[str, Any], *, device: str, jobs: int, keep_models: bool
) -> list[Any]:
    """Hand `tasks` jobs to a cluster; the jobs of submitit, which have an id and can be waited for.

    Args:
        folder: The study, on a file system that all nodes share.
        cluster: "slurm", or "local" for processes of this machine.
        tasks: Number of jobs; each works on every `tasks`-th run.
        parameters: submitit's, e.g. `{"slurm_partition": "gpu", "timeout_min": 600}`.
        device: As in `run_study`.
        jobs: As in `run_study`: runs at a time in each job.
        keep_models: As in `run_study`.

    Raises:
        StudyError: There is no study, submitit is missing, does not find the cluster, or knows no such parameter.
    """  # fmt: skip
    try:
        import submitit
    except ImportError:
        raise StudyError(
            'Jobs of a cluster need submitit. Install it: pip install "nnunet-genesis[slurm]", or start study run '
            "on each machine yourself."
        ) from None
    read_study(folder)
    folder = folder.resolve()
    try:
        executor = submitit.AutoExecutor(folder=folder / FOLDER, cluster=cluster)
        executor.update_parameters(name=f"study_{folder.name}", **parameters)
        with executor.batch():
            shards = [Shard(folder, number + 1, tasks, device, jobs, keep_models) for number in range(tasks)]
            return [executor.submit(shard) for shard in shards]
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError, OSError) as error:
        raise StudyError(
            f"The jobs could not be submitted to {cluster} ({reason(error, 300)}). Correct --cluster-option, or start "
            "study run with --shard on each machine yourself."
        ) from None
