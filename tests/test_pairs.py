"""Pairs of HR and LR images that people have: which belong together, and that they are trained on and measured as such."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import call, refusal
from helpers import SMALL, SMALL_GAN
from PIL import Image

import datasets
import pairs
import utils
from create_data_lists import write_list, write_pack
from datasets import SRDataset, TestPairs, train_loader, training_pair
from image_lists import read_list
from image_lists import test_images as images_of_set
from pictures.pixels import crop_to_multiple, downscale, read_image


def write(path, img):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(img).save(path)


def write_layout(folder, layout, photographs):
    """Write, by their names, photograph `number` whole (scale 1), small (2, 3, 4, 8), or small and enlarged again (0)."""
    for name, (number, scale) in layout.items():
        img = crop_to_multiple(photographs[number], max(1, scale))
        img = img if scale == 1 else downscale(img, scale or 4)
        write(folder / name, img if scale else np.asarray(Image.fromarray(img).resize(photographs[number].shape[1::-1])))


# Which belong together. A layout has for each name (number of the photograph, scale); the HR images are those of scale 1.

LAYOUTS = {  # name: (layout, folder of HR, folder of LR, scale)
    "names alike": ({f"HR/{i}.png": (i, 1) for i in range(3)} | {f"LR/{i}.png": (i, 4) for i in range(3)}, "HR", "LR", 4),
    "Set5 as downloaded": (
        {f"HR/{n}.png": (i, 1) for i, n in enumerate(("baby", "bird"))}
        | {f"LR_bicubic/X{s}/{n}x{s}.png": (i, s) for i, n in enumerate(("baby", "bird")) for s in (2, 3, 4)},
        "HR",
        "LR_bicubic",
        3,
    ),
    "the folder above": (
        {"HR/a.png": (0, 1), "LR_bicubic/X4/ax4.png": (0, 4), "LR_bicubic/X2/ax2.png": (0, 2)},
        "HR",
        ".",
        4,
    ),
    "Urban100, one folder": (
        {
            f"img_{i:03d}_SRF_4_{kind}.png": (i, scale)
            for i in range(3)
            for kind, scale in {"HR": 1, "LR": 4, "bicubic": 0, "SRCNN": 0, "Kim": 0}.items()
        },
        ".",
        ".",
        4,
    ),
    "DIV2K": (
        {f"DIV2K_valid_HR/08{i:02d}.png": (i, 1) for i in range(3)}
        | {f"DIV2K_valid_LR_bicubic/X{s}/08{i:02d}x{s}.png": (i, s) for i in range(3) for s in (2, 4)},
        "DIV2K_valid_HR",
        "DIV2K_valid_LR_bicubic",
        4,
    ),
    "DIV2K mild": (
        {"HR/0801.png": (0, 1), "DIV2K_valid_LR_mild/0801x4m.png": (0, 4), "DIV2K_valid_LR_wild/0801x4w1.png": (0, 4)},
        "HR",
        "DIV2K_valid_LR_wild",
        4,
    ),
    "clips": (
        {
            f"{kind}/{clip}/{i:04d}.png": (3 * clip + i, s)
            for kind, s in (("HR", 1), ("LR", 2))
            for clip in (0, 1)
            for i in range(3)
        },
        "HR",
        "LR",
        2,
    ),
    "other endings": ({"HR/a.bmp": (0, 1), "LR/a.jpg": (0, 4), "HR/b.PNG": (1, 1), "LR/b_x4.webp": (1, 4)}, "HR", "LR", 4),
    "beside each other": (
        {"a.png": (0, 1), "a_LR.png": (0, 4), "b_HR.png": (1, 1), "b_LR4.png": (1, 4), "c (HR).png": (2, 1), "cx4.png": (2, 4)},
        ".",
        ".",
        4,
    ),
    "names that end like marks": (
        {"HR/bmw.png": (0, 1), "HR/bmw x4.png": (3, 1), "LR/bmwx4.png": (0, 4), "LR/bmw x4x4.png": (3, 4)},
        "HR",
        "LR",
        4,
    ),
    "upper case": ({"HR/IMG_1.PNG": (0, 1), "LR/img_1_lr.png": (0, 4)}, "HR", "LR", 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_as_they_are_downloaded_are_paired(tmp_path, photographs, name):
    layout, hr_folder, lr_folder, scale = LAYOUTS[name]
    write_layout(tmp_path, layout, photographs)
    hr = sorted(tmp_path / path for path, (_, s) in layout.items() if s == 1)
    number = {tmp_path / path: content for path, content in layout.items()}
    given = TestPairs(hr, scale, tmp_path / lr_folder)
    given.check_given()
    for i, path in enumerate(given.paths):
        assert number[Path(given.given_lr_image(i))] == (number[path][0], scale)
        assert given[i][1].shape[0] == given[i][2].shape[0] // scale
    flags = ["--train-folders", tmp_path / hr_folder, "--lr-folders", tmp_path / lr_folder, "--scale", scale, "--min-size", 32]
    call("create_data_lists", *flags, "--validation-images", 0, "--output-folder", tmp_path / "data")
    found = read_list(tmp_path / "data/train_images.json")
    assert found.scale == scale and sorted(path.resolve() for path in found) == hr
    assert [number[lr.resolve()] for lr in found.lr_images] == [(number[path.resolve()][0], scale) for path in found]


def test_eval_reads_a_benchmark_and_its_lr_images(work, photographs, capsys):
    layout = LAYOUTS["Set5 as downloaded"][0] | {
        f"Urban/{key}": value for key, value in LAYOUTS["Urban100, one folder"][0].items()
    }
    write_layout(work, {f"sets/{key}": value for key, value in layout.items()}, photographs)

    def figures(*flags):
        call("eval", "--device", "cpu", "--scale", 4, *flags)
        capsys.readouterr()
        return json.loads(Path("results/eval/metrics.json").read_text())["bicubic"]

    sets = ["--test-sets", "sets/HR", "sets/Urban"]
    made = figures(*sets)
    assert [len(entries) for entries in made.values()] == [2, 3]
    assert figures(*sets, "--lr-folder", "sets/LR_bicubic", "sets/Urban") == made  # they are Pillow's
    assert figures(*sets, "--lr-folder", "sets") == made  # one for all
    write(Path("sets/LR_bicubic/X4/babyx4.png"), np.zeros_like(read_image("sets/LR_bicubic/X4/babyx4.png")))
    assert figures("--test-sets", "sets/HR", "--lr-folder", "sets/LR_bicubic")["HR"][0]["psnr"] < 20
    lying = np.rot90(read_image("sets/LR_bicubic/X4/birdx4.png"), 2)
    write(Path("sets/LR_bicubic/X4/birdx4.png"), lying)
    call("eval", "--device", "cpu", "--test-sets", "sets/HR", "--lr-folder", "sets/LR_bicubic")
    assert "2 of 2 pairs do not look alike" in capsys.readouterr().err  # one is black, one upside down
    line = refusal(capsys, "eval", *sets, "--lr-folder", "a", "b", "c")
    assert "--lr-folder" in line and "2" in line


@pytest.mark.parametrize(("white", "lr_white", "warned"), [(4095, 4095, False), (4095, 8191, True), (4095, None, True)])
def test_pairs_that_declare_different_whites_are_told(work, photographs, capsys, white, lr_white, warned):
    """Those that declare nothing are told anyway, as nearly black, so here their range is used to its half."""
    for folder, img, level in (("HR", photographs[0], white), ("LR", downscale(photographs[0], 4), lr_white)):
        Path(folder).mkdir()
        tags = [(281, 3, 1, level, True)] if level else []
        deep = (img[..., 1].astype(int) * (white if level else 32767) // 255).astype(np.uint16)
        tifffile.imwrite(f"{folder}/a.tif", deep, photometric="minisblack", metadata=None, extratags=tags)
    call("eval", "--device", "cpu", "--test-sets", "HR", "--lr-folder", "LR")
    assert ("1 of 1 pairs do not look alike" in capsys.readouterr().err) == warned


# Each a change of the layout "Set5 as downloaded", and what the error of one line names
FAULTS = {
    "missing": (
        lambda folder: [path.unlink() for path in (folder / "LR_bicubic").glob("*/bird*")],
        ["HR/bird.png", "birdx4.png", "no such file"],
    ),
    "missing of its scale": (
        lambda folder: (folder / "LR_bicubic/X4/birdx4.png").unlink(),
        ["HR/bird.png", "LR_bicubic/X2/birdx2.png", "LR_bicubic/X3/birdx3.png", "none"],
    ),
    "no folder": (lambda folder: shutil.rmtree(folder / "LR_bicubic"), ["LR_bicubic", "no such folder"]),
    "two": (
        lambda folder: shutil.copytree(folder / "LR_bicubic/X4", folder / "LR_bicubic/again/X4"),
        ["HR/baby.png", "LR_bicubic/X4/babyx4.png", "LR_bicubic/again/X4/babyx4.png", "several"],
    ),
    "shared": (
        lambda folder: Image.open(folder / "HR/baby.png").save(folder / "HR/baby.bmp"),
        ["baby.png", "HR/baby.bmp", "LR_bicubic/X4/babyx4.png"],
    ),
    "size": (
        lambda folder: Image.new("RGB", (30, 20)).save(folder / "LR_bicubic/X4/babyx4.png"),
        ["HR/baby.png", "LR_bicubic/X4/babyx4.png", "none", "its size divided by 4"],
    ),
    "of another scale": (
        lambda folder: shutil.rmtree(folder / "LR_bicubic/X4") or shutil.rmtree(folder / "LR_bicubic/X3"),
        ["HR/baby.png, 96x72", "babyx2.png", "48x36", "times 4"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_paired_is_an_error_before_anything_is_measured(work, photographs, capsys, name):
    write_layout(work, LAYOUTS["Set5 as downloaded"][0], photographs)
    change, named = FAULTS[name]
    change(work)
    line = refusal(capsys, "eval", "--test-sets", "HR", "--lr-folder", "LR_bicubic", "--scale", 4, "--device", "cpu")
    assert all(word in line for word in named), line


def test_lists_of_pairs_say_what_was_left_out_and_why(tmp_path, photographs, capsys):
    layout = {f"HR/{i}.png": (i, 1) for i in range(9)} | {f"LR/{i}x4.png": (i, 4) for i in range(9)}
    write_layout(tmp_path, layout, photographs)
    (tmp_path / "LR/0x4.png").unlink()
    write(tmp_path / "LR/1_LR.png", read_image(tmp_path / "LR/1x4.png"))
    write(tmp_path / "LR/2x4.png", photographs[2][:30, :30])
    (tmp_path / "LR/3x4.png").write_text("no image")
    Image.fromarray(photographs[4]).save(tmp_path / "HR/4.bmp")
    write(tmp_path / "LR/5x4.png", 255 - read_image(tmp_path / "LR/5x4.png"))
    write(tmp_path / "LR/of no other.png", photographs[0][:10, :10])
    flags = ["--train-folders", tmp_path / "HR", "--lr-folders", tmp_path / "LR", "--output-folder", tmp_path / "data"]
    flags += ["--min-size", 32, "--validation-images", 1]
    call("create_data_lists", *flags)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("training: 4 pairs of x4; "))
    counts = {reason: int(count) for count, reason in re.findall(r"left out: (\d+) ([^;]+)", line)}
    reasons = {pairs.MISSING: 1, pairs.SEVERAL: 1, pairs.MISFIT: 1, pairs.SHARED: 2}
    assert counts == reasons | {"whose LR image is not a readable image": 1}
    assert all(name in out for name in ("HR/0.png", "LR/1_LR.png", "LR/2x4.png", "LR/3x4.png", "HR/4.bmp"))
    assert "1 of 4 pairs do not look alike: are" in out and "HR/5.png" in out
    assert len(read_list(tmp_path / "data/train_images.json")) == 3
    shutil.rmtree(tmp_path / "LR")
    (tmp_path / "LR").mkdir()
    assert "none of 10 images can be paired" in refusal(capsys, "create_data_lists", *flags)
    for more in (["--lr-folders", "a", "b"], ["--scale", 4]):
        line = refusal(capsys, "create_data_lists", "--train-folders", tmp_path / "HR", *more)
        assert more[0] in line


def test_folders_of_both_kinds_correspond_in_their_order(tmp_path, photographs):
    """Though the names are the same in each; and the LR images of one camera may look unlike, and lie below or beside."""
    for number, folder in enumerate(("a", "b")):
        for i in range(3):
            write(tmp_path / folder / "HR" / f"{i}.png", photographs[6 * number + i])
            write(tmp_path / folder / "LR" / f"{i}.png", 255 - downscale(crop_to_multiple(photographs[6 * number + i], 2), 2))
    for hr, lr in (
        (("a/HR", "b/HR"), ("a/LR", "b/LR")),
        (("a/HR", "b/HR"), (".",)),
        (("a", "b"), ("a/LR", "b/LR")),
    ):
        hr, lr = ([tmp_path / folder for folder in folders] for folders in (hr, lr))
        flags = ["--validation-images", 2, "--min-size", 32, "--output-folder", tmp_path / "data"]
        call("create_data_lists", "--train-folders", *hr, "--lr-folders", *lr, *flags)
        both = [read_list(tmp_path / f"data/{which}_images.json") for which in ("train", "validation")]
        found = {path.resolve(): lr.resolve() for images in both for path, lr in zip(images, images.lr_images, strict=True)}
        assert len(found) == 6 and all(lr == path.parents[1] / "LR" / path.name for path, lr in found.items())
    for i in range(3):
        write(tmp_path / "beside" / f"{i}.png", photographs[i])
        write(tmp_path / "beside" / f"{i}_LR.png", 255 - downscale(crop_to_multiple(photographs[i], 4), 4))
    call("create_data_lists", "--train-folders", tmp_path / "beside", "--lr-folders", tmp_path / "beside", *flags)
    assert len(read_list(tmp_path / "data/train_images.json")) == 1
    assert [path.name for path in images_of_set(tmp_path / "beside", lr_folder=tmp_path / "beside")] == [
        "0.png",
        "1.png",
        "2.png",
    ]


# What is trained on


@pytest.mark.parametrize("pack", ["on", "off"])
def test_both_images_of_a_pair_are_read_by_the_white_of_the_list(work, photographs, capsys, pack):
    for i, photograph in enumerate(photographs[:3]):
        write(work / f"HR/{i}.png", photograph[..., 0].astype(np.uint16) * 16)
        write(work / f"LR/{i}.png", photograph[::2, ::2, 0].astype(np.uint16) * 16)
    flags = ["--validation-images", 1, "--min-size", 32, "--pack", pack, "--white", 4080]
    call("create_data_lists", "--train-folders", "HR", "--lr-folders", "LR", *flags)
    assert "nearly black" not in capsys.readouterr().out
    dataset = SRDataset("data/train_images.json", 32, scale=2)
    for number, path in enumerate(dataset.paths):
        hr_img = dataset.read(number)
        lr_img = dataset.read_lr_image(number, hr_img)
        assert np.array_equal(hr_img[..., 0], photographs[int(path.stem)][..., 0])
        assert np.array_equal(lr_img, hr_img[::2, ::2])
    call("eval", "--test-sets", "HR", "--lr-folder", "LR", "--scale", 2, "--device", "cpu")
    assert "6 in 16-bit files" in capsys.readouterr().err
    call("eval", "--test-sets", "HR", "--lr-folder", "LR", "--scale", 2, "--device", "cpu", "--white", 4080)
    assert "16-bit" not in capsys.readouterr().err


def list_of_pairs(folder, lr_images, scale, pack, remainder=0):
    """A list of HR images that repeat each LR pixel `scale` times, with `remainder` more rows and columns."""
    lr_of, sizes = {}, {}
    for i, lr_img in enumerate(lr_images):
        hr_img = np.pad(lr_img.repeat(scale, 0).repeat(scale, 1), ((0, remainder), (0, remainder), (0, 0)))
        hr, lr = folder / f"HR/{i}.png", folder / f"LR/{i}.png"
        write(hr, hr_img)
        write(lr, lr_img)
        lr_of[hr], sizes[hr] = lr, hr_img.shape[:2]
    list_file = folder / "train_images.json"
    write_list(list_file, sizes, None, lr_of, scale)
    write_pack(list_file, sizes, "on" if pack else "off", 8, None, lr_of, scale)
    return list_file


def numbered(height, width):
    """Pixels that hold their own row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 99)], axis=-1).astype(np.uint8)


