"""What a page shows of an enlarged picture: both sides of a slider, reduced where they are too large, and close-ups.

Not here: the script and the style of the page (app.js, app.css), the page that needs no server (comparison.py).
"""

import base64
import html
import io
import os
import re
import urllib.parse
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pictures.formats import fill_transparent, has_no_colour, read_picture, to_8_bits
from pictures.pixels import enlarge

LARGEST_SHOWN = 4096  # pixels a side; browsers fail at some size above it
CLOSE_UP = 384  # side of a close-up, pixels of the result
ZOOMS = {"fit": "fit", "1": "100 %", "2": "200 %", "4": "400 %"}
EXAMPLES = {"astronaut": ".png", "chelsea": ".jpg", "coffee": ".png", "rocket": ".jpg"}  # of scikit-image
KERNEL = 2  # pixels on each side that bicubic interpolation sees

VIEWER = """<figure class="viewer">
<div class="pane" tabindex="0" role="group" aria-label="{name}: arrow keys move it, Enter takes a close-up of its middle">
<div class="stage" data-width="{width}"><img src="{before}" alt="{name}, bicubic" width="{width}" height="{height}">
<img class="after" src="{after}" alt="{name}, enlarged by {label}" width="{width}" height="{height}"><i aria-hidden="true"></i>
</div></div>
<div class="bar"><span>bicubic</span>
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="how much of bicubic to show">
<span>{label}</span></div>
<div class="bar" role="group" aria-label="zoom">{buttons}</div>
<figcaption>{caption}</figcaption></figure>"""


@dataclass
class Shown:
    """The frame of a file that a page shows: (h, w, 3) uint8, no colour bleeding in from what is transparent."""

    rgb: np.ndarray
    gray: bool
    profile: bytes | None  # the colour profile of its RGB values
    lossy: bool  # as of Picture


def read_shown(path) -> Shown:
    """The first frame of a file. Raises ImageError."""
    picture = read_picture(path)
    frame = next(iter(picture.frames))
    rgb = fill_transparent(frame)
    return Shown(to_8_bits(rgb), has_no_colour(rgb, frame.alpha), rgb_profile(picture), picture.lossy)


def rgb_profile(picture):
    """The colour profile of a Picture if it is one for RGB values, else None."""
    profile = picture.info.get("icc_profile") or b""
    return profile if profile[16:20] == b"RGB " else None


def on_white(frame):
    """A Frame as (H, W, 3) uint8, on white where it is transparent."""
    rgb = to_8_bits(frame.rgb)
    if frame.alpha is None:
        return rgb
    alpha = to_8_bits(frame.alpha)[..., None].astype(np.uint16)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def reduced(rgb):
    """A picture (H, W, 3) uint8 with at most LARGEST_SHOWN pixels a side."""
    factor = max(rgb.shape[:2]) // LARGEST_SHOWN
    if factor > 1:  # in strips, since Pillow's copy of the whole takes a third more memory than the picture
        rows = 256 * factor
        strips = [Image.fromarray(rgb[top : top + rows]).reduce(factor) for top in range(0, rgb.shape[0], rows)]
        rgb = np.concatenate([np.asarray(strip) for strip in strips])
    image = Image.fromarray(rgb)
    image.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN), Image.Resampling.LANCZOS)
    return np.asarray(image)


def address(path):
    """Where the page finds a file of its folder."""
    return f"gradio_api/file={urllib.parse.quote(str(path))}"


def slider(before, after, size, name, label, caption):
    """The HTML of a slider between two pictures of one size (width, height), at these addresses; app.js moves it."""
    buttons = "".join(f'<button type="button" data-zoom="{key}">{text}</button>' for key, text in ZOOMS.items())
    words = {key: html.escape(text) for key, text in {"name": name, "label": label, "caption": caption}.items()}
    return VIEWER.format(before=before, after=after, width=size[0], height=size[1], buttons=buttons, **words)


def bicubic_area(lr_img, area, scale):
    """What bicubic interpolation makes of the area (top, left, bottom, right) of an image, without the rest of it."""
    top, left, bottom, right = area
    y0, x0 = max(0, top - KERNEL), max(0, left - KERNEL)
    enlarged = enlarge(lr_img[y0 : bottom + KERNEL, x0 : right + KERNEL], scale)
    top, left, bottom, right = (scale * edge for edge in (top - y0, left - x0, bottom - y0, right - x0))
    return enlarged[top:bottom, left:right]


def close_ups(images, profile, caption):
    """The HTML of pictures (H, W, 3) uint8 side by side at 100 %: {label: picture}."""
    figures = ""
    for label, image in images.items():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1, icc_profile=profile)
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        size, label = f'width="{image.shape[1]}" height="{image.shape[0]}"', html.escape(label)
        figures += f'<figure><img src="{source}" {size} alt="close-up, {label}"><figcaption>{label}</figcaption></figure>'
    return f'<div class="close-ups">{figures}</div><p>{html.escape(caption)}</p>'


def facts(pairs):
    """The HTML of a list of facts, {what: text}, without those that are empty."""
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in pairs.items() if v) + "</dl>"


def without_folders(text, folder):
    """A message with the names of files in a folder and below it, in place of their paths."""
    return re.sub(re.escape(f"{folder}{os.sep}") + r"(\w+[/\\])*", "", text)


def duration(seconds):
    """Seconds in words, in minutes where they are many."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def make_examples(folder):
    """Small photographs to try the page with: {name: path}."""
    import skimage.data

    folder.mkdir()
    for name, ending in EXAMPLES.items():
        image = Image.fromarray(getattr(skimage.data, name)())
        image.thumbnail((200, 200), Image.Resampling.BICUBIC)
        image.save(folder / f"{name}{ending}", quality=85)
    return {name: folder / f"{name}{ending}" for name, ending in EXAMPLES.items()}
