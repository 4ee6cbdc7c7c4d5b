"""PSNR and SSIM against values worked out by hand and against the formulas of their papers."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image
from scipy.signal import convolve2d

import image_lists
import metrics
import runs
import train_srgan
import train_srresnet
import utils
from datasets import TestPairs
from pictures.pixels import downscale, enlarge, read_image


def plain(value, shape=(24, 20)):
    return np.full((*shape, 3), value, np.uint8)


@pytest.mark.parametrize(
    "colour, y",
    [((255, 0, 0), 81.481), ((0, 255, 0), 144.553), ((0, 0, 255), 40.966), ((255, 255, 255), 235), ((0, 0, 0), 16)],
)
def test_luminance_of_pure_colours(colour, y):
    plane = metrics.luminance(plain(colour, (2, 3)))
    assert plane.shape == (2, 3) and plane.dtype == np.float64
    assert np.allclose(plane, y, atol=1e-9)


@pytest.mark.parametrize("offset", [1, 5, 100])
def test_psnr_of_a_constant_offset(offset):
    # An offset of all three channels is 219/255 of it in Y.
    expected = 20 * math.log10(255 / (offset * 219 / 255))
    assert metrics.psnr(plain(50 + offset), plain(50), 4) == pytest.approx(expected, abs=1e-9)
    assert metrics.psnr(plain(50), plain(50 + offset), 4) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_one_wrong_pixel():
    sr_img, hr_img = plain(100), plain(100)
    sr_img[10, 10] = (100, 110, 100)
    mse = (10 * 128.553 / 255) ** 2 / (16 * 12)  # over the 24 - 8 times 20 - 8 pixels within the border
    assert metrics.psnr(sr_img, hr_img, 4) == pytest.approx(10 * math.log10(255**2 / mse))


def test_equal_images(photographs):
    assert metrics.psnr(photographs[0], photographs[0], 4) == math.inf
    assert metrics.ssim(photographs[0], photographs[0], 4) == pytest.approx(1)


@pytest.mark.parametrize("border", [2, 3, 4, 8])
def test_the_border_does_not_count_and_the_next_pixel_does(photographs, border):
    hr_img = photographs[0]
    framed = hr_img.copy()
    framed[:border], framed[-border:], framed[:, :border], framed[:, -border:] = 0, 0, 0, 0
    assert metrics.psnr(framed, hr_img, border) == math.inf
    assert metrics.ssim(framed, hr_img, border) == pytest.approx(1)
    height, width = hr_img.shape[:2]
    for place in ((border, border), (height - border - 1, width - border - 1)):
        touched = hr_img.copy()
        touched[place] ^= 128
        assert metrics.psnr(touched, hr_img, border) < math.inf


def ssim_by_the_formula(x, y):
    """Wang et al. 2004, equation 13, averaged over the places where the whole 11x11 window lies within the image."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def mean(plane):
        return convolve2d(plane, window, mode="valid")

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


@pytest.mark.parametrize("scale", [2, 4])
def test_ssim_is_the_formula(photographs, scale):
    hr_img = photographs[0]
    sr_img = enlarge(downscale(hr_img, scale), scale)
    planes = [metrics.luminance(img)[scale:-scale, scale:-scale] for img in (sr_img, hr_img)]
    value = metrics.ssim(sr_img, hr_img, scale)
    assert value == pytest.approx(ssim_by_the_formula(*planes), abs=1e-9)
    assert 0.5 < value < 0.99


def test_ssim_needs_room_for_its_window():
    assert math.isnan(metrics.ssim(plain(9, (18, 40)), plain(9, (18, 40)), 4))  # 10 rows are left
    assert metrics.ssim(plain(9, (19, 40)), plain(9, (19, 40)), 4) == pytest.approx(1)


@pytest.mark.filterwarnings("error")
def test_an_image_that_is_all_border_has_no_psnr():
    assert math.isnan(metrics.psnr(plain(9, (8, 8)), plain(9, (8, 8)), 4))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_pairs_are_cropped_and_made_by_pillow(image_folder, photographs, scale):
    pairs = TestPairs(sorted(image_folder.iterdir()), scale)
    assert len(pairs) == len(photographs)
    for (name, lr_img, hr_img), photograph, path in zip(pairs, photographs, pairs.paths, strict=True):
        height, width = photograph.shape[0] // scale, photograph.shape[1] // scale
        assert name == path.stem
        assert np.array_equal(hr_img, photograph[: height * scale, : width * scale])
        assert np.array_equal(lr_img, np.asarray(Image.fromarray(hr_img).resize((width, height), Image.Resampling.BICUBIC)))


