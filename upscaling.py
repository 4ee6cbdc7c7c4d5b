"""What upscales the pictures in files, for every program alike: which weights a file gets, and its result, written.

Not here: command lines, the names of results (pictures/folders.py), videos (pictures/video.py).
"""

import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from inference import for_pictures, upscale_frame
from pictures.formats import fill_transparent, write_picture
from utils import UserError
from weights import blend_networks, load_network

DRIFT = 10  # levels of 255; on photographs it is below 2

CHECKPOINTS = Path(__file__).parent / "checkpoints"
# The pairs that ship: the faithful network, and the sharp one that was trained from it. `auto` takes the one or the other.
PAIRS = {
    "clean": (CHECKPOINTS / "srresnet_x4.pth", CHECKPOINTS / "srgan_x4.pth"),
    "photo": (CHECKPOINTS / "srresnet_x4_photo.pth", CHECKPOINTS / "srgan_x4_photo.pth"),
}


def network_chooser(weights, device, precision="auto", blend=None, blend_with=None, self_ensemble=False):
    """A function that takes whether a file was stored with loss, and gives the network for it and the network's name.

    `weights` is "auto" (those for photographs where there was loss, the clean ones where there was none), a key of PAIRS, or a
    file. `blend` from 0 to 1 mixes the pair, from its faithful network to its sharp one; a file is mixed with `blend_with`,
    srresnet_x4 if that is None. With `self_ensemble` results are means over flips and turns. The networks come from
    `for_pictures`, and are made when they are first needed.
    Raises UserError for files that are not there or do not fit.
    """
    named = str(weights) == "auto" or str(weights) in PAIRS
    if blend_with and (named or blend is None):
        raise UserError("--blend-with goes with --blend and a file for --weights: auto, clean and photo are pairs already")
    files = {name: PAIRS[name] for name in PAIRS if str(weights) in (name, "auto")}
    files = files or {"file": (Path(blend_with or PAIRS["clean"][0]), Path(weights))}
    for pair in files.values():
        for file in pair if blend is not None else pair[1:]:
            if not file.is_file():
                raise UserError(f"{file}: no such file")

    @functools.cache
    def network_of(pair):
        network, name = load_network(pair[1]), pair[1].stem + "+" * self_ensemble
        if blend is not None:
            network = blend_networks(load_network(pair[0]), network, blend)
            name += f", blend {blend:g}" + ("" if named else f" with {pair[0].stem}")
        return for_pictures(network, device, precision, self_ensemble), name

    def choose(lossy):
        return network_of(files["photo" if lossy else "clean"] if str(weights) == "auto" else next(iter(files.values())))

    if not named:
        choose(False)  # so that a file that does not fit is told before any picture is read
    return choose


@dataclass
class Enlarged:
    """What `upscale_picture` did: the size of the result, seconds in the network, and what of the picture was lost."""

    size: tuple[int, int]  # width, height
    seconds: float
    remark: str


def upscale_picture(picture, target, network, tile=None, outscale=None, quality=None, on_frame=None, progress=None) -> Enlarged:
    """Write a Picture, enlarged by a network of `for_pictures`, to the file `target`, whole or not at all.

    `tile` and `outscale` as in `upscale_frame`, `quality` as in `write_picture`. `on_frame(frame, result)` sees each Frame and
    what became of it; `progress(done, total)` hears of each finished tile, in LR pixels over all frames, and all the while
    when all are done and the file is written. Raises UserError, ImageError and OSError, and whatever these two raise, and then
    leaves no file behind.
    """
    done = Enlarged((0, 0), 0.0, picture.remark)

    def results():
        quiet = None if picture.count > 1 else True  # None: a bar if stderr is a terminal
        for number, frame in enumerate(tqdm(picture.frames, total=picture.count, unit="frame", leave=False, disable=quiet)):

            def tell(done, total, number=number):
                if progress:
                    progress(number * total + done, picture.count * total)

            start = time.perf_counter()
            result = upscale_frame(network, frame, tile, outscale, tell)
            done.seconds += time.perf_counter() - start
            done.size = result.rgb.shape[1::-1]
            if number == 0:
                done.remark = "; ".join(filter(None, (done.remark, remark_on_drift(frame, result))))
            if on_frame:
                on_frame(frame, result)
            yield result

    watch = (lambda: progress(1, 1)) if progress and picture.count == 1 else None
    dropped = write_picture(target, replace(picture, frames=results()), quality, watch)
    done.remark = "; ".join(filter(None, (done.remark, dropped)))
    return done


def remark_on_drift(frame, result):
    """In words, how far the mean colour of a result is from that of its Frame; "" if not far, as with nearly all pictures."""
    # Of some rows: all of them would take seconds for a large picture.
    rows = (pixels[:: len(pixels) // 400 + 1] for pixels in (fill_transparent(frame), result.rgb))
    before, after = (some.mean((0, 1)) for some in rows)
    levels = abs(after - before).max() * 255 / np.iinfo(frame.rgb.dtype).max
    if levels <= DRIFT:
        return ""
    return f"its colours are {levels:.0f} levels of 255 off on average: these weights do not know its pattern, as dithering is"
