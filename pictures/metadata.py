"""What a picture's file says beside its pixels: read as what may go to the result, made true of it, fitted to its format.

Not here: pixels; what a TIFF's tags and a PNG's chunks say about them (deep.py).
"""

import contextlib
import math
import re
import struct

import numpy as np
from PIL import Image, ImageFile

from pictures.deep import WORD_TAGS, png_chunks
from pictures.opening import HDR, START_OF_JPEG2000
from pictures.pixels import orientation_of

# What each format holds of Picture.info; to PNG and TIFF the rest of this file adds what Pillow does not write itself.
HOLDS = {
    "png": {"icc_profile", "dpi", "exif", "xmp", "iptc", "comment", "text", "colours"},
    "tiff": {"icc_profile", "dpi", "exif", "xmp", "iptc"},
    "jpg": {"icc_profile", "dpi", "exif", "xmp", "iptc", "comment"},
    "webp": {"icc_profile", "exif", "xmp"},
    "avif": {"icc_profile", "exif", "xmp"},
    "bmp": {"dpi"},
    "gif": {"comment"},
}
NAMES = {"icc_profile": "colour profile", "dpi": "resolution", "exif": "EXIF", "xmp": "XMP", "iptc": "IPTC"}
NAMES |= {"comment": "comment", "colours": "what its colours are (gAMA, cHRM, cICP)"}

# Tags of EXIF, which is a TIFF without pixels, that tell how pixels lie in the file: the size, compression, strips, tiles,
# samples, palette, thumbnail. A TIFF has them all, some phones write a few, and none is true of the result.
LAYOUT_TAGS = {*range(254, 267), 273, *range(277, 282), 284, *range(286, 294), 297, 317, *range(320, 326), 330}
LAYOUT_TAGS |= {*range(332, 337), *range(338, 348), *range(512, 533), 34675}
ELSEWHERE_TAGS = {0x0112, 700, 33723, 34377}  # the orientation, which is applied; XMP, IPTC and Photoshop's, read apart

# Tags of programs that tell of the layout or the scale in their own way.
FALSE_TAGS = dict.fromkeys((50838, 50839), "ImageJ's layout") | dict.fromkeys((34361, 34362, 34412), "the microscope's layout")
FALSE_TAGS |= dict.fromkeys(range(33628, 33632), "the microscope's layout") | {37724: "Photoshop's layers"}
FALSE_TAGS |= dict.fromkeys((33550, 33922, 34264, 34735, 34736, 34737), "the place on the map")  # GeoTIFF, by pixels
LAYOUT_DESCRIPTION = r"ImageJ=|SCIFIO=|\s*\{\"(shape|axes)\"|shape=\(|Aperio Image|(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<OME\b"

FALSE_XMP = {  # which promises what is elsewhere in the file
    r"GCamera:MotionPhoto\w*|GCamera:MicroVideo\w*|Camera:MotionPhoto\w*": "the film of a moving photograph",
    r"hdrgm:\w+": "the gain map of HDR",
    "xmpNote:HasExtendedXMP": "extended XMP",
}
XMP_KEY, PHOTOSHOP_IPTC = "XML:com.adobe.xmp", 0x0404
SRGB_GAMMA, SRGB_CHROMA = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)  # in 100,000ths, as in the chunks


