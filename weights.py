"""Weights in files: checkpoints, safetensors and other people's state dicts; blending, and starting from weights.

The well-known PyTorch implementations of SRResNet call its layers by other names; some make the same layers in the same
order. A state dict is taken in by position, if at each position the kind and the shape of the tensor are ours.

    sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution    taken in; normalises LR images as for ImageNet, and so do we then
    leftthomas/SRGAN and its many descendants          taken in, if batch normalisation follows the residual blocks
    Lornatang/SRGAN-PyTorch, twtygqyy/pytorch-SRResNet, eriklindernoren/PyTorch-GAN,
    aladdinpersson/Machine-Learning-Collection, BasicSR    refused: no biases, a PReLU weight per channel, or other layers

Not here: when a run saves (runs.py), and formats for other programs (export.py).
"""

import io
import json
import math
import pickle
import re
import sys
import warnings
from pathlib import Path

import torch

from batchnorm import norms_of, rebase
from models import build_network
from utils import UserError, atomic_write

# What a checkpoint may keep its state dict under, ours first; the moving average is the one to upscale with.
HOLDERS = ["ema", "weights", "params_ema", "ema_state_dict", "params", "state_dict", "model_state_dict", "generator", "model"]
IMPLEMENTATIONS = {  # by a name that only it uses
    "subpixel_convolutional_blocks.0.conv.weight": "sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution",
    "block8.0.conv.weight": "leftthomas/SRGAN",
}
WANTS_IMAGENET_INPUT = {"sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution"}


def save_checkpoint(path, state):
    """Write a dict of plain values and tensors to `path`, whole or not at all. Raises UserError, as on a full disk."""
    buffer = io.BytesIO()  # so that what fails below is the file, and says so as an OSError
    torch.save(state, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path) -> dict:
    """The dict in a checkpoint or safetensors file, on the CPU; never runs code from it. Raises UserError if none is whole."""
    if Path(path).suffix == ".safetensors":
        return read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say, the errors say too
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read, or is not whole: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not found:
            raise UserError(f"{path}: not a whole PyTorch file (truncated, or something else)") from None
        raise UserError(
            f"{path}: holds a Python object ({found[1]}), which could run code, and is not loaded; with the code that made it, "
            "load it and save its weights alone: torch.save(model.state_dict(), 'weights.pth')"
        ) from None
    except Exception as error:  # PyTorch raises whatever the bytes lead it to
        if "TorchScript" in str(error):
            raise UserError(f"{path}: a program of TorchScript, not weights; give the file that it was exported from") from None
        raise UserError(f"{path}: not a whole PyTorch file (truncated, or something else)") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def load_network(path):
    """The network in a checkpoint, on the CPU: the moving average of its weights if there is one.

    Also takes a bare state dict of a SRResNet or SRGAN generator, with or without the prefixes that DataParallel and
    torch.compile put before the names, and those of the IMPLEMENTATIONS that it knows. Raises UserError
    for anything else.
    """
    checkpoint = load_checkpoint(path)
    weights = state_dict_in(checkpoint)
    try:
        network = build_network(checkpoint.get("config") or config_of(weights))
        network.load_state_dict(in_our_names(weights, network, path))
    except (ValueError, RuntimeError, AttributeError, LookupError) as error:
        reason = "no weights of a network that upscales" if isinstance(error, (AttributeError, LookupError)) else error
        raise UserError(f"{path}: does not fit: {str(reason)[:300]}") from None
    return network


def blend_networks(first, second, share):
    """The network with weights (1 - share) * first + share * second; `second` was trained from `first`.

    Wang et al., "Deep Network Interpolation for Continuous Imagery Effect Transition", CVPR 2019. Raises UserError for
    networks of different sizes.
    """
    first, second = (getattr(network, "net", network) for network in (first, second))
    if first.config != second.config:
        raise UserError(f"only networks of one size can be blended, not {first.config} and {second.config}")
    for norm, other in zip(norms_of(first), norms_of(second), strict=True):  # or the mixture of two scales would be none
        rebase(other, norm.running_mean, norm.running_var)
    values = second.state_dict()
    for key, value in first.state_dict().items():
        if value.is_floating_point():
            values[key].lerp_(value, 1 - share)
    return second


