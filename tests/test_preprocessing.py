"""Which volumes count as made by the same plans, what a run leaves behind, and what it says."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.errors import DatasetError, GenesisError
from nnunet_genesis.preprocessing import ENDINGS, preprocess
from nnunet_genesis.shards import LOCKS, claimed
from tests.conftest import blob, run_genesis, use_folders, write_dataset

DATASET, PLANS = "Dataset501_Scans", "nnUNetGenesisPlans"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset 501 of two cases, preprocessed for 3d_fullres; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("preprocessed"), patch)
        write_dataset(base, 501, "Scans", 2, labeled=False)
        assert run_genesis("plan", "-d", 501, "--template", "tiny") == 0
        assert run_genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 0
    return base


@pytest.fixture
def done(once: Path, nnunet: Path) -> Path:
    """A copy of it for one test: the preprocessed dataset's folder."""
    shutil.copytree(once, nnunet, dirs_exist_ok=True)
    return nnunet / "nnUNet_preprocessed" / DATASET


def run(configuration: str = "3d_fullres", **options: Any) -> tuple[int, int, dict[str, str]]:
    report = preprocess(DATASET, PLANS, configuration, progress=False, **options)
    return report.written, report.already_there, report.failed


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    edit(plans)
    path.write_text(json.dumps(plans))


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / f"{PLANS}_3d_fullres_preprocessing.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    """What the files hold: nnU-Net's four threads write the blocks of a volume in the order in which they finish."""
    return {
        path.name: blosc2.open(str(path), mode="r")[:].tobytes() if path.suffix == ".b2nd" else path.read_bytes()
        for path in folder.iterdir()
    }


OF_CONFIGURATION = {
    "spacing": [1.0, 1.0, 1.5], "normalization_schemes": ["NoNormalization"], "use_mask_for_norm": [True],
    "resampling_fn_data": "resample_torch_fornnunet",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}  # fmt: skip
OF_PLANS = {
    "image_reader_writer": "NibabelIO", "transpose_forward": [1, 0, 2],
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
}  # fmt: skip


def test_each_key_that_shapes_a_volume_makes_it_another_one(done):
    """One at a time, also where a configuration inherits it; nothing is touched."""
    path, before = done / f"{PLANS}.json", record_of(done)
    original = json.loads(path.read_text())
    assert set(before["made_by"]) == set(OF_CONFIGURATION) | set(OF_PLANS) | {"preprocessor_name"}
    for key, value in (OF_CONFIGURATION | OF_PLANS).items():
        plans = copy.deepcopy(original)
        (plans if key in OF_PLANS else plans["configurations"]["3d_fullres"])[key] = value
        path.write_text(json.dumps(plans))
        with pytest.raises(DatasetError, match=rf"preprocessed with other plans \({key} changed\).*under another name"):
            run()
    assert record_of(done) == before
    path.write_text(json.dumps(original | {"image_reader_writer": "NibabelIO", "transpose_forward": [1, 0, 2]}))
    with pytest.raises(DatasetError, match=r"\(image_reader_writer, transpose_forward changed\)"):
        run()
    path.write_text(json.dumps(original))
    other = before | {"made_by": before["made_by"] | {"preprocessor_name": "OtherPreprocessor"}}
    (done / f"{PLANS}_3d_fullres_preprocessing.json").write_text(json.dumps(other))
    with pytest.raises(DatasetError, match=r"\(preprocessor_name changed\)"):
        run()
    shutil.rmtree(done / f"{PLANS}_3d_fullres")  # as the message says
    change(done, lambda plans: plans.update(original, transpose_forward=[1, 0, 2]))
    assert run() == (2, 0, {})
    assert record_of(done)["made_by"]["transpose_forward"] == [1, 0, 2]


def test_what_does_not_shape_volumes_does_not_matter(done):
    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["parent"] = plans["configurations"]["3d_fullres"]
        plans["configurations"]["3d_fullres"] = {"inherits_from": "parent", "patch_size": [8, 8, 8], "batch_size": 1,
                                                 "resampling_fn_seg": "resample_torch_fornnunet"}  # fmt: skip
        plans["genesis"]["pretraining"]["epochs"] = 3
        plans["transpose_backward"] = [2, 1, 0]

    before = record_of(done)
    change(done, edit)
    assert run() == (0, 2, {})
    assert record_of(done) == before | {"written": 0, "already_there": 2}


def test_volumes_without_a_record_are_taken_as_they_are(done):
    (done / f"{PLANS}_3d_fullres_preprocessing.json").unlink()
    change(done, lambda plans: plans["configurations"]["3d_fullres"].update(spacing=[9, 9, 9]))
    assert run() == (0, 2, {})
    assert record_of(done)["made_by"]["spacing"] == [9, 9, 9]


def test_a_damaged_record_says_what_to_do(done):
    (done / f"{PLANS}_3d_fullres_preprocessing.json").write_text("{")
    with pytest.raises(
        DatasetError, match=r"The record .* is not valid JSON .* Delete .*3d_fullres and preprocess again"
    ):
        run()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_case_that_lacks_a_file_is_done_again(done, ending):
    folder = done / f"{PLANS}_3d_fullres"
    before = content(folder)
    (folder / f"case1{ending}").unlink()
    stale = done / f"{PLANS}_3d_fullres_unfinished"
    stale.mkdir()
    (stale / "case1.b2nd").write_text("half a file")
    (stale / "nested").mkdir()
    assert run() == (1, 1, {})
    assert content(folder) == before
    assert not stale.exists()


