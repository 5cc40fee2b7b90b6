"""From result files to comparisons, on made-up studies."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from nnunet_genesis.errors import DatasetError, StudyError
from nnunet_genesis.study.comparisons import compare_all, equivalences, paired_scores, run_means, speeds
from nnunet_genesis.study.design import read_study
from nnunet_genesis.study.results import read_results
from tests.study.synthetic import write_synthetic


def change(folder, run, edit):
    path = folder / "results" / f"{run}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def chosen(comparisons, arm="genesis", count=None, metric="Dice", label=None):
    (found,) = [c for c in comparisons if (c.arm, c.count, c.metric, c.label) == (arm, count, metric, label)]
    return found


def test_results_are_those_of_the_files(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.1})
    results = read_results(read_study(tmp_path), tmp_path)
    for a, arm in enumerate(study.arms):
        for n, count in enumerate(study.labels):
            for seed in study.seeds:
                content = json.loads((tmp_path / "results" / f"{arm}_n{count}_s{seed}.json").read_text())
                for metric, scores in results.scores.items():
                    expected = [[label[metric] for label in case.values()] for case in content["cases"].values()]
                    assert scores[a, n, seed].tolist() == expected
                assert results.curves["dice"][a, n, seed].tolist() == content["curve"]["dice"]
                assert results.curves["loss"][a, n, seed].tolist() == content["curve"]["loss"]
    assert results.finished.all()
    assert results.seconds.sum() == 36 * 20
    assert results.devices == {"cpu": 20}
    assert results.versions == {"numpy": {"1"}}


def test_comparisons_equal_scipys_on_the_same_files(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.02, "other": 0.0})
    results = read_results(study, tmp_path)
    comparisons = compare_all(results)
    assert len(comparisons) == 2 * 3 * 3 * 3
    for count, which in ((4, [0]), (16, [1]), (None, [0, 1])):
        for metric, scores in results.scores.items():
            found = chosen(comparisons, count=count, metric=metric)
            first, second = (scores[a][which].mean(axis=(0, 2, 3)) for a in (0, 1))
            test = stats.ttest_rel(second, first)
            assert found.p_t == pytest.approx(test.pvalue, rel=1e-5)
            assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)), abs=1e-7)
            assert found.p_welch == pytest.approx(stats.ttest_ind(second, first, equal_var=False).pvalue)
            cases = [scores[a][which].mean(axis=(0, 1, 3)) for a in (0, 1)]
            assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(cases[1] - cases[0]).pvalue)
            assert found.case_low < found.difference < found.case_high
            assert (found.first, found.second) == pytest.approx((first.mean(), second.mean()))
            assert found.difference == pytest.approx(second.mean() - first.mean(), abs=1e-8)
            better = second < first if metric == "HD95" else second > first
            assert (found.pairs, found.better, found.cases, found.left_out) == (5, better.sum(), 12, 0)
    label = chosen(comparisons, count=4, metric="NSD", label="posterior")
    assert label.first == pytest.approx(results.scores["NSD"][0, 0, ..., 1].mean())
    family = [c for c in comparisons if not math.isnan(c.p_holm)]
    assert len(family) == 2 * 3
    assert all(c.metric == "Dice" and c.label is None for c in family)
    assert min(c.p_holm for c in family) == pytest.approx(min(1, 6 * min(c.p_t for c in family)))


def test_a_study_of_one_label_count_has_no_comparison_of_their_mean(tmp_path):
    results = read_results(write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, counts=[4]), tmp_path)
    assert {c.count for c in compare_all(results)} == {4}


def test_undefined_values_are_left_out_of_both_arms_and_counted(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, counts=[4])
    change(tmp_path, "genesis_n4_s0", lambda content: content["cases"]["case03"]["anterior"].update(Dice=None))
    results = read_results(study, tmp_path)
    first, second, left_out = paired_scores(results, "genesis", 4, "Dice")
    assert left_out == 1
    assert np.isnan(first).sum() == np.isnan(second).sum() == 1
    assert np.isnan(first[0, 0, 3, 0])
    found = chosen(compare_all(results), count=4)
    kept = np.delete(results.scores["Dice"][0, 0, 0, :, 0], 3).mean()
    expected = (kept + results.scores["Dice"][0, 0, 0, :, 1].mean()) / 2
    assert run_means(first)[0, 0] == pytest.approx(expected)
    assert found.left_out == 1
    assert (found.cases, found.pairs) == (12, 5)


def test_a_metric_that_is_never_defined(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, counts=[4], seeds=2, cases=2)
    for run in study.runs():
        for label in ("anterior", "posterior"):
            change(tmp_path, run.name, lambda content, label=label: [
                case[label].update(HD95=None) for case in content["cases"].values()])  # fmt: skip
    found = chosen(compare_all(read_results(study, tmp_path)), count=4, metric="HD95")
    assert (found.pairs, found.cases, found.left_out) == (0, 0, 8)
    assert math.isnan(found.difference)
    assert math.isnan(found.p_t)


def test_only_complete_pairs_of_an_unfinished_study_are_compared(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.1})
    whole = compare_all(read_results(study, tmp_path))
    for run in ("scratch_n4_s1", "genesis_n4_s4", "genesis_n16_s0"):
        (tmp_path / "results" / f"{run}.json").unlink()
    results = read_results(study, tmp_path)
    assert results.missing == ["genesis_n16_s0", "scratch_n4_s1", "genesis_n4_s4"]
    found = compare_all(results)
    assert [chosen(found, count=count).pairs for count in (4, 16, None)] == [3, 4, 2]
    scores = run_means(results.scores["Dice"])
    expected = scores[1, 0, [0, 2, 3]].mean() - scores[0, 0, [0, 2, 3]].mean()
    assert chosen(found, count=4).difference == pytest.approx(expected, abs=1e-8)
    assert {one.left_out for one in found} == {0}  # values of a seed that lacks a run are not looked at at all
    for run in study.runs():
        if run.arm == "genesis":
            (tmp_path / "results" / f"{run.name}.json").unlink(missing_ok=True)
    found = compare_all(read_results(study, tmp_path))
    assert {(c.pairs, math.isnan(c.p_t), math.isnan(c.p_holm)) for c in found} == {(0, True, True)}
    assert len(found) == len(whole)


def test_nothing_finished(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0}, seeds=1)
    for path in (tmp_path / "results").iterdir():
        path.unlink()
    with pytest.raises(StudyError, match="No run of .* is finished"):
        read_results(study, tmp_path)


def test_label_equivalence(tmp_path):
    """Dice rises by 0.08 from 4 to 16 labels; an arm that is better by 0.04 is worth twice the labels."""
    study = write_synthetic(tmp_path, {"scratch": 0.0, "half": 0.04, "far": 0.5, "bad": -0.3, "twin": 0.0},
                            seeds=40, copies=["twin"])  # fmt: skip
    found = {(e.arm, e.count): e for e in equivalences(read_results(study, tmp_path))}
    assert found["half", 4].labels == pytest.approx(8, rel=0.15)
    assert found["half", 4].low < 8 < found["half", 4].high
    assert found["half", 16].labels == math.inf
    assert found["far", 4].labels == found["far", 4].low == math.inf
    assert found["bad", 16].labels == found["bad", 16].high == 0
    assert [found["twin", n].labels for n in (4, 16)] == pytest.approx([4, 16])
    assert [(found["twin", n].low, found["twin", n].high) for n in (4, 16)] == [(4, 4), pytest.approx((16, 16))]
    assert {one.seeds for one in found.values()} == {40}


def test_equivalence_needs_whole_curves(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.04}, seeds=1)
    (found, _) = equivalences(read_results(study, tmp_path))
    assert math.isnan(found.low)
    (tmp_path / "results" / "scratch_n16_s0.json").unlink()
    assert equivalences(read_results(study, tmp_path)) == []


def test_equivalence_by_hand(tmp_path):
    """Dice of scratch is 0.4 and 0.6 in each seed; one draw in 27 is thrice the worst seed: within the outer 2.5 %."""
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, seeds=4, cases=1)
    dice = {("scratch", 4): [0.4] * 4, ("scratch", 16): [0.6] * 4, ("genesis", 4): [0.42, 0.46, 0.54, 0.9],
            ("genesis", 16): [0.6] * 4}  # fmt: skip
    for run in study.runs():
        value = dice[run.arm, run.labels][run.seed]
        change(tmp_path, run.name, lambda content, value=value: [
            label.update(Dice=value) for case in content["cases"].values() for label in case.values()])  # fmt: skip
    (tmp_path / "results" / "genesis_n4_s3.json").unlink()
    found, other = equivalences(read_results(study, tmp_path))
    parts = (0.22 / 3 / 0.2, 0.02 / 0.2, 0.14 / 0.2)
    assert (found.labels, found.low, found.high) == pytest.approx([4 * 4**part for part in parts])
    assert (found.seeds, other.seeds) == (3, 4)


def test_speed(tmp_path):
    """Curves are score * (1 - exp(-steps/33)), of 200 steps; smoothed over 20 of them."""
    study = write_synthetic(tmp_path, {"scratch": 0.0, "faster": 0.1, "worse": -0.2}, seeds=10)
    found = {(s.arm, s.count): s for s in speeds(read_results(study, tmp_path))}
    assert found["scratch", 16].share == 1
    assert 0.2 < found["faster", 16].share < 0.5
    assert found["worse", 16].share == math.inf
    assert found["scratch", 16].final == pytest.approx(0.66, abs=0.03)
    assert found["scratch", 16].gain == pytest.approx(0.0015, abs=0.0008)
    assert found["faster", 4].final == pytest.approx(0.68, abs=0.03)


def test_a_curve_that_is_high_for_one_epoch_has_not_arrived(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": -0.1}, seeds=1, counts=[4])
    change(tmp_path, "genesis_n4_s0", lambda content: content["curve"]["dice"].__setitem__(9, 0.7))
    _, found = speeds(read_results(study, tmp_path))
    assert found.share == math.inf


def test_speeds_are_of_the_seeds_that_both_arms_have_finished(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "twin": 0.0}, copies=["twin"], counts=[4], seeds=3)
    (tmp_path / "results" / "scratch_n4_s0.json").unlink()
    first, twin = speeds(read_results(study, tmp_path))
    assert (first.seeds, twin.seeds) == (2, 2)
    assert (first.share, first.final, first.gain) == (twin.share, twin.final, twin.gain)


def test_speeds_without_scores_are_not_known(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.1}, seeds=1, counts=[4], epochs=3)
    change(tmp_path, "scratch_n4_s0", lambda content: content["curve"].update(dice=[None] * 3))
    assert all(math.isnan(one.share) for one in speeds(read_results(study, tmp_path)))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.pop("cases"), 'has no block "cases"'),
        (lambda c: c.update(cases=[]), 'has no block "cases"'),
        (lambda c: c["cases"].pop("case01"), "other test cases"),
        (lambda c: c["cases"].update(more={}), "other test cases"),
        (lambda c: c["cases"].update(case01=3), 'has no block "case01"'),
        (lambda c: c["cases"]["case01"].pop("anterior"), "other labels"),
        (lambda c: c["cases"]["case01"].update(anterior=None), 'no block "anterior"'),
        (lambda c: c["cases"]["case01"]["anterior"].update(Dice=1.5), "says that Dice is 1.5"),
        (lambda c: c["cases"]["case01"]["anterior"].update(Dice="x\n\x1b[31m"), "says that Dice is x"),
        (lambda c: c["cases"]["case01"]["anterior"].update(Dice=True), "says that Dice is True"),
        (lambda c: c["cases"]["case01"]["anterior"].update(HD95=float("nan")), "says that HD95 is nan"),
        (lambda c: c["cases"]["case01"]["anterior"].update(HD95=float("inf")), "says that HD95 is inf"),
        (lambda c: c["cases"]["case01"]["anterior"].update(HD95=10**400), "says that HD95 is 1000"),
        (lambda c: c["cases"]["case01"]["anterior"].update(HD95=1e300), "says that HD95 is 1e"),
        (lambda c: c["cases"]["case01"]["anterior"].pop("NSD"), "says that NSD is "),
        (lambda c: c.update(study="0" * 64), "is of another study"),
        (lambda c: c.update(run="another"), "holds the run another"),
        (lambda c: c["curve"].update(steps=[1, 2]), "other steps|another length"),
        (lambda c: c["curve"].update(dice=c["curve"]["dice"][:3]), 'no list "dice"'),
        (lambda c: c["curve"].update(loss="x"), 'no list "loss"'),
        (lambda c: c["curve"]["dice"].__setitem__(0, 1.1), "says that dice is 1.1"),
        (lambda c: c["curve"]["dice"].__setitem__(0, -0.1), "says that dice is -0.1"),
        (lambda c: c["cases"]["case01"].update(more=c["cases"]["case01"]["anterior"]), "other labels"),
        (lambda c: c.update(versions=[]), 'no block "versions"'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("run", ["scratch_n4_s0", "genesis_n4_s1"])
def test_odd_result_files_are_named_in_one_line(tmp_path, run, edit, said):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, seeds=2, counts=[4])
    change(tmp_path, run, edit)
    with pytest.raises(StudyError, match=said) as raised:
        read_results(study, tmp_path)
    assert ".json " in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert "Delete it and run the study again." in str(raised.value)


def test_more_numbers_than_memory_holds_are_refused(tmp_path, monkeypatch):
    study = write_synthetic(tmp_path, {"scratch": 0.0}, seeds=1, counts=[4], cases=3, epochs=5)
    monkeypatch.setattr("nnunet_genesis.study.results.MOST_SCORES", 6)
    read_results(study, tmp_path)
    monkeypatch.setattr("nnunet_genesis.study.results.MOST_SCORES", 5)
    with pytest.raises(StudyError, match="more than 5 of them"):
        read_results(study, tmp_path)


def test_steps_ascend_in_every_run(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0}, seeds=1, counts=[4])
    change(tmp_path, "scratch_n4_s0", lambda content: content["curve"]["steps"].__setitem__(1, 10))
    with pytest.raises(StudyError, match="no steps that ascend"):
        read_results(study, tmp_path)


def test_files_that_are_no_json(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0}, seeds=1, counts=[4])
    (tmp_path / "times" / "scratch_n4_s0.json").write_text('{"seconds": -1, "device": "cpu"}')
    with pytest.raises(StudyError, match="times/scratch_n4_s0.json says that seconds is -1"):
        read_results(study, tmp_path)
    (tmp_path / "times" / "scratch_n4_s0.json").unlink()
    assert np.isnan(read_results(study, tmp_path).seconds).all()
    (tmp_path / "results" / "scratch_n4_s0.json").write_text("{")
    with pytest.raises(DatasetError, match="is not valid JSON"):
        read_results(study, tmp_path)
