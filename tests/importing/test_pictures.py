"""X-rays and other 2D images become grey PNG files that nnU-Net's reader gives back value for value."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from PIL import Image

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing import pictures
from nnunet_genesis.importing.pictures import read_planes
from nnunet_genesis.importing.read import UnusableScanError
from tests.importing.conftest import ImportReport, images, make, make_series, run, the_reason, voxels

RGB = ("R", "G", "B")


def pixels(kind: str = "u1", shape: tuple[int, ...] = (20, 30), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def save(path: Path, array: np.ndarray, mode: str = "", **options: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def as_nnunet_reads(raw: Path, case: str = "x") -> np.ndarray:
    """(channel, y, x)"""
    found = get_filenames_of_train_images_and_targets(str(raw / "Dataset501_Chest"))
    read, properties = NaturalImage2DIO().read_images(found[case]["images"])
    assert properties["spacing"] == (999, 1, 1)
    return read[:, 0]


def run_flat(raw: Path, *sources: Path, channels: tuple[str, ...] = ("Xray",), **options: object) -> ImportReport:
    return run(raw, *sources, channels=channels, flat=True, **options)


def tiff(path: Path, array: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


def radiograph(path: Path, array: np.ndarray, **tags: object) -> Path:
    """A DICOM file of one frame, 12 bits, with a window that would hide most of the image."""
    (written,) = make_series(path.parent, array[None].astype("<i2"), f"1.2.3.{len(path.name)}", modality="DX")
    content = pydicom.dcmread(written)
    written.unlink()
    content.PixelRepresentation, content.BitsStored, content.HighBit, content.RescaleIntercept = 0, 12, 11, 0
    content.WindowCenter, content.WindowWidth = 2000, 10
    content.update(tags)
    pydicom.dcmwrite(path, content, enforce_file_format=True)
    return path


GREY = {
    "8-bit png": ("x.png", "u1", save),
    "16-bit png": ("x.png", "u2", save),
    "8-bit tiff": ("x.tiff", "u1", save),
    "16-bit tiff": ("x.tif", "u2", save),
    "big-endian tiff": ("x.tif", "u2", lambda p, a: tiff(p, a, byteorder=">")),
    "compressed tiff": ("x.TIF", "u2", lambda p, a: tiff(p, a, compression="lzw", predictor=True)),
    "white is zero, 8 bit": ("x.tif", "u1", lambda p, a: tiff(p, ~a, photometric="miniswhite")),
    "white is zero, 16 bit": ("x.tif", "u2", lambda p, a: tiff(p, ~a, photometric="miniswhite")),
    "bmp": ("x.bmp", "u1", save),
    "palette of greys": ("x.png", "u1", lambda p, a: save(p, a, "P")),
    "grey with alpha": ("x.png", "u1", lambda p, a: save(p, np.dstack([a, ~a]))),
    "equal colours": ("x.png", "u1", lambda p, a: save(p, np.dstack([a] * 3))),
    "equal colours and alpha": ("x.png", "u1", lambda p, a: save(p, np.dstack([a] * 3 + [~a]))),
    "transparent grey": ("x.png", "u1", lambda p, a: save(p, a, transparency=7)),
    "dicom": ("x.dcm", "u2", lambda p, a: radiograph(p, a >> 4)),
    "dicom, MONOCHROME1": (
        "x", "u2", lambda p, a: radiograph(p, 4095 - (a >> 4), PhotometricInterpretation="MONOCHROME1")),
    "dicom, shifted": ("x", "u2", lambda p, a: radiograph(p, a >> 4, RescaleIntercept=-1000)),
    "dicom, fractions": ("x.dcm", "u2", lambda p, a: radiograph(p, a >> 4, RescaleSlope=0.25)),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(GREY))
def test_grey_images_keep_every_value(source, raw, kind):
    name, depth, write = GREY[kind]
    array = pixels(depth)
    array[0, :2] = 0, np.iinfo(depth).max
    write(source / name, array)
    report = run_flat(raw, source)
    assert (report.imported, report.rejected) == (1, {})
    assert as_nnunet_reads(raw).shape == (1, 20, 30)
    assert np.array_equal(as_nnunet_reads(raw)[0], array >> 4 if "dicom" in kind else array)


COLOUR = {
    "8-bit png": ("x.png", "u1", save),
    "8-bit bmp": ("x.bmp", "u1", save),
    "8-bit tiff": ("x.tif", "u1", save),
    "16-bit png": ("x.png", "u2", lambda p, a: sitk.WriteImage(sitk.GetImageFromArray(a, isVector=True), str(p))),
    "16-bit tiff": ("x.tif", "u2", lambda p, a: tiff(p, a, photometric="rgb")),
    "with alpha": ("x.png", "u1", lambda p, a: save(p, np.dstack([a, a[..., 0]]))),
    "16 bit, with alpha": ("x.png", "u2", lambda p, a: sitk.WriteImage(
        sitk.GetImageFromArray(np.dstack([a, a[..., 0]]), isVector=True), str(p))),
    "planes apart": ("x.tif", "u1", lambda p, a: tiff(p, a.transpose(2, 0, 1), photometric="rgb", planarconfig=2)),
    "named like nnU-Net's": ("x_0000.png", "u1", save),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(COLOUR))
def test_colours_become_channels(source, raw, kind):
    name, depth, write = COLOUR[kind]
    array = pixels(depth, (20, 30, 3))
    write(source / name, array)
    report = run_flat(raw, source, channels=RGB)
    assert (report.imported, report.rejected) == (1, {})
    assert images(raw) == [f"x_{channel:04d}.png" for channel in range(3)]
    assert np.array_equal(as_nnunet_reads(raw), array.transpose(2, 0, 1))
    description = json.loads((report.folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert (description["file_ending"], description["numTraining"]) == (".png", 1)
    assert description["overwrite_image_reader_writer"] == "NaturalImage2DIO"


def test_a_jpeg_is_stored_as_it_is_decoded(source, raw):
    array = np.add.outer(np.arange(40), 3 * np.arange(60)).astype("u1")
    save(source / "x.jpg", array, quality=90)
    assert run_flat(raw, source).imported == 1
    assert np.array_equal(as_nnunet_reads(raw)[0], np.asarray(Image.open(source / "x.jpg")))


@pytest.mark.parametrize("ending", ["jpeg", "png", "tif"])
def test_images_are_turned_as_a_viewer_would(source, raw, ending):
    array = np.repeat(np.repeat(pixels("u1", (4, 6)), 8, 0), 8, 1)
    exif = Image.Exif()
    exif[274] = 6  # the first row of the file is the right side of what is seen
    save(source / f"x.{ending}", array, exif=exif)
    run_flat(raw, source)
    seen = as_nnunet_reads(raw)[0]
    assert seen.shape == (48, 32)
    assert np.abs(seen - np.rot90(array, -1)).max() <= (60 if ending == "jpeg" else 0)


def test_files_for_each_channel(source, raw):
    one, two = pixels("u2"), pixels("u1", seed=1)
    save(source / "x_0000.png", one)
    save(source / "x_0001.tif", two)
    save(source / "y_0000.png", one)
    save(source / "y_0001.png", two[:10])
    report = run_flat(raw, source, channels=("low", "high"))
    assert np.array_equal(as_nnunet_reads(raw), [one, two])
    assert the_reason(report) == "channel 0001: differs in size from channel 0000"


def test_plain_grey_png_files_are_copied_or_linked_and_others_converted(source, raw):
    for name, array in (("a", pixels()), ("b", pixels("u2"))):
        save(source / f"{name}.png", array, compress_level=1)
    save(source / "c.png", pixels("u1", (20, 30, 2)))
    run_flat(raw, source)
    for name, same in (("a", True), ("b", True), ("c", False)):
        written = raw / "Dataset501_Chest" / "imagesTr" / f"{name}_0000.png"
        assert (written.read_bytes() == (source / f"{name}.png").read_bytes()) == same
        assert not written.is_symlink()
    assert run_flat(raw, source).already_there == 3
    save(source / "a.png", pixels(seed=5))
    assert run_flat(raw, source, link=True).imported == 1
    link = raw / "Dataset501_Chest" / "imagesTr" / "a_0000.png"
    assert Path(os.readlink(link)) == source / "a.png"


def test_dicom_files_are_found_by_their_content_and_each_is_an_image(source, raw):
    for name in ("IM1", "1.2.840.7", "view.dcm"):
        radiograph(source / "study" / name, pixels("u2") >> 4)
    (source / "study" / "notes.txt").write_text("not a scan")
    (source / "study" / "short").write_bytes(b"\0" * 20)
    (source / "study" / "damaged.dcm").write_bytes(b"\0" * 200)
    report = run_flat(raw, source)
    assert images(raw) == ["study_1.2.840.7_0000.png", "study_IM1_0000.png", "study_view_0000.png"]
    assert list(report.rejected) == [str(source / "study" / "damaged.dcm")]


def bomb(path: Path, edge: int = 60_000) -> None:
    """A PNG of some kilobytes that holds billions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))


