"""One training step of each stage against its equations, and whole small runs: interrupted, resumed, gone wrong."""

import contextlib
import copy
import csv
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import call, refusal
from PIL import Image

import batchnorm
import compiling
import devices
import losses
import runs
import train_distilled
import train_srgan
import train_srresnet
import utils
from datasets import training_pair
from image_lists import read_list
from models import Discriminator, Generator, SRResNet, TruncatedVGG19
from weights import load_checkpoint, load_network, save_checkpoint

MODULES = {"train_srresnet": train_srresnet, "train_srgan": train_srgan, "train_distilled": train_distilled}
GAN_ARGS = train_srgan.parse_arguments(["--vgg-layer=22", "--vgg-factor=0.5", "--adversarial-weight=0.1"])


@pytest.fixture
def batch(photographs):
    """Four real training pairs: LR images (4, 3, 8, 8), HR images (4, 3, 32, 32)."""
    crops = [torch.from_numpy(photographs[i][20:52, 20:52].copy()).permute(2, 0, 1) for i in (0, 3, 6, 9)]
    return training_pair(torch.stack(crops), 4)


# Stage 1


def test_stage_1_overfits_one_batch(batch):
    torch.manual_seed(0)
    network = SRResNet(4, blocks=1, channels=8)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = [train_srresnet.train_step(network, optimizer, *batch)["loss"].item() for _ in range(100)]
    assert losses[-1] < losses[0] / 10


def test_stage_1_step_is_that_of_the_mean_squared_error(batch):
    torch.manual_seed(0)
    network = SRResNet(4, 1, 8)
    reference = copy.deepcopy(network)
    figures = train_srresnet.train_step(network, torch.optim.SGD(network.parameters(), 0.1), *batch)
    loss = ((reference(batch[0]) - batch[1]) ** 2).mean()
    loss.backward()
    assert torch.isclose(figures["loss"], loss)
    norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
    assert torch.isclose(figures["gradient_norm"], norm)
    for p, before in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, before - 0.1 * before.grad, atol=1e-6)


# Stage 2


class Spy(torch.optim.SGD):
    """An optimizer that looks around before each of its steps."""

    def __init__(self, parameters, learning_rate, look):
        super().__init__(parameters, learning_rate)
        self.look = look

    def step(self):
        self.look()
        super().step()


@pytest.fixture
def networks(vgg_state):
    torch.manual_seed(0)
    return Generator(4, 1, 8), Discriminator(4), TruncatedVGG19(2, 2, vgg_state)


def parameters(network):
    return [p.detach().clone() for p in network.parameters()]


def gradients(network):
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def gan_step(networks, batch, rates=(0.1, 0.1), looks=(lambda: None, lambda: None), args=GAN_ARGS):
    optimizers = [Spy(network.parameters(), rate, look) for network, rate, look in zip(networks, rates, looks)]
    return train_srgan.train_step(*networks, *optimizers, *batch, args)


@pytest.mark.parametrize("rates, changed", [((0.1, 0.0), (True, False)), ((0.0, 0.1), (False, True))])
def test_each_half_of_the_gan_step_trains_its_own_network(networks, batch, rates, changed):
    before = [parameters(network) for network in networks]
    gan_step(networks, batch, rates)
    for network, old, expected in zip(networks, before, (*changed, False)):
        assert same(parameters(network), old) != expected


def test_each_half_of_the_gan_step_leaves_the_other_gradients_alone(networks, batch):
    generator, discriminator, vgg = networks
    gan_step(networks, batch)
    of_step_1 = gradients(discriminator)
    seen = {}

    def before_generator():
        seen["generator"], seen["discriminator"] = gradients(generator), gradients(discriminator)

    def before_discriminator():
        assert same(gradients(generator), seen["generator"])
        assert not same(gradients(discriminator), of_step_1)
        seen["both"] = True

    gan_step(networks, batch, looks=(before_generator, before_discriminator))
    assert seen["both"] and same(seen["discriminator"], of_step_1)
    assert len(of_step_1) == len(parameters(discriminator)) and of_step_1[0].abs().sum() > 0
    assert len(seen["generator"]) == len(parameters(generator)) and seen["generator"][0].abs().sum() > 0
    assert gradients(vgg) == []
    assert all(p.requires_grad for p in (*generator.parameters(), *discriminator.parameters()))


@pytest.mark.parametrize("content_loss, more", [("mse", 0.0), ("l1", 1.0)])
def test_gan_step_is_that_of_the_equations(networks, batch, content_loss, more):
    flags = {"content_loss": content_loss, "texture_weight": 2 * more, "pixel_weight": 3 * more}
    flags |= {"chroma_weight": 5 * more, "consistency_weight": 7 * more, "echo_weight": 11 * more}
    flags |= {"detail_weight": 13 * more, "mesh_weight": 17 * more}
    args = SimpleNamespace(**vars(GAN_ARGS) | flags)
    (lr_imgs, hr_imgs), (generator, discriminator, vgg) = batch, copy.deepcopy(networks)
    seen = []
    figures = gan_step(networks, batch, looks=(lambda: seen.append(gradients(networks[0])), lambda: None), args=args)

    sr_imgs = generator(lr_imgs)
    sr_features, hr_features = 0.5 * vgg(sr_imgs), 0.5 * vgg(hr_imgs)
    difference = sr_features - hr_features
    terms = {"content": difference.abs().mean() if content_loss == "l1" else (difference**2).mean()}
    terms["adversarial"] = 0.1 * -torch.log(torch.sigmoid(discriminator(sr_imgs))).mean()
    if more:
        sizes = sr_features[0].numel()
        sr_gram, hr_gram = (torch.einsum("nchw,ndhw->ncd", f, f) / sizes for f in (sr_features, hr_features))
        terms["texture"] = 2 * ((sr_gram - hr_gram) ** 2).mean()
        terms["pixel"] = 3 * ((sr_imgs - hr_imgs) ** 2).mean()
        to_ycc = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
        sr_ycc, hr_ycc = (torch.einsum("yc,nchw->nyhw", to_ycc, imgs) for imgs in (sr_imgs, hr_imgs))
        terms["chroma"] = 5 * ((sr_ycc - hr_ycc)[:, 1:] ** 2).mean()
        bicubic = {"mode": "bicubic", "antialias": True}
        sr_small, hr_small = (F.interpolate(imgs, lr_imgs.shape[2:], **bicubic) for imgs in (sr_imgs, hr_imgs))
        terms["consistency"] = 7 * ((sr_small - hr_small) ** 2).mean()
        rms, patterns = [], []
        for y in (sr_ycc[:, :1], hr_ycc[:, :1]):
            rest = y - F.interpolate(F.interpolate(y, lr_imgs.shape[2:], **bicubic), y.shape[2:], **bicubic)
            squares, ones = (
                F.pad(plane, (3, 3, 3, 3)).unfold(2, 7, 1).unfold(3, 7, 1) for plane in (rest**2, torch.ones_like(y))
            )
            pattern = rest.reshape(len(y), 8, 4, 8, 4).mean((1, 3))  # crops of 32: 8x8 LR pixels of 4x4, no more
            patterns.append((pattern.square().mean((1, 2)) + 1e-8).sqrt())
            rms.append((squares.sum((4, 5)) / ones.sum((4, 5)) + 1e-6).sqrt())
        terms["echo"] = 11 * ((rms[0] - 1.2 * rms[1]).clamp(min=0) ** 2).mean()
        terms["mesh"] = 17 * 2 * ((patterns[0] - patterns[1]).clamp(min=0) ** 2).mean()
        terms["detail"] = 13 * ((0.8 * rms[1] - rms[0]).clamp(min=0) ** 2).mean()
    sum(terms.values()).backward()
    for key, value in terms.items():
        assert torch.isclose(figures[key], value, rtol=1e-4)
    assert torch.isclose(figures["generator"], sum(terms.values()), rtol=1e-4)
    for gradient, p in zip(seen[0], generator.parameters(), strict=True):
        assert torch.allclose(gradient, p.grad, rtol=1e-3, atol=1e-6)

    hr_logits, sr_logits = discriminator(hr_imgs), discriminator(sr_imgs.detach())
    loss = -torch.log(torch.sigmoid(hr_logits)).mean() - torch.log(1 - torch.sigmoid(sr_logits)).mean()
    assert torch.isclose(figures["discriminator"], loss, rtol=1e-4)
    assert figures["accuracy_hr"] == (torch.sigmoid(hr_logits) > 0.5).float().mean()
    assert figures["accuracy_sr"] == (torch.sigmoid(sr_logits) < 0.5).float().mean()