def test_nothing_is_drawn_where_lr_images_are_given(tmp_path):
    with pytest.raises(utils.UserError, match="--drawn-share"):
        SRDataset(list_of_pairs(tmp_path, [numbered(10, 12)], 4, True), 24, drawn_share=0.1)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("scale, remainder", [(4, 3), (3, 0), (2, 1)])
def test_crops_of_both_are_of_one_place_flip_and_turn(tmp_path, scale, remainder, pack):
    dataset = SRDataset(list_of_pairs(tmp_path, [numbered(10, 12)], scale, pack, remainder), 6 * scale, scale=scale)
    assert (dataset.pack is not None) == pack
    views, corners = set(), set()
    for k in range(300):
        hr_img, lr_img = dataset[k]
        assert hr_img.shape == (3, 6 * scale, 6 * scale) and lr_img.shape == (3, 6, 6)
        assert np.array_equal(hr_img, lr_img.repeat(scale, 1).repeat(scale, 2))
        corner = lr_img.min((1, 2))
        corners.add((int(corner[0]), int(corner[1])))
        views.add((lr_img[:2] - corner[:2, None, None]).tobytes())
    assert len(views) == 8 and corners == {(top, left) for top in range(5) for left in range(7)}


@pytest.mark.parametrize("pack", [False, True])
def test_shares_of_the_crops_are_changed_on_both_alike(tmp_path, photographs, pack):
    list_file = list_of_pairs(tmp_path, [photograph[:24, :24] for photograph in photographs[:4]], 2, pack)
    plain, dataset = SRDataset(list_file, 32, scale=2), SRDataset(list_file, 32, 0, 0.3, 0.3, 0.1, scale=2)
    changed = 0
    for k in range(100):
        hr_img, lr_img = dataset[k]
        assert np.array_equal(hr_img, lr_img.repeat(2, 1).repeat(2, 2))
        changed += not np.array_equal(hr_img, plain[k][0])
    assert 30 < changed < 80


