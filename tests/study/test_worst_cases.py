"""Which cases a report shows, and what the pictures are drawn from."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from nnunet_genesis.errors import GenesisError
from nnunet_genesis.study.results import read_results
from nnunet_genesis.study.worst_cases import Segmented, WorstCase, _where_to_look, draw_case, read_case, worst_cases
from tests.conftest import run_genesis, use_folders, write_dataset
from tests.study.synthetic import write_synthetic


def set_dice(folder: Path, run: str, case: str, value: float) -> None:
    path = folder / "results" / f"{run}.json"
    content = json.loads(path.read_text())
    for label in content["cases"][case].values():
        label["Dice"] = value
    path.write_text(json.dumps(content))


def test_the_worst_cases_are_those_where_most_is_lost(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.1})
    for seed in study.seeds:
        set_dice(tmp_path, f"genesis_n4_s{seed}", "case03", 0.2 - 0.1 * (seed == 2))
        for arm in study.arms:
            set_dice(tmp_path, f"{arm}_n16_s{seed}", "case07", 0.1 - 0.05 * (seed == 4))
    found = worst_cases(read_results(study, tmp_path))
    first, *others = found
    assert (first.case, first.count, first.seed, first.arms) == ("case03", 4, 2, ["scratch", "genesis"])
    assert first.why.startswith("genesis loses most against scratch: -0.4")
    assert len(others) == 3  # nowhere else does genesis lose
    assert (others[0].case, others[0].count, others[0].seed) == ("case07", 16, 4)
    assert others[0].why == "lowest mean of all arms: 0.090 Dice"


def test_of_an_unfinished_study_only_finished_runs_are_shown(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": -0.1, "masking": -0.1}, seeds=2)
    for name in ("genesis_n4_s0", "masking_n16_s0", "masking_n16_s1", "masking_n4_s0", "masking_n4_s1"):
        (tmp_path / "results" / f"{name}.json").unlink()
    found = worst_cases(read_results(study, tmp_path))
    assert len(found) == 6
    for worst in found:
        assert "masking" not in worst.arms
        assert len({worst.case for worst in found[:3]}) == 3
        for arm in worst.arms:
            assert (tmp_path / "results" / f"{arm}_n{worst.count}_s{worst.seed}.json").is_file()


def test_the_slice_with_most_errors_is_shown():
    reference, prediction = np.zeros((2, 6, 60, 50), np.int8)
    reference[:, 20:30, 20:24] = 1
    prediction[:] = reference
    prediction[4, 20:35, 30:33] = 2
    found = Segmented(np.zeros_like(reference), (1, 1, 1), reference, {"a": reference, "b": prediction}, {}, "T1")
    assert _where_to_look(found) == (4, (slice(8, 47), slice(8, 45)))
    nothing = Segmented(np.zeros_like(reference), (1, 1, 1), reference * 0, {"a": reference * 0}, {}, "T1")
    assert _where_to_look(nothing)[1] == (slice(None), slice(None))


def test_a_picture_tells_predictions_apart():
    rng = np.random.default_rng(0)
    reference = np.zeros((3, 40, 40), np.int8)
    reference[:, 10:30, 10:30] = 1
    image, names = rng.normal(size=reference.shape), {0: "background", 1: "$\\frac{"}
    drawn = [
        imread(io.BytesIO(draw_case(Segmented(image, (1, 1, 1), reference, {"a": reference, "b": other}, names, "T1"))))
        for other in (reference, np.roll(reference, 5, axis=2), reference * 0)
    ]  # fmt: skip
    width = drawn[0].shape[1] // 4
    assert not np.array_equal(drawn[0][:, -width:], drawn[1][:, -width:])
    assert not np.array_equal(drawn[0][:, -width:], drawn[2][:, -width:])
    yellow = np.abs(drawn[0][..., :3] - np.array([1, 0.83, 0])).max(axis=-1) < 0.1
    assert yellow[:, width:].sum() > 100
    assert not yellow[: drawn[0].shape[0] - 60, : width - 10].any()  # the image alone


def test_voxels_are_as_tall_as_they_are():
    image = np.random.default_rng(0).normal(size=(3, 20, 20))
    reference = np.zeros((3, 20, 20), int)
    reference[1, 4:16, 4:16] = 1
    heights = [
        imread(io.BytesIO(draw_case(Segmented(image, spacing, reference, {"a": reference}, {}, "T1")))).shape[0]
        for spacing in ((1, 1, 1), (1, 1.5, 1), (5, 1, 1))
    ]
    assert heights[1] > 1.2 * heights[0]
    assert heights[2] == heights[0]


@pytest.mark.parametrize("image", [np.full((2, 9, 9), np.nan), np.zeros((2, 9, 9)), np.zeros((2, 9, 1))])
def test_images_that_show_nothing(image):
    reference = np.zeros(image.shape, np.int8)
    drawn = draw_case(Segmented(image, (1, 0.5, 2), reference, {"a": reference + 1}, {}, "T1"))
    assert imread(io.BytesIO(drawn)).shape[0] > 100


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """A study with predictions of one case: those of scratch are right, those of genesis are shifted."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("worst"), patch)
        raw = write_dataset(base, 4, "X", 1)
        assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
        references = base / "nnUNet_preprocessed" / "Dataset004_X" / "gt_segmentations"
        references.mkdir()
        truth = sitk.ReadImage(str(raw / "labelsTr" / "case0.nii.gz"))
        sitk.WriteImage(truth, str(references / "case00.nii.gz"))
        (raw / "imagesTr" / "case0_0000.nii.gz").rename(raw / "imagesTr" / "case00_0000.nii.gz")
        folder = base / "study"
        study = write_synthetic(folder, {"scratch": 0.0, "genesis": -0.1}, counts=[4], seeds=1, cases=1)
        for arm, shift in (("scratch", 0), ("genesis", 3)):
            place = folder / "predictions" / f"{arm}_n4_s0"
            place.mkdir(parents=True)
            shifted = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(truth), shift, axis=2))
            sitk.WriteImage(shifted, str(place / "case00.nii.gz"))
        yield study, folder


