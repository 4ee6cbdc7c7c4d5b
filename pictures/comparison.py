"""Pictures side by side: labelled rows, and a self-contained HTML page with a before/after slider per image."""

import base64
import html
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils import write_text

CLOSE_UP = 256  # side of a close-up, pixels of the large image


def labelled_row(images, labels):
    """Pictures of one size, (H, W, 3) uint8, side by side, each under its label: a PIL image."""
    font, gap = ImageFont.load_default(14), 4
    height, width = images[0].shape[:2]
    width = max(width, *(int(font.getlength(label)) + 8 for label in labels))  # a label may be wider than a small picture
    row = Image.new("RGB", (len(images) * (width + gap) - gap, height + 22), "white")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row.paste(Image.fromarray(image), (i * (width + gap), 22))
        ImageDraw.Draw(row).text((i * (width + gap) + 4, 3), label, "black", font)
    return row


def with_close_ups(images, labels):
    """A labelled row of pictures (H, W, 3) uint8, and below it the same detail of each, four times as large."""
    size = max(1, min(images[0].shape[:2]) // 4)
    enlarged = [image.repeat(4, axis=0).repeat(4, axis=1) for image in close_up(images, size)]
    return stack([labelled_row(images, labels), labelled_row(enlarged, labels)])


def stack(rows):
    """Rows from `labelled_row` one below the other."""
    panel = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        panel.paste(row, (0, top))
        top += row.height
    return panel


def close_up(images, size=CLOSE_UP):
    """The same square of each picture, where the last one (the reference) has most detail."""
    top, left = place_of_detail(images[-1], size)
    return [image[top : top + size, left : left + size] for image in images]


def place_of_detail(image, size):
    """The (top, left) of the square of `size` pixels in which a picture (H, W, 3) has most detail."""
    reference = image.mean(axis=2, dtype=np.float32)
    height, width = reference.shape
    detail = np.abs(np.diff(reference, axis=0))[:, :-1] + np.abs(np.diff(reference, axis=1))[:-1]
    places = [
        (detail[top : top + size, left : left + size].sum(), top, left)
        for top in range(0, max(1, height - size + 1), max(1, size // 2))
        for left in range(0, max(1, width - size + 1), max(1, size // 2))
    ]
    return max(places)[1:]


def data_uri(image):
    """A picture (H, W, 3) uint8 as it stands in a page: WebP where its limit of 16,383 pixels a side allows, else PNG."""
    buffer, form = io.BytesIO(), "webp" if max(image.shape[:2]) <= 16383 else "png"
    Image.fromarray(image).save(buffer, form, **({"quality": 92} if form == "webp" else {}))
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
  body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
  figure { margin: 0 0 3em }
  .slider { position: relative; --at: 50%; touch-action: pan-y; user-select: none; overflow: hidden }
  .slider img { display: block; width: 100% }
  .slider .after { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)) }
  .slider i { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
              box-shadow: 0 0 3px #000; pointer-events: none }
  .slider b { position: absolute; top: 8px; padding: 2px 8px; background: #000a; color: #fff; pointer-events: none }
  .slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize }
  .close-ups { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 6px }
  .close-ups figure { margin: 0 } .close-ups img { display: block }
</style>
<h1>TITLE</h1>
BODY
<script>
  for (const input of document.querySelectorAll(".slider input"))
    input.addEventListener("input", () => input.parentElement.style.setProperty("--at", input.value + "%"));
</script>
</html>
"""

FIGURE = """<figure>
<figcaption><strong>{name}</strong> {caption}</figcaption>
<div class="slider"><img src="{before}" alt="{before_label}"><img class="after" src="{after}" alt="{after_label}"><i></i>
<b style="left:8px">{before_label}</b><b style="right:8px">{after_label}</b>
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="how much of {before_label} to show"></div>
<div class="close-ups">{close_ups}</div>
</figure>"""


def slider_figure(name, images, labels, before, after, caption=""):
    """The HTML of one image: a slider between `images[before]` and `images[after]`, and close-ups of all at 100%."""
    squares = "".join(
        f'<figure><img src="{data_uri(square)}" alt="{label}"><figcaption>{label}</figcaption></figure>'
        for square, label in zip(close_up(images), map(html.escape, labels), strict=True)
    )
    return FIGURE.format(
        name=html.escape(name),
        caption=html.escape(caption),
        before=data_uri(images[before]),
        after=data_uri(images[after]),
        before_label=html.escape(labels[before]),
        after_label=html.escape(labels[after]),
        close_ups=squares,
    )


def write_page(path, title, figures):
    """Write the page of several figures; it needs nothing but itself."""
    head, foot = PAGE.split("BODY")  # first, since a title may hold any word
    write_text(path, head.replace("TITLE", html.escape(title)) + "\n".join(figures) + foot)
