"""Volumes of several datasets as one set: names, draws, splits, records, and what is refused."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_genesis.batches import load
from nnunet_genesis.errors import DatasetError, SettingsError
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.leaks.case_record import CaseRecord
from nnunet_genesis.leaks.search import NAMESAKE, search
from nnunet_genesis.nnunet_dataset import configuration_of, made_by, record_of
from nnunet_genesis.pretraining.patches import TRAINING, VALIDATION, hold_out
from nnunet_genesis.pretraining.volumes import Indexes, JoinedVolumes, changed_since, in_words, split, volumes_folders
from nnunet_genesis.resources import plans_folder
from nnunet_genesis.settings import MOST_DATASETS, PretrainingSettings, by_dataset, named
from tests.pretraining.test_patches import Volumes, batches, noise, same
from tests.test_volume_index import write

FEW = [noise(1, 10, 10 + i, 11, seed=i) for i in range(2)]
MANY = [noise(1, 12, 10 + i, 9, seed=10 + i) for i in range(6)]
B, C = "Dataset502_B", "Dataset503_C"
FULL = "3d_fullres"


def joined() -> JoinedVolumes:
    return JoinedVolumes({"": Volumes(*FEW), B: Volumes(*MANY)})


def keys(count: int, **changes) -> list[str]:
    source = batches(joined(), batch_size=1, global_batch_size=1, minimum_contrast=0.0, **changes)
    return [source._drawn(k)[0] for k in range(count)]


def test_cases_of_further_datasets_have_names_of_their_own_and_volumes_of_their_own():
    volumes = joined()
    expected = ["case0", "case1", *(f"{B}/case{i}" for i in range(6))]
    assert list(volumes.identifiers) == [volumes.identifiers[i] for i in range(8)] == expected
    assert volumes.identifiers[1:4] == expected[1:4]
    assert volumes.identifiers[-1] == expected[-1]
    with pytest.raises(IndexError):
        volumes.identifiers[8]
    for name, array in zip(expected, [*FEW, *MANY], strict=True):
        assert volumes.load_case(name)[0] is array
    for empty in ({"": Volumes(), B: Volumes(*MANY)}, {"": Volumes(*MANY), B: Volumes(), C: Volumes()}):
        assert len(list(JoinedVolumes(empty).identifiers)) == 6


def test_names_are_taken_apart_as_they_were_put_together():
    names = ["a", f"{B}/a", "/b", f"{C}/x", f"{B}/c"]
    assert by_dataset(names) == {"": ["a", "/b"], B: ["a", "c"], C: ["x"]}
    assert sorted(named(dataset, case) for dataset, cases in by_dataset(names).items() for case in cases) == sorted(
        names
    )


@pytest.mark.parametrize("stream", [TRAINING, VALIDATION])
@pytest.mark.parametrize("crops", [1, 2])
def test_one_dataset_gives_the_patches_that_it_gave(stream, crops):
    changes = {"stream": stream, "crops_per_volume": crops, "seed": 3}
    plain, alone = batches(Volumes(*MANY), **changes), batches(JoinedVolumes({"": Volumes(*MANY)}), **changes)
    assert all(same(plain[number], alone[number]) for number in range(5))


def test_without_weights_several_datasets_are_drawn_from_as_one():
    whole = Volumes(*FEW, *MANY)
    found, expected = batches(joined(), seed=2), batches(whole, seed=2)
    for number in range(6):
        one, other = found[number], expected[number]
        assert torch.equal(one["data"], other["data"])
        assert one["keys"] == [joined().identifiers[whole.identifiers.index(case)] for case in other["keys"]]
    drawn = keys(4000)
    shares = [drawn.count(name) / 4000 for name in joined().identifiers]
    assert shares == pytest.approx([1 / 8] * 8, abs=0.02)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (0.02, 0.01)])
def test_weights_say_how_often_a_dataset_is_drawn_and_its_volumes_are_alike(weights):
    drawn = keys(4000, weights=weights)
    shares = [weight / sum(weights) for weight in weights]
    few, many = shares[0] / 2, shares[1] / 6
    found = [drawn.count(name) / 4000 for name in joined().identifiers]
    assert found == pytest.approx([few] * 2 + [many] * 6, abs=0.025)


def test_validation_walks_through_the_volumes_of_all_datasets_whatever_the_weights():
    walk = keys(16, stream=VALIDATION, weights=(1.0, 1000.0))
    assert sorted(walk[:8]) == sorted(joined().identifiers)
    assert walk[:8] == walk[8:]


def test_weighted_patches_do_not_depend_on_workers_and_gpus():
    changes = {"weights": (2.0, 1.0), "crops_per_volume": 2}
    source = batches(joined(), batch_size=4, global_batch_size=4, **changes)
    alone = list(itertools.islice(load(source, itertools.count(), 0, False), 4))
    shared = list(itertools.islice(load(source, itertools.count(), 2, False), 4))
    assert all(map(same, alone, shared))
    parts = [batches(joined(), batch_size=2, global_batch_size=4, first=first, **changes)[3] for first in (0, 2)]
    assert alone[3]["keys"] == [key for part in parts for key in part["keys"]]
    assert torch.equal(alone[3]["data"], torch.cat([part["data"] for part in parts]))
    for batch in alone:
        assert batch["keys"][0] == batch["keys"][1]  # crops of a volume
        assert batch["keys"][2] == batch["keys"][3]


# indexes


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Two datasets with volumes of the same names, and of other voxels."""
    for dataset, seeds in (("A", (0, 1, 2)), (B, (3, 4))):
        (tmp_path / dataset).mkdir()
        for number, seed in enumerate(seeds):
            write(tmp_path / dataset / "plans", f"case{number}", seed)
    return {"": tmp_path / "A/plans", B: tmp_path / B / "plans"}


