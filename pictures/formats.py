"""Reading and writing pictures as people have them: gray, transparent, 16 bits deep, upright by EXIF, animated, with metadata.

The networks see RGB arrays; what they do not see (transparency, timing, colour profile, resolution, text) is carried past
them. Not here: pixels of 16 bits (deep.py), the plain reader for training and measuring (pixels.read_image), video.py.
"""

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageSequence, PngImagePlugin, features

from devices import is_out_of_memory
from pictures.apng import composed
from pictures.deep import declared_white, deep_pixels, png_chunks, stretched, turned, white_level, write_deep
from pictures.metadata import carried_metadata, exif_of_tiff, jpeg_options, metadata_for, png_texts
from pictures.opening import check_whole, cut_is_taken, open_image, reason, stored_with_loss, told_and_not_kept, with_end
from pictures.pixels import deep_gray, inks_by_profile, orientation_of, scale_key, upright
from utils import ImageError, UserError, atomic_write

# The endings by which a file's format is chosen, and the formats that hold 16 bits or several frames.
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "avif": ".avif", "tiff": ".tif", "bmp": ".bmp", "gif": ".gif"}
OTHER_ENDINGS = {".jpeg": "jpg", ".jpe": "jpg", ".jfif": "jpg", ".tiff": "tiff", ".apng": "png"}
DEEP_FORMATS, ANIMATED_FORMATS = {"png", "tiff"}, {"gif", "webp", "png", "avif"}
LOSSLESS_INPUTS = {"PNG": "png", "BMP": "bmp", "TIFF": "tiff"}  # which keep their format by default
ANIMATED_INPUTS = {"GIF": "gif", "WEBP": "webp", "PNG": "png", "AVIF": "avif"}

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # for profiles and texts of over 1 MB


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
    # Of icc_profile, dpi, exif, xmp, iptc, comment, text, colours, loop (0: endless; none: once), and of what is dropped.
    info: dict = field(default_factory=dict)
    white: int = 65535  # of 16 bits: the level of the file that is white, as 65535 is in the frames
    remark: str = ""  # what of the file is not in the picture
    lossy: bool = False  # whether the file stores its pixels with loss, as JPEG does