def start_from(path, network):
    """Give a network the weights of another one, as far as they fit; says which did not."""
    source, target = load_network(path), getattr(network, "net", network)
    if source.config.get("imagenet_input") != target.config.get("imagenet_input"):
        raise UserError(f"{path}: these weights take LR images normalised as for ImageNet, unlike the network to start")
    weights = {key.removeprefix("net."): value for key, value in source.state_dict().items()}
    own = target.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise UserError(f"{path}: nothing of its network fits into {target.config}")
    target.load_state_dict(own | fitting)
    fresh = [key for key in own if key not in fitting]
    unused = [key for key in weights if key not in fitting]
    if fresh or unused:
        print(f"{path}: what fits is taken; not in it or of another shape, so untrained: {', '.join(fresh) or 'nothing'}")
        print(f"{path}: not used: {', '.join(unused) or 'nothing'}")


def read_safetensors(path) -> dict:
    """The tensors in a safetensors file, or the checkpoint (config, step, weights) if export.py wrote it.

    Raises UserError if there is no whole one, or without the package safetensors.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(f"{path}: reading it needs the package safetensors: pip install safetensors") from None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            values = {key: json.loads(text) for key, text in (file.metadata() or {}).items() if key in ("config", "step")}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
    return {"weights": tensors} | values if "config" in values else tensors


def state_dict_in(checkpoint) -> dict:
    """The state dict in a checkpoint, or the checkpoint itself, without the prefixes of DataParallel and torch.compile."""
    held = (checkpoint.get(key) for key in HOLDERS)
    weights = next((value for value in held if isinstance(value, dict) and value), checkpoint)
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(key)): value for key, value in weights.items()}


def implementation_of(weights):
    """The implementation whose names a state dict has, or None."""
    return next((made_by for name, made_by in IMPLEMENTATIONS.items() if {name, f"net.{name}"} & weights.keys()), None)


def config_of(weights) -> dict:
    """The config of a state dict of a SRResNet, read off its 3x3 convolutions, whatever their names and order.

    Raises AttributeError or LookupError if it has none.
    """
    kernels = [tensor.shape for tensor in weights.values() if tensor.ndim == 4 and tensor.shape[2] == 3]
    channels = kernels[0][1]
    growth = [kernel[0] // channels for kernel in kernels]  # 1 in the body, the square of its factor in a sub-pixel block
    if any(kernel[1] != channels for kernel in kernels) or not set(growth) <= {1, 4, 9}:
        raise LookupError("other convolutions than those of a SRResNet")
    config = {
        "arch": "srgan" if all(key.startswith("net.") for key in weights) else "srresnet",
        "scale": math.prod(math.isqrt(factor) for factor in growth),
        "blocks": growth.count(1) // 2,
        "channels": channels,
    }
    return config | ({"imagenet_input": True} if implementation_of(weights) in WANTS_IMAGENET_INPUT else {})


def in_our_names(weights, network, path) -> dict:
    """`weights` by the names in `network`, which they are for; where they had other names, tells whose those are.

    Raises ValueError with the first difference, if a tensor is of another kind or shape than ours at its position.
    """
    own = network.state_dict()
    if next(iter(own)) in weights:
        return weights
    # PyTorch before 0.4.1 did not count batches, and nothing depends on it.
    own, theirs = ({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")} for state in (own, weights))
    for (key, tensor), (own_key, own_tensor) in zip(theirs.items(), own.items()):
        if key.split(".")[-1] != own_key.split(".")[-1] or tensor.shape != own_tensor.shape:
            their_shape, shape = tuple(tensor.shape), tuple(own_tensor.shape)
            raise ValueError(f"other layers than ours: {key} {their_shape} is where {own_key} {shape} should be")
    if len(theirs) != len(own):
        raise ValueError(f"other layers than ours: {len(theirs)} tensors in place of {len(own)}")
    made_by = implementation_of(weights)
    whose = f"weights of {made_by}" if made_by else "unknown names, layers like ours; LR in [0, 1] and a final tanh assumed"
    print(f"{path}: {whose}: {network.config}", file=sys.stderr)
    return dict(zip(own, theirs.values()))
