"""Networks that were trained with frozen statistics, as those that ship, go on from where they are."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, call

import batchnorm
from datasets import training_pair
from inference import for_inference
from models import Generator, SRResNet
from weights import blend_networks, load_checkpoint, load_network, save_checkpoint


@pytest.fixture
def batch(photographs):
    crops = [torch.from_numpy(photographs[i][:64, :64].copy()).permute(2, 0, 1) for i in range(8)]
    return training_pair(torch.stack(crops), 4)


def drifted(network):
    """The network with statistics that no batch has, and the same results by them."""
    torch.manual_seed(3)
    for norm in batchnorm.norms_of(network):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        batchnorm.rebase(norm, 3 * torch.randn(norm.num_features), 5 + torch.rand(norm.num_features))
    return network


def in_use(network, lr_imgs):
    with torch.no_grad():
        return network.eval()(lr_imgs)


def by_batch(network, lr_imgs):
    with torch.no_grad():
        return copy.deepcopy(network).train()(lr_imgs)


def test_a_layer_computes_the_same_by_other_statistics():
    norm, x = torch.nn.BatchNorm2d(5).eval(), torch.randn(2, 5, 4, 4)
    torch.nn.init.uniform_(norm.weight)
    before = norm(x)
    batchnorm.rebase(norm, torch.randn(5), torch.rand(5) + 0.1)
    assert torch.allclose(norm(x), before, atol=1e-5) and norm.running_mean.abs().max() > 0.1


def test_a_frozen_network_is_fitted_and_computes_the_same(batch):
    network = drifted(SRResNet(4, 3, 8))
    before = in_use(network, batch[0])
    assert (by_batch(network, batch[0]) - before).abs().mean() > 0.01
    network.train()
    batchnorm.norms_of(network)[0].eval()
    assert batchnorm.fit_statistics(network, batch[0])
    assert network.training and [norm.training for norm in batchnorm.norms_of(network)].count(False) == 1  # as they were
    assert torch.allclose(in_use(network, batch[0]), before, atol=1e-5)
    assert torch.allclose(by_batch(network, batch[0]), before, atol=1e-3)
    assert not batchnorm.fit_statistics(network, batch[0])


def test_what_was_trained_by_batches_or_not_at_all_stays(batch):
    network = SRResNet(4, 2, 8)
    for trained in (False, True):
        if trained:
            for _ in range(60):
                network(batch[0])
        before = copy.deepcopy(network.state_dict())
        assert not batchnorm.fit_statistics(network, batch[0])
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_layers_that_nothing_was_trained_of_stay(batch):
    network = drifted(SRResNet(4, 2, 8))
    fresh = batchnorm.norms_of(network)[2]
    fresh.reset_running_stats()
    before = copy.deepcopy(fresh.state_dict())
    assert batchnorm.fit_statistics(network, batch[0])
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("name", ["srresnet_x4", "srgan_x4", "srresnet_x4_photo", "srgan_x4_photo"])
def test_the_weights_that_ship_are_fitted(batch, name):
    """And by batches of other pictures they are then what they are in use, within a fraction of a decibel."""
    network = load_network(ROOT / f"checkpoints/{name}.pth")
    lr_imgs, hr_imgs = batch
    before = in_use(network, lr_imgs)
    assert batchnorm.fit_statistics(network, lr_imgs[:4])
    assert (in_use(network, lr_imgs) - before).abs().max() < 1e-3
    loss, trained_loss = (F.mse_loss(made(network, lr_imgs[4:]), hr_imgs[4:]) for made in (in_use, by_batch))
    assert trained_loss < 1.5 * loss


def test_a_mixture_is_one_of_functions_whatever_statistics_they_know(batch):
    torch.manual_seed(0)
    first = drifted(SRResNet(4, 2, 8))
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    expected = in_use(blend_networks(first, copy.deepcopy(second), 0.5), batch[0])
    assert batchnorm.fit_statistics(second, batch[0])
    assert torch.allclose(in_use(blend_networks(first, second, 0.5), batch[0]), expected, atol=1e-4)


@pytest.fixture
def start(work, lists):
    network = drifted(Generator(4, 1, 8))
    save_checkpoint(work / "start.pth", {"config": network.config, "weights": network.state_dict()})
    flags = ["--data-folder", lists["on"], "--device", "cpu", "--precision", "fp32", "--workers", 0, "--crop-size", 32]
    return [*flags, "--batch-size", 4, "--init", "start.pth", "--ema-decay", 0]


SIZE = ["--blocks", 1, "--channels", 8]


@pytest.mark.parametrize("script", ["train_srresnet", "train_srgan"])
def test_a_run_goes_on_from_where_its_start_is(start, vgg_file, script, batch, capsys):
    gan = ["--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4]
    own, frozen = (gan, ["--freeze-bn", "generator"]) if script == "train_srgan" else (SIZE, ["--freeze-bn"])
    before, distances = in_use(load_network("start.pth"), batch[0]), []
    for name, more in (("fitted", []), ("frozen", frozen)):
        call(script, *start, *own, *more, "--name", name, "--steps", 3, "--learning-rate", 0)
        assert ("fitted to these" in capsys.readouterr().out) == (name == "fitted")
        trained = load_network(f"checkpoints/{name}/last.pth")
        distances.append((for_inference(trained)(batch[0]) - before).abs().mean())
    assert distances[1] < 1e-5 and distances[0] < 0.02


def test_while_the_discriminator_learns_alone_the_generator_stays(start, vgg_file, batch):
    gan = ["--vgg-weights", vgg_file, "--vgg-layer", 22, "--discriminator-channels", 4, "--discriminator-alone", 2]
    call("train_srgan", *start, *gan, "--steps", 3, "--save-every", 1)
    second, third = (load_checkpoint(f"checkpoints/srgan_x4/step_0000000{step}.pth") for step in (2, 3))
    before = in_use(load_network("start.pth"), batch[0])
    for key in ("weights", "ema"):
        save_checkpoint("alone.pth", {"config": second["config"], "weights": second[key]})
        assert torch.allclose(in_use(load_network("alone.pth"), batch[0]), before, atol=1e-5)
    counted = [key for key in third["weights"] if key.endswith("num_batches_tracked")]
    assert all(third["weights"][key] == second["weights"][key] + 1 for key in counted)
