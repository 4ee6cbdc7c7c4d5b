"""The networks where other programs load them: torch.hub, and spandrel, which is the loader of ComfyUI and chaiNNer."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from helpers import make_pictures, with_statistics
from PIL import Image
from test_layout import FLOOR_OF, imports

import hubconf
from inference import Upscaler
from models import build_network
from weights import load_network, save_checkpoint

WEIGHTS = {name: ROOT / "checkpoints" / f"{name}.pth" for name in ("srgan_x4", "srresnet_x4")}


def lr_image(height, width):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def agree(network, weights, lr_imgs, atol=4e-5):
    """Assert that a loaded network gives the SR images of the weights in [0, 1], to a hundredth of a grey level."""
    sr_imgs = network(lr_imgs)
    assert sr_imgs.min() >= 0 and sr_imgs.max() <= 1
    torch.testing.assert_close(sr_imgs, Upscaler(load_network(weights))(lr_imgs), atol=atol, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# torch.hub
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTS)
def test_hub(name):
    network = torch.hub.load(str(ROOT), name, source="local")
    assert not network.training and network.config["scale"] == 4
    agree(network, WEIGHTS[name], lr_image(9, 14))


def test_hub_gives_the_picture_of_test(work):
    (picture,) = make_pictures(work / "pictures", ["chelsea"], (24, 19)).iterdir()
    call("test", picture, "--weights", WEIGHTS["srgan_x4"], "--precision", "fp32", "--output", "results")
    network = torch.hub.load(str(ROOT), "srgan_x4", source="local")
    lr_imgs = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).permute(2, 0, 1)[None] / 255
    sr_img = network(lr_imgs)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    wanted = np.asarray(Image.open(work / "results" / "chelsea_x4.png"))
    assert np.abs(sr_img.astype(int) - wanted).max() <= 1


def test_hub_lists_the_networks_alone():
    names = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}  # as torch.hub.list
    assert names == {"srresnet_x4", "srgan_x4", "srresnet_x4_photo", "srgan_x4_photo"}


@pytest.mark.parametrize("name", ["srgan_x4", "srgan_x4_photo", "srresnet_x4_photo"])
def test_hub_without_the_weights(tmp_path, monkeypatch, name):
    """As of a weight file that is not in the copy at hand."""
    (tmp_path / "hubconf.py").write_text((ROOT / "hubconf.py").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=f"checkpoints/{name}.pth"):
        torch.hub.load(str(tmp_path), name, source="local")


def test_hub_loads_a_file_that_comes_later(tmp_path, monkeypatch):
    monkeypatch.setattr(hubconf, "FOLDER", tmp_path)
    network = with_statistics(build_network({"arch": "srgan", "scale": 4, "blocks": 1, "channels": 4}))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "srgan_x4_photo.pth"
    save_checkpoint(file, {"config": network.config, "weights": network.state_dict(), "step": 1})
    agree(hubconf.srgan_x4_photo(), file, lr_image(6, 5))


@pytest.mark.parametrize("name", ["utils", "models", "weights"])
def test_hub_beside_modules_of_the_same_name(monkeypatch, name):
    """Who calls torch.hub has a `utils` of his own: he gets the network, and keeps his module."""
    for module in [module for module in sys.modules if module.split(".")[0] in ("inference", "pictures", *FLOOR_OF)]:
        monkeypatch.delitem(sys.modules, module)
    theirs = ModuleType(name)
    theirs.__file__ = "/elsewhere/of/the/caller.py"
    monkeypatch.setitem(sys.modules, name, theirs)
    network = torch.hub.load(str(ROOT), "srgan_x4", source="local")
    assert network(lr_image(3, 4)).shape == (1, 3, 12, 16)
    assert sys.modules[name] is theirs


# ---------------------------------------------------------------------------------------------------------------------
# spandrel
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def loader():
    """spandrel's loader, with our architecture among all of its own."""
    spandrel = pytest.importorskip("spandrel")
    import spandrel_srresnet

    registry = spandrel.MAIN_REGISTRY.copy()
    spandrel_srresnet.register(registry)
    return spandrel.ModelLoader(registry=registry)


@pytest.mark.parametrize("name", WEIGHTS)
def test_spandrel(loader, name):
    network = loader.load_from_file(WEIGHTS[name])
    assert network.architecture.id == "SRResNet" and network.scale == 4 and network.purpose == "SR"
    assert network.tags == ["64nf", "16nb"]
    agree(network, WEIGHTS[name], lr_image(13, 8))


@pytest.mark.parametrize(
    "config",
    [{"arch": "srresnet", "scale": 2}, {"arch": "srgan", "scale": 3}, {"arch": "srgan", "scale": 8, "imagenet_input": True}],
)
def test_spandrel_reads_the_sizes_off_the_weights(loader, tmp_path, config):
    network = with_statistics(build_network(config | {"blocks": 2, "channels": 6}))
    save_checkpoint(tmp_path / "small.pth", {"config": network.config, "weights": network.state_dict(), "step": 5})
    loaded = loader.load_from_file(tmp_path / "small.pth")
    assert loaded.scale == config["scale"] and loaded.tags == ["6nf", "2nb"]
    agree(loaded, tmp_path / "small.pth", lr_image(5, 7))


def test_spandrel_takes_bare_weights_and_safetensors(loader, tmp_path):
    pytest.importorskip("safetensors")
    network = with_statistics(build_network({"arch": "srgan", "scale": 4, "blocks": 1, "channels": 4}))
    save_checkpoint(checkpoint := tmp_path / "small.pth", {"config": network.config, "weights": network.state_dict()})
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    call("export", "--weights", checkpoint, "--format", "safetensors")
    for name in ("bare.pth", "small.safetensors"):
        agree(loader.load_from_file(tmp_path / name), checkpoint, lr_image(4, 9))


@pytest.mark.parametrize("dtype, atol", [(torch.float16, 1.5 / 255), (torch.bfloat16, 12 / 255)])
def test_spandrel_in_half(loader, dtype, atol):
    network, lr_imgs = loader.load_from_file(WEIGHTS["srresnet_x4"]).to(dtype), lr_image(9, 9)
    wanted = Upscaler(load_network(WEIGHTS["srresnet_x4"]))(lr_imgs)
    torch.testing.assert_close(network(lr_imgs.to(dtype)).float(), wanted, atol=atol, rtol=0)


def test_spandrel_registers_once_and_leaves_the_others_theirs(loader):
    spandrel = pytest.importorskip("spandrel")
    import spandrel_srresnet

    spandrel_srresnet.register(loader.registry)
    assert len(loader.registry) == len(spandrel.MAIN_REGISTRY) + ("SRResNet" not in spandrel.MAIN_REGISTRY)
    for state in ({"body.0.weight": torch.zeros(1)}, {"weights": {"head.0.weight": torch.zeros(1)}}, {"config": {}}):
        assert not spandrel_srresnet.is_ours(state)


def test_spandrel_module_needs_little_of_the_repository():
    """In ComfyUI `utils` is another module: what it imports of ours is models.py and layers.py."""
    reached, todo = set(), ["spandrel_srresnet"]
    while todo:
        found = imports((ROOT / f"{todo.pop()}.py").read_text(encoding="utf-8")) - reached
        reached |= found
        todo += found
    assert reached == {"models", "layers"}