def test_the_cosine_distance_of_several_layers_before_their_relu(networks, batch):
    flags = {"content_loss": "cosine", "vgg_layer": [22, 12], "vgg_before_relu": True}
    args = SimpleNamespace(**vars(GAN_ARGS) | flags)
    (lr_imgs, hr_imgs), (generator, _, vgg) = batch, copy.deepcopy(networks)
    figures = gan_step(networks, batch, args=args)
    expected = 0
    for convolutions in (vgg.layers[:3], vgg.layers[:8]):  # 1_2 and 2_2
        for layer in convolutions:
            if isinstance(layer, torch.nn.ReLU):
                layer.inplace = False
        sr, hr = (convolutions(vgg.normalized(imgs)) for imgs in (generator(lr_imgs), hr_imgs))
        assert sr.min() < 0
        expected += 1 - ((sr * hr).sum(1) / (sr.square().sum(1) * hr.square().sum(1)).sqrt()).mean()
    assert torch.isclose(figures["content"], expected, rtol=1e-4)
    assert losses.cosine_distance(3 * sr, sr).abs() < 1e-6  # the length of a vector does not count


def test_the_discriminator_judges_squares(networks, batch):
    imgs = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    cut = losses.squares(imgs, 4)
    assert cut.shape == (12, 3, 4, 4)
    assert torch.equal(cut[0], imgs[0, :, :4, :4]) and torch.equal(cut[4], imgs[0, :, 4:, 4:8])
    assert losses.squares(imgs, None) is imgs
    seen = []
    networks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    figures = gan_step(networks, batch, args=SimpleNamespace(**vars(GAN_ARGS) | {"discriminator_crop": 16}))
    crops = 4 * len(batch[0])
    assert seen == [(crops, 3, 16, 16)] * 3 and (figures["accuracy_hr"] * crops).round() == figures["accuracy_hr"] * crops


def test_the_echo_loss_sees_lines_where_hr_has_none():
    edge = torch.full((1, 3, 64, 64), -0.8)
    edge[..., 32:] = 0.8
    dashes, twice = edge.clone(), (0.5 * edge, edge)
    dashes[..., ::4, 24] += 0.3  # with the period of a LR pixel, some pixels beside the edge
    assert losses.echo_loss(edge, edge, 4) == 0
    assert losses.echo_loss(dashes, edge, 4) > 5 * losses.consistency_loss(dashes, edge, 4)
    assert losses.echo_loss(*twice, 4) == 0 and losses.echo_loss(*twice[::-1], 4) > 0  # too soft is no echo


def test_calm_is_no_more_detail_than_hr_has_and_in_proportion():
    sand = 0.01 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    page, texture = torch.zeros(1, 3, 64, 64), 20 * sand
    assert losses.calm_loss(page, page, 4) == 0 and losses.calm_loss(0.5 * texture, texture, 4) == 0
    assert losses.calm_loss(texture + sand, texture, 4) < 0.01 < 0.5 < losses.calm_loss(page + sand, page, 4)
    assert losses.calm_loss(-texture, texture, 4) == 0  # wherever its lines lie
    pair, weights = (
        (torch.cat([page + sand, page + texture]), torch.zeros(2, 3, 64, 64)),
        torch.tensor([1.0, 0]).view(2, 1, 1, 1),
    )
    assert torch.isclose(losses.calm_loss(*pair, 4, weights), losses.calm_loss(page + sand, page, 4) / 2)
    assert torch.isclose(losses.calm_loss(3 * texture, texture, 4), torch.tensor(1.9), rtol=0.1)


