"""The paper's networks: SRCNN, SRResNet, Generator, Discriminator and TruncatedVGG19.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network", CVPR 2017
(arXiv:1609.04802): section 2.1 and figure 4. LR images are in [0, 1], HR and SR images in [-1, 1] (see datasets.py).

A network that upscales keeps the arguments it was built with in `config`, so that a checkpoint can rebuild it, and is
made of two halves, `features` on the LR grid and `reconstruct` onto the HR grid, each with its `..._margin`: how many LR
pixels around a pixel can change the result there. Upscaling by tiles (inference.py) rests on these four.

Not here: layers made quick (layers.py), networks made quick (inference.py), losses, devices.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from layers import PReLU, TailConvolution, convolution, cut_halo, sub_pixel_block

SCALES = (2, 3, 4, 8)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG19_CONVOLUTIONS = (2, 2, 4, 4, 4)  # before each of the five max-pools
MANY_PIXELS = 2**14  # LR pixels of a batch, from which a GPU gains from a joined tail (docs/LOG.md, 2026-11-27)


class SRCNN(nn.Module):
    """Bicubic upsampling and three convolutions, 9-5-5: LR (N, 3, h, w) in [0, 1] -> SR (N, 3, scale*h, scale*w) in [-1, 1].

    The historical baseline (Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", TPAMI 2016),
    on RGB and with padding, so that the output has the full size. Raises ValueError for a scale not in SCALES.
    """

    def __init__(self, scale: int = 4):
        super().__init__()
        check_scale(scale)
        self.config = {"arch": "srcnn", "scale": scale}
        self.scale = scale
        self.layers = nn.Sequential(convolution(3, 64, 9), nn.ReLU(), convolution(64, 32, 5), nn.ReLU(), convolution(32, 3, 5))
        self.features_margin = 0
        self.reconstruct_margin = 3 + math.ceil((4 + 2 + 2) / scale)  # bicubic reaches over 2 pixels and a half

    def features(self, lr_imgs, halo=(0, 0, 0, 0)):
        return cut_halo(lr_imgs, halo, 0)[0]

    def reconstruct(self, features):
        upsampled = F.interpolate(features, scale_factor=self.scale, mode="bicubic")
        return 2 * self.layers(upsampled) - 1

    def forward(self, lr_imgs):
        return self.reconstruct(self.features(lr_imgs))


class ResidualBlock(nn.Module):
    """conv-BN-PReLU-conv-BN with a skip around it: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            convolution(channels, channels, 3),
            nn.BatchNorm2d(channels),
            PReLU(),
            convolution(channels, channels, 3),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return self.layers(x).add_(x)  # in place: nothing needs what was there to go back through batch normalisation


class SRResNet(nn.Module):
    """The generator network (section 2.1.1, figure 4): LR (N, 3, h, w) in [0, 1] -> SR (N, 3, scale*h, scale*w) in [-1, 1].

    `blocks` residual blocks of `channels` channels on the LR grid, then a sub-pixel block of factor 2 for each doubling
    in `scale`, or a single one of factor 3 for x3. With `imagenet_input` it normalises its input as for ImageNet, which
    some public weights expect. Raises ValueError for a scale not in SCALES.
    """

    joins_last_shuffle = True  # where that is quicker

    def __init__(self, scale: int = 4, blocks: int = 16, channels: int = 64, imagenet_input: bool = False):
        super().__init__()
        check_scale(scale)
        self.config = {"arch": "srresnet", "scale": scale, "blocks": blocks, "channels": channels}
        if imagenet_input:
            self.config["imagenet_input"] = True
            self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        factors = [3] if scale == 3 else [2] * int(math.log2(scale))
        self.head = nn.Sequential(convolution(3, channels, 9), PReLU())
        self.body = nn.Sequential(*[ResidualBlock(channels) for _ in range(blocks)])
        self.body_end = nn.Sequential(convolution(channels, channels, 3), nn.BatchNorm2d(channels))
        self.upsampling = nn.Sequential(*[sub_pixel_block(channels, factor) for factor in factors])
        self.tail = nn.Sequential(TailConvolution(channels), nn.Tanh())
        self.features_margin = 4 + 2 * blocks + 1
        self.reconstruct_margin = math.ceil(sum(factors[0] ** -i for i in range(len(factors))) + 4 / scale)

    def features(self, lr_imgs, halo=(0, 0, 0, 0)):
        """LR (N, 3, h, w) -> feature maps (N, channels, h, w), after the long skip.

        Of the `halo` (top, left, bottom, right), pixels that are there to be seen and are not wanted, nothing is returned.
        It is cut down on the way, to what the layers still to come can see.
        """
        if "imagenet_input" in self.config:
            lr_imgs = (lr_imgs - self.mean) / self.std
        head = maps = self.head(lr_imgs)
        rest = halo
        for done, block in enumerate(self.body, 1):
            maps = block(maps)
            if done % 4 == 0:  # more often costs more in copies than it saves
                maps, rest = cut_halo(maps, rest, 2 * (len(self.body) - done) + 1)
        return cut_halo(self.body_end(maps), rest, 0)[0].add_(cut_halo(head, halo, 0)[0])

    def reconstruct(self, features):
        """Feature maps (N, channels, h, w) -> SR (N, 3, scale*h, scale*w)."""
        device = features.device.type  # a GPU waits for the host with small batches, to which joining gives more to do
        quicker = self.joins_last_shuffle and (device == "cpu" or (device == "cuda" and features[:, 0].numel() >= MANY_PIXELS))
        if not quicker:
            return self.tail(self.upsampling(features))
        convolution, shuffle, prelu = self.upsampling[-1]
        maps = prelu(convolution(self.upsampling[:-1](features)))  # with one slope PReLU may as well come first
        return self.tail[1](self.tail[0].with_shuffle(maps, shuffle.upscale_factor))

    def forward(self, lr_imgs):
        return self.reconstruct(self.features(lr_imgs))


class Generator(nn.Module):
    """The generator of SRGAN: a SRResNet in `.net`, to be started from the weights of stage 1 (section 3.2)."""

    def __init__(self, scale: int = 4, blocks: int = 16, channels: int = 64, imagenet_input: bool = False):
        super().__init__()
        self.net = SRResNet(scale, blocks, channels, imagenet_input)
        self.config = self.net.config | {"arch": "srgan"}

    def forward(self, lr_imgs):
        return self.net(lr_imgs)


class Discriminator(nn.Module):
    """The discriminator (section 2.1.1, figure 4): HR or SR images (N, 3, H, W) in [-1, 1] -> logits (N,) or (N, H/16, W/16).

    Eight convolutions of `channels` to 8 * `channels` (64 to 512), strides 1 and 2 in turn, batch normalisation from the
    second. The adaptive pool makes the size of the images free (the paper's 96 pixels arrive at it as 6x6). The paper
    ends in a sigmoid; here it belongs to the loss, BCEWithLogitsLoss.

    With `patches` a 1x1 convolution takes the place of the pool and the dense layers, and each answer is about the 61 pixels
    around its place (Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017).
    """

    def __init__(self, channels: int = 64, patches: bool = False):
        super().__init__()
        layers = [convolution(3, channels, 3), nn.LeakyReLU(0.2)]
        widths = [channels * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8)]
        for i, (in_channels, out_channels) in enumerate(zip(widths, widths[1:])):
            stride = 2 if i % 2 == 0 else 1
            layers += [convolution(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2)]
        self.convolutions = nn.Sequential(*layers)
        self.patches = patches
        if patches:
            self.classifier = nn.Conv2d(8 * channels, 1, 1)
            return
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Linear(8 * channels * 6 * 6, 16 * channels), nn.LeakyReLU(0.2), nn.Linear(16 * channels, 1)
        )

    def forward(self, imgs):
        maps = self.convolutions(imgs)
        if not self.patches:
            maps = self.pool(maps).flatten(1)
        return self.classifier(maps).squeeze(1)


