"""Bad and odd image files: each gives the right pixels or one clear line, in lists, in training, in measuring and upscaling."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, SMALL, TEMPORARY, Result
from PIL import Image

import utils

CROP = 16  # of training; smaller images are of no use for it
GIF, GOOD, SMALLER, BAD = "gif", "good", "smaller", "bad"

# What a file shows: `rgb` (H, W, 3) uint8 as it is trained on, up to `tolerance`; what test.py sees may differ: `seen` is
# the picture without its transparency laid on white, and `alpha` is that transparency.
File = namedtuple("File", "path kind rgb tolerance seen alpha frames")

WHOLE = ["plain", "gray", "gray_alpha", "palette", "palette_transparent", "rgba", "rgb_transparent", "cmyk", "gray16"]
WHOLE += [
    "gray16_tif",
    "gray16_big_endian",
    "rgb16",
    "rgb16_tif",
    "planes16",
    "gray4_transparent",
    "one_bit",
    "exif",
    "exif_png",
    "animated_webp",
]
WHOLE += ["animated_png", "long_thin"]
NAMES = {
    "space": "with space.png",
    "quotes": 'it\'s "quoted".png',
    "accents": "ünïcödé.png",
    "kanji": "写真" * 40 + ".png",  # 244 bytes of the 255 that a name may have
    "long": "n" * 196 + ".png",
    "newline": "two\nlines.png",
    "capitals": "CAPITALS.PNG",
    "dots": "..dots..v1.2.png",
    "latin": os.fsdecode(b"caf\xe9.png"),  # from a disk of the last century: no valid UTF-8
}
BROKEN = ["truncated_jpeg", "truncated_png", "empty", "text", "text_latin", "text_newline", "folder", "broken_link", "bomb"]
BROKEN += ["float_tif", "zeros_png", "zeros_webp", "planes_gray_alpha", "no_access"]
TINY = ["one_pixel", "small"]
ALL = [*WHOLE, *NAMES, "animated_gif", *TINY, *BROKEN]


def png(header, rows, transparent=None):
    """A PNG file by hand: `header` is (width, height, bit depth, color type); one gray may be `transparent`."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))]
    chunks += [] if transparent is None else [chunk(b"tRNS", struct.pack(">H", transparent))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def half_zeros(path, form, **options):
    """A picture of which the second half is zeros, as a disk leaves it after a power cut."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8))
    noise.save(path, form, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """One file of each sort, each in a folder of its own, by name."""
    import skimage
    import tifffile

    folder, files = tmp_path_factory.mktemp("zoo"), {}
    with Image.open(Path(skimage.__file__).parent / "data/astronaut.png") as image:
        photo = image.convert("RGB").crop((130, 20, 330, 180)).resize((40, 32), Image.Resampling.LANCZOS)
    base, gray = np.asarray(photo), np.asarray(photo.convert("L"))
    height, width = gray.shape
    alpha = np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))

    def add(key, name, save, rgb=None, kind=GOOD, tolerance=0, seen=None, alpha=None, frames=1):
        path = folder / key / name
        try:
            path.parent.mkdir()
            save(path)
        except (OSError, UnicodeError):
            return  # a file system that has no such names
        files[key] = File(path, kind, rgb, tolerance, rgb if seen is None else seen, alpha, frames)

    def rgb(plane):
        return np.repeat(plane[..., None], 3, axis=2)

    def on_white(image, alpha):
        return np.round((image * (alpha[..., None] / 255.0)) + 255 - alpha[..., None]).astype(np.uint8)

    add("plain", "plain.png", photo.save, base)
    add("gray", "gray.png", Image.fromarray(gray).save, rgb(gray))
    gray_alpha = Image.fromarray(gray).convert("LA")
    gray_alpha.putalpha(Image.fromarray(alpha))
    add("gray_alpha", "gray_alpha.png", gray_alpha.save, on_white(rgb(gray), alpha), tolerance=1, seen=rgb(gray), alpha=alpha)
    palette = photo.quantize(64)
    colors = np.asarray(palette.getpalette()[: 3 * 64]).reshape(-1, 3).astype(np.uint8)[np.asarray(palette)]
    add("palette", "palette.png", palette.save, colors)
    hole = np.where(np.asarray(palette) == 5, 0, 255).astype(np.uint8)
    add(
        "palette_transparent",
        "palette_transparent.png",
        lambda path: palette.save(path, transparency=5),
        on_white(colors, hole),
        seen=colors,
        alpha=hole,
    )
    rgba = photo.copy()
    rgba.putalpha(Image.fromarray(alpha))
    add("rgba", "rgba.png", rgba.save, on_white(base, alpha), tolerance=1, seen=base, alpha=alpha)
    key = tuple(int(value) for value in base[3, 4])
    hole = np.where((base == key).all(axis=2), 0, 255).astype(np.uint8)
    add(
        "rgb_transparent",
        "rgb_transparent.png",
        lambda path: photo.save(path, transparency=key),
        on_white(base, hole),
        seen=base,
        alpha=hole,
    )
    add("cmyk", "cmyk.jpg", lambda path: photo.convert("CMYK").save(path, quality=100, subsampling=0), base, tolerance=8)

    # The values of 16 bits use the whole range, so what is clipped at 255 is white and what is cut to 8 bits is noise.
    deep = (gray.astype(np.int64) * 257 + 90).clip(0, 65535).astype(np.uint16)
    deep_rgb = (base.astype(np.int64) * 257 + 90).clip(0, 65535).astype(np.uint16)
    add("gray16", "gray16.png", Image.fromarray(deep).save, rgb(gray), tolerance=1)
    add("gray16_tif", "gray16.tif", lambda path: tifffile.imwrite(path, deep, byteorder="<"), rgb(gray), tolerance=1)
    add("gray16_big_endian", "gray16_be.tif", lambda path: tifffile.imwrite(path, deep, byteorder=">"), rgb(gray), tolerance=1)
    rows = [row.astype(">u2").tobytes() for row in deep_rgb]
    add("rgb16", "rgb16.png", lambda path: path.write_bytes(png((width, height, 16, 2), rows)), base, tolerance=1)
    add("rgb16_tif", "rgb16.tif", lambda path: tifffile.imwrite(path, deep_rgb, photometric="rgb"), base, tolerance=1)
    planes = np.moveaxis(deep_rgb, -1, 0)
    in_planes = {"photometric": "rgb", "planarconfig": "separate"}
    add("planes16", "planes16.tif", lambda path: tifffile.imwrite(path, planes, **in_planes), base, tolerance=1)
    four, hole = gray // 17, np.where(gray // 17 == 6, 0, 255).astype(np.uint8)
    rows = [(row[::2] * 16 + row[1::2]).tobytes() for row in four]
    add(
        "gray4_transparent",
        "gray4.png",
        lambda path: path.write_bytes(png((width, height, 4, 0), rows, transparent=6)),
        on_white(rgb(four * 17), hole),
        seen=rgb(four * 17),
        alpha=hole,
    )
    one_bit = gray > 110
    add("one_bit", "one_bit.png", Image.fromarray(one_bit).save, rgb(np.where(one_bit, 255, 0).astype(np.uint8)))

    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: to be turned a quarter to the right
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(base)))
    add("exif", "exif.jpg", lambda path: lying.save(path, exif=exif, quality=100, subsampling=0), base, tolerance=8)
    add("exif_png", "exif.png", lambda path: lying.save(path, exif=exif), base)

    frames = [photo.transpose(Image.Transpose[how]) for how in ("FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM")]
    moving = {"save_all": True, "append_images": frames, "duration": 80}
    quantized = photo.quantize(64).convert("RGB")
    others = [frame.quantize(64).convert("RGB") for frame in frames]
    gif = moving | {"append_images": others}
    add("animated_gif", "moving.gif", lambda path: quantized.save(path, **gif), np.asarray(quantized), kind=GIF, frames=3)
    add("animated_webp", "moving.webp", lambda path: photo.save(path, lossless=True, **moving), base, frames=3)
    add("animated_png", "moving.png", lambda path: photo.save(path, **moving), base, frames=3)
    strip = np.tile(base[:20], (1, 500, 1))
    add("long_thin", "long_thin.png", Image.fromarray(strip).save, strip)
    for name_key, name in NAMES.items():
        add(name_key, name, lambda path: photo.save(path, "PNG"), base)

    add("one_pixel", "one_pixel.png", photo.crop((3, 3, 4, 4)).save, base[3:4, 3:4], kind=SMALLER)
    add("small", "small.png", photo.crop((0, 0, 12, 9)).save, base[:9, :12], kind=SMALLER)

    photo.save(folder / "whole.jpg", quality=95)
    photo.save(folder / "whole.png")
    jpeg, whole_png = (folder / "whole.jpg").read_bytes(), (folder / "whole.png").read_bytes()
    broken = {
        "truncated_jpeg": ("truncated.jpg", lambda path: path.write_bytes(jpeg[: len(jpeg) * 2 // 3])),
        "truncated_png": ("truncated.png", lambda path: path.write_bytes(whole_png[: len(whole_png) * 2 // 3])),
        "empty": ("empty.png", lambda path: path.write_bytes(b"")),
        "text": ("text.jpg", lambda path: path.write_text("not a picture\n")),
        "text_latin": (os.fsdecode(b"\xe9crit.jpg"), lambda path: path.write_text("not a picture\n")),
        "text_newline": ("two\nlines.jpg", lambda path: path.write_text("not a picture\n")),
        "folder": ("folder.png", lambda path: path.mkdir()),
        "broken_link": ("broken_link.png", lambda path: path.symlink_to(folder / "nowhere.png")),
        "bomb": ("bomb.png", lambda path: path.write_bytes(png((20_000, 20_000, 8, 2), [b""]))),
        "float_tif": ("float.tif", Image.fromarray(gray.astype(np.float32) / 255).save),  # of a range that nobody knows
        "zeros_png": ("zeros.png", lambda path: half_zeros(path, "PNG")),
        "zeros_webp": ("zeros.webp", lambda path: half_zeros(path, "WEBP", lossless=True)),
        "planes_gray_alpha": (  # which Pillow reads wrongly
            "planes.tif",
            lambda path: tifffile.imwrite(
                path,
                np.stack([gray, alpha]),
                photometric="minisblack",
                planarconfig="separate",
                compression="zlib",
                extrasamples=["unassalpha"],
            ),
        ),
    }
    if os.geteuid():  # root reads everything
        broken["no_access"] = ("no_access.png", lambda path: (photo.save(path), path.chmod(0)))
    for name_key, (name, save) in broken.items():
        add(name_key, name, save, kind=BAD)
    return files


@pytest.fixture(params=ALL)
def file(request, zoo):
    if request.param not in zoo:
        pytest.skip("not to be had on this file system, or by this user")
    return zoo[request.param]


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Run a script in this process: call(name, *arguments) is a Result."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(script, *arguments):
        from utils import user_errors

        # test.py has the name of a package of Python's
        spec = importlib.util.spec_from_file_location(f"script_{script}", ROOT / f"{script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        capfd.readouterr()
        # As Python's own are; pytest's stdout takes what a terminal would not.
        sys.stdout.reconfigure(errors="strict")
        sys.stderr.reconfigure(errors="backslashreplace")
        status = 0
        try:
            with user_errors():
                module.main(module.parse_arguments())
        except SystemExit as end:
            status = end.code
        sys.stdout.reconfigure(errors="replace")
        return Result(status, *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def folder_with(file, folder):
    """A folder with the file in it, as it is: links stay links."""
    folder.mkdir(exist_ok=True)
    target = folder / file.path.name
    if file.path.is_dir():
        target.mkdir()
    else:
        shutil.copy2(file.path, target, follow_symlinks=False)
    return target


def read_json(path):
    """What is in a JSON file, in which names of files that are no valid UTF-8 are as they are."""
    return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))


def assert_pixels(image, expected, tolerance):
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= tolerance


def label(file):
    """The last part of the file's name that is printed as it is."""
    return file.path.name.split("\udce9")[-1].split("\n")[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Lists and training
# ---------------------------------------------------------------------------------------------------------------------


def test_a_list_has_the_file_or_says_why_not(file, zoo, call, tmp_path):
    folder_with(file, tmp_path / "pictures")
    with Image.open(zoo["plain"].path) as image:  # a copy of it would be left out
        image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "pictures/other.png")
    arguments = ["--train-folders", "pictures", "--validation-images", 0, "--min-size", CROP, "--pack", "on"]
    result = call("create_data_lists", *arguments)
    assert result.status == 0 and not result.err, result
    names = read_json(tmp_path / "data/train_images.json")
    listed = f"../pictures/{file.path.name}" in names
    reason = {GOOD: "", GIF: "1 not the ending", SMALLER: f"1 under {CROP}", BAD: "1 not a readable image"}[file.kind]
    if file.path.is_dir():
        reason = ""  # it is one more folder to look into, and there is nothing in it
    assert listed == (file.kind == GOOD) and len(names) == 1 + listed
    assert reason in result.out and ("left out" in result.out) == bool(reason), result
    if listed:
        from datasets import SRDataset

        dataset = SRDataset(tmp_path / "data/train_images.json", CROP)
        assert_pixels(dataset.read(names.index(f"../pictures/{file.path.name}")), file.rgb, file.tolerance)
        shutil.rmtree(tmp_path / "data")
        call("create_data_lists", *arguments[:-1], "off")
        dataset = SRDataset(tmp_path / "data/train_images.json", CROP)  # which reads the file itself
        assert_pixels(dataset.read(names.index(f"../pictures/{file.path.name}")), file.rgb, file.tolerance)


def test_a_link_to_a_folder_above_lists_no_image_twice(zoo, call, tmp_path):
    folder_with(zoo["plain"], tmp_path / "pictures")
    (tmp_path / "pictures/above").symlink_to(tmp_path / "pictures")
    result = call("create_data_lists", "--train-folders", "pictures", "--validation-images", 0, "--min-size", CROP)
    assert result.status == 0, result
    assert json.loads((tmp_path / "data/train_images.json").read_text()) == ["../pictures/plain.png"]


def test_training_uses_the_file_or_names_it_and_goes_on(file, zoo, call, tmp_path):
    plain = zoo["plain"].path
    (tmp_path / "data").mkdir()
    for name, paths in {"train": [plain, file.path, file.path, file.path], "validation": [plain]}.items():
        text = json.dumps([str(path) for path in paths])
        (tmp_path / f"data/{name}_images.json").write_text(text)
    result = call("train_srresnet", *SMALL, "--steps=2")
    assert result.status == 0 and not result.err and "done: 2 steps" in result.out, result
    told = [line for line in result.out.splitlines() if "another image" in line or "could not be used" in line]
    if file.kind in (GOOD, GIF):
        assert not told
    else:
        assert len(told) == 2 and all(label(file) in line for line in told), result
        assert told[0].startswith("step 1:") and told[1].split()[0].isdigit()
    assert not list(tmp_path.rglob(TEMPORARY))


def test_training_on_bad_files_alone_is_one_line(zoo, call, tmp_path):
    (tmp_path / "data").mkdir()
    for name, keys in (("train", ["empty", "one_pixel"]), ("validation", ["plain"])):
        (tmp_path / f"data/{name}_images.json").write_text(json.dumps([str(zoo[key].path) for key in keys]))
    result = call("train_srresnet", *SMALL, "--steps=2")
    assert result.status == 2 and result.err.count("\n") == 1 and "no image can be used" in result.err, result


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def test_eval_measures_the_file_or_names_it(file, call, tmp_path):
    from metrics import psnr
    from pictures.pixels import downscale, enlarge

    path = folder_with(file, tmp_path / "set")
    result = call("eval", "--test-sets", path.parent, "--device=cpu")
    assert "nan" not in result.out and not list(tmp_path.rglob(TEMPORARY)), result
    if file.kind == GOOD:
        assert result.status == 0 and not result.err, result
        figures = read_json(tmp_path / "results/eval/metrics.json")
        (entry,) = figures["bicubic"]["set"]
        assert entry["image"] == path.stem
        if not file.tolerance:
            hr_img = file.rgb[: file.rgb.shape[0] // 4 * 4, : file.rgb.shape[1] // 4 * 4]
            expected = psnr(enlarge(downscale(hr_img, 4), hr_img.shape[:2]), hr_img, 4)
            assert entry["psnr"] == pytest.approx(expected, abs=1e-9)
    else:
        # A folder of GIFs alone holds no images; any other file is named.
        assert result.status == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result
        assert file.kind == GIF or label(file) in result.err, result
        assert not (tmp_path / "results").exists()


def test_eval_loses_no_picture_of_two_files_of_one_stem(zoo, call, tmp_path):
    (tmp_path / "set").mkdir()
    for key, suffix in (("plain", "png"), ("gray", "bmp")):
        Image.fromarray(zoo[key].rgb).save(tmp_path / f"set/same.{suffix}")
    result = call("eval", "--test-sets", "set", "--save-images", "--device=cpu")
    if result.status == 0:
        assert len(list((tmp_path / "results/eval/set").glob("*_bicubic.png"))) == 2, result
    else:
        assert result.status == 2 and result.err.count("\n") == 1 and "same" in result.err, result


# ---------------------------------------------------------------------------------------------------------------------
# Upscaling
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    import torch

    from models import build_network

    config = {"arch": "srresnet", "scale": 4, "blocks": 1, "channels": 4}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_network(config)
        network.tail[0].weight.data *= 8  # for pictures of some contrast, in which nothing can be amiss unseen
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save({"config": config, "weights": network.state_dict()}, path)
    return path


def upscaled(weights, image):
    """The whole image, mirrored for 4 pixels beyond its edges, through the network at once, in the plainest way."""
    import torch

    from weights import load_network

    with torch.no_grad():
        mirrored = np.pad(image, ((4, 4), (4, 4), (0, 0)), "symmetric")
        lr = torch.from_numpy(mirrored).permute(2, 0, 1)[None].float() / 255
        sr = load_network(weights).eval()(lr)[0, :, 16:-16, 16:-16].permute(1, 2, 0)
    return ((sr + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def assert_upscaled(result, file, weights):
    """The picture in `result` is `file`, four times as large, in all that the file had."""
    from pictures.formats import Frame, fill_transparent

    with Image.open(result) as image:
        assert image.size == (4 * file.seen.shape[1], 4 * file.seen.shape[0])
        assert getattr(image, "n_frames", 1) == file.frames
        deep = image.mode.startswith("I")
        pixels = np.asarray(image) if deep else np.asarray(image.convert("RGBA"))
    if deep:
        pixels = np.dstack([np.repeat(np.round(pixels / 257)[..., None], 3, axis=2), np.full(pixels.shape, 255)])
    seen, compared = file.seen, pixels
    if seen.shape[1] > 1000:  # the start will do, without the columns that see the cut
        seen, compared = seen[:, :400], pixels[:, : 4 * 360]
    if file.alpha is not None:  # one colour that fills what is wholly transparent must not bleed into the rest
        seen = fill_transparent(Frame(seen, file.alpha))
    expected = upscaled(weights, seen).astype(float)[:, : compared.shape[1]]
    assert expected.std() > 20 or file.kind == SMALLER
    if (seen[..., :1] == seen).all():
        expected = np.repeat(expected.mean(axis=2, keepdims=True), 3, axis=2)  # gray stays gray
    difference = np.abs(compared[..., :3] - expected)
    if file.kind == GIF:
        assert difference.mean() < 8  # of 256 colours
    else:
        assert difference.max() <= 2 + 4 * file.tolerance
    # In floating point, since at 8 bits Pillow clips what overshoots between its two passes.
    alpha = Image.fromarray((np.full(file.seen.shape[:2], 255) if file.alpha is None else file.alpha).astype(np.float32))
    alpha = np.asarray(alpha.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 255)
    assert np.abs(pixels[..., 3] - alpha).max() <= 2


def test_test_py_upscales_the_file_or_names_it(file, call, weights, tmp_path):
    path = folder_with(file, tmp_path / "in")
    result = call("test", path, "--weights", weights, "--output", "out", "--device=cpu", "--precision=fp32")
    written = sorted((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    if file.kind == BAD:
        assert result.status == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result
        assert label(file) in result.err and not written, result
    else:
        assert result.status == 0 and not result.err, result
        assert [name.stem for name in written] == [f"{path.stem}_x4"], result
        assert_upscaled(written[0], file, weights)


def test_test_py_goes_on_after_bad_files(zoo, call, weights, tmp_path):
    bad = [key for key in BROKEN if key in zoo and key != "folder"]
    good = ["plain", "gray16", "rgba", "animated_gif", "one_pixel"]
    for key in [*bad, *good, "folder"]:
        folder_with(zoo[key], tmp_path / "in")
    result = call("test", "in", "--weights", weights, "--output", "out", "--device=cpu", "--precision=fp32")
    assert result.status == 2 and "Traceback" not in result.err, result
    lines = result.err.splitlines()
    assert len(lines) == len(bad) and all(line.startswith("error: ") for line in lines), result
    assert all(sum(label(zoo[key]) in line for line in lines) == 1 for key in bad), result
    assert f"{len(good)} of {len(good) + len(bad)}" in result.out.splitlines()[-1], result
    written = sorted((tmp_path / "out").iterdir())
    assert [path.stem for path in written] == sorted(f"{zoo[key].path.stem}_x4" for key in good)
    for key in good:
        (path,) = (path for path in written if path.stem == f"{zoo[key].path.stem}_x4")
        assert_upscaled(path, zoo[key], weights)


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(call, weights, tmp_path):
    """Run test.py on paths below `tmp_path`, into out: a Result."""

    def run(*words):
        output = [] if "--output" in words else ["--output", "out"]
        return call("test", *words, *output, "--weights", weights, "--device=cpu", "--precision=fp32")

    return run


def photo(path, size=(8, 6), **options):
    """A small photograph under a name, in its format."""
    from skimage import data

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.astronaut()).resize(size).save(path, **options)
    return path


def names_in(folder):
    """The files below a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folders_in_folders_keep_their_structure(batch, tmp_path):
    for name in ("a.png", "b/a.png", "b/c d/é.png", "b/.hidden/x.png"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in/empty").mkdir()
    (tmp_path / "in/b/above").symlink_to(tmp_path / "in")
    result = batch("in")
    assert result.status == 0 and names_in(tmp_path / "out") == ["a_x4.png"]
    assert "2 in folders (see --recursive)" in result.out
    result = batch("in", "--recursive", "--skip-existing")
    assert result.status == 0 and "3 of 4 files upscaled, into out, 1 skipped" in result.out, result
    assert names_in(tmp_path / "out") == ["a_x4.png", "b/.hidden/x_x4.png", "b/a_x4.png", "b/c d/é_x4.png"]
    assert "1 folders under a second name" in result.out


def test_a_batch_goes_on_where_it_stopped(batch, tmp_path):
    for name in ("a.png", "b.jpg", "c.bmp"):
        photo(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b_x4.png").write_bytes(b"whole")
    assert batch("in").status == 2
    result = batch("in", "--skip-existing")
    assert result.status == 0 and "0 of 3 files upscaled, into out, 3 skipped" in result.out, result
    assert (tmp_path / "out/b_x4.png").read_bytes() == b"whole"
    result = batch("in/a.png", "--skip-existing")
    assert result.status == 0 and "skipped" in result.out
    (tmp_path / "in/bad.png").write_bytes(b"")
    assert batch("in", "--skip-existing").status == 2  # it is still an error
    assert batch("in", "--skip-existing", "--overwrite").status == 2
    (tmp_path / "out/a_x4.png").unlink()
    assert batch("in/a.png", "--skip-existing").status == 0 and (tmp_path / "out/a_x4.png").stat().st_size > 100
    # A batch that stopped between a result and its comparison
    result = batch("in/a.png", "--skip-existing", "--compare")
    assert result.status == 0 and (tmp_path / "out/a_x4_compare.html").exists(), result


@pytest.mark.parametrize("output", ["in", "in/out", "in/b/results"])
def test_results_are_not_enlarged_again(output, batch, tmp_path):
    sources = ["a.png", "b/c.jpg", "b/" + "n" * 248 + ".png", "d.png", "d.bmp", "lone_x4.png"]
    for name in sources:
        photo(tmp_path / "in" / name)
    first = batch("in", "--recursive", "--compare", "--output", output)
    assert first.status == 0 and "6 of 6 files" in first.out, first
    for flags in (["--outscale", 2], ["--format", "webp"], []):
        result = batch("in", "--recursive", "--skip-existing", "--output", output, *flags)
        assert result.status == 0 and "of 6 files" in result.out, result
    assert "0 of 6 files" in result.out
    assert not [name for name in names_in(tmp_path / "in") if "_x4_x" in name and "lone" not in name]
    result = batch("in", "--recursive", "--output", "elsewhere")
    assert result.status == 0 and "6 of 6 files" in result.out and "results of earlier calls" in result.out, result
    assert len(names_in(tmp_path / "elsewhere")) == 6


def test_a_result_given_by_name_is_enlarged_again(batch, tmp_path):
    photo(tmp_path / "in/a.png")
    assert batch("in", "--output", "in").status == 0
    assert batch("in/a_x4.png", "--output", "in").status == 0
    assert names_in(tmp_path / "in") == ["a.png", "a_x4.png", "a_x4_x4.png"]


def test_files_of_one_stem_all_get_a_result(batch, tmp_path):
    for name in ("a.jpg", "a.png", "b.png", "B.jpg", "c.png", "c.jpg", "c.jpg.png", "e.png", "e.gif"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in/b.bmp").mkdir()
    result = batch("in/a.jpg")
    assert result.status == 0 and names_in(tmp_path / "out") == ["a.jpg_x4.png"] and "another a is beside it" in result.out
    result = batch("in", "--skip-existing")
    assert result.status == 0 and "8 of 9 files upscaled, into out, 1 skipped" in result.out, result
    assert len({name.lower() for name in names_in(tmp_path / "out")}) == 9
    assert batch("in/c.jpg", "in/e.gif", "in/c.jpg.png", "--skip-existing").out.count(", 3 skipped") == 1


def test_pictures_of_two_folders_do_not_replace_each_other(batch, tmp_path):
    photo(tmp_path / "in/a.png"), photo(tmp_path / "other/a.png")
    for _ in range(2):
        result = batch("in", "other", "in/a.png", "--skip-existing")
        assert result.status == 2 and result.err.count("\n") == 1 and "other/a.png" in result.err, result


@pytest.mark.parametrize("name", ["r.png", "r.JPEG", "deep/er/r.tiff", "r.webp", "x_x4.jpg"])
def test_output_may_be_a_file(name, batch, tmp_path):
    photo(tmp_path / "in/a.png")
    assert batch("in/a.png", "--output", name).status == 0
    with Image.open(tmp_path / name) as image:
        assert image.size == (32, 24) and image.format == {"jpeg": "JPEG", "jpg": "JPEG"}.get(
            name.split(".")[1].lower(), image.format
        )
        assert image.format.lower()[:3] == name.split(".")[1].lower()[:3].replace("jpg", "jpe")
    assert names_in(tmp_path) == sorted(["in/a.png", name])
    assert batch("in/a.png", "--output", name).status == 2
    result = batch("in/a.png", "--output", name, "--overwrite", "--compare")
    panel = (tmp_path / name).with_name(f"{Path(name).stem}_compare.png")
    assert result.status == 0 and panel.exists(), result
    (tmp_path / name).unlink()
    refused = batch("in/a.png", "--output", name, "--compare")
    assert refused.status == 2 and panel.name in refused.err and not (tmp_path / name).exists(), refused


def test_two_pictures_have_not_one_comparison(batch, tmp_path):
    """Their results are a_x4.png and a_x4.bmp; the panels would both be a_x4_compare.png."""
    photo(tmp_path / "x/a.png"), photo(tmp_path / "y/a.bmp", (10, 9))
    result = batch("x/a.png", "y/a.bmp", "--compare", "--overwrite")
    assert result.status == 2 and result.err.count("\n") == 1 and "another input of this call" in result.err, result
    first = (tmp_path / "out/a_x4_compare.png").read_bytes()
    assert batch("x/a.png", "--compare", "--overwrite").status == 0
    assert (tmp_path / "out/a_x4_compare.png").read_bytes() == first
    assert names_in(tmp_path / "out") == ["a_x4.png", "a_x4_compare.html", "a_x4_compare.png"]
    assert batch("y/a.bmp").status == 0


def test_what_of_a_comparison_exists_is_left(batch, tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_x4_compare.png").write_bytes(b"mine")
    for _ in range(2):  # with the result to be made, and with the result there
        result = batch("a.png", "--compare", "--skip-existing")
        assert result.status == 0 and (tmp_path / "out/a_x4_compare.png").read_bytes() == b"mine", result
        assert (tmp_path / "out/a_x4_compare.html").exists()
        (tmp_path / "out/a_x4_compare.html").unlink()
    assert batch("a.png", "--compare", "--overwrite").status == 0
    with Image.open(tmp_path / "out/a_x4_compare.png") as panel:
        panel.load()


def test_an_input_is_not_replaced_by_the_result_of_another(batch, tmp_path):
    photo(tmp_path / "a.png"), photo(tmp_path / "a_x4.png", (12, 10))
    mine = (tmp_path / "a_x4.png").read_bytes()
    result = batch("a.png", "a_x4.png", "--output", ".", "--overwrite")
    assert result.status == 2 and "is an input of this call too" in result.err, result
    assert (tmp_path / "a_x4.png").read_bytes() == mine and (tmp_path / "a_x4_x4.png").exists()
    assert batch("a.png", "a_x4.png", "--output", ".", "--skip-existing").status == 0
    assert (tmp_path / "a_x4.png").read_bytes() == mine
    assert batch("a.png", "--output", "a.png", "--overwrite").status == 0  # but by its own, if that is asked for
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (32, 24)


def test_an_empty_output_is_refused(batch, tmp_path):
    photo(tmp_path / "a.png")
    result = batch("a.png", "--output", "")  # as of a variable that is not set
    assert result.status == 2 and "is empty" in result.err and names_in(tmp_path) == ["a.png"], result


def test_output_that_cannot_be_the_result_is_refused(batch, tmp_path):
    photo(tmp_path / "in/a.png"), photo(tmp_path / "in/b.png")
    for words in (
        ["in", "--output", "r.png"],
        ["in/a.png", "in/b.png", "--output", "r.png"],
        ["in/a.png", "--output", "r.mp4"],
    ):
        result = batch(*words)
        assert result.status == 2 and result.err.count("\n") == 1, result
    for words in (["--output", "r.png", "--format", "webp"], ["--output", "r.jp2"], ["--output", "r.png", "--quality", "9"]):
        result = batch("in/a.png", *words)
        assert result.status == 2 and result.err.count("\n") == 1, result
    assert names_in(tmp_path) == ["in/a.png", "in/b.png"]
    (tmp_path / "r.png").mkdir()  # a folder that is there stays one
    assert batch("in", "--output", "r.png").status == 0 and len(names_in(tmp_path / "r.png")) == 2


@pytest.mark.parametrize("form, ending", [("jpeg", ".jpg"), ("WebP", ".webp"), ("AVIF", ".avif"), ("JPG", ".jpg")])
def test_quality_is_that_of_the_file(form, ending, batch, tmp_path):
    from PIL import features

    if form == "AVIF" and not features.check("avif"):
        pytest.skip("a Pillow without AVIF")
    photo(tmp_path / "a.png", size=(40, 32))
    sizes = []
    for quality in (10, 50, 95):
        assert batch("a.png", "--format", form, "--quality", quality, "--overwrite").status == 0
        sizes.append((tmp_path / f"out/a_x4{ending}").stat().st_size)
    assert sizes == sorted(set(sizes))
    assert batch("a.png", "--format", form, "--overwrite").status == 0
    for wrong in (0, 101, "best"):
        assert batch("a.png", "--format", form, "--quality", wrong).status == 2
    for other in ([], ["--format", "png"], ["--format", "tif"]):
        assert "--quality is for" in batch("a.png", "--quality", 50, *other).err


def test_avif_keeps_transparency_and_frames_or_says_what_it_needs(batch, tmp_path, monkeypatch):
    from PIL import features

    photo(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(features, "modules", {})  # as before 11.3
        for words in (["--format", "avif"], ["--output", "a.avif"]):
            result = batch("a.png", *words)
            assert result.status == 2 and "Pillow 11.3" in result.err and not names_in(tmp_path / "out"), result
    if not features.check("avif"):
        pytest.skip("a Pillow without AVIF")
    image = Image.open(tmp_path / "a.png").convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.repeat([0, 255], 4).astype(np.uint8), (6, 1))))
    image.save(tmp_path / "b.png")
    image.save(tmp_path / "c.gif", save_all=True, append_images=[image.rotate(180), image.rotate(90)], duration=[40, 80, 120])
    assert batch("b.png", "c.gif", "--format", "avif").status == 0
    with Image.open(tmp_path / "out/b_x4.avif") as result:
        assert np.asarray(result)[..., 3].min() < 10 and np.asarray(result)[..., 3].max() > 245
    assert batch("out/c_x4.avif").status == 0
    for name in ("c_x4.avif", "c_x4_x4.avif"):
        with Image.open(tmp_path / "out" / name) as result:
            assert result.n_frames == 3


def test_whatever_is_wrong_with_a_path_is_its_own_error(batch, tmp_path, monkeypatch):
    photo(tmp_path / "in/a.png"), (tmp_path / "empty").mkdir(), (tmp_path / "locked").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    real, scandir = os.listdir, os.scandir

    def locked(function, path="."):  # for root, too
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return function(path)

    monkeypatch.setattr(os, "listdir", lambda path=".": locked(real, path))
    monkeypatch.setattr(os, "scandir", lambda path=".": locked(scandir, path))
    bad = ["empty", "locked", "loop", "missing.png", "missing/a.png", "n" * 300, "n" * 300 + ".png", "in/a.png/b.png"]
    result = batch(*bad[:4], "in", *bad[4:])
    assert result.status == 2 and len(result.err.splitlines()) == len(bad), result
    assert all(path in line for path, line in zip(bad, result.err.splitlines())), result
    assert "locked: Permission denied" in result.err and "1 of 9 files upscaled" in result.out, result
    for path in bad:  # alone, too
        result = batch(path)
        assert result.status == 2 and result.err.count("\n") == 1 and path in result.err, result
    assert batch("in", "locked", "--recursive", "--overwrite").out.splitlines()[-1].startswith("1 of 2 files")
    (tmp_path / "in/locked").mkdir()
    result = batch("in", "--recursive", "--overwrite")
    assert result.status == 2 and "1 of 2 files" in result.out and "in/locked: Permission denied" in result.err, result


def test_long_names_get_results_of_shorter_ones(batch, tmp_path):
    alike = "写" * 81  # 243 bytes
    names = ["n" * 251, "m" * 249, "m" * 235, f"{alike}abcdef", f"{alike}abcdeg", "é" * 125, os.fsdecode(b"\xe9" * 250)]
    for name in names:
        photo(tmp_path / "in/a.png").rename(tmp_path / "in" / f"{name}.png")
    for _ in range(2):
        result = batch("in", "--overwrite")
        assert result.status == 0 and "7 of 7 files" in result.out, result
        assert result.out.count("its name is shortened") == 6  # not that of 235 letters
        results = names_in(tmp_path / "out")
        assert len(results) == 7 and all(name.endswith("_x4.png") for name in results)
    result = batch("in", "--compare", "--skip-existing")
    assert result.status == 0 and len(names_in(tmp_path / "out")) == 21, result
    photo(tmp_path / "in/a.png").rename(tmp_path / f"in/{names[0]}.bmp")
    assert batch("in", "--output", "two").status == 0 and len(names_in(tmp_path / "two")) == 8


def test_what_cannot_be_written_is_the_error_of_its_file(batch, tmp_path):
    for name in ("a.png", "b/c.png", "d.png"):
        photo(tmp_path / "in" / name)
    (tmp_path / "out/d_x4.png").mkdir(parents=True)
    (tmp_path / "out/b").write_text("a file where a folder is to be")
    result = batch("in", "--recursive")
    assert result.status == 2 and len(result.err.splitlines()) == 2 and "1 of 3 files upscaled" in result.out, result
    assert "d.png" in result.err and "c.png" in result.err and names_in(tmp_path / "out") == ["a_x4.png", "b"]


def test_what_a_folder_holds_besides_is_counted_in_one_line(batch, tmp_path):
    photo(tmp_path / "in/a.png")
    for name in ("b.txt", "c.TXT", "d.cr2", "e.jxl", "README", ".DS_Store", "._a.png", "folder/f.txt", "folder/g.kra"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    result = batch("in")
    [line] = [line for line in result.out.splitlines() if "left out" in line]
    assert result.status == 0 and line.startswith("in: left out: "), result
    counted = line.removeprefix("in: left out: ").split(", ")
    assert sorted(counted) == ["1 .cr2", "1 .jxl", "1 in folders (see --recursive)", "1 without an ending", "2 .txt"]
    result = batch("in", "--recursive", "--overwrite")
    assert "1 .kra" in result.out and "3 .txt" in result.out and result.out.count("left out") == 1 and not result.err, result
    assert "left out" not in batch("in/a.png", "--overwrite").out
    shutil.rmtree(tmp_path / "in/folder")
    (tmp_path / "in/a.png").unlink()
    result = batch("in")
    assert result.status == 2 and "1 .jxl" in result.out and "no images or videos" in result.err, result


def test_a_batch_of_fifty_odd_files(zoo, batch, tmp_path):
    folder, good, bad = tmp_path / "in", set(), set()
    for key in [*WHOLE, *NAMES, "animated_gif", *TINY, *BROKEN]:
        if key in zoo and key not in ("folder", "long_thin"):
            (bad if key in BROKEN else good).add(folder_with(zoo[key], folder).name)
    for name, size in (("wide.png", (700, 1)), ("tall.bmp", (1, 600)), ("one.gif", (1, 1)), ("two.webp", (2, 1))):
        good.add(photo(folder / name, size).name)
    for name, form in (("really_a_gif.png", "GIF"), ("really_a_png.jpg", "PNG"), ("really_a_jpeg.tif", "JPEG")):
        good.add(photo(folder / name, format=form).name)
    for name in ("l" * 250 + ".png", os.fsdecode(b"\xff\xfe.png"), "-dash.png", "a%20b?*.png", "plain.jpg", "tab\t.png"):
        good.add(photo(folder / name).name)
    webp = photo(folder / "w.webp", (40, 32)).read_bytes()
    bmp = photo(folder / "w.bmp", (40, 32)).read_bytes()
    (folder / "w.webp").write_bytes(webp[: len(webp) // 2])
    (folder / "w.bmp").write_bytes(bmp[: len(bmp) // 2])
    (folder / "html.gif").write_text("<html>404</html>")
    (folder / "zeros.tif").write_bytes(bytes(4096))
    (folder / "empty.mp4").touch()
    (folder / "words.avi").write_text("no video")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.mp4")
    bad |= {"w.webp", "w.bmp", "html.gif", "zeros.tif", "empty.mp4", "words.avi", "pipe.jpg", "pipe.mp4"}
    for name in ("a.png", "b.mp4"):
        (folder / name).mkdir()  # no files, so nothing to upscale and no errors
    for name in ("notes.txt", "raw.cr2"):
        (folder / name).touch()
    assert len(good | bad) >= 50 and not good & bad
    result = batch("in")
    assert result.status == 2 and "Traceback" not in result.err, result
    lines = result.err.splitlines()
    assert len(lines) == len(bad) and all(line.startswith("error: ") for line in lines), result
    assert f"{len(good)} of {len(good | bad)} files upscaled" in result.out.splitlines()[-1], result
    assert "1 .cr2, 1 .txt, 2 in folders" in result.out
    assert len(names_in(tmp_path / "out")) == len(good) and not list(tmp_path.rglob(TEMPORARY))
    result = batch("in", "--skip-existing")
    assert result.status == 2 and f"0 of {len(good | bad)} files upscaled, into out, {len(good)} skipped" in result.out, result


# Locks


def test_files_that_are_written_at_once_do_not_meet(tmp_path):
    """As in two containers that share a folder, where the processes have one number."""
    with utils.atomic_write(tmp_path / "a") as first, utils.atomic_write(tmp_path / "b") as second:
        first.write(b"first")
        with utils.atomic_write(tmp_path / "a") as again:
            again.write(b"again")
        second.write(b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"first", "b": b"second"}


def test_a_locked_file_is_locked_for_other_processes_until_its_own_ends(tmp_path):
    hold = "import sys, utils; file = utils.lock_file(sys.argv[1]); print(file is not None, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, tmp_path / "lock"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "True\n"
        assert utils.lock_file(tmp_path / "lock") is None
        first.kill()
    file = utils.lock_file(tmp_path / "lock")
    assert file is not None
    with subprocess.Popen(command, **pipes) as second:
        assert second.communicate("")[0] == "False\n"
    utils.unlock_file(file)
    assert not (tmp_path / "lock").exists()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(utils.fcntl, "lockf", refuse)
    utils.lock_file(tmp_path / "lock").close()
    assert "No locks available" in capsys.readouterr().err
