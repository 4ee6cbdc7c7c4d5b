"""Pictures as people have them, through test.py: what they are must still be so in the result."""

import re
import resource
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageSequence, PngImagePlugin, features
from skimage import data

import test as test_script
import upscaling
import utils
from models import SRResNet
from pictures import deep, folders, formats, opening
from pictures.deep import turned
from pictures.formats import read_picture
from pictures.pixels import orientation_of, read_image
from pictures.video import upscale_video
from weights import blend_networks, save_checkpoint

PHOTOGRAPH = Image.fromarray(data.astronaut()).resize((48, 40))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny network that enlarges well enough for means to be compared: its tail sees an upsampled copy of the input."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    network = SRResNet(4, blocks=1, channels=4)
    save_checkpoint(path, {"config": network.config, "weights": network.state_dict(), "step": 0})
    return path


@pytest.fixture
def upscale(weights, tmp_path, monkeypatch):
    """Run test.py on a picture saved under a name; returns the path of the result, which is given."""

    def run(name, result, *flags):
        words = [str(tmp_path / name), "--weights", str(weights), "--output", str(tmp_path / "out"), "--device", "cpu", *flags]
        monkeypatch.setattr(sys, "argv", ["test.py", *words])
        test_script.main(test_script.parse_arguments())
        return tmp_path / "out" / result

    return run


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_keeps_gray_and_transparency(mode, upscale, tmp_path):
    PHOTOGRAPH.convert(mode).save(tmp_path / "a.png")
    result = Image.open(upscale("a.png", "a_x4.png"))
    assert result.mode == {"1": "L", "P": "RGB"}.get(mode, mode)
    assert result.size == (192, 160)


def test_alpha_is_enlarged(upscale, tmp_path):
    image = PHOTOGRAPH.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.repeat([0, 255], 24).astype(np.uint8), (40, 1))))
    image.save(tmp_path / "a.png")
    alpha = np.asarray(Image.open(upscale("a.png", "a_x4.png")))[..., 3]
    assert alpha[:, :80].max() == 0 and alpha[:, 112:].min() == 255


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_stay_16_bits(ending, channels, upscale, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (20, 24, channels)).astype(np.uint16)
    frame = formats.Frame(np.repeat(pixels[..., :1], 3, 2) if channels == 1 else pixels[..., :3])
    if channels == 4:
        frame.alpha = pixels[..., 3]
    file = tmp_path / f"a.{ending}"
    formats.write_picture(file, formats.Picture([frame], gray=channels == 1))
    read = formats.read_picture(file)
    back = next(iter(read.frames))
    assert np.array_equal(back.rgb, frame.rgb)  # what is written is read back to the last bit
    assert read.gray == (channels == 1)
    assert channels < 4 or np.array_equal(back.alpha, frame.alpha)

    result = formats.read_picture(upscale(f"a.{ending}", f"a_x4.{ending}"))
    enlarged = next(iter(result.frames))
    assert enlarged.rgb.dtype == np.uint16 and enlarged.rgb.shape == (80, 96, 3)
    assert len(np.unique(enlarged.rgb)) > 256
    assert (enlarged.alpha is not None) == (channels == 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_at_8_and_16_bits(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    PHOTOGRAPH.save(tmp_path / "a.png", exif=exif)
    upright = next(iter(formats.read_picture(tmp_path / "a.png").frames)).rgb
    deep = np.asarray(PHOTOGRAPH).astype(np.uint16) * 257
    assert np.array_equal(turned(deep, orientation) // 257, upright)


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a phone"
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0xA002: 48})
    PHOTOGRAPH.save(tmp_path / "a.jpg", exif=exif)
    whole = bytearray((tmp_path / "a.jpg").read_bytes())
    start = whole.index(b"Exif") + 6
    for i in range(start, start + len(exif.tobytes()) - 6):
        for value in (0, 12, 255):
            (tmp_path / "a.jpg").write_bytes(whole[:i] + bytes([value]) + whole[i + 1 :])
            frame = next(iter(formats.read_picture(tmp_path / "a.jpg").frames))
            assert sorted(frame.rgb.shape) == [3, 40, 48]
            assert np.array_equal(read_image(tmp_path / "a.jpg"), frame.rgb)


def test_metadata_is_kept(upscale, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    PHOTOGRAPH.save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), icc_profile=profile)
    result = Image.open(upscale("a.jpg", "a_x4.png"))
    assert result.size == (160, 192)  # upright
    assert result.info["icc_profile"] == profile
    assert result.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert dict(result.getexif()) == {0x010E: "a description"}
    # But not what described the pixels of the file it came from, and a TIFF of other sizes could not even be written.
    exif = Image.Exif()
    exif[0x0100], exif[0x0101], exif[0x010F] = 48, 40, "a phone"
    exif.get_ifd(0x8769).update({0xA002: 48, 0xA003: 40, 0x9003: "2026:01:02 03:04:05"})
    PHOTOGRAPH.save(tmp_path / "c.jpg", exif=exif)
    for form, ending in (("jpg", ".jpg"), ("png", ".png"), ("webp", ".webp"), ("tiff", ".tif")):
        result = Image.open(upscale("c.jpg", f"c_x4{ending}", "--format", form)).getexif()
        assert result[0x010F] == "a phone" and result.get(0x0100, 192) == 192
        assert dict(result.get_ifd(0x8769)) == {0x9003: "2026:01:02 03:04:05"}
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Title", "früh am Morgen")
    PHOTOGRAPH.save(tmp_path / "b.png", pnginfo=text)
    assert Image.open(upscale("b.png", "b_x4.png")).text == {"Title": "früh am Morgen"}


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animations_keep_their_frames_and_timing(ending, upscale, tmp_path):
    frames = [PHOTOGRAPH.rotate(10 * i) for i in range(4)]
    durations = [50, 100, 150, 200]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=durations, loop=3)
    result = Image.open(upscale(f"a.{ending}", f"a_x4.{ending}"))
    assert result.n_frames == 4 and result.size == (192, 160) and result.info["loop"] == 3
    shown = []
    for i in range(4):
        result.seek(i)
        result.load()
        shown.append(result.info["duration"])
    assert shown == durations


@pytest.mark.parametrize("before", ["gif", "webp", "png", "avif"])
@pytest.mark.parametrize("after", ["gif", "webp", "png", "avif"])
def test_animations_go_from_each_format_to_each(before, after, upscale, tmp_path):
    if "avif" in (before, after) and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    frames = [PHOTOGRAPH.rotate(10 * i) for i in range(3)]
    frames[0].save(tmp_path / f"a.{before}", save_all=True, append_images=frames[1:], duration=[50, 100, 150])
    with Image.open(upscale(f"a.{before}", f"a_x4.{after}", "--format", after)) as result:
        shown = []
        for image in ImageSequence.Iterator(result):
            image.load()
            shown.append(round(image.info["duration"]))
    assert shown == [50, 100, 150]


def test_frames_of_16_bits_are_read_as_8_and_that_is_told(tmp_path):
    gray = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    frames = [Image.fromarray(gray), Image.fromarray(65535 - gray)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=70)
    picture = formats.read_picture(tmp_path / "a.png")
    assert picture.remark == "its 16 bits a channel are read as 8"
    for frame, expected in zip(picture.frames, (gray, 65535 - gray), strict=True):
        assert frame.duration == 70 and np.abs(frame.rgb[..., 0] - expected / 257).max() <= 0.5


def test_what_a_format_does_not_hold_is_told(upscale, tmp_path, capsys):
    def said(name, form, ending=None):
        capsys.readouterr()
        upscale(name, f"{Path(name).stem}_x4.{ending or form}", "--format", form, "--overwrite")
        return capsys.readouterr().out

    deep = np.asarray(PHOTOGRAPH).astype(np.uint16) * 257
    formats.write_picture(tmp_path / "deep.png", formats.Picture([formats.Frame(deep)]))
    veiled = PHOTOGRAPH.convert("RGBA")
    veiled.putalpha(PHOTOGRAPH.convert("L"))
    veiled.save(tmp_path / "veiled.png")
    PHOTOGRAPH.convert("RGBA").save(tmp_path / "opaque.png")
    for form in ("jpg", "webp", "bmp", "gif"):
        assert "not in the result: more than 8 bits a channel" in said("deep.png", form)
    for form, ending in (("png", "png"), ("tiff", "tif")):
        assert "not in the result" not in said("deep.png", form, ending)
    for form in ("jpg", "bmp"):
        assert "not in the result: its transparency" in said("veiled.png", form)
        assert "not in the result" not in said("opaque.png", form)
    assert "what is half transparent" in said("veiled.png", "gif")
    for form in ("png", "webp"):
        assert "not in the result" not in said("veiled.png", form)


