"""Lists and folders of images, what test sets are called, and which images are LR copies or results of others.

Not here: pixels to train and measure on (datasets.py), and the command that writes lists (create_data_lists.py).
"""

import contextlib
import functools
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from pictures.deep import likely_white
from pictures.pixels import IMAGE_SUFFIXES, highest_of_16_bits, orientation_of, read_image
from utils import ImageError, UserError, read_json


class ImageList(list):
    """Paths of images, and how they are to be read.

    `white` is the level that is white in files of 16 bits that use less of them (None: what they declare), `lr_images`
    the paths of their LR images, in the same order, if these are given, and `scale` the factor between them. `name` is
    for errors.
    """

    def __init__(self, paths=(), white=None, lr_images=None, scale=None, name="the list"):
        super().__init__(paths)
        self.white, self.lr_images, self.scale, self.name = white, lr_images, scale, name

    def check_lr_images(self, scale, degradation):
        """Raises UserError if LR images are given, and cannot be those of this scale and degradation."""
        if self.lr_images and self.scale != scale:
            raise UserError(f"{self.name} has LR images for --scale {self.scale}, not {scale}: give that, or another list")
        if self.lr_images and degradation != "bicubic":
            way_on = "leave it out, or make the list anew without --lr-folders"
            raise UserError(f"--degradation {degradation} makes LR images, and {self.name} has its own: {way_on}")


def read_list(list_file) -> ImageList:
    """The images in a list of create_data_lists.py. Raises UserError for a list that is missing, empty, or none."""
    list_file = Path(list_file)
    try:
        content = content_of(list_file)
        for key in {"images", "lr_images"} & set(content):
            content[key] = [list_file.parent / name for name in content[key]]
        paths = ImageList(content.pop("images"), **content, name=list_file)
    except FileNotFoundError:
        raise UserError(f"{list_file}: no such list; make it with create_data_lists.py") from None
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{list_file}: not a list of images; make it anew with create_data_lists.py") from None
    if not paths and list_file.name == "validation_images.json":  # as --validation-images 0 makes it
        way_on = "give --validate-on FOLDER, or make the lists anew with create_data_lists.py --validation-images 20"
        raise UserError(f"{list_file}: the list is empty, so there is nothing to validate on; {way_on}")
    if not paths:
        raise UserError(f"{list_file}: the list is empty; make it anew with create_data_lists.py")
    return paths


def content_of(list_file) -> dict:
    """What a list file holds: `images`, the names, and what else ImageList has. Most hold the names alone, in an array."""
    content = read_json(list_file)
    content = {"images": content} if isinstance(content, list) else content
    if not isinstance(content, dict) or not isinstance(content["images"], list):
        raise ValueError
    if "lr_images" in content and len(content["lr_images"]) != len(content["images"]):
        raise ValueError
    if not isinstance(content.get("white", 1), int):
        raise ValueError
    return content


