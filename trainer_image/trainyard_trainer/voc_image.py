"""Pictures: what their first bytes say, and their pixels as RGB. The file's name is never believed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, ImageOps

from trainyard_trainer.voc_xml import Problem

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "PNG": {".png"},
    "BMP": {".bmp"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
    "GIF": {".gif"},
}
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}
"""What undoes an orientation; the others undo themselves."""

# Pixels are counted from the header by `facts` before anything is decoded; Pillow's own guard would warn on stderr.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the header says; `width` and `height` are before rotation. `orientation` is EXIF's, 1 when absent or senseless."""

    format: str
    width: int
    height: int
    orientation: int
    mode: str

    @property
    def rotates(self) -> bool:
        """Whether the orientation swaps width and height."""
        return self.orientation >= 5

    def fits_extension(self, extension: str) -> bool:
        return extension.lower() in _EXTENSIONS[self.format]


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a picture before it is decoded: its facts, or why there are none; `begun` tells whether it begins as a picture
    does. Equal pictures have an equal `digest`."""

    facts: ImageFacts | None
    problem: Problem | None
    begun: bool
    digest: str


def look(data: bytes, max_pixels: int, digest: str | None = None) -> Look:
    """What the first bytes say. Without `digest`, `data` is the whole file and its hash is taken."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest() if digest is None else digest
    try:
        return Look(facts(data, max_pixels), None, True, digest)
    except Problem as problem:
        return Look(None, problem, has_magic(data), digest)


def facts(data: bytes, max_pixels: int) -> ImageFacts:
    """Raises Problem for what is no supported picture, or has more than `max_pixels` pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, OverflowError, EOFError) as error:
        raise Problem(
            "ImageUnreadable", f"is no picture that can be read ({_kind(data)}); save it as JPEG or PNG"
        ) from error
    width, height = image.size
    orientation = _orientation(image)
    if image.format == "TIFF" and orientation >= 5:
        width, height = height, width  # Pillow says the size of a TIFF as it is after its rotation
    if width * height > max_pixels:
        raise Problem(
            "ImageTooLarge",
            f"{width}x{height} are {width * height:,} pixels, more than dataset.limits.maxPixels ({max_pixels:,})",
        )
    if width < 1 or height < 1:
        raise Problem("ImageUnreadable", "has no pixels")
    return ImageFacts(image.format or "", width, height, orientation, image.mode)


def has_magic(data: bytes) -> bool:
    """Whether the first bytes are those of a supported picture, however little follows."""
    magics = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"GIF8")
    return data.startswith(magics)


def decode(data: bytes, orientation: int, long_side: int) -> np.ndarray:
    """Pixels `[height, width, 3]` uint8 RGB, rotated, the long side at most `long_side`. Raises OSError where bytes are missing.

    JPEGs are decoded at a half, a quarter or an eighth where that is enough.
    """
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    scale = min(1.0, long_side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image.draft("RGB", size)
    if image.format == "TIFF" and (turned := _orientation(image)) > 1:
        # Pillow rotates a TIFF while it loads it: nothing is left to do, or all of it is to be undone.
        orientation = 1 if orientation == turned else _INVERSE.get(turned, turned)
    image = _rgb(image)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if orientation in _TRANSPOSE:
        image = image.transpose(_TRANSPOSE[orientation])
    return np.asarray(image)


def decode_shown(data: bytes, max_pixels: int) -> np.ndarray:
    """All pixels of a picture that nobody annotated, as a training sees them. Raises Problem, and OSError where bytes are missing."""
    about = facts(data, max_pixels)
    return decode(data, about.orientation, max(about.width, about.height))


def decode_tolerantly(data: bytes, orientation: int, long_side: int) -> np.ndarray:
    """As `decode`, for a picture whose end is missing. Not to be called while other threads decode: Pillow's switch is global."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        return decode(data, orientation, long_side)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def scaled_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Width and height that `decode` gives for a picture that is shown at `width` x `height`."""
    scale = min(1.0, long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def perceptual_hash(pixels: np.ndarray) -> int:
    """144 bits that hardly change when a picture is saved again or resized: the signs of its horizontal differences on a 13 x 12 grid."""
    grey = ImageOps.grayscale(Image.fromarray(pixels)).resize((13, 12), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.int16)
    return int.from_bytes(np.packbits(values[:, 1:] > values[:, :-1]).tobytes(), "big")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith(("I;16", "I", "F")):
        # Pillow clips 16-bit values to 255; the high byte is what is meant, or the share of the range where that is unknown.
        values = np.asarray(image).astype(np.float32)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        # What is transparent is shown on white by whoever drew the boxes.
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    if not image.info.get("exif") and image.format != "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # EXIF blocks come in every state of damage; the picture itself is fine.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _kind(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "HEIC"
    if data[4:12] == b"ftypavif":
        return "AVIF"
    if data[:4] == b"%PDF":
        return "PDF"
    if data.lstrip()[:4] in (b"<svg", b"<?xm", b"<htm", b"<!DO"):
        return "text: SVG, XML or HTML"
    return f"begins with {data[:8].hex(' ')}"
