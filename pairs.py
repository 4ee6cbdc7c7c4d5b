"""Which LR image belongs to which HR image, by their names, as data sets have them, and by their sizes.

Not here: what a name says (image_lists.py), lists of pairs (create_data_lists.py), their pixels (datasets.py).
"""

import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from image_lists import find_images, peeled, size_of, without_marks
from pictures.pixels import read_image
from utils import ImageError

SCALES = (2, 3, 4, 8)
# Why an HR image has no LR image of its own.
MISSING, SEVERAL, SHARED = "without an LR image", "with several LR images", "whose LR image is that of another image too"
MISFIT = "whose LR image, times the scale, is not of its size"


def fits(hr_size, lr_size, scale=None):
    """Whether an LR image times `scale` (None: one of SCALES) is the HR image, or that without a remainder at its end."""
    return any(tuple(side // factor for side in hr_size) == tuple(lr_size) for factor in ([scale] if scale else SCALES))


def common_scale(sizes):
    """The factor that fits the most pairs of (HR size, LR size), None if none fits any."""
    counts = Counter(scale for hr_size, lr_size in sizes for scale in SCALES if fits(hr_size, lr_size, scale))
    return counts.most_common(1)[0][0] if counts else None


def pair(hr_places, lr_places, scale=None):
    """The LR image of each HR image that has one, and why others have none: {HR: LR}, {HR: (reason, error of one line)}.

    The arguments have for each path its place below the folder that the user gave. An LR image has the same place as its
    HR image, or one that differs by what names say of LR and HR: babyx4, baby_LR or LR_bicubic/X4/baby for baby or HR/baby.
    Where several would do, those count whose size does, as far as the head of the file tells; `scale` may be None, if
    nobody knows it.
    """
    near, pairs, problems = by_name(hr_places, lr_places), {}, {}
    for hr, place in hr_places.items():
        found = fitting = near[hr]
        if len(found) > 1:
            fitting = [lr for lr in found if lr_places[lr] == place]
            fitting = fitting or [lr for lr in found if fits(size_of(hr), size_of(lr), scale)]
        files = ", ".join(map(str, (fitting or found)[:4]))
        if len(fitting) == 1:
            pairs[hr] = fitting[0]
        elif fitting:
            way_on = "give the folder that holds one of them" + ("" if scale else ", or --scale")
            problems[hr] = SEVERAL, f"{hr}: several files could be its LR image: {files}; {way_on}"
        elif found:
            by = f" divided by {scale}" if scale else ""
            problems[hr] = MISFIT, f"{hr}: none of the files that could be its LR image has its size{by}: {files}"
        else:
            problems[hr] = MISSING, f"{hr}: no LR image: {looked_for(place, scale)}"
    owners = Counter(pairs.values())
    for hr, lr in [pair for pair in pairs.items() if owners[pair[1]] > 1]:
        others = ", ".join(str(other) for other in pairs if pairs[other] == lr and other != hr)
        problems[hr] = SHARED, f"{hr}: {lr} could be its LR image, or that of {others}"
    return {hr: lr for hr, lr in pairs.items() if hr not in problems}, problems


def by_name(hr_places, lr_places):
    """The LR images that may belong to each HR image, and by their names to no other one more closely: {HR: [LR]}."""
    in_folder, anywhere = defaultdict(list), defaultdict(list)
    for hr, place in hr_places.items():
        for marks, name in names_of(place):
            in_folder[without_marks(place.parts[:-1]), name].append((marks, hr))
            anywhere[name].append((marks, hr))
    found = {hr: [] for hr in hr_places}
    for lr, place in lr_places.items():
        rest, names = without_marks(place.parts[:-1]), names_of(place)
        # In the same folder; or in another one, if either side has no folders at all.
        owners = closest([(marks, in_folder.get((rest, name), ())) for marks, name in names])
        owners = owners or closest([(marks, in_folder.get(((), name), ())) for marks, name in names])
        if not owners and not rest:
            owners = closest([(marks, anywhere.get(name, ())) for marks, name in names])
        for hr in owners:
            found[hr].append(lr)
    return found


def names_of(place):
    """What the picture in a file may be called, by the marks of its name that are left out: (0, baby_lr), (1, baby)."""
    return [(marks, name.casefold()) for marks, (name, _) in enumerate(peeled(place.stem))]


def closest(matches):
    """The HR images with the fewest marks left out on both sides, of (marks, [(marks, HR)])."""
    matches = [(marks + more, hr) for marks, owners in matches for more, hr in owners]
    least = min((marks for marks, _ in matches), default=0)
    return list(dict.fromkeys(hr for marks, hr in matches if marks == least))


def looked_for(place, scale):
    """In words, what LR images of an HR image may be called."""
    name, factor = peeled(place.stem)[-1][0], f"x{scale or 4}"
    names = [str(place)] + [f"{name}{mark}{place.suffix}" for mark in (factor, f"_{factor}", "_LR")]
    return f"no such file as {', '.join(names)}, also in folders like LR_bicubic/{factor.upper()}"


class LRFolder:
    """The LR images in a folder by their HR images, which are looked for when the first one has another name or place."""

    def __init__(self, folder, hr_places, scale):
        self.folder, self.hr_places, self.scale, self.found = Path(folder), hr_places, scale, None

    def image_of(self, hr):
        """The LR image of an HR image. Raises ImageError, which says what was looked for, if there is none or no one."""
        same = self.folder / self.hr_places[hr]
        if same.exists() and not same.samefile(hr):
            return same
        if self.found is None:
            known = {os.path.realpath(path) for path in self.hr_places}
            files = [path for path in find_images(self.folder)[0] if os.path.realpath(path) not in known]
            self.found = pair(self.hr_places, {path: path.relative_to(self.folder) for path in files}, self.scale)
        pairs, problems = self.found
        if hr in problems:
            reason, line = problems[hr]
            raise ImageError(line if reason != MISSING else f"{line} below {self.folder}")
        return pairs[hr]


def check_sizes(hr, hr_size, lr, lr_size, scale):
    """Raises ImageError, which names both, unless the LR image times the scale is the HR image; sizes are (width, height)."""
    if not fits(hr_size, lr_size, scale):
        (width, height), (lr_width, lr_height) = hr_size, lr_size
        raise ImageError(f"{lr}: its size, {lr_width}x{lr_height}, times {scale} is not that of {hr}, {width}x{height}")


def unlike(pairs, white=None):
    """Those of the pairs, {HR: LR}, that do not show the same, as bright, as far as 8x8 pixels of gray tell."""

    def thumbnail(path):
        image = Image.fromarray(read_image(path, white)).convert("L")
        return np.asarray(image.resize((8, 8), Image.Resampling.BOX), float).ravel()

    def look_alike(a, b):
        # Two cameras differ by less; two ideas of what is white in 16 bits, or a gamma that one has, make twice as much.
        as_bright = abs(a.mean() - b.mean()) < 8 + min(a.mean(), b.mean()) / 4
        return as_bright and (min(a.std(), b.std()) < 2 or np.corrcoef(a, b)[0, 1] > 0.7)

    return [hr for hr, lr in pairs.items() if not look_alike(thumbnail(hr), thumbnail(lr))]
