"""Distillation: what is to be learnt of finished networks, the step, and that it brings a network nearer to its target."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import call, refusal

import datasets
import train_distilled
from datasets import training_pair
from image_lists import read_list
from inference import SelfEnsemble, for_inference
from losses import chroma, luma
from models import Generator, SRResNet
from pictures.pixels import read_image, write_image
from weights import load_checkpoint, load_network, save_checkpoint

ARGS = train_distilled.parse_arguments([])


def some_args(**changes):
    return SimpleNamespace(**vars(ARGS) | changes)


@pytest.fixture
def batch(photographs):
    """Four real training pairs, the second gray and the third of one colour."""
    crops = [torch.from_numpy(photographs[i][20:52, 20:52].copy()).permute(2, 0, 1) for i in (0, 3, 6, 8)]
    crops[1] = crops[1][:1].expand(3, -1, -1)
    crops[2] = torch.tensor([250, 128, 3], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    return training_pair(torch.stack(crops), 4)


@pytest.fixture
def teachers():
    torch.manual_seed(0)
    return [for_inference(SRResNet(4, blocks=1, channels=8)) for _ in range(2)]


@pytest.fixture
def whole(monkeypatch):
    """Targets as they are before the mesh is taken out of them, and echoes beside edges."""
    monkeypatch.setattr(train_distilled, "repeated", lambda y, scale: torch.zeros_like(y))
    monkeypatch.setattr(train_distilled, "flat_beside_edges", torch.zeros_like)


def small(imgs):
    return F.interpolate(imgs, (8, 8), mode="bicubic", antialias=True)


def test_the_target_of_one_network_is_what_it_makes(teachers, batch):
    lr_imgs, hr_imgs = batch
    made = teachers[0](lr_imgs)
    targets, faithful_imgs = train_distilled.target_images(teachers[0], None, *batch, ARGS, 1, clean=False)
    assert torch.equal(faithful_imgs, made) and torch.equal(targets[0], made[0]) and torch.equal(targets[3], made[3])
    targets, _ = train_distilled.target_images(teachers[0], None, *batch, ARGS, 1)  # of a clean LR image, which is known
    more = F.interpolate(2 * lr_imgs - 1 - small(made), (32, 32), mode="bicubic", antialias=True)
    assert torch.allclose(targets[0], (made + more)[0], atol=1e-6)
    assert (small(targets) - 2 * lr_imgs + 1)[0].abs().mean() < 0.5 * (small(made) - 2 * lr_imgs + 1)[0].abs().mean()


def test_the_target_of_two_has_the_colours_of_the_faithful_one(teachers, batch, whole):
    args = some_args(factor=1.5)
    with torch.no_grad():
        faithful_imgs, sharp_imgs = (teacher(batch[0]) for teacher in teachers)
        targets, _ = train_distilled.target_images(*teachers, *batch, args, 1, clean=False)
    assert torch.allclose(chroma(targets)[0], chroma(faithful_imgs)[0], atol=1e-6)
    difference = luma(sharp_imgs) - luma(faithful_imgs)
    assert torch.allclose(luma(targets)[:2], (luma(faithful_imgs) + 1.5 * difference)[:2], atol=1e-6)


def test_what_is_fine_has_a_factor_of_its_own(teachers, batch, whole):
    """Waves of 8 pixels and of 2.5 pixels are told apart; with equal factors it is as without."""
    waves = {
        length: torch.sin(2 * torch.pi * torch.arange(40) / length).view(1, 1, 1, 40).expand(1, 1, 40, 40)
        for length in (8, 2.5)
    }
    shares = {length: (train_distilled.blurred(wave) / wave)[..., 20, 18:22].mean() for length, wave in waves.items()}
    assert 0.75 < shares[8] < 0.9 and 0.1 < shares[2.5] < 0.2
    assert torch.allclose(train_distilled.blurred(torch.ones(1, 1, 9, 9)), torch.ones(1, 1, 9, 9))
    of = lambda **factors: train_distilled.target_images(*teachers, *batch, some_args(**factors), 1, clean=False)[0]  # noqa: E731
    with torch.no_grad():
        plain, equal, coarse, fine = (of(factor=f, fine_factor=g) for f, g in ((2.0, None), (2.0, 2.0), (2.0, 0.0), (0.0, 2.0)))
        nothing = of(factor=0.0)
    assert torch.allclose(plain, equal, atol=1e-5) and torch.allclose(coarse + fine - nothing, plain, atol=1e-5)
    assert (coarse - plain)[0].abs().max() > 0.01 and (fine - plain)[0].abs().max() > 0.01


def test_what_the_sharp_one_gets_wrong_is_not_learnt():
    """Trust is 1 up to the ratio of errors, 0 from 1.4 times it, and in between on the line between both, place by place."""
    hr_imgs = torch.zeros(1, 3, 40, 40)
    faithful_imgs = hr_imgs + 0.1
    sharp_imgs = hr_imgs + 0.1 * torch.tensor([1.0, 2.0, 2.4, 2.8, 5.0]).repeat_interleave(8).view(1, 1, 1, 40)
    trusted = train_distilled.trust(sharp_imgs, faithful_imgs, hr_imgs, 2.0)
    assert trusted.shape == (1, 1, 40, 40)
    assert torch.allclose(trusted[0, 0, 20, [3, 36]], torch.tensor([1.0, 0.0]))  # a window of 7 pixels within one level
    assert torch.allclose(trusted[0, 0, 20, [11, 20, 28]], torch.tensor([1.0, 0.5, 0.0]), atol=0.02)
    assert train_distilled.trust(hr_imgs, hr_imgs, hr_imgs, 1.0).min() > 0.999  # where both are right


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_mesh_is_what_each_lr_pixel_repeats(scale):
    """All of a tile of LR pixels, also where it is confined; none of what is smooth, and little of noise."""
    tile = torch.randn(1, 1, scale, scale, generator=torch.manual_seed(0))
    mesh = (tile - tile.mean()).repeat(2, 1, 24, 24)
    assert torch.allclose(train_distilled.repeated(mesh, scale), mesh, atol=1e-5)
    half = mesh * (torch.arange(24 * scale) < 12 * scale)
    found = train_distilled.repeated(half, scale)
    assert (
        torch.allclose(found[..., : 6 * scale], mesh[..., : 6 * scale], atol=1e-3)
        and found[..., 18 * scale :].abs().max() < 1e-3
    )
    brightness = F.interpolate(torch.randn(2, 1, 3, 3), (24 * scale, 24 * scale), mode="bicubic")
    assert train_distilled.repeated(brightness, scale).std() < 0.1 * brightness.std()
    assert train_distilled.repeated(torch.ones(1, 1, 2 * scale, 3 * scale), scale).abs().max() < 1e-6
    noise = torch.randn(2, 1, 24 * scale, 24 * scale)
    assert 0.1 < train_distilled.repeated(noise, scale).std() < 0.25


@pytest.mark.parametrize("turned", [False, True])
def test_flat_ground_is_told_from_texture_and_only_beside_edges(turned):
    y = torch.zeros(1, 1, 64, 96)
    y[..., 10:12] = 1.0  # a bright line, and far from it ground of the same kind
    edge = train_distilled.local_rms(y - train_distilled.blurred(y, 2.0)).max().item()
    detail = torch.randn(1, 1, 64, 96, generator=torch.manual_seed(0))
    detail /= train_distilled.local_rms(detail - train_distilled.blurred(detail, 2.0)).mean()
    for strength, beside in ((0.01, (0.9, 1)), (0.15, (0.35, 0.65)), (1.0, (0, 0.1))):
        picture = y + strength * edge * detail
        flat = train_distilled.flat_beside_edges(picture.mT if turned else picture)
        flat = flat.mT if turned else flat
        assert flat.shape == y.shape and beside[0] <= flat[0, 0, :, 18:20].mean() <= beside[1]
        assert flat[..., 40:].max() < 0.2  # however weak it is: the strongest edge there is its own
        assert flat[..., 10:12].max() < 0.05


def test_on_flat_ground_beside_edges_the_target_is_hr_and_weighs_more(teachers, batch, monkeypatch):
    lr_imgs, hr_imgs = batch[0][:1], batch[1][:1]
    ground = torch.zeros(1, 1, 32, 32)
    monkeypatch.setattr(train_distilled, "flat_beside_edges", lambda y: ground)
    with torch.no_grad():
        plain, _ = train_distilled.target_images(*teachers, lr_imgs, hr_imgs, ARGS, 1)
        ground[..., :16] = 1.0
        targets, _ = train_distilled.target_images(*teachers, lr_imgs, hr_imgs, ARGS, 1)
    assert torch.allclose(luma(targets)[..., :16], luma(hr_imgs)[..., :16], atol=1e-6)
    assert torch.equal(targets[..., 16:], plain[..., 16:]) and torch.allclose(chroma(targets), chroma(plain), atol=1e-6)
    assert luma(plain - hr_imgs).abs().mean() > 0.01
    torch.manual_seed(1)
    network, losses = SRResNet(4, 1, 8), []
    for weight in (0.0, 3.0):
        args = some_args(ground_weight=weight, luma_weight=1.0)
        figures = train_distilled.train_step(
            network, *teachers, torch.optim.SGD(network.parameters(), 0.0), lr_imgs, hr_imgs, args
        )
        losses.append(figures["luma"])
    errors = luma(network(lr_imgs) - targets).abs()
    assert torch.isclose(losses[0], errors.mean(), rtol=1e-4)
    assert torch.isclose(losses[1], errors.mean() + 3 * errors[..., :16].mean() / 2, rtol=1e-4)


def test_the_target_has_the_mesh_of_hr_alone(teachers, batch, monkeypatch):
    monkeypatch.setattr(train_distilled, "flat_beside_edges", torch.zeros_like)
    with torch.no_grad():
        targets, _ = train_distilled.target_images(*teachers, *batch, some_args(factor=2.0), 1, clean=False)
        plain, _ = train_distilled.target_images(teachers[0], None, *batch, ARGS, 1, clean=False)
    left, before = (train_distilled.repeated(luma(imgs - batch[1]), 4)[0].std() for imgs in (targets, plain))
    assert left < 0.3 * before  # the windows at the rim see other neighbours the second time


def test_the_target_without_trust_is_the_faithful_one(teachers, batch, whole):
    with torch.no_grad():
        everywhere, nowhere = (
            train_distilled.target_images(*teachers, *batch, some_args(trust=ratio), 1, clean=False)[0] for ratio in (1e6, 1e-6)
        )
        plain, faithful_imgs = train_distilled.target_images(*teachers, *batch, ARGS, 1, clean=False)
    assert torch.equal(everywhere, plain) and torch.equal(nowhere[0], faithful_imgs[0]) and not torch.equal(plain, nowhere)


def test_of_hardly_degraded_pictures_the_target_is_that_of_the_clean_pair(teachers, batch):
    """Of clean ones it is wholly that, of those that are 3.5 levels off half, and of those that are 8 off none."""
    torch.manual_seed(2)
    pair = [for_inference(SRResNet(4, blocks=1, channels=8)) for _ in range(2)]
    hr_imgs = batch[1][[0, 3, 0, 3]]
    clean_lr_imgs = (small(hr_imgs).clamp(-1, 1) + 1) / 2
    noise = torch.where(torch.rand(4, 3, 8, 8) < 0.5, -1.0, 1.0)
    lr_imgs = clean_lr_imgs + noise * torch.tensor([0.0, 1.0, 3.5, 8.0]).view(4, 1, 1, 1) / 255
    share = torch.tensor([1.0, 1.0, 0.5, 0.0]).view(4, 1, 1, 1)
    with torch.no_grad():
        targets, faithful_imgs = train_distilled.target_images(*teachers, lr_imgs, hr_imgs, ARGS, 1, False, pair)
        plain, _ = train_distilled.target_images(*teachers, lr_imgs, hr_imgs, ARGS, 1, False)
        better, _ = train_distilled.target_images(*pair, clean_lr_imgs, hr_imgs, ARGS, 1, True)
    assert torch.equal(faithful_imgs, train_distilled.faithful_images(teachers[0], lr_imgs, ARGS, 1))
    assert torch.allclose(targets, share * better + (1 - share) * plain, atol=1e-4)
    assert torch.equal(targets[3], plain[3]) and (targets - plain)[:3].abs().amax((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("clean", [True, False])
def test_gray_pictures_and_pages_of_one_colour_are_known(teachers, batch, clean):
    targets, _ = train_distilled.target_images(*teachers, *batch, ARGS, 1, clean)
    assert chroma(targets)[1].abs().max() < 1e-6 < 1e-3 < chroma(targets)[0].abs().max()
    assert torch.equal(targets[2], batch[1][2]) and not torch.equal(targets[0], batch[1][0])


def test_drawings_are_known_and_photographs_are_not(photographs):
    """Most drawings, even with a little grain; of photographs few, such as those with a flat sky, are taken for one."""
    of = lambda crops: train_distilled.drawn(training_pair(torch.stack(crops), 4)[1]).flatten()  # noqa: E731
    drawings = [datasets.drawing(np.random.default_rng(seed), 64) for seed in range(60)]
    assert of([torch.from_numpy(crop).permute(2, 0, 1) for crop in drawings]).float().mean() > 0.6
    assert of([torch.from_numpy(photographs[i][8:72, 8:72].copy()).permute(2, 0, 1) for i in range(10)]).sum() <= 2
    assert of([torch.full((3, 8, 8), level, dtype=torch.uint8) for level in (0, 77, 255)]).all()


def test_eight_turns_are_the_self_ensemble_and_fewer_are_a_part_of_it(teachers, batch):
    lr_imgs, ensemble = batch[0][:1], SelfEnsemble(teachers[0])
    of = lambda turns, step=1: train_distilled.faithful_images(teachers[0], lr_imgs, some_args(turns=turns), step)  # noqa: E731
    assert torch.allclose(of(8), ensemble.reconstruct(ensemble.features(lr_imgs)), atol=1e-5)
    assert torch.equal(of(1), teachers[0](lr_imgs)) and torch.equal(of(2), of(2)) and not torch.equal(of(2), of(2, step=2))
    mean = sum(of(2, step) for step in range(400)) / 400
    assert (mean - of(8)).abs().mean() < 0.2 * (of(2) - of(8)).abs().mean()


def test_the_step_is_that_of_its_terms(teachers, batch):
    weights = {"luma_weight": 2.0, "chroma_weight": 3.0, "consistency_weight": 5.0, "echo_weight": 7.0}
    args = some_args(**weights, calm_weight=9.0, mesh_weight=11.0, excess_weight=13.0, factor=0.5)
    torch.manual_seed(1)
    network = SRResNet(4, 1, 8)
    reference = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    figures = train_distilled.train_step(network, *teachers, optimizer, *batch, args)
    targets, faithful_imgs = train_distilled.target_images(*teachers, *batch, args, 0)
    sr_imgs, hr_imgs = reference(batch[0]), batch[1]
    terms = {
        "luma": 2 * (luma(sr_imgs) - luma(targets)).abs().mean(),
        "chroma": 3 * (chroma(sr_imgs) - chroma(targets)).abs().mean(),
        "consistency": 5 * train_distilled.consistency_loss(sr_imgs, hr_imgs, 4),
        "echo": 7 * train_distilled.echo_loss(sr_imgs, hr_imgs, 4),
        "calm": 9 * train_distilled.calm_loss(sr_imgs, hr_imgs, 4),
        "mesh": 11 * train_distilled.mesh_loss(sr_imgs, hr_imgs, 4),
        "excess": 13 * train_distilled.excess_error_loss(sr_imgs, hr_imgs, faithful_imgs),
    }
    sum(terms.values()).backward()
    for name, value in (terms | {"loss": sum(terms.values())}).items():
        assert torch.isclose(figures[name], value, rtol=1e-4)
    for before, after in zip(reference.parameters(), network.parameters(), strict=True):
        assert torch.allclose(before - 0.1 * before.grad, after, atol=1e-5)


def test_what_the_clean_pair_knows_is_not_calmed(teachers, batch):
    hr_imgs = batch[1][[0, 0, 0]]
    lr_imgs = train_distilled.made_small(hr_imgs, (8, 8))
    noise = torch.where(torch.rand(3, 3, 8, 8, generator=torch.manual_seed(0)) < 0.5, -1.0, 1.0)
    lr_imgs = lr_imgs + noise * torch.tensor([1.0, 3.5, 8.0]).view(3, 1, 1, 1) / 255
    torch.manual_seed(1)
    network = SRResNet(4, 1, 8)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    step = lambda pair: train_distilled.train_step(  # noqa: E731
        network, *teachers, optimizer, lr_imgs, hr_imgs, some_args(calm_weight=2.0), step=1, clean=False, clean_pair=pair
    )
    sr_imgs, weights = network(lr_imgs), torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    assert torch.isclose(step(teachers)["calm"], 2 * train_distilled.calm_loss(sr_imgs, hr_imgs, 4, weights), rtol=1e-3)
    assert torch.isclose(step(None)["calm"], 2 * train_distilled.calm_loss(sr_imgs, hr_imgs, 4), rtol=1e-4)


@pytest.fixture
def finished(work, lists):
    """Weights of either stage, and the flags of a small run that learns of them."""
    torch.manual_seed(0)
    for name, network in (("srresnet", SRResNet(4, 1, 8)), ("srgan", Generator(4, 1, 8))):
        save_checkpoint(work / f"{name}.pth", {"config": network.config, "weights": network.state_dict()})
    flags = ["--data-folder", lists["on"], "--name", "small", "--device", "cpu", "--precision", "fp32", "--workers", 0]
    flags += ["--crop-size", 32, "--batch-size", 4, "--learning-rate", 1e-3, "--steps", 6, "--validate-every", 3]
    return [*flags, "--faithful", "srresnet.pth"]


def test_a_network_comes_nearer_to_its_target(finished, lists):
    torch.manual_seed(1)
    other = SRResNet(4, 1, 8)
    save_checkpoint("other.pth", {"config": other.config, "weights": other.state_dict()})
    flags = ["--init", "other.pth", "--turns", 2, "--steps", 100, "--validate-every", 100, "--learning-rate", 3e-3]
    call("train_distilled", *finished, *flags, "--ema-decay", 0.5)
    teacher = for_inference(load_network("srresnet.pth"))
    distances = []
    for path in ("other.pth", "checkpoints/small/last.pth"):
        student, distance = for_inference(load_network(path)), 0
        for image in read_list(lists["on"] / "validation_images.json"):
            pixels = read_image(image)[:64, :64].transpose(2, 0, 1).copy()
            pair = training_pair(torch.from_numpy(pixels)[None], 4)
            targets, _ = train_distilled.target_images(teacher, None, *pair, some_args(turns=8), 1)
            distance += (student(pair[0]) - targets).abs().mean()
        distances.append(distance)
    assert distances[1] < 0.5 * distances[0]


def test_the_kind_of_network_is_that_of_its_start(finished):
    call("train_distilled", *finished, "--sharp", "srgan.pth", "--recipe", "shipped", "--steps", 2)
    assert load_checkpoint("checkpoints/small/last.pth")["config"]["arch"] == "srgan"
    call("train_distilled", *finished, "--sharp", "srgan.pth", "--init", "srresnet.pth", "--steps", 2, "--name", "two")
    assert load_checkpoint("checkpoints/two/last.pth")["config"]["arch"] == "srresnet"


def test_what_is_missing_or_of_another_scale_is_refused(finished, work, capsys):
    assert "--faithful" in refusal(capsys, "train_distilled", *finished[:-2])
    network = SRResNet(2, 1, 8)
    save_checkpoint(work / "twice.pth", {"config": network.config, "weights": network.state_dict()})
    for flag in ("--sharp", "--init"):
        line = refusal(capsys, "train_distilled", *finished, flag, "twice.pth")
        assert "twice.pth" in line and "x2" in line
    photo = ["--degradation", "photo", "--clean-pair", "srresnet.pth"]
    assert "twice.pth" in refusal(capsys, "train_distilled", *finished, *photo, "twice.pth")
    assert "--clean-pair" in refusal(capsys, "train_distilled", *finished, "--clean-pair", "srresnet.pth", "srgan.pth")
    assert "nowhere.pth" in refusal(capsys, "train_distilled", *finished, "--sharp", "nowhere.pth")


def test_a_run_on_photographs_learns_of_the_clean_pair(finished, monkeypatch):
    made, learnt_from = [], train_distilled.learnt_from
    monkeypatch.setattr(train_distilled, "clean_share", lambda lr_imgs, _: torch.ones(len(lr_imgs), 1, 1, 1))
    monkeypatch.setattr(train_distilled, "learnt_from", lambda *parts: made.append(parts[:2]) or learnt_from(*parts))
    flags = ["--recipe", "photo", "--drawn-share", 0, "--sharp", "srgan.pth", "--clean-pair", "srgan.pth", "srresnet.pth"]
    call("train_distilled", *finished, *flags, "--steps", 1)
    known = {f"{name}.pth": next(for_inference(load_network(f"{name}.pth")).parameters()) for name in ("srresnet", "srgan")}
    names = [[n for net in pair for n in known if torch.equal(next(net.parameters()), known[n])] for pair in made]
    assert names == [["srresnet.pth", "srgan.pth"], ["srgan.pth", "srresnet.pth"]]


@pytest.mark.parametrize("more, best_step", [([], 3), (["--sharp", "srgan.pth"], 6)])
def test_the_best_of_a_sharp_run_is_not_that_of_the_highest_psnr(finished, monkeypatch, more, best_step):
    validate = train_distilled.Run.validate

    def falling(run, step, *rest):
        return validate(run, step, *rest) | {"psnr": 30.0 - step}

    monkeypatch.setattr(train_distilled.Run, "validate", falling)
    call("train_distilled", *finished, *more)
    assert load_checkpoint("checkpoints/small/best.pth")["step"] == best_step


@pytest.mark.parametrize("kind", ["bicubic", "photo", "given"])
def test_only_lr_images_made_by_bicubic_are_taken_for_clean(finished, work, photographs, monkeypatch, kind):
    seen, step = [], train_distilled.train_step
    monkeypatch.setattr(train_distilled, "train_step", lambda *parts: seen.append(parts[-2]) or step(*parts))
    flags = [*finished, "--steps", 1, "--degradation", "photo" if kind == "photo" else "bicubic"]
    if kind == "given":
        for i, photograph in enumerate(photographs):
            for folder, factor in (("hr", 1), ("lr", 4)):
                (work / folder).mkdir(exist_ok=True)
                write_image(work / folder / f"{i}.png", photograph[::factor, ::factor])
        pairs = ["--train-folders", work / "hr", "--lr-folders", work / "lr", "--validation-images", 2, "--min-size", 32]
        call("create_data_lists", *pairs, "--output-folder", work / "pairs")
        flags += ["--data-folder", work / "pairs"]
    call("train_distilled", *flags)
    assert seen == [kind == "bicubic"]
