"""Write trained weights in a format that other programs read: ONNX, TorchScript, torch.export or safetensors.

    python export.py --weights checkpoints/srgan_x4.pth --format onnx
    python export.py --weights checkpoints/srgan_x4.pth --format safetensors --output results/srgan_x4.safetensors

An exported network takes `lr`, RGB images (N, 3, h, w) float32 in [0, 1] of any N, h and w, and gives `sr`, (N, 3, scale*h,
scale*w) in [-1, 1]; batch normalisation is folded into its convolutions. A safetensors file holds the state dict as it is,
with config and step as metadata; eval.py, test.py and train_srgan.py read it like a checkpoint. What was written is read
back and compared with PyTorch at three odd sizes; if they differ by more than a grey level, nothing is kept.
ONNX needs the packages onnx, onnxscript and onnxruntime, safetensors its own: pip install -r requirements-dev.txt.
"""

from pathlib import Path

from utils import ArgumentParser, UserError, number, user_errors

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "exported": ".pt2", "safetensors": ".safetensors"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="a checkpoint, or whatever eval.py takes for one")
    add("--format", choices=SUFFIXES, required=True, help="exported is torch.export's: torch.export.load(FILE).module()")
    add("--output", type=Path, metavar="FILE", help="default: beside the weights, ending in .onnx, .pt, .pt2 or .safetensors")
    add("--opset", type=number(int, 1), default=18, help="version of the ONNX operators")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()

import contextlib
import importlib
import io
import json
import logging
import warnings

import torch

from inference import for_inference
from models import build_network
from utils import atomic_write
from weights import load_checkpoint, load_network, read_safetensors

CHECKED_SIZES = [(1, 3, 7, 5), (2, 3, 17, 31), (3, 3, 43, 29)]  # of LR images


class Upscaler(torch.nn.Module):
    """A network from `for_inference` whose input is called `lr`, as exporters take the name from here."""

    def __init__(self, network):
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)

    def forward(self, lr):
        return self.network(lr)


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


def onnx_bytes(upscaler, opset):
    """The network as one ONNX file. Raises UserError for a version of the operators that the exporter does not write."""
    program = torch.onnx.export(
        upscaler,
        (example(),),
        dynamo=True,
        dynamic_shapes=any_size(),
        input_names=["lr"],
        output_names=["sr"],
        opset_version=opset,
        verbose=False,
    )
    proto = program.model_proto
    written = proto.opset_import[0].version
    if written != opset:
        raise UserError(f"--opset {opset}: this PyTorch cannot write the network in it; it can in {written}")
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        part.ClearField("metadata_props")  # stack traces, with the paths of this machine
    return proto.SerializeToString()


def exported_bytes(upscaler):
    """The network as an archive of torch.export."""
    program = torch.export.export(upscaler, (example(),), dynamic_shapes=any_size())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of this machine
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def torchscript_bytes(upscaler):
    """The network as TorchScript, for C++ and older programs; PyTorch itself advises torch.export by now."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(upscaler, example()), file)
    return file.getvalue()


def safetensors_bytes(network, step):
    """The state dict, with the config and the step as JSON in the metadata (whose values are strings)."""
    from safetensors.torch import save

    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    return save(weights, {"config": json.dumps(network.config), "step": json.dumps(step)})


def example():
    return torch.rand(2, 3, 9, 11)  # no size is 1 or equals another: an exporter might take it for a constant


def any_size():
    return {"lr": {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}}


def read_back(path, format_name):
    """What an exported file computes: a function of LR images (N, 3, h, w) in [0, 1]."""
    if format_name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda lr_imgs: torch.from_numpy(session.run(["sr"], {"lr": lr_imgs.numpy()})[0])
    if format_name == "torchscript":
        return torch.jit.load(path)
    if format_name == "exported":
        with open(path, "rb") as file:
            return torch.export.load(io.BytesIO(file.read())).module()
    checkpoint = read_safetensors(path)
    network = build_network(checkpoint["config"])
    network.load_state_dict(checkpoint["weights"])
    return network.eval()


def largest_difference(network, exported):
    """The largest difference between two networks' SR images of noise, in grey levels (of 255)."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = [torch.rand(size, generator=noise) for size in CHECKED_SIZES]
        differences = [(network(lr_imgs) - exported(lr_imgs)).abs().max() for lr_imgs in images]
    return torch.stack(differences).max().item() * 127.5


def export(network, format_name, path, opset=18, step=None):
    """Write `network` to `path` in one of SUFFIXES; return the largest difference from it in what was written, in grey levels.

    Raises UserError, and leaves `path` as it was, if it cannot be written or does not compute the same to a grey level.
    """
    reference = for_inference(network, plain=True)
    with atomic_write(path) as file, failures_of(format_name), quiet():
        if format_name == "safetensors":
            reference = network.eval()
            file.write(safetensors_bytes(network, step))
        elif format_name == "onnx":
            file.write(onnx_bytes(Upscaler(reference), opset))
        else:
            to_bytes = {"torchscript": torchscript_bytes, "exported": exported_bytes}[format_name]
            file.write(to_bytes(Upscaler(reference)))
        file.flush()
        difference = largest_difference(reference, read_back(file.name, format_name))
        if not difference <= 1:  # NaN is a failure too
            raise UserError(f"{path} is not written: as {format_name} the network differs by {difference:.3g} grey levels")
    return difference


@contextlib.contextmanager
def failures_of(format_name):
    """Turn what exporters raise, and they raise anything, into a UserError; an OSError is for atomic_write to tell."""
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


def main(args):
    output = args.output or args.weights.with_suffix(SUFFIXES[args.format])
    if output.exists() and args.weights.exists() and output.samefile(args.weights):
        raise UserError(f"{output}: these are the weights themselves; give another name by --output")
    check_packages(args.format)
    network = load_network(args.weights)
    step = load_checkpoint(args.weights).get("step")
    difference = export(network, args.format, output, args.opset, step)
    size = output.stat().st_size / 1e6
    print(f"{output}: {size:.1f} MB; at three odd sizes at most {difference:.5f} grey levels from PyTorch")


if __name__ == "__main__":
    with user_errors():
        main(args)
