"""Which runs a study has, and which cases they train and are tested on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_genesis.errors import StudyError
from nnunet_genesis.study.arms import parse_arm
from nnunet_genesis.study.design import FILE, Run, Study, choose_test, nested_subsets, read_study, write_study

POOL = [f"case{i}" for i in range(12)]


def study(**changes) -> Study:
    labeled = nested_subsets(POOL, 4, [0, 1])
    plain = Study("Dataset004_X", "nnUNetPlans", "2d", {"scratch": {}, "genesis": {}}, [2, 4], [0, 1], ["a", "b"],
                  labeled, {"epochs": 2})  # fmt: skip
    return replace(plain, **changes)


@given(st.integers(1, 12), st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
def test_subsets_are_nested_and_the_same_whatever_else_is_asked_for(most, seeds):
    larger = nested_subsets(POOL, 12, [*seeds, 100])
    for seed, cases in nested_subsets(POOL[::-1], most, seeds).items():
        assert cases == larger[seed][:most]
        assert len(set(cases)) == most


def test_seeds_draw_other_cases():
    drawn = nested_subsets(POOL, 4, range(5))
    assert len({tuple(cases) for cases in drawn.values()}) == 5


def test_arms_are_paired():
    """Whatever the arm: the same labeled cases for the same seed and number of labels; every pair is there once."""
    planned = study()
    for labels in planned.labels:
        for seed in planned.seeds:
            first, second = (planned.cases(Run(arm, labels, seed)) for arm in planned.arms)
            assert first == second
            assert len(first) == labels
            assert not set(first) & set(planned.test)
    names = [run.name for run in planned.runs()]
    assert len(set(names)) == 8
    assert names[:3] == ["scratch_n2_s0", "genesis_n2_s0", "scratch_n4_s0"]


def test_a_share_of_the_cases_to_test_on():
    assert choose_test(POOL, 0.25) == choose_test(POOL[::-1], 0.25)
    assert len(choose_test(POOL, 0.25)) == 3
    assert len(choose_test(POOL, 0.001)) == 1


def test_what_is_written_is_read(tmp_path):
    write_study(study(), tmp_path)
    assert read_study(tmp_path) == study()
    assert json.loads((tmp_path / FILE).read_text())["runs"][0] == "scratch_n2_s0"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": ["case0", "case1", *POOL]}, "is there twice"),
        ({"test": POOL}, "is a test case and a labeled one"),
        ({"test": []}, "must be a list of plain names"),
        ({"test": ["../a"]}, "must be a list of plain names"),
        ({"labels": [4, 2]}, '"labels" must ascend'),
        ({"labels": [0]}, '"labels" must ascend'),
        ({"labels": [True]}, '"labels" must be a list of whole numbers'),
        ({"seeds": [0, 10**300]}, '"seeds" must ascend'),
        ({"labels": [5]}, "5 labels need as many"),
        ({"seeds": [0, 1, 2]}, '"labeled" must have one list'),
        ({"arms": {"../x": {}}}, "cannot name an arm"),
        ({"arms": {"a__b": {}}}, "cannot name an arm"),
        ({"arms": {}}, "at least one arm"),
        ({"arms": {"a": []}}, 'The arm "a" must be a block'),
        ({"dataset": "../x"}, '"dataset" must be a plain name'),
        ({"tolerance_mm": 0}, "tolerance must be above 0"),
        ({"tolerance_mm": 10**400}, "tolerance must be above 0"),
        ({"tolerance_mm": float("inf")}, "tolerance must be above 0"),
        ({"mirroring": 1}, "mirroring true or false"),
        ({"labeled": {"0": POOL[:4], "1": ["case0"] * 4}}, "is there twice"),
    ],
)
def test_what_cannot_be_a_study(tmp_path, changes, said):
    with pytest.raises(StudyError, match=said):
        study(**changes)
    write_study(study(), tmp_path)
    content = json.loads((tmp_path / FILE).read_text()) | changes
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(StudyError, match=said):
        read_study(tmp_path)


def test_the_digest_is_that_of_all_that_decides_about_results(tmp_path):
    write_study(study(versions={"torch": "1"}), tmp_path)
    assert read_study(tmp_path).digest == study().digest
    changes = ({"tolerance_mm": 2.0}, {"test": ["case9"]}, {"fine_tuning": {"epochs": 7}}, {"mirroring": False})
    assert len({study().digest, *(study(**change).digest for change in changes)}) == 1 + len(changes)


@pytest.mark.parametrize("change", [{"format": 2}, {"more": 1}, {"test": None}])
def test_a_file_of_another_kind(tmp_path, change):
    write_study(study(), tmp_path)
    (tmp_path / FILE).write_text(json.dumps(json.loads((tmp_path / FILE).read_text()) | change))
    with pytest.raises(StudyError):
        read_study(tmp_path)


def test_arms_in_words():
    assert parse_arm("scratch") == parse_arm("scratch=scratch")
    arm = parse_arm("slow=a/b.pth,learning_rate=0.001,warmup=2")
    assert (arm.name, str(arm.checkpoint), arm.settings) == ("slow", "a/b.pth", {"learning_rate": 0.001, "warmup": 2})
    assert parse_arm("mine=scratch").checkpoint is None


@pytest.mark.parametrize("text", ["genesis", "genesis=", "a=b.pth,epochs=3", "a=b.pth,seed=3", "a=b.pth,warmup=x",
                                  "a=b.pth,nothing=1", "a=b.pth,weights=x"])  # fmt: skip
def test_arms_that_cannot_be_read(text):
    with pytest.raises(StudyError, match="--arm"):
        parse_arm(text)
