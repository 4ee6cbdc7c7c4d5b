"""Pixels of 16 bits a channel in PNG and TIFF, which Pillow reads and writes for gray alone."""

import io
import itertools
import struct
import warnings
import zlib

import numpy as np
import torch
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
WORD_TAGS = (270, 271, 272, 305, 306, 315, 33432)  # of EXIF: description, make, model, software, date, artist, copyright


def deep_pixels(image, data):
    """The pixels of an image with 16 bits and more than a gray channel: (H, W, C) uint16, and a remark.

    C is 2 to 4: gray and alpha, RGB, RGB and alpha. `image` is Pillow's, `data` the bytes of the file. The pixels are
    as they lie in the file, not upright yet; None if it is no such image, or one that only Pillow reads, at 8 bits.
    Raises ValueError for one that nobody reads.
    """
    if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # bit depth, color type
        return _decode_png(data, image.info.get("transparency")), ""
    if image.format == "TIFF" and np.max(image.tag_v2.get(258, 8)) == 16 and image.tag_v2.get(277, 1) > 1:
        pixels = _decode_tiff(data)
        if pixels is None and in_planes(image) and image.tag_v2.get(259, 1) == 1:  # not compressed
            raise ValueError("16 bits in planes, of a kind that cannot be read; save it with its channels side by side")
        return pixels, "" if pixels is not None else "its 16 bits are read as 8: TIFFs of this kind cannot be read whole"
    return None, ""


def in_planes(image):
    """Whether an opened Pillow image is a TIFF with each channel in a plane of its own: of 16 bits Pillow makes noise then."""
    return image.format == "TIFF" and image.tag_v2.get(284, 1) == 2 and image.tag_v2.get(277, 1) > 1


def _decode_png(data, transparent):
    """By torchvision, which means to leave this to another package some day."""
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:
        raise ValueError("this torchvision cannot read a colour PNG of 16 bits; save it as a TIFF") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will leave; that `data` cannot be written to
        pixels = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    if pixels.shape[2] == 3 and isinstance(transparent, tuple):  # the one colour that stands for transparency
        alpha = np.where((pixels == transparent).all(axis=2, keepdims=True), 0, 65535).astype(np.uint16)
        pixels = np.concatenate([pixels, alpha], axis=2)
    return pixels


def _decode_tiff(data):
    """By tifffile, which comes with scikit-image. None for what it cannot read, or what is neither gray nor RGB."""
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        if page.photometric not in (1, 2) or 1 in page.extrasamples:  # gray, RGB; alpha that is multiplied in
            return None
        try:
            pixels = page.asarray()
        except (ValueError, KeyError):  # a compression that needs another package
            return None
        if page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        colours = 3 if page.photometric == 2 else 1
        has_alpha = tuple(page.extrasamples[:1]) == (2,)
    if pixels.ndim != 3 or pixels.dtype != np.uint16 or pixels.shape[2] < colours + has_alpha or colours + has_alpha < 2:
        return None
    return pixels[..., : colours + has_alpha]


def png_chunks(data):
    """The chunks of a PNG before its pixels, which tell what these mean: pairs of a name and its content, both bytes."""
    return itertools.takewhile(lambda chunk: chunk[0] != b"IDAT", all_png_chunks(data))


def all_png_chunks(data):
    """The chunks of a PNG, as `png_chunks` gives them; the last may be cut."""
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += length + 12


