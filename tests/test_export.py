"""Exported networks compute what PyTorch computes, at any size, and what goes wrong is one line and leaves no file."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import call
from helpers import make_pictures
from PIL import Image

import export
from inference import Upscaler, for_inference
from layers import mirrored_at_edges
from models import build_network
from utils import UserError, user_errors
from weights import load_checkpoint, load_network, save_checkpoint


def checkpoint(folder, **changes):
    """The path of a small checkpoint, with batch statistics that are worth folding."""
    torch.manual_seed(0)
    size = {} if changes.get("arch") == "srcnn" else {"blocks": 1, "channels": 8}
    network = build_network({"arch": "srgan", "scale": 4} | size | changes)
    for key, value in network.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    save_checkpoint(folder / "small.pth", {"config": network.config, "weights": network.state_dict(), "step": 5})
    return folder / "small.pth"


def run(monkeypatch, *arguments):
    """What `python export.py ARGUMENTS` does."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    with user_errors():
        export.main(export.parse_arguments())


def one_line_error(monkeypatch, capsys, *arguments):
    """The error message of `python export.py ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


SIZES = (1, 3, 1, 1), (4, 3, 3, 13), (1, 3, 21, 19)  # that export.py does not try


def agree(weights, exported, sizes=SIZES, dtype=torch.float32, atol=4e-5, mirrored=True):
    """Assert that an exported network agrees with the weights, of images that go on `mirrored` beyond their edges or not.

    `atol` is a hundredth of a grey level; what is compared is in [0, 1], clamped.
    """
    network = for_inference(load_network(weights))
    for size in sizes:
        lr_imgs = torch.rand(size).to(dtype)
        result = exported(lr_imgs)
        assert result.dtype == dtype
        lr_imgs = lr_imgs.float()
        wanted = ((mirrored_at_edges(network, lr_imgs) if mirrored else network(lr_imgs)) + 1).div(2).clamp(0, 1)
        torch.testing.assert_close(result.float(), wanted, atol=atol, rtol=0)


def session_of(file):
    """What a program that knows nothing of PyTorch makes of an ONNX file: a function, and the metadata."""
    session = pytest.importorskip("onnxruntime").InferenceSession(file)
    assert [part.name for part in session.get_inputs()] == ["input"]
    assert [part.name for part in session.get_outputs()] == ["output"]
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda lr_imgs: torch.from_numpy(session.run(None, {"input": lr_imgs.numpy()})[0]), metadata


def test_onnx(work, monkeypatch, capsys):
    """As chaiNNer runs it: RGB in [0, 1] as it is, the output shown as it is, which is test.py's PNG to a grey level."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    weights = checkpoint(work)
    (picture,) = make_pictures(work / "pictures", ["coffee"], (37, 26)).iterdir()
    call("test", picture, "--weights", weights, "--precision", "fp32", "--output", "results")
    run(monkeypatch, "--weights", weights, "--format", "onnx")
    function, _ = session_of(work / "small.onnx")
    rgb = np.asarray(Image.open(picture).convert("RGB"), np.float32) / 255
    (output,) = function(torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])))
    shown = np.round(output.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
    wanted = np.asarray(Image.open(work / "results" / "coffee_x4.png"))
    assert wanted.shape == (104, 148, 3)
    assert np.abs(shown.astype(int) - wanted).max() <= 1


def test_onnx_of_another_config(tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    weights = checkpoint(tmp_path, scale=3, arch="srresnet", imagenet_input=True)
    run(monkeypatch, "--weights", weights, "--format", "onnx")
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "grey levels" in out and not err
    file = tmp_path / "small.onnx"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.pth"]
    model = onnx.load(file)
    assert model.opset_import[0].version == 18
    assert b"models.py" not in file.read_bytes()
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    function, metadata = session_of(file)
    agree(weights, function)
    assert metadata == {"scale": "3", "arch": "srresnet", "range": export.RANGE, "weights": "small.pth"}


def test_onnx_of_one_size_in_half(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    weights = checkpoint(tmp_path, arch="srcnn", scale=2)
    run(monkeypatch, "--weights", weights, "--format", "onnx", "--size", "13x6", "--half")
    function, _ = session_of(tmp_path / "small.onnx")
    agree(weights, function, [(1, 3, 6, 13)], torch.float16, atol=1 / 255)
    with pytest.raises(Exception, match="invalid dimensions"):
        function(torch.rand(1, 3, 6, 14).half())


def test_exported_program_of_one_size(tmp_path, monkeypatch):
    weights = checkpoint(tmp_path)
    run(monkeypatch, "--weights", weights, "--format", "exported", "--size", "5x4")
    function = torch.export.load(tmp_path / "small.pt2").module()
    agree(weights, function, [(1, 3, 4, 5)])
    with pytest.raises(Exception, match="(?i)guard"):
        function(torch.rand(1, 3, 5, 4))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_in_half(tmp_path, monkeypatch):
    """Float16 in and out, within a grey level, at sizes that the export does not try."""
    weights = checkpoint(tmp_path)
    run(monkeypatch, "--weights", weights, "--format", "torchscript", "--half")
    agree(weights, torch.jit.load(tmp_path / "small.pt"), dtype=torch.float16, atol=1 / 255)


def test_half_safetensors(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    weights = checkpoint(tmp_path)
    run(monkeypatch, "--weights", weights, "--format", "safetensors", "--half")
    assert load_checkpoint(tmp_path / "small.safetensors")["weights"]["net.head.0.weight"].dtype == torch.float16
    agree(weights, Upscaler(load_network(tmp_path / "small.safetensors")), atol=1 / 255)


def ncnn_function(file):
    """What ncnn makes of the two files, for one image, by its names of blobs."""
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    assert net.load_param(str(file)) == 0 and net.load_model(str(file.with_suffix(".bin"))) == 0

    def function(lr_imgs):
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(lr_imgs[0].numpy()).clone())
        status, output = extractor.extract("output")
        assert status == 0
        return torch.from_numpy(np.array(output))[None]

    return function


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("config", [{"scale": 4}, {"scale": 3, "arch": "srresnet"}, {"scale": 2, "arch": "srcnn"}])
def test_ncnn(tmp_path, monkeypatch, capsys, config):
    pytest.importorskip("pnnx")
    pytest.importorskip("ncnn")
    weights = checkpoint(tmp_path, **config)
    run(monkeypatch, "--weights", weights, "--format", "ncnn")
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "grey levels" in out and not err
    name = f"small_x{config['scale']}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.pth", f"{name}.bin", f"{name}.param"]
    agree(weights, ncnn_function(tmp_path / f"{name}.param"), [(1, 3, 8, 8), (1, 3, 5, 12), (1, 3, 21, 19)], mirrored=False)
    kinds = {line.split()[0] for line in (tmp_path / f"{name}.param").read_text().splitlines()[2:]}
    if config.get("arch") != "srcnn":  # all that realesrgan-ncnn-vulkan has of them
        assert kinds <= {"Input", "Convolution", "Split", "BinaryOp", "PixelShuffle", "ReLU"}


@pytest.mark.parametrize(
    "name, read",
    [("small_x4", 4), ("4x_small", 4), ("x2_of_mine", 2), ("photo1x4", 1), ("small", None), ("x16", 1), ("8x", 8)],
)
def test_scale_that_a_name_tells(name, read):
    assert export.scale_read_from(name) == read


@pytest.mark.parametrize("name", ["small.bin", "small.param", "photo1x4.param", "x2.param"])
def test_ncnn_names_that_would_mislead(tmp_path, monkeypatch, capsys, name):
    pytest.importorskip("pnnx")
    pytest.importorskip("ncnn")
    arguments = ["--weights", checkpoint(tmp_path), "--format", "ncnn", "--output", tmp_path / name]
    assert "--output" in one_line_error(monkeypatch, capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--format", "ncnn", "--half"], "--half is not for ncnn"),
        (["--format", "torchscript", "--size", "8x8"], "torchscript takes any"),
        (["--format", "onnx", "--size", "8"], "640x360"),
        (["--format", "onnx", "--size", "0x8"], "640x360"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, monkeypatch, capsys, arguments, message):
    assert message in one_line_error(monkeypatch, capsys, "--weights", checkpoint(tmp_path), *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("scale", [2, 8])
def test_torchscript(tmp_path, monkeypatch, scale):
    weights = checkpoint(tmp_path, scale=scale)
    run(monkeypatch, "--weights", weights, "--format", "torchscript", "--output", tmp_path / "net.torchscript")
    extra = {"metadata.json": ""}
    agree(weights, torch.jit.load(tmp_path / "net.torchscript", _extra_files=extra))
    assert json.loads(extra["metadata.json"])["scale"] == str(scale)


@pytest.mark.parametrize("scale", [3, 4])
def test_exported_program(tmp_path, monkeypatch, scale):
    weights = checkpoint(tmp_path, scale=scale)
    run(monkeypatch, "--weights", weights, "--format", "exported")
    assert b"models.py" not in (tmp_path / "small.pt2").read_bytes()
    extra = {"metadata.json": ""}
    agree(weights, torch.export.load(tmp_path / "small.pt2", extra_files=extra).module())
    assert json.loads(extra["metadata.json"])["weights"] == "small.pth"


def test_safetensors(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    weights = checkpoint(tmp_path)
    run(monkeypatch, "--weights", weights, "--format", "safetensors")
    assert "at most 0.00000 grey levels" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "small.safetensors")["step"] == 5
    agree(weights, Upscaler(load_network(tmp_path / "small.safetensors")))
    again = ["--weights", tmp_path / "small.safetensors", "--format", "safetensors"]
    assert "the weights themselves" in one_line_error(monkeypatch, capsys, *again)


def test_ncnn_does_not_replace_weights_that_are_called_bin(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pnnx"), pytest.importorskip("ncnn")
    weights = checkpoint(tmp_path).rename(tmp_path / "srgan_x4.bin")
    before = weights.read_bytes()
    line = one_line_error(monkeypatch, capsys, "--weights", weights, "--format", "ncnn")
    assert "srgan_x4.bin: these are the weights themselves" in line and weights.read_bytes() == before


@pytest.mark.parametrize(
    "name, format_name",
    [("onnxruntime", "onnx"), ("onnxscript", "onnx"), ("pnnx", "ncnn"), ("ncnn", "ncnn"), ("safetensors", "safetensors")],
)
def test_missing_package(tmp_path, monkeypatch, capsys, name, format_name):
    monkeypatch.setitem(sys.modules, name, None)
    message = one_line_error(monkeypatch, capsys, "--weights", checkpoint(tmp_path), "--format", format_name)
    assert "pip install" in message and name in message
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


def test_bad_weights(tmp_path, monkeypatch, capsys):
    message = one_line_error(monkeypatch, capsys, "--weights", tmp_path / "none.pth", "--format", "torchscript")
    assert "no such file" in message
    (tmp_path / "bad.pth").write_text("no weights")
    message = one_line_error(monkeypatch, capsys, "--weights", tmp_path / "bad.pth", "--format", "torchscript")
    assert "not a whole PyTorch file" in message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_output_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    output = tmp_path / "none" / "small.pt"
    arguments = ["--weights", checkpoint(tmp_path), "--format", "torchscript", "--output", output]
    assert "cannot write" in one_line_error(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_what_differs_is_not_kept(tmp_path, monkeypatch, wrong):
    network = load_network(checkpoint(tmp_path))
    read_back = export.read_back
    monkeypatch.setattr(export, "read_back", lambda *args: lambda lr_imgs: read_back(*args)(lr_imgs) + wrong / 100)
    (tmp_path / "net.pt").write_text("what was there before")
    with pytest.raises(UserError, match="not written"):
        export.export(network, "torchscript", tmp_path / "net.pt")
    assert (tmp_path / "net.pt").read_text() == "what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt", "small.pth"]


def test_opset_that_the_exporter_lacks(tmp_path, monkeypatch):
    proto = SimpleNamespace(opset_import=[SimpleNamespace(version=18)])  # what it falls back to, with a log message
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: SimpleNamespace(model_proto=proto))
    with pytest.raises(UserError, match="--opset 99"):
        export.export(load_network(checkpoint(tmp_path)), "onnx", tmp_path / "net.onnx", opset=99)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]
