"""Which weights a file gets, and what test.py says of it."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image, features
from skimage import data

import test as test_script
import upscaling
from inference import for_pictures
from models import SRResNet
from pictures import opening
from pictures.formats import read_picture
from utils import UserError
from weights import save_checkpoint

PHOTOGRAPH = Image.fromarray(data.astronaut()[:40, :48])
TURNED = {"save_all": True, "append_images": [PHOTOGRAPH.rotate(90)]}
WITH_LOSS = {
    "a.jpg": {},
    "full.jpg": {"quality": 100, "subsampling": 0},
    "phone.mpo": TURNED,
    "a.webp": {},
    "exif.webp": {"exif": Image.Exif()},
    "moving.webp": TURNED,
    "jpeg.tif": {"compression": "jpeg"},
    "wavelet.jp2": {"irreversible": True},
    "bare.j2k": {"irreversible": True},
    "texture.dds": {"pixel_format": "DXT1"},
}
WITHOUT_LOSS = {
    "a.png": {},
    "a.bmp": {},
    "a.gif": {},
    "a.tga": {},
    "a.webp": {"lossless": True},
    "moving.webp": TURNED | {"lossless": True},
    "moving.png": TURNED,
    "lzw.tif": {"compression": "tiff_lzw"},
    "plain.tif": {},
    "whole.jp2": {},
    "plain.dds": {},
}


def saved(folder, name, options):
    if name.endswith(("jp2", "j2k")) and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    PHOTOGRAPH.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name, options", WITH_LOSS.items())
def test_a_file_stored_with_loss_is_told(name, options, tmp_path):
    assert read_picture(saved(tmp_path, name, options)).lossy


@pytest.mark.parametrize("name, options", WITHOUT_LOSS.items())
def test_a_file_stored_without_loss_is_told(name, options, tmp_path):
    assert not read_picture(saved(tmp_path, name, options)).lossy


def test_transparency_of_webp_is_no_loss_and_hides_none(tmp_path):
    image = PHOTOGRAPH.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    for lossless in (True, False):
        image.save(tmp_path / "a.webp", lossless=lossless)
        assert read_picture(tmp_path / "a.webp").lossy != lossless


def test_a_webp_cut_anywhere_is_searched_to_its_end():
    buffer = io.BytesIO()
    PHOTOGRAPH.save(buffer, "WEBP", **TURNED)
    whole = buffer.getvalue()
    for length in range(0, len(whole), 97):
        assert set(opening._webp_chunks(whole[:length])) <= {b"VP8X", b"ANIM", b"ANMF", b"VP8 "}


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Four tiny networks in place of those that ship."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for number, name in enumerate(("srresnet_x4", "srgan_x4", "srresnet_x4_photo", "srgan_x4_photo")):
        torch.manual_seed(number)
        network = SRResNet(4, blocks=1, channels=4)
        save_checkpoint(folder / f"{name}.pth", {"config": network.config, "weights": network.state_dict()})
    files = {name: tuple(folder / path.name for path in pair) for name, pair in upscaling.PAIRS.items()}
    monkeypatch.setattr(upscaling, "PAIRS", files)
    return folder


def upscale(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["test.py", "--device", "cpu", *map(str, words)])
    test_script.main(test_script.parse_arguments())
    return capsys.readouterr().out


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    "name, flags, expected",
    [
        ("a.jpg", [], "srgan_x4_photo"),
        ("a.png", [], "srgan_x4"),
        ("a.webp", ["--weights", "auto"], "srgan_x4_photo"),
        ("a.jpg", ["--weights", "clean"], "srgan_x4"),
        ("a.png", ["--weights", "photo"], "srgan_x4_photo"),
        ("a.png", ["--weights", "photo", "--blend", "1"], "srgan_x4_photo"),
        ("a.jpg", ["--blend", "0"], "srresnet_x4_photo"),
        ("a.png", ["--blend", "0"], "srresnet_x4"),
    ],
)
def test_each_file_gets_its_weights_and_the_output_says_which(name, flags, expected, pairs, tmp_path, monkeypatch, capsys):
    PHOTOGRAPH.save(tmp_path / name)
    told = upscale(monkeypatch, capsys, tmp_path / name, "--output", tmp_path / "auto.png", *flags)
    blend = f", blend {flags[-1]}" if "--blend" in flags else ""
    assert f"by {expected.replace('srresnet', 'srgan')}{blend}, " in told
    upscale(monkeypatch, capsys, tmp_path / name, "--output", tmp_path / "by_hand.png", "--weights", pairs / f"{expected}.pth")
    assert np.array_equal(pixels(tmp_path / "auto.png"), pixels(tmp_path / "by_hand.png"))


def test_a_folder_of_both_kinds_is_shared_out(pairs, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "b.png", "c.webp", "d.bmp"):
        PHOTOGRAPH.save(folder / name)
    lines = upscale(monkeypatch, capsys, folder, "--output", tmp_path / "out").splitlines()
    by = {line.split(": ")[0][-5:]: "srgan_x4_photo" in line for line in lines if " by " in line}
    assert by == {"a.jpg": True, "b.png": False, ".webp": True, "d.bmp": False}


def test_weights_that_are_missing_or_of_no_pair_are_told(pairs, tmp_path, monkeypatch, capsys):
    PHOTOGRAPH.save(tmp_path / "a.png")
    with pytest.raises(UserError, match="--blend-with"):
        upscale(monkeypatch, capsys, tmp_path / "a.png", "--blend", "0.5", "--blend-with", pairs / "srgan_x4.pth")
    with pytest.raises(UserError, match="nowhere.pth: no such file"):
        upscale(monkeypatch, capsys, tmp_path / "a.png", "--weights", tmp_path / "nowhere.pth")
    (pairs / "srgan_x4_photo.pth").unlink()
    with pytest.raises(UserError, match="srgan_x4_photo.pth: no such file"):
        upscale(monkeypatch, capsys, tmp_path / "a.png")
    upscale(monkeypatch, capsys, tmp_path / "a.png", "--weights", "clean", "--output", tmp_path / "out")


class Enough(Exception):
    pass


@pytest.mark.parametrize("name, frames", [("a.png", 1), ("a.gif", 3)])
def test_progress_hears_of_each_tile_and_may_end_the_work(name, frames, tmp_path):
    PHOTOGRAPH.save(tmp_path / name, save_all=frames > 1, append_images=[PHOTOGRAPH.rotate(90 * i) for i in range(1, frames)])
    network, heard = for_pictures(SRResNet(2, blocks=1, channels=4), torch.device("cpu")), []
    target = tmp_path / f"result_{name}"

    def upscale_until(limit):
        def tell(done, total):
            heard.append(done / total)
            if len(heard) == limit:
                raise Enough

        heard.clear()
        return upscaling.upscale_picture(read_picture(tmp_path / name), target, network, tile=24, progress=tell)

    assert upscale_until(None).size == (96, 80)
    tiles = 4 * frames
    assert heard[:tiles] == pytest.approx([(i + 1) / tiles for i in range(tiles)]) and set(heard[tiles:]) <= {1}
    target.unlink()
    for limit in {2, len(heard)}:  # among the tiles; while the last bytes are written
        with pytest.raises(Enough):
            upscale_until(limit)
        assert len(heard) == limit and not list(tmp_path.glob("*result*")) and not list(tmp_path.glob("*.tmp"))


def test_colours_that_are_far_off_are_told(tmp_path, monkeypatch, capsys):
    """Of patterns that no network here was trained on, as of dithering, which come out too bright."""
    photograph = Image.fromarray(data.chelsea()).resize((96, 64))
    photograph.save(tmp_path / "plain.png")
    photograph.convert("1").save(tmp_path / "dithered.png")
    flags = "--blend", "0", "--output", tmp_path / "out"  # SRResNet alone, which is further off than SRGAN
    assert " off on average" in upscale(monkeypatch, capsys, tmp_path / "dithered.png", *flags)
    assert " off on average" not in upscale(monkeypatch, capsys, tmp_path / "plain.png", *flags)
    assert abs(pixels(tmp_path / "out/dithered_x4.png").mean() - pixels(tmp_path / "dithered.png").mean()) > 10


def test_an_empty_word_is_not_the_current_folder(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        upscale(monkeypatch, capsys, "")
    assert "INPUT: is empty" in capsys.readouterr().err
