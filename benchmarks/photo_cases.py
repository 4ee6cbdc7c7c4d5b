"""The weights for photographs on faults that they were not trained on, beside bicubic and the clean weights.

    python benchmarks/photo_cases.py --lpips-backbone alexnet.pth

Photographs that come with scikit-image, 320 pixels wide, are made small and then spoiled by Pillow alone, by other means than
`--degradation photo`. Prints a table of PSNR and LPIPS, and writes a panel per case. LPIPS needs the package lpips.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import ArgumentParser, add_device_arguments, user_errors


def parse_arguments():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--lpips-backbone", default="imagenet", metavar="FILE", help="state dict of AlexNet's features")
    parser.add_argument("--output", type=Path, default=Path("results/photo_cases"), metavar="DIR", help="for the panels")
    add_device_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from skimage import data

from devices import pick_device
from inference import upscale
from metrics import load_lpips, psnr
from pictures.comparison import labelled_row, stack
from pictures.pixels import enlarge
from upscaling import PAIRS, network_chooser

SCALE, SIDE = 4, 320
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "brick")


def photograph(name):
    """A photograph of scikit-image, at most SIDE pixels wide and high, its sides multiples of SCALE."""
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return image.crop((0, 0, *(side // SCALE * SCALE for side in image.size)))


def small(image):
    return image.resize([side // SCALE for side in image.size], Image.Resampling.BICUBIC)


def as_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def grain(image, sigma):
    """Gray grain of `sigma` levels, the same each time."""
    noise = np.random.default_rng(0).normal(0, sigma, (*image.size[::-1], 1))
    return Image.fromarray(np.rint(np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


# Each takes an HR image and gives the LR image and the HR image that belong together.


def compressed(hr):
    return as_jpeg(small(hr), 30), hr


def noisy(hr):
    return grain(small(hr), 12), hr


def old_and_soft(hr):
    """A faded print, scanned out of focus: little contrast, blur, grain, JPEG. HR is as faded."""
    faded = ImageEnhance.Color(ImageEnhance.Contrast(hr).enhance(0.75)).enhance(0.5)
    return as_jpeg(grain(small(faded).filter(ImageFilter.GaussianBlur(0.6)), 4), 75), faded


def saved_twice(hr):
    """Saved as JPEG, cut by what is no whole block, saved again."""
    cut = 3
    twice = as_jpeg(as_jpeg(small(hr), 70).crop((cut, cut, hr.width // SCALE, hr.height // SCALE)), 60)
    return twice, hr.crop((SCALE * cut, SCALE * cut, *hr.size))


def screenshot(hr):
    """A JPEG shown smaller than it is, and the screen kept without loss."""
    shown = as_jpeg(hr.resize([round(side / SCALE * 1.5) for side in hr.size], Image.Resampling.LANCZOS), 50)
    return shown.resize([side // SCALE for side in hr.size], Image.Resampling.BILINEAR), hr


def sharpened_by_phone(hr):
    """What many phones do: remove noise, sharpen, save as JPEG."""
    sharp = small(hr).filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.UnsharpMask(1, 120, 2))
    return as_jpeg(sharp, 85), hr


def well_kept(hr):
    """Hardly any fault, as of most JPEGs: what takes faults away has nothing to do here, and much to spoil."""
    return as_jpeg(small(hr), 90), hr


# Kinds of fault that the training has too, each with the photograph that stands for it in panel.png.
PANELS = {compressed: "astronaut", noisy: "chelsea", old_and_soft: "coffee"}
UNSEEN = (saved_twice, screenshot, sharpened_by_phone)  # and none of these
CASES = (*PANELS, *UNSEEN, well_kept)


def enlargements(lr, device, precision):
    """What makes of an LR image, (h, w, 3) uint8: {name: (H, W, 3) uint8}."""
    made = {"bicubic": enlarge(lr, SCALE)}
    for kind in ("clean", "photo"):
        for share in (0, 1):
            network, _ = network_chooser(kind, device, precision, share)(False)
            made[PAIRS[kind][share].stem] = upscale(network, lr)
    return made


def main(args):
    device = pick_device(args.device)
    lpips = load_lpips(args.lpips_backbone, device)
    args.output.mkdir(parents=True, exist_ok=True)
    table, overview = {}, []
    for case in CASES:
        rows = []
        for name in PHOTOGRAPHS:
            lr, hr = (np.asarray(image) for image in case(photograph(name)))
            made = enlargements(lr, device, args.precision)
            for method, sr in made.items():
                table.setdefault(method, {}).setdefault(case.__name__, []).append((psnr(sr, hr, SCALE), lpips(sr, hr)))
            shown = {key: made[key] for key in made if not key.startswith("srresnet")} | {"HR": hr}
            title = case.__name__.replace("_", " ")
            rows.append(labelled_row(list(shown.values()), [f"{title}: bicubic", *list(shown)[1:]]))
            if PANELS.get(case) == name:
                overview.append(rows[-1])
        stack(rows).save(args.output / f"{case.__name__}.png")
    stack(overview).save(args.output / "panel.png")
    titles = [case.__name__.replace("_", " ") for case in CASES]
    print(f"| x4, PSNR / LPIPS | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}")
    for method, by_case in table.items():
        means = [np.mean(by_case[case.__name__], axis=0) for case in CASES]
        cells = [f"{decibels:.2f} / {distance:.4f}".replace(" 0.", " .") for decibels, distance in means]
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    with user_errors():
        main(args)
