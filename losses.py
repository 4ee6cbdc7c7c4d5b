"""The losses of stage 2, each a function of tensors. Not here: the training step, which weighs and adds them.

Images are (N, 3, H, W) float32 in [-1, 1]. A loss is a mean over places and images, so that its weight does not depend on the
size of batch or crop.
"""

import functools

import torch
import torch.nn.functional as F

LUMA = (0.299, 0.587, 0.114)  # BT.601


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


def texture_loss(sr_features, hr_features):
    """Mean squared error between Gram matrices of lists of features: textures that are alike, wherever they lie."""
    return sum(F.mse_loss(gram_matrix(sr), gram_matrix(hr)) for sr, hr in zip(sr_features, hr_features))


def squares(imgs, side):
    """Cut images (N, 3, H, W) into squares of a side that divides theirs, all (M, 3, side, side); whole if it is None."""
    if side is None:
        return imgs
    cut = imgs.unfold(2, side, side).unfold(3, side, side)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)


def luma(imgs):
    """Y of BT.601, in the range of the images: (N, 3, H, W) -> (N, 1, H, W)."""
    weights = luma_weights(imgs.device, imgs.dtype)
    return (imgs * weights).sum(1, keepdim=True)  # by a product of tensors it would be in bf16 under autocast


@functools.cache  # on a GPU, for which the host would wait at each copy
def luma_weights(device, dtype):
    with torch.inference_mode(False):  # or a training that came later could not use them
        return torch.tensor(LUMA, device=device, dtype=dtype).view(1, 3, 1, 1)


def chroma(imgs):
    """Cb and Cr of BT.601, (B - Y) / 1.772 and (R - Y) / 1.402: (N, 3, H, W) -> (N, 2, H, W)."""
    y = luma(imgs)
    return torch.cat([(imgs[:, 2:] - y) / 1.772, (imgs[:, :1] - y) / 1.402], dim=1)


def with_luma_of(imgs, others):
    """The chroma of images and the luma of others, both (N, 3, H, W): Y is one offset of all three channels."""
    return imgs + (luma(others) - luma(imgs))


def chroma_loss(sr_imgs, hr_imgs):
    """Mean squared error of Cb and Cr. In colour an adversary has nothing to win: what it draws there are fringes."""
    return F.mse_loss(chroma(sr_imgs), chroma(hr_imgs))


def consistency_loss(sr_imgs, hr_imgs, scale):
    """Mean squared error between the SR and the HR image, both made small: what an LR image shows is not to be redrawn.

    The HR image and not the LR image, which may be noisy and compressed.
    """
    size = [side // scale for side in hr_imgs.shape[-2:]]
    return F.mse_loss(resize(sr_imgs, size), resize(hr_imgs, size))


def echo_loss(sr_imgs, hr_imgs, scale):
    """Squared excess of local detail: mean of relu(s_SR - 1.2 s_HR)^2, s the local rms of what the LR grid cannot hold of luma.

    Against the ringing artifacts of an adversary: lines beside hard edges, where the HR image has no detail.
    """
    sr, hr = (local_rms(detail(luma(imgs), scale)) for imgs in (sr_imgs, hr_imgs))
    return F.relu(sr - 1.2 * hr).square().mean()


def calm_loss(sr_imgs, hr_imgs, scale, weights=1):
    """Excess of local detail in proportion to HR's: mean of relu(s_SR - 1.1 s_HR) / (s_HR + one level of 255), s as above.

    `echo_loss`, squared, is all for the strong lines beside hard edges; this is as much for faint sand and weave on what is
    smooth. An adversary's texture fades with it, too, where the LR image does not tell whether there is any.

    `weights` (N, 1, 1, 1) are those of the images.
    """
    sr, hr = (local_rms(detail(luma(imgs), scale)) for imgs in (sr_imgs, hr_imgs))
    return (weights * F.relu(sr - 1.1 * hr) / (hr + 2 / 255)).mean()


def missing_detail_loss(sr_imgs, hr_imgs, scale):
    """Squared want of local detail: mean of relu(0.8 s_HR - s_SR)^2, s as in `echo_loss`.

    Against softness: how much detail a place has is known better than where its lines lie, and can be asked for without an
    adversary, which has to learn it first.
    """
    sr, hr = (local_rms(detail(luma(imgs), scale)) for imgs in (sr_imgs, hr_imgs))
    return F.relu(0.8 * hr - sr).square().mean()


def mesh_loss(sr_imgs, hr_imgs, scale):
    """Squared excess of what repeats in each LR pixel: mean of relu(m_SR - m_HR)^2, m the rms of the mean LR pixel's detail.

    The sum of two, whose means are over 8x8 and 16x16 LR pixels: the smaller finds a mesh that is confined, the larger one
    that a texture hides. Sub-pixel convolution (section 2.1.1) draws the same scale x scale pattern everywhere at no cost;
    photographs seldom have it.
    """
    sr, hr = (detail(luma(imgs), scale) for imgs in (sr_imgs, hr_imgs))
    excess = (repeated_pattern(sr, scale, side) - repeated_pattern(hr, scale, side) for side in (8, 16))
    return sum(F.relu(more).square().mean() for more in excess)


def excess_error_loss(sr_imgs, hr_imgs, faithful_imgs):
    """Squared excess of local error: mean of relu(e_SR - 1.3 e_faithful)^2, e the local rms of luma less HR's.

    `faithful_imgs` are what the network of stage 1 makes of the same LR images. Where it knows the picture, as beside hard
    edges, what an adversary adds is wrong; where it does not, as in texture, its own error is large, and so may SR's be.
    """
    sr, faithful = (local_rms(luma(imgs) - luma(hr_imgs)) for imgs in (sr_imgs, faithful_imgs))
    return F.relu(sr - 1.3 * faithful).square().mean()


def resize(imgs, size):
    """Antialiased bicubic, by Pillow's kernel: (N, C, H, W) -> (N, C, *size)."""
    return F.interpolate(imgs, size, mode="bicubic", antialias=True)


def detail(y, scale):
    """What the LR grid cannot hold of a luma (N, 1, H, W): itself less its bicubic copy, made small and large again."""
    height, width = y.shape[-2:]
    return y - resize(resize(y, (height // scale, width // scale)), (height, width))


def local_rms(y):
    """The root of the mean square of the 7x7 pixels around each: (N, 1, H, W) -> the same."""
    return (F.avg_pool2d(y.square(), 7, stride=1, padding=3, count_include_pad=False) + 1e-6).sqrt()


def repeated_pattern(y, scale, side):
    """How strong the pattern is that side x side LR pixels have in common: (N, 1, H, W) -> its root mean square, (N, h, w).

    With crops of fewer LR pixels, that of all of them.
    """
    cells = F.pixel_unshuffle(y, scale)
    size = [min(side, whole) for whole in cells.shape[-2:]]
    return (F.avg_pool2d(cells, size, stride=side // 2).square().mean(1) + 1e-8).sqrt()
