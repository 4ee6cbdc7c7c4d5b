"""Write trained weights in a format that other programs read: ONNX, TorchScript, torch.export, ncnn or safetensors.

    python export.py --weights checkpoints/srgan_x4.pth --format onnx
    python export.py --weights checkpoints/srgan_x4.pth --format onnx --size 640x360 --half --output results/srgan_x4_360p.onnx
    python export.py --weights checkpoints/srgan_x4.pth --format ncnn

Which program takes which file: docs/OTHER_TOOLS.md. An exported network takes `input`, RGB images (N, 3, h, w) in [0, 1] of
any N, h and w, and gives `output`, (N, 3, scale*h, scale*w) in [0, 1], clamped; ncnn calls the two `data` and `output`, and
takes one image at a time. Batch normalisation is folded into its convolutions. Scale, architecture, range and the weights'
name are in its metadata; ncnn has none, and the scale is in the name of its two files, .param and .bin.
A safetensors file holds the state dict as it is, with config and step as metadata, and is read like a checkpoint.
What was written is read back and compared with PyTorch in float32 at three odd sizes (or, with --size, at that one); if they
differ by more than a grey level, nothing is kept.
ONNX needs the packages onnx, onnxscript and onnxruntime, ncnn needs pnnx and ncnn, and safetensors its own.
"""

import argparse
import re
from pathlib import Path

from utils import ArgumentParser, UserError, number, user_errors

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "exported": ".pt2", "ncnn": ".param", "safetensors": ".safetensors"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "ncnn": ("pnnx", "ncnn"), "safetensors": ("safetensors",)}
OF_ONE_SIZE = ("onnx", "exported")  # what --size is for


def width_and_height(text):
    """An argparse type: 640x360 as (640, 360)."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no width and height, as in 640x360")
    return int(found[1]), int(found[2])


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="a checkpoint, or whatever eval.py takes for one")
    add("--format", choices=SUFFIXES, required=True, help="exported is torch.export's: torch.export.load(FILE).module()")
    add("--output", type=Path, metavar="FILE", help=f"default: beside the weights, ending in {', '.join(SUFFIXES.values())}")
    add("--half", action="store_true", help="in float16, input and output too (safetensors: the weights alone); not for ncnn")
    add(
        "--size",
        type=width_and_height,
        metavar="WxH",
        help="of the only input it takes, one image of W by H pixels, as TensorRT and Core ML like it: for onnx and exported",
    )
    add("--opset", type=number(int, 1), default=18, help="version of the ONNX operators")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()

import contextlib
import copy
import importlib
import io
import json
import logging
import math
import subprocess
import tempfile
import warnings

import numpy
import torch

from inference import Upscaler
from models import SRResNet, build_network
from utils import atomic_write
from weights import load_checkpoint, load_network, read_safetensors

CHECKED_SIZES = [(1, 3, 7, 5), (2, 3, 17, 31), (3, 3, 43, 29)]  # of LR images
RANGE = "RGB in [0, 1], input and output"


@contextlib.contextmanager
def quiet():
    """Without the warnings, logs and progress that exporters print."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        before, _ = logging.root.manager.disable, logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def onnx_bytes(upscaler, size, opset, metadata):
    """The network as one ONNX file. Raises UserError for a version of the operators that the exporter does not write."""
    program = torch.onnx.export(
        upscaler,
        (example(upscaler, size),),
        dynamo=True,
        dynamic_shapes=dimensions(size),
        input_names=["input"],
        output_names=["output"],
        opset_version=opset,
        verbose=False,
    )
    proto = program.model_proto
    written = proto.opset_import[0].version
    if written != opset:
        raise UserError(f"--opset {opset}: this PyTorch cannot write the network in it; it can in {written}")
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        part.ClearField("metadata_props")  # stack traces, with the paths of this machine
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def exported_bytes(upscaler, size, metadata):
    """The network as an archive of torch.export, with the metadata as its extra file metadata.json."""
    program = torch.export.export(upscaler, (example(upscaler, size),), dynamic_shapes=dimensions(size))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of this machine
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue()


def torchscript_bytes(upscaler, metadata):
    """The network as TorchScript, for C++ and older programs, with the metadata as its extra file metadata.json.

    PyTorch itself advises torch.export by now.
    """
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(upscaler, example(upscaler)), file, _extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue()


class Logistic(torch.nn.Module):
    """x -> 1 / (1 + e^x) of sums, products and powers of tensors alone, which are one layer of ncnn, BinaryOp."""

    def forward(self, x):
        return (torch.pow(0 * x + math.e, x) + 1).pow(-1)


