"""Our SRResNet and SRGAN generator for spandrel, which loads the networks of ComfyUI and chaiNNer and knows no SRResNet.

    import spandrel
    import spandrel_srresnet

    spandrel_srresnet.register()
    network = spandrel.ModelLoader().load_from_file("checkpoints/srgan_x4.pth")
    sr_img = network(lr_img)  # (1, 3, h, w) in [0, 1] -> (1, 3, scale*h, scale*w) in [0, 1]

It takes our checkpoints, their bare state dicts, and safetensors files of export.py; that a network normalises its input as
for ImageNet, as some of other people's do, is known of checkpoints alone. Of the repository it needs models.py
and layers.py only, since a program that loads it may have modules called `utils` of its own.
"""

import math
from collections.abc import Mapping

try:
    from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor
    from spandrel.util import KeyCondition, get_seq_len
except ImportError as error:
    raise ImportError("spandrel_srresnet.py needs the package spandrel: pip install spandrel") from error

from layers import mirrored_at_edges
from models import SRResNet

OUR_KEYS = ("head.0.weight", "body.0.layers.0.weight", "body_end.0.weight", "upsampling.0.0.weight", "tail.0.weight")


def weights_in(state_dict):
    """The state dict of a SRResNet in a checkpoint, or in what spandrel made of it; a Generator's without its prefix."""
    held = (state_dict.get(key) for key in ("ema", "weights"))
    weights = next((value for value in held if isinstance(value, Mapping)), state_dict)
    return {str(key).removeprefix("net."): value for key, value in weights.items()}


def is_ours(state_dict):
    return KeyCondition.has_all(*OUR_KEYS)(weights_in(state_dict))


class SRResNetArch(Architecture):
    """How spandrel detects and loads a SRResNet; the sizes are read off the weights."""

    def __init__(self):
        super().__init__(id="SRResNet", name="SRResNet", detect=is_ours)

    def load(self, state_dict):
        weights, config = weights_in(state_dict), state_dict.get("config", {})
        channels, blocks = weights["head.0.weight"].shape[0], get_seq_len(weights, "body")
        factors = [
            math.isqrt(weights[f"upsampling.{i}.0.weight"].shape[0] // channels)
            for i in range(get_seq_len(weights, "upsampling"))
        ]
        network = SRResNet(math.prod(factors), blocks, channels, bool(config.get("imagenet_input")))
        return ImageModelDescriptor(
            network,
            weights,
            architecture=self,
            purpose="SR",
            tags=[f"{channels}nf", f"{blocks}nb"],
            supports_half=True,
            supports_bfloat16=True,
            scale=network.config["scale"],
            input_channels=3,
            output_channels=3,
            call_fn=lambda network, lr_img: (mirrored_at_edges(network, lr_img) + 1) / 2,  # spandrel clamps
        )


def register(registry=MAIN_REGISTRY):
    """Let spandrel's loaders know a SRResNet; once is enough, and again does no harm."""
    registry.add(ArchSupport.from_architecture(SRResNetArch()), ignore_duplicates=True)
