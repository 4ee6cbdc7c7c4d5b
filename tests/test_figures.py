"""The figures of the page that explains the method: drawn by one script, from whatever weights are there."""

import hashlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, one_line
from test_docs import METHOD, TEXTS, load

import train_srgan
from models import Discriminator, Generator, ResidualBlock, SRResNet
from utils import UserError
from weights import save_checkpoint

pytest.importorskip("matplotlib")
CURVES = {"curves_stage1.svg", "curves_stage2.svg"}  # of benchmarks/plot_runs.py


@pytest.fixture(scope="module")
def script():
    return load("docs/figures.py")


@pytest.fixture
def small(script, tmp_path, monkeypatch):
    """The script with tiny weights in place of those that ship, and of those that it would train; returns `draw(*names)`."""
    torch.manual_seed(0)
    for name, network in {"srresnet_x4": SRResNet(4, 4, 8), "srgan_x4": Generator(4, 4, 8)}.items():
        save_checkpoint(tmp_path / f"{name}.pth", {"config": network.config, "weights": network.state_dict(), "step": 1})
    trained = []

    def train(name, words, folder):
        words = shlex.split(words)
        if name == "create_data_lists.py":
            (folder / "data").mkdir()
        else:
            args = train_srgan.parse_arguments(words)  # which refuses flags that there are not
            trained.append(args.name)
            state = {"config": network.config, "weights": network.state_dict()}
            if args.discriminator == "patch":  # the only one that is drawn
                state["discriminator"] = Discriminator(args.discriminator_channels, patches=True).state_dict()
            (folder / "checkpoints" / args.name).mkdir(parents=True)
            for file in ("last.pth", "best.pth"):
                save_checkpoint(folder / "checkpoints" / args.name / file, state | {"step": args.steps})

    def draw(*names):
        trained.clear()
        flags = ["--vgg-weights", "vgg.pth", "--output", str(tmp_path), "--work", str(tmp_path / "work"), "--precision", "fp32"]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["figures.py", *names, *flags])
            patch.setattr(script, "CHECKPOINTS", tmp_path)
            patch.setattr(script, "START", tmp_path / "srresnet_x4.pth")
            patch.setattr(script, "PANELS", ("chelsea",))
            patch.setattr(script, "TRAINING", ("coffee",))
            patch.setattr(script, "load_lpips", lambda _: lambda sr_img, hr_img: 0.5)
            patch.setattr(script, "python", train)
            script.main(script.parse_arguments())
        return list(trained)

    return draw


def test_the_page_shows_what_the_script_draws(script):
    for name in METHOD:
        shown = set(re.findall(r"\]\(images/([^)]+)\)", TEXTS[name]))
        assert {Path(figure).stem for figure in shown - CURVES} == set(script.NAMES)
    assert sum((ROOT / "docs/images" / image).stat().st_size for image in shown) < 1_600_000


def test_each_figure_is_drawn_by_name(script, small, tmp_path):
    names = [name for name in script.NAMES if name not in ("content", "networks")]  # for which VGG19 would be made
    small(*names)
    drawn = [path for path in tmp_path.iterdir() if path.suffix in (".webp", ".svg")]
    assert sorted(path.stem for path in drawn) == sorted(names)
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_small_trainings_are_kept_as_long_as_they_are_the_same(script, small, tmp_path):
    first = small("losses")
    assert len(first) == len(set(first)) == len(script.RUNS)
    assert small("losses") == []
    assert len(small("losses", "--steps", "3")) == len(first)
    network = SRResNet(4, 4, 8)
    save_checkpoint(tmp_path / "srresnet_x4.pth", {"config": network.config, "weights": network.state_dict(), "step": 2})
    assert not set(small("losses")) & set(first)


def test_the_same_weights_give_the_same_file(small, tmp_path):
    hashes = []
    for _ in range(2):
        small("plane", "sub_pixel")
        hashes.append([hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("plane.svg", "sub_pixel.webp")])
    assert hashes[0] == hashes[1]


def test_shapes_are_those_of_the_network(script):
    network = SRResNet(2, 5, 8)
    network.joins_last_shuffle = False
    assert script.stages(network, (3, 6, 10), (ResidualBlock,)) == [
        ("conv 9x9\nPReLU", 1, (8, 6, 10)),
        ("residual\nblock", 5, (8, 6, 10)),
        ("conv 3x3\nBN", 1, (8, 6, 10)),
        ("conv 3x3", 1, (32, 6, 10)),
        ("pixel\nshuffle\nPReLU", 1, (8, 12, 20)),
        ("conv 9x9\ntanh", 1, (3, 12, 20)),
    ]
    patches = script.stages(Discriminator(4, patches=True), (3, 32, 32))
    assert patches[-1] == ("conv 1x1", 1, (1, 2, 2)) and patches[1] == ("conv 3x3\nstride 2\nBN\nLeakyReLU", 1, (4, 16, 16))


@pytest.mark.parametrize("words", [("plan",), ("plane", "gram")])
def test_a_figure_that_there_is_not_is_refused(script, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["figures.py", *words])
    with pytest.raises(SystemExit) as stopped:
        script.parse_arguments()
    assert stopped.value.code == 2 and words[-1] in capsys.readouterr().err


def test_a_training_that_fails_is_told(script, tmp_path, capfd):
    with pytest.raises(UserError, match="train_srgan.py failed"):
        script.python("train_srgan.py", "--no-such-flag", tmp_path)
    assert "no-such-flag" in one_line(capfd.readouterr().err)
