"""Training crops, test pairs, and packs of decoded pixels. Not here: lists of images, degradations, downloads, CUDA calls.

The ranges, for the whole repository: LR images are in [0, 1], HR and SR images in [-1, 1], (N, 3, H, W) float32, RGB.
Pictures that are read, cropped, written or measured are uint8 arrays (H, W, 3).

Training counts samples k = 0, 1, 2, ... without end. Which image, which crop, which flip, turn and degradation sample k
has is a function of (seed, k) alone: a run that was resumed, or that has more workers or processes, sees the same samples.
"""

import functools
import os
import re
import signal
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import DataLoader, Dataset

from degradations import degrade, photo, photo_by_name
from image_lists import ImageList, content_of, read_list
from image_lists import size_of as size_in_head
from pairs import LRFolder, check_sizes
from pictures.pixels import crop_to_multiple, downscale, read_image
from utils import ImageError, UserError, read_json

CROPS_PER_IMAGE = 4  # of each JPEG that is decoded for training
WINDOW = 64  # images that are decoded together, so that the crops of one image spread over several batches
SAMPLES_PER_CHUNK = CROPS_PER_IMAGE * WINDOW  # what a worker hands over at a time
MAX_REDRAWS = 1000  # images, so that lists of which one in a hundred is of use will do


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
    gray, a share stretched until some of its pixels are black and some white, a share one flat colour, and a share drawn (see
    `drawing`): networks that have hardly seen gray pictures colour them, those that have hardly seen white do not reach it,
    those that have seen no page of one colour give it a rim, since beyond its edges their layers see zeros, and those that have
    seen no thin lines on flat ground, of which photographs have few, draw dots beside them.

    The pixels come from the pack beside the list, if `create_data_lists.py` made one; otherwise from the image files, each of
    which is decoded once for CROPS_PER_IMAGE samples. Those samples lie within one window of WINDOW images and in different
    rounds through it, so that a batch of up to WINDOW samples that starts a round has no image twice.

    An image that cannot be used when its turn comes is replaced by another one, drawn from (seed, k) too; `bad_files`
    names it. Raises UserError if no image can be used, of MAX_REDRAWS at most.

    With the degradation "photo" the loader's workers make the LR images too, for `scale` (see `lr_image`). If the list has
    LR images, `dataset[k]` is a pair of arrays, of which the second, (3, crop_size / scale, crop_size / scale), is the same
    part of the LR image, and HR crops start at multiples of `scale`. Raises UserError for a list of another scale, and for a
    share that is to be drawn, of which there is no LR image.
    """

    def __init__(
        self,
        list_file,
        crop_size: int,
        seed: int = 0,
        gray_share: float = 0,
        stretch_share: float = 0,
        flat_share: float = 0,
        drawn_share: float = 0,
        degradation: str = "bicubic",
        scale: int = 4,
    ):
        self.paths = read_list(list_file)
        self.list_file, self.crop_size, self.seed = list_file, crop_size, seed
        self.gray_share, self.stretch_share, self.flat_share = gray_share, stretch_share, flat_share
        self.drawn_share = drawn_share
        self.degradation, self.scale = degradation, scale
        self.paths.check_lr_images(scale, degradation)
        if drawn_share and self.paths.lr_images:
            raise UserError(f"{list_file}: its LR images are given, and of a drawing there would be none; give --drawn-share 0")
        self.pack = open_pack(list_file)
        self.crops_per_image = CROPS_PER_IMAGE if self.pack is None else 1
        shapes = self.pack.shapes[: len(self.paths)] if self.pack is not None else []  # of files they are not known yet
        self.too_small = sum(min(shape) < crop_size for shape in shapes)
        given = self.paths.lr_images or []
        facts = [path.name for path in [*self.paths, *given]] + [f"white {self.paths.white}"] * bool(self.paths.white)
        self.fingerprint = zlib.crc32("\n".join(facts).encode(errors="surrogateescape"))
        # A pack changes the order of the samples, and holds the files as they were when it was made.
        content = [self.pack.shapes, self.pack.file_sizes] if self.pack is not None else file_sizes([*self.paths, *given])
        self.content = zlib.crc32(repr(content).encode())
        self.decoded = {}  # visit -> image, of the window last seen
        self.bad_files = []
        self._epoch = (-1, None)

    def image_number(self, visit: int) -> int:
        """Which image the visit opens: every epoch visits each image once, in an order of its own."""
        epoch, position = divmod(visit, len(self.paths))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.paths)))
        return int(self._epoch[1][position])

    def image_numbers(self, visit: int):
        """Yield it, and then, each but once, those to take in its place, of which the first that can be used is taken."""
        yield self.image_number(visit)
        yield from np.random.default_rng([self.seed, 2, visit]).permutation(len(self.paths))[:MAX_REDRAWS].tolist()

    def visit_of(self, k: int) -> int:
        """Which visit sample k is cut from."""
        if self.crops_per_image == 1:
            return k
        window, place = divmod(k, self.crops_per_image * WINDOW)
        turn, slot = divmod(place, WINDOW)
        return window * WINDOW + int(round_order(self.seed, window, turn)[slot])

    def read(self, number: int) -> np.ndarray:
        """Image `number` of the list, (H, W, 3) uint8, if a crop can be cut from it. Raises ImageError otherwise."""
        image = self.pack[number] if self.pack is not None else read_image(self.paths[number], self.paths.white)
        if min(image.shape[:2]) < self.crop_size:
            raise ImageError(f"{self.paths[number]}: smaller than the crop of {self.crop_size} pixels")
        return image

    def read_lr_image(self, number: int, hr_img: np.ndarray) -> np.ndarray:
        """The given LR image of image `number` of the list. Raises ImageError if it cannot be used."""
        path = self.paths.lr_images[number]
        image = self.pack[len(self.paths) + number] if self.pack is not None else read_image(path, self.paths.white)
        check_sizes(self.paths[number], size_of(hr_img), path, size_of(image), self.scale)
        return image

    def images(self, visit: int) -> list[np.ndarray]:
        if visit in self.decoded:
            return self.decoded[visit]
        for number in self.image_numbers(visit):
            try:
                images = [self.read(number)]
                if self.paths.lr_images:
                    images.append(self.read_lr_image(number, images[0]))
                break
            except ImageError as error:
                self.bad_files.append(str(error))
        else:
            tried = "no image" if len(self.paths) <= MAX_REDRAWS else f"none of {MAX_REDRAWS} images"
            raise UserError(f"{self.list_file}: {tried} can be used; the last one: {self.bad_files[-1]}")
        if self.crops_per_image > 1:
            if len(self.decoded) >= 2 * WINDOW:
                self.decoded.clear()
            self.decoded[visit] = images
        return images

    def __getitem__(self, k: int) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        crops = self.crops(k)
        return crops[0] if len(crops) == 1 else tuple(crops)

    def crops(self, k: int) -> list[np.ndarray]:
        """Sample k: the HR crop and, if LR images are given, that of the LR image, each (3, side, side) uint8."""
        images, side, rng = self.images(self.visit_of(k)), self.crop_size, np.random.default_rng([self.seed, 3, k])
        unit = self.scale if len(images) > 1 else 1  # LR images are not cut within their pixels
        height, width = images[0].shape[:2]
        top, left = rng.integers((height - side) // unit + 1), rng.integers((width - side) // unit + 1)
        flip, turns = rng.integers(2), rng.integers(4)
        if unit == 1:
            crops = [view(images[0], top, left, side, flip, turns)]
        else:
            crops = [view(images[0], unit * top, unit * left, side, flip, turns)]
            crops.append(view(images[1], top, left, side // unit, flip, turns))
        if self.gray_share and rng.random() < self.gray_share:
            crops = [gray(crop) for crop in crops]
        if self.stretch_share and rng.random() < self.stretch_share:
            limits = rng.uniform(0, 10, size=2)
            crops = [stretched(crop, *limits, of=crops[0]) for crop in crops]
        if self.flat_share and rng.random() < self.flat_share:
            colour = flat_colour(rng)
            crops = [np.broadcast_to(colour, crop.shape) for crop in crops]
        if self.drawn_share and rng.random() < self.drawn_share:
            crops = [drawing(rng, side)]
        return [crop.transpose(2, 0, 1) for crop in crops]

    def lr_image(self, k: int, crop: np.ndarray) -> np.ndarray:
        """The LR image of sample k as `photo` makes it of the crop: uint8 (3, crop_size / scale, crop_size / scale)."""
        crop = np.ascontiguousarray(crop.transpose(1, 2, 0))
        return photo(crop, self.scale, np.random.default_rng([self.seed, 10, k])).transpose(2, 0, 1)

    def __getitems__(self, ks):
        """A chunk of samples as one tensor (len(ks), 3, crop_size, crop_size), and the files found bad on the way.

        With given LR images, or the degradation "photo", it is a pair of tensors, the crops and the LR images. A UserError
        comes in place of the tensor: raised in a worker it would arrive as a page of traceback.
        """
        self.bad_files = []
        try:
            samples = [self.crops(k) for k in ks]
        except UserError as error:
            return error, self.bad_files
        if self.degradation == "photo":
            samples = [[crop, self.lr_image(k, crop)] for k, [crop] in zip(ks, samples, strict=True)]
        parts = tuple(torch.from_numpy(np.stack(part)) for part in zip(*samples))
        return parts if len(parts) > 1 else parts[0], self.bad_files


def view(image, top, left, side, flip, turns):
    """The square of an image (H, W, 3) that begins there, flipped left to right or not, and turned by so many quarters."""
    crop = image[top : top + side, left : left + side]
    return np.rot90(crop[:, ::-1] if flip else crop, turns)


def size_of(image):
    """(width, height) of an image (H, W, 3)."""
    return image.shape[1::-1]


def gray(crop):
    """The crop (H, W, 3) uint8 with Y of BT.601 in all three channels."""
    y = np.rint(crop @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return np.repeat(y[..., None], 3, axis=2)


def stretched(crop, below, above, of=None):
    """The crop (H, W, 3) uint8 with its levels stretched, so that `below` % of its values are 0 and `above` % are 255.

    Or of the values of another crop, `of`, with which it is to agree.
    """
    of = crop if of is None else of
    low, high = np.percentile(of[::4, ::4], [below, 100 - above])  # a sixteenth of the pixels is enough
    levels = (np.arange(256) - low) * (255 / max(1, high - low))
    return np.rint(levels.clip(0, 255)).astype(np.uint8)[crop]


def flat_colour(rng):
    """Black, white, a gray or any colour, as likely as each other: (3,) uint8."""
    kind, levels = rng.integers(4), rng.integers(256, size=3, dtype=np.uint8)
    return [np.uint8([0, 0, 0]), np.uint8([255, 255, 255]), levels[[0, 0, 0]], levels][kind]


def drawing(rng, side, finer=3):
    """A crop (side, side, 3) uint8 of thin lines on flat ground: a wall of bricks, or lines and ellipses at random.

    Drawn `finer` times as large and averaged, so that lines may lie anywhere between pixels. Lines are .7 to 4 pixels wide,
    bricks 6 to 28 high and 12 to 72 long, half of the drawings or more are gray, and half are as soft as a photograph.
    """
    size, contrast = finer * side, rng.uniform(0.2, 1)
    ground = other = np.float64(flat_colour(rng))
    while np.array_equal(ground, other):
        other = np.float64(flat_colour(rng))
    ground, ink = (tuple(map(int, colour)) for colour in (ground, ground + contrast * (other - ground)))
    image = Image.new("RGB", (2 * size, 2 * size), ground)  # twice as large as needed, to be turned
    draw, width = ImageDraw.Draw(image), round(finer * rng.uniform(0.7, 4))
    if rng.random() < 0.5:
        height, length = (int(finer * value) for value in rng.uniform((6, 12), (28, 72)))
        shift = rng.choice([0, length // 2])
        for row, top in enumerate(range(0, 2 * size, height)):
            draw.line([0, top, 2 * size, top], ink, width)
            for left in range(row % 2 * shift, 2 * size, length):
                draw.line([left, top, left, top + height], ink, width)
    else:
        for corners in rng.integers(0, 2 * size, (40, 4)):
            if rng.random() < 0.8:
                draw.line(corners.tolist(), ink, width)
            else:
                left, right, top, bottom = (*sorted(corners[::2]), *sorted(corners[1::2]))
                draw.ellipse([left, top, right, bottom], None, ink, width)
    angle = rng.choice([0, 90]) + rng.normal(0, 4) if rng.random() < 0.7 else rng.uniform(0, 180)
    image = image.rotate(angle, Image.Resampling.BILINEAR)
    image = image.crop([size // 2, size // 2, size // 2 + size, size // 2 + size]).reduce(finer)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.choice([0, rng.uniform(0, 1.2)]))))
    return np.rint(np.asarray(image) + grain(rng, side)).clip(0, 255).astype(np.uint8)


def grain(rng, side):
    """What to add to the levels of a drawing, (side, side, 1): in two of three, spots of 1 to 6 pixels, up to 2.5 levels rms.

    Since LR images show the larger ones, a network has to learn that they are no texture.
    """
    spots = rng.normal(0, 1, [max(2, round(side / rng.choice([1, rng.uniform(1, 6)])))] * 2)
    spots = np.asarray(Image.fromarray(spots.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
    return (spots / spots.std())[..., None] * rng.uniform(0, 2.5) * rng.choice([0, 1, 1])


@functools.lru_cache(maxsize=2 * CROPS_PER_IMAGE)
def round_order(seed, window, turn):
    """The order in which round `turn` through a window takes its images."""
    return np.random.default_rng([seed, 4, window, turn]).permutation(WINDOW)


def train_loader(dataset, batch_size, start=0, steps=None, rank=0, world_size=1, workers=0, pin_memory=False):
    """Batches of HR crops for the steps start + 1, start + 2, ..., `steps`, as (batch, bad files) pairs.

    A batch is (batch_size / world_size, 3, crop, crop) uint8: of the samples of its step, those of this rank. With given LR
    images, or the degradation "photo", it is a pair, of these and of their LR images. Workers make the samples of many
    steps at a time, because those share decoded images.
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
    the degradation "photo", as the image's name fixes it; or read from `lr_folder`, where they have the same name or one
    of an LR image (see pairs.pair); or they are those of the list. Raises UserError for a list with LR images of another
    scale, and ImageError for an image that cannot be used.
    """

    __test__ = False  # not a test class, whatever pytest thinks

    def __init__(self, paths, scale: int, lr_folder=None, degradation: str = "bicubic"):
        paths = paths if isinstance(paths, ImageList) else ImageList(map(Path, paths))
        self.paths, self.scale, self.degradation, self.white = list(paths), scale, degradation, paths.white
        self.below = places_below([path.absolute() for path in self.paths])
        self.lr_folder, self.lr_images = None, None
        if lr_folder:
            self.lr_folder = LRFolder(lr_folder, dict(zip(self.paths, self.below)), scale)
        else:
            paths.check_lr_images(scale, degradation)
            self.lr_images = paths.lr_images
        self.content = zlib.crc32(repr([[path.name for path in self.paths], file_sizes(self.paths)]).encode())
        stems, names = Counter(path.stem for path in self.paths), {}
        for path, below in zip(self.paths, self.below):
            name = path.stem if stems[path.stem] == 1 else "_".join(below.parts)
            while name in names:  # x_y/a.png beside x/y/a.png
                name += "_"
            names[name] = path
        self.names = list(names)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        path = self.paths[i]
        hr_img = crop_to_multiple(read_image(path, self.white), self.scale, path)
        if min(hr_img.shape[:2]) < 2 * self.scale + 11:
            raise ImageError(f"{path}: too small to measure: SSIM needs 11 pixels within a border of {self.scale}")
        lr_path = self.given_lr_image(i)
        if lr_path is None:
            photographed = self.degradation == "photo"
            lr_img = photo_by_name(hr_img, self.scale, path.stem) if photographed else downscale(hr_img, self.scale)
            return self.names[i], lr_img, hr_img
        lr_img = read_image(lr_path, self.white)
        check_sizes(path, size_of(hr_img), lr_path, size_of(lr_img), self.scale)
        return self.names[i], lr_img, hr_img

    def given_lr_image(self, i):
        """The path of the LR image of HR image i, None if none are given. Raises ImageError if it is missing, or not clear."""
        if self.lr_folder is not None:
            return self.lr_folder.image_of(self.paths[i])
        return self.lr_images[i] if self.lr_images else None

    def check_given(self):
        """Raises ImageError for the first given LR image that is missing, not clear, or of another size by the file's head."""
        for i, path in enumerate(self.paths):
            lr_path = self.given_lr_image(i)
            sizes = [] if lr_path is None else [size_in_head(path), size_in_head(lr_path)]
            if all(map(min, sizes)) and sizes:  # what cannot be read is told later
                check_sizes(path, sizes[0], lr_path, sizes[1], self.scale)


