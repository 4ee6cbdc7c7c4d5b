"""The losses of stage 2, each a function of tensors. Not here: the training step, which weighs and adds them.

Images are (N, 3, H, W) float32 in [-1, 1]. A loss is a mean over places and images, so that its weight does not depend on the
size of batch or crop.
"""

import torch
import torch.nn.functional as F


def vgg_features(vgg, imgs, layers, before_relu=False, factor=1.0):
    """The features that the content loss compares: a list of (N, C, H, W), in float32 and times `factor`.

    `layers` are numbers such as 54, for the 4th convolution before max-pool 5.
    float32 because squared errors of features leave the range of bf16's precision.
    """
    found = vgg.features(imgs, [divmod(layer, 10) for layer in layers], before_relu)
    return [factor * features.float() for features in found]


def content_loss(sr_features, hr_features, kind="mse"):
    """The content loss (section 2.2.1) of lists of features (N, C, H, W); the paper's is the mean squared error of one."""
    distance = {"mse": F.mse_loss, "l1": F.l1_loss, "cosine": cosine_distance}[kind]
    return sum(distance(sr, hr) for sr, hr in zip(sr_features, hr_features))


def cosine_distance(sr_features, hr_features):
    """1 - cos of the angle between features, averaged over places: as in LPIPS, faint texture counts as much as strong."""
    return 1 - F.cosine_similarity(sr_features, hr_features, dim=1).mean()


def gram_matrix(features):
    """Correlations of channels, (N, C, H, W) -> (N, C, C), over the number of entries (Gatys et al., CVPR 2016)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def grid_loss(difference, scale):
    """How much of SR - HR (N, 3, H, W) repeats with the period of the scale, as patterns of PixelShuffle do.

    Each of the scale x scale sub-pixels of a LR pixel is averaged over 8x8 LR pixels. Texture comes out near zero,
    since it does not know where LR pixels begin; a pattern that does remains, and is squared.
    """
    sub_pixels = F.pixel_unshuffle(difference, scale)
    return F.avg_pool2d(sub_pixels, min(8, sub_pixels.shape[2]), stride=1).square().mean()


def squares(imgs, side):
    """Cut images (N, 3, H, W) into squares of a side that divides theirs, all (M, 3, side, side); whole if it is None."""
    if side is None:
        return imgs
    cut = imgs.unfold(2, side, side).unfold(3, side, side)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)
