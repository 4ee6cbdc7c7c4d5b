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
WHOLE += ["gray16_tif", "gray16_big_endian", "rgb16", "rgb16_tif", "one_bit", "exif", "exif_png", "animated_webp"]
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
BROKEN += ["float_tif", "no_access"]
TINY = ["one_pixel", "small"]
ALL = [*WHOLE, *NAMES, "animated_gif", *TINY, *BROKEN]


def png(header, rows):
    """A PNG file by hand: `header` is (width, height, bit depth, color type)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


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
    shutil.copy(zoo["plain"].path, tmp_path / "pictures/other.png")
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
    """The whole image through the network at once, in the plainest way."""
    import torch

    from weights import load_network

    with torch.no_grad():
        lr = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        sr = load_network(weights).eval()(lr)[0].permute(1, 2, 0)
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


# Locks


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