def carried_metadata(image, data):
    """What goes from an image to its result past the network, as Picture.info has it. To be asked before image.load().

    Under "dropped", a list, stands what of it would be false there. `data` are the bytes of the file.
    """
    info = {"dropped": [], "text": {}}
    texts = {}
    if ImageFile.LOAD_TRUNCATED_IMAGES and getattr(image, "is_animated", False):
        info["dropped"].append("texts")  # which Pillow looks for behind the last frame
    else:
        texts = {key: str(value) for key, value in getattr(image, "text", {}).items() if isinstance(value, str)}
    for key, value in texts.items():
        if key.startswith("Thumb::"):
            info["dropped"].append("what it is the thumbnail of")
        elif key != "Raw profile type exif":  # EXIF once more, as it was
            info["text"][key] = value
    if image.info.get("icc_profile") and image.mode not in ("CMYK", "YCbCr", "LAB"):  # of inks, and the pixels will be RGB
        info["icc_profile"] = image.info["icc_profile"]
    elif image.format == "JPEG2000" and image.mode in ("L", "RGB") and (profile := profile_of_jpeg2000(data)):
        info["icc_profile"] = profile
    dpi = [float(value) for value in np.atleast_1d(image.info.get("dpi", ()))]
    dpi = dpi[::-1] if orientation_of(image) >= 5 else dpi  # the result is upright
    told = image.format != "TIFF" or 282 in image.tag_v2  # Pillow makes up a dpi of 1
    if told and len(dpi) == 2 and all(math.isfinite(value) and 1 <= value <= 1e5 for value in dpi):
        info["dpi"] = tuple(dpi)
    if "loop" in image.info:
        info["loop"] = image.info["loop"]
    with contextlib.suppress(Exception):  # what EXIF says is often damaged, and the picture is whole all the same
        _read_exif(image, info)
    with contextlib.suppress(Exception):
        _read_words(image, info)
    if image.format == "PNG":
        chunks = dict(png_chunks(data))
        info["colours"] = {name: chunks[name] for name in (b"gAMA", b"cHRM", b"sRGB", b"cICP") if name in chunks}
        if b"caBX" in chunks:
            info["dropped"].append("content credentials")
    if image.format == "AVIF" and not image.info.get("icc_profile") and (cicp := colours_of_avif(data)):
        info["colours"] = {b"cICP": cicp}
    if any(name == "APP11" for name, _ in getattr(image, "applist", [])):
        info["dropped"].append("content credentials")
    return {key: value for key, value in info.items() if value or key == "loop"}


def _read_exif(image, info):
    exif = Image.Exif()
    exif.load(image.getexif().tobytes())  # a copy, since the original will be asked how to turn
    for tag in (LAYOUT_TAGS | ELSEWHERE_TAGS) & set(exif):
        del exif[tag]
    for tag in set(FALSE_TAGS) & set(exif):
        info["dropped"].append(FALSE_TAGS[tag])
        del exif[tag]
    if re.match(LAYOUT_DESCRIPTION, str(exif.get(270, "")), re.DOTALL):
        info["dropped"].append("a description of its layout")
        del exif[270]
    details = exif.get_ifd(0x8769) if 0x8769 in exif else {}
    for tag in (0xA002, 0xA003):  # the width and height, once more
        details.pop(tag, None)
    if orientation_of(image) >= 5:
        for tags, across, down in ((exif, 282, 283), (details, 0xA20E, 0xA20F)):  # pixels on a unit of length
            if across in tags and down in tags:
                tags[across], tags[down] = tags[down], tags[across]
    if len(exif):
        info["exif"] = exif.tobytes()


def profile_of_jpeg2000(data):
    """The colour profile in the header of a JPEG 2000 file, which Pillow does not read; b"" if there is none."""
    head = data[: data.find(START_OF_JPEG2000)]
    at = head.find(b"colr")
    if at < 4 or head[at + 4 : at + 5] != b"\x02":  # by a profile, not by a number
        return b""
    return head[at + 7 : at - 4 + int.from_bytes(head[at - 4 : at], "big")]


def colours_of_avif(data):
    """The content of the chunk cICP by which a PNG tells the colours of an AVIF file; b"" where they are the usual ones.

    And for HDR, which needs more than its name.
    """
    primaries, transfer = struct.unpack(">2H", data.partition(b"colrnclx")[2][:4].ljust(4, b"\0"))
    if primaries in (0, 1, 2) or transfer in HDR:  # reserved, BT.709, not told
        return b""
    return bytes([primaries, transfer, 0, 1])  # RGB, from 0 to the highest level


