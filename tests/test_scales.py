"""Every scale, and SRCNN, through the whole pipeline: listing, both stages of training, evaluating and upscaling."""

import csv
import json
from pathlib import Path

import pytest
from conftest import call, make_lists, refusal
from PIL import Image

from weights import load_network

FLAGS = ["--device", "cpu", "--precision", "fp32", "--workers", 0, "--batch-size", 4, "--save-every", 100]


def train(scale, *flags, run=None):
    """A short run of stage 1, checkpoints/xSCALE or `run`: the rows of its log."""
    run = run or f"x{scale}"
    sizes = ["--scale", scale, "--crop-size", max(48, 8 * scale)]  # 8 LR pixels or more
    call("train_srresnet", *FLAGS, *sizes, "--data-folder", "data", "--name", run, "--learning-rate", 3e-3, *flags)
    return list(csv.DictReader(Path(f"results/{run}/log.csv").read_text().splitlines()))


def improvement(rows, figure):
    values = [float(row[figure]) for row in rows if row[figure]]
    return values[-1] - values[0]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_scale_from_listing_to_upscaling(scale, work, image_folder, vgg_file, capsys):
    make_lists(work / "data", image_folder)
    rows = train(scale, "--blocks", 1, "--channels", 8, "--steps", 60, "--validate-every", 20, "--log-every", 20)
    assert improvement(rows, "loss") < 0 and improvement(rows, "validation/psnr") > 0.5

    stage_1 = f"checkpoints/x{scale}/best.pth"
    gan = ["--init", stage_1, "--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 2, "--steps", 3]
    call("train_srgan", *FLAGS, "--data-folder", "data", "--name", "gan", "--scale", scale, "--crop-size", 48, *gan)
    stage_2 = "checkpoints/gan/best.pth"
    assert load_network(stage_2).config == {"arch": "srgan", "scale": scale, "blocks": 1, "channels": 8}

    call("eval", "--weights", stage_1, stage_2, "--test-sets", "validation", "--device", "cpu")
    figures = json.loads(Path("results/eval/metrics.json").read_text())
    assert list(figures) == ["bicubic", f"x{scale}_best", "gan_best"]
    assert f"| x{scale}, PSNR / SSIM |" in capsys.readouterr().out
    assert all(len(entries["validation"]) == 2 for entries in figures.values())

    picture = sorted(image_folder.iterdir())[0]
    call("test", picture, "--weights", stage_2, "--device", "cpu")
    width, height = Image.open(picture).size
    assert Image.open(f"results/test/{picture.stem}_x{scale}.png").size == (scale * width, scale * height)


@pytest.mark.parametrize("scale", [2, 8])
def test_another_scale_starts_from_x4(scale, work, image_folder, capsys):
    make_lists(work / "data", image_folder)
    train(4, "--blocks", 1, "--channels", 8, "--steps", 60)
    capsys.readouterr()
    options = ["--blocks", 1, "--channels", 8, "--steps", 1]
    fresh = float(train(scale, *options, run="fresh")[0]["loss"])
    started = float(train(scale, *options, "--init", "checkpoints/x4/last.pth", run="started")[0]["loss"])
    assert started < fresh
    out = capsys.readouterr().out
    assert ("upsampling.1.0.weight" in out.split("not used: ")[1]) == (scale == 2)
    assert ("upsampling.2.0.weight" in out.split("so untrained: ")[1].split("\n")[0]) == (scale == 8)


def test_srcnn_trains_and_stands_in_the_table(work, image_folder, capsys):
    make_lists(work / "data", image_folder)
    rows = train(4, "--arch", "srcnn", "--steps", 80, "--validate-every", 20, "--log-every", 20)
    assert improvement(rows, "loss") < 0 and improvement(rows, "validation/psnr") > 0.5
    call("eval", "--weights", "checkpoints/x4/best.pth", "--test-sets", "validation", "--device", "cpu")
    assert "| x4_best | " in capsys.readouterr().out


def test_rows_of_blends(work, image_folder, capsys):
    make_lists(work / "data", image_folder)
    for seed in (0, 1):
        train(4, "--blocks", 1, "--channels", 8, "--steps", 1, "--seed", seed, run=f"seed{seed}")
    files = [f"checkpoints/seed{seed}/best.pth" for seed in (0, 1)]
    flags = ["--test-sets", "validation", "--device", "cpu"]
    call("eval", "--weights", *files, *flags, "--blend", 0, 0.5, 1)
    figures = json.loads(Path("results/eval/metrics.json").read_text())
    assert list(figures) == ["bicubic", "seed0_best", "seed1_best", "blend_0", "blend_0.5", "blend_1"]
    assert figures["blend_0"] == figures["seed0_best"] and figures["blend_1"] == figures["seed1_best"]
    assert figures["blend_0.5"] not in (figures["seed0_best"], figures["seed1_best"])
    assert "two files" in refusal(capsys, "eval", "--weights", files[0], *flags, "--blend", 0.5)
