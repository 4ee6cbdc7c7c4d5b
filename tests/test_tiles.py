"""Upscaling by tiles is upscaling the whole, in bounded memory and with little waste."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, environment
from helpers import with_statistics

import inference
import models
import utils
from inference import for_inference
from models import SRCNN, SRResNet
from pictures.formats import Frame
from weights import load_network


def inference_network(network):
    return for_inference(with_statistics(network))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def whole(network, lr_img):
    """The SR image of the network's forward pass over the mirrored image, without a tile, a block or a halo."""
    padded, rim = np.pad(lr_img, ((4, 4), (4, 4), (0, 0)), "symmetric"), 4 * network.config["scale"]
    with torch.inference_mode():
        sr = network(torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255)[0, :, rim:-rim, rim:-rim]
    return sr.add(1).mul(127.5).round().clamp(0, 255).permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("make", [SRCNN, lambda scale: SRResNet(scale, 5, 8), lambda scale: SRResNet(scale, 16, 4)])
@pytest.mark.parametrize("scale", models.SCALES)
def test_tiles_are_the_whole(make, scale, monkeypatch):
    network = inference_network(make(scale))
    monkeypatch.setattr(inference, "BLOCK", 24)
    for height, width, tile in ((33, 91, 16), (64, 47, 33), (131, 20, 50), (1, 90, 16), (17, 33, 16)):
        lr_img = picture(height, width)
        result = inference.upscale(network, lr_img, tile)
        assert result.shape == (scale * height, scale * width, 3) and result.dtype == np.uint8
        assert np.abs(result - whole(network, lr_img)).max() <= 1, (height, width, tile)


def test_a_margin_that_is_too_small_would_show():
    """The comparison above can fail."""
    network = inference_network(SRResNet(2, 5, 8))
    lr_img = picture(64, 64)
    network.features_margin = 2
    assert np.abs(inference.upscale(network, lr_img, 16) - whole(network, lr_img)).max() > 1


@pytest.mark.parametrize("make", [SRCNN, lambda scale: SRResNet(scale, 16, 4)])
def test_an_area_is_that_of_the_whole(make):
    """At each border and away from all, in pictures smaller and larger than the receptive field."""
    network = inference_network(make(2))
    for height, width in ((120, 150), (30, 20)):
        lr_img = picture(height, width)
        result = inference.upscale(network, lr_img)
        for top, left, bottom, right in ((0, 0, 20, 9), (60, 70, 75, 101), (height - 9, 3, height, 20), (0, 0, height, width)):
            bottom, right = min(bottom, height), min(right, width)
            top, left = min(top, bottom - 1), min(left, right - 1)
            area = inference.upscale_area(network, lr_img, (top, left, bottom, right))
            there = result[2 * top : 2 * bottom, 2 * left : 2 * right].astype(int)
            assert area.shape == there.shape and np.abs(area - there).max() <= 1


@pytest.mark.parametrize("name", ["srresnet_x4", "srgan_x4"])
def test_a_page_of_one_gray_has_no_rim(name):
    """Where convolutions see zeros beyond the edges, it is up to 18 levels off there."""
    network = for_inference(load_network(ROOT / "checkpoints" / f"{name}.pth"))
    for level in (0, 128, 255):
        page = np.full((20, 17, 3), level, np.uint8)
        assert np.abs(inference.upscale(network, page).astype(int) - level).max() <= 3


def test_tiles_of_16_bits():
    network = inference_network(SRResNet(2, 4, 8))
    lr_img = picture(50, 61).astype(np.uint16) * 257
    tiled, single = inference.upscale(network, lr_img, 16), inference.upscale(network, lr_img, 100)
    assert tiled.dtype == np.uint16 and np.abs(tiled.astype(int) - single).max() <= 257


def test_a_tile_that_does_not_fit_is_halved(monkeypatch):
    network, lr_img, tried = inference_network(SRResNet(2, 1, 4)), picture(70, 90), []
    upscale_tile = inference.upscale_tile

    def with_little_memory(network, lr_img, part, out):
        top, left, bottom, right = part
        tried.append(max(bottom - top, right - left))
        if tried[-1] > 25:
            raise torch.OutOfMemoryError("no")
        upscale_tile(network, lr_img, part, out)

    monkeypatch.setattr(inference, "upscale_tile", with_little_memory)
    progress = []
    result = inference.upscale(network, lr_img, progress=lambda done, total: progress.append((done, total)))
    assert tried[:2] == [90, 45] and max(tried[4:]) <= 25
    assert np.array_equal(result, inference.upscale(network, lr_img, 25)) and progress[-1] == (70 * 90, 70 * 90)
    assert progress == sorted(progress)