def test_pairs_with_given_lr_images(tmp_path, image_folder, photographs):
    paths = sorted(image_folder.iterdir())[:2]
    Image.fromarray(photographs[0][::4, ::4]).save(tmp_path / paths[0].name)
    pairs = TestPairs(paths, 4, lr_folder=tmp_path)
    assert np.array_equal(pairs[0][1], photographs[0][::4, ::4])
    with pytest.raises(utils.ImageError, match="no such file"):
        pairs[1]
    Image.fromarray(photographs[1][::2, ::2]).save(tmp_path / paths[1].name)
    with pytest.raises(utils.ImageError, match="size"):
        pairs[1]


def test_an_image_smaller_than_the_scale_is_refused(tmp_path):
    Image.fromarray(plain(9, (3, 40))).save(tmp_path / "thin.png")
    with pytest.raises(utils.ImageError, match="thin.png: smaller than 4 pixels"):
        TestPairs([tmp_path / "thin.png"], 4)[0]


def test_evaluation_of_bicubic_enlargement(image_folder, photographs):
    """The whole protocol, with nothing of the repository: crop, Pillow down and up, Y, border, PSNR."""
    entries = metrics.evaluate(None, TestPairs(sorted(image_folder.iterdir()), 3))
    for entry, photograph in zip(entries, photographs, strict=True):
        height, width = photograph.shape[0] // 3 * 3, photograph.shape[1] // 3 * 3
        hr = Image.fromarray(photograph[:height, :width])
        sr = hr.resize((width // 3, height // 3), Image.BICUBIC).resize((width, height), Image.BICUBIC)
        error = (np.asarray(sr).astype(float) - np.asarray(hr)) @ [65.481, 128.553, 24.966] / 255
        expected = 10 * np.log10(255**2 / np.mean(error[3:-3, 3:-3] ** 2))
        assert entry["psnr"] == pytest.approx(expected, abs=1e-9)
    assert json.dumps(entries)


def test_colour_shift(photographs):
    lr_img = downscale(photographs[0][:72, :96], 4).clip(20, 200)
    sr_img = enlarge(lr_img, 4)
    assert metrics.colour_shift(sr_img, lr_img) < 0.3
    sr_img = sr_img.copy()
    sr_img[..., 1] -= 7  # as a network that leaves the picture too purple
    sr_img[..., 2] += 3
    assert metrics.colour_shift(sr_img, lr_img) == pytest.approx(7, abs=0.3)


def test_artifacts_see_each_its_own_fault(photographs):
    hr_img = photographs[4][:64, :64]
    lr_img = downscale(hr_img, 4)
    clean = metrics.artifacts(hr_img, lr_img, hr_img)
    assert clean["chroma"] == clean["echo"] == 0 and clean["consistency"] < 0.5 and "gray" not in clean
    brighter = metrics.artifacts(hr_img + np.uint8(5), lr_img, hr_img)
    assert brighter["consistency"] == pytest.approx(5, abs=0.3) and brighter["chroma"] == pytest.approx(0, abs=1e-9)
    hatched = hr_img.astype(int)
    hatched[:, ::2] += 12
    hatched[:, 1::2] -= 12
    hatched = metrics.artifacts(hatched.clip(0, 255).astype(np.uint8), lr_img, hr_img)
    assert hatched["echo"] > 2 and hatched["consistency"] < 2
    gray = np.repeat(hr_img[..., :1], 3, axis=2)
    tinted = gray.copy()
    tinted[..., 2] = np.where(gray[..., 2] > 100, gray[..., 2] - 10, gray[..., 2] + 10)
    tinted = metrics.artifacts(tinted, downscale(gray, 4), gray)
    assert tinted["gray"] == pytest.approx(10) and tinted["chroma"] == pytest.approx(
        10 * np.hypot(0.5, 0.081312) / 2**0.5, rel=0.01
    )
    assert metrics.artifacts(gray, downscale(gray, 4), gray)["gray"] == 0


def test_what_lpips_cannot_measure_is_told_before_a_training_begins(work, lists, photographs, capsys):
    import torchvision

    torch.save(torchvision.models.alexnet().features.state_dict(), "alexnet.pth")
    measure = metrics.load_lpips("alexnet.pth")
    small, img = Path("small"), photographs[0]
    assert measure(img[:31, :40], img[:31, :40]) == 0 and measure(img[:31, :40], img[1:32, :40]) > 0
    with pytest.raises(utils.UserError, match="LPIPS needs 31 pixels each way, and a picture has 40x30"):
        measure(img[:30, :40], img[:30, :40])
    small.mkdir()
    Image.fromarray(img[:28, :40]).save(small / "a.png")
    flags = ["--data-folder", str(lists["off"]), "--crop-size", "32", "--validate-on", "small/"]
    runs.load_data(train_srgan.parse_arguments(flags))
    with pytest.raises(utils.ImageError, match="a.png: too small to validate on"):
        runs.load_data(train_srgan.parse_arguments([*flags, "--lpips-backbone", "alexnet.pth"]))


def test_means_are_over_the_images_that_have_a_figure():
    assert metrics.mean_figures([{"image": "a", "psnr": 20}, {"image": "b", "psnr": 30, "gray": 4}]) == {"psnr": 25, "gray": 4}


def test_a_test_set_is_a_folder_or_a_list(lists, image_folder, tmp_path):
    in_folder = image_lists.test_images(image_folder)
    assert [path.name for path in in_folder] == sorted(path.name for path in image_folder.iterdir())
    by_name = image_lists.test_images(image_folder.name, lists["off"])
    assert [path.resolve() for path in by_name] == [path.resolve() for path in in_folder]
    assert len(image_lists.test_images("validation", lists["off"])) == 2
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "empty", "Set99"):
        with pytest.raises(utils.UserError, match="no"):
            image_lists.test_images(name, lists["off"])


def test_a_list_goes_before_a_folder_of_its_name(work, photographs, capsys):
    """Also where the name of another set ends as the names of lists do; `name/` is the folder."""
    for folder, numbers in (("mine", (0, 1)), ("mine_test", (2,)), ("validation", (3,)), ("photos", (4, 5, 6))):
        Path(folder).mkdir()
        for i in numbers:
            Image.fromarray(photographs[i]).save(Path(folder, f"{i}.png"))
    call("create_data_lists", "--train-folders", "photos", "--validation-images", 1, "--min-size", 32)
    call("create_data_lists", "--test-folders", "mine", "mine_test", "--white", 4095)
    Path("mine/7.png").write_bytes(Path("mine/0.png").read_bytes())
    capsys.readouterr()
    names = lambda name: [path.stem for path in image_lists.test_images(name)]  # noqa: E731
    assert names("mine") == ["0", "1"] and names("mine_test") == ["2"] and names("validation")[0] in "456"
    assert "data/mine_test_images.json" in capsys.readouterr().err and image_lists.test_images("mine").white == 4095
    assert (
        names("mine/") == ["0", "1", "7"] and names("./validation") == ["3"] and image_lists.test_images("mine/").white is None
    )
    _, pairs = runs.load_data(train_srresnet.parse_arguments(["--crop-size", "32"]))  # on "validation", by default
    assert pairs.paths[0].stem in "456"
    shutil.rmtree("mine")
    assert names("mine_test") == ["2"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "jpg", "png"])
