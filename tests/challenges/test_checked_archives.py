"""Archives of any origin: checked by the rules of those that are written; hostile ones."""

from __future__ import annotations

import io
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nnunet_genesis.challenges import msd
from nnunet_genesis.challenges.archive import check_archive
from nnunet_genesis.errors import DatasetError
from tests.challenges.conftest import attempt
from tests.challenges.layouts import labels, write


@pytest.fixture
def archive(liver):
    task, predictions, archive = liver
    assert attempt(msd.plan_submission, predictions, task, archive) == []
    return archive


def repack(archive: Path, changes: dict[str, bytes | None], more: list[tuple[str, bytes]] = ()) -> None:  # type: ignore[assignment]
    """Write the archive again with other contents of members (None: without), and further members."""
    with zipfile.ZipFile(archive) as opened:
        content = {name: opened.read(name) for name in opened.namelist()} | changes
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in [*content.items(), *more]:
            if data is not None:
                opened.writestr(name, data)


def checked(archive: Path) -> list[str]:
    return check_archive(msd.plan_submission(None, archive.parent / "MSD", True), archive, progress=False)


def nifti(folder: Path, array: np.ndarray, **geometry) -> bytes:
    return write(array, folder / "member.nii.gz", **geometry).read_bytes()


FIRST, SECOND = "Task03_Liver/liver_132.nii.gz", "Task03_Liver/liver_200.nii.gz"


def test_an_archive_is_checked_by_the_same_rules(archive, tmp_path):
    good = nifti(tmp_path, labels([1, 2]))
    repack(archive, {FIRST: nifti(tmp_path, labels([1, 4]), spacing=(1, 1, 1)), SECOND: None},
           [("Task03_Liver/liver_141.nii.gz", good), ("Task03_Liver/", b""), ("__MACOSX/._x", b"")])  # fmt: skip
    assert checked(archive) == [
        "Task03_Liver/liver_141.nii.gz: surplus", "__MACOSX/._x: surplus",
        f"{FIRST}: its spacing is 1, 1, 1, that of the test image 0.7, 0.8, 2.5",
        f"{FIRST}: it holds the label 4; there are 0, 1, 2", f"{SECOND}: missing",
    ]  # fmt: skip
    repack(archive, {FIRST: nifti(tmp_path, labels([1, 2]).astype(np.int16)), SECOND: good})
    assert f"{FIRST}: its voxels are 16-bit signed integer, not 8-bit unsigned integers" in checked(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_are_named_and_leave_nothing_behind(archive, tmp_path):
    bomb = nifti(tmp_path, np.zeros((32, 300, 300), np.uint8))
    repack(
        archive,
        {FIRST: bomb, SECOND: bytes(3 << 20)},
        [("../../escaped.nii.gz", b"x"), ("/etc/x", b"x"), (FIRST, b"x")],
    )
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    wrong = checked(archive)
    assert f"{FIRST}: is in the archive twice" in wrong
    assert "../../escaped.nii.gz: surplus" in wrong
    assert "/etc/x: surplus" in wrong
    assert f"{SECOND}: is larger than an image of its size" in wrong
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before
    repack(archive, {FIRST: bomb, SECOND: b"no image"})
    assert checked(archive)[-2] == f"{FIRST}: holds more data than an image of this size has"
    assert checked(archive)[-1] == f"{SECOND}: is no NIfTI file, although its name says so"


def test_members_are_not_unpacked_beyond_the_size_of_their_image(archive):
    repack(archive, {FIRST: bytes(30 << 20)})
    plan = msd.plan_submission(None, archive.parent / "MSD", True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))  # of a file that is written
    try:
        wrong = check_archive(plan, archive, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert wrong == [f"{FIRST}: is larger than an image of its size"]


def test_lists_of_very_many_files_are_not_read(archive, tmp_path):
    with zipfile.ZipFile(archive, "a") as opened:
        for number in range(60):
            opened.writestr(f"{number}\33[2J", b"")
    wrong = checked(archive)
    assert "10 more surplus files" in wrong
    assert not any("\33" in line for line in wrong)
    data = archive.read_bytes()
    at = data.rindex(b"PK\5\6")
    archive.write_bytes(data[: at + 12] + struct.pack("<L", 5 << 20) + data[at + 16 :])
    with pytest.raises(DatasetError, match="more files, or larger ones"):
        checked(archive)
    archive.write_bytes(data[:at] + b"PK\6\7" + bytes(16) + data[at:])
    with pytest.raises(DatasetError, match="more files, or larger ones"):
        checked(archive)
    for wrong_file in (b"", b"PK", data[:at], data[:4] + bytes(30) + data[at:]):
        archive.write_bytes(wrong_file)
        with pytest.raises(DatasetError, match="no zip file"):
            checked(archive)


def test_encrypted_and_damaged_members_are_named(archive):
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 8] |= 1  # the flag of encryption
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as opened:
        assert opened.infolist()[0].flag_bits & 1
    archive.write_bytes(bytes(data))
    assert checked(archive)[0].startswith(f"{FIRST}: cannot be unpacked")