def read_picture(path, white=None, damaged=False) -> Picture:
    """The picture in an image file. Raises ImageError if it cannot be read; so do its frames as they come.

    `white` is the level that is white in a file of 16 bits that uses less of its range, and does not tell. Of a `damaged`
    file that is taken which can be decoded.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # a named pipe would be waited for
        data = path.read_bytes()  # the result may take the file's place before the last frame is read
        try:
            picture = _picture(path, data, white)
        except Exception:
            mended = with_end(data)
            if mended is None and not damaged:
                raise
            picture = _picture(path, mended, white) if mended else _damaged_picture(path, data, white)
            remark = "it is cut behind its last pixel" if mended else "it is damaged: what of it could be decoded is enlarged"
            picture.remark = "; ".join(filter(None, (remark, picture.remark)))
        return picture if not damaged or picture.count == 1 else _whole_frames(picture)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise ImageError(f"{path}: cannot be read as an image ({reason(error)})") from None


def _damaged_picture(path, data, white):
    """As `_picture`; what cannot be decoded is left empty. Raises ValueError if that is all."""
    with cut_is_taken():
        picture = _picture(path, data, white)
        if picture.count == 1 and np.ptp(picture.frames[0].rgb) == 0:
            raise ValueError("nothing of it can be decoded")
    return picture


def _whole_frames(picture):
    """The animation up to the first frame that cannot be decoded. Raises ImageError if that is the first."""
    frames = []
    try:
        for frame in picture.frames:
            frames.append(frame)
    except ImageError:
        if not frames:
            raise
        picture.remark = f"it is damaged: of its {picture.count} frames {len(frames)} could be decoded"
    picture.frames, picture.count = frames, len(frames)
    return picture


def _picture(path, data, white):
    """The picture in the bytes of a file."""
    image = open_image(io.BytesIO(data))
    check_whole(image, data)
    refuse_camera_raw(image)
    count, is_png = getattr(image, "n_frames", 1), image.format == "PNG"
    of_animation = is_png and getattr(image, "default_image", False)  # which is not the picture at the head of the file
    count -= of_animation
    info, lossy = carried_metadata(image, data), stored_with_loss(image, data)
    if (count > 1 or of_animation) and image.format in ANIMATED_INPUTS:
        size = image.size[::-1] if orientation_of(image) >= 5 else image.size
        frames = _png_animation(data, orientation_of(image)) if is_png else _animation(image, size)
        frames = _checked(frames, path) if count > 1 else [next(frames)]
        remark = "its 16 bits a channel are read as 8" if is_png and data[24] == 16 else ""
        return Picture(frames, count, size, False, ANIMATED_INPUTS[image.format], info, remark=remark, lossy=lossy)
    told = told_and_not_kept(image, data)
    frame, gray, level, remark = _still(image, data, white)
    colours = 1 if gray else 3
    samples = image.tag_v2.get(277, 1) if image.format == "TIFF" and image.tag_v2.get(262) in (0, 1, 2) else 1
    dropped = samples > colours + (frame.alpha is not None)
    dropped = f"of its {samples} channels, {colours} are colours, and the others are dropped" if dropped else ""
    remark = "; ".join(filter(None, [remark, told if frame.rgb.dtype == np.uint8 else "", dropped]))
    if image.format == "PNG" and level < 65535 and declared_white(image, data) == level:
        info["sbit"] = dict(png_chunks(data))[b"sBIT"]
    if count > 1 and image.format != "MPO":  # a phone's second image, which is for its own use
        remark = "; ".join(filter(None, (f"it has {count} pages or frames, of which this is the first", remark)))
    form = LOSSLESS_INPUTS.get(image.format, "png")
    if form == "bmp" and frame.alpha is not None:
        form = "png"  # we write BMP without transparency
    return Picture([frame], 1, frame.rgb.shape[1::-1], gray, form, info, level, remark, lossy)


def refuse_camera_raw(image):
    """Raises ValueError for the raw file of a camera, which is a TIFF whose first image is a small preview."""
    tags = getattr(image, "tag_v2", {})
    if 50706 in tags or (tags.get(254, 0) & 1 and 330 in tags):  # DNG's version; a reduced image, and others below it
        raise ValueError("a camera's raw file, of which only the preview could be read; develop it first")


def _checked(frames, path):
    """The frames, with whatever goes wrong while they are decoded as an ImageError."""
    frames = iter(frames)
    while True:
        try:
            frame = next(frames)
        except StopIteration:
            return
        except Exception as error:
            raise ImageError(f"{path}: cannot be read as an image ({reason(error)})") from None
        yield frame


def _png_animation(data, orientation):
    """The frames of an animated PNG, turned as the EXIF orientation says."""
    transparent = data[25] in (4, 6) or b"tRNS" in dict(png_chunks(data))

    def read(png):
        frame = _still(open_image(io.BytesIO(png)), png, None)[0]
        alpha = np.full_like(frame.rgb[..., 0], np.iinfo(frame.rgb.dtype).max) if frame.alpha is None else frame.alpha
        return to_8_bits(np.dstack([frame.rgb, alpha]))

    for pixels, duration in composed(data, read):
        pixels = np.ascontiguousarray(turned(pixels, orientation))
        rgb, alpha = pixels[..., :3], pixels[..., 3]
        yield Frame(rgb, alpha if transparent or alpha.min() < 255 else None, duration)


def _animation(image, size):
    """The frames of a GIF, WebP or AVIF, each of `size` (width, height), beyond which GIFs may reach."""
    width, height = size
    for image_of_frame in ImageSequence.Iterator(image):
        frame = _frame(upright(image_of_frame))
        if frame.rgb.shape[:2] != (height, width):
            missing = [(0, max(0, side - now)) for side, now in zip((height, width), frame.rgb.shape)]
            frame.rgb = np.pad(frame.rgb, [*missing, (0, 0)])[:height, :width]
            frame.alpha = None if frame.alpha is None else np.pad(frame.alpha, missing)[:height, :width]
        yield frame


def _still(image, data, white):
    """The frame of an image that stands still, whether it is gray, the level of white as in Picture, and a remark."""
    orientation = orientation_of(image)  # before it is loaded, which turns a TIFF
    try:
        pixels, remark = deep_pixels(image, data)
    except Exception:
        if not ImageFile.LOAD_TRUNCATED_IMAGES:
            raise
        pixels, remark = None, "its 16 bits are read as 8, since it is damaged"
    if pixels is not None:
        pixels = np.ascontiguousarray(turned(pixels, orientation))
        gray, alpha = pixels.shape[2] <= 2, pixels[..., -1] if pixels.shape[2] in (2, 4) else None
        colours = np.repeat(pixels[..., :1], 3, axis=2) if gray else pixels[..., :3]
        level, remark = white_level(colours, image, data, white)
        return Frame(colours if level == 65535 else stretched(colours, level), alpha), gray, level, remark
    if image.mode.startswith("I"):
        pixels, level, remark = deep_gray(image, data, white)
        alpha, key = None, image.info.get("transparency")
        if isinstance(key, int):
            alpha = np.where(pixels == stretched(np.array(key), level), 0, 65535).astype(np.uint16)
        return Frame(np.repeat(pixels[..., None], 3, axis=2), alpha), True, level, remark
    if white:
        remark = "; ".join(filter(None, [remark, "--white is for 16 bits, which it has not"]))
    scale_key(image, data)
    gray = image.mode in ("1", "L", "LA", "La")
    frame = _frame(upright(image))
    if image.format == "TGA" and frame.alpha is not None and not frame.alpha.any():
        frame.alpha = None  # a fourth byte that nobody filled
    return frame, gray, 65535, remark


def _frame(image) -> Frame:
    """A frame of 8 bits a channel."""
    image.load()  # before that, WebP does not know the duration
    duration = image.info.get("duration", 0)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range nobody knows; save it with 8 or 16 bits")
    image = inks_by_profile(image)
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        return Frame(pixels[..., :3], pixels[..., 3], duration)
    return Frame(np.asarray(image.convert("RGB")), None, duration)


def fill_transparent(frame) -> np.ndarray:
    """The frame's rgb, with the nearest visible colours in place of the one colour, black as a rule, of all that is invisible.

    It would bleed into the edge when the picture is enlarged. Where colours differ, the picture goes on under its mask.
    """
    from scipy.ndimage import distance_transform_edt  # of scikit-image

    if frame.alpha is None or frame.alpha.all() or not frame.alpha.any():
        return frame.rgb
    hidden = frame.rgb[frame.alpha == 0]
    if (hidden != hidden[0]).any():
        return frame.rgb
    rows, columns = distance_transform_edt(frame.alpha == 0, return_distances=False, return_indices=True)
    return frame.rgb[rows, columns]


def check_format(form):
    """Raises UserError if this Pillow cannot write a format, which may be AVIF's case."""
    if form == "avif" and ("avif" not in features.modules or not features.check("avif")):
        raise UserError("AVIF is written by Pillow 11.3 or newer: pip install -U pillow")


