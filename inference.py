"""A trained network made fast, and what is upscaled with it: tensors, arrays by tiles, and frames with their transparency.

Not here: files.
"""

import copy
import functools
import math

import numpy as np
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from tqdm import tqdm

from devices import free_memory, is_out_of_memory, pick_dtype, return_memory
from layers import RIM, PReLU, mirrored_at_edges
from models import Generator, SRResNet
from pictures.formats import Frame, fill_transparent, has_no_colour, without_colour
from pictures.pixels import resize
from utils import UserError


class FusedConvolution(nn.Module):
    """A convolution, and the leaky ReLU after it or the addition of a skip while its result is in the cache: (N, C, H, W).

    Through the oneDNN operators that torch.compile puts into its own code for the CPU. In eval mode only.
    """

    @staticmethod
    def available(dtype):
        """Whether this PyTorch has the operators, and the CPU the instructions for `dtype`."""
        ops = torch.ops.mkldnn
        check = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
        return hasattr(ops, "_convolution_pointwise") and (check is None or getattr(ops, check, bool)())

    def __init__(self, convolution, leaky_relu=None):
        super().__init__()
        self.convolution = convolution
        self.slope = leaky_relu.negative_slope if leaky_relu else None

    def forward(self, x, skip=None):
        layer, fused = self.convolution, torch.ops.mkldnn._convolution_pointwise
        arguments = layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
        if skip is None:
            return fused(x, *arguments, "leaky_relu", [self.slope], None)
        return fused.binary(x, skip, *arguments, "add", 1.0, None, [], None)