def test_a_stretched_lr_crop_goes_by_the_levels_of_the_hr_crop():
    hr_img, lr_img = np.full((8, 8, 3), 100, np.uint8), np.full((2, 2, 3), 110, np.uint8)
    hr_img[4:] = 200
    stretched = datasets.stretched(lr_img, 0, 0, of=hr_img)
    assert (stretched == round(10 * 255 / 100)).all() and datasets.stretched(hr_img, 0, 0).max() == 255


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_hands_over_pairs_whatever_the_workers(tmp_path, photographs, workers):
    list_file = list_of_pairs(tmp_path, [photograph[:20, :20] for photograph in photographs[:3]], 4, False)
    dataset = SRDataset(list_file, 32, seed=3, scale=4)
    batches = [batch for batch, bad in train_loader(dataset, 2, 1, 40, workers=workers)]
    for step, batch in enumerate(batches, 1):
        for i, (hr_crop, lr_crop) in enumerate(zip(*batch, strict=True)):
            expected = dataset[2 * step + i]
            assert np.array_equal(hr_crop, expected[0]) and np.array_equal(lr_crop, expected[1])
    lr_imgs, hr_imgs = training_pair(batches[0], 4)
    assert torch.equal((lr_imgs * 255).round().byte(), batches[0][1]) and torch.equal(
        ((hr_imgs + 1) * 127.5).round().byte(), batches[0][0]
    )