def test_a_volume_is_found_by_the_name_of_its_dataset(folders):
    indexes = Indexes.of(folders)
    assert indexes.readable() == ["case0", "case1", "case2", f"{B}/case0", f"{B}/case1"]
    assert indexes.of_further() == [f"{B}/case0", f"{B}/case1"]
    volumes = pickle.loads(pickle.dumps(indexes.volumes([f"{B}/case1", "case2", "case0"])))
    assert len(pickle.dumps(volumes)) < 2000  # names of files, not what is in them
    assert list(volumes.identifiers) == ["case0", "case2", f"{B}/case1"]
    assert volumes.counts == (2, 1)
    for name, depth in (("case2", 11), (f"{B}/case1", 13)):
        assert volumes.load_case(name)[0].shape[1] == depth
    with pytest.raises(DatasetError, match=r"no volume of case2 in .*Dataset502_B/plans"):
        indexes.volumes([f"{B}/case2"])
    assert list(indexes.volumes(["case1"]).identifiers) == ["case1"]


def test_what_is_excluded_or_damaged_in_one_dataset_stays_in_the_other(folders):
    assert Indexes.of(folders).admitted(["case0", f"{B}/case0"], ["case0"]) == [f"{B}/case0"]
    assert Indexes.of(folders).admitted(["case0", f"{B}/case0"], [f"{B}/case0"]) == ["case0"]
    (folders[B] / "case1.b2nd").write_bytes(b"no volume")
    indexes = Indexes.of(folders)
    assert indexes.admitted(["case1", f"{B}/case1"], []) == ["case1"]
    assert indexes.readable() == ["case0", "case1", "case2", f"{B}/case0"]
    assert len(indexes.warnings()) == 1


def test_the_record_holds_the_cases_of_all_datasets_and_leaks_finds_them(folders):
    indexes = Indexes.of(folders)
    record = indexes.record([f"{B}/case1", "case2", f"{B}/case0"])
    assert set(zip(record.names, map(bytes, record.digests), strict=True)) == {
        (named(dataset, case), bytes(digest))
        for dataset, case in (("", "case2"), (B, "case0"), (B, "case1"))
        for digest in indexes.parts[dataset].columns["digests"][int(case[-1])]
    }
    new = noise(12, 12, 12, seed=99)
    stored = np.array(indexes.volumes([f"{B}/case1"]).load_case(f"{B}/case1")[0])
    hits = {hit.case: hit for hit in search(record, [("case0", [new]), ("case2", [new]), ("other", stored)])}
    assert (hits["case0"].kind, hits["case0"].other) == (NAMESAKE, f"{B}/case0")
    assert (hits["case2"].kind, hits["case2"].other) == (NAMESAKE, "case2")
    assert (hits["other"].kind, hits["other"].other) == ("identical voxels", f"{B}/case1")
    alone = Indexes.of({"": folders[""]})
    assert alone.record(["case1", "case0"]).names == alone.parts[""].record(["case1", "case0"]).names