def test_the_size_in_the_head_is_that_of_the_pixels(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert image_lists.size_of(path) == read_image(path).shape[1::-1] == ((20, 30) if orientation > 4 else (30, 20))


def test_a_folder_with_lr_images_and_results_is_measured_on_its_hr_images(tmp_path, photographs, capsys):
    for name, img in {"a_HR": photographs[0], "b_HR": photographs[3], "x4": photographs[6]}.items():
        Image.fromarray(img).save(tmp_path / f"{name}.png")
    for name, img in {"a": photographs[0], "b": photographs[3]}.items():
        small = downscale(img[:72, :72], 4)
        Image.fromarray(small).save(tmp_path / f"{name}_LR.png")
        Image.fromarray(enlarge(small, 4)).save(tmp_path / f"{name}_VDSR.png")
    assert [path.name for path in image_lists.test_images(tmp_path)] == ["a_HR.png", "b_HR.png", "x4.png"]
    said = capsys.readouterr().err
    assert "3 images; left out: 2 LR by name or folder; left out: 2 results" in said and said.count("\n") == 1


def test_sets_of_one_name_stand_apart_in_the_table(work, photographs, capsys):
    for i, name in enumerate(("Set5/HR", "Set14/HR", "more/HR")):
        (work / name).mkdir(parents=True)
        Image.fromarray(photographs[3 * i]).save(work / name / "a.png")
    call("eval", "--test-sets", "Set5/HR", "Set14/HR", "mine=more/HR", "--device", "cpu", "--save-images")
    figures = json.loads((work / "results/eval/metrics.json").read_text())["bicubic"]
    assert set(figures) == {"Set5", "Set14", "mine"} and len({entries[0]["psnr"] for entries in figures.values()}) == 3
    assert "| Set5 | Set14 | mine |" in capsys.readouterr().out.replace("|---", "")
    assert (work / "results/eval/mine/a_bicubic.png").exists()
