"""The benchmarks run with the smallest settings, and write what they say they write."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from scipy.ndimage import binary_dilation, gaussian_filter

from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.resources import plans_folder
from nnunet_genesis.volume_index import index_file, index_of
from tests.conftest import REPOSITORY, shrink_plans, threads_for_processes

STAND_IN = """
import random
import time

import numpy as np


def generate_single_pair(y, config):
    assert config.local_rate in (0.0, 1.0), "stratified"
    assert (config.flip_rate, config.nonlinear_rate, config.paint_rate, config.inpaint_rate) == (0.4, 0.9, 0.9, 0.2)
    assert y.shape == (1, 20, 22, 24) and y.dtype == np.float32, y.dtype
    time.sleep(0.4 if config.local_rate else 0.2)
    return y, y


def local_pixel_shuffling(x, prob=0.5):
    assert prob == 1.0
    return x.copy()


def nonlinear_transformation(x, prob=0.5):
    assert prob == 1.0
    return x.copy()


def image_in_painting(x):
    x[:] = random.random() + np.random.rand()
    return x


image_out_painting = image_in_painting
"""


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[dict, str]]:
    """`run` in this process, which has imported everything already."""

    def run_in_process(script: str, target: Path, *options: object) -> tuple[dict[str, Any], str]:
        for name in ("nnUNet_results", "nnUNet_extTrainer", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
            monkeypatch.setenv(name, os.environ.get(name, ""))  # benchmarks set them
        monkeypatch.setattr("sys.argv", [script, *map(str, options), "--json", str(target)])
        capsys.readouterr()
        benchmark_module(script.removesuffix(".py"), monkeypatch).main()
        return json.loads(target.read_text()), capsys.readouterr().out

    return run_in_process


def run(script: str, target: Path, *options: object) -> tuple[dict[str, Any], str]:
    """Run a benchmark; the results that it wrote to `target`, and what it printed."""
    command = [sys.executable, REPOSITORY / "benchmarks" / script, *options, "--json", target]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(target.read_text()), done.stdout


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from numbers(entry)
    elif isinstance(value, int | float):
        yield value


def test_corruptions(tmp_path: Path):
    (tmp_path / "clone" / "competition").mkdir(parents=True)
    (tmp_path / "clone" / "competition" / "utils.py").write_text(STAND_IN)
    results, printed = run(
        "corruptions.py", tmp_path / "results.json", "--patch", 20, 22, 24, "--samples", 2, "--rounds", 2, "--reference",
        tmp_path / "clone",
    )  # fmt: skip
    assert all(number > 0 and math.isfinite(number) for number in numbers(results))
    assert results["machine"].keys() == {"cpu", "cores", "device", "system", "versions"}
    names = ["shuffling", "intensity", "outer_cutout", "inner_cutout", "released"]
    assert [row["corruption"] for row in results["timings"]] == names
    for row in results["timings"]:
        moved = 2 * 4 * 20 * 22 * 24  # bytes: each voxel read and written
        fastest = moved / (1e9 * results["bandwidth_gb_per_s"])
        assert row["share_of_limit"] == pytest.approx(1000 * fastest / row["mean_ms"])
    # the stand-in sleeps 0.2 s or 0.4 s, equally often
    full = results["timings"][4]
    assert full["samples"] == 4
    assert full["original_ms"] >= 300
    rounds = results["ratio_to_reference_by_round"]["20x22x24"]
    assert len(rounds) == 2
    assert results["ratio_to_reference"] == {"20x22x24": pytest.approx(sum(rounds) / 2)}
    assert min(rounds) * 0.99 < full["original_ms"] / full["mean_ms"] < max(rounds) * 1.01
    assert all("ratio_to_original" in row for row in results["timings"])
    assert printed.count("| 20x22x24 |") == 5
    assert results["machine"]["cpu"] in printed


def test_core_time(tmp_path: Path):
    results, printed = run(
        "core_time.py", tmp_path / "results.json", "--patch", 20, 22, 24, "--volume", 22, 30, 26, "--rounds", 2
    )  # fmt: skip
    (ms,) = results["ms"].values()
    assert all(0 < number < math.inf for number in ms.values())
    rows = dict(line.strip("| ").split(" | ", 1) for line in printed.splitlines()[2 : 3 + len(ms) + 2])
    limit = ms["one read and one write: the limit"]
    for name, spent in ms.items():
        assert [float(cell) for cell in rows[name].split(" | ")] == pytest.approx([spent, spent / limit], rel=0.01)
    others = [name for name in ms if "`" in name and "masking" not in name] + [name for name in ms if "trainer" in name]
    whole = sum(ms.values()) - limit - sum(ms[name] for name in others)
    assert float(rows["**all of a worker, `masking`**"].split(" | ")[0]) == pytest.approx(whole, rel=0.01)


def benchmark_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a file of the folder benchmarks, as its scripts do."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module(name)


def test_memory_of_a_pair(monkeypatch):
    memory = benchmark_module("memory", monkeypatch)
    if not memory.RESET.exists():
        pytest.skip("resident memory is measured on Linux only")
    # the mirrored and the corrupted patch are returned
    assert 1.9 < memory.memory_copies((128, 128, 128)) < 2.5


def test_every_sample_is_as_slow_as_the_next(monkeypatch):
    stratified = benchmark_module("stratified", monkeypatch)
    probabilities = [recipe.shuffling.probability for recipe in stratified.strata(RECIPES["released"])]
    assert probabilities == [0, 1]
    assert {recipe.without() for recipe in stratified.strata(RECIPES["released"])} == {RECIPES["released"].without()}
    with pytest.raises(ValueError, match="half of the pairs"):
        stratified.strata(RECIPES["masking"])


def test_pretraining_throughput(tmp_path: Path):
    shutil.copy(plans_folder() / "tiny.json", tmp_path / "smaller.json")
    shrink_plans(tmp_path / "smaller.json")
    results, printed = run(
        "pretraining_throughput.py", tmp_path / "results.json", "--device", "cpu", "--template",
        tmp_path / "smaller.json", "--volumes", 1, "--volume", 20, 22, 24, "--workers", 1, 9999, "--iterations", 3,
        "--warm-up", 1,
    )  # fmt: skip
    runs = [*results["baseline"], *results["rows"]]
    assert [row["workers"] for row in results["rows"]] == [1]
    assert len(results["baseline"]) == 2
    assert results["patch_size"] == [16, 16, 16]
    usual = sum(run["seconds"] for run in results["baseline"]) / 2
    for row in runs:
        assert row["seconds"] > 0
        assert row["patches_per_s"] == pytest.approx(3 * 2 / row["seconds"])
        assert 0 < row["waiting_share"] < 1
    assert max(run["waiting_share"] for run in results["baseline"]) < 0.1
    for row in results["rows"]:
        assert row["ratio_to_baseline"] == pytest.approx(row["seconds"] / usual)
    assert printed.count("| none: always one batch |") == 2
    assert "Using device" not in printed  # the table alone goes to stdout


def test_fine_tuning(ready_once: Path, nnunet: Path, tmp_path: Path, run_here, monkeypatch):
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    threads_for_processes(monkeypatch)
    fine_tuning = benchmark_module("fine_tuning", monkeypatch)
    monkeypatch.setattr(fine_tuning, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(1))
    arms = ('{"scratch": true}', '{"scratch": true, "learning_rate": 0.01}', '{"scratch": true, "learning_rate": 0.5}')
    results, printed = run_here(
        "fine_tuning.py", tmp_path / "results.json", tmp_path / "no.pth", "-d", 4, "--epochs", 1, "--iterations", 3,
        "--warmup", 0, "--seeds", 0, "--arms", *arms,
    )  # fmt: skip
    scratch, default, fast = (results["dice"][arm] for arm in arms)
    assert scratch == default  # 0.01 is the default, and a seed is the same training
    assert scratch != fast
    assert f"| `{arms[2]}` | {fast['0']:.3f} | " in printed


def test_anomalies(ready_once: Path, nnunet: Path, tmp_path: Path, run_here):
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    trainer = get_trainer_from_args("501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans",
                                    device=torch.device("cpu"))  # fmt: skip
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "fresh.pth"))
    scans = nnunet / "nnUNet_raw/Dataset004_Target/imagesTr"
    results, printed = run_here(
        "anomalies.py", tmp_path / "results.json", tmp_path / "fresh.pth", "-i", scans, "-n", 2, "--hide", 0, 4,
        "--device", "cpu",
    )  # fmt: skip
    assert {"fresh, seen whole", "fresh, in 4 parts, smoothed", "absolute z-score"} < set(results["auroc"])
    for kinds in results["auroc"].values():
        assert set(kinds) == {"bright", "dark", "swapped"}
        assert all(len(values) == 2 and all(0 <= value <= 1 for value in values) for values in kinds.values())
    assert "| absolute z-score | " in printed


def test_area_under_the_curve_is_the_share_of_pairs_in_order(monkeypatch: pytest.MonkeyPatch):
    anomalies = benchmark_module("anomalies", monkeypatch)
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.3
    pairs = scores[truth][:, None] - scores[~truth]
    assert anomalies.auroc(scores, truth) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@pytest.mark.parametrize("kind", ["bright", "dark", "swapped"])
def test_an_anomaly_is_planted_where_it_is_said_to_be(kind: str, monkeypatch: pytest.MonkeyPatch):
    image = (100 + 10 * np.random.default_rng(0).normal(size=(30, 34, 32))).astype(np.float32)
    planted, where = benchmark_module("anomalies", monkeypatch).plant(image, kind, np.random.default_rng(1))
    changed = np.abs(planted - image)
    assert changed[where].mean() > 5 * changed[~where].mean()
    sign = {"bright": 1, "dark": -1, "swapped": 0}[kind]
    assert (planted - image)[where].mean() == pytest.approx(sign * image.std(), abs=0.3 * float(image.std()))
    assert not changed[~binary_dilation(where, np.ones((3, 3, 3)), iterations=4)].any()


def test_masked_autoencoder(tmp_path: Path, run_here):
    report = tmp_path / "report.md"
    results, printed = run_here(
        "masked_autoencoder.py", tmp_path / "results.json", "--patch", 16, 16, 32, "--repeats", 1, "--device", "cpu",
        "-o", report,
    )  # fmt: skip
    spent = results["seconds"]
    assert list(spent) == ["0.0", "0.5", "0.75"]
    assert all(0 < number < math.inf for number in numbers(spent))
    assert report.read_text() in printed
    assert "Primus-S, batch of 1, patches of 16x16x32, " in printed
    for ratio, one in spent.items():
        shares = [row.split(" | ")[2::2] for row in printed.splitlines() if row.startswith(f"| {float(ratio):g} |")]
        expected = [one[part] / spent["0.0"][part] for part in ("encoder", "step")]
        assert [[float(share.strip(" |")) for share in row] for row in shares] == [pytest.approx(expected, rel=0.06)]


def test_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng, folder = np.random.default_rng(3), tmp_path / "Some" / "images"
    folder.mkdir(parents=True)
    for number in range(3):
        image = gaussian_filter(rng.normal(size=(24, 27, 30)).astype(np.float32), 3) + 5
        sitk.WriteImage(sitk.GetImageFromArray(image), folder / f"scan{number}.nii.gz")
    (folder / "notes.txt").write_text("no image")
    leaks = benchmark_module("leaks", monkeypatch)
    found = leaks.measure(list(leaks.scans(folder)))
    assert found["cases"] == 3
    assert found["different"]["pairs"] == 6
    assert all(found["different"][kind]["found"] == 0 for kind in ("own orientation", "another orientation"))
    lost = ("a tenth cut off each side", "voxels x 2, cubic, borders kept")  # of images of so few voxels
    same = {kind: row for kind, row in found["copies"].items() if kind not in lost}
    assert {kind: row["found"] for kind, row in same.items()} == dict.fromkeys(same, 3)
    assert sum(row["found as another case"] for row in found["copies"].values()) == 0
    assert len(list(leaks.scans(folder, 2))) == 2


def test_links_have_the_index_that_would_be_computed(ready_once: Path, nnunet: Path, monkeypatch: pytest.MonkeyPatch):
    scale = benchmark_module("scale", monkeypatch)
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    source = scale.folder_of("Dataset501_Scans")
    folder = scale.linked(index_of(source), 10, 777)
    assert folder == scale.folder_of("Dataset777_Linked")
    written = index_of(folder)
    assert written.changed == folder.stat().st_mtime_ns
    index_file(folder).unlink()
    computed = index_of(folder)
    assert len(computed) == 10
    for name, column in computed.columns.items():
        np.testing.assert_array_equal(written.columns[name], column)


def test_faults_tell_half_written_files_from_missing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps = benchmark_module("workflow_steps", monkeypatch)
    step = steps.STEPS[0]
    images = Path("Dataset501_Scans/imagesTr")
    for folder in (tmp_path / steps.REFERENCE / "import", tmp_path / steps.RAW):
        (folder / images).mkdir(parents=True)
        for name in ("a_0000.nii.gz", "b_0000.nii.gz"):
            (folder / images / name).write_bytes(b"a whole image")
        (folder / images.parent / "dataset.json").write_text("{}")
    assert (step.look(tmp_path, step), step.compare(tmp_path, step)) == ((2, []), [])
    (tmp_path / steps.RAW / images / "b_0000.nii.gz").unlink()
    assert step.look(tmp_path, step) == (1, [])
    assert step.compare(tmp_path, step) == ["b_0000.nii.gz is missing after the second run"]
    (tmp_path / steps.RAW / images / "b_0000.nii.gz").write_bytes(b"a whole")
    (tmp_path / steps.RAW / images.parent / "dataset.json").write_text("{")
    assert step.look(tmp_path, step) == (1, ["dataset.json is half-written", "b_0000.nii.gz is half-written"])
    steps.restore(tmp_path, step)
    assert step.look(tmp_path, step) == (2, [])
    assert step.kept("3 cases imported, 2 were there already") == 2
    training = steps.STEPS[2]
    assert (training.kept("RESUMED AT 3"), training.kept("anew"), steps.STEPS[3].kept("anew")) == (3, 0, 1)
