"""Tiny studies, from the command line to results: paired, restartable, the same whatever interrupts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from nnunet_genesis.parallel import each_case
from nnunet_genesis.study import conducting
from nnunet_genesis.study.design import read_study
from nnunet_genesis.study.submitting import Shard, submit
from tests.conftest import run_genesis, run_stock, shrink_plans, use_folders, write_dataset

PLAN = ("-d", 4, "-c", "3d_fullres", "--labels", 1, 2, "--test", "case0", "case1", "--epochs", 3, "--iterations", 2,
        "--validation-iterations", 1, "--no-mirroring", "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A labeled dataset that is ready to train on, and a pre-trained checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("study"), patch)
        write_dataset(base, 4, "Target", 6)
        assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
        shrink_plans(base / "nnUNet_preprocessed" / "Dataset004_Target" / "nnUNetPlans.json")
        run_stock(patch, "nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", "3d_fullres", "-np", 1)
        yield base


@pytest.fixture(scope="module")
def finished(place):
    """A study of two arms, two label counts and two seeds that nothing has interrupted."""
    folder = place / "whole"
    assert run_genesis("study", "plan", folder, *PLAN, "--seeds", 2, "--arm", "scratch",
                       "--arm", "faster=scratch,learning_rate=0.03") == 0  # fmt: skip
    assert run_genesis("study", "run", folder, "--device", "cpu") == 0
    return folder


@pytest.fixture
def here(monkeypatch):
    """Runs are finished in this process: a worker imports everything anew."""
    monkeypatch.setattr(conducting, "each_case", lambda function, jobs, _, apart: each_case(function, jobs, 1))


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "results").iterdir()}


def without_study(folder: Path) -> dict[str, dict[str, Any]]:
    """Results but for the digest of the study: what a larger or smaller study has in common with this one."""
    return {name: json.loads(content) | {"study": ""} for name, content in results(folder).items()}


def test_every_run_has_results(finished):
    study = read_study(finished)
    assert set(results(finished)) == {f"{run.name}.json" for run in study.runs()}
    for run in study.runs():
        content = json.loads((finished / "results" / f"{run.name}.json").read_text())
        assert content["study"] == study.digest
        assert list(content["cases"]) == study.test
        assert set(content["cases"]["case0"]) == {"shell", "core"}
        assert content["curve"]["steps"] == [2, 4, 6]
        assert len(content["curve"]["dice"]) == len(content["curve"]["loss"]) == 3
        assert (finished / "predictions" / run.name / "case1.nii.gz").is_file()
        assert json.loads((finished / "times" / f"{run.name}.json").read_text())["seconds"] > 0
    assert not list((finished / "trainings").rglob("*.pth"))


@pytest.mark.usefixtures("here")
def test_equal_arms_have_equal_results(place, finished):
    """An arm is compared with another on the same cases, weights, patches and augmentation: its twin is its equal."""
    folder = place / "twins"
    assert run_genesis("study", "plan", folder, *PLAN, "--seeds", 1, "--labels", 2, "--arm", "scratch",
                       "--arm", "twin=scratch") == 0  # fmt: skip
    assert run_genesis("study", "run", folder, "--device", "cpu") == 0
    content = {path.stem: json.loads(path.read_text()) for path in (folder / "results").iterdir()}
    assert content["twin_n2_s0"] == content["scratch_n2_s0"] | {"run": "twin_n2_s0", "arm": "twin"}
    others = {name: json.loads(found)["curve"] for name, found in results(finished).items()}
    assert content["scratch_n2_s0"]["curve"] == others["scratch_n2_s0.json"]  # of another study, with other counts
    assert len({str(curve) for curve in others.values()}) == len(others)  # seeds, counts and settings all tell


def test_a_study_that_is_killed_ends_with_the_same_results(place, finished):
    """SIGKILL at five moments, among them the middle of a training, then to the end: the same bytes."""
    folder = place / "killed"
    shutil.copytree(finished / "arms", folder / "arms")
    shutil.copyfile(finished / "study.json", folder / "study.json")
    command = [sys.executable, "-m", "nnunet_genesis.cli", "study", "run", str(folder), "--device", "cpu", "--jobs"]
    rng = np.random.default_rng(0)
    for wanted, jobs in ((1, "2"), (2, "2"), (4, "1"), (5, "1"), (6, "1")):
        process = subprocess.Popen([*command, jobs], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while time.time() < deadline and process.poll() is None and _traces(folder) < wanted:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.5)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)  # workers end with the process that started them
    assert run_genesis("study", "run", folder, "--device", "cpu", "--jobs", 2) == 0
    assert results(folder) == results(finished)


def _traces(folder: Path) -> int:
    """How far a study is, roughly: checkpoints and results."""
    return len(list((folder / "trainings").rglob("*.pth"))) + len(list((folder / "results").glob("*.json")))


def test_finished_runs_are_not_done_again(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "results").iterdir()}
    assert run_genesis("study", "run", finished, "--device", "cpu") == 0
    assert "8 runs are finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "results").iterdir()}


@pytest.mark.usefixtures("here")
def test_a_run_that_another_process_works_on_is_left_to_it(place, finished, monkeypatch):
    monkeypatch.setattr(conducting, "WAIT", 0.0)
    study, folder = read_study(finished), place / "shared"
    shutil.copytree(finished, folder)
    run = study.runs()[0]
    (folder / "results" / f"{run.name}.json").unlink()
    with FileLock(folder / "locks" / f"{run.name}.lock"):
        outcome = conducting.run_study(folder, device="cpu", progress=False)
    assert (outcome.finished, outcome.elsewhere, outcome.failed) == (7, [run.name], {})


def test_a_shard_is_every_nth_run(place, finished, monkeypatch):
    folder = place / "sharded"
    shutil.copytree(finished, folder)
    asked = []
    monkeypatch.setattr(conducting, "_work", lambda jobs, *_: asked.extend(job.run.name for job in jobs) or [])
    names = [run.name for run in read_study(folder).runs()]
    shutil.rmtree(folder / "results")
    for i in (1, 2, 3):
        conducting.run_study(folder, shard=(i, 3), device="cpu", progress=False)
    assert asked == names[::3] + names[1::3] + names[2::3]


@pytest.mark.usefixtures("here")
def test_a_run_that_fails_is_told_and_the_others_go_on(place, finished, capsys):
    folder = place / "failing"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "results")
    (folder / "arms" / "faster.json").unlink()
    study = json.loads((folder / "study.json").read_text())
    study |= {"labels": [1], "seeds": [0], "labeled": {"0": study["labeled"]["0"]}}
    (folder / "study.json").write_text(json.dumps(study))
    assert run_genesis("study", "run", folder, "--device", "cpu") == 2
    assert "faster_n1_s0: The plans of an arm" in capsys.readouterr().err
    assert without_study(folder) == {"scratch_n1_s0.json": without_study(finished)["scratch_n1_s0.json"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--test", "case9"), "case9 is no preprocessed case"),
        (("--pool", "nobody"), "nobody is no preprocessed case"),
        (("--test", "1.5"), "a share between 0 and 1"),
        (("--labels", "5"), "5 labels need as many"),
        (("--arm", "scratch"), "Two arms have the same name"),
        (("--arm", "x=missing.pth"), "missing.pth"),
        (("--epochs", "1", "--warmup", "1"), '"warmup"'),
    ],
)
def test_what_cannot_be_planned_leaves_no_study(place, tmp_path, capsys, words, said):
    code = run_genesis("study", "plan", tmp_path / "new", *PLAN, "--seeds", 1, "--arm", "scratch", *words)
    assert code == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new" / "study.json").exists()


def test_a_study_is_not_planned_twice(place, finished, capsys):
    assert run_genesis("study", "plan", finished, *PLAN, "--arm", "scratch") == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cpu_must_be_asked_for(finished, capsys):
    assert run_genesis("study", "run", finished) == 1
    assert "-device cpu" in capsys.readouterr().err


def test_the_environment_is_as_before(finished):
    assert os.environ["nnUNet_results"] == str(finished.parent / "nnUNet_results")


def test_jobs_of_a_cluster_share_the_runs(place, finished):
    """With submitit's own executor of local processes; on slurm only who starts them is another."""
    folder = place / "submitted"
    assert run_genesis("study", "plan", folder, *PLAN, "--seeds", 2, "--labels", 1, "--arm", "scratch") == 0
    jobs = submit(folder, "local", 2, {"timeout_min": 5}, device="cpu", jobs=1, keep_models=False)
    assert [job.result() for job in jobs] == [1, 1]
    assert without_study(folder).items() <= without_study(finished).items()
    assert len(results(folder)) == 2