def cut_short(path: Path, array: np.ndarray) -> None:
    save(path, array)
    path.write_bytes(path.read_bytes()[:-200])


BAD = {
    "colours": ("x.png", lambda p: save(p, pixels("u1", (20, 30, 3))), "has colours, but one channel was named.*R,G,B"),
    "1 bit": ("x.png", lambda p: save(p, pixels() > 9), r"black and white \(1 bit"),
    "CMYK": ("x.jpg", lambda p: save(p, pixels("u1", (20, 30, 4)), "CMYK"), "CMYK.*save it as RGB"),
    "pages": ("x.tif", lambda p: tiff(p, pixels("u1", (2, 20, 30)), photometric="minisblack"), "several pages"),
    "animation": (
        "x.png",
        lambda p: Image.fromarray(pixels()).save(p, save_all=True, append_images=[Image.fromarray(pixels(seed=1))]),
        "several pages",
    ),
    "signed": ("x.tif", lambda p: tiff(p, pixels("i2")), "signed numbers"),
    "32 bit": ("x.tif", lambda p: tiff(p, pixels("u4")), "more than 16 bits"),
    "fractions": ("x.tif", lambda p: tiff(p, pixels().astype("f4")), "fractions"),
    "16-bit planes apart": (
        "x.tif", lambda p: tiff(p, pixels("u2", (3, 20, 30)), photometric="rgb", planarconfig=2), "arrangement"),
    "bomb": ("x.png", bomb, "too large.*: more than 67,108,864 pixels"),
    "smaller bomb": ("x.png", lambda p: bomb(p, 10_000), r"too large \(10000 x 10000\)"),
    "cut png": ("x.png", lambda p: cut_short(p, pixels()), "damaged or incomplete"),
    "cut jpeg": ("x.jpg", lambda p: cut_short(p, pixels()), "damaged or incomplete"),
    "cut tiff": ("x.tif", lambda p: cut_short(p, pixels()), "damaged or incomplete"),
    "cut bmp": ("x.bmp", lambda p: cut_short(p, pixels()), "damaged or incomplete"),
    "text": ("x.png", lambda p: p.write_text("hello"), "another kind of file"),
    "postscript": ("x.png", lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "another kind"),
    "empty": ("x.png", lambda p: p.touch(), "is empty"),
    "broken link": ("x.png", lambda p: p.symlink_to("nowhere"), "cannot be opened"),
    "constant": ("x.png", lambda p: save(p, np.full((20, 30), 7, "u1")), r"the same value \(7\)"),
    "CT slice": ("x.dcm", lambda p: radiograph(p, pixels("u2") >> 4, Modality="CT"), r"no radiograph \(DICOM modality CT"),
    "wide dicom": ("x.dcm", lambda p: radiograph(p, pixels("u2") >> 4, RescaleSlope=100), "span more than 16 bits"),
}  # fmt: skip