def _read_words(image, info):
    """XMP, IPTC and comments, wherever the format has them."""
    tags = getattr(image, "tag_v2", {})
    xmp = info["text"].pop(XMP_KEY, None) or image.info.get("xmp") or tags.get(700)
    if xmp:
        info["xmp"] = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    resources = image.info.get("photoshop", {})
    if isinstance(tags.get(34377), bytes):
        resources = _photoshop_resources(tags[34377])
    iptc = resources.get(PHOTOSHOP_IPTC) or tags.get(33723)
    packed = re.fullmatch(r"\s*iptc\s+\d+\s+([0-9a-fA-F\s]+)", info["text"].get("Raw profile type iptc", ""))
    if packed:
        del info["text"]["Raw profile type iptc"]
        iptc = bytes.fromhex("".join(packed[1].split()))
        iptc = _photoshop_resources(iptc).get(PHOTOSHOP_IPTC, iptc)
    if isinstance(iptc, tuple):  # bytes that a program wrote as numbers of 32 bits
        iptc = struct.pack(f"{'<' if tags.prefix == b'II' else '>'}{len(iptc)}I", *iptc)
    if isinstance(iptc, bytes):
        info["iptc"] = iptc
    if any(2000 <= number <= 2997 for number in resources):
        info["dropped"].append("Photoshop's paths")
    comment = image.info.get("comment") if image.format in ("JPEG", "MPO", "GIF") else info["text"].pop("Comment", None)
    if isinstance(comment, bytes):
        try:
            comment = comment.decode()
        except UnicodeDecodeError:
            comment = comment.decode("latin-1")
    if comment:
        info["comment"] = comment


def _photoshop_resources(data):
    """{number: bytes} of Photoshop's image resources."""
    found, at = {}, 0
    while data[at : at + 4] == b"8BIM":
        number = int.from_bytes(data[at + 4 : at + 6], "big")
        at += 6 + (data[at + 6] + 2) // 2 * 2  # behind the name, of even length with its count
        length = int.from_bytes(data[at : at + 4], "big")
        found[number] = data[at + 4 : at + 4 + length]
        at += 4 + (length + 1) // 2 * 2
    return found


