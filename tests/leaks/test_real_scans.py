"""Hippocampus MRI, crops that look alike: no case is taken for another one, and copies are found."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from nnunet_genesis.leaks.case_record import CaseRecord
from nnunet_genesis.leaks.search import RESAMPLED, search
from nnunet_genesis.leaks.signature import digest, pooled, signature
from tests.leaks.images import resampled


def test_different_patients_are_not_taken_for_each_other_and_copies_are_found(shared_data):
    files = sorted((shared_data / "Task04_Hippocampus/imagesTr").glob("hippocampus_*.nii.gz"))[:80]
    scans = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32) for file in files]
    known = scans[:60]
    record = CaseRecord(
        tuple(f"pretrained{number}" for number in range(60)),
        np.array([np.frombuffer(digest(scan), np.uint8) for scan in known]),
        np.array([signature(pooled(scan)) for scan in known]),
    )
    assert search(record, ((f"new{number}", [scan]) for number, scan in enumerate(scans[60:]))) == []
    copies = ((f"copy{number}", [sitk.GetArrayFromImage(resampled(scan, 1.5))]) for number, scan in enumerate(known))
    found = {hit.case: (hit.kind, hit.other) for hit in search(record, copies)}
    assert found == {f"copy{number}": (RESAMPLED, f"pretrained{number}") for number in range(60)}