def test_the_record_of_one_dataset_is_not_copied(folders):
    alone, cases = Indexes.of({"": folders[""]}), ["case0"] * 500
    tracemalloc.start()
    size = alone.record(cases).signatures.nbytes
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * size


def test_volumes_with_another_number_of_channels_are_refused(folders):
    for path in folders[B].glob("*.b2nd"):
        path.unlink()
    write(folders[B], "case0", 1, channels=3)
    with pytest.raises(DatasetError, match=r"A/plans have 2 channels, those in .*502_B/plans 3"):
        Indexes.of(folders)


def test_the_hold_out_is_drawn_from_all_volumes_and_stays_when_a_dataset_is_added():
    first, more = [f"case{i}" for i in range(200)], [f"{B}/case{i}" for i in range(100)]
    settings = PretrainingSettings(datasets=(B,), seed=4)
    training, validation = split(first + more, settings)
    assert (training, validation) == hold_out(first + more, 0.1, 4)
    assert len(validation) == 30
    assert 0 < sum(name.startswith(B) for name in validation) < 30
    before = set(split(first, settings)[1])
    assert len(before - set(validation)) <= 6
    with pytest.raises(DatasetError, match="leave no case to pre-train on"):
        split([], settings)


def test_the_log_says_how_many_volumes_of_each_dataset_are_trained_on():
    settings = PretrainingSettings(datasets=(B,))
    assert in_words(joined(), settings, "Dataset501_A") == f"Volumes to train on: Dataset501_A 2, {B} 6"
    weighted = PretrainingSettings(datasets=(B,), dataset_weights=(1, 0.5))
    assert in_words(joined(), weighted, "Dataset501_A").endswith(f"Dataset501_A 2 (weight 1), {B} 6 (weight 0.5)")
    assert in_words(JoinedVolumes({"": Volumes()}), PretrainingSettings(), "Dataset501_A") == ""


@pytest.mark.parametrize(("empty", "name"), [("", "Dataset501_A"), (B, B)])
def test_a_weight_of_a_dataset_without_volumes_to_train_on_is_refused(empty, name):
    volumes = JoinedVolumes({"": Volumes(*FEW), B: Volumes(*MANY)} | {empty: Volumes()})
    with pytest.raises(DatasetError, match=f"No volume of {name} is left to train on"):
        in_words(volumes, PretrainingSettings(datasets=(B,), dataset_weights=(1, 1)), "Dataset501_A")
    assert f"{name} 0" in in_words(volumes, PretrainingSettings(datasets=(B,)), "Dataset501_A")


# folders


@pytest.mark.parametrize("changed", ["Dataset501_A", B])
def test_volumes_that_plans_of_before_have_made_are_refused(nnunet, changed):
    """All plans are of one command, but one dataset was not preprocessed after it."""
    for dataset in ("Dataset501_A", B):
        plans = read_json(plans_folder() / "tiny.json", "The template", "") | {"dataset_name": dataset}
        folder = nnunet / f"nnUNet_preprocessed/{dataset}/{configuration_of(plans, FULL).data_identifier}"
        folder.mkdir(parents=True)
        (folder / "case.b2nd").touch()
        write_json(plans, folder.with_name(f"{plans['plans_name']}.json"))
        write_json({"made_by": made_by(plans, FULL)}, record_of(folder))
    trained = plans | {"dataset_name": "Dataset501_A"}
    assert list(volumes_folders(trained, FULL, PretrainingSettings(datasets=(B,)))) == ["", B]
    record = record_of(nnunet / f"nnUNet_preprocessed/{changed}/{folder.name}")
    write_json({"made_by": made_by(plans, FULL) | {"spacing": [3, 3, 3]}}, record)
    with pytest.raises(DatasetError, match=rf"{changed}/\S* were preprocessed with other plans \(spacing changed\)"):
        volumes_folders(trained, FULL, PretrainingSettings(datasets=(B,)))


