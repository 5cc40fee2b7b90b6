"""Shards of an import, at the same time and killed: the dataset of one run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import strategies as st

from nnunet_genesis.errors import GenesisError
from nnunet_genesis.importing import into_dataset
from nnunet_genesis.shards import EVERYTHING, LOCKS, claimed, one_at_a_time, share_of
from tests.conftest import run_genesis
from tests.importing.conftest import images, make, run, saved_report, voxels


@pytest.fixture
def scans(source: Path) -> Path:
    """Nine scans, five of which would have the same name, and one that cannot be used."""
    for number in range(5):
        make(source / f"patient{number}" / "scan.nii.gz", voxels(number, (20, 30, 40)))
    for name in ("a.nrrd", "b.mha", "c.nii.gz"):
        make(source / name, voxels(9))
    (source / "bad.nii.gz").write_text("hello")
    return source


@given(st.lists(st.integers()), st.integers(1, 9))
def test_shards_hold_each_case_once_and_in_order(items, count):
    shares = [list(share_of(items, (number, count))) for number in range(1, count + 1)]
    assert [share[place] for place in range(len(items)) for share in shares if place < len(share)] == items
    assert share_of(items, EVERYTHING) == items


def test_claims_end_and_a_record_is_for_one_at_a_time(tmp_path):
    for _ in range(2):
        with claimed(tmp_path, (2, 4)), one_at_a_time(tmp_path), pytest.raises(Timeout):
            FileLock(tmp_path / "record.lock", timeout=0).acquire()
    assert (tmp_path / "2_of_4.lock").exists()
    (tmp_path / "1_of_3.lock.old").touch()
    (tmp_path / "x_of_3.lock").mkdir()  # none of ours
    with claimed(tmp_path, (1, 4)):
        pass


def content(raw: Path) -> dict[str, bytes]:
    folder = raw / "Dataset501_Chest"
    files = (path for path in folder.rglob("*") if path.is_file() and LOCKS not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def one_run(scans: Path, tmp_path: Path) -> dict[str, bytes]:
    run(tmp_path / "at_once", scans)
    return content(tmp_path / "at_once")


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 2, 3)])
def test_shards_in_any_order_make_the_dataset_of_one_run(scans, raw, tmp_path, order):
    reports = [run(raw, scans, shard=(number, 3)) for number in order]
    assert not (raw / "Dataset501_Chest" / "dataset.json").exists()  # nobody plans with a part
    assert set(images(raw)) <= {name.removeprefix("imagesTr/") for name in one_run(scans, tmp_path)}
    done, missing = sum(report.imported for report in reports), 8 if order != (2, 2, 3) else 5
    assert (done, reports[order.index(2) + 1].imported if order == (2, 2, 3) else 0) == (missing, 0)
    report = run(raw, scans)
    assert (report.imported, report.already_there, len(report.rejected)) == (8 - missing, missing, 1)
    assert content(raw) == one_run(scans, tmp_path)


def test_shards_at_the_same_time_make_the_dataset_of_one_run(scans, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(into_dataset.Journal, "save_now_and_then", into_dataset.Journal.save)  # many writings at once
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda number: run(raw, scans, shard=(number, 4)), range(1, 5)))
    assert sum(report.imported for report in reports) == 8
    assert sorted(path for report in reports for path in report.rejected) == [str(scans / "bad.nii.gz")]
    assert (len(saved_report(raw)["sources"]), saved_report(raw)["imported"]) == (9, 8)
    assert run(raw, scans).imported == 0
    assert content(raw) == one_run(scans, tmp_path)


def test_processes_one_of_them_killed_make_the_dataset_of_one_run(scans, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(raw))
    raw.mkdir()
    for number in range(40):
        make(scans / f"more{number:02d}" / "scan.nii.gz", voxels(number, (30, 60, 60)))
    words = ["import", "-d", "501", "-n", "Chest", "--channels", "CT", "-np", "1", str(scans)]
    command = [sys.executable, "-m", "nnunet_genesis.cli", *words, "--shard", "1/2"]
    victim, folder = subprocess.Popen(command, stdout=subprocess.DEVNULL), raw / "Dataset501_Chest" / "imagesTr"
    while victim.poll() is None and not (folder.is_dir() and any(folder.iterdir())):
        time.sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_genesis, *words, "--shard", "2/2")
        victim.send_signal(signal.SIGKILL)
        assert (victim.wait(), other.result()) == (-signal.SIGKILL, 0)
    printed = capsys.readouterr().out
    assert "24 cases imported" in printed
    assert "When all 2 shards have run, run the same command without --shard: it imports what is missing" in printed
    assert 24 <= len(images(raw)) < 48
    assert run_genesis(*words, "--shard", "1/2") == 2
    assert run_genesis(*words) == 2
    assert content(raw) == one_run(scans, tmp_path)
    assert not list(folder.parent.glob(".incomplete*"))


def test_names_stay_when_scans_are_added_between_shards(scans, raw):
    run(raw, scans, shard=(2, 2))
    names = {source: record["case"] for source, record in saved_report(raw)["sources"].items()}
    make(scans / "patient-1" / "scan.nii.gz", voxels(20))  # before the others
    run(raw, scans, shard=(1, 2))
    run(raw, scans)
    after = {source: record["case"] for source, record in saved_report(raw)["sources"].items()}
    assert {source: after[source] for source in names} == names
    assert len(images(raw)) == len(set(filter(None, after.values()))) - 1 == 9


@pytest.mark.parametrize(("first", "second"), [((1, 2), (1, 2)), ((1, 2), (1, 1)), ((1, 1), (2, 2)), ((1, 2), (3, 4))])
def test_runs_with_cases_in_common_are_refused_while_one_is_at_work(scans, raw, monkeypatch, first, second):
    monkeypatch.setattr("nnunet_genesis.shards.MOMENT", 0.1)
    locks = raw / "Dataset501_Chest" / LOCKS / "import"
    with claimed(locks, first), pytest.raises(GenesisError, match="Another run is at work.*Wait for it"):
        run(raw, scans, shard=second)
    assert images(raw) == []
    assert run(raw, scans, shard=second).imported  # the claim ends with the run


def test_a_killed_shard_clears_up_its_own_cases_only(scans, raw):
    run(raw, scans, shard=(1, 2))
    folder, case = raw / "Dataset501_Chest", saved_report(raw)["sources"][str(scans / "c.nii.gz")]["case"]
    left = {folder / f".incomplete_{name}_0000.nii.gz" for name in (case, "patient1_scan", "patient0_scan")}
    for path in left:
        path.symlink_to(scans / "b.mha")
    before = (scans / "b.mha").read_bytes()
    run(raw, scans, shard=(2, 2))
    assert (scans / "b.mha").read_bytes() == before
    mine = {path for path in left if path.is_symlink()}
    assert 0 < len(mine) < 3
    run(raw, scans)
    assert not list(folder.glob(".incomplete*"))


def test_a_folder_without_access_is_said_in_one_line(scans, raw):
    (raw / "Dataset501_Chest").mkdir(parents=True)
    (raw / "Dataset501_Chest" / LOCKS).write_text("")  # no folder can be made there
    with pytest.raises(GenesisError, match="cannot be locked"):
        run(raw, scans, shard=(1, 7))