@pytest.mark.parametrize("bad", list(BAD))
def test_a_bad_image_is_reported_in_one_short_line_and_stops_nothing(source, raw, bad):
    name, spoil, expected = BAD[bad]
    save(source / "good.png", pixels())
    spoil(source / name)
    report = run_flat(raw, source)
    assert images(raw) == ["good_0000.png"]
    assert list(report.rejected) == [str(source / name)]
    assert re.search(expected, the_reason(report)), the_reason(report)
    assert "\n" not in the_reason(report)
    assert str(source) not in the_reason(report)


@pytest.mark.parametrize(
    ("channels", "expected"), [(RGB, "is grey, but 3 channels were named"), (("a", "b"), "has no channel number")]
)
def test_grey_where_more_channels_were_named(source, raw, channels, expected):
    save(source / "x.png", pixels())
    assert expected in the_reason(run_flat(raw, source, channels=channels))


def test_many_frames_and_colours_of_a_screen_are_no_radiographs(source, raw):
    frames = pixels("u2", (2, 20, 30)) >> 4
    radiograph(source / "frames.dcm", frames[0], NumberOfFrames=2, PixelData=frames.astype("<u2").tobytes())
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
               "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": pixels("u1", (20, 30, 3)).tobytes()}  # fmt: skip
    radiograph(source / "screen.dcm", frames[0], **colours)
    rejected = {Path(where).name: why for where, why in run_flat(raw, source).rejected.items()}
    assert "2 frames: save each" in rejected["frames.dcm"]
    assert "picture of a screen" in rejected["screen.dcm"]


