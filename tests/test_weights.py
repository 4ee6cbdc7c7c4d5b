"""Weights are read from checkpoints, safetensors files and other implementations' state dicts, or refused in one line."""

import re
import sys

import pytest
import torch

from models import Generator, SRResNet
from utils import UserError
from weights import config_of, load_checkpoint, load_network, save_checkpoint, start_from

SGRVINOD = [  # patterns of our names, and what the tutorial calls the same layers
    (r"head\.", "conv_block1.conv_block."),
    (r"body\.(\d+)\.layers\.([012])\.", r"residual_blocks.\1.conv_block1.conv_block.\2."),
    (r"body\.(\d+)\.layers\.3\.", r"residual_blocks.\1.conv_block2.conv_block.0."),
    (r"body\.(\d+)\.layers\.4\.", r"residual_blocks.\1.conv_block2.conv_block.1."),
    (r"body_end\.", "conv_block2.conv_block."),
    (r"upsampling\.(\d+)\.0\.", r"subpixel_convolutional_blocks.\1.conv."),
    (r"upsampling\.(\d+)\.2\.", r"subpixel_convolutional_blocks.\1.prelu."),
    (r"tail\.", "conv_block3.conv_block."),
]
LEFTTHOMAS = [
    (r"head\.", "block1."),
    (r"body\.0\.layers\.0\.", "block2.conv1."),
    (r"body\.0\.layers\.1\.", "block2.bn1."),
    (r"body\.0\.layers\.2\.", "block2.prelu."),
    (r"body\.0\.layers\.3\.", "block2.conv2."),
    (r"body\.0\.layers\.4\.", "block2.bn2."),
    (r"body_end\.", "block7."),
    (r"upsampling\.(\d+)\.0\.", r"block8.\1.conv."),
    (r"upsampling\.(\d+)\.2\.", r"block8.\1.prelu."),
    (r"tail\.0\.", "block8.2."),
]


def tiny(cls=SRResNet, scale=4):
    torch.manual_seed(scale)
    return cls(scale, blocks=1, channels=8).eval()


def renamed(weights, rules):
    """A state dict with other names, in the same order."""

    def other_name(key):
        return next(re.sub(rule, name, key, count=1) for rule, name in rules if re.match(rf"(net\.)?{rule}", key))

    return {other_name(key): value for key, value in weights.items()}


def saved(tmp_path, state, name="weights.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def refusal(path):
    """The message with which a file is refused."""
    with pytest.raises(UserError) as caught:
        load_network(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(" ".join(message.split())) < 500
    return message


def same_weights(network, other):
    pairs = zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(value, other_value) for value, other_value in pairs)


@pytest.mark.parametrize("cls", [SRResNet, Generator])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_config_is_read_off_the_weights(cls, scale):
    network = cls(scale, blocks=2, channels=4)
    assert config_of(network.state_dict()) == network.config
    assert config_of(dict(sorted(network.state_dict().items()))) == network.config


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"generator": s}])
def test_bare_and_held_state_dicts(tmp_path, wrap):
    network = tiny()
    prefixed = {f"module._orig_mod.{key}": value for key, value in network.state_dict().items()}
    assert same_weights(load_network(saved(tmp_path, wrap(prefixed))), network)


def test_moving_average_is_preferred(tmp_path):
    network, ema = tiny(), tiny(scale=2)
    state = {"config": ema.config, "weights": network.state_dict(), "ema": ema.state_dict(), "step": 3}
    assert same_weights(load_network(saved(tmp_path, state)), ema)


