"""Plans and preprocessed datasets → the volumes to pre-train on, as one set: of one dataset, or of several together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, overload

import numpy as np

from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.leaks.case_record import CaseRecord
from nnunet_genesis.nnunet_dataset import check_configuration, configuration_of, made_by, read_plans, refuse_other_plans
from nnunet_genesis.preflight import volumes_folder
from nnunet_genesis.pretraining.patches import hold_out
from nnunet_genesis.settings import PretrainingSettings, by_dataset, named
from nnunet_genesis.volume_index import IndexedVolumes, VolumeIndex, index_of

SHOWN = 3
"""Cases that a warning names."""


def volumes_folders(plans: dict[str, Any], configuration: str, settings: PretrainingSettings) -> dict[str, Path]:
    """Folders of the preprocessed volumes of all datasets, by their names, "" for that which is trained.

    Raises:
        DatasetError: Volumes or plans of one are missing (the message says what to run), or its plans of the same name
            would make other volumes or another network; volumes were made by other plans than those of today; or the
            settings name that which is trained.
    """
    folders, trained = {"": _made_folder(plans, configuration)}, plans["dataset_name"]
    if trained in settings.datasets:
        raise DatasetError(f'The setting "datasets" names {trained}, which is trained itself. Name the others alone.')
    for dataset in settings.datasets:
        own = read_plans(dataset, plans["plans_name"])
        check_configuration(own, configuration)
        ours, theirs = _comparable(plans, configuration, trained), _comparable(own, configuration, dataset)
        if different := [key for key in ours if ours[key] != theirs[key]]:
            raise DatasetError(
                f"The plans {plans['plans_name']} of {dataset} differ from those of {trained} in "
                f"{', '.join(different)}: plan all datasets of a pre-training with one command (plan -d)."
            )
        folders[dataset] = _made_folder(own, configuration)
    return folders


def _made_folder(plans: dict[str, Any], configuration: str) -> Path:
    """The folder of the volumes, which these plans have made, not those that were there before."""
    folder = volumes_folder(plans, configuration)
    refuse_other_plans(made_by(plans, configuration), folder)
    return folder


def _comparable(plans: Mapping[str, Any], configuration: str, dataset: str) -> dict[str, Any]:
    """What must be equal in the plans of all datasets: what decides on volumes, readers of files aside, and network."""
    chosen = configuration_of(plans, configuration).configuration
    of_volumes = {key: value for key, value in made_by(plans, configuration).items() if key != "image_reader_writer"}
    others = {key: chosen[key] for key in ("patch_size", "architecture")}
    # plans that were copied from another dataset name its volumes
    return {"dataset_name": plans["dataset_name"] == dataset} | of_volumes | others


@dataclass(frozen=True)
class Indexes:
    """The indexes of the datasets of a pre-training, by their names, "" for that which is trained.

    Cases of further datasets have names such as `Dataset502_B/case`: those of two datasets may be called alike.
    """

    parts: Mapping[str, VolumeIndex]

    @classmethod
    def of(cls, folders: Mapping[str, Path]) -> Indexes:
        """Those of folders of volumes, each brought up to date.

        Raises:
            DatasetError: One cannot be made, or volumes of two datasets differ in their number of channels.
        """
        indexes = cls({dataset: index_of(folder) for dataset, folder in folders.items()})
        channels = {index.columns["spreads"].shape[1]: index.folder for index in indexes.parts.values()}
        if len(channels) > 1:
            (one, folder), (other, another), *_ = channels.items()
            raise DatasetError(
                f"Volumes in {folder} have {one} channels, those in {another} {other}. Plan and preprocess again."
            )
        return indexes

    def readable(self) -> list[str]:
        """Names of the cases whose volumes can be read."""
        return [name for dataset in self.parts for name in self._readable(dataset)]

    def of_further(self) -> list[str]:
        """Those of all datasets but that which is trained."""
        return [name for dataset in self.parts if dataset for name in self._readable(dataset)]

    def _readable(self, dataset: str) -> Iterator[str]:
        return map(named, repeat(dataset), self.parts[dataset].readable())

    def admitted(self, cases: Iterable[str], excluded: Iterable[str]) -> list[str]:
        """Those cases that are not excluded, and whose volumes can be read."""
        flawed = (named(dataset, case) for dataset, index in self.parts.items() for case in index.flaws())
        refused = {*excluded, *flawed}
        return [str(case) for case in cases if case not in refused]

    def warnings(self) -> list[str]:
        """A line for each dataset with volumes that cannot be read."""
        return [warning for index in self.parts.values() if (warning := index.warning())]

    def record(self, cases: Iterable[str]) -> CaseRecord:
        """What a checkpoint is to remember of some cases."""
        records = []
        for dataset, own in by_dataset(cases).items():
            one = self.parts[dataset].record(own)
            records.append(CaseRecord(tuple(named(dataset, case) for case in one.names), one.digests, one.signatures))
        if len(records) == 1:  # kilobytes for each case: no second copy
            return records[0]
        return CaseRecord(
            tuple(name for one in records for name in one.names),
            np.concatenate([one.digests for one in records]),
            np.concatenate([one.signatures for one in records]),
        )

    def volumes(self, cases: Iterable[str]) -> JoinedVolumes:
        """Some cases to load, those of each dataset in the order of their names."""
        chosen = by_dataset(cases)
        return JoinedVolumes({dataset: IndexedVolumes(index, chosen.get(dataset, ()))
                              for dataset, index in self.parts.items()})  # fmt: skip


class JoinedVolumes:
    """Datasets of nnU-Net as one, with the names of cases that `named` makes."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        """Take datasets by name; "" for that which is trained."""
        self.parts = dict(parts)
        self.identifiers = _JoinedNames({dataset: part.identifiers for dataset, part in parts.items()})

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of cases of each dataset."""
        return tuple(len(part.identifiers) for part in self.parts.values())

    def load_case(self, name: str) -> Any:
        """As the dataset gives it."""
        dataset, _, case = name.rpartition("/")
        return self.parts[dataset].load_case(case)


