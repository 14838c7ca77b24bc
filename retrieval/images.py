"""One picture from its bytes to RGB of the store's size: bounded, checked, and every colour mode handled on purpose."""

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
BEGINNINGS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP", b"BM": "BMP", b"GIF8": "GIF"}
BEGINNINGS |= {b"II*\0": "TIFF", b"MM\0*": "TIFF"}
BACKGROUND = (255, 255, 255)  # what transparent pixels are laid on: white
ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSED = {  # how to undo each value of it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRAY_BYTES = 16  # that a JPEG may carry between its data and the next marker
LEAST_CONTRAST = 32  # of 255; a picture that differs less from its ground shows no drawing
AIR = 1.15  # the square about a drawing is so many times as long as the drawing
MOST_GROUND = 32_000_000  # pixels of that square; of a picture that has more, four times as many
DETAIL_KEPT = 2  # a large JPEG is decoded at 1/2, 1/4 or 1/8, with at least so many pixels for one of the store


class RefusedImageError(ValueError):
    """A picture that does not enter the dataset; `reason` is one of quarantine.REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Limits:
    """What a picture may be.

    Attributes:
        max_pixels: width times height, checked on the header before any pixel is decoded.
        min_side: of width and height.
    """

    max_pixels: int
    min_side: int

    @property
    def max_bytes(self) -> int:
        """Of a file: four channels of 16 bits a pixel, and room for metadata; a larger one is not read whole."""
        return 8 * self.max_pixels + 2**24


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, upright. A JPEG much larger than the store was decoded at 1/2, 1/4 or 1/8.
        width: of the whole picture, upright.
        height: of the whole picture, upright.
        sha256: of the RGB bytes; of a JPEG, whose pixels depend on the scale it is decoded at, of the file without its
            metadata. With width and height it tells whether two pictures are the same.
        notes: what was converted on the way, e.g. "grey".
    """

    pixels: np.ndarray
    width: int
    height: int
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def rgb(self) -> Image.Image:
        """The picture as Pillow's, mode RGB: a copy."""
        return Image.fromarray(self.pixels)

    def fitted(self, size: int, resize: str) -> np.ndarray:
        """(size, size, 3) uint8, by one of RESIZES; one that has the size stays as it is, but for a drawing."""
        if self.pixels.shape == (size, size, 3) and resize != "drawing":
            return self.pixels
        return np.asarray(RESIZES[resize](self.rgb, size))


@contextmanager
def bounded(limits: Limits) -> Iterator[None]:
    """Hold Pillow's own guard against decompression bombs at our limit, as an error, while pictures are decoded."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limits.max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd metadata of a sound picture
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode(content: bytes, limits: Limits, image_size: int) -> Picture:
    """One picture from the bytes of a file; call it inside `bounded`.

    Of an animated picture the first frame is taken.

    Args:
        content: JPEG, PNG, WebP, BMP, GIF or TIFF, told by content, not by name.
        limits: checked before decoding.
        image_size: of the store; a JPEG keeps at least DETAIL_KEPT times as many pixels a side.

    Raises:
        RefusedImageError: with the reason.
    """
    if len(content) > limits.max_bytes:
        raise RefusedImageError("too_large", f"more than {limits.max_bytes:,} bytes")
    if content.startswith(b"\xff\xd8\xff"):
        return _decode_jpeg(content, limits, image_size)
    image = _open(content, limits)
    _check_size(*image.size, limits)
    try:
        if image.format == "PNG":
            Image.open(BytesIO(content), formats=["PNG"]).verify()  # checksums, which decoding skips
        animated = getattr(image, "is_animated", False)
        image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_many_pixels(limits) from error
    except Exception as error:  # decoders of untrusted bytes raise whatever they stumble over
        raise _damaged(content, str(error)) from error
    rgb, notes = _to_rgb(image)
    rgb, turned, _ = _upright(image, rgb)
    return _picture(rgb, notes + turned + (("first_frame",) if animated else ()))


def from_array(pixels: np.ndarray, limits: Limits) -> Picture:
    """One picture from its pixels: (h, w) grey or (h, w, 3) RGB, uint8."""
    image = Image.fromarray(pixels)
    _check_size(image.width, image.height, limits)
    return _picture(image.convert("RGB"), ("grey",) if pixels.ndim == 2 else ())


def crop(picture: Image.Image, size: int) -> Image.Image:
    """Short side to `size`, then the centre: aspect kept, the ends of the long side lost."""
    side = min(picture.size)
    if picture.size == (size, size):
        return picture
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    return picture.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))


def stretch(picture: Image.Image, size: int) -> Image.Image:
    """Both sides to `size`: nothing lost, aspect changed."""
    return picture.resize((size, size), Image.Resampling.BILINEAR)


def drawing(picture: Image.Image, size: int) -> Image.Image:
    """What is drawn comes to the middle, and nearer to one size: for characters and sketches on an even ground.

    The ground is the median colour of the picture's border; drawn is what differs from it by more than half of the
    largest difference. The side of the square that is kept, about the middle of all that is drawn, is the geometric
    mean of the picture's longer side and AIR times the drawing's: a small drawing grows, and stays smaller than a large
    one. Outside the picture there is ground. A picture without a drawing is cropped.

    Raises:
        RefusedImageError: so long and thin that the square would have far more pixels than the picture.
    """
    pixels = np.asarray(picture).astype(np.int16)  # (h, w, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0).astype(np.int16)
    apart = np.abs(pixels - ground).max(axis=2)
    if apart.max() < LEAST_CONTRAST:
        return crop(picture, size)
    drawn = apart > apart.max() / 2
    (top, bottom), (left, right) = (np.flatnonzero(drawn.any(axis=axis))[[0, -1]] + (0, 1) for axis in (1, 0))
    side = (AIR * max(bottom - top, right - left) * max(picture.size)) ** 0.5
    if side * side > max(MOST_GROUND, 4 * picture.width * picture.height):
        raise RefusedImageError(
            "too_large",
            f"{picture.width}x{picture.height}, with a drawing as long: resize=drawing needs a square of "
            f"{side * side:,.0f} pixels",
        )
    across, down = (left + right - side) / 2, (top + bottom - side) / 2  # where the square begins
    first, above = math.floor(across), math.floor(down)
    paper = Image.new("RGB", (math.ceil(side) + 1,) * 2, tuple(ground.tolist()))
    paper.paste(picture, (-first, -above))
    across, down = across - first, down - above
    return paper.resize((size, size), Image.Resampling.BILINEAR, (across, down, across + side, down + side))


RESIZES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "crop": crop,
    "stretch": stretch,
    "drawing": drawing,
}


def _open(content: bytes, limits: Limits) -> Image.Image:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_many_pixels(limits) from error
    except UnidentifiedImageError as error:
        name = next((name for start, name in BEGINNINGS.items() if content.startswith(start)), None)
        if content and name is None:
            raise RefusedImageError("format", f"none of {', '.join(FORMATS)} by its content") from error
        raise _damaged(content, f"begins like {name} and has no readable header") from error
    except Exception as error:
        raise _damaged(content, str(error)) from error


def _decode_jpeg(content: bytes, limits: Limits, image_size: int) -> Picture:
    """A JPEG by libjpeg-turbo with its warnings of damage, which Pillow swallows; metadata and CMYK go to Pillow."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError as error:
        raise _damaged(content, "begins like JPEG and has no readable header") from error
    _check_size(width, height, limits)
    scale = max(
        factor for factor in (1, 2, 4, 8) if factor == 1 or min(width, height) >= factor * DETAIL_KEPT * image_size
    )
    smallest = {"min_width": -(-width // scale), "min_height": -(-height // scale)}
    notes: tuple[str, ...] = ("grey",) if colours == "Gray" else ()
    space = "CMYK" if colours in ("CMYK", "YCCK") else "RGB"
    pixels, odd = _jpeg_pixels(content, space, smallest)
    notes += odd
    has_metadata = b"Exif\0" in content or b"ns.adobe.com/xap" in content
    if not (has_metadata or space == "CMYK"):
        return Picture(pixels, width, height, _jpeg_digest(content), notes)
    image = _open(content, limits)  # Pillow reads the metadata, and knows which programs write CMYK inverted
    try:
        rgb, converted = _to_rgb(image) if space == "CMYK" else (Image.fromarray(pixels), ())
    except Exception as error:  # Pillow decodes here, and minds damage that libjpeg-turbo passes over
        raise _damaged(content, str(error)) from error
    rgb, turned, orientation = _upright(image, rgb)
    width, height = (height, width) if "turned_sideways" in turned else (width, height)
    return Picture(np.asarray(rgb), width, height, _jpeg_digest(content, orientation), notes + converted + turned)


def _jpeg_pixels(content: bytes, space: str, smallest: dict[str, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixels, and a note when libjpeg warned of something that leaves them alone."""
    try:
        return simplejpeg.decode_jpeg(content, space, **smallest), ()
    except ValueError as error:
        if not _is_harmless(str(error)):
            raise _damaged(content, str(error)) from error
    try:
        return simplejpeg.decode_jpeg(content, space, strict=False, **smallest), ("odd_jpeg",)
    except ValueError as error:
        raise _damaged(content, str(error)) from error


def _is_harmless(warning: str) -> bool:
    """Whether the warning is about markers or a few stray bytes; many left over show that decoding lost its way."""
    stray = re.search(r"(\d+) extraneous bytes", warning)
    if stray:
        return int(stray[1]) <= STRAY_BYTES
    return not ("Corrupt" in warning or "Premature" in warning)


def _picture(rgb: Image.Image, notes: tuple[str, ...]) -> Picture:
    pixels = np.asarray(rgb)
    return Picture(pixels, *rgb.size, _digest(pixels), notes)


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def _jpeg_digest(content: bytes, orientation: int = 1) -> str:
    """sha256 of a JPEG but for APPn segments and comments, and of its turn: equal whatever scale, decoder, metadata."""
    digest, place = hashlib.sha256(b"" if orientation == 1 else bytes([orientation])), 2
    while place + 4 <= len(content) and content[place] == 0xFF and (marker := content[place + 1]) != 0xDA:
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            digest.update(content[place:end])
        place = end
    digest.update(content[place:])  # from the first scan to the end
    return digest.hexdigest()


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise RefusedImageError("too_large", f"{width}x{height} is more than {limits.max_pixels:,} pixels")
    if min(width, height) < limits.min_side:
        raise RefusedImageError("too_small", f"{width}x{height}; the shorter side is under {limits.min_side} pixels")


def _too_many_pixels(limits: Limits) -> RefusedImageError:
    return RefusedImageError("too_large", f"more than {limits.max_pixels:,} pixels")


def _damaged(content: bytes, message: str) -> RefusedImageError:
    if not content:
        return RefusedImageError("truncated", "the file is empty")
    cut = "truncated" in message.lower() or _lacks_its_end(content)
    return RefusedImageError("truncated" if cut else "corrupt", message or "cannot be decoded")


def _lacks_its_end(content: bytes) -> bool:
    """Whether the end that the format prescribes is missing."""
    if content.startswith(b"RIFF"):
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    if content.startswith(b"BM"):
        return len(content) < int.from_bytes(content[2:6], "little")
    ends = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND", b"GIF8": b";"}
    return any(content.startswith(start) and end not in content[-64:] for start, end in ends.items())


def _to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB of 8 bits from any mode, and what that took.

    Alpha is laid on BACKGROUND; CMYK goes by Pillow's plain formula, without colour profiles; 16 bits are scaled, so
    that 65535 becomes 255.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, ()
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    ):
        page = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB"), ("alpha",)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bits(image).convert("RGB"), ("16_bit",)
    names = {"1": "1_bit", "L": "grey", "P": "palette", "CMYK": "cmyk", "YCbCr": "ycbcr"}
    if image.mode not in names:
        raise RefusedImageError("format", f"pixels of mode {image.mode} have no stated range or conversion to RGB")
    return image.convert("RGB"), (names[image.mode],)


def _from_16_bits(image: Image.Image) -> Image.Image:
    deep = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))


def _upright(image: Image.Image, rgb: Image.Image) -> tuple[Image.Image, tuple[str, ...], int]:
    """Turn the picture as its EXIF orientation says; unreadable EXIF turns nothing, and is noted.

    Returns:
        The picture, what was done, and the orientation; 1 where nothing was turned.
    """
    if image.format != "TIFF" and not {"exif", "xmp", "XML:com.adobe.xmp"} & set(image.info):
        return rgb, (), 1
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # made-up metadata raise whatever they trip over
        return rgb, ("unreadable_exif",), 1
    if orientation not in TRANSPOSED:
        return rgb, (), 1
    note = "turned_sideways" if orientation >= 5 else "turned"
    return rgb.transpose(TRANSPOSED[orientation]), (note,), int(orientation)
