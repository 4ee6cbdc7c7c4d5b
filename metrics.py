"""PSNR, SSIM, LPIPS, and figures for looking at what a network does wrong; `evaluate`, the protocol of the README, once.

Pictures are (H, W, 3) uint8. Not here: command lines, where test images come from (image_lists.py), and metrics of others
(more_metrics.py).
"""

import math
import warnings

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import uniform_filter  # of scikit-image

from inference import upscale
from pictures.pixels import crop_to_multiple, enlarge, read_image, to_tensor
from utils import ImageError, UserError
from weights import load_checkpoint

FIGURES = ("psnr", "ssim")  # of `evaluate`, for the table and the logs of training; LPIPS where it is asked for
# For looking at what a network does wrong: in metrics.json and the logs of training, no columns of the table.
DIAGNOSTICS = ("colour_shift", "chroma", "consistency", "echo", "gray")
SMALLEST_FOR_LPIPS = 31  # pixels each way, of which AlexNet's last layers see one
YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # BT.601, full range


def luminance(img):
    """Y of BT.601 in studio range: (H, W, 3) uint8 -> (H, W) float64 in [16, 235]."""
    return 16 + img.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


def psnr(sr_img, hr_img, border):
    """Peak signal-to-noise ratio on Y in dB, without `border` pixels at each side; infinite for equal images."""
    error = without_border(luminance(sr_img) - luminance(hr_img), border)
    if not error.size:
        return math.nan
    mse = np.mean(error**2)
    return 10 * math.log10(255**2 / mse) if mse else math.inf


def ssim(sr_img, hr_img, border):
    """Structural similarity on Y, at most 1, without `border` pixels at each side: 11x11 Gaussian window, sigma 1.5."""
    from skimage.metrics import structural_similarity

    sr, hr = (without_border(luminance(img), border) for img in (sr_img, hr_img))
    if min(hr.shape) < 11:
        return math.nan  # the window does not fit
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(sr, hr, **options))


def colour_shift(sr_img, lr_img):
    """How far the mean colour of the SR image is from that of the LR image: grey levels, in the channel where it is most.

    For looking at what a network does wrong, no metric of the table. Means are those of the SR image made small again.
    """
    small = np.asarray(Image.fromarray(sr_img).resize(lr_img.shape[1::-1], Image.Resampling.BICUBIC))
    return float(np.abs(small.mean((0, 1)) - lr_img.mean((0, 1))).max())


def artifacts(sr_img, lr_img, hr_img):
    """What a network draws that is not in the picture, for looking at what it does wrong: grey levels, the lower the better.

    `chroma`: rms error of Cb and Cr of BT.601. `consistency`: rms of the SR image, made small, less the LR image. `echo`: the
    mean of relu(s_SR - 1.2 s_HR), s the local rms (7x7) of the luma that the LR grid cannot hold: detail that HR does not have.
    `gray`, for gray HR images (to 2 levels) only: the mean of the largest less the smallest channel in SR.
    """
    sr, hr = (img.astype(np.float64) @ YCC.T for img in (sr_img, hr_img))
    size = lr_img.shape[1::-1]
    excess = local_detail(sr[..., 0], size) - 1.2 * local_detail(hr[..., 0], size)
    small = np.stack([resized(sr_img[..., c], size) for c in range(3)], axis=-1)
    figures = {
        "chroma": float(np.sqrt(np.mean((sr[..., 1:] - hr[..., 1:]) ** 2))),
        "consistency": float(np.sqrt(np.mean((small - lr_img) ** 2))),
        "echo": float(np.maximum(excess, 0).mean()),
    }
    if np.ptp(hr_img, axis=2).max() <= 2:
        figures["gray"] = float(np.ptp(sr_img, axis=2).mean())
    return figures


def local_detail(luma, size):
    """The local rms (7x7) of what of a luma (H, W) an LR grid of `size` (width, height) cannot hold."""
    rest = luma - resized(resized(luma, size), luma.shape[::-1])
    return np.sqrt(np.maximum(uniform_filter(rest * rest, 7), 0))


def resized(plane, size):
    """Pillow's bicubic without rounding: (H, W) -> float64 of `size` (width, height)."""
    image = Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, np.float64)


def without_border(plane, border):
    return plane[border : plane.shape[0] - border, border : plane.shape[1] - border]