class _JoinedNames(Sequence[str]):
    """Names of the cases of all datasets, one dataset after the other."""

    def __init__(self, parts: Mapping[str, Sequence[str]]) -> None:
        self.parts = list(parts.items())
        self.ends = list(accumulate(len(names) for names in parts.values()))

    def __len__(self) -> int:
        return self.ends[-1]

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        places = range(len(self))[place]
        if isinstance(places, range):
            return [self[one] for one in places]
        part = int(np.searchsorted(self.ends, places, side="right"))
        dataset, names = self.parts[part]
        return named(dataset, names[places - self.ends[part]])


def split(cases: list[str], settings: PretrainingSettings) -> tuple[list[str], list[str]]:
    """Training and validation cases: a share of all, whatever their dataset, is held out.

    Raises:
        DatasetError: There are no cases.
    """
    if not cases:
        raise DatasetError(
            'The setting "exclude" and volumes that cannot be read leave no case to pre-train on. Exclude fewer, or '
            "preprocess again."
        )
    return hold_out(cases, settings.validation_share, settings.seed)


def refuse_too_few(index: VolumeIndex, folder: Path) -> None:
    """Refuse numbered folds of a dataset that nnU-Net cannot split.

    Args:
        index: Of its volumes.
        folder: Of the dataset, in which there may be splits.

    Raises:
        DatasetError: There are fewer than five volumes and no splits.
    """
    count = len(index.readable())
    if count < 5 and not (folder / "splits_final.json").is_file():
        raise DatasetError(f"{count} volumes are too few for nnU-Net's five folds. Use fold all.")


def changed_since(before: CaseRecord, now: CaseRecord) -> str:
    """How the cases of a training that is resumed differ from those it saw before; "" where they do not."""
    seen, todays = ({(name, bytes(digest)) for name, digest in zip(one.names, one.digests, strict=True)}
                    for one in (before, now))  # fmt: skip
    new, gone = ({name for name, _ in one - other} for one, other in ((todays, seen), (seen, todays)))
    kinds = {"changed": new & gone, "new": new - gone, "not trained on any more": gone - new}
    told = [f"{len(cases)} {kind} ({_some(sorted(cases))})" for kind, cases in kinds.items() if cases]
    if not told:
        return ""
    return (
        f"WARNING: the cases are not those that this training saw before: {', '.join(told)}. It goes on with today's."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 80) for name in names[:SHOWN])
    return f"{shown}, …" if len(names) > SHOWN else shown


def in_words(volumes: JoinedVolumes, settings: PretrainingSettings, trained: str) -> str:
    """How many volumes of which dataset are trained on, and its weight; "" where there is one dataset.

    Raises:
        DatasetError: A dataset has a weight, but no volume to train on.
    """
    if len(volumes.parts) < 2:
        return ""
    names = [dataset or trained for dataset in volumes.parts]
    if settings.dataset_weights and 0 in volumes.counts:
        raise DatasetError(
            f"No volume of {names[volumes.counts.index(0)]} is left to train on, which has a weight: all are held out, "
            "excluded or cannot be read. Plan without that dataset or without weights, or hold out fewer."
        )
    weights = [f" (weight {weight:g})" for weight in settings.dataset_weights] or [""] * len(names)
    told = (f"{name} {count}{weight}" for name, count, weight in zip(names, volumes.counts, weights, strict=True))
    return f"Volumes to train on: {', '.join(told)}"