def test_missing_detail_is_softness_wherever_the_lines_lie():
    texture = torch.zeros(1, 3, 64, 64)
    texture[..., 16:48] = 0.2 * torch.randn(1, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    soft, moved, loud = 0.5 * texture, texture.flip(2), 2 * texture
    assert losses.missing_detail_loss(texture, texture, 4) == 0 == losses.missing_detail_loss(loud, texture, 4)
    assert losses.missing_detail_loss(soft, texture, 4) > 20 * losses.missing_detail_loss(moved, texture, 4)
    assert losses.missing_detail_loss(0.85 * texture, texture, 4) < 1e-6 < losses.missing_detail_loss(soft, texture, 4)


def test_a_mesh_is_what_repeats_in_each_lr_pixel():
    generator, smooth = torch.Generator().manual_seed(0), torch.zeros(1, 3, 64, 64)
    noise = 0.2 * torch.randn(1, 1, 64, 64, generator=generator).expand(-1, 3, -1, -1)
    for scale in (2, 4, 8):
        mesh = 0.2 * torch.randn(1, 1, scale, scale, generator=generator).repeat(1, 3, 64 // scale, 64 // scale)
        assert losses.mesh_loss(mesh, smooth, scale) > 10 * losses.mesh_loss(noise, smooth, scale)
        assert losses.mesh_loss(mesh, mesh, scale) == 0 == losses.mesh_loss(smooth, mesh, scale)
    assert losses.mesh_loss(mesh[..., :16, :16], smooth[..., :16, :16], 4) > 0  # of 4x4 LR pixels


def test_the_excess_loss_is_of_what_the_faithful_network_knows():
    torch.manual_seed(0)
    hr = torch.zeros(1, 3, 32, 32)
    noise = 0.1 * torch.randn(1, 1, 32, 32).expand(-1, 3, -1, -1)
    assert losses.excess_error_loss(hr, hr, hr) == 0
    assert losses.excess_error_loss(hr + 1.2 * noise, hr, hr + noise) == 0  # texture, which both can only guess
    wrong = losses.excess_error_loss(hr + noise, hr, hr)  # what the faithful network knew
    assert wrong == pytest.approx(losses.local_rms(losses.luma(noise)).sub(1.3e-3).square().mean().item(), rel=1e-4)


def test_the_excess_term_is_added_with_its_weight(networks, batch):
    seen, weights = [], (0.0, 3.0)
    for weight in weights:
        args = SimpleNamespace(**vars(GAN_ARGS) | {"excess_weight": weight})
        lr_imgs, hr_imgs = batch
        generator, discriminator, vgg = copy.deepcopy(networks)
        optimizers = [torch.optim.Adam(network.parameters()) for network in (generator, discriminator)]
        faithful = copy.deepcopy(generator).requires_grad_(False)
        expected = losses.excess_error_loss(generator(lr_imgs), hr_imgs, 0.5 * faithful(lr_imgs)).item()
        half = lambda imgs, faithful=faithful: 0.5 * faithful(imgs)  # noqa: E731
        figures = train_srgan.train_step(generator, discriminator, vgg, *optimizers, lr_imgs, hr_imgs, args, faithful=half)
        seen.append((figures.get("excess"), figures["generator"]))
    assert seen[0][0] is None and torch.isclose(seen[1][0], torch.tensor(3 * expected), rtol=1e-4)
    assert torch.isclose(seen[1][1] - seen[0][1], seen[1][0], rtol=1e-3, atol=1e-5)


def test_the_adversary_and_vgg_see_luma_alone(networks, batch):
    seen = {}
    for name, network in zip(("discriminator", "vgg"), networks[1:]):
        hooked = network if name == "discriminator" else network.layers
        seen[name] = []
        hooked.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0].detach()))
    args = SimpleNamespace(**vars(GAN_ARGS) | {"luma_adversary": True})
    (_, hr_imgs), (sr_of_generator, hr, sr) = batch, (None, None, None)
    with torch.no_grad():
        sr_imgs = copy.deepcopy(networks[0])(batch[0])
    gan_step(networks, batch, args=args)
    sr_of_generator, hr, sr = seen["discriminator"]
    for imgs, source in ((sr_of_generator, sr_imgs), (hr, hr_imgs), (sr, sr_imgs)):
        y = (source * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
        assert all(torch.allclose(imgs[:, c], y, atol=1e-6) for c in range(3))
    compared, _ = train_srgan.seen_by_vgg(sr_imgs, hr_imgs, args, step=1)
    assert torch.allclose(losses.luma(compared), losses.luma(sr_imgs), atol=1e-6)
    assert torch.allclose(losses.chroma(compared), losses.chroma(hr_imgs), atol=1e-6)


def test_vgg_sees_the_same_square_of_both_wherever_the_run_began():
    imgs = torch.rand(2, 3, 96, 96)
    args = SimpleNamespace(**vars(GAN_ARGS) | {"vgg_crop": 48, "crop_size": 96, "seed": 3})
    places = set()
    for step in range(1, 60):
        sr, hr = train_srgan.seen_by_vgg(imgs, imgs, args, step)
        again, _ = train_srgan.seen_by_vgg(imgs, imgs, args, step)
        assert sr.shape == (2, 3, 48, 48) and torch.equal(sr, hr) and torch.equal(sr, again)
        places |= {
            (y, x) for y in range(0, 49, 16) for x in range(0, 49, 16) if torch.equal(sr, imgs[:, :, y : y + 48, x : x + 48])
        }
    assert len(places) == 16


@pytest.mark.parametrize(
    "script, flags, first",
    [
        ("train_srresnet", [], "paper"),
        ("train_srgan", ["--init", "start.pth"], "paper"),
        ("train_distilled", ["--faithful", "start.pth"], "plain"),
    ],
)
def test_recipes(script, flags, first):
    module = MODULES[script]
    bare, paper = (vars(module.parse_arguments([*flags, *more])) for more in ([], ["--recipe", first]))
    assert bare == paper
    for name, recipe in module.RECIPES.items():
        args = vars(module.parse_arguments([*flags, "--recipe", name]))
        assert recipe.keys() <= bare.keys()
        assert args == bare | recipe | {"recipe": name}
    args = module.parse_arguments([*flags, "--steps", "7", "--recipe", "shipped"])
    assert args.steps == 7 and args.crop_size == module.RECIPES["shipped"]["crop_size"]
    with pytest.raises(SystemExit):
        module.parse_arguments([*flags, "--recipe", "none_of_these"])


# Schedules and the moving average


def test_learning_rate_schedules():
    def rates(schedule, warmup_steps=0):
        args = SimpleNamespace(learning_rate=0.5, schedule=schedule, steps=10, warmup_steps=warmup_steps)
        return [runs.learning_rate_at(step, args) for step in range(1, 11)]

    assert rates("constant") == [0.5] * 10
    assert rates("constant", warmup_steps=4) == [0.125, 0.25, 0.375] + [0.5] * 7
    assert rates("step") == pytest.approx([0.5] * 5 + [0.05] * 5)
    assert rates("cosine") == pytest.approx([0.25 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])


def test_bare_defaults_are_the_papers_schedules():
    stage_1, stage_2 = train_srresnet.parse_arguments([]), train_srgan.parse_arguments([])
    assert (stage_1.steps, stage_2.steps) == (1_000_000, 200_000)
    assert {runs.learning_rate_at(step, stage_1) for step in (1, 500_001, 1_000_000)} == {1e-4}
    assert runs.learning_rate_at(100_000, stage_2) == 1e-4
    assert runs.learning_rate_at(100_001, stage_2) == pytest.approx(1e-5)
    for args in (stage_1, stage_2):
        assert (args.scale, args.batch_size, args.crop_size, args.blocks, args.channels) == (4, 16, 96, 16, 64)
    assert (stage_2.vgg_layer, stage_2.adversarial_weight, stage_2.content_loss) == ([54], 1e-3, "mse")


def test_moving_average():
    torch.manual_seed(0)
    network, ema = SRResNet(2, 1, 4), SRResNet(2, 1, 4)
    network(torch.rand(2, 3, 8, 8))  # moves the statistics of batch normalisation, and counts
    old, new = copy.deepcopy(ema.state_dict()), network.state_dict()
    runs.update_ema(ema, network, 10_000, 0.9)
    for key, value in ema.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.9 * old[key] + 0.1 * new[key], atol=1e-7)
        else:
            assert torch.equal(value, new[key])
    # The first average is mostly the network: a decay of 2/11 at step 1, whatever the decay asked for.
    old = copy.deepcopy(ema.state_dict())
    runs.update_ema(ema, network, 1, 0.999)
    weight = "head.0.weight"
    assert torch.allclose(ema.state_dict()[weight], 2 / 11 * old[weight] + 9 / 11 * new[weight], atol=1e-7)


