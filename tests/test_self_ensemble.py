"""The mean over flips and turns, `--self-ensemble`: what it is, in tiles, for every kind of picture, as a row of the table."""

import json

import numpy as np
import pytest
import torch
from conftest import call, refusal
from helpers import with_statistics
from PIL import Image
from torch import nn

import inference
import test as test_script
from inference import SelfEnsemble, for_inference, for_pictures, upscale, upscale_frame
from models import SRCNN, SRResNet
from pictures.formats import Frame, read_picture
from weights import save_checkpoint


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (*shape, 3), dtype)


def random_network(make):
    torch.manual_seed(1)
    return for_inference(with_statistics(make()), plain=True).double()


def eight(network, lr_img):
    """What the network makes of the flips and turns of an array, turned back: [(H, W, 3) float64 in levels of 255, ...]."""
    results, rim = [], 4 * network.config["scale"]
    lr_img = np.pad(lr_img, ((4, 4), (4, 4), (0, 0)), "symmetric")
    for mirrored in (False, True):
        for quarters in range(4):
            seen = np.rot90(lr_img[:, ::-1] if mirrored else lr_img, quarters)
            with torch.inference_mode():
                sr = network(torch.from_numpy(seen / 255).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
            sr = np.rot90(127.5 * (sr + 1), -quarters)[rim:-rim, rim:-rim]
            results.append(sr[:, ::-1] if mirrored else sr)
    return results


NETWORKS = [lambda: SRCNN(2), lambda: SRResNet(2, 5, 4), lambda: SRResNet(3, 1, 4), lambda: SRResNet(4, 2, 4)]


@pytest.mark.parametrize("make", NETWORKS)
def test_it_is_the_mean_of_eight_rounded_once(make):
    network, lr_img = random_network(make), noise(9, 13)
    results = eight(network, lr_img)
    mean = np.mean(results, axis=0)
    ours = upscale(SelfEnsemble(network), lr_img)
    clear = np.abs(mean % 1 - 0.5) > 1e-3
    assert clear.mean() > 0.99 and np.array_equal(ours[clear], mean.round().clip(0, 255).astype(np.uint8)[clear])
    rounded_twice = np.mean([result.round().clip(0, 255) for result in results], axis=0).round()
    assert (rounded_twice != ours).any() and (results[0].round().clip(0, 255) != ours).any()


@pytest.mark.parametrize("make", NETWORKS)
def test_tiles_are_the_whole(make, monkeypatch):
    network, lr_img = SelfEnsemble(random_network(make)), noise(11, 21)
    once = upscale(network, lr_img, 100)
    monkeypatch.setattr(inference, "BLOCK", 9)
    assert np.array_equal(upscale(network, lr_img, 16), once)


def symmetric(weight):
    """The mean of the kernels over flips and turns."""
    weight = torch.stack([torch.rot90(weight, quarters, (2, 3)) for quarters in range(4)]).mean(0)
    return (weight + weight.flip(3)) / 2


@pytest.mark.parametrize("make", [*NETWORKS, lambda: SRResNet(8, 1, 4)])
def test_a_network_that_commutes_with_turns_is_left_as_it_is(make):
    torch.manual_seed(0)
    network = with_statistics(make())
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(symmetric(layer.weight))
        for block in getattr(network, "upsampling", ()):  # one value for the pixels that a pixel becomes
            convolution, count = block[0], block[1].upscale_factor ** 2
            for values in (convolution.weight, convolution.bias):
                values.copy_(values[::count].repeat_interleave(count, dim=0))
    network = for_inference(network, plain=True).double()
    lr_img = noise(9, 14)
    once = upscale(network, lr_img)
    assert np.array_equal(upscale(SelfEnsemble(network), lr_img), once) and once.std() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_works_with_fused_layers_in_every_precision(dtype):
    """And the result of a turned picture is the turned result."""
    torch.manual_seed(2)
    network = SelfEnsemble(for_inference(SRResNet(4, 2, 8), dtype=dtype))
    lr_img = noise(20, 31)
    sr_img = upscale(network, lr_img).astype(int)
    turned = upscale(network, np.ascontiguousarray(np.rot90(lr_img)))
    assert np.abs(np.rot90(sr_img) - turned).max() <= 1 and sr_img.std() > 1


@pytest.fixture
def weights(work):
    torch.manual_seed(3)
    network = SRResNet(2, 1, 4)
    save_checkpoint(work / "small.pth", {"config": network.config, "weights": network.state_dict(), "step": 1})
    return network


def test_16_bits_alpha_and_gray_go_through_it(weights, monkeypatch):
    monkeypatch.setattr(inference, "pick_dtype", lambda *_: torch.bfloat16)  # so that 16 bits need their own copy
    network = for_pictures(weights, "cpu", self_ensemble=True)
    exact = SelfEnsemble(for_inference(weights))
    deep = noise(12, 18, dtype=np.uint16)
    frame = upscale_frame(network, Frame(deep, np.full((12, 18), 65535, np.uint16)))
    assert np.array_equal(frame.rgb, upscale(exact, deep)) and (frame.alpha == 65535).all()
    assert not np.array_equal(frame.rgb, upscale(exact.network, deep))
    gray = upscale_frame(network, Frame(np.repeat(noise(12, 18)[..., :1], 3, axis=2))).rgb
    assert (np.ptp(gray, axis=2) == 0).all()


def test_the_flag_reaches_pictures_animations_and_video(weights, work):
    exact = SelfEnsemble(for_inference(weights))
    frames = [noise(16, 20), noise(16, 20)[::-1]]
    first, second = map(Image.fromarray, frames)
    first.save("a.png")
    first.save("b.webp", save_all=True, append_images=[second], lossless=True, duration=50)
    flags = ["--weights", "small.pth", "--device", "cpu", "--precision", "fp32", "--self-ensemble"]
    call("test", "a.png", "b.webp", *flags)
    still, *moving = [
        frame.rgb for name in ("a_x2.png", "b_x2.webp") for frame in read_picture(work / "results/test" / name).frames
    ]
    for result, lr_img in zip((still, *moving), (frames[0], *frames), strict=True):
        assert np.array_equal(result, upscale(exact, lr_img))


def test_video_goes_through_it(weights, work, monkeypatch):
    av = pytest.importorskip("av", reason="the package av is missing")
    with av.open("a.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for packet in (stream.encode(av.VideoFrame.from_ndarray(noise(32, 32), format="rgb24")), stream.encode()):
            file.mux(packet)
    seen = []

    def noted(network, frame, *rest):
        seen.append(type(network))
        return upscale_frame(network, frame, *rest)

    monkeypatch.setattr(test_script, "upscale_frame", noted)
    call("test", "a.mp4", "--weights", "small.pth", "--device", "cpu", "--self-ensemble")
    assert seen == [SelfEnsemble] and (work / "results/test/a_x2.mp4").exists()


def test_it_is_a_row_of_the_table(weights, work, image_folder, capsys):
    flags = ["--weights", "small.pth", "--test-sets", f"set={image_folder}", "--device", "cpu", "--precision", "fp32"]
    call("eval", *flags, "--self-ensemble")
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| bicubic", "| small", "| small+"]
    figures = json.loads((work / "results/eval/metrics.json").read_text())
    call("eval", *flags)
    alone = json.loads((work / "results/eval/metrics.json").read_text())
    assert figures["small"] == alone["small"] and figures["small+"] != alone["small"]


def test_there_must_be_a_network_and_a_name_for_its_row(weights, work, image_folder, capsys):
    flags = ["--test-sets", image_folder, "--self-ensemble"]
    assert "give --weights too" in refusal(capsys, "eval", *flags)
    (work / "small+.pth").write_bytes((work / "small.pth").read_bytes())
    assert "called small+" in refusal(capsys, "eval", *flags, "--weights", "small.pth", "small+.pth")