def test_a_job_whose_time_is_up_is_submitted_again_as_it_is(tmp_path):
    shard = Shard(tmp_path, 2, 3, "cpu", 4, True)
    again = shard.checkpoint()
    assert (again.function, again.args, again.kwargs) == (shard, (), {})


@pytest.mark.parametrize(
    ("cluster", "option", "wanted"), [("slurm", "timeout_min=5", "slurm"), ("local", "colour=red", "colour")]
)
def test_a_cluster_that_does_not_take_jobs_is_one_line(finished, capsys, cluster, option, wanted):
    if cluster == "slurm" and shutil.which("srun"):
        pytest.skip("this machine has a slurm cluster, which would take the jobs")
    assert run_genesis("study", "run", finished, "--submit", cluster, "--cluster-option", option) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "could not be submitted" in line
    assert wanted in line
    assert "--cluster-option" in line


@pytest.mark.parametrize("flags", [("--tasks", 0), ("--shard", "1/2")])
def test_tasks_share_the_runs_and_nothing_else_does(finished, capsys, flags):
    assert run_genesis("study", "run", finished, "--submit", "local", *flags) == 1
    assert "--tasks" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--tasks", 3), ("--cluster-option", "timeout_min=5")])
def test_what_only_a_cluster_takes_is_refused_without_one(tmp_path, capsys, flags):
    assert run_genesis("study", "run", tmp_path, *flags) == 1
    assert "are for --submit" in capsys.readouterr().err