# torch.compile


def should_compile(compile="auto", dtype=torch.bfloat16, device="cpu", **more):
    args = SimpleNamespace(**{"compile": compile, "dry_run": False, "steps": 2000, "stage": 1} | more)
    return compiling.should_compile(args, torch.device(device), dtype)


def test_compile_is_chosen_where_it_gains(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert should_compile() and should_compile("on", torch.float32, steps=1)
    assert not should_compile("off") and not should_compile(dtype=torch.float32) and not should_compile(stage=2)
    assert not should_compile(steps=1999) and not should_compile(dry_run=True)


def test_without_a_compiler_auto_goes_on_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    assert not should_compile()
    assert "which needs a C++ compiler" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="--compile on needs a C"):
        should_compile("on")


# Whole runs


@pytest.fixture(params=MODULES)
def stage(request, work, lists, vgg_file):
    """A script and the flags of a small run of it."""
    flags = ["--data-folder", lists["off"], "--name", "small", "--device", "cpu", "--precision", "fp32", "--workers", 0]
    flags += ["--blocks", 1, "--channels", 8, "--crop-size", 32, "--batch-size", 4, "--learning-rate", 1e-3]
    flags += ["--steps", 6, "--schedule", "cosine", "--warmup-steps", 2, "--ema-decay", 0.5, "--validate-every", 2]
    if request.param == "train_srgan":
        flags += ["--init", "none", "--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4]
    if request.param == "train_distilled":
        network = SRResNet(4, 1, 8)
        save_checkpoint(work / "teacher.pth", {"config": network.config, "weights": network.state_dict()})
        flags = [*flags[:10], *flags[14:], "--faithful", work / "teacher.pth", "--turns", 2]  # without the sizes of a network
    return request.param, flags


def after_step(monkeypatch, script, number, action):
    """Do something to a run in the middle of a step, when the networks have been trained and nothing was logged."""
    module = MODULES[script]
    update_ema = runs.update_ema

    def hook(ema, network, step, decay):
        update_ema(ema, network, step, decay)
        if step == number:
            action(network)

    monkeypatch.setattr(module, "update_ema", hook)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return all(map(equal, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b


def results(folder):
    """What must be the same to the last bit: the checkpoint without its arguments, the best weights and the log."""
    last, best = (torch.load(folder / f"checkpoints/small/{name}.pth", weights_only=True) for name in ("last", "best"))
    del last["args"]
    return {"last": last, "best": best, "log": (folder / "results/small/log.csv").read_text()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_by_a_signal_and_resumed_is_the_uninterrupted_one(stage, work, monkeypatch, capsys, workers):
    script, flags = stage
    flags = [*flags, "--log-every", 4]  # the stop comes between two lines of the log, whose means are in the making
    for name in ("straight", "stopped"):
        (work / name).mkdir()
    monkeypatch.chdir(work / "straight")
    call(script, *flags)
    monkeypatch.chdir(work / "stopped")
    with monkeypatch.context() as patch:
        after_step(patch, script, 3, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        call(script, *flags)
    assert "stopped after step 3" in capsys.readouterr().out
    assert torch.load("checkpoints/small/last.pth", weights_only=True)["step"] == 3
    call(script, *flags, "--resume", "--workers", workers)
    straight, stopped = results(work / "straight"), results(work / "stopped")
    assert straight["last"]["step"] == 6 and {"weights", "ema"} < straight["last"].keys()
    assert equal(straight, stopped)
    rows = list(csv.DictReader(straight["log"].splitlines()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert not equal(straight["last"]["weights"], straight["last"]["ema"])


def test_a_run_that_crashed_resumes_from_its_last_save(stage, work, monkeypatch):
    script, flags = stage
    flags = [*flags, "--log-every", 1, "--save-every", 2]
    for name in ("straight", "crashed"):
        (work / name).mkdir()
    monkeypatch.chdir(work / "straight")
    call(script, *flags)
    monkeypatch.chdir(work / "crashed")

    def crash(_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        after_step(patch, script, 6, crash)
        call(script, *flags)
    assert len((work / "crashed/results/small/log.csv").read_text().splitlines()) == 1 + 5  # row 5 was after the last save
    newest = work / "crashed/checkpoints/small/step_00000004.pth"
    newest.write_bytes(newest.read_bytes()[:3000])  # and the last save is damaged: the one before it serves
    (newest.parent / "last.pth").unlink()
    call(script, *flags, "--resume")
    assert equal(results(work / "straight"), results(work / "crashed"))


def test_tensorboard_shows_the_run(stage):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script, flags = stage
    call(script, *flags, "--log-every", 2)
    events = EventAccumulator("results/small")
    events.Reload()
    with open("results/small/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {key if "/" in key else f"train/{key}" for key, value in rows[-1].items() if value} - {"train/step"}
    assert {"train/learning_rate", "train/gradient_norm" + "_g" * (script == "train_srgan"), "validation/psnr"} < names
    speed = {"speed/steps_per_second", "speed/share_waiting_for_data"}
    assert names | speed < set(events.Tags()["scalars"])
    for name in names:
        logged = [float(row[name.removeprefix("train/")]) for row in rows]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(logged, rel=1e-6)
    assert [image.step for image in events.Images("samples")] == [2, 4, 6]
    # The arguments, with the final figures, for TensorBoard's comparison of runs.
    assert b"schedule" in events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert events.Scalars("final/validation/psnr")[-1].value == pytest.approx(float(rows[-1]["validation/psnr"]), rel=1e-6)


def test_changed_arguments_are_listed_and_refused(stage, capsys):
    script, flags = stage
    call(script, *flags)
    line = refusal(capsys, script, *flags, "--resume", "--batch-size", 2, "--learning-rate", 0.5, "--log-every", 7)
    assert "--batch-size was 4, is 2" in line and "--learning-rate was 0.001, is 0.5" in line and "log-every" not in line
    assert "--steps was 6, is 8" in refusal(capsys, script, *flags, "--resume", "--steps", 8)  # the cosine would be another


def test_a_refusal_to_resume_names_the_way_on(stage, work, capsys):
    script, flags = stage
    flags = [*flags, "--schedule", "constant", "--steps", 2]
    call(script, *flags)
    way_on = "--name ANOTHER --init checkpoints/small/last.pth"
    for changed in (["--batch-size", 2], ["--seed", 3, "--ema-decay", 0.25]):
        assert way_on in refusal(capsys, script, *flags, "--resume", *changed)
    path = "checkpoints/small/step_00000002.pth"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, checkpoint | {"data": 0})
    assert way_on in refusal(capsys, script, *flags, "--resume")


def test_a_run_is_resumed_on_its_own_images_alone(stage, work, photographs, capsys):
    """Of the same names there may be other photographs, or a pack that changes their order."""
    from conftest import make_lists

    script, flags = stage
    (work / "photos").mkdir()
    for number, photograph in enumerate(photographs):
        Image.fromarray(photograph).save(work / f"photos/{number:02d}.png")
    make_lists(work / "data", work / "photos", "--pack", "off")
    flags = [*flags, "--data-folder", work / "data", "--schedule", "constant"]
    call(script, *flags, "--steps", 2)
    make_lists(work / "data", work / "photos", "--pack", "on")
    again = [*flags, "--steps", 4, "--resume"]
    assert "not the files, or not the pack" in refusal(capsys, script, *again)
    make_lists(work / "data", work / "photos", "--pack", "off")
    path = read_list(work / "data/train_images.json")[0]
    before = path.read_bytes()
    Image.fromarray(photographs[0][::-1]).save(path)
    assert "not the files, or not the pack" in refusal(capsys, script, *again)
    path.write_bytes(before)
    Image.fromarray(photographs[1][::-1]).save(read_list(work / "data/validation_images.json")[0])
    capsys.readouterr()
    call(script, *again)
    assert "best.pth will be chosen anew: the validation images" in capsys.readouterr().out


def test_a_run_is_not_resumed_to_a_step_that_is_behind_it(stage, work, capsys):
    script, flags = stage
    flags = [*flags, "--schedule", "constant"]
    call(script, *flags, "--steps", 4)
    for steps in (1, 3):
        line = refusal(capsys, script, *flags, "--steps", steps, "--resume")
        assert f"--steps {steps}" in line and "step 4 already" in line
    call(script, *flags, "--steps", 4, "--resume")


def test_no_validation_images_lead_to_a_way_on(stage, work, image_folder, capsys):
    from conftest import make_lists

    script, flags = stage
    make_lists(work / "data", image_folder, "--pack", "off", "--validation-images", 0)
    flags = [*flags, "--data-folder", work / "data"]
    line = refusal(capsys, script, *flags)
    assert "--validate-on FOLDER" in line and "--validation-images 20" in line
    call(script, *flags, "--validate-on", image_folder)


@pytest.mark.parametrize("more, fits", [([], False), (["--freeze-bn", "generator"], False), (["--freeze-bn", "both"], True)])
def test_one_crop_of_16_pixels_is_refused_where_statistics_need_more(work, lists, vgg_file, capsys, more, fits):
    flags = ["--data-folder", lists["off"], "--device", "cpu", "--workers", 0, "--blocks", 1, "--channels", 4, "--steps", 1]
    flags += ["--init", "none", "--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 2, "--crop-size", 16]
    if fits:
        call("train_srgan", *flags, "--batch-size", 1, *more)
    else:
        line = refusal(capsys, "train_srgan", *flags, "--batch-size", 1, *more)
        assert "--batch-size" in line and not (work / "checkpoints").exists()
        call("train_srgan", *flags, "--batch-size", 2, *more)


def test_a_flag_that_the_checkpoint_does_not_know_was_off(stage, capsys):
    script, flags = stage
    call(script, *flags, "--schedule", "constant", "--steps", 2)
    checkpoint = load_checkpoint("checkpoints/small/step_00000002.pth")
    for flag in ("seed", "degradation", "discriminator", "optimizer"):
        checkpoint["args"].pop(flag, None)
    save_checkpoint("checkpoints/small/step_00000002.pth", checkpoint)
    flags = [*flags, "--schedule", "constant", "--steps", 3, "--resume"]
    assert "--seed was None, is 5" in refusal(capsys, script, *flags, "--seed", 5)
    assert "--optimizer was adam, is muon" in refusal(capsys, script, *flags, "--optimizer", "muon")
    call(script, *flags)


def test_a_run_of_a_version_with_other_losses_keeps_their_columns(stage, work, capsys):
    script, flags = stage
    flags = [*flags, "--schedule", "constant"]
    call(script, *flags, "--steps", 2)
    log = work / "results/small/log.csv"
    head, *rows = log.read_text().splitlines()
    log.write_text("\n".join([f"{head},colour", *(f"{row},0.25" for row in rows)]) + "\n")
    call(script, *flags, "--steps", 4, "--resume")
    with open(log, newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["colour"] for row in found if int(row["step"]) <= 2] == ["0.25"] * len(rows)
    assert int(found[-1]["step"]) == 4 and found[-1]["colour"] == ""
    # A loss that is gone and was on: the run cannot go on as it began.
    path = "checkpoints/small/step_00000004.pth"
    checkpoint = load_checkpoint(path)
    checkpoint["args"]["colour_weight"] = 20.0
    save_checkpoint(path, checkpoint)
    assert "--colour-weight was 20.0, is None" in refusal(capsys, script, *flags, "--steps", 5, "--resume")


def test_a_checkpoint_of_before_the_flag_was_called_name_is_resumed(stage, work):
    script, flags = stage
    i = flags.index("--name")
    call(script, *flags[:i], "--run", *flags[i + 1 :], "--schedule", "constant", "--steps", 2)
    path = "checkpoints/small/step_00000002.pth"
    checkpoint = load_checkpoint(path)
    checkpoint["args"]["run"] = checkpoint["args"].pop("name")  # as it was written then
    save_checkpoint(path, checkpoint)
    call(script, *flags, "--schedule", "constant", "--steps", 3, "--resume")
    args = runs.Checkpoints(work / "checkpoints/small").load_newest()["args"]
    assert args["name"] == "small" and "run" not in args


def test_a_resumed_run_remembers_where_it_began(stage, work):
    script, flags = stage
    call(script, *flags, "--schedule", "constant", "--steps", 2)
    before = utils.read_json("results/small/config.json")
    i = flags.index("--init") if "--init" in flags else len(flags)
    call(script, *flags[:i], *flags[i + 2 :], "--schedule", "constant", "--steps", 3, "--resume")
    after = utils.read_json("results/small/config.json")
    assert after["resume"] and after["init"] == before["init"]
    assert runs.Checkpoints(Path("checkpoints/small")).load_newest()["args"]["init"] == before["init"]


def test_the_discriminator_learns_alone_at_first(work, lists, vgg_file, monkeypatch):
    flags = ["--data-folder", lists["off"], "--name", "small", "--device", "cpu", "--crop-size", 32, "--batch-size", 2]
    flags += ["--init", "none", "--blocks", 1, "--channels", 8, "--vgg-weights", vgg_file, "--vgg-layer", 22]
    flags += [
        "--discriminator-channels",
        4,
        "--freeze-bn",
        "generator",
        "--steps",
        4,
        "--discriminator-alone",
        2,
        "--save-every",
        1,
    ]
    seen = []
    save = runs.Run.save
    monkeypatch.setattr(
        runs.Run, "save", lambda run, step, **state: (seen.append(copy.deepcopy(state)), save(run, step, **state))
    )
    call("train_srgan", *flags, "--steps", 4, "--discriminator-alone", 2)
    first, second, third, fourth = seen
    assert equal(first["weights"], second["weights"]) and equal(second["weights"], second["ema"])
    assert not equal(second["weights"], third["weights"]) and not equal(third["weights"], fourth["weights"])
    assert not equal(first["discriminator"], second["discriminator"])


def test_a_run_at_a_constant_rate_may_be_prolonged(stage, work):
    script, flags = stage
    call(script, *flags, "--schedule", "constant", "--steps", 2)
    call(script, *flags, "--schedule", "constant", "--steps", 3, "--resume")
    assert torch.load("checkpoints/small/last.pth", weights_only=True)["step"] == 3


def test_the_name_of_a_run_is_taken_once(stage, work, capsys):
    script, flags = stage
    for folder in ("checkpoints", "results"):
        (work / folder / "small").mkdir(parents=True)
        line = refusal(capsys, script, *flags)  # as after a run that failed before its first checkpoint
        assert f"remove {Path(folder, 'small')}, or" in line and "the run small exists" in line and "--name" in line
        (work / folder / "small").rmdir()
    assert "holds no checkpoint" in refusal(capsys, script, *flags, "--resume")
    call(script, *flags, "--schedule", "constant", "--steps", 1)
    assert "exists: go on with it by --resume" in refusal(capsys, script, *flags)
    for name in ("../x", work / "x", "."):
        assert "below checkpoints and results" in refusal(capsys, script, *flags, "--name", name)
    assert "next --dry-run" in refusal(capsys, script, *flags, "--name", "dry_run/x")
    (work / "checkpoints/others/small").mkdir(parents=True)
    line = refusal(capsys, script, *flags, "--name", "others")
    assert "holds other runs" in line and "remove" not in line
    assert "leave out --resume" in refusal(capsys, script, *flags, "--dry-run", "--resume")


def test_other_validation_images_begin_a_new_choice_of_the_best(stage, work, capsys):
    script, flags = stage
    for name, noise in (("easy", 0), ("hard", 60)):  # no network comes near those of noise
        (work / name).mkdir()
        img = np.random.default_rng(0).normal(128, noise, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(img).save(work / name / "a.png")
    flags = [*flags, "--schedule", "constant"]
    call(script, *flags, "--validate-on", work / "easy", "--steps", 2)
    capsys.readouterr()
    call(script, *flags, "--validate-on", work / "hard" / ".." / "easy", "--steps", 4, "--resume")
    assert "chosen anew" not in capsys.readouterr().out
    call(script, *flags, "--validate-on", work / "hard", "--steps", 6, "--resume")
    assert "best.pth will be chosen anew: --validate-on was" in capsys.readouterr().out
    assert load_checkpoint("checkpoints/small/best.pth")["step"] == 6


def test_a_file_may_be_spelled_in_another_way(work, lists, vgg_file, capsys):
    flags = ["--data-folder", lists["off"], "--name", "small", "--device", "cpu", "--crop-size", 32, "--batch-size", 2]
    flags += ["--init", "none", "--blocks", 1, "--channels", 4, "--vgg-layer", 22, "--discriminator-channels", 4]
    flags += ["--schedule", "constant", "--vgg-weights"]
    call("train_srgan", *flags, vgg_file, "--steps", 1)
    vgg_file = Path(vgg_file)
    call("train_srgan", *flags, vgg_file.parent / ".." / vgg_file.parent.name / vgg_file.name, "--steps", 2, "--resume")
    (work / vgg_file.name).write_bytes(vgg_file.read_bytes())
    assert "--vgg-weights was" in refusal(capsys, "train_srgan", *flags, work / vgg_file.name, "--steps", 3, "--resume")


def test_the_network_to_compare_with_is_of_the_same_scale_and_may_have_moved(work, lists, vgg_file, capsys):
    for scale in (2, 4):
        network = SRResNet(scale, 1, 4)
        save_checkpoint(work / f"x{scale}.pth", {"config": network.config, "weights": network.state_dict()})
    flags = ["--data-folder", lists["off"], "--name", "small", "--device", "cpu", "--crop-size", 32, "--batch-size", 2]
    flags += ["--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4, "--schedule", "constant"]
    flags += ["--excess-weight", 1, "--init"]
    line = refusal(capsys, "train_srgan", *flags, work / "x2.pth", "--steps", 1)
    assert "x2.pth is for x2, not x4; give --faithful FILE" in line and not (work / "checkpoints").exists()
    assert "is for x2, not x4" in refusal(capsys, "train_srgan", *flags, work / "x4.pth", "--faithful", work / "x2.pth")
    call("train_srgan", *flags, work / "x4.pth", "--steps", 1)
    call("train_srgan", *flags, work / "x2.pth", "--steps", 2, "--resume")  # what it began with is there, and is taken
    (work / "x4.pth").rename(work / "moved.pth")
    assert "x2.pth is for x2" in refusal(capsys, "train_srgan", *flags, work / "x2.pth", "--steps", 3, "--resume")
    call("train_srgan", *flags, work / "moved.pth", "--steps", 3, "--resume")


def test_the_network_to_compare_with_is_not_by_default_one_of_stage_2(work, lists, vgg_file, capsys):
    flags = ["--data-folder", lists["off"], "--device", "cpu", "--crop-size", 32, "--batch-size", 2, "--vgg-weights", vgg_file]
    flags += ["--vgg-layer", 22, "--discriminator-channels", 4, "--steps", 2, "--excess-weight", 500]
    for network, name in ((SRResNet(4, 1, 4), "stage1"), (Generator(4, 1, 4), "stage2")):
        save_checkpoint(work / f"{name}.pth", {"config": network.config, "weights": network.state_dict()})
    line = refusal(capsys, "train_srgan", *flags, "--name", "a", "--init", work / "stage2.pth")
    assert "stage2.pth is of stage 2; give --faithful FILE" in line and not (work / "checkpoints").exists()
    call("train_srgan", *flags, "--name", "b", "--init", work / "stage2.pth", "--faithful", work / "stage1.pth")
    line = refusal(capsys, "train_srgan", *flags, "--name", "b", "--resume", "--seed", 2, "--faithful", work / "stage1.pth")
    assert f"--init checkpoints/b/last.pth --faithful {work}/stage1.pth" in line  # what is to be given is named
    call("train_srgan", *flags, "--name", "c", "--init", work / "stage2.pth", "--excess-weight", 0)


def test_a_run_is_resumed_with_the_networks_that_it_learns_from(stage, work, vgg_state, capsys):
    script, flags = stage
    if script == "train_srresnet":
        pytest.skip("learns from no network")
    call(script, *flags, "--schedule", "constant", "--steps", 2)
    if script == "train_srgan":
        file = Path(flags[flags.index("--vgg-weights") + 1])
        other = work / "vgg.pth"
        other.write_bytes(file.read_bytes())
        flags = [*flags, "--vgg-weights", other, "--name", "other"]
        call(script, *flags, "--schedule", "constant", "--steps", 2)
        call(script, *flags, "--schedule", "constant", "--steps", 3, "--resume")
        state = torch.load(other, weights_only=True)
        torch.save({key: 1.01 * value for key, value in state.items()}, other)
        flag = "--vgg-weights"
    else:
        network = SRResNet(4, 1, 8)
        call(script, *flags, "--schedule", "constant", "--steps", 3, "--resume")
        save_checkpoint(work / "teacher.pth", {"config": network.config, "weights": network.state_dict()})
        flag = "--faithful"
    line = refusal(capsys, script, *flags, "--schedule", "constant", "--steps", 4, "--resume")
    assert f"the weights of {flag} are not those that the run" in line and "--name ANOTHER" in line


@pytest.mark.parametrize("script", ["train_srresnet", "train_srgan"])
def test_a_term_of_ones_own_is_logged(work, lists, vgg_file, monkeypatch, script):
    """As the README says: a term in train_step, and nothing else."""
    train_step = MODULES[script].train_step

    def with_a_term(*parts, **more):
        figures = train_step(*parts, **more)
        return figures | {"edges": figures["gradient_norm" if script == "train_srresnet" else "gradient_norm_g"]}

    flags = ["--data-folder", lists["off"], "--name", "small", "--device", "cpu", "--crop-size", 32, "--batch-size", 2]
    flags += ["--blocks", 1, "--channels", 4, "--log-every", 1, "--schedule", "constant"]
    if script == "train_srgan":
        flags += ["--init", "none", "--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4]
    call(script, *flags, "--steps", 2)
    monkeypatch.setattr(MODULES[script], "train_step", with_a_term)
    call(script, *flags, "--steps", 4, "--resume")
    with open("results/small/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["edges"] for row in rows[:2]] == ["", ""] and all(float(row["edges"]) > 0 for row in rows[2:])


def test_a_page_that_comes_back_exactly_does_not_choose_the_best(work, lists, monkeypatch, capsys):
    measured = iter([(math.inf, 20.0), (58.0, 21.0), (math.inf, 22.0), (70.0, 21.5)])

    def evaluate(*_):
        return [{"image": name, "psnr": psnr, "ssim": 0.5} for name, psnr in zip(("page", "photograph"), next(measured))]

    monkeypatch.setattr(runs, "evaluate", evaluate)
    flags = ["--data-folder", lists["off"], "--name", "small", "--device", "cpu", "--crop-size", 32, "--batch-size", 2]
    flags += ["--blocks", 1, "--channels", 4, "--validate-every", 1, "--steps", 4]
    call("train_srresnet", *flags)
    assert load_checkpoint("checkpoints/small/best.pth")["step"] == 3
    assert "psnr 36.0000" in capsys.readouterr().out  # the page counts 50 dB


def test_without_features_the_last_is_the_best(work, lists, vgg_file):
    flags = ["--data-folder", lists["off"], "--name", "small", "--device", "cpu", "--crop-size", 32, "--batch-size", 2]
    flags += ["--init", "none", "--blocks", 1, "--channels", 4, "--vgg-weights", vgg_file, "--vgg-layer", 11]
    flags += ["--discriminator-channels", 4, "--vgg-factor", 0, "--pixel-weight", 1, "--validate-every", 1, "--steps", 3]
    call("train_srgan", *flags)
    assert load_checkpoint("checkpoints/small/best.pth")["step"] == 3


def test_a_run_of_the_other_stage_is_not_resumed(stage, capsys, lists, vgg_file):
    script, flags = stage
    call(script, *flags)
    own = {"train_srgan": "--init", "train_distilled": "--faithful"}.get(script)
    common = flags[: flags.index(own)] if own else flags
    if own:
        refusal(capsys, "train_srresnet", *common, "--resume")
    else:
        more = ["--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4]
        refusal(capsys, "train_srgan", *common, *more, "--resume")


def test_a_loss_that_is_not_finite_stops_the_run(stage, work, monkeypatch, capsys):
    script, flags = stage

    def poison(network):
        with torch.no_grad():
            next(network.parameters()).fill_(math.nan)

    after_step(monkeypatch, script, 3, poison)
    line = refusal(capsys, script, *flags, "--validate-every", 4, "--save-every", 2, "--log-every", 5)
    assert "step 4: a loss or gradient is not finite" in line and "step_00000002.pth" in line and "--learning-rate" in line
    assert not (work / "checkpoints/small/best.pth").exists()  # which step 4 would have written
    saved = runs.Checkpoints(work / "checkpoints/small").load_newest()
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["weights"].values())


def test_a_bad_image_is_reported_and_does_not_stop_the_run(stage, work, tmp_path, photographs, capsys):
    from conftest import make_lists
    from PIL import Image

    script, flags = stage
    for i, photograph in enumerate(photographs):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(photograph).save(tmp_path / "photos" / f"{i}.png")
    make_lists(tmp_path / "data", tmp_path / "photos", "--pack", "off")
    gone = read_list(tmp_path / "data/train_images.json")[0]
    gone.unlink()
    call(script, *flags, "--data-folder", tmp_path / "data")
    out = capsys.readouterr().out
    assert "another image is drawn in place of" in out and gone.name in out and "done: 6 steps" in out


def test_a_bad_validation_image_is_found_before_the_first_step(stage, work, tmp_path, photographs, capsys):
    from PIL import Image

    script, flags = stage
    (tmp_path / "validation").mkdir()
    for i, photograph in enumerate(photographs[:2]):
        Image.fromarray(photograph).save(tmp_path / f"validation/{i}.png")
    bad = tmp_path / "validation/1.png"
    bad.write_bytes(bad.read_bytes()[:500])
    assert str(bad) in refusal(capsys, script, *flags, "--validate-on", tmp_path / "validation")
    Image.fromarray(photographs[0][:18, :18]).save(bad)
    assert "too small to measure" in refusal(capsys, script, *flags, "--validate-on", tmp_path / "validation")
    assert not (work / "checkpoints").exists() and not (work / "results").exists()


def test_stage_2_starts_from_stage_1(work, lists, vgg_file, capsys):
    torch.manual_seed(0)
    network = SRResNet(4, 1, 8)
    save_checkpoint("start.pth", {"config": network.config, "weights": network.state_dict(), "step": 1})
    generator = train_srgan.start_generator(SimpleNamespace(init="start.pth", scale=4))
    assert isinstance(generator, Generator) and equal(generator.net.state_dict(), network.state_dict())
    assert capsys.readouterr().out == ""
    # And goes on with the discriminator of another run.
    torch.manual_seed(1)
    discriminator = Discriminator(2)
    save_checkpoint("run.pth", {"discriminator": discriminator.state_dict()})
    args = SimpleNamespace(discriminator_channels=2, discriminator="paper", init_discriminator="run.pth", resume=False)
    assert equal(train_srgan.start_discriminator(args).state_dict(), discriminator.state_dict())
    problems = [({"init_discriminator": "start.pth"}, "no discriminator; give a last.pth of stage 2")]
    problems += [({"discriminator_channels": channels}, "holds another discriminator") for channels in (1, 3)]
    for wrong, message in problems:
        with pytest.raises(utils.UserError, match=message):
            train_srgan.start_discriminator(SimpleNamespace(**vars(args) | wrong))
    # To another scale what fits is taken, and what does not is named.
    generator = train_srgan.start_generator(SimpleNamespace(init="start.pth", scale=3))
    assert torch.equal(generator.net.head[0].weight, network.head[0].weight)
    out = capsys.readouterr().out
    assert "untrained: upsampling.0.0.weight" in out and "not used: " in out and "upsampling.1.0.weight" in out
    # Of another kind nothing fits, and to begin at random in its place would be a surprise.
    flags = ["--data-folder", lists["off"], "--device", "cpu"]
    line = refusal(capsys, "train_srresnet", *flags, "--arch", "srcnn", "--init", "start.pth", "--crop-size", 32)
    assert "start.pth: nothing of its network fits" in line and "srcnn" in line
    assert "--init" in refusal(capsys, "train_srgan", *flags, "--vgg-weights", vgg_file, "--vgg-layer", 22)


def test_under_torchrun_each_process_needs_a_gpu_of_its_own(monkeypatch):
    for key, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)  # which would stay for the other tests
    with pytest.raises(utils.UserError, match="cuda:1: this PyTorch sees 1 CUDA devices"):
        devices.Processes("auto")
    with pytest.raises(utils.UserError, match="give --device cuda$"):
        devices.Processes("cuda:0")


# Checkpoints


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = Generator(2, 1, 4)
    return tmp_path / "weights.pth", network, network.state_dict()


def refused(load, path):
    with pytest.raises(utils.UserError) as error:
        load(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_file_that_could_run_code_is_not_loaded(weights):
    path, network, _ = weights

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "exploded"),)

    for content in (network, {"config": network.config, "weights": Bomb()}):
        torch.save(content, path)
        assert "could run code" in refused(load_checkpoint, path)
    assert not (path.parent / "exploded").exists()


def test_a_damaged_file_is_refused(weights):
    path, network, state = weights
    torch.save({"config": network.config, "weights": state}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"no weights\n", b"<!DOCTYPE html>", b'{"a": 1}'):
        path.write_bytes(content)
        assert "whole" in refused(load_checkpoint, path)
    for i in range(200, len(whole), 97):  # PyTorch's reader has many ways to fail
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :])
        with contextlib.suppress(utils.UserError):
            load_network(path)
    path.unlink()
    assert "no such file" in refused(load_checkpoint, path)


def test_weights_of_another_network_are_refused(weights):
    path, network, state = weights
    contents = [Discriminator(4).state_dict(), [1, 2], {"config": network.config, "weights": SRResNet(2, 1, 8).state_dict()}]
    contents += [{"config": network.config | {"blocks": 2}, "weights": state}, {"config": {"arch": "vit"}, "weights": state}]
    contents += [{"weights": 3}, {"weights": [1]}, {"config": [1], "weights": state}]
    contents += [{"config": {"arch": [1]}, "weights": state}, {"weights": state | {"net.head.0.weight": 3}}]
    for content in contents:
        torch.save(content, path)
        refused(load_network, path)


def test_a_failed_save_leaves_the_earlier_file(weights, monkeypatch):
    path, _, state = weights
    save_checkpoint(path, {"weights": state, "step": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils.os, "fsync", full_disk)
    assert "No space left" in refused(lambda path: save_checkpoint(path, {"step": 2}), path)
    assert load_checkpoint(path)["step"] == 1 and list(path.parent.iterdir()) == [path]


def test_frozen_statistics_stay(batch):
    network = SRResNet(4, 1, 8)
    batchnorm.freeze_bn(network)
    before = copy.deepcopy(network.state_dict())
    train_srresnet.train_step(network, torch.optim.SGD(network.parameters(), 0.1), *batch)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not any("running" in key or "tracked" in key for key in changed)
    assert F.mse_loss(network(batch[0]), batch[1]).isfinite()
