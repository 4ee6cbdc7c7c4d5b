"""Reading and writing pictures as people have them: gray, transparent, 16 bits deep, upright by EXIF, animated, with metadata.

The networks see RGB arrays; what they do not see (transparency, timing, colour profile, resolution, text) is carried past
them. utils.read_image is the simple reader for training and measuring.
"""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, PngImagePlugin

from utils import ImageError, UserError, atomic_write, orientation_of, upright

# The endings by which a file's format is chosen, and the formats that hold 16 bits or several frames.
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp", "gif": ".gif"}
DEEP_FORMATS, ANIMATED_FORMATS = {"png", "tiff"}, {"gif", "webp", "png"}
LOSSLESS_INPUTS = {"PNG": "png", "BMP": "bmp", "TIFF": "tiff"}  # which keep their format by default
ANIMATED_INPUTS = {"GIF": "gif", "WEBP": "webp", "PNG": "png"}

# Tags of EXIF, which is a TIFF without pixels, that tell how pixels lie in the file: the size, compression, strips, tiles,
# samples, palette, thumbnail. A TIFF has them all, some phones write a few, and none is true of the result.
LAYOUT_TAGS = {*range(254, 267), 273, *range(277, 282), 284, *range(286, 294), 297, 317, *range(320, 326), 330}
LAYOUT_TAGS |= {*range(332, 337), *range(338, 348), *range(512, 533), 34675}


@dataclass
class Frame:
    """One image: `rgb` (H, W, 3) and `alpha` (H, W) or None, both uint8 or both uint16; shown for `duration` ms."""

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    duration: float = 0


@dataclass
class Picture:
    """What a file holds. `frames` may be a generator, so that an animation is never wholly in memory."""

    frames: Iterable[Frame]
    count: int = 1
    size: tuple[int, int] = (0, 0)  # width, height
    gray: bool = False
    format: str = "png"  # to write it in, if nobody asks for another: a key of FORMATS
    info: dict = field(default_factory=dict)  # of icc_profile, dpi, exif, text, loop (0: endless; none: once)
    pages: int = 1  # of the file, of which this is the first


def read_picture(path) -> Picture:
    """The picture in an image file. Raises ImageError if it cannot be read; so do its frames as they come."""
    path = Path(path)
    try:
        image = Image.open(path)
        count = getattr(image, "n_frames", 1) if image.format in ANIMATED_INPUTS else 1
        if count > 1:
            frames = (_frame(upright(frame)) for frame in ImageSequence.Iterator(image))
            form, gray, size = ANIMATED_INPUTS[image.format], False, image.size
            size = size[::-1] if orientation_of(image) >= 5 else size
        else:
            frame = _deep_frame(path, image) or _frame(upright(image))
            gray = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
            frames, size = [frame], frame.rgb.shape[1::-1]
            form = LOSSLESS_INPUTS.get(image.format, "png")
        info = {key: image.info[key] for key in ("icc_profile", "dpi") if image.info.get(key)}
        if "loop" in image.info:
            info["loop"] = image.info["loop"]
        if image.mode in ("CMYK", "YCbCr", "LAB"):
            info.pop("icc_profile", None)  # it describes the inks, and the pixels are RGB now
        info["text"] = {key: value for key, value in getattr(image, "text", {}).items() if isinstance(value, str)}
        with contextlib.suppress(Exception):  # what EXIF says is often damaged, and the picture is whole all the same
            info |= _exif_of_the_result(image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise ImageError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from None
    pages = image.n_frames if image.format == "TIFF" else 1
    return Picture(_checked(frames, path), count, size, gray, form, info, pages)


def _exif_of_the_result(image):
    """The EXIF block of an image as {"exif": bytes}, without what is not true of the result; {} if nothing is left."""
    exif = Image.Exif()
    exif.load(image.getexif().tobytes())  # a copy, since the frames of an animation will ask the original how to turn
    for tag in {0x0112, *LAYOUT_TAGS} & set(exif):  # 0x0112: the orientation, which is applied
        del exif[tag]
    if 0x8769 in exif:
        for tag in (0xA002, 0xA003):  # the width and height, once more
            exif.get_ifd(0x8769).pop(tag, None)
    return {"exif": exif.tobytes()} if len(exif) else {}


def _checked(frames, path):
    """The frames, with whatever goes wrong while they are decoded as an ImageError."""
    frames = iter(frames)
    while True:
        try:
            frame = next(frames)
        except StopIteration:
            return
        except Exception as error:
            raise ImageError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from None
        yield frame


def _frame(image) -> Frame:
    """A frame of 8 bits a channel, or of 16 for 16-bit gray."""
    image.load()  # before that, WebP does not know the duration
    duration = image.info.get("duration", 0)
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)
        return Frame(np.repeat(gray[..., None], 3, axis=2), None, duration)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range nobody knows; save it with 8 or 16 bits")
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        return Frame(pixels[..., :3], pixels[..., 3], duration)
    return Frame(np.asarray(image.convert("RGB")), None, duration)


