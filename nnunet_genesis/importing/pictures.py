"""The file of an X-ray or of another 2D image → its channels, as PNG and nnU-Net's reader of PNG can keep them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from PIL import Image, ImageOps

from nnunet_genesis.importing.find import COLOURS, PICTURES
from nnunet_genesis.importing.read import RADIOGRAPHS, UnusableScanError, in_words, modality_of

TakeOver = Callable[[Path, Path], object]
Pixels = npt.NDArray[np.uint8 | np.uint16]

MOST_PIXELS = 2**26
"""Pixels of an image: edges of 8192. A compressed file of some kilobytes can claim to hold any number."""
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
"""Decoders of Pillow that are tried; others, such as that of PostScript, run programs."""
GREY_16 = ("I;16", "I;16L", "I;16B")
READ = ("L", "LA", "P", "PA", "RGB", "RGBA", *GREY_16)
"""Kinds of pixels, in Pillow's words, that are read."""
REFUSED = {
    "1": "is black and white (1 bit for each pixel): a mask or a drawing, no scan",
    "CMYK": "has the colours of a printer (CMYK): save it as RGB",
    "I": "has signed numbers or more than 16 bits, which PNG cannot keep: save it with 8 or 16 bits",
    "F": "has fractions, which PNG cannot keep: save it with 8 or 16 bits",
}
BITS, POLARITY = 258, 262
"""Numbers of TIFF's tags BitsPerSample and PhotometricInterpretation; in the latter, 0 is white."""


@dataclass(frozen=True)
class Plane:
    """One channel of a 2D image.

    Attributes:
        values: (y, x), 8 or 16 bits.
        file: The PNG file that holds just these values and nothing else; None if there is none.
    """

    values: Pixels
    file: Path | None = None

    def write(self, target: Path, take_over: TakeOver) -> None:
        """Take over the PNG file, or write one.

        Args:
            target: The file to write.
            take_over: Copies or links a file.

        Raises:
            OSError: It cannot be written.
        """
        target.unlink(missing_ok=True)
        if self.file:
            take_over(self.file, target)
        else:
            Image.fromarray(self.values).save(target, format="PNG")


def read_planes(files: Sequence[Path], channels: int) -> Iterator[Plane]:
    """Read the channels of one case, grey each.

    Args:
        files: One file, or one for each channel.
        channels: Number of channels that were named: one, or three where a single file holds colours. A file whose
            three colours are equal is grey.

    Raises:
        UnusableScanError: A file cannot be used (damaged, several pages, another kind of pixels, constant, too
            large), has another number of channels, or is not as large as the first.
    """
    if len(files) == 1:
        yield from _planes_of(files[0], channels)
        return
    size: tuple[int, ...] = ()
    for number, file in enumerate(files):
        try:
            (plane,) = _planes_of(file, 1)
            size = size or plane.values.shape
            if plane.values.shape != size:
                raise UnusableScanError("differs in size from channel 0000")
        except UnusableScanError as error:
            raise UnusableScanError(f"channel {number:04d}: {error}") from None
        yield plane


def _planes_of(file: Path, channels: int) -> list[Plane]:
    try:
        if not file.stat().st_size:
            raise UnusableScanError("is empty (0 bytes)")
        values, plain = _picture(file) if file.suffix.lower() in PICTURES else (_radiograph(file), False)
    except OSError as error:
        raise UnusableScanError(f"cannot be opened ({error.strerror or 'unknown reason'})") from None
    if values.min() == values.max():
        raise UnusableScanError(f"all pixels have the same value ({values.min()})")
    if values.ndim == 2 and channels == 1:
        return [Plane(values, file if plain else None)]
    if values.ndim == 2:
        raise UnusableScanError(f"is grey, but {channels} channels were named")
    if channels == COLOURS:
        return [Plane(values[..., colour]) for colour in range(COLOURS)]
    if (values == values[..., :1]).all():
        return [Plane(values[..., 0])]
    raise UnusableScanError("has colours, but one channel was named: name all three, as in --channels R,G,B")


