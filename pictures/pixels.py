"""Pictures as plain arrays, (H, W, 3) uint8, RGB, for training, measuring and the rest: read, write, crop, resize.

Not here: what a file carries beside its colours (formats.py).
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from pictures.deep import declared_white, deep_pixels, in_planes, stretched, turned, white_level
from pictures.opening import check_whole, open_image, reason, with_end
from utils import ImageError, atomic_write

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def read_image(path, white=None) -> np.ndarray:
    """An image file as RGB, (H, W, 3) uint8, upright. Raises ImageError if it is no image that can be read whole.

    Transparent pixels are laid on white; 16-bit values, in the range that the file declares, or up to `white` if that is
    given, lose their lower half.
    """
    return _of_file(path, lambda file: _rgb(file, white))


def highest_of_16_bits(path):
    """The highest value in a file of 16 bits a channel, and whether it declares its range; None for any other file.

    Raises ImageError if it is no image that can be read whole.
    """
    return _of_file(path, _highest_value)


def _of_file(path, read):
    """What `read` makes of the open file, which is mended first if it is a JPEG without its end. Raises ImageError."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is no file")  # a named pipe would be waited for
        with open(path, "rb") as file:  # by its path, Pillow would map it, with errors
            try:
                return read(file)
            except OSError:
                mended = with_end(whole(file))
                if mended is None:
                    raise
            return read(io.BytesIO(mended))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise ImageError(f"{path}: cannot be read as an image ({reason(error)})") from None


def _rgb(file, white):
    """The image of an open file, as `read_image` returns it."""
    with open_image(file) as image:
        data = whole(file)
        check_whole(image, data)
        scale_key(image, data)
        if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
            image = Image.fromarray((deep_gray(image, data, white)[0] // 257).astype(np.uint8))
        else:
            image = colours_of_fewer_bits(image, file, white) or upright(image)
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range nobody knows")
        image = inks_by_profile(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _highest_value(file):
    """Of an open file, what `highest_of_16_bits` returns."""
    with open_image(file) as image:
        gray = image.mode.startswith("I")
        if not gray and not has_deep_colours(image):
            return None
        data = whole(file)
        declares = declared_white(image, data) != 65535 or np.max(getattr(image, "tag_v2", {}).get(258, 16)) == 12
        pixels = np.asarray(image) if gray else deep_pixels(image, data)[0]
        return None if pixels is None else (int((pixels if gray else colours_of(pixels)).max()), declares)


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


def inks_by_profile(image):
    """A Pillow image of inks (CMYK) in sRGB, if it has a profile of theirs; any other image as it is."""
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a damaged profile
            inks = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            image = ImageCms.profileToProfile(image, inks, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image


def scale_key(image, data):
    """Scale the gray that stands for transparency in a PNG of 2 or 4 bits to 8 bits: Pillow does so with the pixels alone."""
    key = image.info.get("transparency")
    if image.format == "PNG" and data[24] in (2, 4) and data[25] == 0 and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2 ** data[24] - 1)


def whole(file):
    """All bytes of an open file, which is left where it was."""
    at = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(at)
    return data


def deep_gray(image, data, white=None):
    """The pixels, upright, of an opened Pillow image of more than 8 bits, gray: (H, W) uint16, 0 black and 65535 white.

    Also which level of the file is white, and a remark, as `white_level` tells them from the file's bytes `data` and the
    level `white`, if one is asked for. Raises ValueError for values of no range of 16 bits.
    """
    pixels, tags = np.asarray(upright(image)).astype(np.int64), getattr(image, "tag_v2", {})
    packed = np.max(tags.get(258, 16)) == 12  # bits that are no 16 in the file either
    if pixels.min() < 0 or pixels.max() > (4095 if packed else 65535):
        raise ValueError("gray of 32 bits, whose range nobody knows; save it with 8 or 16 bits")
    level, remark = (4095, "") if packed and not white else white_level(pixels, image, data, white)
    pixels = level - np.minimum(pixels, level) if tags.get(262) == 0 else pixels  # a TIFF in which 0 is white
    return stretched(pixels, level), 65535 if packed and not white else level, remark


def has_deep_colours(image):
    """Whether an opened Pillow image has 16 bits and colours (or alpha), of which Pillow takes the upper 8 bits."""
    if image.format == "TIFF":
        return np.max(image.tag_v2.get(258, 8)) == 16
    return image.format == "PNG" and image.tile[0][3] in ("RGB;16B", "RGBA;16B", "LA;16B")


def colours_of(pixels):
    """The pixels of `deep_pixels`, (H, W, 2 to 4), without alpha."""
    return pixels[..., : pixels.shape[2] - (pixels.shape[2] in (2, 4))]


def colours_of_fewer_bits(image, file, white=None):
    """An image of 16 bits and colours (or alpha), upright, at 8 bits of the range up to `white`, or that it declares.

    None if neither is given, or it is another image: then Pillow reads it, except for a TIFF in planes. Raises ValueError
    where `white` is given, and only Pillow reads the file.
    """
    planes = in_planes(image)
    if not has_deep_colours(image) or (image.format == "TIFF" and 281 not in image.tag_v2 and not white and not planes):
        return None
    data = whole(file)
    if declared_white(image, data) == 65535 and not white and not planes:
        return None
    pixels, orientation = deep_pixels(image, data)[0], orientation_of(image)
    if pixels is None:
        if white:
            raise ValueError("TIFFs of this kind are read at 8 bits, to which --white cannot apply; save it in another way")
        return None
    colours = colours_of(pixels)
    gray, has_alpha = pixels.shape[2] <= 2, pixels.shape[2] in (2, 4)
    level, _ = white_level(colours, image, data, white)
    pixels = np.dstack([stretched(colours, level).repeat(3 if gray else 1, axis=2), pixels[..., -1:][..., :has_alpha]])
    return Image.fromarray(np.ascontiguousarray(turned(pixels // 257, orientation)).astype(np.uint8))


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
