"""Make the lists of images that training and evaluation read, out of folders of images.

    python create_data_lists.py --train-folders train2014 val2014 --test-folders Set5 Set14 BSD100

writes data/train_images.json, data/validation_images.json (some of the training images, held out by a seed), and
data/<Folder>_test_images.json for each test folder. A list is a sorted JSON array of paths relative to the list
file, or of whole paths to another drive.
Files that are no readable image are left out and counted, and so are training images under --min-size, and LR images and
results that lie beside their HR images, as in many data sets; to take such a folder all the same, give it itself, not the
one above it. A training image that is, byte for byte, another one or one of --test-folders is left out too.
--white is for data of 12 bits, say, in files of 16 that declare no range, as microscopes and satellites write them: the
lists keep it, and whatever reads them goes by it.
    python create_data_lists.py --train-folders scans_HR --lr-folders scans_LR

makes lists of pairs, for LR images of your own in place of those that training makes: of the same names, or of names
like a_LR.png and ax4.png for a.png, LR_bicubic/X4 for HR. Sizes are checked, and what has no pair is left out and counted.
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
        "--lr-folders",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="LR images of the training images: one folder for each of --train-folders, in their order, or one for all",
    )
    add("--scale", type=int, choices=(2, 3, 4, 8), help="factor between both (default: as most of the sizes say)")
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
    if args.lr_folders and len(args.lr_folders) not in (1, len(args.train_folders)):
        parser.error(f"--lr-folders: give one for all, or one for each of the {len(args.train_folders)} of --train-folders")
    if args.scale and not args.lr_folders:
        parser.error("--scale is that of --lr-folders; of LR images that training makes it is a flag of the training")
    return args


if __name__ == "__main__":
    args = parse_arguments()

import hashlib
import json
import os
import random
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from datasets import file_sizes, pack_files
from image_lists import find_images, in_words, named_sets, on_16_bits, without_copies
from pairs import MISFIT, common_scale, fits, pair, unlike
from pictures.pixels import highest_of_16_bits, read_image
from utils import ImageError, UserError, atomic_write, write_text


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
    for seen, path in zip(by_all_cores(look_at, files, label), files):
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


def without_twins(files, others=()):
    """The files that are byte for byte no earlier one of them, and none of `others`."""
    others, seen = dict.fromkeys(others), set()
    size_of = {path: file_sizes([path])[0] for path in [*others, *files]}
    count, kept = Counter(size_of.values()), []
    for path, size in size_of.items():
        content = hashlib.sha256(path.read_bytes()).digest() if size is not None and count[size] > 1 else path
        if content not in seen and path not in others:
            kept.append(path)
        seen.add(content)
    return kept


def collect(folders, min_size, recursive, label, white=None, lr_folders=(), test_images=None):
    """The usable images of the folders with their (height, width); prints what was left out. Raises UserError if none are.

    Of `lr_folders`, those that lie within the folders are left out; and of training images, with the `test_images` given,
    copies of those and of one another: one would be trained on, and the other measured.
    """
    below, others = {}, 0  # each file's place below the folder that was given
    for folder in folders:
        found, more = find_images(folder, recursive, set(map(os.path.realpath, lr_folders)))
        for path in found:
            place = path.relative_to(folder)
            below[path] = min(place, below.get(path, place), key=lambda place: len(place.parts))
        others += more
    # One file under two names would be two images, one of them held out, perhaps, and the other trained on.
    files = list({os.path.realpath(path): path for path in reversed(below)}.values())[::-1]
    readable, reasons = check_images(files, min_size, label, white)
    beside = any(Path(os.path.realpath(f)).is_relative_to(os.path.realpath(lr)) for f in folders for lr in lr_folders)
    kept, copies, doubtful = without_copies({path: below[path] for path in readable}, white, beside)
    if test_images is not None:
        kept, all_of_them = without_twins(kept, test_images), len(kept)
        reasons["the same, byte for byte, as another or as a test image"] += all_of_them - len(kept)
    good = {path: readable[path] for path in kept}
    if others:
        reasons["not the ending of an image"] += others
    print(f"{label}: {len(good)} images{in_words(reasons + copies, doubtful)}")
    if not good:
        way_on = "; to take what is called LR, give the very folder that it lies in" if copies else ""
        raise UserError(f"{label}: no usable image in {' '.join(map(str, folders))}{way_on}")
    return good


def pairs_by_name(images, args):
    """The LR image of each training image that has one, why others have none (see pairs.pair), and how many are not used."""
    hr_folders, pairs, problems, unused = args.train_folders, {}, {}, 0
    groups = (
        zip([[folder] for folder in hr_folders], args.lr_folders) if args.lr_folders[1:] else [(hr_folders, args.lr_folders[0])]
    )
    for folders, lr_folder in groups:
        try:
            top = os.path.commonpath([folder.absolute() for folder in folders])
        except ValueError:  # on several drives of Windows
            raise UserError("--train-folders on several drives: give one of --lr-folders for each") from None
        places = {path: path.absolute().relative_to(top) for path in images if path.absolute().is_relative_to(top)}
        known = set(map(os.path.realpath, images))
        files = [path for path in find_images(lr_folder, not args.no_recursive)[0] if os.path.realpath(path) not in known]
        found, more = pair(places, {path: path.relative_to(lr_folder) for path in files}, args.scale)
        pairs, problems, unused = found | pairs, problems | more, unused + len(files) - len(found)
    return pairs, {hr: problem for hr, problem in problems.items() if hr not in pairs}, unused


def pair_up(images, args):
    """The LR images of the training images that have one, {HR: LR}, and their scale; prints what was left out, and why.

    `images` are the HR images with their (height, width). Raises UserError if none has one.
    """
    pairs, problems, unused = pairs_by_name(images, args)
    sizes, _ = check_images(list(pairs.values()), 1, "LR images", args.white)
    scale = args.scale or common_scale((images[hr], sizes[lr]) for hr, lr in pairs.items() if lr in sizes)
    for hr, lr in pairs.items():
        if lr not in sizes:
            problems[hr] = "whose LR image is not a readable image", f"{hr}: {lr}"
        elif not fits(images[hr], sizes[lr], scale):
            (height, width), (lr_height, lr_width) = images[hr], sizes[lr]
            problems[hr] = MISFIT, f"{hr} has {width}x{height} pixels, {lr} has {lr_width}x{lr_height}"
    pairs = {hr: lr for hr, lr in pairs.items() if hr not in problems}
    examples = {}
    for reason, line in problems.values():
        examples.setdefault(reason, line)
    if not pairs:
        raise UserError(
            f"training: none of {len(images)} images can be paired with its LR image; {'; '.join(examples.values())}"
        )
    left_out = in_words(Counter(reason for reason, _ in problems.values()))
    print(f"training: {len(pairs)} pairs of x{scale}{left_out}; {unused} files of --lr-folders are not used")
    for reason, line in sorted(examples.items()):
        print(f"  {reason}: {line}")
    some = random.Random(args.seed).sample(sorted(pairs), min(len(pairs), 100))
    different = unlike({hr: pairs[hr] for hr in some}, args.white)
    if different:
        hr = different[0]
        told = f"{len(different)} of {len(some)} pairs do not look alike"
        print(f"  {told}: are {hr} and {pairs[hr]} of one picture, and of one white?")
    return pairs, scale


def name_in_list(path, folder, rules=os.path):
    """The path as seen from a folder, or the whole path where none leads there, as to another drive of Windows."""
    try:
        name = rules.relpath(path, folder)
    except ValueError:
        name = rules.abspath(path)
    return name.replace(rules.sep, "/")


def lr_names_in_list(paths, lr_images, list_file):
    """The names of the LR images, {HR: LR}, in the order of `names_in_list`."""
    folder = list_file.parent.resolve()
    by_hr = {name_in_list(path, folder): name_in_list(lr_images[path], folder) for path in paths}
    return [by_hr[name] for name in sorted(by_hr)]


def names_in_list(paths, list_file):
    """The paths as they stand in the list: relative to its folder if they can be, with forward slashes, sorted."""
    folder = list_file.parent.resolve()  # a name like ../photo.jpg leads out of where a link points
    return sorted(name_in_list(path, folder) for path in paths)


def write_list(list_file, paths, white=None, lr_images=None, scale=None):
    """Write the list of the paths; also with `white`, and with `lr_images`, {HR: LR}, and their scale, if there are any."""
    content = {"white": white, "scale": scale, "images": names_in_list(paths, list_file)}
    if lr_images:
        content["lr_images"] = lr_names_in_list(paths, lr_images, list_file)
    content = {key: value for key, value in content.items() if value is not None}
    content = content["images"] if list(content) == ["images"] else content  # as versions before wrote it
    write_text(list_file, json.dumps(content, indent=0, ensure_ascii=False) + "\n")
    print(f"  {list_file}: {len(paths)}")


def write_pack(list_file, images, mode, limit, white=None, lr_images=None, scale=None):
    """Decode the images of a list into its pack, if `mode` or their size says so; an old pack goes away in any case.

    Behind them come `lr_images`, {HR: LR}, if there are any.
    """
    index_file, pixels_file = pack_files(list_file)
    index_file.unlink(missing_ok=True)
    pixels_file.unlink(missing_ok=True)
    size = sum(3 * height * width for height, width in images.values())
    if lr_images:
        size += sum(3 * (height // scale) * (width // scale) for height, width in images.values())
    if mode == "off" or (mode == "auto" and size > limit * 1e9):
        print(f"  no pack: {size / 1e9:.1f} GB of pixels; training decodes the files")
        return
    free = shutil.disk_usage(list_file.parent).free
    if size > 0.9 * free:
        if mode == "auto":
            print(f"  no pack: it takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; training decodes the files")
            return
        raise UserError(f"{pixels_file} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: give --pack off")
    names = names_in_list(images, list_file) + (lr_names_in_list(images, lr_images, list_file) if lr_images else [])
    shapes = []
    with atomic_write(pixels_file) as file:
        for image in by_all_cores(lambda name: read_image(list_file.parent / name, white), names, "pack"):
            shapes.append(image.shape[:2])
            file.write(image.tobytes())
    index = {"images": names, "shapes": shapes, "white": white, "file_sizes": file_sizes([list_file.parent / n for n in names])}
    write_text(index_file, json.dumps(index) + "\n")
    print(f"  {pixels_file}: {size / 1e9:.2f} GB")


def main(args):
    try:
        args.output_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-folder {args.output_folder}: {error.strerror}") from None
    recursive = not args.no_recursive
    test_folders = named_sets(args.test_folders, "--test-folders")
    for name in test_folders:
        if name.casefold() in ("train", "validation"):
            problem = f"{name} would be taken for the list of training of that name"
            raise UserError(f"--test-folders: {problem}; give NAME={test_folders[name]}")
    if args.train_folders:
        tests = [path for folder in test_folders.values() for path in find_images(Path(folder), recursive)[0]]
        images = collect(args.train_folders, args.min_size, recursive, "training", args.white, args.lr_folders, tests)
        lr_images, scale = pair_up(images, args) if args.lr_folders else (None, None)
        images = {path: size for path, size in images.items() if not lr_images or path in lr_images}
        if len(images) <= args.validation_images:
            raise UserError(f"--validation-images {args.validation_images} leaves none of {len(images)} images to train on")
        held_out = set(random.Random(args.seed).sample(sorted(images), args.validation_images))
        training = {path: size for path, size in images.items() if path not in held_out}
        list_file = args.output_folder / "train_images.json"
        how = args.white, lr_images, scale
        write_list(list_file, training, *how)
        write_list(args.output_folder / "validation_images.json", held_out, *how)
        write_pack(list_file, training, args.pack, args.pack_limit, *how)
    for name, folder in test_folders.items():
        images = collect([Path(folder)], 1, recursive, name, args.white)
        write_list(args.output_folder / f"{name}_test_images.json", images, args.white)


if __name__ == "__main__":
    with user_errors():
        main(args)