def test_no_memory_at_all_is_one_clear_error(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(inference, "upscale_tile", fail)
    with pytest.raises(utils.UserError, match="not enough memory even for a tile of 16"):
        inference.upscale(inference_network(SRResNet(2, 1, 4)), picture(40, 40))


def test_another_error_is_not_taken_for_want_of_memory(monkeypatch):
    def fail(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(inference, "upscale_tile", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        inference.upscale(inference_network(SRResNet(2, 1, 4)), picture(40, 40))


def test_overlap_wastes_at_most_a_quarter_of_the_work(monkeypatch):
    """Multiplications on a picture of 1500x2000, against those of the whole at once. One channel stands for 64."""
    network, work = for_inference(SRResNet(4, 16, 1)), {"features": 0, "reconstruct": 0}

    def count(module, _, output):
        work["features"] += output.shape[2] * output.shape[3]

    for block in network.body:
        block.register_forward_hook(count)
    reconstruct = network.reconstruct

    def counted(maps):
        work["reconstruct"] += maps.shape[2] * maps.shape[3]
        return reconstruct(maps)

    monkeypatch.setattr(network, "reconstruct", counted)
    monkeypatch.setattr(inference, "tile_that_fits", lambda _: inference.TILE)
    height, width = 1500, 2000
    inference.upscale(network, np.zeros((height, width, 3), np.uint8))
    # For a pixel of SRResNet x4: 33 convolutions of 64 to 64 channels and one of 3 to 64; two sub-pixel blocks and the tail.
    features, rest = 33 * 9 * 64 * 64 + 81 * 3 * 64, (1 + 4) * 9 * 64 * 256 + 16 * 81 * 64 * 3
    done = features * work["features"] / 16 + rest * work["reconstruct"]
    assert done / (height * width * (features + rest)) <= 1.25
    assert work["features"] / 16 >= height * width and work["reconstruct"] >= height * width


BOUNDED = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from inference import for_inference
from models import SRResNet
from devices import pick_device
from inference import upscale
network = for_inference(SRResNet(4, 1, 8), pick_device("cpu"))
torch.set_num_threads(1)  # beside other tests two are slower
upscale(network, np.zeros((100, 100, 3), np.uint8))
highest = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1e3
before = highest()
upscale(network, np.zeros((int(sys.argv[2]), 430, 3), np.uint8))
print(highest() - before)
"""


def ramp(dtype):
    """A frame of 64x64 with a ramp over the whole range, in one of its channels."""
    values = np.linspace(0, np.iinfo(dtype).max, 64 * 64).astype(dtype).reshape(64, 64)
    return Frame(np.stack([values, values[::-1], values.T], axis=2))


def test_16_bits_go_through_the_network_in_float32(monkeypatch):
    made = []

    def counted(network, device="cpu", dtype=torch.float32):
        made.append(dtype)
        return for_inference(network, device, dtype, plain=True)

    network = with_statistics(SRResNet(2, 1, 8))
    exact = for_inference(network, plain=True)
    monkeypatch.setattr(inference, "pick_dtype", lambda precision, _: torch.float32 if precision == "fp32" else torch.bfloat16)
    monkeypatch.setattr(inference, "for_inference", counted)
    both = inference.for_pictures(network, "cpu")
    inference.upscale_frame(both, ramp(np.uint8))
    assert made == [torch.bfloat16]  # nothing more, until it is needed
    for _ in range(2):
        result = inference.upscale_frame(both, ramp(np.uint16)).rgb
        assert np.array_equal(result, inference.upscale(exact, ramp(np.uint16).rgb))
    assert made == [torch.bfloat16, torch.float32]
    asked = inference.upscale_frame(inference.for_pictures(network, "cpu", "bf16"), ramp(np.uint16)).rgb
    assert len(np.unique(asked)) < len(np.unique(result)) / 4
    made.clear()
    inference.upscale_frame(inference.for_pictures(network, "cpu", "fp32"), ramp(np.uint16))
    assert made == [torch.float32]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_grows_with_the_output_alone():
    def megabytes(height):
        command = [sys.executable, "-c", BOUNDED, str(ROOT), str(height)]
        return float(subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout)

    low, high = megabytes(2 * 430), megabytes(8 * 430)  # enough for the heap's own ups and downs to be small against it
    output = 16 * 3 * 6 * 430 * 430 / 1e6  # of the further 6 tiles
    assert high - low < output * 1.3 + 20