def _deep_frame(path, image) -> Frame | None:
    """The frame of a 16-bit image with more than a gray channel, of which Pillow would drop the lower halves; else None."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            header = file.read(26)
        if header[24] != 16 or header[25] == 0:  # bit depth; color type 0 is gray, which Pillow reads
            return None
        pixels = _decode_deep_png(path)
    elif image.format == "TIFF" and np.max(image.tag_v2.get(258, 8)) == 16 and len(np.atleast_1d(image.tag_v2.get(258))) > 1:
        if image.tag_v2.get(262) not in (1, 2) or image.tag_v2.get(338) == (1,):
            return None  # neither gray nor RGB, or with its alpha multiplied in: Pillow converts that, at 8 bits
        from tifffile import imread  # of scikit-image

        pixels = imread(path)
        if pixels.ndim != 3 or pixels.shape[2] > 4 or pixels.dtype != np.uint16:
            raise ValueError("a 16-bit TIFF of a layout that is not supported")
    else:
        return None
    pixels = np.ascontiguousarray(_upright(pixels, orientation_of(image)))
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    rgb = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    return Frame(rgb, alpha)


def _decode_deep_png(path):
    """A 16-bit PNG as (H, W, C) uint16, by torchvision, which means to leave this to another package some day."""
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:
        raise ValueError("this torchvision cannot read a colour PNG of 16 bits; save it as a TIFF") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode_image(str(path), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _upright(pixels, orientation):
    """The pixels turned as the EXIF orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def write_picture(path, picture):
    """Write a picture in the format of the path's ending, whole or not at all, with its metadata as far as the format has it.

    Raises UserError for what the format cannot hold (an animation, a side of over 65,535 pixels in a JPEG).
    """
    path = Path(path)
    form = next(key for key, ending in FORMATS.items() if ending == path.suffix)
    if picture.count > 1 and form not in ANIMATED_FORMATS:
        raise UserError(f"{path}: {form} holds no animation; give --format gif, webp or png")
    frames = iter(picture.frames)
    first = next(frames)
    if first.rgb.dtype == np.uint16 and form in DEEP_FORMATS:
        return _write_deep(path, form, first, picture)
    options = {key: picture.info[key] for key in ("icc_profile", "dpi", "exif") if key in picture.info}
    if form == "png":
        options["compress_level"] = 4  # a third larger a file than 9, in a tenth of the time
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in picture.info.get("text", {}).items():
            options["pnginfo"].add_itxt(key, value)
    if form == "jpg":
        options |= {"quality": 95, "subsampling": 0}
    if form == "webp":
        options["lossless"] = True
    if form == "gif":
        options = {}
    durations = [first.duration]
    if picture.count > 1:

        def rest():
            for frame in frames:
                durations.append(frame.duration)
                yield _image(frame, picture.gray, form)

        images = list(rest()) if form == "png" else rest()  # Pillow goes through those of a PNG twice
        options |= {"save_all": True, "append_images": images, "duration": durations}
        if "loop" in picture.info or form != "gif":  # a GIF without it plays once
            options["loop"] = picture.info.get("loop", 1)
        if form == "gif":
            options["disposal"] = 2
    image = _image(first, picture.gray, form)
    try:
        with atomic_write(path) as file:
            image.save(file, {"jpg": "JPEG"}.get(form, form.upper()), **options)
    except (ValueError, SystemError) as error:
        raise UserError(f"{path}: cannot be written as {form}: {error}") from None


def to_8_bits(pixels):
    """uint8 or uint16 -> uint8."""
    return pixels if pixels.dtype == np.uint8 else np.round(pixels / 257).astype(np.uint8)


def _image(frame, gray, form):
    """The Pillow image of a frame, at 8 bits; transparency is laid on white where the format has none."""
    rgb, alpha = to_8_bits(frame.rgb), None if frame.alpha is None else to_8_bits(frame.alpha)
    image = Image.fromarray(rgb)
    if gray:
        image = Image.fromarray(np.round(rgb.mean(axis=2)).astype(np.uint8))
    if alpha is None:
        return image
    image.putalpha(Image.fromarray(alpha))
    if form in ("jpg", "bmp"):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("L" if gray else "RGB")
    return image


def _write_deep(path, form, frame, picture):
    """Write one frame of 16 bits a channel, which Pillow does for gray alone."""
    rgb = np.round(frame.rgb.mean(axis=2, keepdims=True)).astype(np.uint16) if picture.gray else frame.rgb
    pixels = rgb if frame.alpha is None else np.concatenate([rgb, frame.alpha[..., None]], axis=2)
    with atomic_write(path) as file:
        if form == "tiff":
            from tifffile import imwrite

            extra = None if frame.alpha is None else ["unassalpha"]
            dpi = tuple(float(x) for x in picture.info["dpi"]) if "dpi" in picture.info else None
            photometric = "minisblack" if picture.gray else "rgb"
            imwrite(
                file,
                pixels.squeeze(2) if pixels.shape[2] == 1 else pixels,
                photometric=photometric,
                extrasamples=extra,
                resolution=dpi,
                resolutionunit="INCH" if dpi else None,
                iccprofile=picture.info.get("icc_profile"),
                compression=None,
            )
        else:
            _write_deep_png(file, pixels, picture.info)


def _write_deep_png(file, pixels, info):
    """PNG with 16 bits a channel: (H, W, 1 to 4) uint16. Rows are compressed one by one, with the filter 'up'."""
    height, width, channels = pixels.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, data):
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    if "icc_profile" in info:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(info["icc_profile"]))
    if "dpi" in info:
        chunk(b"pHYs", struct.pack(">IIB", *(round(float(x) / 0.0254) for x in info["dpi"]), 1))
    if "exif" in info:
        chunk(b"eXIf", info["exif"].removeprefix(b"Exif\0\0"))
    for key, value in info.get("text", {}).items():
        chunk(b"iTXt", key.encode("latin-1", "replace")[:79] + b"\0\0\0\0\0" + value.encode())
    compressor, above = zlib.compressobj(4), np.zeros(width * channels * 2, np.uint8)
    for row in pixels:
        row = row.astype(">u2").reshape(-1).view(np.uint8)
        data = compressor.compress(b"\x02" + (row - above).tobytes())
        above = row
        if data:
            chunk(b"IDAT", data)
    chunk(b"IDAT", compressor.flush())
    chunk(b"IEND", b"")