def find_images(folder, recursive=True, without=()):
    """The files with the ending of an image below `folder`, sorted, and how many others there are.

    The folders `without` (real paths) below it are left out. Raises UserError if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files, others, seen = [], 0, set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or (seen and real in without):  # a link may lead back to a folder that it lies in
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        if not recursive:
            folders.clear()
        for name in sorted(names):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                files.append(Path(parent) / name)
            else:
                others += 1
    return files, others


def list_called(name, data_folder="data") -> Path | None:
    """The list in the data folder that a test set's name means, or that it is the path of: Set5 is Set5_test_images.json.

    None for what can only be a folder, as ./Set5 is.
    """
    bare = str(name) == Path(name).name
    lists = [Path(data_folder) / f"{name}{ending}" for ending in ("_test_images.json", "_images.json")] if bare else []
    return next((path for path in [Path(name), *lists] if path.suffix == ".json" and path.is_file()), None)


def test_images(name, data_folder="data", white=None, lr_folder=None) -> ImageList:
    """The images of a test set: of a list in the data folder, as Set5 is Set5_test_images.json, or of a folder.

    A list goes before a folder of that name here, which is told on stderr: it knows the white, and which files count. Of a
    folder, LR images and results beside their HR images are left out, and counted on stderr (see `without_copies`).
    `white` is for a folder, or for a list that was made without; `lr_folder`, if LR images are given, may be the folder
    itself. Raises UserError where there is neither, or no image in it, or for a list with another white.
    """
    folder, found = Path(name), list_called(name, data_folder)
    first = os.environ.get("RANK", "0") == "0"
    if found is None and folder.is_dir():
        paths = images_of(folder)
        beside = bool(lr_folder) and Path(lr_folder).resolve() == folder.resolve()
        paths, reasons, doubtful = without_copies({path: Path(path.name) for path in paths}, white, beside)
        if (reasons or doubtful) and first:
            print(f"{folder}: {len(paths)} images{in_words(reasons, doubtful)}", file=sys.stderr)
        return ImageList(paths, white)
    if found is None:
        made = f"{name}_images.json" if name in ("train", "validation") else f"{name}_test_images.json"
        raise UserError(f"{name}: no folder of images, and no list {Path(data_folder) / made}")
    if folder.is_dir() and first:
        print(f"{name}: the list {found}; for the folder of that name give {Path('.') / folder}/", file=sys.stderr)
    images = read_list(found)
    if white and images.white not in (None, white):
        raise UserError(f"--white {white}: {found} was made with --white {images.white}; leave it out, or make the list anew")
    images.white = images.white or white
    return images


def on_16_bits(paths, white=None):
    """In words, which images of 16 bits use a part of their range without a word, or are above a `white` that is given.

    The paths are of files, or a dict with what `highest_of_16_bits` said of each. "" if there is nothing to say.
    """
    found = {}
    for path in paths:
        with contextlib.suppress(ImageError):  # which is told where it is read
            highest, declares = (paths[path] if isinstance(paths, dict) else highest_of_16_bits(path)) or (0, True)
            level = (highest if highest > white else None) if white else (None if declares else likely_white(highest))
            found |= {path: level} if level else {}
    if not found:
        return ""
    names = ", ".join(map(str, list(found)[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    level = max(found.values())
    if white:
        return f"{len(found)} have values above --white {white}, up to {level}, which are cut to it: {names}"
    return (
        f"{len(found)} in 16-bit files that use a part of their range, and declare none, are read as almost black: {names}; if "
        f"{level} is their white, give --white {level}, or declare it (MaxSampleValue in TIFF, sBIT in PNG)"
    )


def images_of(folder):
    """The paths of the images in a folder. Raises UserError where there is none, or no folder."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: no images in this folder (known endings: {' '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def finished_pictures(folder, set_name, hr_paths) -> list[Path]:
    """For each HR image the file in a folder of finished pictures, or in its sub-folder `set_name` if there is one.

    It has the name of the HR image, but for what follows it in either: baby.png, baby_x4.png, baby_SwinIR.png for baby_HR.png.
    Raises UserError for an HR image that has none, or several, or one that is another's too.
    """
    folder = Path(folder) / set_name if (Path(folder) / set_name).is_dir() else Path(folder)
    files, of = images_of(folder), {}
    for hr_path in hr_paths:
        name = name_and_marks(hr_path.stem)[0].casefold()
        ways = (  # of which the first that finds anything counts
            lambda stem, path=hr_path: stem == path.stem.casefold(),
            lambda stem, name=name: name_and_marks(stem)[0].casefold() == name,
            lambda stem, name=name: re.match(re.escape(name) + "[ _.-]", stem),
        )
        found = next(filter(None, ([file for file in files if fits(file.stem.casefold())] for fits in ways)), [])
        if len(found) != 1:
            told = f"several pictures ({', '.join(file.name for file in found[:3])}, ...)" if found else "no picture"
            raise UserError(f"{folder}: {told} for {hr_path.name}: each HR image needs one of its name")
        if found[0] in of:
            raise UserError(f"{found[0]} would be compared with {of[found[0]].name} and {hr_path.name}")
        of[found[0]] = hr_path
    return list(of)


