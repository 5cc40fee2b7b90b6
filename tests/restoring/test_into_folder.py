"""The command on files: geometry, names, formats, what is left out, and the page."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from nnunet_genesis.importing.read import Geometry
from nnunet_genesis.restoring.sheet import row, write_sheet
from tests.importing.conftest import LEFT_HANDED, OBLIQUE, cut, make, make_series
from tests.restoring.test_restorer import BOTH, scan

TURNED = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
"""Directions of a sagittal scan."""


def restore(genesis, checkpoint: Path, *arguments: object) -> int:
    return genesis("restore", checkpoint, "--device", "cpu", *arguments)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@BOTH
@pytest.mark.parametrize("direction", [OBLIQUE, LEFT_HANDED, TURNED])
def test_results_lie_where_the_scan_lies(make_checkpoint, genesis, tmp_path, configuration, direction):
    given = make(tmp_path / "in" / "a.mha", scan()[0], direction=direction)
    checkpoint = make_checkpoint(configuration, shift=(0.5,))
    assert restore(genesis, checkpoint, "-i", given, "-o", tmp_path / "out") == 0
    assert files_in(tmp_path / "out") == ["a_difference.nii.gz", "a_restored.nii.gz", "restore.html", "restore.json"]
    original, image = Geometry.of(sitk.ReadImage(str(given))), scan()[0]
    for name in ("a_difference.nii.gz", "a_restored.nii.gz"):
        found = Geometry.of(sitk.ReadImage(str(tmp_path / "out" / name)))
        assert found.size == original.size
        for attribute in ("spacing", "origin", "direction"):
            np.testing.assert_allclose(getattr(found, attribute), getattr(original, attribute), atol=1e-4)
    np.testing.assert_allclose(read(tmp_path / "out/a_difference.nii.gz"), 0.5, rtol=1e-4)
    np.testing.assert_allclose(read(tmp_path / "out/a_restored.nii.gz"), image + 0.5 * image.std(), rtol=1e-4)


@pytest.mark.parametrize("direction", [OBLIQUE, LEFT_HANDED, TURNED])
def test_a_network_that_knows_turned_images_sees_them_turned(
    make_checkpoint, genesis, tmp_path, direction, monkeypatch
):
    from nnunet_genesis.restoring.restorer import Restorer

    seen: list[np.ndarray] = []
    restore_one = Restorer.restore
    monkeypatch.setattr(Restorer, "restore", lambda self, *given: (seen.append(given), restore_one(self, *given))[1])
    given = make(tmp_path / "in" / "a.nii.gz", scan()[0], direction=direction)
    checkpoint = make_checkpoint(image_reader_writer="NibabelIOWithReorient")
    assert restore(genesis, checkpoint, "-i", given, "-o", tmp_path / "out") == 0
    expected, properties = NibabelIOWithReorient().read_images([str(given)])
    ((image, spacing),) = seen
    np.testing.assert_allclose(image, expected, rtol=1e-6)
    np.testing.assert_allclose(spacing, properties["spacing"], rtol=1e-6)
    np.testing.assert_allclose(read(tmp_path / "out/a_restored.nii.gz"), scan()[0], rtol=1e-4)
    assert not Geometry.of(sitk.ReadImage(str(tmp_path / "out/a_restored.nii.gz"))).difference(
        Geometry.of(sitk.ReadImage(str(given)))
    )


def test_a_folder_is_restored_but_for_what_cannot_be(make_checkpoint, genesis, tmp_path, capsys):
    source = tmp_path / "in"
    make(source / "a.nii.gz", scan(seed=1)[0])
    make(source / "sub" / "b.nrrd", scan(seed=2)[0])
    make_series(source / "series", np.clip(scan()[0], 0, 3000).astype(np.int16), "1.2.3.4")
    cut(make(source / "damaged.nii.gz", scan()[0]))
    make(source / "constant.nii.gz", np.ones((5, 6, 7), dtype=np.float32))
    holes = scan()[0]
    holes[2, 3, 4] = np.nan
    make(source / "holes.nii.gz", holes)
    assert restore(genesis, make_checkpoint(), "-i", source, "-o", source / "out") == 2
    told = capsys.readouterr()
    assert "3 scans restored" in told.out
    for name, why in (("damaged", "damaged or incomplete"), ("constant", "same value"), ("holes", "NaN or infinite")):
        assert re.search(rf"{name}.nii.gz: .*{why}", told.err), told.err
    restored = [f"{case}_{kind}.nii.gz" for case in ("a", "series", "sub_b") for kind in ("difference", "restored")]
    assert files_in(source / "out") == sorted([*restored, "restore.html", "restore.json"])
    saved = json.loads((source / "out/restore.json").read_text())
    assert set(saved["cases"]) == {"a", "series", "sub_b"}
    assert len(saved["left_out"]) == 3
    # a second run does not take the results for scans
    assert restore(genesis, tmp_path / "checkpoint_final.pth", "-i", source, "-o", source / "out") == 2
    assert set(json.loads((source / "out/restore.json").read_text())["cases"]) == {"a", "series", "sub_b"}


def test_channels_are_files_by_their_numbers(make_checkpoint, genesis, tmp_path, capsys):
    source, image = tmp_path / "in", scan(channels=2)
    for number in (0, 1):
        make(source / f"p_{number:04d}.nii.gz", image[number])
    make(source / "q_0000.nii.gz", image[0])
    make(source / "r_0000.nii.gz", image[0])
    make(source / "r_0001.nii.gz", image[1], spacing=(1.0, 1.0, 1.0))
    checkpoint = make_checkpoint(channels=("T1", "T2"), shift=(0.25, -0.5))
    assert restore(genesis, checkpoint, "-i", source, "-o", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "lacks the file of channel 0001" in told
    assert "channel 0001: differs in spacing" in told
    assert files_in(tmp_path / "out")[:3] == [
        "p_difference.nii.gz", "p_restored_0000.nii.gz", "p_restored_0001.nii.gz"
    ]  # fmt: skip
    np.testing.assert_allclose(read(tmp_path / "out/p_difference.nii.gz"), 0.375, rtol=1e-4)
    np.testing.assert_allclose(
        read(tmp_path / "out/p_restored_0001.nii.gz"), image[1] - 0.5 * image[1].std(), rtol=1e-4
    )


def test_a_scan_of_other_channels_is_refused_in_one_line(make_checkpoint, genesis, tmp_path, capsys):
    given = make(tmp_path / "in" / "a.nii.gz", scan()[0])
    checkpoint = make_checkpoint(channels=("T1", "T2"), shift=(0, 0))
    assert restore(genesis, checkpoint, "-i", given, "-o", tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "Nothing was restored" in line
    assert "has no channel number" in line
    assert "reads 2 channels (T1, T2)" in line
    assert not (tmp_path / "out/restore.json").exists()


def test_a_network_of_2d_images_is_refused(make_checkpoint, genesis, tmp_path, capsys):
    make(tmp_path / "in" / "a.nii.gz", scan()[0])
    checkpoint = make_checkpoint("2d", image_reader_writer="NaturalImage2DIO")
    assert restore(genesis, checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "trained on 2D images; restore reads and writes volumes only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", [".", ".."])
def test_results_are_not_written_among_scans(make_checkpoint, genesis, tmp_path, capsys, out):
    given = make(tmp_path / "in" / "a.nii.gz", scan()[0])
    before = given.read_bytes()
    assert restore(genesis, make_checkpoint(), "-i", given, "-o", given.parent / out) == 1
    assert "Name another folder" in capsys.readouterr().err
    assert given.read_bytes() == before
    assert files_in(given.parent) == ["a.nii.gz"]


def test_scores_are_of_what_was_restored_and_order_the_cases(make_checkpoint, genesis, tmp_path, capsys):
    quiet, loud = scan(seed=1)[0], scan(seed=2)[0]
    loud[4:6, 8:12, 8:12] += 5000
    loud[:, :2] = 0
    for name, image in (("quiet", quiet), ("loud", loud)):
        make(tmp_path / "in" / f"{name}.nii.gz", image, spacing=(1, 1, 1))
    assert restore(genesis, make_checkpoint(), "-i", tmp_path / "in", "-o", tmp_path / "out", "--hide", 4) == 0
    saved = json.loads((tmp_path / "out/restore.json").read_text())
    for case, image in (("quiet", quiet), ("loud", loud[:, 2:])):
        z = np.abs(image - image.mean()) / image.std()
        assert saved["cases"][case]["mean"] == pytest.approx(z.mean(), rel=1e-3)
        assert saved["cases"][case]["99th percentile"] == pytest.approx(np.percentile(z, 99), rel=1e-3)
    assert saved["hide"] == 4
    means = [case["mean"] for case in saved["cases"].values()]
    assert means == sorted(means, reverse=True)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")] == list(
        saved["cases"]
    )


# the page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def picture(source: str) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))[..., :3]


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    original = rng.normal(size=(4, 10, 20)).astype(np.float32)
    difference = np.zeros((4, 10, 20), dtype=np.float32)
    difference[2, 5:, 10:] = 1
    hostile = '"><script>alert(1)</script>{0}'
    return [
        row(name, hostile, original, original + difference, size * difference, (3, 1, 1), (size, 0.5))
        for name, size in (("small", 0.5), ("large", 2.0))
    ]


def test_the_page_shows_the_slice_that_differs_in_order_with_the_same_colours(rows, tmp_path):
    write_sheet(rows, "heading", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.index("<b>large</b>") < text.index("<b>small</b>")
    assert "slice 3 of 4 along z" in text
    pictures = [attributes for tag, attributes in Page(text).tags if tag == "img" and "class" not in attributes]
    assert [one["alt"].split()[0] for one in pictures] == ["original", "restored", "difference"] * 2
    assert {(one["width"], one["height"]) for one in pictures} == {("260", "130")}
    shown = [picture(one["src"]) for one in pictures]
    assert all(image.shape == (10, 20, 3) for image in shown)
    large, small = shown[2], shown[5]
    assert large[:5].sum() == pytest.approx(small[:5].sum())
    assert large[6, 15].sum() > small[6, 15].sum() > large[0, 0].sum()
    assert (shown[1][6, 15] > shown[0][6, 15]).all() or shown[0][6, 15].min() > 0.8


def test_names_cannot_add_to_the_page(rows, tmp_path):
    write_sheet(rows, "<b onload=x>heading", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    tags = {tag for tag, _ in Page(text).tags}
    assert "script" not in tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{0}" in text
    assert "&lt;b onload=x&gt;heading" in text
    sources = [attributes[key] for _, attributes in Page(text).tags for key in ("src", "href") if key in attributes]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_large_slices_are_thinned_out(tmp_path):
    volume = np.random.default_rng(0).normal(size=(2, 600, 300)).astype(np.float32)
    one = row("a", "a", volume, volume, np.abs(volume), (5, 1, 1), (1.0, 1.0))
    assert one.difference.shape == (200, 100)