class FusedResidualBlock(nn.Module):
    """A ResidualBlock, batch normalisation folded, its activation and its skip fused: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, block):
        super().__init__()
        first, _, leaky_relu, second, _ = block.layers
        self.first, self.second = FusedConvolution(first, leaky_relu), FusedConvolution(second)

    def forward(self, x):
        return self.second(self.first(x), skip=x)


def for_inference(network: nn.Module, device="cpu", dtype=torch.float32, plain=False) -> nn.Module:
    """A frozen copy to upscale with: eval mode, batch normalisation folded into the convolutions, channels last, in `dtype`.

    In eval mode batch normalisation is an affine map of each channel, so the convolution before it can do its work. PReLU
    becomes a leaky ReLU, and on the CPU a part of the convolution before it, too, unless the copy shall be of `plain` layers.
    The copy of a Generator is its SRResNet.
    """
    network = copy.deepcopy(network.net if isinstance(network, Generator) else network).eval().requires_grad_(False)
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                if isinstance(module[i], nn.Conv2d) and isinstance(module[i + 1], nn.BatchNorm2d):
                    module[i] = fuse_conv_bn_eval(module[i], module[i + 1])
                    module[i + 1] = nn.Identity()
            for i, layer in enumerate(module):
                if isinstance(layer, PReLU):
                    module[i] = nn.LeakyReLU(layer.weight.item(), inplace=True)
    if isinstance(network, SRResNet):
        network.joins_last_shuffle = not plain
        if not plain and torch.device(device).type == "cpu" and FusedConvolution.available(dtype):
            for layers in (network.head, *network.upsampling):  # the last layer of each is the leaky ReLU
                layers[0], layers[-1] = FusedConvolution(layers[0], layers[-1]), nn.Identity()
            for i, block in enumerate(network.body):
                network.body[i] = FusedResidualBlock(block)
    return network.to(device, dtype).to(memory_format=torch.channels_last)


class Upscaler(nn.Module):
    """A trained network as other programs expect one: RGB (N, 3, h, w) in [0, 1] -> (N, 3, scale*h, scale*w) in [0, 1].

    In eval mode, of plain layers alone, so that exporters know them and `.to("cuda")` and `.half()` work on it. The images are
    `mirrored` at their edges, unless the program does something of the kind by itself.
    """

    def __init__(self, network, dtype=torch.float32, mirrored=True):
        super().__init__()
        self.config, self.mirrored = network.config, mirrored
        self.network = for_inference(network, dtype=dtype, plain=True).to(memory_format=torch.contiguous_format)
        self.eval()

    def forward(self, input):  # exporters take the name from here
        sr_imgs = mirrored_at_edges(self.network, input) if self.mirrored else self.network(input)
        return sr_imgs.add(1).mul(0.5).clamp(0, 1)


class SelfEnsemble(nn.Module):
    """The mean of what a network from `for_inference` makes of the eight flips and quarter turns of a picture, turned back.

    "SRResNet+", as the literature marks it: Timofte et al., "Seven ways to improve example-based single image super
    resolution", CVPR 2016, section 3.6; Lim et al. (EDSR), CVPRW 2017, section 3.4. Eight times the work. Features and
    margins are those of `models.py`, with eight maps of features, all upright; the mean is taken in float32.
    """

    def __init__(self, network):
        super().__init__()
        self.network, self.config = network, network.config
        self.features_margin, self.reconstruct_margin = network.features_margin, network.reconstruct_margin

    def features(self, lr_imgs, halo=(0, 0, 0, 0)):
        """LR (1, 3, h, w) -> feature maps (8, channels, h, w), without the halo."""
        maps = None
        for number, (mirrored, quarters) in enumerate(TURNS):
            top, left, bottom, right = halo
            sides = (top, right, bottom, left) if mirrored else (top, left, bottom, right)
            sides = (*sides[4 - quarters :], *sides[: 4 - quarters])  # a quarter turn to the left brings the right side up
            turned = turned_back(self.network.features(turn(lr_imgs, mirrored, quarters), sides), mirrored, quarters)
            if maps is None:  # one copy: these are the largest maps there are
                size, like = (len(TURNS), *turned.shape[1:]), {"dtype": turned.dtype, "device": turned.device}
                maps = torch.empty(size, **like, memory_format=torch.channels_last)
            maps[number] = turned[0]
        return maps

    def reconstruct(self, features):
        """Feature maps (8, channels, h, w) -> SR (1, 3, scale*h, scale*w), float32 or float64."""
        total = 0
        for maps, (mirrored, quarters) in zip(features, TURNS, strict=True):
            sr = turned_back(self.network.reconstruct(turn(maps[None], mirrored, quarters)), mirrored, quarters)
            total = total + sr.to(torch.promote_types(sr.dtype, torch.float32))
        return total / len(TURNS)


TURNS = [(mirrored, quarters) for mirrored in (False, True) for quarters in range(4)]


def turn(maps, mirrored, quarters):
    """Maps (N, C, H, W), mirrored left to right or not, then turned to the left by quarters."""
    maps = torch.rot90(maps.flip(3) if mirrored else maps, quarters, (2, 3))
    return maps.contiguous(memory_format=torch.channels_last)


def turned_back(maps, mirrored, quarters):
    """What `turn` was given."""
    maps = torch.rot90(maps, -quarters, (2, 3))
    return maps.flip(3) if mirrored else maps


def for_pictures(network, device, precision="auto", self_ensemble=False) -> nn.Module:
    """`for_inference` in the precision that `--precision` names, with what pictures of 16 bits need; or a SelfEnsemble of it.

    In bf16, which has 8, a ramp of 16 bits would come back in a hundred steps; fp16 has 11. So unless a precision was asked
    for by name, they go through a copy in float32, `network.of_16_bits()`, which is made when the first of them comes.
    """
    around = SelfEnsemble if self_ensemble else lambda network: network
    quick = around(for_inference(network, device, pick_dtype(precision, torch.device(device))))
    exact = precision == "auto" and next(quick.parameters()).dtype != torch.float32
    quick.of_16_bits = functools.cache(lambda: around(for_inference(network, device))) if exact else lambda: quick
    return quick


# Upscaling by tiles. `features` sees far, through cheap maps on the LR grid; `reconstruct` sees a few pixels, through
# maps of scale * scale times the size. So a large tile of features is reconstructed in small blocks: the overlap of the
# large tiles wastes little, and the memory is that of a block. (Whole-network tiles as small would do half their work twice.)

# In LR pixels: the side of a tile of features on the CPU, and of what is reconstructed at a time. With their margins the
# largest maps in bf16 are then just under the 32 MB up to which keep_freed_memory keeps them.
TILE, BLOCK = 430, 120


def upscale(network, lr_img, tile=None, progress=None) -> np.ndarray:
    """The SR image of a network from `for_inference`: (h, w, 3) -> (scale*h, scale*w, 3), both uint8 or both uint16.

    The output is clamped and rounded. An image larger than `tile` LR pixels (default: what fits in memory) is made in
    tiles that overlap by the receptive field, so that the result is that of the whole image, to rounding; a tile that
    does not fit after all is halved. Beyond the edges of the image the network sees it mirrored (see `layers.py`).
    `progress(done, total)` hears of each finished part, in LR pixels; what it raises ends the work.
    Raises UserError if not even a tile of 16 pixels fits, or if the network's values leave the range of fp16.
    """
    scale, (height, width) = network.config["scale"], lr_img.shape[:2]
    out = np.empty((scale * height, scale * width, 3), lr_img.dtype)
    tile = min(tile or tile_that_fits(network), largest_tile(network))
    todo = tiles(0, 0, height, width, tile)[::-1]
    done = 0
    while todo:
        top, left, bottom, right = part = todo.pop()
        if max(bottom - top, right - left) > tile:  # a tile did not fit since this part was planned
            todo += tiles(*part, tile)[::-1]
            continue
        try:
            upscale_tile(network, lr_img, part, out)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if tile <= 16:
                reason = f"not enough memory even for a tile of 16 pixels; close other programs ({str(error)[:200]})"
                raise UserError(reason) from None
            tile = max(16, min(tile, max(bottom - top, right - left)) // 2)
            todo.append(part)
            part = None
        if part is None:  # by now the error has let go of the tensors of the tile
            return_memory(next(network.parameters()).device)
            continue
        done += (bottom - top) * (right - left)
        if progress:
            progress(done, height * width)
    return out


def upscale_area(network, lr_img, area) -> np.ndarray:
    """What `upscale` makes of the area (top, left, bottom, right) of an LR image, to rounding, without the rest of it.

    (h, w, 3) -> (scale*(bottom-top), scale*(right-left), 3), both uint8 or both uint16.
    """
    scale, margin = network.config["scale"], network.features_margin + network.reconstruct_margin
    top, left, bottom, right = area
    y0, x0 = max(0, top - margin), max(0, left - margin)
    lr_img = lr_img[y0 : bottom + margin, x0 : right + margin]
    out = np.empty((scale * lr_img.shape[0], scale * lr_img.shape[1], 3), lr_img.dtype)
    top, left, bottom, right = top - y0, left - x0, bottom - y0, right - x0
    upscale_tile(network, lr_img, (top, left, bottom, right), out)
    return out[scale * top : scale * bottom, scale * left : scale * right]


def upscale_tile(network, lr_img, part, out):
    """Write the SR pixels of `part` (top, left, bottom, right) of the LR image where they belong in `out`."""

    def around(area, margin):
        (top, left, bottom, right), end = area, (height + RIM, width + RIM)
        return max(-RIM, top - margin), max(-RIM, left - margin), min(end[0], bottom + margin), min(end[1], right + margin)

    scale, (height, width) = network.config["scale"], lr_img.shape[:2]
    weight, levels = next(network.parameters()), np.iinfo(lr_img.dtype).max
    margin = network.reconstruct_margin
    wanted = around(part, margin)
    seen = y0, x0, y1, x1 = around(wanted, network.features_margin)
    halo = [abs(outer - inner) for outer, inner in zip(seen, wanted)]
    with torch.inference_mode():
        seen_img = lr_img[np.ix_(mirrored(y0, y1, height), mirrored(x0, x1, width))]
        lr = torch.from_numpy(seen_img.astype(np.float32) / levels).to(weight.device, weight.dtype)
        features = network.features(lr.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last), halo)
        if weight.dtype == torch.float16 and not features.isfinite().all():
            raise UserError("these weights leave the range of fp16 on this picture; give --precision fp32")
        for block in tiles(*part, BLOCK):
            top, left, bottom, right = around(block, margin)
            maps = features[:, :, top - wanted[0] : bottom - wanted[0], left - wanted[1] : right - wanted[1]]
            sr = network.reconstruct(maps)[0]
            sr = sr[:, scale * (block[0] - top) :, scale * (block[1] - left) :]
            sr = sr[:, : scale * (block[2] - block[0]), : scale * (block[3] - block[1])].float()
            pixels = sr.add(1).mul(levels / 2).round().clamp(0, levels).permute(1, 2, 0).cpu().numpy()
            top, left, bottom, right = (scale * edge for edge in block)
            out[top:bottom, left:right] = pixels


def mirrored(start, end, size):
    """The places from `start` to `end` of a row of `size` pixels, those beyond it mirrored back into it."""
    places = np.arange(start, end) % (2 * size)
    return np.minimum(places, 2 * size - 1 - places)


def tiles(top, left, bottom, right, size):
    """Cut an area into equal parts of at most `size` pixels a side: [(top, left, bottom, right), ...]."""
    rows = np.linspace(top, bottom, -(-(bottom - top) // size) + 1).astype(int).tolist()
    columns = np.linspace(left, right, -(-(right - left) // size) + 1).astype(int).tolist()
    return [(y0, x0, y1, x1) for y0, y1 in zip(rows, rows[1:]) for x0, x1 in zip(columns, columns[1:])]


def tile_that_fits(network):
    """The side of a tile, LR pixels, whose features take at most a third of the free memory; on the CPU at most TILE."""
    weight = next(network.parameters())
    maps = 6  # feature maps alive at a time: the long skip, the short one, a convolution's input and output, its scratch
    maps += len(TURNS) if isinstance(network, SelfEnsemble) else 0
    side = math.sqrt(free_memory(weight.device) / 3 / (maps * channels_of(network) * weight.element_size()))
    side = max(64, int(side) - 2 * (network.features_margin + network.reconstruct_margin))
    return min(side, TILE) if weight.device.type == "cpu" else side


def largest_tile(network):
    """The side of the largest tile, LR pixels: with its margins, its maps have under 2^31 elements, which kernels can count."""
    channels = channels_of(network) * (len(TURNS) if isinstance(network, SelfEnsemble) else 1)
    return math.isqrt((2**31 - 1) // channels) - 2 * (network.features_margin + network.reconstruct_margin)


def channels_of(network):
    return network.config.get("channels", 64)


def upscale_frame(network, frame, tile=None, outscale=None, progress=None) -> Frame:
    """The frame, enlarged: its colours by the network, its transparency by bicubic interpolation.

    A network of `for_pictures` takes 16 bits in float32. A frame without colour gets none: the network sees three channels,
    and leaves a coloured fringe at edges.
    `tile` and `progress` as in `upscale`; the result is resized to the factor `outscale` if there is one. Shows a bar for
    what takes over 2 s.
    """
    deep, cudnn = frame.rgb.dtype == np.uint16, torch.backends.cudnn
    if deep and hasattr(network, "of_16_bits"):
        network = network.of_16_bits()
    tiles_done = tqdm(unit="px", unit_scale=True, desc="tiles", leave=False, disable=None, delay=2)

    def tell(done, total):
        tiles_done.total = total
        tiles_done.update(done - tiles_done.n)
        if progress:
            progress(done, total)

    lr_img = fill_transparent(frame)
    quick, cudnn.allow_tf32 = cudnn.allow_tf32, cudnn.allow_tf32 and not deep  # on CUDA, float32 of 10 bits
    try:
        rgb, alpha = upscale(network, lr_img, tile, tell), None
    finally:
        cudnn.allow_tf32 = quick
        tiles_done.close()
    if outscale:
        rgb = resize(rgb, *(max(1, round(side * outscale)) for side in frame.rgb.shape[:2]))
    if frame.alpha is not None:
        alpha = resize(frame.alpha[..., None], *rgb.shape[:2])[..., 0]
    if has_no_colour(lr_img):
        rgb = without_colour(rgb)
    elif has_no_colour(lr_img, frame.alpha):  # what goes on under the mask has some
        rgb = np.where(alpha[..., None] > 0, without_colour(rgb), rgb)
    return Frame(rgb, alpha, frame.duration)