def test_a_pair_that_no_longer_fits_is_replaced_and_named(tmp_path, photographs):
    list_file = list_of_pairs(tmp_path, [photograph[:20, :20] for photograph in photographs[:3]], 4, False)
    write(tmp_path / "LR/1.png", photographs[1][:19, :20])
    (tmp_path / "LR/2.png").unlink()
    dataset = SRDataset(list_file, 32, scale=4)
    assert all(np.array_equal(hr, lr.repeat(4, 1).repeat(4, 2)) for hr, lr in map(dataset.__getitem__, range(20)))
    said = "\n".join(dataset.bad_files)
    assert (
        re.search("LR/1.png: its size, 20x19, times 4 is not that of .*HR/1.png, 80x80", said) and "LR/2.png: no such" in said
    )


def test_a_list_of_pairs_is_for_its_scale_and_no_degradation(tmp_path, photographs):
    list_file = list_of_pairs(tmp_path, [photographs[0][:20, :20]], 4, True)
    for scale in (2, 8):
        with pytest.raises(utils.UserError, match=f"for --scale 4, not {scale}"):
            SRDataset(list_file, 32, scale=scale)
        with pytest.raises(utils.UserError, match=f"for --scale 4, not {scale}"):
            TestPairs(read_list(list_file), scale)
    with pytest.raises(utils.UserError, match="--degradation photo"):
        SRDataset(list_file, 32, degradation="photo", scale=4)
    content, before = json.loads(list_file.read_text()), SRDataset(list_file, 32, scale=4).fingerprint
    list_file.write_text(json.dumps(content["images"]))
    with pytest.raises(utils.UserError, match="another list"):  # the pack has LR images
        SRDataset(list_file, 32)
    (tmp_path / "train_images.pack.json").unlink()
    assert SRDataset(list_file, 32).fingerprint != before  # so a run is not resumed on it
    list_file.write_text(json.dumps(content | {"lr_images": []}))
    with pytest.raises(utils.UserError, match="not a list"):
        read_list(list_file)