def named_sets(words, flag) -> dict[str, str]:
    """The test sets of a flag, folders or lists, by what they are called, which no two are.

    `NAME=FOLDER` says it. Otherwise it is the last part of the path; of several that end alike (Set5/HR Set14/HR) it is
    the part that differs, or as many of those as it takes. Raises UserError for one given twice.
    """
    by_hand, parts = {}, {}
    for word in words:
        if words.count(word) > 1:
            raise UserError(f"{flag}: {word} is given twice")
        name, equals, folder = word.partition("=")
        if equals and name and folder and not re.search(r"[/\\]", name) and not Path(word).exists():
            by_hand[word] = (name, folder)
        else:
            path = Path(word).resolve() if Path(word).exists() else Path(word)
            parts[word] = *path.parts[:-1], path.name.removesuffix(".json").removesuffix("_test_images")
    names = different_names(list(parts.values()), [name for name, _ in by_hand.values()])
    named = by_hand | {word: (name, word) for word, name in zip(parts, names)}
    sets = {}
    for name, folder in (named[word] for word in words):
        if name.casefold() in map(str.casefold, sets):
            raise UserError(f"{flag}: two would be called {name}; say by NAME=FOLDER what each is called")
        sets[name] = folder
    return sets


def different_names(paths, taken=()):
    """A name for each path, a tuple of its parts: the last of them, or of those that differ, the last ones."""
    depth = max(map(len, paths), default=0)
    rows = [("",) * (depth - len(path)) + tuple(path) for path in paths]
    taken = Counter(name.casefold() for name in taken)
    alike = Counter(row[-1].casefold() for row in rows) + taken
    names = []
    for row in rows:
        if alike[row[-1].casefold()] == 1:
            names.append(row[-1])
            continue
        group = [other for other in rows if other[-1].casefold() == row[-1].casefold()]
        places = [i for i in range(depth) if len({other[i].casefold() for other in group}) > 1] or [depth - 1]
        # The fewest parts, from the end on, that tell all of the group apart.
        count = next(
            (n for n in range(1, len(places)) if len({tuple(o[i] for i in places[-n:]) for o in group}) == len(group)), 0
        )
        names.append("_".join(row[i] for i in places[-count:] if row[i]) or row[-1])
    again = Counter(name.casefold() for name in names) + taken
    return [f"{name}_{row[-1]}" if again[name.casefold()] > 1 and name != row[-1] else name for name, row in zip(names, rows)]


# ---------------------------------------------------------------------------------------------------------------------
# What lies beside HR images and is none
# ---------------------------------------------------------------------------------------------------------------------

# What names say, as a regular expression, and how it is told.
SAID = {
    "LR by name or folder": r"lr(?:bicubic|bic|bi|bd|dn)?(?:x?[2348])?|lq|low[ _-]?res(?:olution)?",
    "scaled by name or folder (as x2, X4)": r"x[2348](?:[mdw]\d?)?",  # DIV2K has mild, difficult and wild LR images
    "results by name or folder (as bicubic, SRCNN)": r"bicubic|bic|bilinear|nearest|lanczos\d?|f?srcnn|vdsr|drcn|lapsrn|espcn|"
    r"edsr|rcan|swinir|srresnet|(?:real[ _-]?)?e?srgan|scsr|selfexsr|glasner|a\+|anr|sr|panel|blend[ _]?\d[\d.]*",
    "HR": r"hr|gt(?:mod\d+)?|high[ _-]?res(?:olution)?",
}
LR, SCALED, RESULT = list(SAID)[:3]
SMALL_COPY = "small copies of a picture of the same name"
MADE_LR = re.compile(r"bicubic|bic|x[2348]|unknown|mild|difficult|wild", re.IGNORECASE)  # beside LR, this leaves no doubt


