"""Lists of images, training crops, test pairs, and packs of decoded pixels. Not here: degradations, downloads, CUDA calls.

The ranges, for the whole repository: LR images are in [0, 1], HR and SR images in [-1, 1], (N, 3, H, W) float32, RGB.
Pictures that are read, cropped, written or measured are uint8 arrays (H, W, 3).

Training counts samples k = 0, 1, 2, ... without end. Which image, which crop, which flip, turn and degradation sample k
has is a function of (seed, k) alone: a run that was resumed, or that has more workers or processes, sees the same samples.
"""

import functools
import os
import re
import signal
import sys
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from degradations import degrade, photo, photo_by_name
from pictures.pixels import IMAGE_SUFFIXES, crop_to_multiple, downscale, orientation_of, read_image
from utils import ImageError, UserError, read_json

CROPS_PER_IMAGE = 4  # of each JPEG that is decoded for training
WINDOW = 64  # images that are decoded together, so that the crops of one image spread over several batches
SAMPLES_PER_CHUNK = CROPS_PER_IMAGE * WINDOW  # what a worker hands over at a time
MAX_REDRAWS = 100


def training_pair(batch, scale: int, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of `train_loader` -> LR images in [0, 1], HR images in [-1, 1], channels last, on the device.

    Of HR crops (N, 3, H, W) uint8 alone the LR images are made here, by bicubic; of a pair of HR crops and LR images, all
    uint8, they are those. Without a device they stay where they are.
    """
    crops, lr_imgs = batch if isinstance(batch, tuple) else (batch, None)
    crops = crops.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    lr_imgs = degrade(crops, scale) if lr_imgs is None else lr_imgs.to(device, non_blocking=True).float().div_(255)
    return lr_imgs.contiguous(memory_format=torch.channels_last), crops.float().div_(127.5).sub_(1)


class SRDataset(Dataset):
    """Training: random HR crops, by sample number. `dataset[k]` is a uint8 array (3, crop_size, crop_size).

    Crops start anywhere in the image, are flipped left to right or not, and turned by 0 to 3 quarters. A share of them is made
    gray, and a share stretched until some of its pixels are black and some white: networks that have hardly seen gray pictures
    colour them, and those that have hardly seen white do not reach it. The pixels come
    from the pack beside the list, if `create_data_lists.py` made one; otherwise from the image files, each of which is
    decoded once for CROPS_PER_IMAGE samples. Those samples lie within one window of WINDOW images and in different
    rounds through it, so that a batch of up to WINDOW samples that starts a round has no image twice.

    An image that cannot be used when its turn comes is replaced by another one, drawn from (seed, k) too; `bad_files`
    names it. Raises UserError if no image can be used.

    With the degradation "photo" the loader's workers make the LR images too, for `scale` (see `lr_image`).
    """

    def __init__(
        self,
        list_file,
        crop_size: int,
        seed: int = 0,
        gray_share: float = 0,
        stretch_share: float = 0,
        degradation: str = "bicubic",
        scale: int = 4,
    ):
        self.paths = read_list(list_file)
        self.list_file, self.crop_size, self.seed = list_file, crop_size, seed
        self.gray_share, self.stretch_share = gray_share, stretch_share
        self.degradation, self.scale = degradation, scale
        self.pack = open_pack(list_file, self.paths)
        self.crops_per_image = CROPS_PER_IMAGE if self.pack is None else 1
        self.fingerprint = zlib.crc32("\n".join(path.name for path in self.paths).encode(errors="surrogateescape"))
        self.decoded = {}  # visit -> image, of the window last seen
        self.bad_files = []
        self._epoch = (-1, None)

    def image_number(self, visit: int) -> int:
        """Which image the visit opens: every epoch visits each image once, in an order of its own."""
        epoch, position = divmod(visit, len(self.paths))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.paths)))
        return int(self._epoch[1][position])

    def visit_of(self, k: int) -> int:
        """Which visit sample k is cut from."""
        if self.crops_per_image == 1:
            return k
        window, place = divmod(k, self.crops_per_image * WINDOW)
        turn, slot = divmod(place, WINDOW)
        return window * WINDOW + int(round_order(self.seed, window, turn)[slot])

    def read(self, number: int) -> np.ndarray:
        """Image `number` of the list, (H, W, 3) uint8, if a crop can be cut from it. Raises ImageError otherwise."""
        image = self.pack[number] if self.pack is not None else read_image(self.paths[number])
        if min(image.shape[:2]) < self.crop_size:
            raise ImageError(f"{self.paths[number]}: smaller than the crop of {self.crop_size} pixels")
        return image

    def image(self, visit: int) -> np.ndarray:
        if visit in self.decoded:
            return self.decoded[visit]
        number = self.image_number(visit)
        redraw = None
        for _ in range(MAX_REDRAWS):
            try:
                image = self.read(number)
                break
            except ImageError as error:
                self.bad_files.append(str(error))
                redraw = redraw or np.random.default_rng([self.seed, 2, visit])
                number = int(redraw.integers(len(self.paths)))
        else:
            raise UserError(f"{self.list_file}: no image can be used; the last one: {self.bad_files[-1]}")
        if self.crops_per_image > 1:
            if len(self.decoded) >= 2 * WINDOW:
                self.decoded.clear()
            self.decoded[visit] = image
        return image

    def __getitem__(self, k: int) -> np.ndarray:
        image, size = self.image(self.visit_of(k)), self.crop_size
        rng = np.random.default_rng([self.seed, 3, k])
        top = rng.integers(image.shape[0] - size + 1)
        left = rng.integers(image.shape[1] - size + 1)
        crop = image[top : top + size, left : left + size]
        if rng.integers(2):
            crop = crop[:, ::-1]
        crop = np.rot90(crop, rng.integers(4))
        if self.gray_share and rng.random() < self.gray_share:
            crop = gray(crop)
        if self.stretch_share and rng.random() < self.stretch_share:
            crop = stretched(crop, *rng.uniform(0, 10, size=2))
        return crop.transpose(2, 0, 1)

    def lr_image(self, k: int, crop: np.ndarray) -> np.ndarray:
        """The LR image of sample k as `photo` makes it of the crop: uint8 (3, crop_size / scale, crop_size / scale)."""
        crop = np.ascontiguousarray(crop.transpose(1, 2, 0))
        return photo(crop, self.scale, np.random.default_rng([self.seed, 10, k])).transpose(2, 0, 1)

    def __getitems__(self, ks):
        """A chunk of samples as one tensor (len(ks), 3, crop_size, crop_size), and the files found bad on the way.

        With the degradation "photo" it is a pair of tensors, the crops and the LR images. A UserError comes in place of
        the tensor: raised in a worker it would arrive as a page of traceback.
        """
        self.bad_files = []
        try:
            crops = [self[k] for k in ks]
        except UserError as error:
            return error, self.bad_files
        chunk = torch.from_numpy(np.stack(crops))
        if self.degradation == "photo":
            lr_imgs = np.stack([self.lr_image(k, crop) for k, crop in zip(ks, crops, strict=True)])
            chunk = chunk, torch.from_numpy(lr_imgs)
        return chunk, self.bad_files


def gray(crop):
    """The crop (H, W, 3) uint8 with Y of BT.601 in all three channels."""
    y = np.rint(crop @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return np.repeat(y[..., None], 3, axis=2)


def stretched(crop, below, above):
    """The crop (H, W, 3) uint8 with its levels stretched, so that `below` % of its values are 0 and `above` % are 255."""
    low, high = np.percentile(crop[::4, ::4], [below, 100 - above])  # a sixteenth of the pixels is enough
    levels = (np.arange(256) - low) * (255 / max(1, high - low))
    return np.rint(levels.clip(0, 255)).astype(np.uint8)[crop]


@functools.lru_cache(maxsize=2 * CROPS_PER_IMAGE)
def round_order(seed, window, turn):
    """The order in which round `turn` through a window takes its images."""
    return np.random.default_rng([seed, 4, window, turn]).permutation(WINDOW)


def train_loader(dataset, batch_size, start=0, steps=None, rank=0, world_size=1, workers=0, pin_memory=False):
    """Batches of HR crops for the steps start + 1, start + 2, ..., `steps`, as (batch, bad files) pairs.

    A batch is (batch_size / world_size, 3, crop, crop) uint8: of the samples of its step, those of this rank. With the
    degradation "photo" it is a pair, of these and of their LR images. Workers make the samples of many steps at a time,
    because those share decoded images.
    """
    share = batch_size // world_size
    steps_per_chunk = max(1, SAMPLES_PER_CHUNK // batch_size)

    def samples(step):
        return range(step * batch_size + rank * share, step * batch_size + (rank + 1) * share)

    def chunks():
        step = start
        while steps is None or step < steps:
            # Chunks begin at the same steps whatever step the run started from, so workers share out whole windows
            # of images (if the batch size divides SAMPLES_PER_CHUNK).
            stop = step - step % steps_per_chunk + steps_per_chunk
            stop = stop if steps is None else min(stop, steps)
            yield [k for s in range(step, stop) for k in samples(s)]
            step = stop

    loader = DataLoader(
        dataset,
        batch_sampler=chunks(),
        collate_fn=as_it_is,
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=pin_memory,
        prefetch_factor=2 if workers else None,
    )
    for chunk, bad_files in loader:
        if isinstance(chunk, UserError):
            raise chunk
        batches = chunk.split(share) if torch.is_tensor(chunk) else zip(*(part.split(share) for part in chunk))
        for batch in batches:
            yield batch, bad_files
            bad_files = []


def as_it_is(chunk):
    """The collate function (a lambda could not be sent to the workers of Windows and macOS)."""
    return chunk


def leave_signals_to_parent(worker):
    """Ctrl-C reaches the workers too, and the parent wants their batches until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class TestPairs(Dataset):
    """Whole images to measure on: item i is (name, LR array (h, w, 3), HR array (scale*h, scale*w, 3)), uint8.

    HR images are cropped at the bottom and right to a multiple of `scale`; LR images are made by Pillow's bicubic or, for
    the degradation "photo", as the image's name fixes it; or read from `lr_folder`, where they have the same name. Raises
    ImageError for an image that cannot be used.
    """

    __test__ = False  # not a test class, whatever pytest thinks

    def __init__(self, paths, scale: int, lr_folder=None, degradation: str = "bicubic"):
        self.paths, self.scale, self.lr_folder = [Path(path) for path in paths], scale, lr_folder
        self.degradation = degradation
        self.below = places_below([path.absolute() for path in self.paths])
        stems = Counter(path.stem for path in self.paths)
        self.names = [
            path.stem if stems[path.stem] == 1 else "_".join(below.parts) for path, below in zip(self.paths, self.below)
        ]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        path = self.paths[i]
        hr_img = crop_to_multiple(read_image(path), self.scale, path)
        if min(hr_img.shape[:2]) < 2 * self.scale + 11:
            raise ImageError(f"{path}: too small to measure: SSIM needs 11 pixels within a border of {self.scale}")
        if self.lr_folder is None:
            photographed = self.degradation == "photo"
            lr_img = photo_by_name(hr_img, self.scale, path.stem) if photographed else downscale(hr_img, self.scale)
            return self.names[i], lr_img, hr_img
        lr_path = Path(self.lr_folder) / self.below[i]
        lr_img = read_image(lr_path)
        if (lr_img.shape[0] * self.scale, lr_img.shape[1] * self.scale) != hr_img.shape[:2]:
            raise ImageError(f"{lr_path}: its size times {self.scale} is not that of {path}")
        return self.names[i], lr_img, hr_img


def places_below(paths) -> list[Path]:
    """The place of each absolute path below the folder that all are in: for those of one folder, the name of the file.

    Where they are on several drives, as Windows has them, the place begins with the letter of the drive.
    """
    shared = len(os.path.commonprefix([path.parent.parts for path in paths]))
    drives = [re.sub(r"\W+", "_", path.drive).strip("_") for path in paths]
    return [Path(*path.parts[shared:]) if shared else Path(drive, *path.parts[1:]) for path, drive in zip(paths, drives)]


class Pack:
    """The decoded pixels of a list of images in one memory-mapped file, made by `create_data_lists.py`.

    `pack[number]` is a read-only view (H, W, 3) uint8; the operating system shares it between the workers and keeps in
    memory what fits.
    """

    def __init__(self, pixels_file, shapes):
        self.pixels = np.memmap(pixels_file, np.uint8, mode="r")
        self.shapes = shapes
        self.offsets = np.cumsum([0] + [height * width * 3 for height, width in shapes])

    def __reduce__(self):  # a worker that is no fork of this process opens the file itself, in place of getting its pixels
        return Pack, (self.pixels.filename, self.shapes)

    def __getitem__(self, number):
        height, width = self.shapes[number]
        return self.pixels[self.offsets[number] : self.offsets[number + 1]].reshape(height, width, 3)


def pack_files(list_file) -> tuple[Path, Path]:
    """Where the pack of a list is: its index (JSON) and its pixels."""
    return Path(list_file).with_suffix(".pack.json"), Path(list_file).with_suffix(".pack")


def open_pack(list_file, paths) -> Pack | None:
    """The pack of a list, or None where there is none. Raises UserError for a pack of another list."""
    index_file, pixels_file = pack_files(list_file)
    if not index_file.exists():
        return None
    index = read_json(index_file)
    sizes = [3 * height * width for height, width in index["shapes"]]
    if index["images"] != read_json(list_file) or len(sizes) != len(paths):
        raise UserError(f"{pixels_file} belongs to another list: make both anew with create_data_lists.py")
    if not pixels_file.exists() or pixels_file.stat().st_size != sum(sizes):
        raise UserError(f"{pixels_file} is not whole: make it anew with create_data_lists.py")
    return Pack(pixels_file, index["shapes"])


def read_list(list_file) -> list[Path]:
    """The paths in a list of create_data_lists.py. Raises UserError for a list that is missing, empty, or none."""
    list_file = Path(list_file)
    try:
        names = read_json(list_file)
        if not isinstance(names, list):
            raise ValueError
        paths = [list_file.parent / name for name in names]
    except FileNotFoundError:
        raise UserError(f"{list_file}: no such list; make it with create_data_lists.py") from None
    except (OSError, ValueError, TypeError):
        raise UserError(f"{list_file}: not a list of images; make it anew with create_data_lists.py") from None
    if not paths and list_file.name == "validation_images.json":  # as --validation-images 0 makes it
        way_on = "give --validate-on FOLDER, or make the lists anew with create_data_lists.py --validation-images 20"
        raise UserError(f"{list_file}: the list is empty, so there is nothing to validate on; {way_on}")
    if not paths:
        raise UserError(f"{list_file}: the list is empty; make it anew with create_data_lists.py")
    return paths


def test_images(name, data_folder="data"):
    """The paths of a test set: the images of a folder, or a list in the data folder: `Set5` is Set5_test_images.json.

    Of a folder, LR images and results beside their HR images are left out, and counted on stderr (see `without_copies`).
    Raises UserError where there is neither, or no image in it.
    """
    folder = Path(name)
    if folder.is_dir():
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise UserError(f"{folder}: no images in this folder (known endings: {' '.join(sorted(IMAGE_SUFFIXES))})")
        paths, reasons, doubtful = without_copies({path: Path(path.name) for path in paths})
        if (reasons or doubtful) and os.environ.get("RANK", "0") == "0":
            print(f"{folder}: {len(paths)} images{in_words(reasons, doubtful)}", file=sys.stderr)
        return paths
    lists = [Path(data_folder) / f"{name}{ending}" for ending in ("_images.json", "_test_images.json")]
    found = next((path for path in [folder, *lists] if path.suffix == ".json" and path.is_file()), None)
    if found is None:
        raise UserError(f"{name}: no folder of images, and no list {lists[0]} or {lists[1].name}")
    return read_list(found)


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


def name_and_marks(stem):
    """The name of the picture in a file's name, and what follows it: baby of baby_HR, babyx4 and baby_SRCNN_x4."""
    marks = []
    while True:
        found = MARK.fullmatch(stem) or MARK_WITHOUT_A_GAP.fullmatch(stem)
        if not found:
            return stem, marks
        stem = found[1]
        marks.append(what_is_said(found[2]))


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


class Candidate:
    """A picture, and what its name and its folders say of it."""

    def __init__(self, path, below):
        self.path = path
        self.stem, marks = name_and_marks(below.stem)
        self.whole_stem, self.maybe_result = below.stem, False
        said, (folder_said, depth, self.no_doubt) = first_of(marks), folder_marks(below.parts[:-1])
        self.said = None if said == "HR" else said
        self.is_hr = said == "HR" or (said is None and folder_said == "HR")
        self.by_folder = None if self.is_hr or folder_said == "HR" else folder_said
        self.folder = path.parts[: len(path.parts) - len(below.parts) + depth]  # that says so

    @functools.cached_property
    def size(self):
        """(width, height), of the file's head; (0, 0) if it cannot be read."""
        try:
            with Image.open(self.path) as image:
                return image.size if orientation_of(image) < 5 else image.size[::-1]
        except Exception:  # Pillow raises whatever its decoders do; reading the pixels will tell the user
            return 0, 0

    @functools.cached_property
    def thumbnail(self):
        """The picture in 8x8 pixels, 192 numbers; None if it cannot be read."""
        try:
            return np.asarray(Image.fromarray(read_image(self.path)).resize((8, 8), Image.Resampling.BILINEAR), float).ravel()
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


def without_copies(below):
    """The pictures that are not made of others among them, as data sets have them side by side: LR images, results.

    `below` has for each path its place below the folder that the user gave; what that folder itself is called does not
    count. A name alone proves nothing (`bmw x4.jpg`): an HR picture of the name must be there too, and say that it is
    HR or show the same. Only a folder like LR_bicubic needs no proof; one that holds an LR image that is proved goes
    whole. Returns the paths, a Counter of what is left out by reason, and how many stay whose names say LR, x4 or such.
    """
    candidates = [Candidate(path, place) for path, place in below.items()]
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
        if is_made and any((other.is_hr and not c.maybe_result) or c.shows_the_same(other) for other in plain):
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
