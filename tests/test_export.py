"""Exported networks compute what PyTorch computes, at any size, and what goes wrong is one line and leaves no file."""

import sys
from types import SimpleNamespace

import pytest
import torch

import export
from inference import for_inference
from models import build_network
from utils import UserError, user_errors
from weights import load_checkpoint, load_network, save_checkpoint


def checkpoint(folder, **changes):
    """The path of a small checkpoint, with batch statistics that are worth folding."""
    torch.manual_seed(0)
    network = build_network({"arch": "srgan", "scale": 4, "blocks": 1, "channels": 8} | changes)
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


def agree(weights, exported):
    """Assert that an exported network agrees with the weights, at sizes that export.py does not try."""
    network = for_inference(load_network(weights))
    for size in [(1, 3, 1, 1), (4, 3, 3, 13), (1, 3, 21, 19)]:
        lr_imgs = torch.rand(size)
        torch.testing.assert_close(exported(lr_imgs), network(lr_imgs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [{"scale": 4}, {"scale": 3, "arch": "srresnet", "imagenet_input": True}])
def test_onnx(tmp_path, monkeypatch, capsys, config):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    weights = checkpoint(tmp_path, **config)
    run(monkeypatch, "--weights", weights, "--format", "onnx")
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "grey levels" in out and not err
    file = tmp_path / "small.onnx"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.pth"]
    model = onnx.load(file)
    assert model.opset_import[0].version == 18
    assert b"models.py" not in file.read_bytes()
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    session = runtime.InferenceSession(file)
    agree(weights, lambda lr_imgs: torch.from_numpy(session.run(["sr"], {"lr": lr_imgs.numpy()})[0]))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("scale", [2, 8])
def test_torchscript(tmp_path, monkeypatch, scale):
    weights = checkpoint(tmp_path, scale=scale)
    run(monkeypatch, "--weights", weights, "--format", "torchscript", "--output", tmp_path / "net.torchscript")
    agree(weights, torch.jit.load(tmp_path / "net.torchscript"))


@pytest.mark.parametrize("scale", [3, 4])
def test_exported_program(tmp_path, monkeypatch, scale):
    weights = checkpoint(tmp_path, scale=scale)
    run(monkeypatch, "--weights", weights, "--format", "exported")
    assert b"models.py" not in (tmp_path / "small.pt2").read_bytes()
    agree(weights, torch.export.load(tmp_path / "small.pt2").module())


def test_safetensors(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    weights = checkpoint(tmp_path)
    run(monkeypatch, "--weights", weights, "--format", "safetensors")
    assert "at most 0.00000 grey levels" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "small.safetensors")["step"] == 5
    agree(weights, for_inference(load_network(tmp_path / "small.safetensors")))
    again = ["--weights", tmp_path / "small.safetensors", "--format", "safetensors"]
    assert "the weights themselves" in one_line_error(monkeypatch, capsys, *again)


@pytest.mark.parametrize("name, format_name", [("onnxruntime", "onnx"), ("onnxscript", "onnx"), ("safetensors", "safetensors")])
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