class TruncatedVGG19(nn.Module):
    """VGG19 up to the j-th convolution before the i-th max-pool, activation included: images in [-1, 1] -> features.

    (N, 3, H, W) -> (N, C, H / 2^(i-1), W / 2^(i-1)): phi_i,j of section 2.2.1; VGG54, i=5 and j=4, is the paper's choice.
    Frozen, and in eval mode whatever `train` says. `weights` is "imagenet" (torchvision downloads its weights), the path
    of a state dict of `vgg19().features`, or such a state dict. Raises ValueError for an i, j that VGG19 does not have or
    weights that do not fit, OSError for weights that cannot be had.
    """

    def __init__(self, i: int = 5, j: int = 4, weights="imagenet"):
        super().__init__()
        self.layers = vgg19_features()[: self.depth(i, j)]
        state = imagenet_vgg19_state() if weights == "imagenet" else weights
        if not isinstance(state, dict):
            try:
                state = torch.load(weights, map_location="cpu", weights_only=True)
            except OSError:
                raise
            except Exception as error:  # PyTorch raises whatever the bytes lead it to
                raise ValueError("not a whole file of tensors") from error
        # Of a whole VGG19 we need its features; of those, the layers below the cut.
        named = state.items() if isinstance(state, dict) else ()
        state = {str(key).removeprefix("features."): value for key, value in named if isinstance(value, torch.Tensor)}
        missing = [key for key in self.layers.state_dict() if key not in state]
        if missing:
            raise ValueError(f"not the features of a VGG19: {missing[0]} is missing")
        try:
            self.layers.load_state_dict({key: state[key].float() for key in self.layers.state_dict()})
        except RuntimeError as error:
            raise ValueError("not the features of a VGG19: a layer has another shape") from error
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def depth(i, j):
        """The number of layers up to phi_i,j, its ReLU included. Raises ValueError for an i, j that VGG19 does not have."""
        if not (1 <= i <= 5 and 1 <= j <= VGG19_CONVOLUTIONS[i - 1]):
            raise ValueError(f"VGG19 has no convolution {j} before max-pool {i}: i is 1..5, j is 1..2 (i <= 2) or 1..4")
        # A block of n convolutions is n times (conv, ReLU) and a max-pool, 2n + 1 layers.
        return sum(2 * n + 1 for n in VGG19_CONVOLUTIONS[: i - 1]) + 2 * j

    def train(self, mode=True):
        return super().train(False)

    def forward(self, imgs):
        return self.layers(self.normalized(imgs))

    def normalized(self, imgs):
        """Images (N, 3, H, W) in [-1, 1] as VGG19 was trained on them, in the dtype of its weights."""
        return (((imgs + 1) / 2 - self.mean) / self.std).to(self.layers[0].weight.dtype)

    def features(self, imgs, layers, before_relu=False):
        """The features of several layers on the way, as a list of (N, C, H, W) from the first layer to the last.

        `layers` are pairs (i, j), none beyond those given to the constructor; `before_relu` takes the results of the
        convolutions themselves (Wang et al., ESRGAN, ECCV workshops 2018, section 3.2), in which a feature that is off
        still tells how far. Raises ValueError for an i, j that VGG19 does not have.
        """
        x, start, found = self.normalized(imgs), 0, []
        for depth in sorted({self.depth(i, j) for i, j in layers}):
            before = self.layers[start : depth - 1](x)
            x, start = F.relu(before), depth  # not in place, as the layer would: `before` may be among the results
            found.append(before if before_relu else x)
        return found