def places_below(paths) -> list[Path]:
    """The place of each absolute path below the folder that all are in: for those of one folder, the name of the file.

    Where they are on several drives, as Windows has them, the place begins with the letter of the drive.
    """
    shared = len(os.path.commonprefix([path.parent.parts for path in paths]))
    drives = [re.sub(r"\W+", "_", path.drive).strip("_") for path in paths]
    return [Path(*path.parts[shared:]) if shared else Path(drive, *path.parts[1:]) for path, drive in zip(paths, drives)]


class Pack:
    """The decoded pixels of a list of images in one memory-mapped file, made by `create_data_lists.py`.

    `pack[number]` is a read-only view (H, W, 3) uint8; given LR images come after all HR images. The operating system
    shares it between the workers and keeps in memory what fits. `file_sizes` are those of the images, in bytes.
    """

    def __init__(self, pixels_file, shapes, file_sizes=()):
        self.pixels = np.memmap(pixels_file, np.uint8, mode="r")
        self.shapes, self.file_sizes = shapes, file_sizes
        self.offsets = np.cumsum([0] + [height * width * 3 for height, width in shapes])

    def __reduce__(self):  # a worker that is no fork of this process opens the file itself, in place of getting its pixels
        return Pack, (self.pixels.filename, self.shapes, self.file_sizes)

    def __getitem__(self, number):
        height, width = self.shapes[number]
        return self.pixels[self.offsets[number] : self.offsets[number + 1]].reshape(height, width, 3)