def what_is_said(word):
    """The key of SAID that a word stands for, or None."""
    return next((said for said, names in SAID.items() if re.fullmatch(names, word, re.IGNORECASE)), None)


MARK = re.compile(rf"(.+?)[ _.-]+[(\[]?({'|'.join(SAID.values())})[)\]]?", re.IGNORECASE)
MARK_WITHOUT_A_GAP = re.compile(r"(.+?)(x[2348](?:[mdw]\d?)?|LR|HR)")


def peeled(stem):
    """The stem of a file's name without its last 0, 1, ... marks, and the last of these: (baby_LR, ""), (baby, LR)."""
    peels = [(stem, "")]
    while found := MARK.fullmatch(peels[-1][0]) or MARK_WITHOUT_A_GAP.fullmatch(peels[-1][0]):
        peels.append((found[1], found[2]))
    return peels


def name_and_marks(stem):
    """The name of the picture in a file's name, and what follows it: baby of baby_HR, babyx4 and baby_SRCNN_x4."""
    peels = peeled(stem)
    return peels[-1][0], [what_is_said(mark) for _, mark in peels[1:]]


def first_of(marks):
    """The mark that counts of several: HR of HR_x4, LR of LR_x4 and of X4/LR; None of none."""
    return next((said for said in (LR, RESULT, "HR", SCALED) if said in marks), None)


def folder_marks(folders):
    """What the folders that a picture is in say, up to which of them, and whether that leaves no doubt."""
    found = {}
    for depth, folder in enumerate(folders, 1):
        words = re.split(r"[ _.-]+", folder)
        said = {what_is_said(word) for word in (folder, *words)}
        made_lr = any(MADE_LR.fullmatch(word) for word in words) if LR in said else False
        made_lr = made_lr or any(re.match(r"lr(?:bic|bi|bd|x)", word, re.IGNORECASE) for word in words if what_is_said(word))
        found.setdefault(first_of(said), (depth, made_lr))
    what = first_of(found)
    return what, *(found[what] if what else (0, False))


def without_marks(folders):
    """The folders that a picture is in, without what they say of LR and HR: DIV2K and train of DIV2K_train_LR_bicubic/X4."""
    rest = []
    for folder in folders:
        words = [] if what_is_said(folder) else re.split(r"[ _.-]+", folder.casefold())
        is_lr = LR in map(what_is_said, words)
        words = [word for word in words if not what_is_said(word) and not (is_lr and MADE_LR.fullmatch(word))]
        rest += [tuple(words)] if words else []
    return tuple(rest)


def size_of(path):
    """(width, height) of an image file as its head tells it; (0, 0) if it cannot be read."""
    try:
        with Image.open(path) as image:
            # Of a TIFF, newer releases of Pillow tell the size when it is turned.
            size = (image.tag_v2[256], image.tag_v2[257]) if image.format == "TIFF" else image.size
            return size if orientation_of(image) < 5 else size[::-1]
    except Exception:  # Pillow raises whatever its decoders do; reading the pixels will tell the user
        return 0, 0


class Candidate:
    """A picture, and what its name and its folders say of it."""

    def __init__(self, path, below, white=None):
        self.path, self.white = path, white
        self.stem, marks = name_and_marks(below.stem)
        self.whole_stem, self.maybe_result = below.stem, False
        said, (folder_said, depth, self.no_doubt) = first_of(marks), folder_marks(below.parts[:-1])
        self.said = None if said == "HR" else said
        self.is_hr = said == "HR" or (said is None and folder_said == "HR")
        self.by_folder = None if self.is_hr or folder_said == "HR" else folder_said
        self.folder = path.parts[: len(path.parts) - len(below.parts) + depth]  # that says so

    @functools.cached_property
    def size(self):
        return size_of(self.path)

    @functools.cached_property
    def thumbnail(self):
        """The picture in 8x8 pixels, 192 numbers; None if it cannot be read."""
        try:
            image = Image.fromarray(read_image(self.path, self.white))
            return np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR), float).ravel()
        except ImageError:
            return None

    def shows_the_same(self, other):
        (width, height), (other_width, other_height) = self.size, other.size
        if not 0.87 * width * other_height <= other_width * height <= 1.15 * width * other_height:
            return False
        a, b = self.thumbnail, other.thumbnail
        if a is None or b is None or np.abs(a - b).mean() > 5:
            return False
        return min(a.std(), b.std()) < 2 or np.corrcoef(a, b)[0, 1] > 0.95

    def is_small_copy_of(self, other):
        """Whether the other is this one times 2, 3, 4 or 8, but for a border cropped before and the way of rounding."""
        factors = (2, 3, 4, 8) if min(self.size) else ()
        fits = (all(-r < big - r * small < 12 for big, small in zip(other.size, self.size)) for r in factors)
        return any(fits) and self.shows_the_same(other)


