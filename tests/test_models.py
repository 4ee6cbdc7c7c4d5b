"""The networks against the paper's section 2.1 and figure 4."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import with_statistics
from torch import nn

import layers
import models
from inference import for_inference
from models import SRCNN, Discriminator, Generator, SRResNet, TruncatedVGG19, build_network


def count(network):
    return sum(p.numel() for p in network.parameters())


def describe(layer, inputs):
    if isinstance(layer, nn.Conv2d):
        assert layer.padding == (layer.kernel_size[0] // 2,) * 2
        return f"conv{layer.kernel_size[0]} {layer.in_channels}-{layer.out_channels} /{layer.stride[0]}"
    if isinstance(layer, nn.BatchNorm2d):
        return "bn"
    if isinstance(layer, nn.PReLU):
        assert layer.num_parameters == 1
    if isinstance(layer, nn.LeakyReLU):
        return f"leaky {layer.negative_slope}"
    if isinstance(layer, nn.PixelShuffle):
        return f"shuffle {layer.upscale_factor}"
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features}-{layer.out_features}"
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return f"pool {layer.output_size}"
    return type(layer).__name__.lower()


def layers_in_order(network, imgs):
    """The layers in the order in which data goes through them (that of `modules()` is only that of the constructor)."""
    order = []
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, inputs, _: order.append(describe(layer, inputs)))
    network(imgs)
    return order


def test_parameter_counts():
    with torch.device("meta"):
        assert count(SRResNet()) == 1_549_462
        assert count(Generator()) == 1_549_462
        assert count(Discriminator()) == 23_565_505


@pytest.mark.parametrize("scale, factors", [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_srresnet_has_the_layers_of_the_paper(scale, factors):
    with torch.device("meta"):
        order = layers_in_order(SRResNet(scale), torch.zeros(1, 3, 24, 24))
    block = ["conv3 64-64 /1", "bn", "prelu", "conv3 64-64 /1", "bn"]
    upsampling = [[f"conv3 64-{64 * factor**2} /1", f"shuffle {factor}", "prelu"] for factor in factors]
    expected = ["conv9 3-64 /1", "prelu", *16 * block, "conv3 64-64 /1", "bn", *sum(upsampling, []), "conv9 64-3 /1", "tanh"]
    assert order == expected


def test_srresnet_has_the_skips_of_the_paper():
    torch.manual_seed(0)
    network, lr_imgs = SRResNet(4, blocks=2, channels=8), torch.rand(2, 3, 12, 12)
    block, x = network.body[0], torch.randn(2, 8, 12, 12)
    assert torch.equal(block(x), x + block.layers(x))
    nn.init.zeros_(block.layers[4].weight)
    assert torch.equal(block(x), x)  # without its branch a block hands its input through, with no activation after the sum
    head = network.head(lr_imgs)
    long_skip = network.body_end(network.body(head))
    assert torch.allclose(network(lr_imgs), network.tail(network.upsampling(head + long_skip)), atol=1e-6)


@pytest.mark.parametrize("scale", models.SCALES)
def test_the_joined_tail_and_the_one_slope_are_the_plain_layers(scale, monkeypatch):
    """What is computed in a quicker way, against the paper's layers as PyTorch has them, with the gradients."""
    torch.manual_seed(0)
    network = SRResNet(scale, blocks=1, channels=4).double()
    for slope, module in zip((-0.2, 0.1, 0.9, 1.5), (m for m in network.modules() if isinstance(m, nn.PReLU))):
        nn.init.constant_(module.weight, slope)
    lr_imgs = torch.rand(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)

    def result_and_gradients():
        sr_imgs = network(lr_imgs)
        return sr_imgs, *torch.autograd.grad(sr_imgs.square().sum(), [lr_imgs, *network.parameters()])

    ours = result_and_gradients()
    monkeypatch.setattr(SRResNet, "joins_last_shuffle", False)
    monkeypatch.setattr(layers.PReLU, "forward", nn.PReLU.forward)
    for one, other in zip(ours, result_and_gradients(), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


PLACES = [("cpu", 1, 4, True), ("cuda", 1, 64, False), ("cuda", 4, 64, True), ("cuda", 1, 128, True), ("mps", 1, 128, False)]


@pytest.mark.parametrize("device, count, side, joined", PLACES)
def test_the_last_shuffle_is_joined_where_that_is_quicker(device, count, side, joined, monkeypatch):
    """On CUDA for many pixels, as was measured; a stand-in for the maps, which only tells where it lies."""
    network, way = SRResNet(blocks=1, channels=4), []
    monkeypatch.setattr(layers.TailConvolution, "with_shuffle", lambda self, x, factor: way.append("joined") or x)
    monkeypatch.setattr(layers.TailConvolution, "forward", lambda self, x: way.append("plain") or x)
    network.upsampling = nn.Sequential(nn.Identity(), nn.ModuleList([nn.Identity(), nn.PixelShuffle(2), nn.Identity()]))
    network.upsampling.forward = lambda x: x
    maps = torch.empty(count, 4, side, side).as_subclass(type("Elsewhere", (torch.Tensor,), {"device": torch.device(device)}))
    network.reconstruct(maps)
    assert way == ["joined" if joined else "plain"]


def test_discriminator_has_the_layers_of_the_paper():
    with torch.device("meta"):
        order = layers_in_order(Discriminator(), torch.zeros(2, 3, 96, 96))
    expected = ["conv3 3-64 /1", "leaky 0.2"]
    pairs = [(64, 64, 2), (64, 128, 1), (128, 128, 2), (128, 256, 1), (256, 256, 2), (256, 512, 1), (512, 512, 2)]
    for in_channels, out_channels, stride in pairs:
        expected += [f"conv3 {in_channels}-{out_channels} /{stride}", "bn", "leaky 0.2"]
    assert order == [*expected, "pool 6", "linear 18432-1024", "leaky 0.2", "linear 1024-1"]


def test_discriminator_takes_any_size_and_gives_logits():
    torch.manual_seed(0)
    network = Discriminator(4)
    for size in (16, 32, 97):
        assert network(torch.rand(3, 3, size, size)).shape == (3,)
    nn.init.constant_(network.classifier[-1].bias, 7.0)
    assert network(torch.rand(3, 3, 32, 32)).min() > 1  # a sigmoid would keep it below


@pytest.mark.parametrize("scale", models.SCALES)
@pytest.mark.parametrize("make", [SRCNN, lambda scale: SRResNet(scale, 1, 8), lambda scale: Generator(scale, 1, 8)])
def test_sizes_ranges_and_config(make, scale):
    torch.manual_seed(0)
    network = make(scale)
    sr_imgs = network(torch.rand(2, 3, 9, 13))
    assert sr_imgs.shape == (2, 3, 9 * scale, 13 * scale)
    if not isinstance(network, SRCNN):
        assert sr_imgs.abs().max() <= 1
    assert list(build_network(network.config).state_dict()) == list(network.state_dict())


@pytest.mark.parametrize("scale", [0, 1, 5, 16, 4.5])
def test_other_scales_are_refused(scale):
    for make in (SRCNN, SRResNet, Generator):
        with pytest.raises(ValueError, match="scale"):
            make(scale)


def test_srcnn_has_the_layers_of_its_paper():
    network = SRCNN(4)
    order = layers_in_order(network, torch.rand(1, 3, 8, 8))
    assert order == ["conv9 3-64 /1", "relu", "conv5 64-32 /1", "relu", "conv5 32-3 /1"]
    # With layers that hand the image through, what is left is bicubic upsampling and the change of range.
    network.layers = nn.Identity()
    lr_imgs = torch.rand(1, 3, 8, 8)
    expected = 2 * F.interpolate(lr_imgs, scale_factor=4, mode="bicubic") - 1
    assert torch.allclose(network(lr_imgs), expected)


@pytest.mark.parametrize("config", [{}, {"arch": "vit"}, {"arch": "srcnn", "blocks": 3}, {"arch": "srresnet", "scale": 5}])
def test_a_config_of_no_network_is_refused(config):
    with pytest.raises(ValueError):
        build_network(config)


# TruncatedVGG19


def features_by_hand(vgg_state, i, j, imgs, kind=nn.ReLU):
    """torchvision's VGG19, walked through until the ReLU of the j-th convolution after i - 1 max-pools, or until itself."""
    layers = models.vgg19_features()
    layers.load_state_dict(vgg_state)
    x = torchvision.transforms.functional.normalize((imgs + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pools = convolutions = 0
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            pools, convolutions = pools + 1, 0
        convolutions += isinstance(layer, nn.Conv2d)
        if isinstance(layer, kind) and (pools, convolutions) == (i - 1, j):
            return x


def test_the_layers_of_vgg19_are_torchvisions():
    with torch.device("meta"):
        assert str(models.vgg19_features()) == str(torchvision.models.vgg19().features)


@pytest.mark.parametrize("i, j, channels, size", [(1, 1, 64, 32), (2, 2, 128, 16), (3, 4, 256, 8), (5, 4, 512, 2)])
def test_truncated_vgg19_is_torchvisions_up_to_the_relu(vgg_state, i, j, channels, size):
    imgs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vgg = TruncatedVGG19(i, j, vgg_state)
    features = vgg(imgs)
    assert features.shape == (2, channels, size, size) and features.min() == 0 and features.max() > 0
    assert torch.allclose(features, features_by_hand(vgg_state, i, j, imgs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before_relu, kind", [(False, nn.ReLU), (True, nn.Conv2d)])
def test_features_of_several_layers(vgg_state, before_relu, kind):
    imgs = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vgg = TruncatedVGG19(5, 4, vgg_state)
    found = vgg.features(imgs, [(5, 4), (1, 2), (3, 4)], before_relu)
    for features, (i, j) in zip(found, [(1, 2), (3, 4), (5, 4)], strict=True):
        assert torch.allclose(features, features_by_hand(vgg_state, i, j, imgs, kind), rtol=1e-4, atol=1e-5)
        assert (features.min() < 0) == before_relu
    with pytest.raises(ValueError, match="max-pool"):
        vgg.features(imgs, [(1, 3)])
    assert len(vgg.features(imgs, [(1, 2), (1, 2)], before_relu)) == 1


def test_truncated_vgg19_is_frozen_and_stays_in_eval_mode(vgg_state):
    vgg = nn.Sequential(TruncatedVGG19(1, 2, vgg_state)).train()
    assert not any(module.training for module in vgg[0].modules())
    assert not any(p.requires_grad for p in vgg.parameters())
    imgs = torch.zeros(1, 3, 16, 16, requires_grad=True)
    vgg(imgs).sum().backward()
    assert imgs.grad.abs().sum() > 0  # but the gradient reaches the images


def test_truncated_vgg19_takes_the_weights_of_a_whole_vgg19(tmp_path, vgg_state):
    whole = {f"features.{key}": value for key, value in vgg_state.items()} | {"classifier.0.bias": torch.zeros(4096)}
    torch.save(whole, tmp_path / "vgg19.pth")
    imgs = torch.zeros(1, 3, 16, 16)
    assert torch.equal(TruncatedVGG19(2, 1, tmp_path / "vgg19.pth")(imgs), TruncatedVGG19(2, 1, vgg_state)(imgs))


@pytest.mark.parametrize("i, j", [(0, 1), (6, 1), (1, 0), (1, 3), (2, 3), (3, 5), (5, 5), (-1, 1)])
def test_truncated_vgg19_refuses_layers_that_there_are_not(i, j):
    with pytest.raises(ValueError, match="max-pool"):
        TruncatedVGG19(i, j, {})


def test_truncated_vgg19_refuses_weights_that_do_not_fit(tmp_path, vgg_state):
    with pytest.raises(ValueError, match="missing"):
        TruncatedVGG19(2, 2, {key: value for key, value in vgg_state.items() if key != "7.weight"})
    with pytest.raises(ValueError, match="shape"):
        TruncatedVGG19(1, 1, vgg_state | {"0.weight": torch.zeros(64, 1, 3, 3)})
    with pytest.raises(OSError, match="nowhere"):
        TruncatedVGG19(1, 1, tmp_path / "nowhere.pth")


# for_inference


@pytest.mark.parametrize("network", [SRCNN(2), SRResNet(4, 3, 16), SRResNet(3, 1, 8), Generator(2, 2, 8)])
@pytest.mark.parametrize("plain", [False, True])
def test_for_inference_is_the_network_in_eval_mode(network, plain):
    network = with_statistics(network).train()
    before = copy.deepcopy(network.state_dict())
    lr_imgs = torch.rand(2, 3, 16, 20)
    folded = for_inference(network, plain=plain)
    expected = copy.deepcopy(network).eval()(lr_imgs)
    assert torch.allclose(folded(lr_imgs), expected, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not folded.training and not any(p.requires_grad for p in folded.parameters())
    # The network itself goes on training as it was.
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


def test_for_inference_in_bfloat16():
    network, lr_imgs = with_statistics(SRResNet(2, 2, 16)), torch.rand(1, 3, 16, 16)
    folded = for_inference(network, dtype=torch.bfloat16)
    assert {p.dtype for p in folded.parameters()} == {torch.bfloat16}
    difference = folded(lr_imgs.bfloat16()).float() - copy.deepcopy(network).eval()(lr_imgs)
    assert difference.abs().mean() < 0.02


@pytest.mark.parametrize("network", [SRCNN(2), SRCNN(3), SRResNet(2, 2, 4), SRResNet(3, 1, 4), SRResNet(8, 1, 4)])
def test_margins_are_as_far_as_a_pixel_reaches(network):
    network, size = for_inference(with_statistics(network), plain=True).double(), 41
    scale, middle = network.config["scale"], size // 2
    for half, channels, factor, margin in (
        (network.features, 3, 1, network.features_margin),
        (network.reconstruct, 3 if isinstance(network, SRCNN) else 4, scale, network.reconstruct_margin),
    ):
        maps = torch.rand(1, channels, size, size, dtype=torch.float64)
        changed = maps.clone()
        changed[:, :, middle, middle] += 1
        difference = (half(changed) - half(maps)).abs().amax((0, 1)).numpy()
        reached = [np.flatnonzero(difference.max(axis)) // factor for axis in (0, 1)]
        assert max(math.fabs(place - middle) for places in reached for place in places) <= margin


def test_the_patch_discriminator_answers_about_61_pixels():
    discriminator = Discriminator(4, patches=True).eval()
    imgs = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = discriminator(imgs)
    assert logits.shape == (1, 10, 10)
    logits[0, 5, 5].backward()
    rows = imgs.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.min() == 5 * 16 - 30 and rows.max() == 5 * 16 + 30
    dense = 512 * 6 * 6 * 1024 + 1024 + 1024 + 1
    assert count(Discriminator(64, patches=True)) == count(Discriminator(64)) - dense + 512 + 1