def file_sizes(paths) -> list:
    """The size of each file in bytes, None for one that is not there."""
    return [path.stat().st_size if path.is_file() else None for path in map(Path, paths)]


def pack_files(list_file) -> tuple[Path, Path]:
    """Where the pack of a list is: its index (JSON) and its pixels."""
    return Path(list_file).with_suffix(".pack.json"), Path(list_file).with_suffix(".pack")


def open_pack(list_file) -> Pack | None:
    """The pack of a list, or None where there is none. Raises UserError for a pack of another list, or of other images."""
    index_file, pixels_file = pack_files(list_file)
    if not index_file.exists():
        return None
    index = read_json(index_file)
    sizes = [3 * height * width for height, width in index["shapes"]]
    content = content_of(list_file)
    names = content["images"] + content.get("lr_images", [])
    if index["images"] != names or index.get("white") != content.get("white") or len(sizes) != len(names):
        raise UserError(f"{pixels_file} belongs to another list: make both anew with create_data_lists.py")
    if not pixels_file.exists() or pixels_file.stat().st_size != sum(sizes):
        raise UserError(f"{pixels_file} is not whole: make it anew with create_data_lists.py")
    packed = index.get("file_sizes", [])  # versions before wrote none; and the files may be gone by now
    paths = [Path(list_file).parent / name for name in names]
    for path, before, now in zip(paths, packed, file_sizes(paths)):
        if now not in (None, before):
            raise UserError(f"{pixels_file} is older than {path}: make it anew with create_data_lists.py")
    return Pack(pixels_file, index["shapes"], packed)
