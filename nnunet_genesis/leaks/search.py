"""A checkpoint's record and the cases of a labeled dataset → the cases that it was pre-trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from nnunet_genesis.errors import printable
from nnunet_genesis.leaks.case_record import CaseRecord, channels_of, record_in
from nnunet_genesis.leaks.signature import ORIENTATIONS, Array, digest, oriented, pooled, shifted, signature, unit

SIMILAR = 0.85
"""Correlation from which two images are taken for the same one, resampled or saved again."""
PROMISING = 0.4
"""Correlation, before shifts, from which a pair is looked at more closely."""
CANDIDATES = 5
"""Pairs of a row of the record and an orientation that are looked at more closely, for each channel of a case."""
QUERIES, ROWS = 16, 4096
"""Channels of cases, and rows of a record, that are multiplied at once: 768 vectors by 4096, below 100 MB."""

IDENTICAL, RESAMPLED, NAMESAKE = "identical voxels", "same image, resampled or saved again", "same name"


@dataclass(frozen=True)
class Hit:
    """A case that a checkpoint was pre-trained on.

    Attributes:
        case: Its name in the labeled dataset.
        kind: `IDENTICAL`, `RESAMPLED` or `NAMESAKE`, the strongest that holds.
        other: Its name in the pre-training.
        similarity: Correlation of both images' signatures, up to 1; None if only names agree.
    """

    case: str
    kind: str
    other: str
    similarity: float | None = None

    def __str__(self) -> str:
        """In words."""
        how = "" if self.similarity is None or self.kind == IDENTICAL else f", similarity {self.similarity:.2f}"
        return printable(f"{self.case} ({self.kind}{how}; {printable(self.other, 80)} in the pre-training)")


@dataclass(frozen=True)
class _Query:
    case: str
    digest: bytes
    points: Array
    signature: Array


def leaks(checkpoint: Path, folder: Path, cases: Sequence[str]) -> list[Hit] | None:
    """Which of some preprocessed cases a checkpoint was pre-trained on; None if it does not say.

    Args:
        checkpoint: Of any kind.
        folder: Of preprocessed volumes.
        cases: Names of cases in it.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        DatasetError: A volume cannot be read.
    """
    record = record_in(checkpoint)
    return None if record is None else search(record, ((case, channels_of(folder, case)) for case in cases))


def unknown(checkpoint: Path) -> str:
    """What there is to say of a checkpoint without a record."""
    return f"{checkpoint.name} does not say which cases it was pre-trained on: a leak cannot be excluded"


def search(record: CaseRecord, cases: Iterable[tuple[str, Iterable[Array]]]) -> list[Hit]:
    """Look for cases in a record: at most one hit, the strongest, for each.

    Args:
        record: Of the pre-training.
        cases: Names and channels, (z, y, x) each. Any channel that is found makes the case a hit.
    """
    names = {name.rpartition("/")[2]: name for name in record.names}  # cases of further datasets: DATASET/CASE
    by_digest = {bytes(row): name for row, name in zip(record.digests, record.names, strict=True)}
    hits: dict[str, Hit] = {}
    waiting = _queries(cases)
    while queries := list(islice(waiting, QUERIES)):
        for query, found in zip(queries, _candidates(record, queries), strict=True):
            hit = Hit(query.case, NAMESAKE, names[query.case]) if query.case in names else None
            if query.digest in by_digest:
                hit = Hit(query.case, IDENTICAL, by_digest[query.digest], 1.0)
            elif found and (best := _closest(record, query, found))[0] >= SIMILAR:
                hit = Hit(query.case, RESAMPLED, record.names[best[1]], best[0])
            before = hits.get(query.case)
            if hit and (before is None or _strength(hit) > _strength(before)):
                hits[query.case] = hit
    return list(hits.values())


def _strength(hit: Hit) -> tuple[int, float]:
    return (NAMESAKE, RESAMPLED, IDENTICAL).index(hit.kind), hit.similarity or 0.0


def _queries(cases: Iterable[tuple[str, Iterable[Array]]]) -> Iterator[_Query]:
    for case, channels in cases:
        for channel in channels:
            query = _Query(case, digest(channel), points := pooled(channel), signature(points))
            if query.signature.any():  # channels without variation, e.g. in place of a missing one, are all the same
                yield query


Candidate = tuple[float, int, int]
"""Correlation, row of the record, number of the orientation."""


def _candidates(record: CaseRecord, queries: Sequence[_Query]) -> list[list[Candidate]]:
    """For each query, the rows and orientations that resemble it most."""
    vectors = unit(np.stack([query.signature for query in queries]))
    turned = np.concatenate([oriented(vectors, number) for number in range(len(ORIENTATIONS))])
    found: list[list[Candidate]] = [[] for _ in queries]
    for begin in range(0, len(record.names), ROWS):
        rows = unit(record.signatures[begin : begin + ROWS])
        products = (turned @ rows.T).reshape(len(ORIENTATIONS), len(queries), len(rows))
        for q, candidates in enumerate(found):
            of_query = products[:, q].ravel()
            for place in np.argpartition(of_query, -min(CANDIDATES, of_query.size))[-CANDIDATES:]:
                if of_query[place] >= PROMISING:
                    number, row = divmod(int(place), len(rows))
                    candidates.append((float(of_query[place]), begin + row, number))
            candidates.sort(reverse=True)
            del candidates[CANDIDATES:]
    return found


def _closest(record: CaseRecord, query: _Query, candidates: Sequence[Candidate]) -> tuple[float, int]:
    """The largest correlation over shifts of the query, and its row in the record."""
    variants = shifted(query.points)
    best = (-1.0, 0)
    for _, row, number in candidates:
        products = oriented(variants, number) @ unit(record.signatures[row : row + 1])[0]
        best = max(best, (float(products.max()), row))
    return best
