"""What a report says, of made-up studies whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nnunet_genesis.study.comparisons import compare_all, equivalences, speeds
from nnunet_genesis.study.conclusions import (
    BETTER,
    NOT_SHOWN,
    NOT_TESTED,
    WORSE,
    cautions,
    conclude,
    definitions,
    verdict,
)
from nnunet_genesis.study.results import read_results
from tests.study.synthetic import write_synthetic


def concluded(folder, effects, **options):
    """What is said of the last arm, and the verdicts on it."""
    study = write_synthetic(folder, effects, **options)
    results = read_results(study, folder)
    comparisons = compare_all(results)
    found = conclude(study, comparisons, equivalences(results), speeds(results))
    assert [one.arm for one in found] == list(effects)[1:]
    arm = found[-1].arm
    return found[-1], {one.count: verdict(one) for one in comparisons if one.in_family and one.arm == arm}


def test_two_identical_arms(tmp_path):
    said, verdicts = concluded(tmp_path, {"scratch": 0.0, "twin": 0.0}, copies=["twin"])
    assert verdicts == {4: NOT_SHOWN, 16: NOT_SHOWN, None: NOT_SHOWN}
    assert said.headline == "twin: no difference shown against scratch"
    assert (
        "0.000 (95 % interval 0.000 to 0.000; p = 1.000 after correction; higher in 0 of 5 seeds)" in said.sentences[0]
    )
    assert "those within the interval remain possible" in said.sentences[3]
    assert "4 as 4 (4); 16 as 16 (16)" in " ".join(said.sentences)


@pytest.mark.parametrize(("effect", "expected"), [(0.1, BETTER), (-0.1, WORSE)])
def test_a_clear_difference_is_found(tmp_path, effect, expected):
    said, verdicts = concluded(tmp_path, {"scratch": 0.0, "genesis": effect})
    assert set(verdicts.values()) == {expected}
    assert said.headline == f"genesis: {expected} than scratch (all label counts, 4 labels, 16 labels)"
    assert f"With 4 labels: {expected} than scratch" in said.sentences[1]
    assert f"higher in {5 * (effect > 0)} of 5 seeds" in said.sentences[1]
    other = "more than 16" if effect > 0 else "fewer than 4"
    assert f"16 as {other}" in " ".join(said.sentences) or f"4 as {other}" in " ".join(said.sentences)


def test_false_alarms_in_twenty_studies(tmp_path):
    """Of arms without any difference: nominal are one in twenty; more than three have a chance of 1.6 %."""
    alarms = 0
    for repeat in range(20):
        folder = tmp_path / str(repeat)
        _, verdicts = concluded(folder, {"scratch": 0.0, "same": 0.0}, seed=repeat, cases=6, epochs=5)
        alarms += not set(verdicts.values()) <= {NOT_SHOWN}
    assert alarms <= 3


def test_many_comparisons_ask_for_more(tmp_path):
    """A difference that would be told alone is not told as one of many."""
    effects = {"scratch": 0.0, **{f"arm{i}": 0.0 for i in range(8)}, "genesis": 0.027}
    _, many = concluded(tmp_path / "many", effects, counts=[4], seeds=6)
    study = write_synthetic(tmp_path / "many", effects, counts=[4], seeds=6)
    two = replace(study, arms={arm: study.arms[arm] for arm in ("scratch", "genesis")})
    (alone,) = (one for one in compare_all(read_results(two, tmp_path / "many")) if one.in_family)
    assert verdict(alone) == BETTER
    assert many == {4: NOT_SHOWN}


def test_one_seed_is_not_tested(tmp_path):
    said, verdicts = concluded(tmp_path, {"scratch": 0.0, "genesis": 0.1}, seeds=1)
    assert set(verdicts.values()) == {NOT_TESTED}
    assert said.headline == "genesis: not tested"
    assert "two complete pairs of runs at least, and there are 1" in said.sentences[0]


def test_arms_that_differ_with_few_labels_only(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.2})
    for path in (tmp_path / "results").glob("genesis_n16_*"):
        content = json.loads((tmp_path / "results" / path.name.replace("genesis", "scratch")).read_text())
        path.write_text(json.dumps(content | {"run": path.stem, "arm": "genesis"}))
    results = read_results(study, tmp_path)
    (said,) = conclude(study, compare_all(results), equivalences(results), speeds(results))
    assert "With 16 labels: no difference shown" in said.sentences[2]
    assert said.headline == "genesis: better than scratch (all label counts, 4 labels)"


def test_cautions(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, seeds=2)
    results = read_results(study, tmp_path)
    assert cautions(results, compare_all(results), speeds(results)) == ["2 seeds: only large differences can be shown."]
    (tmp_path / "results" / "genesis_n4_s1.json").unlink()
    leaky = replace(study, leaks={"genesis": ["case01: same voxels as\nin pre-training"], "scratch": []})
    results = read_results(leaky, tmp_path)
    leak, unfinished, _ = cautions(results, compare_all(results), speeds(results))
    assert leak.startswith("Leak: genesis has seen test cases")
    assert "case01: same voxels as in pre-training" in leak
    assert "1 of 8 runs are missing (genesis_n4_s1)" in unfinished


def test_a_training_that_was_too_short(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0})
    for path in (tmp_path / "results").glob("scratch_n16_*"):
        content = json.loads(path.read_text())
        content["curve"]["dice"] = [e / 30 for e in range(20)]
        path.write_text(json.dumps(content))
    results = read_results(study, tmp_path)
    (said,) = cautions(results, compare_all(results), speeds(results))
    assert "scratch has not converged with 16 labels" in said
    assert "still rose by 0.067" in said
    (about,) = conclude(study, compare_all(results), equivalences(results), speeds(results))
    assert "its curve is flat" not in " ".join(about.sentences)


def test_only_the_first_arm_with_most_labels_must_have_converged(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0})
    rising = [*(tmp_path / "results").glob("genesis_n16_*"), *(tmp_path / "results").glob("scratch_n4_*")]
    for path in rising:
        content = json.loads(path.read_text())
        content["curve"]["dice"] = [e / 30 for e in range(20)]
        path.write_text(json.dumps(content))
    results = read_results(study, tmp_path)
    assert cautions(results, compare_all(results), speeds(results)) == []
    (said,) = conclude(study, compare_all(results), equivalences(results), speeds(results))
    assert "In its last tenth scratch changed by +0.00" in " ".join(said.sentences)


def test_of_one_epoch_nobody_knows_whether_it_has_converged(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, epochs=1)
    results = read_results(study, tmp_path)
    (said,) = cautions(results, compare_all(results), speeds(results))
    assert said.startswith("Whether scratch has converged with 16 labels is not known")


def test_lower_is_better_for_distances(tmp_path):
    """No conclusion is drawn from them today, but a verdict on them would be right."""
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.1}, counts=[4])
    (one,) = (o for o in compare_all(read_results(study, tmp_path)) if (o.metric, o.label) == ("HD95", None))
    assert one.difference < 0
    assert verdict(replace(one, p_holm=0.01)) == BETTER


def test_undefined_values_are_told(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0})
    path = tmp_path / "results" / "scratch_n16_s0.json"
    content = json.loads(path.read_text())
    content["cases"]["case00"]["anterior"]["Dice"] = None
    path.write_text(json.dumps(content))
    results = read_results(study, tmp_path)
    (said,) = cautions(results, compare_all(results), speeds(results))
    assert "up to 1 value of Dice" in said


def test_definitions_name_the_family(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "a": 0.0, "b": 0.0}, counts=[4, 8, 16], seeds=2)
    results = read_results(study, tmp_path)
    text = " ".join(definitions(results, compare_all(results)))
    assert "all 8 comparisons" in text
    assert "mean over label counts" in text