def png_chunk(name, content):
    """A chunk as it stands in a PNG, with its length and its check sum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))


def declared_white(image, data) -> int:
    """The level that the header of a TIFF or PNG of 16 bits calls white: MaxSampleValue, sBIT. 65535 if it tells none.

    By its standard sBIT means that the lower bits are filling, but there are writers that put 12 bits into the lower 12.
    """
    if image.format == "TIFF":
        level = int(np.max(image.tag_v2.get(281, 65535)))
    else:
        significant = dict(png_chunks(data)).get(b"sBIT", b"") if image.format == "PNG" else b""
        level = 2 ** max(significant[: 3 if len(significant) > 2 else 1], default=16) - 1  # the fourth is that of alpha
    return level if 0 < level < 65535 else 65535


def white_level(pixels, image, data, asked=None):
    """Which of the values of a file of 16 bits is white, and a remark: `asked` if given, or the declared one if it can be true.

    `pixels` are all values of its colours, as they lie in the file; `image` and `data` as for `deep_pixels`.
    """
    highest = int(pixels.max())
    if asked:
        above = float((pixels > asked).mean())
        return asked, f"{max(above, 1e-4):.2%} of its values are above --white {asked}, and cut to it" if above else ""
    level = declared_white(image, data)
    if image.format == "PNG" and not np.any(pixels & (65535 // (level + 1))):
        level = 65535  # the lower bits are filling indeed
    if highest <= level < 65535:
        return level, ""
    guess = likely_white(highest)
    if guess is None:
        return 65535, ""
    return 65535, f"its values end at {highest} of 65535, so it is nearly black; if {guess} is white, give --white {guess}"


def likely_white(highest):
    """What white may be, if a file of 16 bits declares nothing and no value is above `highest`; None if it uses its range."""
    return max(255, 2 ** highest.bit_length() - 1) if 0 < highest < 8192 else None


def stretched(pixels, white):
    """Values from 0 to `white` -> (0 to 65535) uint16; what is above is cut."""
    return (np.minimum(pixels, white).astype(np.uint32) * 65535 // white).astype(np.uint16)


def in_units_of(white, pixels):
    """The inverse of `stretched`."""
    return ((pixels.astype(np.uint32) * white + 32767) // 65535).astype(np.uint16)


def turned(pixels, orientation):
    """The pixels (H, W, C) turned as the EXIF orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def write_deep(file, form, rgb, alpha, gray, info, white=65535):
    """Write (H, W, 3) uint16, and alpha (H, W) or None, as "png" or "tiff" with the metadata of Picture.info.

    `white` is the level of the file that 65535 becomes.
    """
    rgb = in_units_of(white, rgb) if white != 65535 else rgb
    if gray and (alpha is None or form == "png"):  # Pillow and others cannot open a TIFF of gray and alpha
        rgb = np.round(rgb.mean(axis=2, keepdims=True)).astype(np.uint16)
    pixels = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], axis=2)
    if form == "png":
        _write_png(file, pixels, info)
    else:
        _write_tiff(file, pixels, alpha is not None, info, white)


def _write_tiff(file, pixels, has_alpha, info, white):
    from tifffile import imwrite

    exif = Image.Exif()
    exif.load(info.get("exif", b""))
    words = {tag: exif[tag] for tag in WORD_TAGS if isinstance(exif.get(tag), str)}
    tags = [(tag, 2, 0, word.encode(), True) for tag, word in words.items()]  # 2: ASCII
    tags += [
        (tag, kind, len(info[key]), info[key], True) for tag, kind, key in ((700, 1, "xmp"), (33723, 7, "iptc")) if key in info
    ]
    if white != 65535:
        highest = [white] * (pixels.shape[2] - has_alpha) + [65535] * has_alpha
        tags.append((281, 3, len(highest), highest if len(highest) > 1 else white, True))  # MaxSampleValue; 3: SHORT
    imwrite(
        file,
        pixels.squeeze(2) if pixels.shape[2] == 1 else pixels,
        photometric="minisblack" if pixels.shape[2] == 1 else "rgb",
        extrasamples=["unassalpha"] if has_alpha else None,
        resolution=info.get("dpi"),
        resolutionunit="INCH" if "dpi" in info else None,
        iccprofile=info.get("icc_profile"),
        metadata=None,
        software=False,
        extratags=tags,
    )


def _write_png(file, pixels, info):
    """(H, W, 1 to 4) uint16. Rows are compressed one by one, with the filter 'up'."""
    height, width, channels = pixels.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, data):
        file.write(png_chunk(name, data))

    file.write(PNG_SIGNATURE)
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    if "sbit" in info:
        chunk(b"sBIT", info["sbit"])
    for name, content in info.get("colours", {}).items():
        if name != b"sRGB" or "icc_profile" not in info:  # one of both is allowed
            chunk(name, content)
    if "icc_profile" in info:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(info["icc_profile"]))
    if "dpi" in info:
        chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in info["dpi"]), 1))
    if "exif" in info:
        chunk(b"eXIf", info["exif"].removeprefix(b"Exif\0\0"))
    for key, value in info.get("text", {}).items():  # of `png_texts`
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
