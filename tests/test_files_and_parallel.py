"""Files are complete or not there; one bad case stops nothing; memory does not grow with the number of cases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from nnunet_genesis.errors import DatasetError, GenesisError, one_line
from nnunet_genesis.files import LARGEST_JSON, read_json, sha256, write_json, written_atomically
from nnunet_genesis.parallel import each_case, variable


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json({"old": 1}, path)
    with pytest.raises(RuntimeError), written_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n    "old": 1\n}\n'
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_temporary_file_may_lie_elsewhere(tmp_path: Path):
    (tmp_path / "cases").mkdir()
    with written_atomically(tmp_path / "cases" / "a.txt", tmp_path) as temporary:
        temporary.write_text("x")
        assert not list((tmp_path / "cases").iterdir())
    assert (tmp_path / "cases" / "a.txt").read_text() == "x"


def test_json_errors_name_the_file_and_the_advice(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"The plans .*a\.json does not exist\. Plan first"):
        read_json(tmp_path / "a.json", "The plans", "Plan first")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DatasetError, match=r"a\.json is not valid JSON .* Plan first"):
        read_json(tmp_path / "a.json", "The plans", "Plan first")


def test_json_larger_than_memory_should_hold_is_refused_unread(tmp_path):
    with (tmp_path / "a.json").open("wb") as stream:
        stream.truncate(LARGEST_JSON + 1)
    with pytest.raises(DatasetError, match="has more than 128 MiB. Plan first"):
        read_json(tmp_path / "a.json", "The plans", "Plan first")


def test_sha256_of_known_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_one_line_ends_the_process_with_code_1(capsys):
    with pytest.raises(SystemExit) as ended, one_line():
        raise DatasetError("What is wrong.")
    assert ended.value.code == "nnunet_genesis: What is wrong."  # printed by Python, exit code 1


def halve(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 2, 0])
def test_a_case_that_fails_stops_nothing(processes):
    results = dict(each_case(halve, range(8), processes))
    assert {job: result for job, result in results.items() if not isinstance(result, Exception)} == {
        0: 0,
        2: 1,
        4: 2,
        6: 3,
    }
    assert str(results[5]) == "5 is odd"


def test_jobs_are_taken_as_workers_get_free():
    taken = []

    def jobs():
        for number in range(50):
            taken.append(number)
            yield number

    results = each_case(halve, jobs(), 2)
    for number, _ in zip(range(1, 9), results, strict=False):
        assert len(taken) <= number + 4
    results.close()


def where(_: int) -> int:
    return os.getpid()


def test_one_process_is_this_one_unless_it_is_to_be_apart():
    assert {process for _, process in each_case(where, range(3), 1)} == {os.getpid()}
    results = each_case(where, range(3), 1, apart=True)
    assert next(results)[1] != os.getpid()
    assert len(multiprocessing.active_children()) == 1
    results.close()


def appears(path: Path | None) -> bool:
    """Whether a file comes to be within 20 seconds."""
    end = time.monotonic() + 20
    while path and not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return path is None or path.exists()


def test_a_result_does_not_wait_for_other_jobs(tmp_path: Path):
    for job, result in each_case(appears, [tmp_path / "mark", None], 2):
        assert result is True
        if job is None:
            (tmp_path / "mark").touch()


def test_a_killed_worker_is_reported_in_words():
    with pytest.raises(GenesisError, match="A worker process was killed.*smaller -np"):
        list(each_case(die, range(3), 2))
    with pytest.raises(GenesisError, match="A worker process was killed"):
        list(each_case(die, range(1), 1, apart=True))


def hold(path: str) -> None:
    with FileLock(path):
        Path(f"{path}.held").touch()
        time.sleep(60)


def conduct(path: str) -> None:
    list(each_case(hold, [path], 2))


def test_workers_end_with_the_process_that_started_them(tmp_path: Path):
    """Also where it was killed: they would go on writing what the next run writes."""
    path = str(tmp_path / "lock")
    conductor = multiprocessing.get_context("fork").Process(target=conduct, args=(path,))
    conductor.start()
    while conductor.is_alive() and not Path(f"{path}.held").exists():
        time.sleep(0.02)
    with pytest.raises(Timeout):
        FileLock(path, timeout=0).acquire()
    conductor.kill()
    conductor.join()
    with FileLock(path, timeout=20):
        pass


@pytest.mark.parametrize("before", [None, "old"])
def test_a_variable_is_set_in_the_block_only(monkeypatch, before):
    monkeypatch.delenv("GENESIS_TEST", raising=False)
    if before is not None:
        monkeypatch.setenv("GENESIS_TEST", before)
    with pytest.raises(RuntimeError), variable("GENESIS_TEST", "new"):
        assert os.environ["GENESIS_TEST"] == "new"
        raise RuntimeError
    assert os.environ.get("GENESIS_TEST") == before
