"""Make the lists of images that training and evaluation read, out of folders of images.

    python create_data_lists.py --train-folders train2014 val2014 --test-folders Set5 Set14 BSD100

writes data/train_images.json, data/validation_images.json (some of the training images, held out by a seed), and
data/<Folder>_test_images.json for each test folder. A list is a sorted JSON array of paths relative to the list
file, or of whole paths to another drive.
Files that are no readable image or too small are left out and counted, and so are LR images and results that lie beside
their HR images, as in many data sets; to take such a folder all the same, give it itself, not the one above it.
--white is for data of 12 bits, say, in files of 16 that declare no range, as microscopes and satellites write them: the
lists keep it, and whatever reads them goes by it.
If the training images are few enough, their pixels are decoded once into a pack, data/train_images.pack, from which
training reads its crops many times faster.
"""

from collections import Counter
from pathlib import Path

from utils import ArgumentParser, number, user_errors


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--train-folders", type=Path, nargs="+", default=[], metavar="DIR", help="folders of training images")
    add(
        "--test-folders",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of test images, one list each, called as the folder, or NAME by NAME=DIR",
    )
    add("--output-folder", type=Path, default=Path("data"), metavar="DIR", help="where the lists go")
    add("--validation-images", type=number(int, 0), default=20, metavar="N", help="training images to hold out")
    add("--min-size", type=number(int, 1), default=96, metavar="PIXELS", help="least width and height of a training image")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="chooses the validation images")
    add("--no-recursive", action="store_true", help="leave out the folders within the folders")
    add(
        "--white",
        type=number(int, 1, 65535),
        metavar="LEVEL",
        help="what is white in 16-bit files that use less of their range, as 4095; kept in the lists",
    )
    add("--pack", choices=("auto", "on", "off"), default="auto", help="decode the training images into a pack")
    add("--pack-limit", type=number(float, 0), default=8, metavar="GB", help="largest pack that auto makes, at 3 bytes a pixel")
    args = parser.parse_args()
    if not args.train_folders and not args.test_folders:
        parser.error("give --train-folders or --test-folders")
    return args


if __name__ == "__main__":
    args = parse_arguments()

import json
import os
import random
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from datasets import pack_files
from image_lists import in_words, named_sets, on_16_bits, without_copies
from pictures.pixels import IMAGE_SUFFIXES, highest_of_16_bits, read_image
from utils import ImageError, UserError, atomic_write, write_text


