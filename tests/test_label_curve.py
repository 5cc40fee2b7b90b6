"""The studies of `benchmarks/label_curve.py`: settings and cases are whole, fit each other, and are what commands take."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_genesis.cli import build_parser
from nnunet_genesis.networks.build import target_network
from nnunet_genesis.nnunet_dataset import configuration_of
from nnunet_genesis.study.arms import parse_arm
from tests.conftest import REPOSITORY

SETTINGS, CASES = (
    json.loads((REPOSITORY / "benchmarks/results/label-curve" / name).read_text())
    for name in ("settings.json", "cases.json")
)
STUDIES = sorted(SETTINGS["plans"])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("label_curve")


def test_every_study_has_plans_and_settings(script):
    assert STUDIES == sorted(script.STUDIES) == sorted(SETTINGS.keys() - {"plans"})


def test_no_case_serves_two_purposes():
    development = CASES["development"]
    parts = [CASES["unlabeled"], CASES["test"], development["labeled"], development["test"]]
    assert [len(part) for part in parts] == [100, 60, 20, 20]
    assert len(set(itertools.chain(*parts))) == 200


@pytest.mark.parametrize("study", STUDIES)
def test_the_study_is_planned_with_paired_arms_and_the_cases_of_the_split(script, study):
    block = SETTINGS[study]
    words = list(map(str, script.words_to_plan(Path("here"), block, CASES, study, "cpu")))
    assert words[0] == "nnunet_genesis"
    chosen = build_parser().parse_args(words[1:])
    assert (chosen.c, chosen.pool, chosen.test) == (study, CASES["unlabeled"], CASES["test"])
    assert max(chosen.labels) <= len(CASES["unlabeled"])
    assert chosen.seeds >= 3
    scratch, *others = map(parse_arm, chosen.arm)
    assert scratch.checkpoint is None
    starts = [str(script.checkpoint_of(name, study)) for name in block["pretraining"]]
    assert [str(arm.checkpoint) for arm in others] == starts
    assert not any(arm.settings for arm in (scratch, *others)), "arms differ in their start alone"


@pytest.mark.parametrize("study", STUDIES)
def test_pre_trainings_are_planned_for_as_many_steps_in_every_arm(script, study):
    planned = [
        build_parser().parse_args(list(map(str, script.words_to_pretrain(arm, words)[1:])))
        for arm, words in SETTINGS[study]["pretraining"].items()
    ]
    assert len({(chosen.epochs, chosen.iterations, chosen.learning_rate) for chosen in planned}) == 1
    assert len({chosen.recipe for chosen in planned}) == len(planned)


@pytest.mark.parametrize("study", STUDIES)
def test_the_network_of_the_plans_labels_every_voxel_of_a_patch(script, study):
    plans = script.template_of(SETTINGS["plans"])
    network, _ = target_network(plans, study, {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}})
    patch = configuration_of(plans, study).patch_size
    with torch.no_grad():
        logits = network.eval()(torch.zeros(1, 1, *patch))
    finest = logits if study == "3d_primus" else logits[0]  # U-Nets have deep supervision
    assert finest.shape == (1, 2, *patch)
