"""Opening image files of whatever kind and state: HEIC, JPEGs that lack their end, cut ones; and the reason if it fails.

Not here: what to make of an opened image (pixels.py, formats.py).
"""

import contextlib
import functools
import io
import re

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

# Beside those of pixels.IMAGE_SUFFIXES and the videos: what test.py takes of a folder.
MORE_SUFFIXES = {".gif", ".apng", ".jfif", ".jpe", ".mpo", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"}
MORE_SUFFIXES |= {".heic", ".heif", ".hif", ".tga", ".icb", ".vda", ".vst", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".icns"}
MORE_SUFFIXES |= {".cur", ".dds", ".qoi", ".pcx", ".dcx", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".dib", ".im", ".msp"}
MORE_SUFFIXES |= {".blp", ".psd", ".xbm", ".xpm"}


def open_image(file):
    """Pillow's image of an open file. Raises UnidentifiedImageError, whose message does not name the file."""
    try:
        return Image.open(file)
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
        at = data.find(b"\xff\x52")  # the coding style; its tenth byte of content tells the wavelet: 0 is the lossy one
        return data[at + 13 : at + 14] == b"\x00"
    codecs = {tile[0] for tile in getattr(image, "tile", [])}
    compression = image.info.get("compression")  # of TIFF, whose WebP says no more
    return bool(codecs & {"jpeg", "bcn"}) or compression in ("jpeg", "tiff_jpeg", "webp")


def _webp_chunks(data, at=12):
    """The names of the chunks of a WebP file, and of those within the frames of an animation."""
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        yield name
        if name == b"ANMF":
            yield from _webp_chunks(data[at + 8 : at + 8 + length], 16)
        at += 8 + length + length % 2


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
