"""One pre-training on the volumes of several datasets, from plan to leaks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.leaks.case_record import record_in
from nnunet_genesis.nnunet_dataset import read_plans
from nnunet_genesis.pretraining.patches import TRAINING, VALIDATION
from nnunet_genesis.pretraining.restoration_log import RestorationLog
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain
from nnunet_genesis.pretraining.volumes import volumes_folders
from nnunet_genesis.settings import PretrainingSettings
from tests.conftest import run_genesis, run_stock, use_folders, write_dataset
from tests.trainers.conftest import CPU, PRETRAIN, edit_plans, pretraining_plans, results

A, B, TARGET = "Dataset501_Scans", "Dataset502_More", "Dataset004_Target"
LENGTHS = ("--epochs", 4, "--iterations", 2, "--validation-iterations", 2, "--save-every", 1, "--plot-every", 100)
pytestmark = pytest.mark.usefixtures("no_curves")


def add_second_dataset(base: Path) -> None:
    """Dataset 502: five cases, of which four have names of the first dataset, and one is an image of the target."""
    folder = write_dataset(base, 502, "More", 5, labeled=False)
    shared = sitk.ReadImage(str(base / f"nnUNet_raw/{TARGET}/imagesTr/case2_0000.nii.gz"))
    sitk.WriteImage(shared, str(folder / "imagesTr/renamed_0000.nii.gz"))


@pytest.fixture(scope="module")
def two_once(ready_once, tmp_path_factory) -> Path:
    """The datasets of `ready_once`, and 502, which 501 is pre-trained on together with; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("two"), patch)
        shutil.copytree(ready_once, base, dirs_exist_ok=True)
        add_second_dataset(base)
        weights = ("--dataset-weights", 1, 3, "--exclude", "case1", f"{B}/case0")
        assert run_genesis("plan", "-d", 501, 502, "--like", 4, *LENGTHS, *weights) == 0
        assert run_genesis("preprocess", "-d", 501, 502, "-c", "3d_fullres", "-np", 1) == 0
    return base


@pytest.fixture
def two(two_once: Path, nnunet: Path) -> Path:
    shutil.copytree(two_once, nnunet, dirs_exist_ok=True)
    return nnunet