def test_a_cut_avif_is_told_from_a_missing_package(upscale, tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    PHOTOGRAPH.save(tmp_path / "a.avif")
    whole = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(utils.ImageError, match="damaged or cut"):
        formats.read_picture(tmp_path / "a.avif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_tiffs_become_tiffs(mode, compression, upscale, tmp_path):
    PHOTOGRAPH.convert(mode).save(tmp_path / "a.tif", compression=compression, dpi=(300, 300), description="the moon")
    result = Image.open(upscale("a.tif", "a_x4.tif"))
    assert result.size == (192, 160) and result.mode == {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
    assert result.info["dpi"] == (300, 300) and result.getexif()[270] == "the moon"
    assert upscale("a.tif", "a_x4.png", "--format", "png").exists()


def test_an_animation_that_plays_once_stays_so(upscale, tmp_path):
    frames = [PHOTOGRAPH.rotate(10 * i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    assert "loop" not in Image.open(upscale("a.gif", "a_x4.gif")).info
    assert Image.open(upscale("a.gif", "a_x4.webp", "--format", "webp")).info["loop"] == 1
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    assert Image.open(upscale("b.gif", "b_x4.gif")).info["loop"] == 0


def test_an_animation_is_turned_upright(upscale, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [PHOTOGRAPH.rotate(10 * i) for i in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=50, exif=exif)
    assert formats.read_picture(tmp_path / "a.webp").size == (40, 48)
    result = Image.open(upscale("a.webp", "a_x4.webp"))
    assert result.size == (160, 192) and result.n_frames == 3 and 0x0112 not in result.getexif()


def only(path):
    """The one frame of a picture that stands still."""
    [frame] = formats.read_picture(path).frames
    return frame


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "CMYK", "deep"])
def test_tiffs_are_turned_upright_once(mode, orientation, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    gray, pixels = np.asarray(PHOTOGRAPH.convert("L")), np.asarray(PHOTOGRAPH)
    if mode in ("I;16", "deep"):
        deep = (gray if mode == "I;16" else pixels).astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / "a.tif", deep, extratags=[(0x0112, 3, 1, orientation, True)])
    else:
        PHOTOGRAPH.convert(mode).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    expected = turned(np.repeat(gray[..., None], 3, axis=2) if mode in ("L", "I;16") else pixels, orientation)
    frame = only(tmp_path / "a.tif")
    assert np.array_equal(formats.to_8_bits(frame.rgb), expected)
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


def test_gray_tiffs_of_every_kind_have_the_right_brightness(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    gray = np.asarray(PHOTOGRAPH.convert("L"))
    tifffile.imwrite(tmp_path / "white.tif", 65535 - gray.astype(np.uint16) * 257, photometric="miniswhite")
    Image.fromarray(gray.astype(np.int32) * 257).save(tmp_path / "wide.tif")
    for name in ("white.tif", "wide.tif"):
        assert np.array_equal(only(tmp_path / name).rgb[..., 0], gray.astype(np.uint16) * 257)
        assert np.array_equal(read_image(tmp_path / name)[..., 0], gray)
    for wrong in (gray.astype(np.int32) * 70000, gray.astype(np.int32) - 300):
        Image.fromarray(wrong).save(tmp_path / "range.tif")
        with pytest.raises(utils.ImageError, match="range"):
            only(tmp_path / "range.tif")


def test_deep_tiffs_of_every_layout(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    deep = np.asarray(PHOTOGRAPH).astype(np.uint16) * 250
    tifffile.imwrite(tmp_path / "planes.tif", deep.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([deep, deep[::-1]]), photometric="rgb")
    more = np.concatenate([deep, deep[..., :1]], axis=2)
    tifffile.imwrite(tmp_path / "unspecified.tif", more, photometric="rgb", extrasamples=["unspecified"])
    for name in ("planes.tif", "pages.tif", "unspecified.tif"):
        frame = only(tmp_path / name)
        assert np.array_equal(frame.rgb, deep) and frame.alpha is None
    assert "2 pages" in formats.read_picture(tmp_path / "pages.tif").remark

    def missing(*_):
        raise ValueError("requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)  # as for LZW
    picture = formats.read_picture(tmp_path / "pages.tif")
    monkeypatch.undo()
    assert next(iter(picture.frames)).rgb.dtype == np.uint8


def test_words_of_a_deep_tiff_are_kept(upscale, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    deep = np.asarray(PHOTOGRAPH).astype(np.uint16) * 257
    tags = [(33432, 2, 0, "somebody's", True)]
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", description="the moon", metadata=None, extratags=tags)
    result = upscale("a.tif", "a_x4.tif")
    words = Image.open(result).tag_v2
    assert (words[270], words[33432]) == ("the moon", "somebody's") and 282 not in words or words[282] == 1
    assert "dpi" not in formats.read_picture(result).info


def test_transparent_colours_of_deep_and_shallow_pngs(tmp_path):
    key = 0x1234
    for shape in ((4, 6, 1), (4, 6, 3)):
        pixels = np.full(shape, 50000, np.uint16)
        pixels[1] = key
        with open(tmp_path / "a.png", "wb") as file:
            deep._write_png(file, pixels, {})
        data = (tmp_path / "a.png").read_bytes()
        chunk = b"tRNS" + struct.pack(">H", key) * shape[2]
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])  # after the header
        frame = only(tmp_path / "a.png")
        assert frame.rgb.dtype == np.uint16 and frame.rgb[1].max() == key
        assert frame.alpha[1].max() == 0 and frame.alpha[[0, 2, 3]].min() == 65535
    rows = b"".join(b"\0" + bytes([0x05, 0xAF]) for _ in range(4))  # gray of 4 bits: 0, 5, 10, 15
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in (
        b"IHDR" + struct.pack(">IIBBBBB", 4, 4, 4, 0, 0, 0, 0),
        b"tRNS" + struct.pack(">H", 5),
        b"IDAT" + zlib.compress(rows),
        b"IEND",
    ):
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "b.png").write_bytes(data)
    frame = only(tmp_path / "b.png")
    assert frame.rgb[0, :, 0].tolist() == [0, 85, 170, 255] and frame.alpha[0].tolist() == [255, 0, 255, 255]


def test_gray_with_alpha_of_16_bits(upscale, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, 2)).astype(np.uint16)
    with open(tmp_path / "a.png", "wb") as file:
        deep._write_png(file, pixels, {})
    picture = formats.read_picture(tmp_path / "a.png")
    [frame] = picture.frames
    assert picture.gray and np.array_equal(frame.rgb[..., 1], pixels[..., 0]) and np.array_equal(frame.alpha, pixels[..., 1])
    assert upscale("a.png", "a_x4.png").read_bytes()[24:26] == b"\x10\x04"
    assert Image.open(upscale("a.png", "a_x4.tif", "--format", "tiff")).mode == "RGBA"


def test_what_is_hidden_by_transparency_does_not_bleed():
    rgb, alpha = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)
    rgb[3:6, 3:6], alpha[3:6, 3:6] = (200, 100, 50), 255
    assert (formats.fill_transparent(formats.Frame(rgb, alpha)) == (200, 100, 50)).all()
    rgb[0, 0] = 1
    assert formats.fill_transparent(formats.Frame(rgb, alpha)) is rgb  # the picture goes on there
    for plain in (None, np.zeros((9, 9), np.uint8), np.full((9, 9), 7, np.uint8)):
        assert formats.fill_transparent(formats.Frame(rgb, plain)) is rgb


def test_a_raw_file_of_a_camera_is_refused(tmp_path):
    PHOTOGRAPH.save(tmp_path / "a.dng", "TIFF", tiffinfo={50706: bytes([1, 4, 0, 0])})
    with pytest.raises(utils.ImageError, match="raw file"):
        formats.read_picture(tmp_path / "a.dng")


def test_a_damaged_profile_of_inks_does_not_cost_the_picture(tmp_path):
    image = PHOTOGRAPH.convert("CMYK")
    image.save(tmp_path / "a.jpg", icc_profile=b"no profile", quality=100)
    assert np.abs(only(tmp_path / "a.jpg").rgb.astype(int) - np.asarray(image.convert("RGB"))).mean() < 3
    assert "icc_profile" not in formats.read_picture(tmp_path / "a.jpg").info


def profile_of_gray_inks():
    """An ICC profile of a printer whose four inks are all gray: one of them is half black, two or more are black."""
    lightness = [255 if not inks else 128 if inks.bit_count() == 1 else 0 for inks in range(16)]
    identity = struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * bytes(range(256))
    table += b"".join(bytes([level, 128, 128]) for level in lightness) + 3 * bytes(range(256))
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    head = struct.pack(">I4sI4s4s4s", 144 + len(table), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3I", 63190, 65536, 54061) + bytes(48)  # the white of D50
    return head + tags + table


def test_colours_of_inks_are_those_of_their_profile(tmp_path):
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    cyan.save(tmp_path / "a.jpg", icc_profile=profile_of_gray_inks(), quality=100)
    cyan.save(tmp_path / "b.jpg", quality=100)
    for read in (read_image, lambda path: only(path).rgb):
        assert np.abs(read(tmp_path / "a.jpg").astype(int) - 119).max() <= 2  # L* 50
        assert np.abs(read(tmp_path / "b.jpg").astype(int) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_of_gifs(mode, upscale, tmp_path):
    frames = []
    for i in range(3):
        frame = PHOTOGRAPH.convert("RGBA")
        alpha = np.full((40, 48), 255, np.uint8)
        alpha[10 * i : 10 * i + 10] = 0 if i else 255  # the first frame is opaque
        alpha[35:, :24], alpha[35:, 24:] = 100, 150
        frame.putalpha(Image.fromarray(alpha))
        frames.append(frame.convert(mode))
    frames[1].save(tmp_path / "still.png")
    alpha = np.asarray(Image.open(upscale("still.png", "still_x4.gif", "--format", "gif")).convert("RGBA"))[..., 3]
    assert alpha[44:76].max() == 0 and alpha[144:, :90].max() == 0
    assert alpha[:36].min() == 255 and alpha[144:, 102:].min() == 255
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=50)
    result = Image.open(upscale("a.png", "a_x4.gif", "--format", "gif"))
    for i in range(3):
        result.seek(i)
        alpha = np.asarray(result.convert("RGBA"))[..., 3]
        assert alpha[40 * i + 4 : 40 * i + 36].max() == (0 if i else 255)
        assert alpha[84:116].min() == (0 if i == 2 else 255)


@pytest.mark.parametrize("dpi", [float("nan"), 0, 1e9])
@pytest.mark.parametrize("bits", [8, 16])
def test_odd_resolutions_are_left_out(dpi, bits, monkeypatch, upscale, tmp_path):
    deep = np.asarray(PHOTOGRAPH).astype(np.uint16)
    frame = formats.Frame(deep * 257 if bits == 16 else deep.astype(np.uint8))
    formats.write_picture(tmp_path / "a.tif", formats.Picture([frame], info={"dpi": (300.0, 300.0)}))
    real = Image.open

    def odd(file):
        image = real(file)
        image.info["dpi"] = (dpi, dpi)
        return image

    with monkeypatch.context() as patch:
        patch.setattr(formats.Image, "open", odd)
        for form, ending in (("png", ".png"), ("tiff", ".tif"), ("bmp", ".bmp")):
            upscale("a.tif", f"a_x4{ending}", "--format", form)


def test_texts_of_pngs_may_be_long_and_do_not_turn_the_result(upscale, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("long", "y" * 2_000_000, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:title="moon"/></x:xmpmeta>')
    PHOTOGRAPH.save(tmp_path / "a.png", pnginfo=text)
    result = Image.open(upscale("a.png", "a_x4.png"))
    assert result.size == (160, 192) and orientation_of(result) == 1
    assert len(result.text["long"]) == 2_000_000 and 'dc:title="moon"' in result.text["XML:com.adobe.xmp"]


def test_a_transparent_bmp_becomes_a_png(tmp_path):
    PHOTOGRAPH.convert("RGBA").save(tmp_path / "a.png")
    header = struct.pack("<IiiHHIIiiII", 108, 48, -40, 1, 32, 3, 48 * 40 * 4, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)  # the masks, of BITMAPV4HEADER
    pixels = np.dstack([np.asarray(PHOTOGRAPH)[..., ::-1], np.full((40, 48), 99, np.uint8)]).tobytes()
    file = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels
    (tmp_path / "a.bmp").write_bytes(file)
    picture = formats.read_picture(tmp_path / "a.bmp")
    [frame] = picture.frames
    assert picture.format == "png" and frame.alpha.tolist() == [[99] * 48] * 40
    assert np.array_equal(frame.rgb, np.asarray(PHOTOGRAPH))


def test_the_default_image_is_no_frame_of_the_animation(upscale, tmp_path):
    frames = [PHOTOGRAPH.rotate(10 * i) for i in range(4)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], default_image=True, duration=70)
    picture = formats.read_picture(tmp_path / "a.png")
    shown = list(picture.frames)
    assert picture.count == len(shown) == 3 and np.array_equal(shown[0].rgb, np.asarray(frames[1]))
    assert Image.open(upscale("a.png", "a_x4.png")).n_frames == 3


def test_frames_of_a_gif_that_reach_beyond_its_screen_are_cut(upscale, tmp_path):
    frames = [PHOTOGRAPH.rotate(10 * i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<HH", 30, 20)  # the size of the screen
    (tmp_path / "a.gif").write_bytes(data)
    picture = formats.read_picture(tmp_path / "a.gif")
    width, height = picture.size
    assert all(frame.rgb.shape == (height, width, 3) for frame in picture.frames)
    assert Image.open(upscale("a.gif", "a_x4.webp", "--format", "webp")).n_frames == 3


def test_of_a_folder_all_that_can_be_read_is_taken(tmp_path):
    for name in ("b.JFIF", "a.avif", "c.ppm", "d.mts", "._b.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in folders.find_inputs([tmp_path])] == ["a.avif", "b.JFIF", "c.ppm", "d.mts"]


def test_of_several_pages_the_first_is_enlarged_and_the_others_are_named(upscale, tmp_path, capsys):
    PHOTOGRAPH.save(tmp_path / "a.tif", save_all=True, append_images=[PHOTOGRAPH.rotate(90)] * 2)
    upscale("a.tif", "a_x4.tif")
    assert "it has 3 pages or frames, of which this is the first" in capsys.readouterr().out


def test_deep_tiffs_of_other_colours_are_read_at_8_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    inks = np.zeros((20, 24, 4), np.uint16)
    inks[..., 0] = 65535
    tifffile.imwrite(tmp_path / "cmyk.tif", inks, photometric="separated")
    frame = next(iter(formats.read_picture(tmp_path / "cmyk.tif").frames))
    assert frame.alpha is None and frame.rgb[0, 0].tolist() == [0, 255, 255]  # cyan
    pixels = np.full((20, 24, 4), 32768, np.uint16)
    tifffile.imwrite(tmp_path / "multiplied.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    frame = next(iter(formats.read_picture(tmp_path / "multiplied.tif").frames))
    assert frame.rgb[0, 0].min() >= 254 and frame.alpha[0, 0] == 128  # white, half transparent


def colour(path):
    """How far the channels of what can be seen of a file's frames are from each other, in levels of 255."""
    worst = 0
    for frame in formats.read_picture(path).frames:
        rgb = formats.to_8_bits(frame.rgb).astype(int)
        spread = rgb.max(axis=2) - rgb.min(axis=2)
        worst = max(worst, spread.max() if frame.alpha is None else spread[frame.alpha > 0].max(initial=0))
    return worst


@pytest.mark.parametrize("form", list(formats.FORMATS))
def test_gray_in_rgb_gets_no_colour(form, upscale, tmp_path):
    """The network of the tests, which is untrained, makes colours of all it sees."""
    gray = np.asarray(PHOTOGRAPH.convert("L"))
    tinted = np.repeat(gray[..., None], 3, axis=2).clip(2, 253) + np.array([0, 2, 1], np.uint8)
    Image.fromarray(tinted).save(tmp_path / "a.png")
    ending = formats.FORMATS[form]
    result = upscale("a.png", f"a_x4{ending}", "--format", form)
    assert colour(result) == 0 and not formats.read_picture(result).gray
    tinted[7, 9] = 100, 100, 103  # one pixel of 3 levels is a colour
    Image.fromarray(tinted).save(tmp_path / "b.png")
    assert colour(upscale("b.png", f"b_x4{ending}", "--format", form)) > 10


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif", "palette.png", "a.bmp", "a.tga", "a.jp2"])
def test_gray_in_files_of_colours_gets_no_colour(name, upscale, tmp_path):
    image = PHOTOGRAPH.convert("L").convert("RGB")
    (image.quantize(64) if name == "palette.png" else image).save(tmp_path / name)
    assert colour(upscale(name, f"{name.split('.')[0]}_x4.png", "--format", "png")) == 0


def test_gray_of_16_bits_in_rgb_gets_no_colour(upscale, tmp_path):
    gray = np.asarray(PHOTOGRAPH.convert("L")).astype(np.uint16)[..., None] * 257
    for name, tint, limit in (("a", 514, 0), ("b", 700, None)):  # 2 levels of 255, and more
        rgb = gray.clip(0, 64000) + np.array([0, tint, 1], np.uint16)
        formats.write_picture(tmp_path / f"{name}.png", formats.Picture([formats.Frame(rgb)]))
        [frame] = formats.read_picture(upscale(f"{name}.png", f"{name}_x4.png")).frames
        spread = np.ptp(frame.rgb.astype(int), axis=2).max()
        assert spread > 5000 if limit is None else spread == limit


def test_colours_that_are_dark_or_under_transparency_stay(upscale, tmp_path):
    rgb = np.asarray(PHOTOGRAPH)
    dark = rgb.astype(np.uint16) * 450 // 255  # 16 bits, of which it uses 9
    formats.write_picture(tmp_path / "dark.png", formats.Picture([formats.Frame(dark)]))
    [frame] = formats.read_picture(upscale("dark.png", "dark_x4.png")).frames
    assert np.ptp(frame.rgb.astype(int), axis=2).max() > 100
    for name, alpha in (("none", np.zeros((40, 48))), ("half", np.indices((40, 48))[1] // 24 * 255)):
        pixels = np.dstack([np.where(alpha[..., None] > 0, rgb[..., :1], rgb), alpha]).astype(np.uint8)  # visible: gray
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        result = np.asarray(Image.open(upscale(f"{name}.png", f"{name}_x4.png")))[..., :3].astype(int)
        assert np.ptp(result[:, :80], axis=2).max() > 10


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_gray_frames_of_an_animation_get_no_colour(ending, upscale, tmp_path):
    gray = [PHOTOGRAPH.convert("L").rotate(10 * i).convert("RGB") for i in range(3)]
    gray[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=gray[1:], duration=50, lossless=True)
    assert colour(upscale(f"a.{ending}", f"a_x4.{ending}")) == 0
    gray[0].save(tmp_path / f"b.{ending}", save_all=True, append_images=[PHOTOGRAPH, gray[2]], duration=50, lossless=True)
    frames = [frame.rgb.astype(int) for frame in formats.read_picture(upscale(f"b.{ending}", f"b_x4.{ending}")).frames]
    assert [np.ptp(rgb, axis=2).max() > 10 for rgb in frames] == [False, True, False]


def test_colours_that_cannot_be_seen_are_none(upscale, tmp_path):
    rgb = np.array(PHOTOGRAPH.convert("L").convert("RGB"))
    rgb[:20], alpha = np.asarray(PHOTOGRAPH)[:20], np.full((40, 48), 255, np.uint8)
    alpha[:20] = 0
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    assert colour(upscale("a.png", "a_x4.png")) == 0
    alpha[3, 3] = 1
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "b.png")
    assert colour(upscale("b.png", "b_x4.png")) > 10


def test_what_of_a_file_is_not_taken_is_named(tmp_path):
    tifffile, rgb = pytest.importorskip("tifffile"), np.asarray(PHOTOGRAPH)
    (tmp_path / "a.ppm").write_bytes(b"P6 48 40 65535\n" + (rgb.astype(">u2") * 257).tobytes())
    assert read_picture(tmp_path / "a.ppm").remark == "its 16 bits a channel are read as 8"
    for bits in (8, 16):
        with_infrared = np.dstack([rgb, rgb[..., :1]]).astype(f"uint{bits}") * (257 if bits == 16 else 1)
        tifffile.imwrite(tmp_path / f"{bits}.tif", with_infrared, photometric="rgb", extrasamples=["unspecified"])
        remark = read_picture(tmp_path / f"{bits}.tif").remark
        assert remark == "of its 4 channels, 3 are colours, and the others are dropped"
    PHOTOGRAPH.save(tmp_path / "b.ppm")
    PHOTOGRAPH.convert("RGBA").save(tmp_path / "b.tif")
    assert not read_picture(tmp_path / "b.ppm").remark and not read_picture(tmp_path / "b.tif").remark


@pytest.mark.parametrize("form", ["avif", "qoi"])
def test_zeros_in_place_of_the_rest_of_a_file_are_found(form, tmp_path):
    if form == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path, noise = tmp_path / f"a.{form}", np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    read_picture(path)
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(utils.ImageError, match="its last bytes are zeros"):
        read_picture(path)
    assert read_picture(path, damaged=True).size == (100, 80)


def test_hdr_is_named(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    PHOTOGRAPH.save(tmp_path / "a.avif")
    assert not read_picture(tmp_path / "a.avif").remark
    data = (tmp_path / "a.avif").read_bytes()
    assert data.count(b"colrnclx\x00\x01\x00\r") == 1
    (tmp_path / "a.avif").write_bytes(data.replace(b"colrnclx\x00\x01\x00\r", b"colrnclx\x00\x09\x00\x10"))
    assert "HDR (PQ)" in read_picture(tmp_path / "a.avif").remark


def test_the_colours_of_an_avif_go_to_png(upscale, tmp_path, capsys):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    PHOTOGRAPH.save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(data.replace(b"colrnclx\x00\x01\x00\r", b"colrnclx\x00\x0c\x00\r"))  # Display P3
    assert dict(deep.png_chunks(upscale("a.avif", "a_x4.png").read_bytes()))[b"cICP"] == bytes([12, 13, 0, 1])
    upscale("a.avif", "a_x4.jpg", "--format", "jpg")
    assert "not in the result: what its colours are" in capsys.readouterr().out
    (tmp_path / "b.avif").write_bytes(data)
    assert b"cICP" not in dict(deep.png_chunks(upscale("b.avif", "b_x4.png").read_bytes()))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_profile_of_a_jpeg_2000_is_kept(mode, upscale, tmp_path):
    PHOTOGRAPH.convert(mode).save(tmp_path / "a.jp2")
    data = (tmp_path / "a.jp2").read_bytes()
    assert not read_picture(tmp_path / "a.jp2").info.get("icc_profile")
    profile = profile_of_gray_inks() if mode == "L" else ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    at = data.find(b"colr") - 4
    box = b"colr\x02\0\0" + profile
    whole = len(box) + 4 - 15  # how much longer the header becomes
    start = data.find(b"jp2h") - 4
    header = (int.from_bytes(data[start : start + 4], "big") + whole).to_bytes(4, "big")
    mended = data[:start] + header + data[start + 4 : at] + (len(box) + 4).to_bytes(4, "big") + box + data[at + 15 :]
    (tmp_path / "a.jp2").write_bytes(mended)
    assert read_picture(tmp_path / "a.jp2").info["icc_profile"] == profile
    if mode == "RGB":
        assert Image.open(upscale("a.jp2", "a_x4.png")).info["icc_profile"] == profile


@pytest.mark.parametrize("ending", ["jpg", "tif", "png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_resolution_turns_with_the_picture(ending, orientation, upscale, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[282], exif[283] = orientation, 200.0, 100.0
    exif.get_ifd(0x8769).update({0xA20E: 2000.0, 0xA20F: 1000.0})
    PHOTOGRAPH.save(tmp_path / f"a.{ending}", dpi=(200, 100), exif=exif)
    result = Image.open(upscale(f"a.{ending}", f"a_x4.{'png' if ending == 'jpg' else ending}"))
    expected = (200, 100) if orientation == 1 else (100, 200)
    assert np.allclose(result.info["dpi"], expected, rtol=1e-3)
    assert np.allclose([result.getexif()[tag] for tag in (282, 283)], expected, rtol=1e-3)
    if ending != "tif":  # of which Pillow writes no details
        details = result.getexif().get_ifd(0x8769)
        assert np.allclose([details[tag] for tag in (0xA20E, 0xA20F)], [40.0 * value for value in expected])


def test_the_fourth_byte_of_a_tga_may_be_empty(tmp_path):
    for alpha, expected in ((0, None), (7, 7)):
        image = PHOTOGRAPH.convert("RGBA")
        image.putalpha(alpha)
        image.save(tmp_path / "a.tga")
        frame = read_picture(tmp_path / "a.tga").frames[0]
        assert np.array_equal(frame.rgb, np.asarray(PHOTOGRAPH))
        assert frame.alpha is None if expected is None else (frame.alpha == expected).all()


def test_signed_values_are_refused(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.arange(-128, 128, dtype=np.int8).reshape(16, 16), photometric="minisblack")
    with pytest.raises(utils.ImageError, match="signed"):
        read_picture(tmp_path / "a.tif")
    with pytest.raises(utils.ImageError, match="signed"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("ending", [*formats.FORMATS.values()])
def test_a_full_disk_leaves_what_was_there(ending, tmp_path):
    """Pillow's encoders of JPEG, BMP and TIFF write by the number of the file, and take a short write for a whole one."""
    if ending == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path, noise = tmp_path / f"a{ending}", np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        with pytest.raises(utils.UserError, match="what was there before is untouched"):
            formats.write_picture(path, formats.Picture([formats.Frame(noise)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    formats.write_picture(path, formats.Picture([formats.Frame(noise)]))
    assert Image.open(path).size == (150, 150)


def test_times_of_a_gif_are_rounded(tmp_path):
    frames = [formats.Frame(np.full((8, 8, 3), 60 * i, np.uint8), None, ms) for i, ms in enumerate((16, 33, 3, 0))]
    formats.write_picture(tmp_path / "a.gif", formats.Picture(frames, 4))
    assert [frame.duration for frame in read_picture(tmp_path / "a.gif").frames] == [20, 30, 10, 0]


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, 1, 1, 0)])
def test_a_mirrored_video_stands_upright(matrix, tmp_path):
    """As the display matrix of its track says: the column of a pixel points to the first pair, its row to the second."""
    av = pytest.importorskip("av")
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32], image[16:, :32], image[:16, 32:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        video = file.add_stream("libx264", rate=12)
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        file.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(video.encode())
    data = (tmp_path / "a.mp4").read_bytes()
    usual = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.find(usual, data.find(b"tkhd"))
    a, b, c, d = matrix
    told = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data[:at] + told + data[at + len(told) :])
    seen = []
    upscale_video(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda rgb: seen.append(rgb) or rgb)
    rows, columns = np.mgrid[:32, :64]
    x, y = a * columns + c * rows, b * columns + d * rows
    upright = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    upright[y - y.min(), x - x.min()] = image
    assert np.abs(seen[0].astype(int) - upright).mean() < 8


@pytest.mark.parametrize("frames", [1, 3, 60])
def test_the_last_frame_of_a_video_is_shown_as_long_as_it_was(frames, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        video = file.add_stream("libx264", rate=10, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.flags |= 1 << 8  # tells how long a frame is shown
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * i, np.uint8), format="rgb24")
            frame.pts, frame.duration, frame.time_base = i, 30 if i == frames - 1 else 1, Fraction(1, 10)
            file.mux(video.encode(frame))
        file.mux(video.encode())
    upscale_video(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda rgb: rgb)
    for name in "ab":
        with av.open(str(tmp_path / f"{name}.mp4")) as file:
            stream = file.streams.video[0]
            assert abs(float(stream.duration * stream.time_base) - (frames - 1) / 10 - 3) < 0.01, name
            assert [round(10 * f.pts * stream.time_base) for f in file.decode(video=0)] == list(range(frames))


def test_gray_video_gets_no_colour(upscale, tmp_path):
    av = pytest.importorskip("av")
    for name, image in (("gray", PHOTOGRAPH.convert("L").convert("RGB")), ("colour", PHOTOGRAPH)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as file:
            video = file.add_stream("libx264", rate=12)
            video.width, video.height, video.pix_fmt = 48, 40, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            file.mux([*video.encode(frame), *video.encode()])
        with av.open(str(upscale(f"{name}.mp4", f"{name}_x4.mp4"))) as result:
            planes = next(result.decode(video=0)).to_ndarray()[160:].astype(int)  # below Y: the colours, 128 for none
        assert (np.abs(planes - 128).max() <= 1) == (name == "gray")


def test_what_a_video_takes_no_part_in_is_told(upscale, tmp_path, capsys):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        video = file.add_stream("libx264", rate=12)
        video.width, video.height, video.pix_fmt = 48, 40, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.asarray(PHOTOGRAPH), format="rgb24")
        file.mux([*video.encode(frame), *video.encode()])
    for flags in (["--compare"], ["--format", "webp"]):
        upscale("a.mp4", "a_x4.mp4", "--overwrite", *flags)
        assert "--compare and --format are for pictures" in capsys.readouterr().out
    # To 120x100, 53x44, 54x45 and 59x49 pixels
    for outscale, lacks in (("2.5", None), ("1.1", "column"), ("1.125", "row"), ("1.225", "row and column")):
        path = upscale("a.mp4", f"a_x{outscale}.mp4", "--outscale", outscale)
        assert (f"without its last {lacks}, since" in (out := capsys.readouterr().out)) == bool(lacks)
        assert lacks or "without its last" not in out
        with av.open(str(path)) as result:
            assert result.streams.video[0].width % 2 == result.streams.video[0].height % 2 == 0


def add_chunk(path, name, content):
    """Put a chunk behind the header of a PNG."""
    data, chunk = path.read_bytes(), name + content
    chunk = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:33] + chunk + data[33:])


def write_of_fewer_bits(path, levels, declared, channels=1):
    """A photograph with values from 0 to `levels` in a file of 16 bits; returns them: (H, W, channels) uint16."""
    tifffile = pytest.importorskip("tifffile")
    pixels = np.asarray(PHOTOGRAPH if channels == 3 else PHOTOGRAPH.convert("L")).reshape(40, 48, channels)
    pixels = (pixels.astype(np.float64) * levels / 255).astype(np.uint16)
    pixels[0, 0], pixels[0, 1] = levels, levels - 1
    if path.suffix == ".tif":
        tags = [(281, 3, channels, levels if channels == 1 else [levels] * channels, True)] if declared else []
        photometric = "rgb" if channels == 3 else "minisblack"
        tifffile.imwrite(path, pixels.squeeze(), photometric=photometric, metadata=None, extratags=tags)
    else:
        with open(path, "wb") as file:
            deep._write_png(file, pixels, {"sbit": bytes([levels.bit_length()] * channels)} if declared else {})
    return pixels


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("levels, channels", [(4095, 1), (1023, 3), (16383, 1), (4095, 3)])
def test_the_range_that_a_file_of_16_bits_declares_is_used(ending, levels, channels, upscale, tmp_path, capsys):
    source = tmp_path / f"a.{ending}"
    pixels = write_of_fewer_bits(source, levels, True, channels)
    seen = pixels.astype(np.float64) * 255 / levels
    assert np.abs(read_image(source).astype(np.float64) - seen).max() <= 1  # as training and measuring see it
    picture = formats.read_picture(source)
    [frame] = picture.frames
    assert picture.white == levels and not picture.remark and np.abs(frame.rgb / 257 - seen).max() <= 1
    formats.write_picture(tmp_path / f"b.{ending}", picture)
    again = formats.read_picture(tmp_path / f"b.{ending}")
    assert again.white == levels and np.array_equal(next(iter(again.frames)).rgb, frame.rgb)  # to the last bit, and declared
    result = formats.read_picture(upscale(source.name, f"a_x4.{ending}"))
    assert result.white == levels and "--white" not in capsys.readouterr().out


def test_bits_that_are_filling_are_no_range(tmp_path):
    """sBIT as its standard has it: 12 bits in the upper 12. And a declaration that cannot be true."""
    pixels = write_of_fewer_bits(tmp_path / "a.png", 4095, True)
    with open(tmp_path / "a.png", "wb") as file:
        deep._write_png(file, pixels * 16, {"sbit": bytes([12])})
    with open(tmp_path / "dark.png", "wb") as file:
        deep._write_png(file, pixels // 16 * 16, {"sbit": bytes([12])})  # nearly black indeed
    write_of_fewer_bits(tmp_path / "b.png", 20000, False)
    add_chunk(tmp_path / "b.png", b"sBIT", bytes([10]))
    for name in ("a.png", "dark.png", "b.png"):
        assert formats.read_picture(tmp_path / name).white == 65535, name
    assert np.array_equal(only(tmp_path / "a.png").rgb[..., :1], pixels * 16)


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("levels, channels, guess", [(4095, 1, 4095), (2500, 3, 4095), (900, 1, 1023)])
def test_a_range_that_is_not_declared_can_be_given(ending, levels, channels, guess, upscale, tmp_path, capsys):
    source = tmp_path / f"a.{ending}"
    pixels = write_of_fewer_bits(source, levels, False, channels)
    upscale(source.name, f"a_x4.{ending}")
    assert (
        f"end at {levels} of 65535, so it is nearly black; if {guess} is white, give --white {guess}" in capsys.readouterr().out
    )
    assert np.array_equal(only(source).rgb[..., :channels], pixels)
    picture = formats.read_picture(source, guess)
    [frame] = picture.frames
    assert np.abs(frame.rgb[..., :channels] / 65535 - pixels / guess).max() < 2e-4 and not picture.remark
    formats.write_picture(tmp_path / f"b.{ending}", picture)
    assert np.array_equal(formats.read_picture(tmp_path / f"b.{ending}", guess).frames[0].rgb, frame.rgb)
    stored = only(upscale(source.name, f"a_x4.{ending}", "--white", str(guess), "--overwrite")).rgb  # of TIFF: declared
    assert ending == "tif" or 0 < stored.max() <= guess
    picture = formats.read_picture(source, levels // 2)
    assert "above --white" in picture.remark and picture.frames[0].rgb.max() == 65535


def test_bits_of_white_is_zero_and_of_8_bits(tmp_path, upscale, capsys):
    tifffile = pytest.importorskip("tifffile")
    gray = np.asarray(PHOTOGRAPH.convert("L")).astype(np.uint16) * 16
    tags = [(281, 3, 1, 4095, True)]
    tifffile.imwrite(tmp_path / "a.tif", 4095 - gray, photometric="miniswhite", metadata=None, extratags=tags)
    assert np.abs(read_image(tmp_path / "a.tif")[..., 0] - gray / 4095 * 255).max() <= 1
    PHOTOGRAPH.save(tmp_path / "b.png")
    upscale("b.png", "b_x4.png", "--white", "4095")
    assert "--white is for 16 bits" in capsys.readouterr().out


XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description dc:title="moon" tiff:Orientation="6"
 tiff:ImageWidth="48" exif:PixelXDimension='48' GPano:FullPanoWidthPixels="100" GCamera:MotionPhoto="1">
<tiff:ImageLength>40</tiff:ImageLength><GPano:CroppedAreaTopPixels>7</GPano:CroppedAreaTopPixels>
</rdf:Description></rdf:RDF></x:xmpmeta>"""
# Of the result, which is turned, as the orientation says, and four times as large.
TRUE_XMP = XMP.replace(' tiff:Orientation="6"', "").replace(' GCamera:MotionPhoto="1"', "").replace('"48"', '"160"')
TRUE_XMP = TRUE_XMP.replace("'48'", "'160'").replace('"100"', '"400"').replace(">40<", ">192<").replace(">7<", ">28<")
IPTC = b"\x1c\x02\x78\x00\x04moon" + b"\x1c\x02\x50\x00\x07someone"


def save_with_words(path):
    """A picture with XMP, IPTC and a comment, as far as other programs put them into its format."""
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
    if path.suffix == ".jpg":
        content = b"Photoshop 3.0\0" + resource
        extra = b"\xff\xed" + struct.pack(">H", len(content) + 2) + content
        PHOTOGRAPH.save(path, xmp=XMP.encode(), comment="früh".encode(), extra=extra)
    elif path.suffix == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP)
        text.add_text("Comment", "früh")
        text.add_text("Raw profile type iptc", f"\niptc\n{len(resource):8d}\n{resource.hex()}\n", zip=True)
        PHOTOGRAPH.save(path, pnginfo=text)
    elif path.suffix == ".tif":
        PHOTOGRAPH.save(path, tiffinfo={700: XMP.encode(), 33723: IPTC})
    else:
        PHOTOGRAPH.save(path, xmp=XMP.encode(), lossless=True)
    return path.name


@pytest.mark.parametrize("source", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("form", list(formats.FORMATS))
def test_xmp_iptc_and_comments_go_from_format_to_format(source, form, upscale, tmp_path, capsys):
    name = save_with_words(tmp_path / f"a.{source}")
    result = upscale(name, f"a_x4{formats.FORMATS[form]}", "--format", form)
    found, said = formats.read_picture(result).info, capsys.readouterr().out
    with_xmp, with_iptc, with_comment = (form in words for words in ("png jpg tiff webp avif", "png jpg tiff", "png jpg gif"))
    assert found.get("xmp", b"").decode() == (TRUE_XMP if with_xmp else "")
    assert found.get("iptc") == (IPTC if with_iptc and source != "webp" else None)
    assert found.get("comment") == ("früh" if with_comment and source in ("jpg", "png") else None)
    assert "film of a moving photograph" in said and said.count("not in the result") == 1
    assert ("XMP" in said.split("not in the result")[1]) == (not with_xmp)
    assert ("IPTC" in said) == (not with_iptc and source != "webp")
    if form == "png":
        assert Image.open(result).text["XML:com.adobe.xmp"] == TRUE_XMP


def test_words_stay_at_16_bits(upscale, tmp_path, capsys):
    exif = Image.Exif()
    exif[271], exif[0x8769] = "a phone", {0x9003: "2026:01:02 03:04:05"}
    info = {"xmp": XMP.encode(), "iptc": IPTC, "exif": exif.tobytes(), "colours": {b"gAMA": struct.pack(">I", 100000)}}
    frame = formats.Frame(np.asarray(PHOTOGRAPH).astype(np.uint16) * 257)
    formats.write_picture(tmp_path / "a.png", formats.Picture([frame], info=info))
    upright = TRUE_XMP.replace("192", "?").replace("160", "192").replace("?", "160")  # the file above is no more turned
    for ending in ("png", "tif"):
        result = upscale("a.png", f"a_x4.{ending}", "--format", {"tif": "tiff"}.get(ending, ending))
        found, said = formats.read_picture(result).info, capsys.readouterr().out
        assert found["xmp"].decode() == upright and found["iptc"] == IPTC and Image.open(result).getexif()[271] == "a phone"
        assert found.get("colours") == (info["colours"] if ending == "png" else None)
        assert ("gAMA, cHRM" in said and "EXIF but for its words" in said) == (ending == "tif")


@pytest.mark.parametrize(
    "description",
    [
        "ImageJ=1.53t\nimages=3\nslices=3\n",
        '<?xml version="1.0"?><!-- x --><OME xmlns="o"></OME>',
        '{"shape": [40, 48, 3]}',
        "shape=(40, 48)",
    ],
)
@pytest.mark.parametrize("is_deep", [False, True])
def test_a_description_of_the_layout_is_dropped(description, is_deep, upscale, tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.asarray(PHOTOGRAPH).astype(np.uint16) * 257 if is_deep else np.asarray(PHOTOGRAPH)
    tags = [(315, 2, 0, "somebody", True), (33550, 12, 3, (1.0, 1.0, 0.0), True)]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", description=description, metadata=None, extratags=tags)
    words = Image.open(upscale("a.tif", "a_x4.tif")).tag_v2
    assert 270 not in words and 33550 not in words and words[315] == "somebody"
    said = capsys.readouterr().out
    assert "a description of its layout" in said and "the place on the map" in said
    with tifffile.TiffFile(tmp_path / "out/a_x4.tif") as file:
        assert file.series[0].shape == (160, 192, 3)


def test_png_keeps_what_its_colours_mean(upscale, tmp_path, capsys):
    chunks = {
        b"gAMA": struct.pack(">I", 100000),
        b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000),
    }
    PHOTOGRAPH.save(tmp_path / "a.png")
    for name, content in chunks.items():
        add_chunk(tmp_path / "a.png", name, content)
    result = dict(deep.png_chunks(upscale("a.png", "a_x4.png").read_bytes()))
    assert {name: result[name] for name in chunks} == chunks and "not in" not in capsys.readouterr().out
    upscale("a.png", "a_x4.jpg", "--format", "jpg")
    assert "not in the result: what its colours are (gAMA, cHRM, cICP)" in capsys.readouterr().out
    PHOTOGRAPH.save(tmp_path / "b.png")
    add_chunk(tmp_path / "b.png", b"sRGB", b"\0")
    add_chunk(tmp_path / "b.png", b"gAMA", struct.pack(">I", 45455))
    assert dict(deep.png_chunks(upscale("b.png", "b_x4.png").read_bytes()))[b"sRGB"] == b"\0"
    upscale("b.png", "b_x4.jpg", "--format", "jpg")
    assert "not in" not in capsys.readouterr().out  # sRGB is what all take for granted


def test_exif_that_counts_pixels_is_multiplied(upscale, tmp_path):
    exif = Image.Exif()
    exif[0x8769] = {0xA20E: 100.0, 0xA20F: 50.0, 0xA214: (20, 30), 0x9003: "2026:01:02 03:04:05"}
    PHOTOGRAPH.save(tmp_path / "a.jpg", exif=exif)
    details = Image.open(upscale("a.jpg", "a_x2.png", "--outscale", "2")).getexif().get_ifd(0x8769)
    assert dict(details) == {0xA20E: 200, 0xA20F: 100, 0x9003: "2026:01:02 03:04:05"}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100, "subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_lacks_only_its_end_is_taken(mode, options, tmp_path):
    PHOTOGRAPH.convert(mode).save(tmp_path / "a.jpg", **options)
    data, expected = (tmp_path / "a.jpg").read_bytes(), only(tmp_path / "a.jpg").rgb
    for length in (1, 2):
        (tmp_path / "a.jpg").write_bytes(data[:-length])
        picture = formats.read_picture(tmp_path / "a.jpg")
        assert np.array_equal(picture.frames[0].rgb, expected) and "cut behind its last pixel" in picture.remark
        assert np.array_equal(read_image(tmp_path / "a.jpg"), expected)
    scans = [place.start() for place in re.finditer(b"\xff\xda", data)]
    for length in (len(data) - 5, len(data) - 40, len(data) // 2 + 200, *(scans[1:] if "progressive" in options else [])):
        (tmp_path / "a.jpg").write_bytes(data[:length])  # pixels are missing, or bits of them
        for read in (formats.read_picture, read_image):
            with pytest.raises(utils.ImageError, match="truncated"):
                read(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp", "deep.png"])
def test_of_a_cut_picture_that_is_taken_which_can_be_decoded(name, upscale, tmp_path, capsys):
    if name == "deep.png":
        frame = formats.Frame(np.asarray(PHOTOGRAPH).astype(np.uint16) * 257)
        formats.write_picture(tmp_path / name, formats.Picture([frame]))
    else:
        PHOTOGRAPH.save(tmp_path / name)
    whole = formats.to_8_bits(only(tmp_path / name).rgb).astype(int)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    result = f"{name.split('.')[0]}_x4.{'png' if name == 'a.jpg' else name.split('.')[1]}"
    with pytest.raises(utils.ImageError, match=f"{name}: cannot be read"):
        upscale(name, result)
    assert Image.open(upscale(name, result, "--damaged")).size == (192, 160)
    assert "it is damaged: what of it could be decoded is enlarged" in capsys.readouterr().out
    [frame] = formats.read_picture(tmp_path / name, damaged=True).frames
    same = (frame.rgb == whole).all(axis=(1, 2))
    assert not same.all() and same.sum() >= 8


def test_of_a_cut_animation_the_whole_frames_are_taken(tmp_path):
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)) for i in range(4)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=70)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) * 5 // 8])
    with pytest.raises(utils.ImageError, match="a.png: cannot be read"):
        list(formats.read_picture(tmp_path / "a.png").frames)
    picture = formats.read_picture(tmp_path / "a.png", damaged=True)
    assert picture.count == len(picture.frames) == 2 and "of its 4 frames 2" in picture.remark
    assert np.array_equal(picture.frames[1].rgb, np.asarray(frames[1]))


def test_a_damaged_file_without_a_pixel_is_still_an_error(tmp_path):
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, length in (("a.bmp", 54), ("a.png", 45), ("a.tga", 18)):  # the headers
        PHOTOGRAPH.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:length])
    for name in ("a.bmp", "a.png", "a.tga", "b.png"):
        with pytest.raises(utils.ImageError, match=name):
            formats.read_picture(tmp_path / name, damaged=True)


def test_an_unreadable_file_is_named_by_its_path(tmp_path):
    files = {
        "a.png": b"",
        "b.jpg": b"<html>not found</html>",
        "c.webp": b"RIFF1234WEBPxxxx",
        "d.tif": b"II*\0",
        "e.gif": b"GIF89a",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        for read in (formats.read_picture, read_image):
            with pytest.raises(utils.ImageError) as refused:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(refused.value) and "_io." not in str(refused.value), name


@pytest.mark.parametrize("name", ["a.ico", "a.dds", "a.qoi", "a.pcx", "a.sgi", "a.dib", "a.j2k", "a.pnm", "a.mpo", "a.icns"])
def test_what_pillow_reads_is_read_in_folders(name, weights, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    image = PHOTOGRAPH.resize((64, 64))
    if name == "a.qoi":  # a header, and one run of each of two colours
        runs = b"\xfe\xff\x00\x00\xfd" * 20 + b"\xfe\x00\x00\xff\xfd" * 20
        (folder / name).write_bytes(b"qoif" + struct.pack(">IIBB", 63, 40, 3, 0) + runs + bytes(7) + b"\1")
    else:
        image.save(folder / name)
    [found] = folders.find_inputs([folder])
    [frame] = formats.read_picture(found).frames
    if name == "a.qoi":
        assert frame.rgb[0, 0].tolist() == [255, 0, 0] and frame.rgb[39, 30].tolist() == [0, 0, 255]
    else:
        reduced = np.asarray(Image.fromarray(frame.rgb).resize((64, 64))).astype(int)
        assert np.abs(reduced - np.asarray(image)).mean() < 12


def test_heic_needs_a_package_and_says_so(tmp_path, monkeypatch):
    opening.register_heif.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it was not installed
    for name, brand in (("a.heic", b"heic"), ("b.heif", b"mif1"), ("c.jpg", b"heix")):
        (tmp_path / name).write_bytes(struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + b"miaf")
        for read in (formats.read_picture, read_image):
            with pytest.raises(utils.ImageError, match=f"{name}.*pip install pillow-heif"):
                read(tmp_path / name)
    assert [path.name for path in folders.find_inputs([tmp_path])] == ["a.heic", "b.heif", "c.jpg"]


def test_heic(upscale, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    opening.register_heif.cache_clear()
    exif = Image.Exif()
    exif[271] = "a phone"
    pillow_heif.from_pillow(PHOTOGRAPH).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    assert np.abs(read_image(tmp_path / "a.heic").astype(int) - np.asarray(PHOTOGRAPH)).mean() < 6
    result = Image.open(upscale("a.heic", "a_x4.png"))
    assert result.size == (192, 160) and result.getexif()[271] == "a phone"


def test_what_does_not_fit_into_memory_is_one_clear_error(upscale, tmp_path, monkeypatch):
    PHOTOGRAPH.save(tmp_path / "a.png")

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(upscaling, "upscale_frame", full)
    with pytest.raises(utils.UserError, match="a.png: not enough memory"):
        upscale("a.png", "a_x4.png")
    assert not list((tmp_path / "out").iterdir())


def test_formats(upscale, tmp_path):
    PHOTOGRAPH.save(tmp_path / "a.jpg")
    for form, ending in formats.FORMATS.items():
        result = Image.open(upscale("a.jpg", f"a_x4{ending}", "--format", form))
        assert result.size == (192, 160)
        assert result.format.lower() in (form, {"jpg": "jpeg"}.get(form))


@pytest.mark.parametrize("factor, size", [("3", (144, 120)), ("1.5", (72, 60)), ("6", (288, 240))])
def test_outscale(factor, size, upscale, tmp_path):
    PHOTOGRAPH.save(tmp_path / "a.png")
    assert Image.open(upscale("a.png", f"a_x{factor}.png", "--outscale", factor)).size == size


def test_an_existing_file_is_kept_unless_told_otherwise(upscale, tmp_path):
    PHOTOGRAPH.save(tmp_path / "a.png")
    path = upscale("a.png", "a_x4.png")
    path.write_bytes(b"mine")
    with pytest.raises(utils.UserError, match="--overwrite"):
        upscale("a.png", "a_x4.png")
    assert path.read_bytes() == b"mine"
    assert Image.open(upscale("a.png", "a_x4.png", "--overwrite")).size == (192, 160)


def test_blend_of_networks():
    first, second = SRResNet(4, 1, 4), SRResNet(4, 1, 4)
    mixed = blend_networks(first, second, 0.25).state_dict()
    for key, value in first.state_dict().items():
        assert mixed[key].shape == value.shape
    a, b = SRResNet(4, 1, 4), SRResNet(4, 1, 4)
    expected = 0.75 * a.head[0].weight + 0.25 * b.head[0].weight
    assert torch.allclose(blend_networks(a, b, 0.25).head[0].weight, expected, atol=1e-6)
    with pytest.raises(utils.UserError, match="one size"):
        blend_networks(SRResNet(4, 1, 4), SRResNet(4, 2, 4), 0.5)


def test_video(upscale, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        video, sound = file.add_stream("libx264", rate=12), file.add_stream("aac", rate=44100, layout="mono")
        video.width, video.height, video.pix_fmt = 48, 40, "yuv420p"
        for i in range(18):
            image = np.asarray(PHOTOGRAPH.rotate(5 * i))
            file.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        tone = np.sin(np.arange(44100) * 0.06).astype(np.float32)
        for start in range(0, 44100 - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.rate, frame.pts = 44100, start
            file.mux(sound.encode(frame))
        file.mux([*video.encode(), *sound.encode()])
    with av.open(str(upscale("a.mp4", "a_x4.mp4"))) as result, av.open(str(tmp_path / "a.mp4")) as source:
        assert (result.streams.video[0].width, result.streams.video[0].height) == (192, 160)
        assert result.streams.video[0].average_rate == 12
        times = [[float(frame.time) for frame in file.decode(video=0)] for file in (source, result)]
        assert len(times[1]) == 18 and times[1] == pytest.approx(times[0])
    with av.open(str(tmp_path / "out/a_x4.mp4")) as result, av.open(str(tmp_path / "a.mp4")) as source:
        tones = [np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)]) for file in (source, result)]
        assert np.array_equal(*tones)  # the sound is copied as it is


@pytest.mark.parametrize("matrix, rotation", [(1, 0), (5, 90), (2, 270)])
def test_video_keeps_its_colours_and_stands_upright(matrix, rotation, tmp_path):
    av = pytest.importorskip("av")
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24], image[24:] = (0, 220, 0), (60, 0, 200)
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        video = file.add_stream("libx264", rate=12)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.colorspace = matrix
        video.set_display_rotation(rotation)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        file.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace=1 if matrix == 1 else 5)))
        file.mux(video.encode())
    seen, target = [], tmp_path / "b.mp4"
    upscale_video(tmp_path / "a.mp4", target, lambda rgb: seen.append(rgb) or rgb.repeat(4, 0).repeat(4, 1))
    upright = np.rot90(image, rotation // 90)
    assert np.abs(seen[0].astype(int) - upright).mean() < 5  # with the other matrix it is 11
    with av.open(str(target)) as result:
        frame = next(result.decode(video=0))
        assert frame.colorspace == 1 and frame.rotation == 0
        pixels = frame.reformat(format="rgb24", src_colorspace=1).to_ndarray()[::4, ::4].astype(int)
        assert np.abs(pixels - upright).mean() < 5


@pytest.mark.parametrize(
    "ending, codec", [("avi", "pcm_s16le"), ("mkv", "pcm_s16le"), ("mkv", "libopus"), ("mov", "pcm_mulaw")]
)
def test_video_of_uneven_times_with_any_sound(ending, codec, tmp_path):
    av = pytest.importorskip("av")
    times = range(0, 480, 40) if ending == "avi" else (0, 40, 80, 200, 203, 300, 440)  # ms; AVI has one rate
    with av.open(str(tmp_path / f"a.{ending}"), "w") as file:
        video, sound = file.add_stream("mpeg4", rate=25), file.add_stream(codec, rate=48000, layout="mono")
        video.width, video.height, video.pix_fmt = 48, 40, "yuv420p"
        video.codec_context.time_base = Fraction(1, 25 if ending == "avi" else 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.asarray(PHOTOGRAPH), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(video.encode(frame))
        tone = (np.sin(np.arange(24000) * 0.06) * 20000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.rate, frame.pts = 48000, 0
        file.mux(sound.encode(frame))
        file.mux([*video.encode(), *sound.encode()])
    assert upscale_video(tmp_path / f"a.{ending}", tmp_path / "b.mp4", lambda rgb: rgb.repeat(2, 0).repeat(2, 1)) == len(times)
    with av.open(str(tmp_path / "b.mp4")) as result:
        assert [float(frame.time) for frame in result.decode(video=0)] == pytest.approx([t / 1000 for t in times], abs=2e-3)
    with av.open(str(tmp_path / "b.mp4")) as result:
        heard = np.concatenate([frame.to_ndarray().mean(axis=0) for frame in result.decode(audio=0)])
        assert len(heard) == pytest.approx(24000, abs=2100) and np.abs(heard).max() > 0.3


def test_what_is_no_video_is_one_clear_error(upscale, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(utils.ImageError, match="cannot be read"):
        upscale("a.mp4", "a_x4.mp4")
    assert not list((tmp_path / "out").iterdir())


def write_video(path, count=24, codec="libx264", options=None, form="yuv420p", sounds=(), words=None, comb=False):
    """A clip of a photograph that moves, 48x40, with a tone in each codec of `sounds`, 25 frames a second."""
    av = pytest.importorskip("av")
    wide = np.asarray(Image.fromarray(data.astronaut()).resize((400, 40)))
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=25, options=options or {})
        video.width, video.height, video.pix_fmt = 48, 40, form
        tracks = [file.add_stream(name, rate=48000, layout="mono") for name in sounds]
        file.metadata.update({} if words is None else {"title": words})
        for number, track in enumerate(tracks):
            track.metadata["language"] = ("deu", "fra", "jpn")[number]
        for i in range(count):
            pixels = wide[:, 4 * i : 4 * i + 48].copy()
            if comb:  # the lines of the second field are of half a frame later
                pixels[1::2] = wide[1::2, 4 * i + 2 : 4 * i + 50]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            file.mux(video.encode(frame))
            for number, track in enumerate(tracks):
                tone = np.sin(np.arange(i * 1920, (i + 1) * 1920) * 0.03 * (number + 1)).astype(np.float32)
                sound = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
                sound.rate, sound.pts = 48000, i * 1920
                file.mux(track.encode(sound))
        for stream in (video, *tracks):
            file.mux(stream.encode())
    return path


def damage(path, numbers):
    """Overwrite those packets of the picture, by their place in the file."""
    import av

    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    content = path.read_bytes()
    for number in numbers:
        assert content.count(packets[number]) == 1
        content = content.replace(packets[number], b"\xff" * len(packets[number]))
    path.write_bytes(content)


def shown(path):
    """The times of the frames, and their pixels."""
    import av

    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        return [float(frame.time) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def double(rgb):
    return rgb.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize(
    "ending, codec, numbers, lost",
    [
        ("mp4", "libx264", [11], [11]),
        ("mkv", "libx264", [7, 15, 23], [7, 15, 23]),
        ("mkv", "libx264", [5], None),  # and those after it that need it, if the decoder thinks so
        ("mov", "mjpeg", [0], [0]),
        ("avi", "mpeg4", [3], None),
    ],
)
def test_damaged_packets_of_a_video_are_left_out_and_counted(ending, codec, numbers, lost, upscale, tmp_path, capsys):
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / f"a.{ending}", codec=codec, options={"bf": "0", "g": "4"}, form=form, sounds=["aac"])
    damage(path, numbers)
    result = upscale(path.name, "a_x4.mp4")
    said = capsys.readouterr().out
    times, _ = shown(result)
    assert len(times) >= 18 and f"{len(times)} frames" in said
    assert f"{len(numbers)} damaged packets" in said and f": {24 - len(times)} frames are left out" in said, said
    if lost:
        assert times == pytest.approx([i / 25 for i in range(24) if i not in lost], abs=2e-3)


def test_damaged_sound_does_not_cost_the_video(tmp_path):
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "a.mkv", sounds=["wavpack"])  # not of MP4, so it is decoded
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(audio=0) if packet.size > 20]
    body = packets[0][40:]  # Matroska has the head in another form
    path.write_bytes(path.read_bytes().replace(body, b"\xff" * len(body)))
    remarks = []
    assert upscale_video(path, tmp_path / "b.mp4", double, remarks) == 24
    assert remarks == ["1 damaged packets of the sound could not be decoded and are silent"]


def test_a_video_that_breaks_off_is_read_as_far_as_it_goes(tmp_path):
    path = write_video(tmp_path / "a.mkv", options={"bf": "0"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    remarks = []
    assert 2 < upscale_video(path, tmp_path / "b.mp4", double, remarks) < 24
    assert remarks == ["the file ends before its time: it has been read as far as it goes"]
    path.write_bytes(whole[:600])
    with pytest.raises(utils.ImageError, match="cannot be read"):
        upscale_video(path, tmp_path / "c.mp4", double)
    assert not list(tmp_path.glob("*c.mp4")) and not list(tmp_path.glob(".*"))


B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:scenecut=0"}


@pytest.mark.parametrize(
    "ending, codec, options", [("avi", "libx264", B_FRAMES), ("avi", "mpeg4", {"bf": "2"}), ("mkv", "libx264", B_FRAMES)]
)
def test_times_of_a_video_rise_in_the_order_that_is_shown(ending, codec, options, tmp_path):
    path = write_video(tmp_path / f"a.{ending}", codec=codec, options=options, sounds=["mp3"])
    seen = []
    assert upscale_video(path, tmp_path / "b.mp4", lambda rgb: seen.append(rgb) or double(rgb)) == 24
    times, frames = shown(tmp_path / "b.mp4")
    assert np.diff(times) == pytest.approx(1 / 25, abs=2e-3) and times[0] < 0.1
    still = [np.abs(frame[::2, ::2].astype(int) - before).mean() for frame, before in zip(frames, seen)]
    assert max(still) < 8  # each at its place


@pytest.mark.parametrize("joined", [2, 3])
def test_joined_recordings_go_on_with_picture_and_sound_together(joined, tmp_path):
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "a.ts", count=30, sounds=["aac"])
    path.write_bytes(path.read_bytes() * joined)
    assert upscale_video(path, tmp_path / "b.mp4", double) == 30 * joined
    times, _ = shown(tmp_path / "b.mp4")
    assert min(np.diff(times)) > 0 and times[-1] - times[0] == pytest.approx(1.2 * joined, abs=0.1 * joined)
    with av.open(str(tmp_path / "b.mp4")) as file:
        heard = [float(packet.dts * packet.time_base) for packet in file.demux(audio=0) if packet.dts is not None]
    assert min(np.diff(heard)) > 0 and heard[-1] == pytest.approx(times[-1], abs=0.2)


def test_videos_that_are_written_at_once_do_not_meet(tmp_path):
    start = "a clip whose name is long, and begins as another's, part "
    first, second = (write_video(tmp_path / f"{start}{n}.mkv", count=n) for n in (3, 5))
    counts = []

    def another_too(rgb):
        if not counts:
            counts.append(upscale_video(second, tmp_path / "2.mp4", double))
            counts.append(upscale_video(first, tmp_path / "1.mp4", double))
        return double(rgb)

    (tmp_path / "out").mkdir()
    assert upscale_video(first, tmp_path / "1.mp4", another_too) == 3 and counts == [5, 3]
    assert [len(shown(tmp_path / f"{n}.mp4")[0]) for n in (1, 2)] == [3, 5]
    assert upscale_video(second, tmp_path / "out" / f"{start}2.mp4", double) == 5
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("codec, form", [("qtrle", "argb"), ("png", "rgba")])
def test_transparency_of_a_video_is_dropped_and_named(codec, form, tmp_path):
    remarks = []
    upscale_video(write_video(tmp_path / "a.mov", count=2, codec=codec, form=form), tmp_path / "a.mp4", double, remarks)
    assert any("transparency is dropped" in remark for remark in remarks)
    remarks.clear()
    upscale_video(write_video(tmp_path / "b.mov", count=2), tmp_path / "b.mp4", double, remarks)
    assert not remarks


@pytest.mark.parametrize("after", [3, 20])
def test_ctrl_c_in_a_video_keeps_what_is_done(after, upscale, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "a.mkv", count=40, sounds=["aac"])
    real, calls = test_script.upscale_frame, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(test_script, "upscale_frame", stopped)
    with pytest.raises(KeyboardInterrupt):
        upscale("a.mkv", "a_x4.mp4")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x4_part.mp4"]
    assert "a_x4_part.mp4" in capsys.readouterr().out and len(shown(tmp_path / "out/a_x4_part.mp4")[0]) == after
    monkeypatch.undo()


@pytest.mark.parametrize(
    "ending, codec, options",
    [("mp4", "libx264", {"x264-params": "interlaced=1:tff=1"}), ("mpg", "mpeg2video", {"flags": "+ildct+ilme"})],
)
def test_interlaced_video_is_said_and_woven(ending, codec, options, tmp_path):
    remarks, seen = [], []
    path = write_video(tmp_path / f"a.{ending}", codec=codec, options=options, comb=True)
    assert upscale_video(path, tmp_path / "b.mp4", lambda rgb: seen.append(rgb) or double(rgb), remarks) == 24
    assert len(remarks) == 1 and "interlaced" in remarks[0]
    source, result = shown(path), shown(tmp_path / "b.mp4")
    assert np.diff(result[0]) == pytest.approx(np.diff(source[0]), abs=2e-3)

    def comb(frames):  # how far lines are from the mean of their neighbours
        frames = np.stack(frames).astype(float)
        return np.abs(frames[:, 1:-1] - (frames[:, :-2] + frames[:, 2:]) / 2).mean()

    assert comb(seen) < 0.7 * comb(source[1])
    av = pytest.importorskip("av")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(av.filter, "filters_available", set())
        remarks.clear()
        assert upscale_video(path, tmp_path / "e.mp4", double, remarks) == 24 and "left so" in remarks[0]
    remarks.clear()
    upscale_video(write_video(tmp_path / "c.mpg", codec="mpeg2video"), tmp_path / "d.mp4", double, remarks)
    assert not remarks


@pytest.mark.parametrize("form, bits", [("yuv420p10le", 10), ("yuv422p10le", 10), ("yuv420p", 8)])
def test_more_than_8_bits_of_a_video_stay(form, bits, upscale, tmp_path):
    av = pytest.importorskip("av")
    write_video(tmp_path / "a.mp4", form=form)
    with av.open(str(upscale("a.mp4", "a_x4.mp4"))) as result:
        frame = next(result.decode(video=0))
        assert frame.format.components[0].bits == bits and (frame.width, frame.height) == (192, 160)
        levels = np.unique(frame.reformat(format="gray10le").to_ndarray())
        assert bits == 8 or (levels % 4).any()


def test_bits_that_are_lost_are_said(tmp_path):
    remarks = []
    path = write_video(tmp_path / "a.mkv", count=2, codec="ffv1", form="yuv420p12le")
    upscale_video(path, tmp_path / "b.mp4", double, remarks)
    assert remarks == ["of its 12 bits a channel, 10 are kept"]


def test_sound_tracks_languages_and_titles_of_a_video_are_kept(upscale, tmp_path):
    av = pytest.importorskip("av")
    for ending, sounds in (("mkv", ["aac", "pcm_s16le"]), ("mp4", ["mp3", "aac", "aac"])):
        (tmp_path / f"a.{ending}").unlink(missing_ok=True)
        codecs = [name if name != "pcm_s16le" else "libopus" for name in sounds]
        write_video(tmp_path / f"a.{ending}", sounds=codecs, words="früh am Morgen")
        with av.open(str(upscale(f"a.{ending}", "a_x4.mp4", "--overwrite"))) as result:
            assert result.metadata["title"] == "früh am Morgen"
            assert [track.metadata["language"] for track in result.streams.audio] == ["deu", "fra", "jpn"][: len(sounds)]
            assert all(sum(1 for _ in result.decode(audio=0)) > 10 and result.seek(0) is None for _ in sounds[:1])
        (tmp_path / f"a.{ending}").unlink()


def test_chapters_are_kept_and_subtitles_that_mp4_does_not_hold_are_named(tmp_path):
    av = pytest.importorskip("av")
    write_video(tmp_path / "plain.mkv", sounds=["aac"])
    (tmp_path / "words.srt").write_text("1\n00:00:00,100 --> 00:00:00,500\nHello\n\n2\n00:00:00,600 --> 00:00:00,900\nagain\n")
    chapters = [
        {"id": i, "start": 400 * i, "end": 400 * i + 400, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
        for i, title in enumerate(("morning", "evening"))
    ]
    with (
        av.open(str(tmp_path / "plain.mkv")) as plain,
        av.open(str(tmp_path / "words.srt")) as words,
        av.open(str(tmp_path / "a.mkv"), "w") as file,
    ):
        streams = {stream: file.add_stream_from_template(stream) for stream in (*plain.streams, *words.streams)}
        file.set_chapters(chapters)
        for source in (plain, words):
            for packet in source.demux():
                if packet.size:
                    packet.stream = streams[packet.stream]
                    file.mux(packet)
    remarks = []
    assert upscale_video(tmp_path / "a.mkv", tmp_path / "b.mp4", double, remarks) == 24
    assert len(remarks) == 1 and remarks[0].startswith("dropped") and "1 subtitle" in remarks[0]
    with av.open(str(tmp_path / "b.mp4")) as result:
        assert [chapter["metadata"]["title"] for chapter in result.chapters()] == ["morning", "evening"]


def test_a_video_has_one_named_result_and_is_skipped_if_it_exists(upscale, tmp_path, capsys):
    for name in ("in/a.mkv", "in/a.mp4", "in/a.avi"):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_video(tmp_path / name, count=2)
    PHOTOGRAPH.save(tmp_path / "in/a.png")
    upscale("in/a.mkv", "")
    upscale("in", "", "--skip-existing")
    names = ["a.avi_x4.mp4", "a.mkv_x4.mp4", "a.mp4_x4.mp4", "a_x4.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert "3 of 4 files upscaled" in capsys.readouterr().out
    upscale("in/a.mkv", "", "--output", str(tmp_path / "b.mp4"))
    assert len(shown(tmp_path / "b.mp4")[0]) == 2
    with pytest.raises(utils.UserError, match="a video becomes"):
        upscale("in/a.mkv", "", "--output", str(tmp_path / "b.webp"))


@pytest.mark.parametrize("name", ["a:b.mkv", "http:c.mkv", "-x.mkv", "%03d.mkv", "caf\udce9.mkv", "two\nlines.mkv"])
def test_videos_of_odd_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        write_video(tmp_path / "a.mkv", count=2).rename(name)
    except (OSError, UnicodeError):
        pytest.skip("a file system without such names")
    assert upscale_video(name, Path(name).with_suffix(".mp4"), double) == 2
    assert len(list(tmp_path.iterdir())) == 2
