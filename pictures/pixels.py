"""Pictures as plain arrays, (H, W, 3) uint8, RGB, for training, measuring and the rest: read, write, crop, resize.

Not here: what a file carries beside its colours (formats.py).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from utils import ImageError, atomic_write

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def read_image(path) -> np.ndarray:
    """An image file as RGB, (H, W, 3) uint8, upright. Raises ImageError if it is no image that can be read whole.

    Transparent pixels are laid on white; 16-bit values lose their lower half.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is no file")  # a named pipe would be waited for
        with open(path, "rb") as file, Image.open(file) as image:  # by its path, Pillow would map it, with errors
            image = upright(image)
            if image.mode == "F":
                raise ValueError("floating-point pixels, whose range nobody knows")
            if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
                image = Image.fromarray((deep_gray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise ImageError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from None


def orientation_of(image):
    """The orientation of a Pillow image by its EXIF, 1 (upright) to 8; 1 if that is damaged, as it often is."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises whatever the bytes lead it to
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def upright(image):
    """The Pillow image turned as its EXIF says; itself, and not a copy, if it is upright."""
    image.load()  # which turns a TIFF
    turns = Image.Transpose
    methods = [None, turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM]
    methods += [turns.TRANSPOSE, turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90]
    method = methods[orientation_of(image) - 1]
    return image if method is None else image.transpose(method)


def deep_gray(image):
    """The pixels of a loaded Pillow image of more than 8 bits, gray: (H, W) uint16, 0 black. Raises ValueError for others."""
    pixels, tags = np.asarray(image).astype(np.int64), getattr(image, "tag_v2", {})
    levels = 4095 if np.max(tags.get(258, 16)) == 12 else 65535
    if pixels.min() < 0 or pixels.max() > levels:
        raise ValueError("gray of 32 bits, whose range nobody knows; save it with 8 or 16 bits")
    pixels = levels - pixels if tags.get(262) == 0 else pixels  # a TIFF in which 0 is white
    return (pixels * 65535 // levels).astype(np.uint16)


def write_image(path, img):
    """Write (H, W, 3) uint8 as a PNG file, whole or not at all, making its folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(img).save(file, "PNG")


def crop_to_multiple(image, scale, name="image"):
    """The image without the last rows and columns that are no multiple of `scale`. Raises ImageError if none are left."""
    height, width = (size // scale * scale for size in image.shape[:2])
    if not height or not width:
        raise ImageError(f"{name}: smaller than {scale} pixels")
    return image[:height, :width]


def downscale(hr_img, scale):
    """Pillow's bicubic, which is antialiased: (scale*h, scale*w, 3) uint8 -> (h, w, 3) uint8."""
    height, width = hr_img.shape[0] // scale, hr_img.shape[1] // scale
    return np.asarray(Image.fromarray(hr_img).resize((width, height), Image.Resampling.BICUBIC))


def enlarge(lr_img, size, method="bicubic"):
    """Pillow's bicubic or bilinear: (h, w, 3) uint8 -> (H, W, 3) uint8, where `size` is (H, W) or the factor to it."""
    height, width = size if isinstance(size, tuple) else (size * side for side in lr_img.shape[:2])
    return np.asarray(Image.fromarray(lr_img).resize((width, height), Image.Resampling[method.upper()]))


def resize(img, height, width):
    """Antialiased bicubic, of (H, W, C) uint8 or uint16 to (height, width, C)."""
    levels = np.iinfo(img.dtype).max
    pixels = torch.from_numpy(img.astype(np.float32)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, levels).permute(1, 2, 0).numpy().astype(img.dtype)


def to_tensor(img, device="cpu"):
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [-1, 1], as HR and SR images are."""
    return torch.from_numpy(img.copy()).to(device).permute(2, 0, 1)[None].float().div_(127.5).sub_(1)
