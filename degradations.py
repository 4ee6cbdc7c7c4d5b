"""What makes LR images out of HR images, on whatever device they are. Not here: files."""

import torch
import torch.nn.functional as F


def degrade(hr_imgs: torch.Tensor, scale: int) -> torch.Tensor:
    """LR images by antialiased bicubic downscaling, on whatever device the HR images are.

    (N, 3, H, W) uint8 -> (N, 3, H / scale, W / scale) float32 in [0, 1]. As in a picture file the values are whole
    256ths, at most one grey level from Pillow's, which rounds and clamps between its two passes as is done here. H and W
    are multiples of `scale`.
    """
    lr_imgs, (height, width) = hr_imgs.float(), hr_imgs.shape[-2:]
    for size in ((height, width // scale), (height // scale, width // scale)):
        lr_imgs = F.interpolate(lr_imgs, size, mode="bicubic", antialias=True).round_().clamp_(0, 255)
    return lr_imgs.div_(255)