@pytest.fixture(scope="module")
def trained(two_once, tmp_path_factory) -> Path:
    """The folders after a training that was interrupted before its third epoch and went on."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("trained"), patch)
        shutil.copytree(two_once, base, dirs_exist_ok=True)
        patch.setattr(RestorationLog, "plot_progress_png", lambda self, folder: None)
        original = nnUNetTrainerGenesisPretrain.on_epoch_start

        def stop(self: nnUNetTrainerGenesisPretrain) -> None:
            if self.current_epoch == 2:
                raise KeyboardInterrupt
            original(self)

        with pytest.MonkeyPatch.context() as interruption:
            interruption.setattr(nnUNetTrainerGenesisPretrain, "on_epoch_start", stop)
            with pytest.raises(KeyboardInterrupt):
                run_stock(interruption, "nnUNetv2_train", *PRETRAIN)
        run_stock(patch, "nnUNetv2_train", *PRETRAIN, "--c")
    return base


def new_trainer(fold: int | str = "all") -> nnUNetTrainerGenesisPretrain:
    return get_trainer_from_args(
        "501", "3d_fullres", fold, "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans", device=CPU
    )


ALL = {"case0", "case2", "case3", *(f"{B}/{case}" for case in ("case1", "case2", "case3", "case4", "renamed"))}
"""Those that are not excluded."""


def test_plans_of_both_are_alike_and_those_of_the_first_name_the_other(two_once):
    first, second = (json.loads((two_once / f"nnUNet_preprocessed/{name}/nnUNetGenesisPlans.json").read_text())
                     for name in (A, B))  # fmt: skip
    ours, theirs = (plans.pop("genesis")["pretraining"] for plans in (first, second))
    assert (ours.pop("datasets"), theirs.pop("datasets")) == ([B], [])
    assert (ours.pop("dataset_weights"), theirs.pop("dataset_weights")) == ([1, 3], [])
    assert (ours.pop("exclude"), theirs.pop("exclude")) == (["case1", f"{B}/case0"][::-1], ["case0"])
    assert ours == theirs
    assert (first.pop("dataset_name"), second.pop("dataset_name")) == (A, B)
    assert first == second


def test_a_training_on_two_datasets_is_interrupted_and_goes_on(two, trained, stock):
    stock("nnUNetv2_train", *PRETRAIN)
    whole, resumed = (
        torch.load(results(base, "nnUNetTrainerGenesisPretrain") / "checkpoint_final.pth", weights_only=True)
        for base in (two, trained)
    )
    for name, tensor in whole["network_weights"].items():
        torch.testing.assert_close(resumed["network_weights"][name], tensor, rtol=1e-3, atol=1e-5)
    assert resumed["genesis"]["settings"]["datasets"] == [B]
    log = "".join(
        path.read_text() for path in results(trained, "nnUNetTrainerGenesisPretrain").glob("training_log*.txt")
    )
    assert "7 volumes to train on, 1 held out" in log
    assert f"Volumes to train on: {A} " in log
    assert " (weight 3)" in log


def test_patches_come_from_both_datasets_as_their_weights_say(two):
    trainer = new_trainer()
    trainer.initialize()
    training, validation = trainer.do_split()
    assert {*training, *validation} == ALL
    batches = trainer._batches(training, TRAINING)
    drawn = [batches._drawn(k)[0].startswith(B) for k in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.75, abs=0.04)
    assert trainer._batches(validation, VALIDATION)[0]["keys"][0] == validation[0]


def test_the_checkpoint_remembers_the_cases_of_both_and_leaks_finds_them(trained, two, capsys):
    checkpoint = results(trained, "nnUNetTrainerGenesisPretrain") / "checkpoint_final.pth"
    assert set(record_in(checkpoint).names) == ALL
    assert run_genesis("leaks", checkpoint, "-d", 4) == 1
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "identical voxels" in rows["case2"]
    assert f"{B}/renamed" in rows["case2"]
    assert f"{B}/case4" in rows["case4"]  # a name of the second dataset alone


def test_a_numbered_fold_splits_the_first_dataset_and_all_of_the_other_trains(two):
    splits = [{"train": ["case0", "case1"], "val": ["case2", "case3"]}]
    (two / f"nnUNet_preprocessed/{A}/splits_final.json").write_text(json.dumps(splits))
    training, validation = new_trainer(0).do_split()
    assert set(validation) == {"case2", "case3"}
    assert {*training, *validation} == ALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configurations__3d_fullres__spacing": [1, 1, 2]}, "of Dataset502_More differ from .* in spacing: plan all"),
        ({"configurations__3d_fullres__normalization_schemes": ["CTNormalization"]}, "in normalization_schemes"),
        ({"configurations__3d_fullres__patch_size": [16, 16, 32]}, "in patch_size"),
        ({"configurations__3d_fullres__architecture__arch_kwargs__n_stages": 2}, "architecture|network"),
        ({"foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}}}, "in foreground_intensity_properties"),
        ({"dataset_name": A}, "in dataset_name"),
        ({"configurations__3d_fullres__data_identifier": "else"}, r"no preprocessed volumes in .*502_More/else. Run: nnunet_genesis preprocess -d 502 -c 3d_fullres -p nnUNetGenesisPlans"),
        ({"configurations__3d_fullres__data_identifier": "../x"}, "data_identifier"),
    ],
)  # fmt: skip
def test_a_dataset_whose_plans_were_changed_is_refused(two, change, message):
    edit_plans(two / f"nnUNet_preprocessed/{B}/nnUNetGenesisPlans.json", **change)
    plans = read_plans(A, "nnUNetGenesisPlans")
    with pytest.raises(DatasetError, match=message) as refusal:
        volumes_folders(plans, "3d_fullres", PretrainingSettings.of_plans(plans))
    assert "\n" not in str(refusal.value)


def test_what_does_not_change_volumes_may_differ(two):
    plans_file = two / f"nnUNet_preprocessed/{B}/nnUNetGenesisPlans.json"
    edit_plans(plans_file, image_reader_writer="NibabelIO",
               configurations__3d_fullres__batch_size=7, genesis__pretraining__epochs=9)  # fmt: skip
    edit_plans(plans_file.with_name("nnUNetGenesisPlans_3d_fullres_preprocessing.json"),
               made_by__image_reader_writer="NibabelIO")  # fmt: skip
    plans = read_plans(A, "nnUNetGenesisPlans")
    folders = volumes_folders(plans, "3d_fullres", PretrainingSettings.of_plans(plans))
    assert {name: folder.parent.name for name, folder in folders.items()} == {"": A, B: B}


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ([A], "names Dataset501_Scans, which is trained itself"),
        (["Dataset503_Gone"], "Dataset503_Gone/nnUNetGenesisPlans.json"),
        ([TARGET], "Dataset004_Target/nnUNetGenesisPlans.json"),
    ],
)
def test_the_trainer_says_in_one_line_which_dataset_is_not_ready(two, stock, datasets, message):
    edit_plans(pretraining_plans(two), genesis__pretraining__datasets=datasets)
    with pytest.raises(SystemExit, match=message) as refusal:
        new_trainer().initialize()
    assert "\n" not in str(refusal.value.code)


def test_the_labeled_dataset_may_be_one_of_them_with_the_volumes_of_nnunet(two):
    (two / f"nnUNet_preprocessed/{TARGET}/splits_final.json").write_text('[{"train": [], "val": ["case1", "case9"]}]')
    assert run_genesis("plan", "-d", 501, 4, "--like", 4, "--fold", 0) == 0
    trainer = new_trainer()
    training, validation = trainer.do_split()
    expected = {"case0", "case2", "case3", *(f"{TARGET}/case{i}" for i in (0, 2, 3, 4))}
    assert {*training, *validation} == expected
    volumes = trainer.indexes.volumes(expected)
    found = {name: volumes.load_case(name)[0].shape for name in volumes.identifiers}
    assert len(found) == 7
    assert trainer.indexes.parts[TARGET].folder.name == "nnUNetPlans_3d_fullres"


def test_preview_draws_patches_of_both(two, tmp_path, capsys):
    assert run_genesis("preview", "-d", 501, "-c", "3d_fullres", "-o", tmp_path / "a.png", "-n", 9) == 0
    said = capsys.readouterr().out
    assert f"{B}/renamed" in said
    assert ", case0" in said


def damage(folder: Path, begin: float) -> None:
    """Blank a third of all volumes, from a share of their bytes on: the beginning is read when one is opened."""
    for volume in folder.glob("*[0-9d].b2nd"):
        content = bytearray(volume.read_bytes())
        first, length = int(begin * len(content)), len(content) // 3
        content[first : first + length] = bytes(length)
        volume.unlink()  # it may be a link
        volume.write_bytes(content)


@pytest.mark.parametrize("begin", [0, 0.3])
def test_a_volume_that_is_damaged_is_named(two, tmp_path, capsys, begin):
    trainer = new_trainer()
    trainer.initialize()
    batches = trainer._batches([f"{B}/case1"], TRAINING)  # the index is of the sound volumes
    damage(two / f"nnUNet_preprocessed/{B}/nnUNetGenesisPlans_3d_fullres", begin)
    said = rf"The volume of (?:{B}/)?\w+ .*cannot be read \(.*\)\. Preprocess it again\.$"
    with pytest.raises(DatasetError, match=said):
        batches.crop(0)
    assert run_genesis("preview", "-d", 501, "-c", "3d_fullres", "-o", tmp_path / "a.png", "-n", 9) == 1
    assert re.search(said, capsys.readouterr().err.splitlines()[-1])
