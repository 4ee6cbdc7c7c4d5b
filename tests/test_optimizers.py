"""Muon: orthogonal steps for the kernels inside, Adam for the rest, and a run that is resumed."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import call

from models import SRCNN, SRResNet
from optimizers import Muon, orthogonal
from weights import load_checkpoint, save_checkpoint


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 64, 576)])
def test_singular_values_come_near_one_and_the_directions_stay(shape, precision, monkeypatch):
    monkeypatch.setattr("optimizers.quickest_precision", lambda device: precision)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrices[:, 0] *= 30  # what a gradient is mostly made of
    result = orthogonal(matrices)
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert values.max() > 10 * values.min()  # of the matrices
    found = torch.linalg.svdvals(result)
    assert found.min() > 0.5 and found.max() < 1.3
    assert F.cosine_similarity(result.flatten(1), (u @ vh).flatten(1)).min() > 0.95


def test_bf16_is_left_to_hardware_that_has_units_for_it(monkeypatch):
    matrices = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0))
    results = {}
    for precision in ("fp32", "fp16", "bf16"):
        monkeypatch.setattr("optimizers.quickest_precision", lambda device, precision=precision: precision)
        results[precision] = orthogonal(matrices)
    in_bf16 = {precision: torch.equal(result, result.bfloat16().float()) for precision, result in results.items()}
    assert in_bf16 == {"fp32": False, "fp16": False, "bf16": True}


def test_a_matrix_of_zeros_stays_so():
    assert torch.equal(orthogonal(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


def with_gradients(make):
    """A network, and gradients of it."""
    torch.manual_seed(1)
    network = make()
    lr_imgs = torch.rand(2, 3, 12, 12)
    network(lr_imgs).square().mean().backward()
    return network


@pytest.mark.parametrize("make", [lambda: SRResNet(4, 2, 8), lambda: SRCNN(2)])
def test_kernels_inside_turn_and_the_rest_is_adams(make):
    network = with_gradients(make)
    expected = copy.deepcopy(network)
    for ours, theirs in zip(network.parameters(), expected.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    before = copy.deepcopy(network)
    Muon(network, 1e-3).step()
    torch.optim.Adam(expected.parameters(), 1e-3).step()
    kernels = [name for name, weights in network.named_parameters() if weights.ndim == 4]
    inside = set(kernels[1:-1])
    parameters = zip(network.named_parameters(), before.parameters(), expected.parameters(), strict=True)
    for (name, ours), start, adams in parameters:
        if name not in inside:
            assert torch.allclose(ours, adams, atol=1e-7), name
            continue
        moved = (start - ours).detach()
        assert 0.1e-3 < moved.square().mean().sqrt() < 0.3e-3  # a fifth of the learning rate, whatever the gradient
        values = torch.linalg.svdvals(moved.flatten(1))
        assert values.max() < 3 * values.median()
        assert (moved * ours.grad).sum() > 0  # downhill


def test_its_state_comes_back(tmp_path):
    network = with_gradients(lambda: SRResNet(4, 2, 8))
    optimizer = Muon(network, 1e-3)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pth")
    other = copy.deepcopy(network)
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        ours.grad.mul_(-0.5)  # another gradient, so that what was before counts
        theirs.grad = ours.grad.clone()
    resumed = Muon(other, 7.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    for each in (optimizer, resumed):
        for group in each.param_groups:
            group["lr"] = 2e-3
        each.step()
    assert all(map(torch.equal, network.parameters(), other.parameters()))


def test_gradients_that_overflow_change_nothing():
    """In fp16, where the scaler then leaves the step out."""
    network = with_gradients(lambda: SRResNet(4, 1, 8))
    before, optimizer, scaler = copy.deepcopy(network), Muon(network, 1e-3), torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    network.body[0].layers[0].weight.grad[0] = torch.inf
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(map(torch.equal, network.parameters(), before.parameters()))
    optimizer.zero_grad()
    assert all(weights.grad is None for weights in network.parameters())


@pytest.mark.parametrize("script", ["train_srresnet", "train_srgan", "train_distilled"])
def test_a_run_is_resumed_as_if_it_had_gone_on(script, work, lists, vgg_file):
    flags = ["--data-folder", lists["on"], "--name", "a", "--device", "cpu", "--precision", "fp32", "--workers", 0]
    flags += ["--crop-size", 32, "--batch-size", 2, "--schedule", "constant", "--optimizer", "muon"]
    flags += ["--steps", 6, "--save-every", 3, "--validate-every", 6]
    sizes = ["--blocks", 1, "--channels", 8]
    if script == "train_srgan":
        flags += [*sizes, "--init", "none", "--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4]
    elif script == "train_distilled":
        network = SRResNet(4, 1, 8)
        save_checkpoint(work / "teacher.pth", {"config": network.config, "weights": network.state_dict()})
        flags += ["--faithful", work / "teacher.pth", "--turns", 2]
    else:
        flags += sizes
    call(script, *flags)
    folder = Path("checkpoints/a")
    whole = load_checkpoint(folder / "last.pth")
    (folder / "last.pth").unlink()
    (folder / "step_00000006.pth").unlink()
    call(script, *flags, "--resume")
    resumed = load_checkpoint(folder / "last.pth")
    assert resumed["step"] == 6
    assert len(whole["optimizer_g" if script == "train_srgan" else "optimizer"]["momenta"]) == 5
    for part in ("weights", "ema"):
        assert all(torch.equal(whole[part][key], value) for key, value in resumed[part].items())