def _photoshop_iptc(iptc):
    """IPTC as the one of Photoshop's image resources."""
    return b"8BIM" + struct.pack(">HHI", PHOTOSHOP_IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def metadata_for(form, info, before, after, deep=False):
    """Picture.info as it is true of a result in the format `form`, and a list of what of it is lost.

    `before` and `after` are (width, height) of the picture and of the result, upright; a `deep` one has 16 bits.
    """
    info, factor = dict(info), (after[0] / before[0], after[1] / before[1])
    dropped = info.pop("dropped", [])[:]
    if "xmp" in info:
        info["xmp"], false = true_xmp(info["xmp"], after, factor)
        dropped += false
    if "exif" in info:
        with contextlib.suppress(Exception):
            info["exif"], tags = _true_exif(info["exif"], factor)
            if deep and form == "tiff" and tags - set(WORD_TAGS) - {282, 283, 296}:  # the resolution is told apart
                dropped.append("EXIF but for its words")
    text, colours = info.get("text", {}), info.get("colours", {})
    if form != "png":
        info.pop("text", None)
        dropped += ["the texts " + ", ".join(list(text)[:5]) + " ..." * (len(text) > 5)] if text else []
        usual = colours.get(b"gAMA", SRGB_GAMMA.to_bytes(4, "big")) == SRGB_GAMMA.to_bytes(4, "big")
        usual &= colours.get(b"cHRM", struct.pack(">8I", *SRGB_CHROMA)) == struct.pack(">8I", *SRGB_CHROMA)
        if usual and b"cICP" not in colours or "icc_profile" in info and "icc_profile" in HOLDS[form]:
            info.pop("colours", None)  # what any program takes for granted, or the profile tells better
    if form == "jpg":
        for key in {"exif", "xmp", "comment", "iptc"} & set(info):
            if len(info[key].encode() if key == "comment" else info[key]) > 65000:
                dropped.append(f"{NAMES[key]} of over 65,000 bytes")
                del info[key]
    for key in [key for key in info if key in NAMES and key not in HOLDS[form]]:
        dropped.append(NAMES[key])
        del info[key]
    return info, list(dict.fromkeys(dropped))


def _true_exif(data, factor):
    """EXIF with what counts pixels of the picture multiplied, and the tags at its top."""
    exif = Image.Exif()
    exif.load(data)
    if 0x8769 not in exif:
        return data, set(exif)
    details = exif.get_ifd(0x8769)
    for tag, scale in ((0xA20E, factor[0]), (0xA20F, factor[1])):  # pixels of the sensor on a unit of length
        if tag in details:
            details[tag] = float(details[tag]) * scale
    for tag in (0x9214, 0xA214):  # where the subject is: the upright picture may be turned against it
        details.pop(tag, None)
    return exif.tobytes(), set(exif)


def true_xmp(xmp, size, factor):
    """XMP that is true of the result of `size` (width, height), `factor` times as large, and a list of what is lost."""
    try:
        text = xmp.decode()
    except UnicodeDecodeError:
        return xmp, []
    text, _ = _changed(text, "tiff:Orientation", None)  # it is applied
    for side, names in enumerate(("exif:PixelXDimension|tiff:ImageWidth", "exif:PixelYDimension|tiff:ImageLength")):
        text, _ = _changed(text, names, lambda _, side=side: str(size[side]))
    panorama = "GPano:FullPano{0}Pixels|GPano:CroppedAreaImage{0}Pixels|GPano:CroppedArea{1}Pixels"
    for side, names in enumerate((panorama.format("Width", "Left"), panorama.format("Height", "Top"))):
        text, _ = _changed(text, names, lambda now, side=side: _times(now, factor[side]))
    lost = []
    for names, name in FALSE_XMP.items():
        text, count = _changed(text, names, None)
        lost += [name] * (count > 0)
    return text.encode(), lost


def _times(number, factor):
    try:
        return str(round(float(number) * factor))
    except (ValueError, OverflowError):
        return number


def _changed(text, names, value):
    """XMP with `value(now)` for the properties of such names, or without them if that is None, and how many there were.

    They are written as attributes or as elements.
    """

    def attribute(found):
        return "" if value is None else f"{found[1]}{found[2]}{value(found[3])}{found[2]}"

    def element(found):
        return "" if value is None else f"<{found[1]}>{value(found[2])}</{found[1]}>"

    text, attributes = re.subn(rf"""(\s(?:{names})=)(["'])([^<]*?)\2""", attribute, text)
    text, elements = re.subn(rf"<({names})>([^<]*)</\1>", element, text)
    return text, attributes + elements


def exif_of_tiff(info):
    """EXIF with XMP and IPTC in it, as Pillow writes it into a TIFF."""
    exif = Image.Exif()
    exif.load(info.get("exif", b""))
    exif.update({tag: info[key] for tag, key in ((700, "xmp"), (33723, "iptc")) if key in info})
    return exif


def jpeg_options(info):
    """How Pillow is told of XMP, the comment and IPTC."""
    options = {key: info[key] for key in ("xmp",) if key in info}
    if "comment" in info:
        options["comment"] = info["comment"].encode()
    if "iptc" in info:
        content = b"Photoshop 3.0\0" + _photoshop_iptc(info["iptc"])
        options["extra"] = b"\xff\xed" + struct.pack(">H", len(content) + 2) + content
    return options


def png_texts(info):
    """The texts of a PNG, by their keys: its own, and what has no other place there."""
    texts = dict(info.get("text", {}))
    if "comment" in info:
        texts["Comment"] = info["comment"]
    if "xmp" in info:
        texts[XMP_KEY] = info["xmp"].decode(errors="replace")
    if "iptc" in info:
        packed = _photoshop_iptc(info["iptc"])
        texts["Raw profile type iptc"] = f"\niptc\n{len(packed):8d}\n{packed.hex()}\n"
    return texts
