"""A trained network made fast, and what is upscaled with it: arrays by tiles, and frames with their transparency.

Not here: files.
"""

import copy
import functools
import math
import os

import numpy as np
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from tqdm import tqdm

from devices import is_out_of_memory, pick_dtype
from layers import PReLU
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
        return hasattr(ops, "_convolution_pointwise") and (dtype != torch.bfloat16 or ops._is_mkldnn_bf16_supported())

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


def for_pictures(network, device, precision="auto") -> nn.Module:
    """`for_inference` in the precision that `--precision` names, with what pictures of 16 bits need.

    In bf16, which has 8, a ramp of 16 bits would come back in a hundred steps. So unless bf16 was asked for by name, they go
    through a copy in float32, `network.of_16_bits()`, which is made when the first of them comes.
    """
    quick = for_inference(network, device, pick_dtype(precision, torch.device(device)))
    exact = precision == "auto" and next(quick.parameters()).dtype != torch.float32
    quick.of_16_bits = functools.cache(lambda: for_inference(network, device)) if exact else lambda: quick
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
    does not fit after all is halved. `progress(done, total)` hears of each finished part, in LR pixels; what it
    raises ends the work.
    Raises UserError if not even a tile of 16 pixels fits.
    """
    scale, (height, width) = network.config["scale"], lr_img.shape[:2]
    out = np.empty((scale * height, scale * width, 3), lr_img.dtype)
    tile = tile or tile_that_fits(network)
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
                raise UserError("not enough memory even for a tile of 16 pixels; close other programs") from None
            tile = max(16, min(tile, max(bottom - top, right - left)) // 2)
            todo.append(part)
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
        top, left, bottom, right = area
        return max(0, top - margin), max(0, left - margin), min(height, bottom + margin), min(width, right + margin)

    scale, (height, width) = network.config["scale"], lr_img.shape[:2]
    weight, levels = next(network.parameters()), np.iinfo(lr_img.dtype).max
    margin = network.reconstruct_margin
    wanted = around(part, margin)
    seen = y0, x0, y1, x1 = around(wanted, network.features_margin)
    halo = [abs(outer - inner) for outer, inner in zip(seen, wanted)]
    with torch.inference_mode():
        lr = torch.from_numpy(lr_img[y0:y1, x0:x1].astype(np.float32) / levels).to(weight.device, weight.dtype)
        features = network.features(lr.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last), halo)
        for block in tiles(*part, BLOCK):
            top, left, bottom, right = around(block, margin)
            maps = features[:, :, top - wanted[0] : bottom - wanted[0], left - wanted[1] : right - wanted[1]]
            sr = network.reconstruct(maps)[0]
            sr = sr[:, scale * (block[0] - top) :, scale * (block[1] - left) :]
            sr = sr[:, : scale * (block[2] - block[0]), : scale * (block[3] - block[1])].float()
            pixels = sr.add(1).mul(levels / 2).round().clamp(0, levels).permute(1, 2, 0).cpu().numpy()
            top, left, bottom, right = (scale * edge for edge in block)
            out[top:bottom, left:right] = pixels


def tiles(top, left, bottom, right, size):
    """Cut an area into equal parts of at most `size` pixels a side: [(top, left, bottom, right), ...]."""
    rows = np.linspace(top, bottom, -(-(bottom - top) // size) + 1).astype(int).tolist()
    columns = np.linspace(left, right, -(-(right - left) // size) + 1).astype(int).tolist()
    return [(y0, x0, y1, x1) for y0, y1 in zip(rows, rows[1:]) for x0, x1 in zip(columns, columns[1:])]


def tile_that_fits(network):
    """The side of a tile, LR pixels, whose features take at most a third of the free memory; on the CPU at most TILE."""
    weight = next(network.parameters())
    if weight.device.type == "cuda":
        memory = torch.cuda.mem_get_info(weight.device)[0] / 3
    else:
        try:
            memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 3
        except (AttributeError, ValueError, OSError):  # Windows and macOS do not tell
            memory = 1e9
    maps = 6  # feature maps alive at a time: the long skip, the short one, a convolution's input and output, its scratch
    side = math.sqrt(memory / (maps * network.config.get("channels", 64) * weight.element_size()))
    side = max(64, int(side) - 2 * (network.features_margin + network.reconstruct_margin))
    return side if weight.device.type == "cuda" else min(side, TILE)


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

    quick, cudnn.allow_tf32 = cudnn.allow_tf32, cudnn.allow_tf32 and not deep  # on CUDA, float32 of 10 bits
    try:
        rgb, alpha = upscale(network, fill_transparent(frame), tile, tell), None
    finally:
        cudnn.allow_tf32 = quick
        tiles_done.close()
    if has_no_colour(frame):
        rgb = without_colour(rgb)
    if outscale:
        rgb = resize(rgb, *(max(1, round(side * outscale)) for side in frame.rgb.shape[:2]))
    if frame.alpha is not None:
        alpha = resize(frame.alpha[..., None], *rgb.shape[:2])[..., 0]
    return Frame(rgb, alpha, frame.duration)
