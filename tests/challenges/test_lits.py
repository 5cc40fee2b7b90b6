"""LiTS → a raw dataset of nnU-Net."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.challenges.lits import find_download
from nnunet_genesis.errors import DatasetError
from tests.challenges.conftest import description, make, names
from tests.challenges.layouts import DIRECTION, ORIGIN, SPACING, labels, voxels, write, write_lits
from tests.conftest import run_genesis


def test_volumes_of_all_folders_become_a_dataset_without_those_that_lost_their_spacing(source, raw):
    download = find_download(write_lits(source, training=(0, 1, 27, 28, 47, 48)))
    report = make(download, raw)
    assert report.left_out.keys() == {"volume-28", "volume-47"}
    assert "identity affine" in report.left_out["volume-28"]
    assert names(report.folder / "labelsTr") == [f"volume-{n}.nii.gz" for n in (0, 1, 27, 48)]
    assert names(report.folder / "imagesTr") == [f"volume-{n}_0000.nii.gz" for n in (0, 1, 27, 48)]
    assert names(report.folder / "imagesTs") == ["test-volume-0_0000.nii.gz", "test-volume-1_0000.nii.gz"]
    content = description(report.folder)
    assert content["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert content["channel_names"] == {"0": "CT"}
    assert content["numTraining"] == 4
    image = sitk.ReadImage(str(report.folder / "imagesTr/volume-27_0000.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(image), voxels("volume27")[0])
    for told, meant in ((image.GetSpacing(), SPACING), (image.GetOrigin(), ORIGIN), (image.GetDirection(), DIRECTION)):
        assert np.allclose(told, meant)


def test_a_repaired_header_and_the_flag_bring_a_volume_back(source, raw):
    folder = write_lits(source, training=(0, 28, 29))
    assert make(find_download(folder), raw).left_out.keys() == {"volume-28", "volume-29"}
    write(voxels("volume28")[0], folder / "Training_Batch2/volume-28.nii")
    repaired = make(find_download(folder), raw)
    assert repaired.left_out.keys() == {"volume-29"}
    assert "another origin" in repaired.mended["volume-28"] or "another spacing" in repaired.mended["volume-28"]
    label = sitk.ReadImage(str(repaired.folder / "labelsTr/volume-28.nii.gz"))
    assert np.allclose(label.GetSpacing(), SPACING)
    assert np.array_equal(sitk.GetArrayFromImage(label), labels([1, 2]))
    assert make(find_download(folder, keep_identity=True), raw).left_out == {}
    assert make(find_download(folder), raw).left_out.keys() == {"volume-29"}
    assert names(repaired.folder / "labelsTr") == ["volume-0.nii.gz", "volume-28.nii.gz"]


def test_axes_that_point_the_other_way_are_no_spacing_either(source):
    folder = write_lits(source, training=(0, 1, 28))
    write(voxels("x")[0], folder / "Training_Batch2/volume-28.nii", spacing=(1, 1, 1), origin=(0, 0, 0),
          direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))  # fmt: skip
    write(voxels("x")[0], folder / "Training_Batch1/volume-0.nii", spacing=(1, 1, 1), origin=(0, 0, 5),
          direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))  # fmt: skip
    write(voxels("x")[0], folder / "Training_Batch1/volume-1.nii", spacing=(1, 1, 2), origin=(0, 0, 0),
          direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))  # fmt: skip
    assert [case.name for case in find_download(folder).training if case.flaw] == ["volume-28"]


def test_incomplete_pairs_and_volumes_that_are_there_twice(source):
    folder = write_lits(source)
    (folder / "Training_Batch1/segmentation-1.nii").unlink()
    (folder / "Training_Batch1/volume-0.nii").unlink()
    flaws = {case.name: case.flaw for case in find_download(folder).training}
    assert flaws["volume-1"] == "segmentation-1.nii is missing"
    assert flaws["volume-0"] == "volume-0.nii is missing"
    write(voxels("x")[0], folder / "copy/volume-1.nii")
    with pytest.raises(DatasetError, match="are the same case"):
        find_download(folder)
    with pytest.raises(DatasetError, match=r"no volume-N\.nii"):
        find_download(folder / "LITS-Challenge-Test-Data")


def test_the_command_states_overlap_and_lost_spacing(source, nnunet, capsys):
    folder = write_lits(source)
    assert run_genesis("dataset", "lits", folder, "-d", 17, "-np", 1) == 2
    out, err = capsys.readouterr()
    assert "same data as Task03_Liver" in out
    assert "1 volumes have an identity affine" in out
    assert "volume-28" in err
    assert run_genesis("dataset", "lits", folder, "-d", 17, "-np", 1, "--keep-identity-affine") == 0
    assert description(nnunet / "nnUNet_raw/Dataset017_LiTS")["numTraining"] == 3