@pytest.mark.parametrize("pack", ["on", "off"])
def test_both_stages_train_on_pairs_and_validate_on_theirs(work, photographs, vgg_file, capsys, pack):
    """LR images are negatives here, which no other way of making them gives."""
    for i, photograph in enumerate(photographs[:5]):
        write(work / f"HR/{i}.png", photograph)
        write(work / f"LR/{i}.png", 255 - downscale(crop_to_multiple(photograph, 4), 4))
    flags = ["--min-size", 32, "--validation-images", 1, "--pack", pack]
    call("create_data_lists", "--train-folders", "HR", "--lr-folders", "LR", *flags)
    steps = [*SMALL, "--steps=2", "--save-every=2"]
    call("train_srresnet", *steps, "--name", "one")
    more = ["--vgg-weights", vgg_file, *SMALL_GAN, "--init", "checkpoints/one/best.pth"]
    call("train_srgan", *[flag for flag in steps if "blocks" not in flag and "channels" not in flag], *more, "--name", "two")
    [validation] = TestPairs(images_of_set("validation"), 4)
    assert np.array_equal(validation[1], 255 - downscale(validation[2], 4))
    call("eval", "--test-sets", "validation", "--device", "cpu")
    assert json.loads(Path("results/eval/metrics.json").read_text())["bicubic"]["validation"][0]["psnr"] < 15
    capsys.readouterr()
    assert "--scale 4, not 2" in refusal(capsys, "train_srresnet", *steps, "--name", "x2", "--scale", 2)
    assert "--degradation photo" in refusal(capsys, "train_srresnet", *steps, "--name", "photo", "--degradation", "photo")
    assert not Path("checkpoints/x2").exists()
