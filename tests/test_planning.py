"""Whose plans a dataset gets, what is written beside them, and what is never overwritten."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.planning import header_of, plan_from_template, plan_like, raw_cases
from nnunet_genesis.resources import plans_folder
from nnunet_genesis.settings import FineTuningSettings, PretrainingSettings

SETTINGS = PretrainingSettings(epochs=7)
TINY: dict[str, Any] = json.loads((plans_folder() / "tiny.json").read_text())
NUMBERS = {"max": 3000.0, "mean": 90.0, "median": 80.0, "min": -900.0, "percentile_00_5": -500.0,
           "percentile_99_5": 900.0, "std": 40.0}  # fmt: skip


@pytest.fixture
def raw(nnunet: Path) -> Callable[..., Path]:
    """Write a raw dataset of headers and few voxels; its folder."""

    def write(number: int, *channels: str, labeled: bool = False, ending: str = ".nii.gz", **more: Any) -> Path:
        folder = nnunet / "nnUNet_raw" / f"Dataset{number:03d}_D"
        (folder / "imagesTr").mkdir(parents=True)
        if labeled:
            (folder / "labelsTr").mkdir()
        for case, shape in (("a", (4, 5, 6)), ("b", (7, 8, 9))):
            image = sitk.GetImageFromArray(np.zeros(shape, np.float32))
            image.SetSpacing((0.5, 1.0, 2.0 + len(case) * (case == "b")))
            for channel in range(len(channels)):
                sitk.WriteImage(image, str(folder / "imagesTr" / f"{case}_{channel:04d}{ending}"))
        description = {"channel_names": {str(n): name for n, name in enumerate(channels)},
                       "labels": {"background": 0}, "numTraining": 2, "file_ending": ending} | more  # fmt: skip
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return write


def plans_of(folder: Path, number: int, name: str) -> dict[str, Any]:
    return json.loads((folder / "nnUNet_preprocessed" / f"Dataset{number:03d}_D" / f"{name}.json").read_text())


def write_plans(folder: Path, number: int, **changes: Any) -> dict[str, Any]:
    """Plans named nnUNetPlans of a dataset, as nnU-Net would have written them."""
    plans = copy.deepcopy(TINY) | {"dataset_name": f"Dataset{number:03d}_D"} | changes
    target = folder / "nnUNet_preprocessed" / f"Dataset{number:03d}_D" / "nnUNetPlans.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(plans))
    return plans


def template(folder: Path, schemes: tuple[str, ...] = (), **changes: Any) -> str:
    """A template as a file: the tiny one with other schemes of normalisation for each configuration."""
    plans = copy.deepcopy(TINY) | changes
    for configuration, scheme in zip(plans["configurations"].values(), schemes, strict=False):
        configuration["normalization_schemes"] = [scheme]
    (folder / "template.json").write_text(json.dumps(plans))
    return str(folder / "template.json")


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (("T1", "CT"), ("t1", "ct"), True),
        (("T1", "CT"), ("CT", "T1"), False),
        (("T1",), ("T1", "T2"), False),
        (("T1", "T2"), ("T1",), False),
    ],
)
def test_channels_are_those_of_the_target_in_its_order(nnunet, raw, ours, theirs, same):
    raw(501, *ours)
    raw(4, *theirs, labeled=True)
    write_plans(nnunet, 4)
    if same:
        plan_like("Dataset501_D", "Dataset004_D", "nnUNetPlans", "Ours", SETTINGS)
    else:
        with pytest.raises(DatasetError, match=f"channels of Dataset501_D are {', '.join(ours)}, those of Dataset004_D "
                           f"are {', '.join(theirs)}.*--channels {','.join(theirs)}$"):  # fmt: skip
            plan_like("Dataset501_D", "Dataset004_D", "nnUNetPlans", "Ours", SETTINGS)
        assert not (nnunet / "nnUNet_preprocessed" / "Dataset501_D").exists()


def test_what_changes_in_the_targets_plans_and_what_does_not(nnunet, raw):
    raw(501, "T1", overwrite_image_reader_writer="NibabelIO")
    raw(4, "T1", labeled=True)
    genesis = {"fine_tuning": {"2d": FineTuningSettings().block()}}
    target = write_plans(nnunet, 4, genesis=genesis, transpose_forward=[2, 0, 1], image_reader_writer="Tiff3DIO")
    target["configurations"]["2d"]["data_identifier"] = "Other_data"
    target["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "batch_size": 7}
    (nnunet / "nnUNet_preprocessed/Dataset004_D/nnUNetPlans.json").write_text(json.dumps(target))
    path = plan_like("Dataset501_D", "Dataset004_D", "nnUNetPlans", "Ours", SETTINGS)
    assert path == nnunet / "nnUNet_preprocessed" / "Dataset501_D" / "Ours.json"
    expected = copy.deepcopy(target) | {"dataset_name": "Dataset501_D", "plans_name": "Ours"}
    expected["image_reader_writer"] = "NibabelIO"
    expected["configurations"]["2d"]["data_identifier"] = "Ours_Other_data"
    expected["configurations"]["3d_fullres"]["data_identifier"] = "Ours_3d_fullres"
    expected["genesis"] = {"pretraining": SETTINGS.block()}
    assert plans_of(nnunet, 501, "Ours") == expected
    assert plans_of(nnunet, 4, "nnUNetPlans") == target


@pytest.mark.parametrize(
    ("ending", "shape", "reader"),
    [
        (".png", (5, 6), "NaturalImage2DIO"),
        (".bmp", (5, 6), "NaturalImage2DIO"),
        (".tif", (5, 6), "NaturalImage2DIO"),
        (".tif", (7, 5, 6), "Tiff3DIO"),
        (".nii", (4, 5, 6), "NibabelIO"),
        (".nii.gz", (5, 6), "SimpleITKIO"),
    ],
)
def test_a_template_takes_the_reader_that_fits_the_files(nnunet, raw, ending, shape, reader, capsys):
    folder = raw(501, "T1")
    for file in (folder / "imagesTr").iterdir():
        image = sitk.GetImageFromArray(np.zeros(shape, np.uint8))
        sitk.WriteImage(image, str(file).replace(".nii.gz", ending))
        if ending != ".nii.gz":
            file.unlink()
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"file_ending": ending}))
    plan_from_template("Dataset501_D", "tiny", "Ours", SETTINGS)
    assert plans_of(nnunet, 501, "Ours")["image_reader_writer"] == reader
    assert "Traceback" not in capsys.readouterr().err
    fingerprint = json.loads((nnunet / "nnUNet_preprocessed/Dataset501_D/dataset_fingerprint.json").read_text())
    assert fingerprint["shapes_after_crop"] == [[1] * (3 - len(shape)) + list(shape)] * 2
    assert np.allclose(fingerprint["spacings"], [999.0 if len(shape) == 2 else 1.0, 1.0, 1.0])


def test_files_that_nnunet_has_no_reader_for_are_refused(nnunet, raw):
    raw(501, "T1", file_ending=".jpg")
    with pytest.raises(DatasetError, match=r"reads no images that end in \.jpg.*overwrite_image_reader_writer"):
        plan_from_template("Dataset501_D", "tiny", "Ours", SETTINGS)
    assert not (nnunet / "nnUNet_preprocessed/Dataset501_D/Ours.json").exists()


def test_without_a_reader_of_its_own_a_dataset_takes_that_of_the_plans(nnunet, raw):
    raw(501, "T1")
    raw(4, "T1")
    write_plans(nnunet, 4, image_reader_writer="NibabelIOWithReorient")
    plan_like("Dataset501_D", "Dataset004_D", "nnUNetPlans", "Ours", SETTINGS)
    ours = plans_of(nnunet, 501, "Ours")
    assert ours["image_reader_writer"] == "NibabelIOWithReorient"
    assert ours["configurations"]["2d"]["data_identifier"] == "Ours_2d"


def test_only_plans_of_the_same_command_are_written_again(nnunet, raw):
    raw(4, "T1", labeled=True)
    raw(501, "T1")
    target = write_plans(nnunet, 4)
    folder = nnunet / "nnUNet_preprocessed" / "Dataset004_D"

    def plan(name: str, dataset: str = "Dataset004_D", **settings: Any) -> Path:
        return plan_like(dataset, "Dataset004_D", "nnUNetPlans", name, PretrainingSettings(**settings))

    with pytest.raises(DatasetError, match=r"The plans nnUNetPlans of Dataset004_D would be overwritten\. Name .* -p"):
        plan("nnUNetPlans")
    assert plan("nnUNetPlans", "Dataset501_D").parent.name == "Dataset501_D"  # another dataset's may be called so
    for epochs in (3, 4):
        plan("Ours", epochs=epochs)
        assert plans_of(nnunet, 4, "Ours")["genesis"]["pretraining"]["epochs"] == epochs
    for block in ({}, {"genesis": None}, {"genesis": {"fine_tuning": {}}}):
        (folder / "Foreign.json").write_text(json.dumps(target | block))
        with pytest.raises(DatasetError, match="Foreign of Dataset004_D exist and would be overwritten"):
            plan("Foreign")
        assert plans_of(nnunet, 4, "Foreign") == target | block


@pytest.mark.parametrize("labeled", [True, False])
def test_files_of_nnunet_that_exist_are_kept(nnunet, raw, labeled):
    folder = raw(501, "T1", labeled=labeled)
    written = nnunet / "nnUNet_preprocessed" / "Dataset501_D"
    plan_from_template("Dataset501_D", "tiny", "Ours", SETTINGS)
    description = json.loads((folder / "dataset.json").read_text())
    assert json.loads((written / "dataset.json").read_text()) == description
    (written / "dataset_fingerprint.json").write_text('"theirs"')
    (folder / "dataset.json").write_text(json.dumps(description | {"licence": "CC"}))
    plan_from_template("Dataset501_D", "tiny", "Ours", SETTINGS)
    assert (written / "dataset_fingerprint.json").read_text() == '"theirs"'
    now = json.loads((written / "dataset.json").read_text())
    assert now == (description if labeled else description | {"licence": "CC"})  # scans may have been added


def test_the_fingerprint_is_made_of_headers_and_of_the_plans(nnunet, raw, capsys):
    raw(501, "T1", "T2")
    (nnunet / "nnUNet_preprocessed").rmdir()  # of a first user
    statistics = {"0": NUMBERS, "1": NUMBERS | {"mean": 1.0}}
    plan_from_template("Dataset501_D", template(nnunet, foreground_intensity_properties_per_channel=statistics),
                       "Ours", SETTINGS)  # fmt: skip
    fingerprint = json.loads((nnunet / "nnUNet_preprocessed/Dataset501_D/dataset_fingerprint.json").read_text())
    assert "Reading headers: 100%" in capsys.readouterr().err
    assert "without labels" in fingerprint.pop("made_by")
    assert fingerprint == {
        "spacings": [[2.0, 1.0, 0.5], [3.0, 1.0, 0.5]],
        "shapes_after_crop": [[4, 5, 6], [7, 8, 9]],
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": 1.0,
    }


def test_a_template_of_one_channel_serves_several(nnunet, raw):
    raw(501, "T1", "T2", "PET", overwrite_image_reader_writer="NibabelIO")
    plans_file = template(nnunet, ("ZScoreNormalization", "NoNormalization"), genesis={"pretraining": {}},
                          foreground_intensity_properties_per_channel={"0": NUMBERS})  # fmt: skip
    before = Path(plans_file).read_text()
    path = plan_from_template("Dataset501_D", plans_file, "Ours", SETTINGS)
    assert Path(plans_file).read_text() == before
    expected = json.loads(before) | {"dataset_name": "Dataset501_D", "plans_name": "Ours",
                                     "image_reader_writer": "NibabelIO"}  # fmt: skip
    expected["foreground_intensity_properties_per_channel"] = {"0": NUMBERS, "1": {}, "2": {}}
    expected["genesis"] = {"pretraining": SETTINGS.block()}
    for name, scheme in (("2d", "ZScoreNormalization"), ("3d_fullres", "NoNormalization")):
        expected["configurations"][name] |= {
            "normalization_schemes": [scheme] * 3, "use_mask_for_norm": [False] * 3, "data_identifier": f"Ours_{name}",
        }  # fmt: skip
    assert json.loads(path.read_text()) == expected


ZSCORE, OF_CT = "ZScoreNormalization", "CTNormalization"


@pytest.mark.parametrize(
    ("channels", "schemes", "statistics", "refusal"),
    [
        (("CT",), (ZSCORE, OF_CT), {"0": NUMBERS}, None),
        (("ct", "CT"), (OF_CT, OF_CT), {"0": NUMBERS, "1": NUMBERS}, None),
        (("ct",), (OF_CT, OF_CT), {}, "no intensity statistics for the CT channel 0.*--like"),
        (("T1", "Ct"), (ZSCORE, ZSCORE), {"0": NUMBERS}, "no intensity statistics for the CT channel 1"),
        (("CT", "PET"), (ZSCORE, OF_CT), {"0": NUMBERS}, "normalises CT; the channel PET is not CT.*--like"),
        (("T1",), (OF_CT, ZSCORE), {}, "normalises CT; the channel T1 is not CT"),
        (("T1", "CT"), (ZSCORE, ZSCORE), {"0": {}, "1": NUMBERS}, None),
    ],
)
def test_which_templates_normalise_which_channels(nnunet, raw, channels, schemes, statistics, refusal):
    raw(501, *channels)
    plans = template(nnunet, schemes, foreground_intensity_properties_per_channel=statistics)
    if refusal is None:
        path = plan_from_template("Dataset501_D", plans, "Ours", SETTINGS)
        written = json.loads(path.read_text())
        assert written["foreground_intensity_properties_per_channel"] == statistics
        assert written["configurations"]["2d"]["normalization_schemes"] == [schemes[0]] * len(channels)
    else:
        with pytest.raises(DatasetError, match=refusal):
            plan_from_template("Dataset501_D", plans, "Ours", SETTINGS)


def test_configurations_that_inherit_stay_as_they_are(nnunet, raw):
    raw(501, "T1", "T2")
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans = template(nnunet, configurations=TINY["configurations"] | {"3d_cascade_fullres": cascade})
    path = plan_from_template("Dataset501_D", plans, "Ours", SETTINGS)
    assert json.loads(path.read_text())["configurations"]["3d_cascade_fullres"] == cascade


def test_templates_are_listed_where_one_is_missing(nnunet, raw):
    raw(501, "T1")
    names = ", ".join(sorted(path.stem for path in plans_folder().glob("*.json")))
    for missing in ("huge", "huge.json"):
        with pytest.raises(DatasetError, match=f"template .*huge.json does not exist. Templates: {names}; or the path"):
            plan_from_template("Dataset501_D", missing, "Ours", SETTINGS)


def test_raw_cases_have_one_file_per_channel(nnunet, raw):
    folder = raw(501, "T1", "T2", ending=".nrrd")
    description = json.loads((folder / "dataset.json").read_text())
    images = folder / "imagesTr"
    expected = {case: [str(images / f"{case}_000{n}.nrrd") for n in (0, 1)] for case in "ab"}
    assert raw_cases("Dataset501_D", description) == expected
    with pytest.raises(DatasetError, match=r"imagesTr holds no image that ends in \.mha"):
        raw_cases("Dataset501_D", description | {"file_ending": ".mha"})
    listed = {"c": {"images": ["imagesTr/a_0000.nrrd"], "label": "none.nrrd"}}
    images.rename(folder / "elsewhere")
    with pytest.raises(DatasetError, match="imagesTr does not exist"):
        raw_cases("Dataset501_D", description)
    # nnU-Net lets dataset.json say where images are
    (found,) = raw_cases("Dataset501_D", description | {"dataset": listed}).values()
    assert [Path(image).name for image in found] == ["a_0000.nrrd"]


def test_a_2d_image_has_the_spacing_that_nnunet_gives_it(tmp_path):
    image = sitk.GetImageFromArray(np.arange(30, dtype=np.uint8).reshape(5, 6))
    image.SetSpacing((0.25, 0.5))
    for name, reader in (("x.png", NaturalImage2DIO), ("x.nii.gz", SimpleITKIO)):
        sitk.WriteImage(image, str(tmp_path / name))
        values, properties = reader().read_images([str(tmp_path / name)])
        size, spacing = header_of(str(tmp_path / name), reader.__name__)
        assert size == values.shape[1:]
        assert spacing == pytest.approx(properties["spacing"])
    assert header_of(str(tmp_path / "missing.png"), "NaturalImage2DIO") is None
