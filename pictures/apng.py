"""The frames of an animated PNG, as its specification puts them together (https://www.w3.org/TR/png-3/#apng-frame-based-animation).

Pillow reads each frame well, as a PNG of its own; all together it loses palettes and mixes what is half transparent.
"""

import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pictures.deep import PNG_SIGNATURE, all_png_chunks, png_chunk, png_chunks

OF_EACH_FRAME = {b"PLTE", b"tRNS", b"sBIT"}  # chunks of the head without which the pixels of a frame mean nothing
TO_CLEAR, TO_BEFORE = 1, 2  # what becomes of a frame's place before the next: else it stays
OVER = 1  # a frame is laid over what is there, or else takes its place


@dataclass
class Part:
    """One frame of the file: its place on the canvas, and a PNG of it alone."""

    left: int
    top: int
    width: int
    height: int
    duration: float  # ms
    disposal: int
    blending: int
    png: bytes = b""


def parts_of(data):
    """Yield the frames in the bytes of a file, each a `Part`; a picture before the first is no frame of the animation."""
    head, shared, part, pixels = b"", b"", None, []
    for name, content in all_png_chunks(data):
        if name == b"IHDR":
            head = content
        elif name in OF_EACH_FRAME:
            shared += png_chunk(name, content)
        elif name == b"fcTL":
            if part:
                yield with_png(part, head, shared, pixels)
            _, width, height, left, top, numerator, denominator, disposal, blending = struct.unpack(">5I2H2B", content)
            part, pixels = Part(left, top, width, height, 1000 * numerator / (denominator or 100), disposal, blending), []
        elif name == b"IDAT" and part:
            pixels.append(content)
        elif name == b"fdAT":
            pixels.append(content[4:])  # behind its number
    if part:
        yield with_png(part, head, shared, pixels)


def with_png(part, head, shared, pixels):
    """The part with its PNG: the head of the file in the part's size, the chunks that all frames share, and its own pixels."""
    head = struct.pack(">2I", part.width, part.height) + head[8:]
    part.png = (
        PNG_SIGNATURE + png_chunk(b"IHDR", head) + shared + png_chunk(b"IDAT", b"".join(pixels)) + png_chunk(b"IEND", b"")
    )
    return part


def composed(data, read):
    """Yield the pictures that an animation shows, (H, W, 4) uint8, and the ms that each is shown.

    `read(png)` gives the pixels of a PNG as (h, w, 4) uint8. Raises ValueError for a file with fewer frames than it tells.
    """
    head = dict(png_chunks(data))
    width, height = struct.unpack(">2I", head[b"IHDR"][:8])
    (count,) = struct.unpack(">I", head[b"acTL"][:4])
    canvas, number = np.zeros((height, width, 4), np.uint8), 0
    for number, part in enumerate(parts_of(data), start=1):
        pixels, before = read(part.png), canvas.copy()
        place = canvas[part.top : part.top + part.height, part.left : part.left + part.width]
        if pixels.shape != place.shape:
            raise ValueError(f"frame {number} reaches beyond the picture")
        if part.blending == OVER:
            pixels = np.asarray(Image.alpha_composite(Image.fromarray(place.copy()), Image.fromarray(pixels)))
        place[...] = pixels
        yield canvas.copy(), part.duration
        if part.disposal == TO_CLEAR or part.disposal == TO_BEFORE and number == 1:
            place[...] = 0
        elif part.disposal == TO_BEFORE:
            canvas = before
        if number == count:
            return
    raise ValueError(f"it ends after {number} of its {count} frames")