# settings


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"datasets": "Dataset502_B"}, '"datasets" must be a list of different names'),
        ({"datasets": [B, B]}, '"datasets" must be a list of different names'),
        ({"datasets": [["a"]]}, '"datasets" must be a list of different names'),
        ({"datasets": ["502"]}, '"datasets" must be names such as Dataset502_ChestCT, which "502" is not'),
        ({"datasets": ["Dataset502_B/../../secret"]}, "must be names such as"),
        ({"datasets": ["../Dataset502_B"]}, "must be names such as"),
        ({"datasets": ["Dataset502_B\n"]}, "must be names such as"),
        ({"datasets": [f"Dataset{i:03d}_B" for i in range(MOST_DATASETS)]}, "at most 100 datasets, not 101"),
        ({"dataset_weights": [1]}, '"dataset_weights" has 1 numbers, for 1 datasets. Give .* or none'),
        ({"datasets": [B], "dataset_weights": [1]}, "1 numbers, for 2 datasets"),
        ({"datasets": [B], "dataset_weights": [1, 1, 1]}, "3 numbers, for 2 datasets"),
        ({"datasets": [B], "dataset_weights": [1, 0]}, '"dataset_weights" must be above 0, not 0'),
        ({"datasets": [B], "dataset_weights": [-1, 1]}, '"dataset_weights" must be above 0'),
        ({"datasets": [B], "dataset_weights": [1, 1e7]}, '"dataset_weights" must be at most 1000000'),
        ({"datasets": [B], "dataset_weights": [1, float("nan")]}, '"dataset_weights" must be a list of numbers'),
        ({"datasets": [B], "dataset_weights": [1, float("inf")]}, '"dataset_weights" must be a list of numbers'),
        ({"datasets": [B], "dataset_weights": [1, 10**400]}, '"dataset_weights" must be a list of numbers'),
        ({"datasets": [B], "dataset_weights": [1, "1"]}, '"dataset_weights" must be a list of numbers'),
        ({"datasets": [B], "dataset_weights": 1}, '"dataset_weights" must be a list of numbers'),
    ],
)
def test_wrong_settings_are_named(block, message):
    with pytest.raises(SettingsError, match=message) as refusal:
        PretrainingSettings.of_plans({"plans_name": "P", "genesis": {"pretraining": block}})
    assert "\n" not in str(refusal.value)


def test_a_further_dataset_alone_leaves_out_its_own_cases():
    settings = PretrainingSettings(datasets=(B, C), dataset_weights=(1, 2, 3), exclude=("x", f"{B}/x", f"{C}/y"))
    assert PretrainingSettings.of_plans({"genesis": {"pretraining": settings.block()}}) == settings
    assert settings.of_further(B) == PretrainingSettings(exclude=("x",))
    assert settings.of_further(C) == PretrainingSettings(exclude=("y",))


def seen(**digests: int) -> CaseRecord:
    """A row of two channels for each case."""
    names = [name for name in digests for _ in range(2)]
    rows = np.repeat(np.array(list(digests.values()), np.uint8), 2)[:, None].repeat(16, 1)
    return CaseRecord(tuple(names), rows, np.zeros((len(names), 4096), np.int8))


def test_a_training_that_goes_on_says_which_cases_are_others():
    before = seen(a=1, b=2, c=3)
    assert changed_since(before, seen(c=3, b=2, a=1)) == ""
    assert "before: 1 changed (b). It goes on" in changed_since(before, seen(a=1, b=9, c=3))
    assert "before: 1 not trained on any more (a). It" in changed_since(before, seen(b=2, c=3))
    more = changed_since(before, seen(a=7, c=3, z=4, y=5, x=6, **{"v\nw": 1}))
    assert "1 changed (a), 4 new (v w, x, y, …), 1 not trained on any more (b). It goes on" in more
