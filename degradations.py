"""What makes LR images out of HR images: bicubic downscaling, and what cameras and the web do. Not here: files.

`degrade` takes batches, on whatever device they are. The rest takes and gives single images (H, W, 3) uint8, as they lie in
files, on the CPU, and draws from the generator it is given: what comes out is a function of the image and the generator's
seed alone. The codecs are Pillow's own, whose versions may differ by a grey level.
"""

import io
import math
import unicodedata
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# What `photo` does: mild to medium, as in pictures of phones, of the web and of old albums, and not as in ruins. Lengths
# are in LR pixels, so that pictures of every scale come out equally soft. A pair is a range, drawn from evenly.
PHOTO = {
    "clean": 0.15,  # share of samples that are bicubic and nothing else, so that clean pictures are not forgotten
    "twice": 0.35,  # share of the others that go through two passes: taken and saved, then resized and saved again
    "blurred": 0.6,  # share of passes
    "disc": 0.2,  # share of the blurs that are a lens out of focus; the others are Gaussian,
    "round": 0.5,  # this share of which is isotropic
    "sigma": (0.1, 0.7),  # of the Gaussians, along each axis, LR pixels
    "radius": (0.3, 1.0),  # of the discs, LR pixels
    "detour": 0.3,  # share of passes that resize twice, by way of another size
    "between": (0.7, 2.0),  # that size, and the size between two passes, in sides of the LR image
    "noisy": 0.5,  # share of passes
    "poisson": 0.4,  # share of the noise that is of photons; the other is Gaussian
    "gray": 0.4,  # share of the noise that is the same in the three channels
    "noise": (1.0, 15.0),  # standard deviation, grey levels of 255; of photons, where the image is white
    "saved": 0.85,  # share of passes that end with a lossy file
    "webp": 0.2,  # share of these files; the others are JPEG,
    "halved_colours": 0.7,  # this share of which has 4:2:0, the others 4:4:4
    "quality": (30, 95),  # of both codecs, whole numbers
}
RESAMPLING = {"area": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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


def photo(hr_img: np.ndarray, scale: int, rng: np.random.Generator, clean: float = PHOTO["clean"]) -> np.ndarray:
    """An LR image as people have it: blurred, resized, noisy and compressed, once or twice; or clean, by that share.

    (H, W, 3) uint8 -> (H / scale, W / scale, 3) uint8, where H and W are multiples of `scale`. What is drawn from `rng`,
    and how strong it is, stands in PHOTO. The chain of blur, resizing, noise and JPEG is that of Zhang et al., "Designing
    a Practical Degradation Model for Deep Blind Image Super-Resolution" (BSRGAN), ICCV 2021, section 3; two passes of it
    are from Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCVW 2021,
    section 3.1. Both are milder here, without sinc filters and shuffling, and with WebP.
    """
    lr_size = hr_img.shape[0] // scale, hr_img.shape[1] // scale
    if rng.random() < clean:
        return resize(hr_img, *lr_size, "bicubic")
    sizes = [size_between(lr_size, rng), lr_size] if rng.random() < PHOTO["twice"] else [lr_size]
    image = hr_img
    for size in sizes:
        image = one_pass(image, size, lr_size, rng)
    return image


def photo_by_name(hr_img: np.ndarray, scale: int, name: str) -> np.ndarray:
    """`photo` of an image to measure on: never a clean one, and what is drawn is fixed by the image's name.

    The name is that of the file without folder and ending. So everyone measures the same, wherever the files lie.
    """
    name = unicodedata.normalize("NFC", name)  # macOS writes accents as letters of their own
    return photo(hr_img, scale, np.random.default_rng(zlib.crc32(name.encode(errors="surrogateescape"))), clean=0)


def one_pass(image, size, lr_size, rng):
    """Blur, resizing to `size` (height, width), noise and a file, each or not, as PHOTO says."""
    if rng.random() < PHOTO["blurred"]:
        image = blur(image, draw_kernel(image.shape[0] / lr_size[0], rng))
    if rng.random() < PHOTO["detour"]:
        image = resize(image, *size_between(lr_size, rng), draw_method(rng))
    image = resize(image, *size, draw_method(rng))
    if rng.random() < PHOTO["noisy"]:
        sigma, gray = rng.uniform(*PHOTO["noise"]), rng.random() < PHOTO["gray"]
        noise = poisson_noise if rng.random() < PHOTO["poisson"] else gaussian_noise
        image = noise(image, sigma, gray, rng)
    if rng.random() < PHOTO["saved"]:
        quality = int(rng.integers(*PHOTO["quality"], endpoint=True))
        if rng.random() < PHOTO["webp"]:
            image = webp(image, quality)
        else:
            image = jpeg(image, quality, "4:2:0" if rng.random() < PHOTO["halved_colours"] else "4:4:4")
    return image


def size_between(lr_size, rng):
    """A size that is no simple fraction of another, drawn from PHOTO: (height, width)."""
    factor = rng.uniform(*PHOTO["between"])
    return tuple(max(1, round(factor * side)) for side in lr_size)


def draw_method(rng):
    return list(RESAMPLING)[rng.integers(len(RESAMPLING))]


def draw_kernel(unit, rng):
    """A kernel drawn from PHOTO, for an image with `unit` pixels to the LR pixel."""
    if rng.random() < PHOTO["disc"]:
        return disc_kernel(unit * rng.uniform(*PHOTO["radius"]))
    sigma = unit * rng.uniform(*PHOTO["sigma"])
    across = sigma if rng.random() < PHOTO["round"] else unit * rng.uniform(*PHOTO["sigma"])
    return gaussian_kernel(sigma, across, rng.uniform(0, math.pi))


def gaussian_kernel(sigma, across, angle=0.0):
    """A Gaussian of standard deviation `sigma` along `angle` (radians, from the x axis) and `across` at right angles.

    In pixels. (2 * radius + 1, 2 * radius + 1) float64, with sum 1, cut off at three standard deviations.
    """
    radius = math.ceil(3 * max(sigma, across))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = np.exp(-0.5 * ((u / sigma) ** 2 + (v / across) ** 2))
    return kernel / kernel.sum()


def disc_kernel(radius):
    """What a lens that is out of focus makes of a point: a disc of `radius` pixels, whose edge is a pixel wide; sum 1."""
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    return kernel / kernel.sum()


def blur(image, kernel):
    """The image convolved with a kernel of odd sides, mirrored at its borders: (H, W, 3) uint8 to the same.

    By Fourier transforms of NumPy: quicker than sums for kernels of this size, and the same on any number of threads.
    """
    (height, width), radius = image.shape[:2], kernel.shape[0] // 2
    padded = np.pad(image.transpose(2, 0, 1), ((0, 0), (radius, radius), (radius, radius)), "reflect").astype(np.float32)
    sides = [-(-side // 32) * 32 for side in padded.shape[1:]]  # transforms are slow where a side is a large prime
    spectrum = np.fft.rfft2(padded, sides) * np.fft.rfft2(kernel.astype(np.float32), sides)
    blurred = np.fft.irfft2(spectrum, sides)[:, 2 * radius :, 2 * radius :][:, :height, :width]
    return to_uint8(blurred.transpose(1, 2, 0))


def resize(image, height, width, method):
    """Pillow's resizing, antialiased, by "area", "bilinear" or "bicubic"; where it enlarges, area is bilinear."""
    enlarges = height > image.shape[0] or width > image.shape[1]
    method = "bilinear" if method == "area" and enlarges else method  # Pillow's would repeat pixels
    return np.asarray(Image.fromarray(image).resize((width, height), RESAMPLING[method]))


def gaussian_noise(image, sigma, gray, rng):
    """Add noise of `sigma` grey levels of 255, the same in the three channels (gray) or one of its own in each."""
    shape = (*image.shape[:2], 1) if gray else image.shape
    return to_uint8(image + np.float32(sigma) * rng.standard_normal(shape, np.float32))


def poisson_noise(image, sigma, gray, rng):
    """Add the noise of counted photons, which grows with the root of the light: `sigma` grey levels where it is white.

    With `gray` it is that of the luminance, the same in the three channels.
    """
    light = image @ np.array([[0.299], [0.587], [0.114]]) if gray else image.astype(np.float64)
    photons_per_level = 255 / sigma**2
    return to_uint8(image + rng.poisson(light * photons_per_level) / photons_per_level - light)


def jpeg(image, quality, subsampling):
    """The image saved as JPEG of `quality` (1 to 95) and `subsampling` ("4:2:0" or "4:4:4"), and read again."""
    return saved(image, "JPEG", quality=quality, subsampling=subsampling)


def webp(image, quality):
    """The image saved as lossy WebP of `quality` (0 to 100), and read again."""
    return saved(image, "WEBP", quality=quality)


def saved(image, codec, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, codec, **options)
    with Image.open(file) as again:
        return np.asarray(again.convert("RGB"))


def to_uint8(values):
    """Rounded and clamped, as a picture file holds it."""
    return np.rint(values).clip(0, 255).astype(np.uint8)
