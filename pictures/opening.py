"""Opening image files of whatever kind and state: HEIC, JPEGs that lack their end, cut ones; and the reason if it fails.

Not here: what to make of an opened image (pixels.py, formats.py).
"""

import contextlib
import functools
import io
import re
import zlib

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

# Beside those of pixels.IMAGE_SUFFIXES and the videos: what test.py takes of a folder.
MORE_SUFFIXES = {".gif", ".apng", ".jfif", ".jpe", ".mpo", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"}
MORE_SUFFIXES |= {".heic", ".heif", ".hif", ".tga", ".icb", ".vda", ".vst", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".icns"}
MORE_SUFFIXES |= {".cur", ".dds", ".qoi", ".pcx", ".dcx", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".dib", ".im", ".msp"}
MORE_SUFFIXES |= {".blp", ".psd", ".xbm", ".xpm"}
START_OF_JPEG2000 = b"\xff\x4f\xff\x51"  # the first two markers of its codestream, which may lie behind other boxes
HDR = {16: "PQ", 18: "HLG"}  # transfer functions, by their numbers in the standard (ITU-T H.273)


def open_image(file):
    """Pillow's image of an open file.

    Raises UnidentifiedImageError, whose message does not name the file, and ValueError for one that it would read wrongly.
    """
    try:
        image = Image.open(file)
        if image.format == "TIFF" and image.mode in ("LA", "La") and image.tag_v2.get(284, 1) == 2:
            raise ValueError("gray and alpha in a plane each; save it with its channels side by side")
        if image.format == "TIFF" and 2 in np.atleast_1d(image.tag_v2.get(339, 1)) and image.mode in ("L", "RGB", "RGBA"):
            raise ValueError("signed values, of which Pillow takes the negative ones for bright; save it with others")
        return image
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(12)
        if not head:
            raise UnidentifiedImageError("it is empty") from None
        if head[4:8] != b"ftyp" or head[8:12] not in (b"mif1", b"msf1", b"avif", b"avis") and head[8:10] != b"he":
            raise UnidentifiedImageError("of no kind of image that is known, or damaged") from None
        if head[8:12] in (b"avif", b"avis") and features.check("avif"):
            raise UnidentifiedImageError("it is damaged or cut") from None
    register_heif()
    file.seek(0)
    return Image.open(file)


@functools.cache
def register_heif():
    """Let Pillow open HEIC, and AVIF where it cannot itself. Raises ValueError without the package pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("HEIC and its like need the package pillow-heif: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()
    if hasattr(pillow_heif, "register_avif_opener"):  # of earlier releases
        pillow_heif.register_avif_opener()


def reason(error) -> str:
    """An error of a decoder in words, without the name that Python has for the open file."""
    return f"{type(error).__name__}: {re.sub(r'<_io[.][^>]*>', 'the file', str(error))}"


def stored_with_loss(image, data) -> bool:
    """Whether an image that is opened, but not yet loaded, stores its pixels with loss: `data` are the bytes of its file.

    AVIF and HEIC do not tell readably whether they are lossless, which is rare, and count as lossy.
    """
    if image.format in ("JPEG", "MPO", "AVIF", "HEIF"):
        return True
    if image.format == "WEBP":
        return any(name == b"VP8 " for name in _webp_chunks(data))
    if image.format == "JPEG2000":
        # The coding style, whose tenth byte of content tells the wavelet: 0 is the lossy one.
        at = data.find(b"\xff\x52", max(0, data.find(START_OF_JPEG2000)))
        return data[at + 13 : at + 14] == b"\x00"
    codecs = {tile[0] for tile in getattr(image, "tile", [])}
    compression = image.info.get("compression")  # of TIFF, whose WebP says no more
    return bool(codecs & {"jpeg", "bcn"}) or compression in ("jpeg", "tiff_jpeg", "webp")


def told_and_not_kept(image, data) -> str:
    """In words, what a still image has that Pillow reads at 8 bits, and does not give; `data` are the bytes of its file.

    The image is opened, but not yet loaded.
    """
    bits, transfer = 8, 0
    if image.format == "PPM" and image.tile and isinstance(image.tile[0][3], tuple):
        bits = int(image.tile[0][3][1]).bit_length()
    elif image.format == "JPEG2000":
        bits = (data[data.find(START_OF_JPEG2000) + 42] & 127) + 1  # of the first channel
    elif image.format in ("AVIF", "HEIF"):
        bits = max(data[data.find(b"pixi") + 9 :][:1], default=8) if b"pixi" in data else 8
        transfer = int.from_bytes(data.partition(b"colrnclx")[2][2:4], "big")
    told = [f"its {bits} bits a channel are read as 8"] if bits > 8 else []
    if transfer in HDR:
        told.append(f"its colours are HDR ({HDR[transfer]}), which the result does not tell: it will look pale")
    return "; ".join(told)


def _webp_chunks(data, at=12):
    """The names of the chunks of a WebP file, and of those within the frames of an animation."""
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        yield name
        if name == b"ANMF":
            yield from _webp_chunks(data[at + 8 : at + 8 + length], 16)
        at += 8 + length + length % 2


def check_whole(image, data):
    """Raises ValueError for what decoders take without a word: zeros where the rest of a file should be.

    So a download leaves a file that broke off, or a disk after a power cut. `image` is opened, `data` are its file's bytes.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        return
    if image.format == "PNG" and any(zlib.crc32(pixels, zlib.crc32(name)) != crc for name, pixels, crc in _png_pixels(data)):
        raise ValueError("it is damaged: its pixels are not those that were written")
    if image.format in ("WEBP", "AVIF", "QOI"):
        end = int.from_bytes(data[4:8], "little") + 8 if image.format == "WEBP" else len(data)  # what follows is no part of it
        if data[:end].endswith(bytes(1024)):  # none that compresses writes so many
            raise ValueError("it is damaged: its last bytes are zeros")


def _png_pixels(data, at=8):
    """The chunks of a PNG that hold pixels: the name, the content and the check sum that follows it."""
    data = memoryview(data)
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if name in (b"IDAT", b"fdAT") and at + 12 + length <= len(data):
            yield name, data[at + 8 : at + 8 + length], int.from_bytes(data[at + 8 + length : at + 12 + length], "big")
        at += 12 + length


@contextlib.contextmanager
def cut_is_taken():
    """Let Pillow leave empty what of a picture it cannot decode."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def with_end(data):
    """The bytes of a JPEG that is cut behind its last pixel, with the end that it lacks; None for any other file.

    Whether all pixels are there is told by what they become if other data follow: where one is missing, it depends on them.
    """
    if not data.startswith(b"\xff\xd8\xff") or data.endswith(b"\xff\xd9"):
        return None
    data = data.removesuffix(b"\xff")
    if not _has_all_scans(data):
        return None
    decoded = set()
    for filling in (b"", b"\x00", b"\x55", b"\xaa"):
        try:
            with Image.open(io.BytesIO(data + 64 * filling + b"\xff\xd9")) as image:
                decoded.add(image.tobytes())
        except Exception:  # it has other faults
            return None
    return data + b"\xff\xd9" if len(decoded) == 1 else None


def _has_all_scans(data):
    """Whether the scans of a JPEG tell each coefficient to its last bit: a progressive one tells them little by little."""
    at, bits_left = 2, {}
    while at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + length]
        at += 2 + length
        if len(content) < max(1, length - 2):
            return False
        if marker in (0xC0, 0xC1, 0xC2):
            bits_left = {component: np.full(64, 99) for component in content[6::3]}
        elif marker == 0xDA:
            components, (first, last, bits) = content[1 : 1 + 2 * content[0] : 2], content[-3:]
            for component in bits_left.keys() & set(components):
                bits_left[component][first : last + 1] = bits & 15
            following = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]").search(data, at)  # behind the coefficients
            at = following.start() if following else len(data)
    return bool(bits_left) and not any(bits.any() for bits in bits_left.values())