def has_no_colour(rgb, alpha=None) -> bool:
    """Whether the channels of each visible pixel are equal to 2 levels of 255, as lossy files leave them of gray pictures.

    (H, W, 3) uint8 or uint16; of the latter, a picture may use as few bits as its brightest value takes.
    """
    red, green, blue = np.moveaxis(rgb, 2, 0)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    if alpha is not None:
        spread = spread[alpha > 0]
    white = 255 if rgb.dtype == np.uint8 else 2 ** int(rgb.max()).bit_length() - 1
    return spread.max(initial=0) <= 2 * white // 255


def without_colour(rgb) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 with the mean of its channels, rounded, in each of them."""
    total = rgb.sum(axis=2, keepdims=True, dtype=np.uint16 if rgb.dtype == np.uint8 else np.uint32)
    return np.repeat(((total + 1) // 3).astype(rgb.dtype), 3, axis=2)


def write_picture(path, picture, quality=None, watch=None):
    """Write a picture in the format of the path's ending, whole or not at all, with its metadata as far as the format has it.

    `quality`, 1 to 100, is of JPEG (default: 95), WebP (without it, WebP is lossless) and AVIF (default: 90).
    `watch()` is called now and then while the file is written; what it raises ends that.
    Returns a remark on what of the metadata and of the pixels' depth and transparency is not in it, "" if nothing.
    Raises UserError for what the format cannot hold (an animation, a side of over 65,535 pixels in a JPEG).
    """
    path = Path(path)
    form = ({ending: key for key, ending in FORMATS.items()} | OTHER_ENDINGS)[path.suffix.lower()]
    check_format(form)
    if picture.count > 1 and form not in ANIMATED_FORMATS:
        raise UserError(f"{path}: {form} holds no animation; give --format gif, webp or png")
    frames = iter(picture.frames)
    first = next(frames)
    size, deep = first.rgb.shape[1::-1], first.rgb.dtype == np.uint16 and form in DEEP_FORMATS and picture.count == 1
    info, dropped = metadata_for(form, picture.info, picture.size if all(picture.size) else size, size, deep)
    if info.get("icc_profile", b"")[16:20] == b"GRAY" and not (picture.gray and form in ("png", "tiff", "jpg")):
        del info["icc_profile"]  # the result is RGB
        dropped.append("the colour profile, which is for gray")
    dropped += _not_held(first, form, deep, picture.format)
    try:
        with atomic_write(path) as file:
            file = WatchedFile(file, watch)
            if deep:
                info |= {"text": png_texts(info)}
                write_deep(file, form, first.rgb, first.alpha, picture.gray, info, picture.white)
            else:
                _write_shallow(file, form, first, frames, picture, info, quality)
    except (ValueError, TypeError, SystemError, OverflowError, RuntimeError, struct.error) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: cannot be written as {form}: {error}") from None
    return f"not in the result: {', '.join(dropped)}" if dropped else ""


def _not_held(frame, form, deep, natural_form):
    """In words, what of a frame's depth and transparency a format does not hold; `natural_form` is that of its picture."""
    if frame.rgb.dtype == np.uint16 and not deep:
        yield "more than 8 bits a channel"
    if frame.alpha is not None:
        opaque = np.iinfo(frame.alpha.dtype).max
        if form in ("jpg", "bmp") and (frame.alpha < opaque).any():
            yield "its transparency, for which it lies on white"
        if form == "gif" and natural_form != "gif" and ((frame.alpha > 0) & (frame.alpha < opaque)).any():
            yield "what is half transparent"