def find_images(folder, recursive=True):
    """The files with the ending of an image below `folder`, sorted, and how many others there are."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files, others, seen = [], 0, set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link may lead back to a folder that it lies in
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders.sort()
        if not recursive:
            folders.clear()
        for name in sorted(names):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                files.append(Path(parent) / name)
            else:
                others += 1
    return files, others


def by_all_cores(function, items, label):
    """function(item) of each item, in their order, while others are computed; with a bar. (Pillow decodes beside Python.)"""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = deque()
    with ThreadPoolExecutor(cores) as pool, tqdm(total=len(items), desc=label, unit="image", disable=None) as bar:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * cores:  # no more, since results may be whole pictures
                yield waiting.popleft().result()
                bar.update()
        while waiting:
            yield waiting.popleft().result()
            bar.update()


def check_images(files, min_size, label, white=None):
    """The files that are readable images of at least `min_size` pixels each way, with their sizes, and why others are not.

    Says how many of them are nearly black, as 12 bits in a file of 16 are that does not declare its range; and how many
    have values above `white`.
    """

    def look_at(path):
        try:
            image = read_image(path, white)
            dark = image.max() < 32
            return image.shape[:2], dark, highest_of_16_bits(path) if dark or white else None
        except ImageError:
            return None

    good, reasons, dark, highest = {}, Counter(), [], {}
    for path, seen in zip(files, by_all_cores(look_at, files, label)):
        if seen is None:
            reasons["not a readable image"] += 1
        elif min(seen[0]) < min_size:
            reasons[f"under {min_size} pixels"] += 1
        else:
            good[path], is_dark, highest[path] = seen
            dark += [path] if is_dark else []
    if dark:
        print(f"{label}: {len(dark)} images are nearly black, with no value over 31 of 255, such as {dark[0]}")
    told = on_16_bits(highest, white)
    if told:
        print(f"{label}: {told}")
    return good, reasons


def collect(folders, min_size, recursive, label, white=None):
    """The usable images of the folders with their (height, width); prints what was left out. Raises UserError if none are."""
    below, others = {}, 0  # each file's place below the folder that was given
    for folder in folders:
        found, more = find_images(folder, recursive)
        for path in found:
            place = path.relative_to(folder)
            below[path] = min(place, below.get(path, place), key=lambda place: len(place.parts))
        others += more
    # One file under two names would be two images, one of them held out, perhaps, and the other trained on.
    files = list({os.path.realpath(path): path for path in reversed(below)}.values())[::-1]
    readable, reasons = check_images(files, min_size, label, white)
    kept, copies, doubtful = without_copies({path: below[path] for path in readable}, white)
    good = {path: readable[path] for path in kept}
    if others:
        reasons["not the ending of an image"] += others
    print(f"{label}: {len(good)} images{in_words(reasons + copies, doubtful)}")
    if not good:
        way_on = "; to take what is called LR, give the very folder that it lies in" if copies else ""
        raise UserError(f"{label}: no usable image in {' '.join(map(str, folders))}{way_on}")
    return good


def name_in_list(path, folder, rules=os.path):
    """The path as seen from a folder, or the whole path where none leads there, as to another drive of Windows."""
    try:
        name = rules.relpath(path, folder)
    except ValueError:
        name = rules.abspath(path)
    return name.replace(rules.sep, "/")


def names_in_list(paths, list_file):
    """The paths as they stand in the list: relative to its folder if they can be, with forward slashes, sorted."""
    folder = list_file.parent.resolve()  # a name like ../photo.jpg leads out of where a link points
    return sorted(name_in_list(path, folder) for path in paths)


def write_list(list_file, paths, white=None):
    content = names_in_list(paths, list_file)
    if white:
        content = {"white": white, "images": content}
    write_text(list_file, json.dumps(content, indent=0, ensure_ascii=False) + "\n")
    print(f"  {list_file}: {len(paths)}")


def write_pack(list_file, images, mode, limit, white=None):
    """Decode the images of a list into its pack, if `mode` or their size says so; an old pack goes away in any case."""
    index_file, pixels_file = pack_files(list_file)
    index_file.unlink(missing_ok=True)
    pixels_file.unlink(missing_ok=True)
    size = sum(3 * height * width for height, width in images.values())
    if mode == "off" or (mode == "auto" and size > limit * 1e9):
        print(f"  no pack: {size / 1e9:.1f} GB of pixels; training decodes the files")
        return
    free = shutil.disk_usage(list_file.parent).free
    if size > 0.9 * free:
        if mode == "auto":
            print(f"  no pack: it takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; training decodes the files")
            return
        raise UserError(f"{pixels_file} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: give --pack off")
    names = names_in_list(images, list_file)
    shapes = []
    with atomic_write(pixels_file) as file:
        for image in by_all_cores(lambda name: read_image(list_file.parent / name, white), names, "pack"):
            shapes.append(image.shape[:2])
            file.write(image.tobytes())
    write_text(index_file, json.dumps({"images": names, "shapes": shapes, "white": white}) + "\n")
    print(f"  {pixels_file}: {size / 1e9:.2f} GB")


def main(args):
    try:
        args.output_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-folder {args.output_folder}: {error.strerror}") from None
    recursive = not args.no_recursive
    test_folders = named_sets(args.test_folders, "--test-folders")
    if args.train_folders:
        images = collect(args.train_folders, args.min_size, recursive, "training", args.white)
        if len(images) <= args.validation_images:
            raise UserError(f"--validation-images {args.validation_images} leaves none of {len(images)} images to train on")
        held_out = set(random.Random(args.seed).sample(sorted(images), args.validation_images))
        training = {path: size for path, size in images.items() if path not in held_out}
        list_file = args.output_folder / "train_images.json"
        write_list(list_file, training, args.white)
        write_list(args.output_folder / "validation_images.json", held_out, args.white)
        write_pack(list_file, training, args.pack, args.pack_limit, args.white)
    for name, folder in test_folders.items():
        images = collect([Path(folder)], 1, recursive, name, args.white)
        write_list(args.output_folder / f"{name}_test_images.json", images, args.white)


if __name__ == "__main__":
    with user_errors():
        main(args)
