"""Plans for several datasets at once: written into all of them, or into none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_genesis
from tests.test_planning import plans_of, raw, write_plans  # noqa: F401 (raw is a fixture)

A, B, T = "Dataset501_D", "Dataset502_D", "Dataset004_D"


@pytest.fixture
def place(nnunet: Path, raw: Any) -> Path:  # noqa: F811
    """Unlabeled 501 and 502, labeled and planned 4; each with the cases a and b, the last with a split."""
    raw(501, "T1")
    raw(502, "t1", ending=".nrrd")
    raw(4, "T1", labeled=True)
    write_plans(nnunet, 4)
    splits = [{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["z", "b"]}, {"train": ["a"], "val": ["z"]}]
    (nnunet / f"nnUNet_preprocessed/{T}/splits_final.json").write_text(json.dumps(splits))
    return nnunet


def plan(*flags: object) -> int:
    return run_genesis("plan", "-p", "Ours", *flags)


def block(place: Path, number: int) -> dict[str, Any]:
    return plans_of(place, number, "Ours")["genesis"]["pretraining"]


def written(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "nnUNet_preprocessed").rglob("Ours.json"))


@pytest.mark.parametrize("source", [("--like", 4), ("--template", "tiny")])
def test_every_dataset_gets_plans_and_the_first_names_the_others(place, source, capsys):
    assert plan("-d", 501, B, *source, "--epochs", 7) == 0
    assert f"plans of that name for {B}, too. Preprocess all of them, and train {A}" in capsys.readouterr().out
    for number in (501, 502):
        folder = place / f"nnUNet_preprocessed/Dataset{number}_D"
        assert json.loads((folder / "dataset_fingerprint.json").read_text())["spacings"]
        assert (
            json.loads((folder / "dataset.json").read_text())["file_ending"] == {501: ".nii.gz", 502: ".nrrd"}[number]
        )
        assert plans_of(place, number, "Ours")["dataset_name"] == f"Dataset{number}_D"
    assert block(place, 501)["datasets"] == [B]
    assert block(place, 501) | {"datasets": []} == block(place, 502)
    assert block(place, 502)["epochs"] == 7


def test_the_target_among_them_keeps_its_volumes(place):
    assert plan("-d", 501, 4, "--like", 4, "--dataset-weights", 1, 0.5) == 0
    identifiers = [plans_of(place, number, "Ours")["configurations"]["3d_fullres"]["data_identifier"]
                   for number in (501, 4)]  # fmt: skip
    kept = plans_of(place, 4, "nnUNetPlans")["configurations"]["3d_fullres"]["data_identifier"]
    assert identifiers == ["Ours_3d_fullres", kept]
    assert (block(place, 501)["dataset_weights"], block(place, 4)["dataset_weights"]) == ([1, 0.5], [])


def test_a_fold_is_left_out_of_every_dataset_that_has_its_cases(place, capsys):
    assert plan("-d", 501, 4, "--like", 4, "--fold", 1, "--exclude", f"{T}/a") == 0
    assert block(place, 501)["exclude"] == [f"{T}/a", f"{T}/b", "b"]
    assert block(place, 4)["exclude"] == ["a", "b"]  # also in a pre-training on the target alone
    told = capsys.readouterr().out
    assert f"{A} or {T} has no case of the name of 1 of 2 validation cases (z)" in told
    assert plan("-d", 4, 501, "--like", 4, "--fold", 0) == 0
    assert block(place, 4)["exclude"] == [f"{A}/b", "b"]
    assert "WARNING" not in capsys.readouterr().out
    (place / f"nnUNet_raw/{A}/imagesTr/b_0000.nii.gz").rename(place / f"nnUNet_raw/{A}/imagesTr/c_0000.nii.gz")
    assert plan("-d", 501, 4, "--like", 4, "--fold", 0) == 0
    assert block(place, 501)["exclude"] == [f"{T}/b"]
    assert plan("-d", 501, 4, "--like", 4, "--fold", 2) == 1
    assert f"No case of {A} or {T} has the name of a validation case of fold 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-d", 501, 502, 501), f"-d names {A} twice"),
        (("-d", 501, 503), "No dataset 503"),
        (("-d", 501, 502, "--exclude", f"{B}/c"), f"{B} has no case c, which is to be excluded"),
        (("-d", 501, 502, "--exclude", "Dataset503_D/a"), f"{A} or {B} has no case Dataset503_D/a, which is to"),
        (("-d", 501, 502, "--exclude", f"{A}/a"), f"{A}/a is to be excluded: name it a, since cases of the first"),
        (("-d", 501, 502, "--exclude", "/a"), f"{A} has no case /a"),  # the trainer would not leave out a
        (("-d", 501, 502, "--dataset-weights", 1), "1 numbers, for 2 datasets"),
        (("-d", 501, "--dataset-weights", 1), "1 numbers, for 1 datasets"),
        (("-d", 501, 502, "--dataset-weights", 1, "nan"), "must be a list of numbers"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_written(place, capsys, flags, message):
    assert plan(*flags, "--like", 4) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not written(place)
    assert not (place / f"nnUNet_preprocessed/{B}").exists()
    assert not (place / f"nnUNet_preprocessed/{A}").exists()


def change_description(place: Path, dataset: str, **changes: Any) -> None:
    path = place / f"nnUNet_raw/{dataset}/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("source", [("--like", 4), ("--template", "tiny")])
def test_a_dataset_that_does_not_fit_keeps_all_from_being_planned(place, source, capsys):
    change_description(place, B, channel_names={"0": "T2"})
    assert plan("-d", 501, 502, *source) == 1
    assert f"The channels of {B} are T2, those of {T if 4 in source else A} are T1" in capsys.readouterr().err
    change_description(place, B, channel_names={"0": "T1"}, file_ending=".dcm")
    assert plan("-d", 501, 502, *source) == 1
    assert ".dcm" in capsys.readouterr().err
    change_description(place, B, file_ending=".nrrd")
    (place / f"nnUNet_preprocessed/{B}").mkdir()
    (place / f"nnUNet_preprocessed/{B}/Ours.json").write_text("{}")
    assert plan("-d", 501, 502, *source) == 1
    assert f"The plans Ours of {B} exist and would be overwritten" in capsys.readouterr().err
    assert not (place / f"nnUNet_preprocessed/{A}").exists()


def test_the_targets_own_plans_are_not_overwritten_where_it_is_not_the_first(place, capsys):
    before = plans_of(place, 4, "nnUNetPlans")
    assert run_genesis("plan", "-d", 501, 4, "--like", 4, "-p", "nnUNetPlans") == 1
    assert f"The plans nnUNetPlans of {T} would be overwritten" in capsys.readouterr().err
    assert plans_of(place, 4, "nnUNetPlans") == before


def test_preprocess_looks_at_all_datasets_before_it_starts(place, capsys):
    assert plan("-d", 501, 4, "--like", 4) == 0
    assert run_genesis("preprocess", "-d", 501, 4, "-c", "3d_fullres", "-p", "Ours", "-np", 1) == 1
    assert f"{T} has labels" in capsys.readouterr().err
    assert not (place / f"nnUNet_preprocessed/{A}/Ours_3d_fullres").exists()