class WatchedFile:
    """A file that calls `watch()`, if that is given, before it takes bytes.

    It has no number of the operating system, by which Pillow's encoders write past it: of a disk that is full they see
    nothing, and leave a cut file without a word.
    """

    def __init__(self, file, watch=None):
        self.file, self.watch = file, watch

    def write(self, data):
        if self.watch:
            self.watch()
        return self.file.write(data)

    def fileno(self):
        raise io.UnsupportedOperation

    def __getattr__(self, name):
        return getattr(self.file, name)


def _write_shallow(file, form, first, frames, picture, info, quality):
    """Write the first and the other frames with 8 bits a channel."""
    options = {key: info[key] for key in ("icc_profile", "dpi", "exif") if key in info}
    if form == "png":
        options["compress_level"] = 4  # a third larger a file than 9, in a tenth of the time
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in png_texts(info).items():
            options["pnginfo"].add_itxt(key, value)
        for name, content in info.get("colours", {}).items():
            options["pnginfo"].add(name, content)
    if form == "jpg":
        options |= {"quality": quality or 95, "subsampling": 0} | jpeg_options(info)
    if form == "webp":
        options |= ({"quality": quality} if quality else {"lossless": True}) | {"xmp": info.get("xmp", b"")}
    if form == "avif":
        options |= {"quality": quality or 90, "subsampling": "4:4:4", "xmp": info.get("xmp", b"")}
    if form == "gif":
        options = {"comment": info["comment"].encode()[:65000]} if "comment" in info else {}
    if form == "tiff" and {"xmp", "iptc"} & set(info):
        options["exif"] = exif_of_tiff(info)
    if picture.count > 1:
        unit = {"avif": 1, "gif": 10}.get(form)  # ms, of which their times are multiples

        def in_units(duration):
            return unit * max(round(duration / unit), duration > 0) if unit else duration

        durations = [in_units(first.duration)]

        def rest():
            for frame in frames:
                durations.append(in_units(frame.duration))
                yield _image(frame, picture.gray, form)

        images = list(rest()) if form == "png" else rest()  # Pillow goes through those of a PNG twice
        options |= {"save_all": True, "append_images": images, "duration": durations}
        if "loop" in info or form != "gif":  # a GIF without it plays once
            options["loop"] = info.get("loop", 1)
        if form == "gif":
            options["disposal"] = 2
    _image(first, picture.gray, form).save(file, {"jpg": "JPEG"}.get(form, form.upper()), **options)


def to_8_bits(pixels):
    """uint8 or uint16 -> uint8."""
    return pixels if pixels.dtype == np.uint8 else np.round(pixels / 257).astype(np.uint8)


def _image(frame, gray, form):
    """The Pillow image of a frame, at 8 bits; transparency is laid on white where the format has none."""
    rgb, alpha = to_8_bits(frame.rgb), None if frame.alpha is None else to_8_bits(frame.alpha)
    image = Image.fromarray(rgb)
    if form == "gif":
        return _palette_image(image, alpha)
    if gray:
        image = Image.fromarray(np.round(rgb.mean(axis=2)).astype(np.uint8))
    if alpha is None:
        return image
    image.putalpha(Image.fromarray(alpha))
    if form in ("jpg", "bmp"):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("L" if gray else "RGB")
    return image


def _palette_image(image, alpha):
    """An RGB image in 255 colours, as GIF has them; the 256th is transparent, where alpha is below a half."""
    image = image.quantize(255)
    if alpha is None:
        return image
    numbers = np.where(alpha < 128, 255, np.asarray(image)).astype(np.uint8)
    colours = image.getpalette()
    image = Image.fromarray(numbers, "P")
    image.putpalette([*colours, *[0] * (768 - len(colours))])
    image.info["transparency"] = 255
    return image
