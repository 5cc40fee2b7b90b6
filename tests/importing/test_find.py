"""What is taken for a scan, how it is called, and what names alone tell to be wrong; nothing is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing.find import LONGEST_CASE, Scan, case_names, find_scans
from tests.importing.conftest import make_series, voxels


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def found(root: Path, *sources: Path, channels: int = 1, skip: Path | None = None) -> dict[str, Scan]:
    """Source relative to `root` → scan, in the order found."""
    scans = find_scans(sources or (root,), channels, skip or root.parent / "raw")
    return {os.path.relpath(scan.source, root): scan for scan in scans}


def proposed(scans: dict[str, Scan]) -> dict[str, str]:
    return {source: scan.proposed for source, scan in scans.items()}


def test_images_by_their_ending_in_the_order_of_their_paths(source):
    touch(source, "b.nii.gz", "a.nii", "sub/C.NRRD", "sub/d.mha", "sub/deep/e.mhd", "sub/deep/e.raw", "f.NII.GZ",
          "g.img", "g.hdr", "h.zraw", "i.txt", "j.nii.bak", "k.gz", "sub/nii.gz")  # fmt: skip
    assert list(proposed(found(source)).items()) == [
        ("a.nii", "a"), ("b.nii.gz", "b"), ("f.NII.GZ", "f"), ("sub/C.NRRD", "sub_C"), ("sub/d.mha", "sub_d"),
        ("sub/deep/e.mhd", "sub_deep_e"),
    ]  # fmt: skip
    for path, scan in found(source).items():
        assert scan.channels == ((source / path,),)
        assert not scan.flaw


def test_hidden_files_label_folders_and_the_dataset_itself_are_left_out(source):
    touch(source, "a.nii", ".b.nii", ".c/d.nii", "labelsTr/e.nii", "labelsTs/f.nii", "sub/labelsTr/g.nii",
          "labelsTr2/h.nii", "raw/i.nii", "raw/sub/j.nii", "raw2/k.nii")  # fmt: skip
    kept = ["a.nii", "labelsTr2/h.nii", "raw2/k.nii"]
    assert list(found(source, skip=source / "raw")) == kept
    assert list(found(source, source, *touch(source, "raw/i.nii", ".b.nii"), skip=source / "raw")) == kept
    assert list(found(source, *touch(source, "raw2/k.nii", "raw/i.nii"), skip=source / "raw")) == ["raw2/k.nii"]


def test_links_are_followed_once(source, tmp_path):
    touch(tmp_path / "elsewhere", "a.nii")
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (source / "zagain").symlink_to(tmp_path / "elsewhere")
    assert proposed(found(source)) == {"link/a.nii": "link_a"}
    (source / "gone.nii").symlink_to("nowhere")  # reading will say so
    assert "gone.nii" in found(source)


def test_a_scan_reached_twice_is_named_after_the_first_source(source):
    (file,) = touch(source, "sub/a.nii")
    assert proposed(found(source, source, source / "sub", file)) == {"sub/a.nii": "sub_a"}
    assert proposed(found(source, source / "sub", source)) == {"sub/a.nii": "a"}
    relative = Path(os.path.relpath(file))
    assert proposed(found(source, relative)) == {"sub/a.nii": "a"}


def test_a_folder_that_cannot_be_listed_is_reported(source, monkeypatch):
    touch(source, "a.nii", "closed/b.nii")
    scandir = os.scandir

    def guarded(path):
        if Path(os.fsdecode(path)).name == "closed":  # for root, permissions do not matter
            raise PermissionError(13, "Permission denied", os.fsdecode(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    scans = found(source)
    assert {path: scan.flaw for path, scan in scans.items()} == {
        "a.nii": "", "closed": "cannot be opened (Permission denied)"
    }  # fmt: skip


CHANNELS = {
    ("p_0000.nii", "p_0001.nii"): "",
    ("p_0001.nii", "p_0000.mha"): "",
    ("p_0000.nii",): "lacks the file of channel 0001 (2 channels were named)",
    ("p_0002.nii", "p_0003.nii"): "lacks the file of channel 0000, 0001 (2 channels were named)",
    ("p_0000.nii", "p_0001.nii", "p_0002.nii"): "has 3 channel files but 2 channels were named",
    ("p_0000.nii", "p_0001.nii", "p_0001.mha"): "has more than one file for a channel (0000, 0001, 0001)",
}


@pytest.mark.parametrize("names", list(CHANNELS))
def test_the_channel_files_of_a_case(source, names):
    touch(source, *names)
    ((path, scan),) = found(source, channels=2).items()
    assert (path, scan.proposed, scan.flaw) == ("p_*", "p", CHANNELS[names])
    assert [file.stem for (file,) in scan.channels] == sorted(Path(name).stem for name in names)


def test_numbers_that_are_none_and_cases_without(source):
    touch(source, "_0000.nii", "p_000.nii", "p_00000.nii", "p_٠٠٠٠.nii", "p0000.nii")  # noqa: RUF001
    flaws = {scan.flaw for scan in found(source, channels=3).values()}
    assert flaws == {"has no channel number: the files of a case must end in _0000 and _0002"}
    assert len(found(source, channels=3)) == 5
    assert not any(scan.flaw for scan in found(source).values())


def test_many_numbers_are_told_in_few_words(source):
    touch(source, *(f"p_{number:04d}.nii" for number in range(5)))
    flaw = found(source)["p_*"].flaw
    assert flaw.startswith("has 5 channel files (0000 … 0004) but one channel was named: name every channel")
    (source / "p_0004.nii").unlink()
    assert "has 4 channel files (0000, 0001, 0002, 0003)" in found(source)["p_*"].flaw


def test_numbered_files_of_one_channel(source):
    touch(source, "a_0000.nii", "b_0003.nii", "c_0001.nii", "c_0002.nii", "d_0000.nii", "d_0000.mha", "sub/e_0000.nii",
          "sub/e_0001.nii")  # fmt: skip
    scans = found(source)
    assert proposed(scans) == {
        "a_0000.nii": "a", "b_0003.nii": "b_0003", "c_0001.nii": "c_0001", "c_0002.nii": "c_0002",
        "d_0000.nii": "d", "d_0000.mha": "d", "sub/e_*": "sub_e",
    }  # fmt: skip
    assert [path for path, scan in scans.items() if scan.flaw] == ["sub/e_*"]


def test_a_file_that_was_given_brings_its_case_only_where_there_are_channels(source):
    files = touch(source, "p_0000.nii", "p_0001.nii", "q_0000.nii", "r.nii", ".p_0002.nii")
    assert list(found(source, files[0])) == ["p_0000.nii"]
    assert [file.name for (file,) in found(source, files[1], channels=2)["p_*"].channels] == [
        "p_0000.nii",
        "p_0001.nii",
    ]
    assert list(found(source, files[1], files[3], channels=2)) == ["p_*", "r.nii"]
    assert list(found(source, files[3], channels=2)) == ["r.nii"]


def test_dicom_series_and_what_is_none(source):
    one = make_series(source / "ct", voxels(3, (4, 5, 6)), "1.2.3.4")
    make_series(source / "ct", voxels(3, (3, 5, 6)), "1.2.3.5")
    touch(source, "ct/broken.dcm", "ct/notes.txt", "ct/.hidden.dcm", "ct/odd.DCM", "plain/a.nii", "plain/b.raw")
    scans = found(source)
    assert list(scans) == ["ct/broken.dcm", "ct/odd.DCM", "ct/series 1.2.3.4", "ct/series 1.2.3.5", "plain/a.nii"]
    assert [proposed(scans)[name] for name in list(scans)[:4]] == ["ct_broken.dcm", "ct_odd.DCM", "ct", "ct"]
    assert scans["ct/series 1.2.3.4"].channels == (tuple(one),)
    assert "no DICOM image" in scans["ct/broken.dcm"].flaw
    assert not scans["ct/series 1.2.3.4"].flaw
    assert proposed(found(source, source / "ct"))["ct/series 1.2.3.4"] == "ct"
    assert proposed(found(source, one[0])) == proposed(found(source, source / "ct"))
    assert "but 2 were named" in found(source, channels=2)["ct/series 1.2.3.4"].flaw
    one[3].rename(one[3].with_name(".slice.dcm"))
    assert scans["ct/series 1.2.3.4"].channels != found(source)["ct/series 1.2.3.4"].channels == (tuple(one[:3]),)


def test_the_state_changes_with_what_lies_on_disk(source):
    (image, data, other) = touch(source, "a.mhd", "a.raw", "b.raw")
    scan = Scan("a", "a", ((image,),))
    seen = {scan.state()}
    for change in (
        lambda: data.write_text("x"),
        lambda: os.utime(data, (1, 1)),
        lambda: image.write_text("header"),
        data.unlink,
        lambda: image.with_suffix(".zraw").touch(),
        image.unlink,
    ):
        before = scan.state()
        assert before == scan.state()
        change()
        assert scan.state() not in seen
        seen.add(scan.state())
    before = scan.state()
    other.write_text("x")
    assert scan.state() == before
    nrrd = touch(source, "c.nrrd", "c.raw")
    before = Scan("c", "c", ((nrrd[0],),)).state()
    nrrd[1].unlink()
    assert Scan("c", "c", ((nrrd[0],),)).state() == before


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a b/ü(1).nii", "a-b_-1"), ("..x__.nii", None), ("x-.nii", "x"), ("scan_seg.nii", "scan-seg"),
        ("seg.nii", "seg"), ("___.nii", "scan"), ("a.b-c_9.nii", "a.b-c_9"), ("_seg_/x.nii", "seg__x"),
    ],
)  # fmt: skip
def test_names_that_nnunet_and_file_systems_take(source, path, name):
    touch(source, path)
    if name is None:
        with pytest.raises(DatasetError):
            found(source)
    else:
        assert proposed(found(source)) == {path: name}


def test_long_names_end_in_a_hash_of_the_whole(source):
    short, long, other = "x" * LONGEST_CASE, "x" * LONGEST_CASE + "y", "x" * LONGEST_CASE + "z"
    touch(source, *(f"{name}.nii" for name in (short, long, other)))
    names = sorted(proposed(found(source)).values(), key=len)
    assert names[0] == short
    assert len(set(names)) == 3
    assert all(name.startswith(short + "-") and len(name) == LONGEST_CASE + 9 for name in names[1:])


def test_case_names_are_unique_whatever_their_letters_and_recorded_ones_stay():
    scans = [Scan(f"/s/{n}", name) for n, name in enumerate(("a", "A", "b", "c", "a"))]
    scans.append(Scan("/s/bad", "d", flaw="broken"))
    names = case_names(scans, {"/s/2": "kept", "/gone": "C"})
    assert list(names) == ["/s/0", "/s/1", "/s/2", "/s/3", "/s/4"]
    assert (names["/s/0"], names["/s/2"]) == ("a", "kept")
    assert len({name.lower() for name in names.values()}) == 5
    for n, wish in ((1, "A"), (3, "c"), (4, "a")):
        start, _, digest = names[f"/s/{n}"].rpartition("-")
        assert (start, len(digest)) == (wish, 8)
    assert names == case_names(scans, {"/gone": "C"} | names)


def test_nothing_there(source):
    with pytest.raises(DatasetError, match=r"No scans: \S+one, \S+two does not exist"):
        find_scans([source / "one", source, source / "two"], 1, source / "raw")
    with pytest.raises(DatasetError, match=r"No scans found in \S+scans, subfolders included"):
        find_scans([source], 1, source / "raw")
