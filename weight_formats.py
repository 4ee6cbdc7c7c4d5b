"""Weights from elsewhere: safetensors files, and state dicts of other implementations of the same network.

The well-known PyTorch implementations of SRResNet call its layers by other names; some make the same layers in the same
order. A state dict is taken in by position, if at each position the kind and the shape of the tensor are ours.

    sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution    taken in; normalises LR images as for ImageNet, and so do we then
    leftthomas/SRGAN and its many descendants          taken in, if batch normalisation follows the residual blocks
    Lornatang/SRGAN-PyTorch, twtygqyy/pytorch-SRResNet, eriklindernoren/PyTorch-GAN,
    aladdinpersson/Machine-Learning-Collection, BasicSR    refused: no biases, a PReLU weight per channel, or other layers
"""

import json
import math
import re
import sys

from utils import UserError

# What a checkpoint may keep its state dict under, ours first; the moving average is the one to upscale with.
HOLDERS = ["ema", "weights", "params_ema", "ema_state_dict", "params", "state_dict", "model_state_dict", "generator", "model"]
IMPLEMENTATIONS = {  # by a name that only it uses
    "subpixel_convolutional_blocks.0.conv.weight": "sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution",
    "block8.0.conv.weight": "leftthomas/SRGAN",
}
WANTS_IMAGENET_INPUT = {"sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution"}


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