def without_copies(below, white=None, lr_beside=False):
    """The pictures that are not made of others among them, as data sets have them side by side: LR images, results.

    `below` has for each path its place below the folder that the user gave; what that folder itself is called does not
    count. A name alone proves nothing (`bmw x4.jpg`): an HR picture of the name must be there too, and say that it is
    HR or show the same. Only a folder like LR_bicubic needs no proof; one that holds an LR image that is proved goes
    whole. Where the user says that LR images lie among the pictures (`lr_beside`), the name is enough. Returns the paths,
    a Counter of what is left out by reason, and how many stay whose names say LR, x4 or such.
    """
    candidates = [Candidate(path, place, white) for path, place in below.items()]
    hr_stems = {c.stem.casefold() for c in candidates if c.is_hr and c.stem != c.whole_stem}
    for c in candidates:  # baby_Kim beside baby_HR: the methods that have a name are countless
        start = re.sub("[ _-]+[^ _-]+$", "", c.stem)
        if c.said is None and not c.is_hr and start != c.stem and start.casefold() in hr_stems:
            c.said, c.stem, c.maybe_result = RESULT, start, True
    left_out, proved = {}, {c.folder for c in candidates if c.no_doubt}
    beside_hr = {c.folder[:-1] for c in candidates if c.is_hr}
    proved |= {c.folder for c in candidates if c.by_folder == LR and c.folder[:-1] in beside_hr}

    for c, others in with_others(candidates, lambda c: c.stem):
        is_made = c.said or c.by_folder
        plain = [other for other in others if not other.said and not other.by_folder]
        known = lr_beside and is_made in (LR, SCALED)
        if is_made and any(known or (other.is_hr and not c.maybe_result) or c.shows_the_same(other) for other in plain):
            left_out[c.path] = is_made
            if c.by_folder:
                proved.add(c.folder)
    for c in candidates:
        if c.by_folder and c.folder in proved:
            left_out[c.path] = c.by_folder
    rest = [c for c in candidates if c.path not in left_out]
    for c, others in with_others(rest, lambda c: c.whole_stem):
        if any(other.size > c.size and (other.is_hr or not c.is_hr) and c.is_small_copy_of(other) for other in others):
            left_out[c.path] = SMALL_COPY
    doubtful = sum(1 for c in rest if c.path not in left_out and (c.said or c.by_folder) and not c.maybe_result)
    return [path for path in below if path not in left_out], Counter(left_out.values()), doubtful


def with_others(candidates, name_of):
    """Each candidate that has namesakes (by `name_of`, upper or lower case), with those."""
    groups = defaultdict(list)
    for c in candidates:
        groups[name_of(c).casefold()].append(c)
    for group in groups.values():
        for c in group if len(group) > 1 else ():
            yield c, [other for other in group if other is not c]


def in_words(reasons, doubtful=0):
    """What was left out, for the line that says how many images there are, and what was not, though its name says LR."""
    words = "".join(f"; left out: {count} {reason}" for reason, count in sorted(reasons.items()))
    if doubtful:
        words += f"; taken as HR, though the names say LR, x4 or the like: {doubtful}, no HR image of theirs being there"
    return words
