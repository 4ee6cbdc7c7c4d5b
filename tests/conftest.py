"""What the tests share: small photographs, lists of them, a random VGG19, and the scripts run within this process."""

import importlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the scripts are no package

import torch
from helpers import random_vgg19
from PIL import Image
from skimage import data

torch.set_num_threads(1)  # networks as small as those of the tests are slower on more


@pytest.fixture(scope="session")
def photographs():
    """Twelve pictures of several sizes, cut from the photographs that scikit-image brings along: (H, W, 3) uint8."""
    sources = data.astronaut(), data.chelsea(), data.coffee(), data.rocket()
    shapes = (72, 96), (96, 72), (80, 80)
    return [
        np.ascontiguousarray(source[60 + 50 * i :, 120 + 70 * i :][:height, :width])
        for source in sources
        for i, (height, width) in enumerate(shapes)
    ]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, photographs):
    folder = tmp_path_factory.mktemp("images")
    for i, photograph in enumerate(photographs):
        Image.fromarray(photograph).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def lists(tmp_path_factory, image_folder):
    """Data folders with the lists of the small photographs, one without and one with a pack."""
    folders = {}
    for pack in ("off", "on"):
        folders[pack] = tmp_path_factory.mktemp(f"data_{pack}")
        make_lists(folders[pack], image_folder, "--pack", pack)
    return folders


@pytest.fixture(scope="session")
def vgg_state():
    return random_vgg19()


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory, vgg_state):
    """The first layers are enough for --vgg-layer 22."""
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    torch.save({key: value for key, value in vgg_state.items() if int(key.split(".")[0]) < 10}, path)
    return path


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The scripts write to ./checkpoints and ./results; what they do to the signals is undone."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(script, *argv):
    """Run a script as `python SCRIPT.py ARGV...` would, but in this process, which has PyTorch imported already."""
    module = importlib.import_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, argv)])
        args = module.parse_arguments()
    with module.user_errors():
        module.main(args)


def refusal(capsys, script, *argv):
    """The one line on stderr with which a script refuses its arguments, at exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(script, *argv)
    assert stopped.value.code == 2
    return one_line(capsys.readouterr().err)


def one_line(stderr):
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr


def make_lists(data_folder, image_folder, *argv):
    """All lists of one folder: in two calls, since one call trains on no image of its test folders."""
    to = ["--output-folder", data_folder, *argv]
    call("create_data_lists", "--train-folders", image_folder, "--validation-images", 2, "--min-size", 32, *to)
    call("create_data_lists", "--test-folders", image_folder, *to)


def environment():
    """For the few scripts that are run as processes of their own."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