def test_safetensors_with_and_without_our_metadata(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    from export import safetensors_bytes

    network = tiny(Generator, scale=3)
    path, bare = tmp_path / "ours.safetensors", tmp_path / "bare.safetensors"
    path.write_bytes(safetensors_bytes(network, step=7))
    assert load_checkpoint(path)["step"] == 7
    safetensors.save_file(network.state_dict(), bare)
    for file in (path, bare):
        loaded = load_network(file)
        assert loaded.config == network.config
        assert same_weights(loaded, network)


def test_safetensors_that_cannot_be_read(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    path = tmp_path / "weights.safetensors"
    assert "no such file" in refusal(path)
    path.write_bytes(b"not safetensors at all")
    assert "not a whole safetensors file" in refusal(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install safetensors" in refusal(path)


def test_tutorial_weights_take_normalised_input(tmp_path, capsys):
    network = tiny(Generator)
    loaded = load_network(saved(tmp_path, {"generator": renamed(network.state_dict(), SGRVINOD)}))
    assert "sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution" in capsys.readouterr().err
    assert loaded.config == network.config | {"imagenet_input": True}
    assert same_weights(loaded, network)
    lr_imgs = torch.rand(1, 3, 6, 9)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (lr_imgs - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(lr_imgs), network(normalised))
    save_checkpoint(tmp_path / "again.pth", {"config": loaded.config, "weights": loaded.state_dict(), "step": 1})
    with pytest.raises(UserError, match="normalised"):
        start_from(tmp_path / "again.pth", tiny())


def test_leftthomas_weights(tmp_path, capsys):
    network = tiny()
    weights = renamed(network.state_dict(), LEFTTHOMAS)
    assert same_weights(load_network(saved(tmp_path, weights)), network)
    assert "leftthomas/SRGAN" in capsys.readouterr().err
    older = {key: value for key, value in weights.items() if "num_batches_tracked" not in key}
    assert same_weights(load_network(saved(tmp_path, older)), network)


def test_unknown_names_are_told(tmp_path, capsys):
    network = tiny()
    weights = {f"part{key}": value for key, value in network.state_dict().items()}
    assert same_weights(load_network(saved(tmp_path, weights)), network)
    assert "unknown names" in capsys.readouterr().err


def test_other_layers_are_refused(tmp_path):
    weights = renamed(tiny().state_dict(), LEFTTHOMAS)
    per_channel = weights | {"block1.1.weight": torch.zeros(8)}
    assert "block1.1.weight (8,) is where head.1.weight (1,) should be" in refusal(saved(tmp_path, per_channel))
    no_biases = {key: value for key, value in weights.items() if key != "block2.conv1.bias"}
    assert "block2.bn1.weight (8,) is where body.0.layers.0.bias (8,)" in refusal(saved(tmp_path, no_biases))
    assert "in place of" in refusal(saved(tmp_path, weights | {"block9.bias": torch.zeros(3)}))
    out_of_order = dict(reversed(weights.items()))
    assert "other layers than ours" in refusal(saved(tmp_path, out_of_order))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"epoch": 3},
        {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.2.weight": torch.zeros(64, 64, 3, 3)},
        {"0.weight": torch.zeros(8, 3, 9, 9)},
    ],
)
def test_what_is_no_network(tmp_path, state):
    assert "no weights of a network that upscales" in refusal(saved(tmp_path, state))


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: {"epoch": 3, "model": n}])
def test_pickled_modules_are_refused_with_the_way_out(tmp_path, new_format, wrap):
    path = tmp_path / "module.pth"
    torch.save(wrap(tiny()), path, _use_new_zipfile_serialization=new_format)
    message = refusal(path)
    assert "models.SRResNet" in message
    assert "torch.save(model.state_dict()" in message


def test_damaged_files(tmp_path):
    path = saved(tmp_path, tiny().state_dict())
    whole = path.read_bytes()
    for damaged in (whole[:-2000], whole[: len(whole) // 2], b"", b"# no weights"):
        path.write_bytes(damaged)
        assert "whole" in refusal(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_program_of_torchscript_is_told(tmp_path, recwarn):
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 3, 1)), str(tmp_path / "a.pt"))
    recwarn.clear()
    assert "a program of TorchScript, not weights" in refusal(tmp_path / "a.pt")
    assert not recwarn