def evaluate(network, pairs, more_metrics=None, processes=None, on_image=None) -> list[dict]:
    """PSNR, SSIM, `more_metrics` (functions of the SR and the HR image, by name) and DIAGNOSTICS of each image.

    By the README's protocol. `pairs` is a datasets.TestPairs; `network` comes from `for_inference`, or is None for bicubic
    enlargement, or a list of the files of finished pictures, one for each pair. Of several `processes` each measures its
    share and all get the whole list. `on_image(entry)` hears of each. Raises ImageError for a file that cannot be measured.
    """

    def measure(i):
        name, lr_img, hr_img = pairs[i]
        sr_img = sr_picture(network, i, lr_img, hr_img.shape, pairs.white)
        entry = {"image": name, "psnr": psnr(sr_img, hr_img, pairs.scale), "ssim": ssim(sr_img, hr_img, pairs.scale)}
        for key, more in (more_metrics or {}).items():
            entry[key] = more(sr_img, hr_img)
        return entry | {"colour_shift": colour_shift(sr_img, lr_img)} | artifacts(sr_img, lr_img, hr_img)

    return shared(measure, len(pairs), processes, on_image)


def evaluate_alone(paths, metrics, processes=None, on_image=None, white=None) -> list[dict]:
    """`metrics` (functions of a picture and None, by name) of each picture that there is no HR image for; as `evaluate`.

    `white` is as in `read_image`.
    """

    def measure(i):
        img = read_image(paths[i], white)
        return {"image": paths[i].name} | {key: metric(img, None) for key, metric in metrics.items()}

    return shared(measure, len(paths), processes, on_image)


def shared(measure, count, processes=None, on_image=None) -> list[dict]:
    """`measure(i)` for i = 0, ..., count - 1, by the `processes` together."""
    rank, step = (processes.rank, processes.count) if processes else (0, 1)
    entries = {}
    for i in range(rank, count, step):
        entries[i] = measure(i)
        if on_image:
            on_image(entries[i])
    if step > 1:
        entries = {i: entry for share in processes.gather(entries) for i, entry in share.items()}
    return [entries[i] for i in sorted(entries)]


def sr_picture(network, i, lr_img, shape, white=None):
    """The picture number `i` that is compared with an HR image of `shape`: `network` as `evaluate` takes it.

    A finished one is read with the `white` of its HR image, and cropped like it. Raises ImageError if it is of another size.
    """
    scale = shape[0] // lr_img.shape[0]
    if not isinstance(network, list):
        return enlarge(lr_img, scale) if network is None else upscale(network, lr_img)
    whole = read_image(network[i], white)
    img = crop_to_multiple(whole, scale, network[i])
    if img.shape != shape:
        raise ImageError(f"{network[i]}: {whole.shape[1]}x{whole.shape[0]} pixels, and its HR image {shape[1]}x{shape[0]}")
    return img


def mean_figures(entries):
    """The mean of each figure over the images that have it."""
    keys = dict.fromkeys(key for entry in entries for key in entry if key != "image")
    return {key: float(np.mean([entry[key] for entry in entries if key in entry])) for key in keys}


def load_lpips(backbone="imagenet", device="cpu"):
    """The metric LPIPS (AlexNet, v0.1): a function of an SR and an HR image (H, W, 3) uint8; the lower the closer.

    `backbone` is "imagenet" (torchvision downloads AlexNet) or the path of a state dict of `alexnet().features`.
    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, by their package.
    Raises UserError where the package or the weights are not to be had.
    """
    try:
        import lpips
    except ImportError:
        raise UserError("LPIPS needs the package lpips: pip install lpips") from None
    with warnings.catch_warnings():  # the package asks torchvision for AlexNet in an old way
        warnings.simplefilter("ignore")
        metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # its linear layers come with it
    if backbone == "imagenet":
        from torchvision.models import AlexNet_Weights

        try:
            state = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        except OSError as error:
            raise UserError(f"AlexNet cannot be downloaded ({error}); give a file by --lpips-backbone") from None
    else:
        state = load_checkpoint(backbone)
    state = {key.removeprefix("features."): value for key, value in state.items()}
    try:
        for layers in (getattr(metric.net, f"slice{i}") for i in range(1, metric.net.N_slices + 1)):
            layers.load_state_dict({key: state[key] for key in layers.state_dict()})
    except (KeyError, RuntimeError):
        raise UserError(f"{backbone}: not the features of torchvision's AlexNet") from None
    metric.to(device).requires_grad_(False)

    def measure(sr_img, hr_img):
        height, width = hr_img.shape[:2]
        if min(height, width) < SMALLEST_FOR_LPIPS:
            raise UserError(f"LPIPS needs {SMALLEST_FOR_LPIPS} pixels each way, and a picture has {width}x{height}")
        with torch.inference_mode():
            return metric(to_tensor(sr_img, device), to_tensor(hr_img, device)).item()

    return measure
