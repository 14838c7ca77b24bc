"""One picture from bytes: every bad input is refused with its reason, every colour mode comes out as it should."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retrieval.images import RESIZES, Limits, Picture, RefusedImageError, bounded, decode, from_array

LIMITS = Limits(max_pixels=200_000, min_side=8)
STORED = {  # how a camera lays down an upright picture for each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Something smooth enough for JPEG, and nowhere flat."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def read(content: bytes, limits: Limits = LIMITS, image_size: int = 16) -> Picture:
    with bounded(limits):
        return decode(content, limits, image_size)


def reason(content: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(RefusedImageError) as caught:
        read(content, limits)
    assert caught.value.detail
    assert " at 0x" not in caught.value.detail  # no memory address: reports are reproducible
    return caught.value.reason


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size: a decompression bomb's beginning."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk
        + struct.pack(">I", len(data))
        + b"IDAT"
        + data
        + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    )


@pytest.mark.parametrize("place", range(200, 1_000, 100))
def test_a_damaged_cmyk_jpeg_is_refused(place: int) -> None:
    content = bytearray(encoded(photo(200, 150).convert("CMYK"), "JPEG", quality=95))
    start = content.index(b"\xff\xda") + place
    content[start : start + 512] = b"\xff" * 512
    assert reason(bytes(content)) == "corrupt"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_give_the_same_pixels(kind):
    picture = read(encoded(photo(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(photo()))
    assert (picture.width, picture.height, picture.notes) == (40, 30, ())
    assert picture.sha256 == read(encoded(photo(), "PNG")).sha256


def test_jpeg_is_what_pillow_decodes():
    content = encoded(photo(), "JPEG", quality=92)
    assert np.array_equal(np.asarray(read(content).rgb), np.asarray(Image.open(io.BytesIO(content))))


def test_a_large_jpeg_is_decoded_smaller_and_keeps_its_size():
    picture = read(encoded(photo(400, 300), "JPEG"), image_size=16)
    assert (picture.width, picture.height) == (400, 300)
    assert picture.rgb.size == (50, 38)  # 1/8: the short side keeps twice the store's 16 pixels
    assert read(encoded(photo(400, 300), "JPEG"), image_size=160).rgb.size == (400, 300)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_cut_short_is_truncated(kind):
    content = encoded(photo(), kind)
    assert reason(content[: len(content) * 2 // 3]) == "truncated"


def test_an_empty_file_is_truncated():
    assert reason(b"") == "truncated"


def test_a_cut_jpeg_with_an_end_marker_is_refused():
    content = encoded(photo(200, 150), "JPEG")
    assert reason(content[: len(content) // 2] + b"\xff\xd9") == "corrupt"


def test_a_png_with_one_changed_byte_is_corrupt():
    content = bytearray(encoded(photo(), "PNG"))
    content[len(content) // 2] ^= 0xFF
    assert reason(bytes(content)) == "corrupt"


def test_jpeg_data_overwritten_in_the_middle_are_corrupt():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    content = bytearray(encoded(noise, "JPEG"))
    middle = len(content) // 2
    content[middle : middle + 400] = b"\xff\xd0" * 200
    assert reason(bytes(content)) == "corrupt"


def test_a_few_stray_bytes_in_a_jpeg_are_noted():
    content = encoded(photo(), "JPEG")
    picture = read(content[:-2] + b"\1\2\3\4" + content[-2:])
    assert picture.notes == ("odd_jpeg",)


def test_a_jpeg_is_the_same_picture_whatever_its_scale_and_its_metadata():
    content = encoded(photo(400, 300), "JPEG")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    told = encoded(photo(400, 300), "JPEG", comment=b"a comment", exif=exif)
    assert len({read(c, image_size=size).sha256 for c in (content, told) for size in (16, 60, 160)}) == 1
    assert read(encoded(photo(400, 300), "JPEG", quality=60)).sha256 != read(content).sha256


@pytest.mark.parametrize(
    "content", [b"hello, I am a text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4 x"]
)
def test_other_formats_are_refused_by_content(content):
    assert reason(content) == "format"


def test_a_format_that_pillow_reads_and_we_do_not_is_refused():
    assert reason(encoded(photo(), "PPM")) == "format"


@pytest.mark.parametrize("size", [(50_000, 50_000), (1_000, 201), (500, 401)])
def test_too_many_pixels_are_refused_from_the_header(size):
    assert reason(png_claiming(*size)) == "too_large"


def test_a_huge_jpeg_is_refused_from_the_header():
    assert reason(encoded(Image.new("RGB", (500, 401)), "JPEG")) == "too_large"


def test_a_file_larger_than_its_pixels_could_be_is_refused():
    content = encoded(photo(), "PNG")
    assert reason(content + b"\0" * (LIMITS.max_bytes + 1 - len(content))) == "too_large"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_small_picture_is_refused(kind):
    assert reason(encoded(photo(40, 7), kind)) == "too_small"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.new("RGB", (48, 32), "black")
    upright.paste((255, 0, 0), (0, 0, 24, 16))
    upright.paste((0, 255, 0), (24, 0, 48, 16))
    content = encoded(upright.transpose(STORED[orientation]) if orientation > 1 else upright, kind, exif=exif)
    picture = read(content)
    assert (picture.width, picture.height) == picture.rgb.size == (48, 32)
    assert np.abs(np.asarray(picture.rgb).astype(int) - np.asarray(upright)).mean() < 6


def test_a_jpeg_that_is_only_turned_otherwise_is_another_picture():
    def turned(orientation, comment=b""):
        exif = Image.Exif()
        exif[0x0112] = orientation
        return read(encoded(photo(40, 40), "JPEG", exif=exif, comment=comment)).sha256

    assert len({turned(orientation) for orientation in range(1, 9)}) == 8
    assert turned(3) == turned(3, b"by another camera")
    assert turned(1) == read(encoded(photo(40, 40), "JPEG")).sha256


def test_unreadable_exif_is_noted_and_turns_nothing():
    picture = read(encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage"))
    assert picture.rgb.size == (40, 30)


def test_grey():
    picture = read(encoded(photo().convert("L"), "PNG"))
    assert picture.notes == ("grey",)
    assert np.array_equal(np.asarray(picture.rgb)[..., 1], np.asarray(photo().convert("L")))


def test_grey_jpeg():
    assert read(encoded(photo().convert("L"), "JPEG")).notes == ("grey",)


def test_one_bit():
    stripes = Image.fromarray(np.indices((20, 20)).sum(0) % 2 == 0)
    picture = read(encoded(stripes, "PNG"))
    assert picture.notes == ("1_bit",)
    assert np.asarray(picture.rgb)[0, :2].tolist() == [[255] * 3, [0] * 3]


def test_palette():
    picture = read(encoded(photo().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"))
    assert picture.notes == ("palette",)
    assert np.abs(np.asarray(picture.rgb).astype(int) - np.asarray(photo())).mean() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode):
    clear = Image.new(mode, (20, 20), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    half = Image.new(mode, (20, 10), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    clear.paste(half, (0, 0))
    picture = read(encoded(clear, "PNG"))
    assert picture.notes == ("alpha",)
    assert np.asarray(picture.rgb)[15, 5].tolist() == [255] * 3
    assert np.asarray(picture.rgb)[5, 5].tolist() == [127] * 3


def test_a_transparent_palette_colour_is_laid_on_white():
    two = Image.new("P", (20, 20), 0)
    two.putpalette([10, 20, 30, 200, 100, 50])
    two.paste(1, (0, 0, 20, 10))
    picture = read(encoded(two, "PNG", transparency=0))
    assert np.asarray(picture.rgb)[[5, 15], 5].tolist() == [[200, 100, 50], [255, 255, 255]]


def test_cmyk_jpeg():
    picture = read(encoded(Image.new("RGB", (32, 32), (200, 60, 30)).convert("CMYK"), "JPEG", quality=95))
    assert picture.notes == ("cmyk",)
    assert np.abs(np.asarray(picture.rgb)[16, 16].astype(int) - (200, 60, 30)).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind):
    ramp = np.linspace(0, 65535, 400).round().astype(np.uint16).reshape(20, 20)
    picture = read(encoded(Image.fromarray(ramp), kind))
    assert picture.notes == ("16_bit",)
    expected = np.rint(ramp / 257)
    assert np.abs(np.asarray(picture.rgb)[..., 0] - expected).max() <= 1
    assert np.asarray(picture.rgb).max() == 255


def test_pixels_without_a_stated_range_are_refused():
    assert reason(encoded(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF")) == "format"


def test_the_first_frame_of_an_animation_is_taken():
    frames = [photo(seed=seed) for seed in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture = read(content)
    assert "first_frame" in picture.notes
    assert np.abs(np.asarray(picture.rgb).astype(int) - np.asarray(frames[0])).mean() < 12


def test_crop_keeps_the_middle_and_stretch_keeps_all():
    bands = np.zeros((20, 60, 3), np.uint8)
    bands[:, :20], bands[:, 20:40], bands[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(bands)
    cropped, stretched = (np.asarray(RESIZES[how](image, 10)) for how in ("crop", "stretch"))
    assert cropped.shape == stretched.shape == (10, 10, 3)
    assert (cropped[:, 2:8] == (0, 255, 0)).all()
    assert stretched[5, 0].tolist() == [255, 0, 0]
    assert stretched[5, 9].tolist() == [0, 0, 255]


def on_paper(height, width, ground, ink, top, left, tall, broad):
    pixels = np.full((height, width, 3), ground, np.uint8)
    pixels[top : top + tall, left : left + broad] = ink
    return from_array(pixels, LIMITS)


def extent(pixels, ground):
    """The first and the last row and column that are rather ink than ground."""
    apart = np.abs(pixels.astype(int) - ground).max(2)
    rows, columns = (np.flatnonzero((apart > apart.max() / 2).any(axis)) for axis in (1, 0))
    return rows[0], rows[-1], columns[0], columns[-1]


@given(
    place=st.tuples(st.integers(0, 60), st.integers(0, 40)),
    ink_first=st.booleans(),
    side=st.integers(16, 40),
)
def test_a_drawing_comes_to_the_middle_wherever_it_was(place, ink_first, side):
    ground, ink = ((250, 240, 230), (10, 0, 60)) if ink_first else ((0, 0, 0), (255, 255, 255))
    picture = on_paper(100, 80, ground, ink, *place, side, side)
    found = picture.fitted(64, "drawing")
    top, bottom, left, right = extent(found, ground)
    assert abs(top - (63 - bottom)) <= 1
    assert abs(left - (63 - right)) <= 1
    kept = (1.15 * side * 100) ** 0.5
    assert abs((bottom - top + 1) - 64 * side / kept) <= 2
    assert np.array_equal(found[0, 0], ground)


def test_a_drawing_of_the_stores_size_is_framed_too():
    picture = on_paper(64, 64, (255,) * 3, (0,) * 3, 2, 2, 20, 10)
    assert np.array_equal(picture.fitted(64, "drawing"), np.asarray(RESIZES["drawing"](picture.rgb, 64)))
    assert not np.array_equal(picture.fitted(64, "drawing"), picture.pixels)


@pytest.mark.parametrize(("width", "height", "refused"), [(8, 9_000, True), (9_000, 8, True), (60, 2_000, False)])
def test_a_line_that_would_need_a_vast_square_is_refused(width, height, refused):
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[0, 0] = pixels[-1, -1] = 0
    picture = from_array(pixels, LIMITS)
    if not refused:
        assert picture.fitted(16, "drawing").shape == (16, 16, 3)
        return
    with pytest.raises(RefusedImageError, match=r"too_large.*resize=drawing needs a square of 93,150,000 pixels"):
        picture.fitted(16, "drawing")


def test_a_picture_without_a_drawing_is_cropped():
    pixels = np.random.default_rng(0).integers(100, 110, (30, 40, 3), dtype=np.uint8)
    picture = from_array(pixels, LIMITS)
    assert np.array_equal(picture.fitted(20, "drawing"), picture.fitted(20, "crop"))


def test_arrays_become_pictures():
    assert from_array(np.full((8, 8), 7, np.uint8), LIMITS).rgb.getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(RefusedImageError):
        from_array(np.zeros((7, 8, 3), np.uint8), LIMITS)


def test_the_guard_is_put_back():
    before = Image.MAX_IMAGE_PIXELS
    with bounded(Limits(17, 1)):
        assert Image.MAX_IMAGE_PIXELS == 17
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_anywhere_is_a_picture_or_a_refusal(kind):
    """Whatever a byte becomes, nothing but a Picture or a RefusedImageError comes out."""
    content, rng = encoded(photo(), kind), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 4):
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(RefusedImageError):
            assert read(bytes(damaged)).rgb.mode == "RGB"


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_a_picture_is_fitted_as_pillow_resizes_it_and_left_alone_when_it_fits(resize):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    square, wide = from_array(pixels, LIMITS), from_array(np.concatenate([pixels, pixels], 1), LIMITS)
    assert np.array_equal(square.fitted(24, resize), pixels)
    assert np.array_equal(wide.fitted(16, resize), np.asarray(RESIZES[resize](wide.rgb, 16)))
