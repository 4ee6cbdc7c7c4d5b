"""Weights that come from elsewhere: safetensors files, and the state dicts of other implementations of the same network.

The well-known PyTorch implementations of SRResNet call its layers by other names, but many make them in the same order.
So a state dict is taken in by position, if at every position the kind and the shape of the tensor are ours: not if it has
a PReLU weight per channel, lacks the biases before batch normalisation, or normalises elsewhere.

    sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution   taken in; wants LR images normalised as for ImageNet
    leftthomas/SRGAN, and the many made after it      taken in, in its later form with 5 blocks and batch normalisation
    Lornatang/SRGAN-PyTorch, twtygqyy/pytorch-SRResNet, eriklindernoren/PyTorch-GAN, BasicSR    refused: other layers
"""

import json
import math
import re
import sys

from utils import UserError

# What state dicts lie under in checkpoints, ours first; of two, the moving average is the one to upscale with.
HOLDERS = "ema weights params_ema ema_state_dict params state_dict model_state_dict generator netG model".split()
IMPLEMENTATIONS = {  # by a name that only it gives
    "subpixel_convolutional_blocks.0.conv.weight": "sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution",
    "block8.0.conv.weight": "leftthomas/SRGAN",
}


def read_safetensors(path) -> dict:
    """The tensors of a safetensors file, or the checkpoint (config, step, weights) that export.py has put in one.

    Raises UserError if there is no whole one, or without the package safetensors.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(f"{path}: to read it needs the package safetensors: pip install safetensors") from None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if "config" not in metadata:
            return tensors
        return {"weights": tensors} | {key: json.loads(metadata[key]) for key in ("config", "step") if key in metadata}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def state_dict_in(checkpoint) -> dict:
    """The state dict in a checkpoint, or the checkpoint itself, without the prefixes of DataParallel and torch.compile."""
    held = (checkpoint.get(key) for key in HOLDERS)
    weights = next((value for value in held if isinstance(value, dict) and value), checkpoint)
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(key)): value for key, value in weights.items()}


def implementation_of(weights):
    """The public implementation that made a state dict, by its names, or None."""
    return next((made_by for name, made_by in IMPLEMENTATIONS.items() if name in weights or f"net.{name}" in weights), None)


def config_of(weights) -> dict:
    """The config of a bare state dict of a SRResNet, read off its 3x3 convolutions, whatever their names and order.

    Raises AttributeError or LookupError for what is none.
    """
    kernels = [value.shape for value in weights.values() if value.ndim == 4 and value.shape[2] == 3]
    channels = kernels[0][1]
    growth = [kernel[0] // channels for kernel in kernels]  # 1 in the residual blocks, factor ** 2 in the sub-pixel blocks
    config = {
        "arch": "srgan" if all(key.startswith("net.") for key in weights) else "srresnet",
        "scale": math.prod(math.isqrt(factor) for factor in growth),
        "blocks": growth.count(1) // 2,
        "channels": channels,
    }
    if "sgrvinod" in (implementation_of(weights) or ""):
        config["imagenet_input"] = True
    return config


def in_our_names(weights, own, path) -> dict:
    """`weights` under the names of `own`, the state dict of the network to fill; says so where they had others.

    Raises ValueError, with the first difference, for tensors of another order, kind or shape.
    """
    if "head.0.weight" in weights or "net.head.0.weight" in weights or "layers.0.weight" in weights:
        return weights  # ours: load_state_dict is strict about them
    theirs = [(key.rsplit(".", 1)[-1], tuple(value.shape)) for key, value in weights.items()]
    ours = [(key.rsplit(".", 1)[-1], tuple(value.shape)) for key, value in own.items()]
    if theirs != ours:
        at = next((i for i, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1]), min(len(theirs), len(ours)))
        names = [[*names, "its end"][at] for names in (weights, own)]
        shapes = [[*(shape for _, shape in kinds), ""][at] for kinds in (theirs, ours)]
        raise ValueError(f"another kind of network: {names[0]} {shapes[0]} stands where ours has {names[1]} {shapes[1]}")
    made_by = implementation_of(weights)
    source = f"the layout of {made_by}" if made_by else "unknown names, but our layers; LR in [0, 1] and tanh are taken for granted"
    print(f"{path}: {source}: {own_size(own)}", file=sys.stderr)
    return dict(zip(own, weights.values(), strict=True))