def test_shards_at_the_same_time_make_the_volumes_of_one_run(done):
    folder = done / f"{PLANS}_3d_fullres"
    before = content(folder)
    shutil.rmtree(folder)
    stale = done / f"{PLANS}_3d_fullres_unfinished_1_of_7"
    stale.mkdir()
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        shares = [pool.submit(run, shard=(number, 2)) for number in (1, 2)]
        assert [share.result() for share in shares] == [(1, 0, {}), (1, 0, {})]
    assert content(folder) == before
    assert run(shard=(2, 2)) == (0, 1, {})
    assert stale.exists()  # it may be at work elsewhere
    (folder / "case1.pkl").unlink()
    assert run(shard=(1, 2)) == (0, 1, {})
    assert run() == (1, 1, {})
    assert content(folder) == before
    assert sorted(path.name for path in done.iterdir() if "unfinished" in path.name) == []


def test_the_record_holds_the_failures_of_all_shards(done):
    folder, images = done / f"{PLANS}_3d_fullres", done.parents[1] / "nnUNet_raw" / DATASET / "imagesTr"
    shutil.rmtree(folder)
    good = {path: path.read_bytes() for path in images.iterdir()}
    for path in good:
        path.write_bytes(b"no image")
    for number in (1, 2):
        assert list(run(shard=(number, 2))[2]) == [f"case{number - 1}"]
    assert list(record_of(done)["failed"]) == ["case0", "case1"]
    next(iter(images.glob("case0*"))).write_bytes(good[next(iter(images.glob("case0*")))])
    assert run(shard=(1, 2)) == (1, 0, {})
    assert list(record_of(done)["failed"]) == ["case1"]
    assert run()[:2] == (0, 1)
    assert record_of(done)["already_there"] == 1


@pytest.mark.parametrize("other", [(1, 1), (2, 2), (2, 3)])
def test_a_run_is_refused_while_another_has_its_cases(done, monkeypatch, other):
    monkeypatch.setattr("nnunet_genesis.shards.MOMENT", 0.1)
    with claimed(done / LOCKS / f"{PLANS}_3d_fullres", other), pytest.raises(GenesisError, match="is at work"):
        run(shard=(2, 2))
    assert run(shard=(2, 2)) == (0, 1, {})


def test_the_record_is_there_before_the_first_volume(done, monkeypatch):
    """A killed run's volumes are known by their plans."""
    shutil.rmtree(done / f"{PLANS}_3d_fullres")
    made_by = record_of(done)["made_by"]
    (done / f"{PLANS}_3d_fullres_preprocessing.json").unlink()
    written = pickle.dumps

    def killed(*arguments: Any) -> bytes:
        if record_of(done) == {"made_by": made_by}:
            raise KeyboardInterrupt
        return written(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pickle, "dumps", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    change(done, lambda plans: plans.update(transpose_forward=[1, 0, 2]))
    (done / f"{PLANS}_3d_fullres" / "case0.b2nd").touch()
    with pytest.raises(DatasetError, match="transpose_forward changed"):
        run()


def test_images_that_no_header_check_covers(nnunet, capsys):
    """Whatever the format, what is stored is finite and varies; a failed case leaves nothing."""
    folder = write_dataset(nnunet, 501, "Scans", 0, labeled=False)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".mha"}))
    bad = blob(0)[0][0]
    bad[5, 5, 5] = np.nan
    for name, array in {"good": blob(0)[0][0], "holey": bad, "flat": np.zeros((8, 9, 10), np.float32)}.items():
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / "imagesTr" / f"{name}_0000.mha"))
    assert run_genesis("plan", "-d", 501, "--template", "tiny") == 0
    assert run_genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 2
    printed = capsys.readouterr()
    assert "1 cases written" in printed.out
    assert "holey: holds NaN or infinite values after preprocessing; remove or repair the image" in printed.err
    assert "flat: is constant after preprocessing; remove the image" in printed.err
    assert f"Preprocessing {PLANS}_3d_fullres: 100%" in printed.err
    preprocessed = nnunet / "nnUNet_preprocessed" / DATASET
    kept = sorted(path.name for path in (preprocessed / f"{PLANS}_3d_fullres").iterdir())
    assert kept == ["good.b2nd", "good.pkl", "good_seg.b2nd"]
    record = record_of(preprocessed)
    assert (record["written"], record["already_there"], sorted(record["failed"])) == (1, 0, ["flat", "holey"])
    written, already_there, failed = run()
    assert (written, already_there, failed) == (0, 1, record["failed"])
    printed = capsys.readouterr()
    assert "Preprocessing" not in printed.err
    volume = blosc2.open(str(preprocessed / f"{PLANS}_3d_fullres" / "good.b2nd"), mode="r")[:]
    assert abs(volume.mean()) < 1e-3
    assert volume.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_is_checked_before_a_reader_makes_up_voxels(nnunet, ending):
    folder = write_dataset(nnunet, 501, "Scans", 0, labeled=False)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ending}))
    holey = blob(0)[0][0]
    holey[5, 5, 5] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(holey), str(folder / "imagesTr" / f"case_0000{ending}"))
    assert run_genesis("plan", "-d", 501, "--template", "tiny") == 0
    assert "voxels that are NaN" in run()[2]["case"]


def test_labels_and_second_stages_are_refused_before_anything_is_written(done):
    before = sorted(done.rglob("*"))
    change(done, lambda plans: plans["configurations"].update(
        second={"inherits_from": "3d_fullres", "previous_stage": "2d"}))  # fmt: skip
    with pytest.raises(DatasetError, match="second stage of a cascade"):
        run("second")
    with pytest.raises(DatasetError, match="no configuration third"):
        run("third")
    (done.parents[1] / "nnUNet_raw" / DATASET / "labelsTr").mkdir()
    with pytest.raises(DatasetError, match=f"{DATASET} has labels.* nnUNetv2_preprocess -d 501 -plans_name {PLANS} -c"):
        run()
    assert sorted(done.rglob("*")) == before