def test_the_budget_is_checked_before_pixels_are_read(source, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 20 * 30 - 1)
    for file in (save(source / "x.png", pixels()), radiograph(source / "x.dcm", pixels("u2") >> 4)):
        if file.suffix == ".png":
            file.write_bytes(file.read_bytes()[:-300])  # reading it would complain
        with pytest.raises(UnusableScanError, match=r"too large \(30 x 20\)"):
            list(read_planes([file], 1))


def test_damaged_bytes_are_reported_or_read_and_nothing_else(source):
    """Whatever becomes of a byte, an image comes out, or one line."""
    rng, outcomes = np.random.default_rng(0), set()
    for ending, options in (("png", {}), ("tif", {"compression": "tiff_lzw"}), ("bmp", {}), ("jpg", {})):
        buffer = io.BytesIO()
        Image.fromarray(pixels()).save(buffer, {"tif": "tiff", "jpg": "jpeg"}.get(ending, ending), **options)
        file = source / f"x.{ending}"
        for _ in range(60):
            content = bytearray(buffer.getvalue())
            for place in rng.integers(8, min(len(content), 300), 3):
                content[place] = rng.integers(256)
            file.write_bytes(content)
            try:
                (plane,) = read_planes([file], 1)
                assert plane.values.dtype in (np.uint8, np.uint16)
                outcomes.add("read")
            except UnusableScanError as error:
                outcomes.add(str(error))
    assert len(outcomes) > 1
    assert not any("\n" in outcome for outcome in outcomes)


def test_volumes_and_images_do_not_mix(source, raw):
    save(source / "x.png", pixels())
    with pytest.raises(DatasetError, match="No scans found.*X-rays and other pictures: import --2d"):
        run(raw, source)
    radiograph(source / "y.dcm", pixels("u2") >> 4)
    assert "import X-rays with --2d" in the_reason(run(raw, source))
    make(source / "z.nii.gz", voxels())
    assert run(raw, source).imported == 1
    with pytest.raises(DatasetError, match=r"other file_ending: \.nii\.gz instead of \.png"):
        run_flat(raw, source, channels=("CT",))
    (source / "x.png").unlink()
    (source / "y.dcm").unlink()
    with pytest.raises(DatasetError, match=r"Looked for 2D images: files ending in \.png, .* and DICOM files"):
        run_flat(raw / "other", source)


def test_a_pipe_is_not_waited_for(source, raw):
    os.mkfifo(source / "pipe")
    os.mkfifo(source / "x.png")
    save(source / "y.png", pixels())
    ended = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    try:
        assert run_flat(raw, source).imported == 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, ended)