def for_ncnn(upscaler):
    """The same of the few layers that realesrgan-ncnn-vulkan has: it leaves TanH, Sigmoid, Clip and Exp of ncnn out.

    (tanh(x) + 1) / 2 is 1 / (1 + e^(-2 x)), and the last convolution can do the -2.
    """
    network = copy.deepcopy(upscaler.network)
    if not isinstance(network, SRResNet):
        return upscaler
    convolution = network.tail[0]
    convolution.weight.mul_(-2)
    convolution.bias.mul_(-2)
    network.tail[1] = Logistic()
    return network


def ncnn_bytes(upscaler):
    """The network as ncnn's two files: its layers, one a line, and their weights, in float32."""
    import pnnx

    upscaler = for_ncnn(upscaler)
    with tempfile.TemporaryDirectory() as folder:
        script, files = Path(folder, "network.pt"), [Path(folder, f"network.ncnn.{ending}") for ending in ("param", "bin")]
        torch.jit.save(torch.jit.trace(upscaler, example(upscaler)[:1]), script)
        shapes = ["inputshape=[1,3,9,11]f32", "inputshape2=[1,3,16,14]f32"]  # two: so of any size
        command = [pnnx.EXEC_PATH, script.name, *shapes, "fp16=0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        if done.returncode or not all(file.exists() for file in files):
            raise RuntimeError(f"pnnx ends with status {done.returncode}: {done.stderr.strip()[-200:]}")
        layers, weights = (file.read_bytes() for file in files)
    return with_blobs_named(layers.decode(), {"in0": "data", "out0": "output"}).encode(), weights


def with_blobs_named(layers, names):
    """The lines of an ncnn .param file with some blobs by other names: upscayl and its like ask for data and output.

    After a magic number and the counts, a line is: type, name, number of inputs and of outputs, their blobs, parameters.
    """
    *head, body = layers.split("\n", 2)
    lines = []
    for line in body.splitlines():
        kind, name, inputs, outputs, *rest = line.split()
        count = int(inputs) + int(outputs)
        blobs = [names.get(blob, blob) for blob in rest[:count]]
        lines.append(" ".join([kind, name, inputs, outputs, *blobs, *rest[count:]]))
    return "\n".join([*head, *lines, ""])


def safetensors_bytes(network, step, half=False):
    """The state dict, with the config and the step as JSON in the metadata (whose values are strings)."""
    from safetensors.torch import save

    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    return save(weights, {"config": json.dumps(network.config), "step": json.dumps(step)})


def example(upscaler, size=None):
    """LR images to trace with, of (width, height) `size` if there is one."""
    shape = (1, 3, size[1], size[0]) if size else (2, 3, 9, 11)  # none is 1 or equals another, which might pass for a constant
    return torch.rand(shape).to(next(upscaler.parameters()).dtype)


def dimensions(size):
    """What exporters shall leave open: the number, height and width of the images, or nothing for those of one size."""
    names = {} if size else {0: "batch", 2: "height", 3: "width"}
    return {"input": {axis: torch.export.Dim(name) for axis, name in names.items()}}


def read_back(path, format_name):
    """What an exported file computes: a function of LR images (N, 3, h, w) in [0, 1], in the dtype that it takes."""
    if format_name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda lr_imgs: torch.from_numpy(session.run(["output"], {"input": lr_imgs.numpy()})[0])
    if format_name == "torchscript":
        return torch.jit.load(path)
    if format_name == "exported":
        return torch.export.load(path).module()
    if format_name == "ncnn":
        return ncnn_function(path)
    checkpoint = read_safetensors(path)
    network = build_network(checkpoint["config"])
    network.load_state_dict(checkpoint["weights"])
    return Upscaler(network)


def ncnn_function(path):
    """What ncnn computes of its two files on the CPU, in float32: a function of LR images (N, 3, h, w) in [0, 1]."""
    import ncnn

    net = ncnn.Net()
    for option in ("use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise RuntimeError("ncnn cannot read its files")

    def upscale(lr_img):
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(lr_img.contiguous().numpy()).clone())
        return torch.from_numpy(numpy.array(extractor.extract("output")[1]))

    return lambda lr_imgs: torch.stack([upscale(lr_img) for lr_img in lr_imgs])


def largest_difference(upscaler, exported, sizes, dtype):
    """The largest difference of SR images of noise between PyTorch's, in float32, and those of an export that takes `dtype`.

    In grey levels (of 255).
    """
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = [torch.rand(size, generator=noise).to(dtype) for size in sizes]
        differences = [(upscaler(lr_imgs.float()) - exported(lr_imgs).float()).abs().max() for lr_imgs in images]
    return torch.stack(differences).max().item() * 255


def export(network, format_name, path, *, opset=18, step=None, half=False, size=None, weights_name=""):
    """Write `network` to `path` in one of SUFFIXES; return the largest difference from it in what was written, in grey levels.

    `half` is for float16, `size` the (width, height) of the only images it shall take, `step` for safetensors, and
    `weights_name` for the metadata. ncnn's weights go beside `path`, ending in .bin.
    Raises UserError, and leaves `path` as it was, if it cannot be written or does not compute the same to a grey level.
    """
    path = Path(path)
    if not path.parent.is_dir():  # told before the work
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    metadata = {"scale": str(network.config["scale"]), "arch": network.config["arch"], "range": RANGE, "weights": weights_name}
    mirrored = format_name != "ncnn"  # whose programs repeat the pixels at the edges by themselves, and lack the layers for it
    reference = Upscaler(network, mirrored=mirrored)
    dtype = torch.float16 if half and format_name != "safetensors" else torch.float32  # of input and output
    sizes = [(1, 3, size[1], size[0])] if size else CHECKED_SIZES
    with tempfile.TemporaryDirectory() as folder, failures_of(format_name), quiet():
        upscaler = Upscaler(network, torch.float16 if half else torch.float32, mirrored)
        if format_name == "onnx":
            parts = {path: onnx_bytes(upscaler, size, opset, metadata)}
        elif format_name == "exported":
            parts = {path: exported_bytes(upscaler, size, metadata)}
        elif format_name == "torchscript":
            parts = {path: torchscript_bytes(upscaler, metadata)}
        elif format_name == "ncnn":
            layers, weights = ncnn_bytes(upscaler)
            parts = {path.with_suffix(".bin"): weights, path: layers}
        else:
            parts = {path: safetensors_bytes(network, step, half)}
        for part, content in parts.items():
            Path(folder, part.name).write_bytes(content)
        difference = largest_difference(reference, read_back(Path(folder, path.name), format_name), sizes, dtype)
    if not difference <= 1:  # NaN is a failure too
        raise UserError(f"{path} is not written: as {format_name} the network differs by {difference:.3g} grey levels")
    for part, content in parts.items():
        with atomic_write(part) as file:
            file.write(content)
    return difference


@contextlib.contextmanager
def failures_of(format_name):
    """Turn what exporters raise, and they raise anything, into a UserError; an OSError tells of itself."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"--format {format_name} failed: {type(error).__name__}: {first_line[:300]}") from error


def check_packages(format_name):
    """Raise a UserError that names the packages that a format needs and this Python lacks."""
    missing = []
    for name in PACKAGES.get(format_name, ()):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f"--format {format_name} needs what is not installed: pip install {' '.join(missing)}")


def scale_read_from(name):
    """The scale that upscayl reads from the name of a model, or None: the first of its own that is in it."""
    return next((scale for scale in (1, 2, 3, 4, 8, 16) if f"x{scale}" in name or f"{scale}x" in name), None)


def output_path(args, scale):
    """Where the result goes: --output, or beside the weights; ncnn's has its scale in its name, or a UserError is raised."""
    output = args.output or args.weights.with_suffix(SUFFIXES[args.format])
    if args.format != "ncnn":
        return output
    if not args.output and scale_read_from(output.stem) != scale:
        output = output.with_stem(f"{output.stem}_x{scale}")
    if output.suffix != ".param":
        raise UserError(f"--output {output}: give the name of the .param file; that of the weights is the same, in .bin")
    read = scale_read_from(output.stem)
    if read != scale:
        found = f"take it for x{read}" if read else "find no scale in it"
        raise UserError(
            f"{output.name}: by this name ncnn's tools {found}: give another by --output, as in srgan_x{scale}.param"
        )
    return output


def main(args):
    if args.size and args.format not in OF_ONE_SIZE:
        raise UserError(f"--size is for --format {' and '.join(OF_ONE_SIZE)}: {args.format} takes any")
    if args.half and args.format == "ncnn":
        raise UserError(
            "--half is not for ncnn: its float16 has no small numbers, and the network then differs by 2 grey levels"
        )
    check_packages(args.format)
    network = load_network(args.weights)
    output = output_path(args, network.config["scale"])
    files = [output, output.with_suffix(".bin")] if args.format == "ncnn" else [output]
    for file in files:
        if file.exists() and args.weights.exists() and file.samefile(args.weights):
            raise UserError(f"{file}: these are the weights themselves; give another name by --output")
    step = load_checkpoint(args.weights).get("step")
    settings = {"opset": args.opset, "step": step, "half": args.half, "size": args.size, "weights_name": args.weights.name}
    difference = export(network, args.format, output, **settings)
    size = sum(file.stat().st_size for file in files) / 1e6
    where = "at its size" if args.size else "at three odd sizes"
    print(f"{' and '.join(map(str, files))}: {size:.1f} MB; {where} at most {difference:.5f} grey levels from PyTorch")


if __name__ == "__main__":
    with user_errors():
        main(args)
