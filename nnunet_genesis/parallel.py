"""One function over many cases in several processes; memory stays bounded and one bad case stops nothing."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from nnunet_genesis.errors import GenesisError

Job = TypeVar("Job")
Result = TypeVar("Result")


def each_case(
    function: Callable[[Job], Result], jobs: Iterable[Job], processes: int, apart: bool = False
) -> Iterator[tuple[Job, Result | Exception]]:
    """Yield `(job, result)` as jobs finish; a job that raises yields its exception in place of a result.

    At most `2 * processes` jobs are under way or waiting, so that memory does not grow with their number.

    Args:
        function: Importable function of one job (worker processes are spawned).
        jobs: Picklable descriptions of the work, not the data itself.
        processes: Number of worker processes; 1 runs in this process, unless `apart`.
        apart: Whether a single worker, too, is a process of its own.

    Raises:
        GenesisError: A worker process was killed, for example by the system when memory ran out.
    """
    if processes <= 1 and not apart:
        for job in jobs:
            yield job, _attempt(function, job)
        return
    waiting = iter(jobs)
    running: dict[Future[Result | Exception], Job] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, processes), mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            while True:
                for next_job in itertools.islice(waiting, 2 * processes - len(running)):
                    running[pool.submit(_attempt, function, next_job)] = next_job
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        except BrokenProcessPool:
            raise GenesisError(
                "A worker process was killed, most likely because memory ran out. "
                "Run the same command again with a smaller -np; finished cases are kept."
            ) from None


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, also if that was killed.

    Otherwise it would go on writing the files that the next run writes.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(function: Callable[[Job], Result], job: Job) -> Result | Exception:
    try:
        return function(job)
    except Exception as error:
        return error


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for this process, and for those that start in this block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
