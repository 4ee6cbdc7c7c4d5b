"""The layers of the paper's networks, made quick: convolutions, PReLU, the tail, halos, edges. Not here: networks."""

import torch
import torch.nn.functional as F
from torch import nn


def convolution(in_channels, out_channels, kernel_size, stride=1):
    """A convolution padded so that stride 1 keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)


class PReLU(nn.PReLU):
    """PReLU with one slope for all channels, in any shape; trained on the CPU, the same by a faster backward pass."""

    def forward(self, x):
        if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return OneSlope.apply(x, self.weight)
        return super().forward(x)


class OneSlope(torch.autograd.Function):
    """PReLU as a leaky ReLU. PyTorch's own backward pass on the CPU is not vectorised, and was a quarter of a training step."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, slope.item())

    @staticmethod
    def backward(ctx, grad):
        x, slope = ctx.saved_tensors
        grad_slope = (grad * x.clamp(max=0)).sum(dtype=slope.dtype).view(1)
        return torch.ops.aten.leaky_relu_backward(grad, x, slope.item(), False), grad_slope


class TailConvolution(nn.Conv2d):
    """The 9x9 convolution to the 3 channels of the SR image: (N, C, H, W) -> (N, 3, H, W)."""

    def __init__(self, channels):
        super().__init__(channels, 3, 9, padding=4)

    def with_shuffle(self, x, factor):
        """PixelShuffle(factor) and this convolution in one: (N, C * factor^2, h, w) -> (N, 3, factor*h, factor*w).

        Three output channels leave most lanes of a CPU's vector units idle, and most of a GPU's tensor cores; and shuffling
        large maps takes as long as a convolution. So the factor x factor pixels of a place are computed at once: the kernel at
        its offsets to them, laid out on the maps as they are before the shuffle, where it covers 5x5. It is the same sum, with
        zeros added.
        """
        first, last = 2 * factor - 4, 3 * factor - 5
        shifted = [
            F.pad(self.weight, (first + left, last - left, first + top, last - top))
            for top in range(factor)
            for left in range(factor)
        ]
        weight = F.pixel_unshuffle(torch.stack(shifted, dim=1).flatten(0, 1), factor)
        bias = self.bias.repeat_interleave(factor**2)
        return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=2), factor)


def cut_halo(maps, halo, keep):
    """Maps (N, C, H, W) with a halo (top, left, bottom, right) of at most `keep` pixels, and that halo."""
    if max(halo) <= keep:
        return maps, halo
    top, left, bottom, right = (max(0, side - keep) for side in halo)
    maps = maps[:, :, top : maps.shape[2] - bottom, left : maps.shape[3] - right]
    return maps.contiguous(memory_format=torch.channels_last), tuple(min(side, keep) for side in halo)


def sub_pixel_block(channels, factor):
    """conv, PixelShuffle, PReLU: (N, C, H, W) -> (N, C, factor*H, factor*W)."""
    return nn.Sequential(convolution(channels, channels * factor**2, 3), nn.PixelShuffle(factor), PReLU())


RIM = 4  # LR pixels


def mirrored_at_edges(network, lr_imgs):
    """The SR images of a network that sees LR images (N, 3, h, w) go on beyond their edges, mirrored.

    Its convolutions see zeros there otherwise, and draw a rim: on a page of one colour, 18 grey levels off (docs/LOG.md).
    Of any size, as NumPy's "symmetric" padding; written so that exporters can leave h and w open.
    """
    for axis in (2, 3):
        size = lr_imgs.shape[axis]
        places = torch.arange(-RIM, size + RIM, device=lr_imgs.device)
        places = places % torch.full_like(places, 2 * size)  # of a tensor, or the exporter to ONNX takes it for a constant
        lr_imgs = lr_imgs.index_select(axis, torch.minimum(places, 2 * size - 1 - places))
    rim = RIM * network.config["scale"]
    return network(lr_imgs)[:, :, rim:-rim, rim:-rim]