def _picture(file: Path) -> tuple[Pixels, bool]:
    """Values (y, x) or (y, x, 3), and whether the file is a grey PNG with nothing else in it."""
    with file.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on large images, which are refused here, and on odd metadata
        try:
            with Image.open(stream, formats=FORMATS) as image:
                _check_header(image)
                return _values(image, file)
        except (UnusableScanError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise UnusableScanError(_too_large()) from None
        except Exception:  # whatever damaged bytes make a decoder raise
            raise UnusableScanError("is damaged or incomplete, or another kind of file than its name says") from None


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise UnusableScanError(_too_large(image.size))
    if getattr(image, "is_animated", False):
        raise UnusableScanError("holds several pages or pictures: save each as a file")
    if image.mode not in READ:
        raise UnusableScanError(REFUSED.get(image.mode, f"has pixels of a kind that is not read ({image.mode})"))


def _values(image: Image.Image, file: Path) -> tuple[Pixels, bool]:
    """Values without transparency, turned as the file says a viewer should turn them."""
    deep, tiff = _bits(image, file) > 8, image.format == "TIFF"
    white_is_zero = tiff and image.tag_v2.get(POLARITY) == 0  # type: ignore[attr-defined]
    image.load()
    turned = ImageOps.exif_transpose(image)
    if image.mode in GREY_16:
        values: Pixels = np.asarray(turned).astype(np.uint16)
        values = ~values if white_is_zero else values  # Pillow does this to 8 bits alone
    elif deep:
        values = _deep_colours(file, image)  # which Pillow would cut to 8 bits
    elif image.mode in ("L", "LA"):
        values = np.asarray(turned.getchannel("L"))
    else:
        values = np.asarray(turned.convert("RGB"))
    bare = "transparency" not in image.info and not image.getexif()
    return values, bare and image.format == "PNG" and image.mode in ("L", "I;16") and values.ndim == 2


def _bits(image: Image.Image, file: Path) -> int:
    """Bits of one number, as the file has them: Pillow's mode tells those that are left."""
    if image.format == "PNG":
        with file.open("rb") as stream:
            return stream.read(25)[24]
    return max(image.tag_v2.get(BITS, (8,))) if image.format == "TIFF" else 8  # type: ignore[attr-defined]


def _deep_colours(file: Path, image: Image.Image) -> Pixels:
    """Colours of 16 bits (y, x, 3)."""
    try:
        values: Pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    except RuntimeError:
        values = np.zeros(0, np.uint16)
    turned = image.getexif().get(274, 1) != 1
    if (
        values.dtype != np.uint16
        or values.shape[:2] != image.size[::-1]
        or values.shape[2:] not in ((3,), (4,))
        or turned
    ):
        raise UnusableScanError("has 16 bits in an arrangement that is not read: save it as 16-bit grey or RGB")
    return values[..., :COLOURS]


def _radiograph(file: Path) -> Pixels:
    """Values (y, x) of a DICOM radiograph after its rescaling, without window; bright is dense.

    GDCM inverts MONOCHROME1. PNG has neither negative numbers nor fractions: where there are some, the smallest value
    becomes 0 and the step of the rescaling 1.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        _check_radiograph(reader)
        values = sitk.GetArrayFromImage(reader.Execute())[0]
    except RuntimeError as error:
        raise UnusableScanError(in_words(str(error))) from None
    low = values.min()
    if values.dtype.kind == "f" or low < 0:
        step = float(reader.GetMetaData("0028|1053")) if reader.HasMetaDataKey("0028|1053") else 1.0
        values = np.rint((values.astype(np.float64) - low) / abs(step or 1.0))
    if not 0 <= values.max() < 2**16:
        raise UnusableScanError("has values that span more than 16 bits, which PNG cannot keep")
    narrow: Pixels = values.astype(np.uint8 if values.dtype == np.uint8 else np.uint16)
    return narrow


def _check_radiograph(reader: sitk.ImageFileReader) -> None:
    modality, size = modality_of(reader), reader.GetSize()
    if modality not in RADIOGRAPHS:
        raise UnusableScanError(f"is no radiograph (DICOM modality {modality or 'not named'})")
    if size[2:] != (1,):
        raise UnusableScanError(f"holds {size[2] if len(size) > 2 else 'several'} frames: save each as a file")
    if size[0] * size[1] > MOST_PIXELS:
        raise UnusableScanError(_too_large(size[:2]))
    if reader.GetNumberOfComponents() != 1:
        raise UnusableScanError("has colours: it is a picture of a screen, no radiograph")


def _too_large(size: Sequence[int] = ()) -> str:
    shown = f" ({' x '.join(map(str, size))})" if size else ""
    return f"is too large{shown}: more than {MOST_PIXELS:,} pixels"