def vgg19_features():
    """The untrained layers of torchvision's VGG19 before its classifier."""
    from torchvision.models import vgg19  # torchvision takes a second to import, and only stage 2 needs it

    with torch.device("meta"):  # which spares seconds: its 140 million weights would be drawn at random
        layers = vgg19(init_weights=False).features
    return layers.to_empty(device="cpu")


def imagenet_vgg19_state():
    """The state dict of torchvision's VGG19, downloaded at the first call. Raises OSError where it cannot be."""
    from torchvision.models import VGG19_Weights

    return VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)


def check_scale(scale):
    if scale not in SCALES:
        raise ValueError(f"the scale must be one of {SCALES}, not {scale}")


def build_network(config: dict) -> nn.Module:
    """The untrained network that `config` describes. Raises ValueError for a config of none of ours."""
    networks = {"srcnn": SRCNN, "srresnet": SRResNet, "srgan": Generator}
    arguments = dict(config) if isinstance(config, dict) else {}
    arch = arguments.pop("arch", None)
    if not isinstance(arch, str) or arch not in networks:
        raise ValueError(f"unknown architecture {arch!r}; known are {', '.join(networks)}")
    try:
        return networks[arch](**arguments)
    except TypeError as error:
        raise ValueError(f"a config that does not fit {arch}: {arguments}") from error
