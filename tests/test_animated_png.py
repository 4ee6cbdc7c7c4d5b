"""Animated PNGs as programs write them: palettes, half-transparent frames, keys of transparency, parts that move."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from skimage import data

import utils
from pictures.apng import composed
from pictures.formats import read_picture

PHOTOGRAPH = np.asarray(Image.fromarray(data.astronaut()).resize((40, 32)))
NONE, TO_CLEAR, TO_BEFORE = range(3)
SOURCE, OVER = range(2)
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def packed(pixels, bits):
    """Rows of pixels as they are in IDAT: filter 0, the highest bits first."""
    pixels = pixels.reshape(len(pixels), -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    elif bits == 8:
        rows = [row.astype(np.uint8).tobytes() for row in pixels]
    else:
        parts = (pixels[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in parts]
    return zlib.compress(b"".join(b"\0" + row for row in rows))


def write(path, kind, frames, bits=8, extra=b"", default=None, size=(40, 32)):
    """An animated PNG. `frames` are (pixels, left, top, disposal, blending, ms); `default`, a picture before the first."""
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", *size, bits, kind, 0, 0, 0))
    file += chunk(b"acTL", struct.pack(">2I", len(frames), 0)) + extra
    if default is not None:
        file += chunk(b"IDAT", packed(default, bits))
    number = 0
    for i, (pixels, left, top, disposal, blending, ms) in enumerate(frames):
        where = struct.pack(">5I2H2B", number, *pixels.shape[1::-1], left, top, ms, 1000, disposal, blending)
        file, number = file + chunk(b"fcTL", where), number + 1
        if i == 0 and default is None:
            file += chunk(b"IDAT", packed(pixels, bits))
        else:
            file, number = file + chunk(b"fdAT", struct.pack(">I", number) + packed(pixels, bits)), number + 1
    path.write_bytes(file + chunk(b"IEND", b""))
    return path


def read(path):
    """[(rgba, ms)] of an animation."""
    frames = list(read_picture(path).frames)
    opaque = np.full(frames[0].rgb.shape[:2], 255, np.uint8)
    return [(np.dstack([f.rgb, opaque if f.alpha is None else f.alpha]).astype(int), f.duration) for f in frames]


@pytest.mark.parametrize("bits, extra", [(8, True), (8, False), (4, False), (1, False)])
def test_a_palette_keeps_its_colours(tmp_path, bits, extra):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (2**bits, 3), np.uint8)
    alphas = rng.integers(0, 256, 2**bits, np.uint8)
    chunks = chunk(b"PLTE", palette.tobytes()) + (chunk(b"tRNS", alphas.tobytes()) if extra else b"")
    chunks += chunk(b"tEXt", b"Title\0a title") if bits == 8 else b""  # for which Pillow looks through all frames
    numbers = [rng.integers(0, 2**bits, (32, 40)) for _ in range(2)]
    path = write(tmp_path / "a.png", PALETTE, [(n, 0, 0, NONE, SOURCE, 70) for n in numbers], bits, chunks)
    for (pixels, ms), n in zip(read(path), numbers, strict=True):
        assert np.array_equal(pixels[..., :3], palette[n]) and ms == 70
        assert np.array_equal(pixels[..., 3], alphas[n] if extra else np.full(n.shape, 255))


def test_pillow_s_own_palettes_too(tmp_path):
    first = Image.fromarray(PHOTOGRAPH).quantize(64)
    second = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second], duration=[100, 200])
    expected = np.asarray(first.convert("RGB")).astype(int)
    (one, _), (other, _) = read(tmp_path / "a.png")
    assert np.array_equal(one[..., :3], expected) and np.array_equal(other[..., :3], expected[:, ::-1])


def square(x, colour):
    pixels = np.zeros((32, 40, 4), np.uint8)
    pixels[8:24, x : x + 10] = colour
    return pixels


def test_a_sticker_that_moves_is_cleared_in_between(tmp_path):
    squares = [square(x, (255, 0, 0, 128)) for x in (2, 12, 24)]
    path = write(tmp_path / "a.png", RGB_ALPHA, [(s, 0, 0, TO_CLEAR, OVER, 100) for s in squares])
    for (pixels, _), expected in zip(read(path), squares, strict=True):
        assert np.array_equal(pixels[..., 3], expected[..., 3])
        assert np.array_equal(pixels[expected[..., 3] > 0], expected[expected[..., 3] > 0])


@pytest.mark.parametrize("disposal", [NONE, TO_CLEAR, TO_BEFORE])
@pytest.mark.parametrize("blending", [SOURCE, OVER])
def test_parts_are_laid_over_what_is_there(tmp_path, disposal, blending):
    """By the mixture of the specification: an opaque picture stays opaque, and what was there comes back or not."""
    opaque = np.dstack([PHOTOGRAPH, np.full((32, 40), 255, np.uint8)])
    half = np.full((10, 12, 4), (0, 0, 255, 100), np.uint8)
    last = np.full((4, 4, 4), (9, 9, 9, 255), np.uint8)
    frames = [(opaque, 0, 0, NONE, SOURCE, 50), (half, 5, 7, disposal, blending, 50), (last, 30, 20, NONE, SOURCE, 50)]
    shown = [pixels for pixels, _ in read(write(tmp_path / "a.png", RGB_ALPHA, frames))]
    before = opaque[7:17, 5:17].astype(int)
    mixed = np.full((10, 12, 4), (0, 0, 255, 100)) if blending == SOURCE else before.copy()
    if blending == OVER:
        mixed[..., :3] = np.rint((100 * np.array([0, 0, 255]) + 155 * before[..., :3]) / 255)
    assert np.abs(shown[1][7:17, 5:17] - mixed).max() <= 1
    after = {NONE: mixed, TO_CLEAR: 0 * mixed, TO_BEFORE: before}[disposal]
    assert np.abs(shown[2][7:17, 5:17] - after).max() <= 1
    assert np.array_equal(shown[2][20:24, 30:34], np.full((4, 4, 4), (9, 9, 9, 255)))
    for pixels in shown:
        assert np.array_equal(pixels[25:, :20], opaque[25:, :20])


@pytest.mark.parametrize("kind, bits", [(GRAY, 4), (GRAY, 8), (GRAY, 16), (RGB, 8), (RGB, 16)])
def test_a_colour_that_stands_for_transparency(tmp_path, kind, bits):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 2**bits, (32, 40, 3 if kind == RGB else 1))
    key = (2**bits - 5, 3, 7) if kind == RGB else (3,)
    pixels[:, :8] = key
    near = pixels.copy()
    near[:, 8:16] = key
    near[:, 8:16, 0] += 1  # no key, though of 16 bits the same at 8
    chunks = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    path = write(tmp_path / "a.png", kind, [(p, 0, 0, NONE, SOURCE, 40) for p in (pixels, near)], bits, chunks)
    for (frame, _), p in zip(read(path), (pixels, near), strict=True):
        assert np.array_equal(frame[..., 3] == 0, (p == key).all(axis=2))
    assert (read(path)[1][0][:, 8:16, 3] == 255).all()


@pytest.mark.parametrize("count", [1, 2])
def test_the_picture_for_those_who_cannot_show_it_is_not_shown(tmp_path, count):
    frames = [np.ascontiguousarray(np.roll(PHOTOGRAPH, 4 * i, 1)) for i in range(count)]
    parts = [(frame, 0, 0, NONE, SOURCE, 30) for frame in frames]
    path = write(tmp_path / "a.png", RGB, parts, default=np.zeros((32, 40, 3), np.uint8))
    picture = read_picture(path)
    assert picture.count == count
    for (pixels, _), expected in zip(read(path), frames, strict=True):
        assert np.array_equal(pixels[..., :3], expected) and (pixels[..., 3] == 255).all()


def test_a_file_with_fewer_frames_than_it_tells_is_damaged(tmp_path):
    frame = (PHOTOGRAPH, 0, 0, NONE, SOURCE, 30)
    path = write(tmp_path / "a.png", RGB, [frame, frame, frame])
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"fcTL") - 4] + chunk(b"IEND", b""))
    with pytest.raises(utils.ImageError, match="Truncated"):  # Pillow, which looks for texts behind the frames
        list(read_picture(path).frames)
    with pytest.raises(ValueError, match="ends after 2 of its 3 frames"):
        list(composed(path.read_bytes(), lambda _: np.zeros((32, 40, 4), np.uint8)))
    picture = read_picture(path, damaged=True)
    assert len(list(picture.frames)) == 2 and "of its 3 frames 2 could be decoded" in picture.remark
    path = write(tmp_path / "b.png", RGB, [frame, (PHOTOGRAPH, 5, 0, NONE, SOURCE, 30)])
    with pytest.raises(utils.ImageError, match="invalid frames"):  # which Pillow sees before us
        list(read_picture(path).frames)
    whole = np.dstack([PHOTOGRAPH, np.full((32, 40), 255, np.uint8)])
    with pytest.raises(ValueError, match="frame 2 reaches beyond the picture"):
        list(composed(path.read_bytes(), lambda _: whole))