WORST = WorstCase("case00", 4, 0, ["scratch", "genesis"], "why")


def test_what_is_drawn_is_what_nnunet_reads(predicted):
    study, folder = predicted
    found = read_case(study, folder, WORST)
    raw = folder.parent / "nnUNet_raw" / "Dataset004_X"
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / "case0.nii.gz")))
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / "case00_0000.nii.gz")))
    assert np.array_equal(found.reference, truth)
    assert np.array_equal(found.image, image)
    assert np.array_equal(found.predictions["scratch"], truth)
    assert np.array_equal(found.predictions["genesis"], np.roll(truth, 3, axis=2))
    assert (found.names, found.channel) == ({0: "background", 1: "shell", 2: "core"}, "T1")


def test_pictures_are_in_the_page_with_words(predicted):
    folder = predicted[1]
    assert run_genesis("study", "report", folder) == 0
    page = (folder / "report" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert 'alt="T1 image of case00 with reference and predictions of scratch, genesis"' in page
    assert "Not drawn" not in page


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("nnUNet_raw/Dataset004_X/imagesTr/case00_0000.nii.gz", "the image is gone"),
        ("nnUNet_preprocessed/Dataset004_X/gt_segmentations/case00.nii.gz", "the reference is gone"),
        ("study/predictions/genesis_n4_s0/case00.nii.gz", "the prediction is gone"),
    ],
)
@pytest.mark.parametrize("how", ["gone", "damaged", "smaller"])
def test_what_cannot_be_drawn_is_told(predicted, tmp_path, monkeypatch, gone, said, how):
    base = shutil.copytree(predicted[1].parent, tmp_path / "base")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(base / name))
    (base / gone).unlink()
    if how == "damaged":
        (base / gone).write_bytes(b"nothing")
    if how == "smaller":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8)), str(base / gone))
    told = {"gone": said, "damaged": "a file cannot be read", "smaller": "have different shapes"}[how]
    with pytest.raises(GenesisError, match=told):
        read_case(predicted[0], base / "study", WORST)


def test_without_nnunets_folders_the_page_says_so(predicted, monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(name)
    assert run_genesis("study", "report", predicted[1], "-o", tmp_path / "report") == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Not drawn: The environment variable nnUNet_" in page
    assert "<li>case00 (lowest mean of all arms" in page


def test_a_case_that_dataset_json_does_not_list_is_told(predicted, tmp_path, monkeypatch):
    base = shutil.copytree(predicted[1].parent, tmp_path / "base")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(base / name))
    path = base / "nnUNet_raw" / "Dataset004_X" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": {"other": {"images": ["a"], "label": "b"}}}))
    with pytest.raises(GenesisError, match='not in the "dataset" block'):
        read_case(predicted[0], base / "study", WORST)
