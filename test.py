"""Upscale pictures: one, several, or all of a folder.

    python test.py photo.jpg
    python test.py photos/ --output results/photos --compare
    python test.py photo.jpg --blend 0.5 --outscale 3 --format webp

photo.jpg becomes results/test/photo_x4.png. The picture stays what it was: upright, with its transparency, gray or 16
bits deep, animated, with its colour profile and text. Two pairs of weights ship, for clean pictures and for photographs as
people have them; by default each file gets the pair that it needs, and the output says which. Of each pair one is sharp
(srgan) and one faithful (srresnet); --blend goes from one to the other. Video needs the package av.
A batch that was stopped goes on with --skip-existing; results that lie beside their pictures are not enlarged again.
torchrun --nproc-per-node=N test.py ... shares the files of a batch out among N processes, each with a GPU if there are any.
"""

from argparse import ArgumentTypeError
from pathlib import Path

from utils import ArgumentParser, add_device_arguments, number, user_errors

FORMATS = ("png", "jpg", "webp", "avif", "tiff", "bmp", "gif")
LOSSY_FORMATS = ("jpg", "webp", "avif")  # which --quality is for
ALIASES = {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "tif": "tiff", "apng": "png"}


def format_named(text):
    """The format of a name or an ending as people write them: JPEG, .tif."""
    name = text.lower().removeprefix(".")
    return ALIASES.get(name, name)


def named_path(text):
    """A path, of a text that is not empty, as that of an unset variable is, which would mean the current folder."""
    if not text:
        raise ArgumentTypeError("is empty; . is the current folder")
    return Path(text)


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", type=named_path, metavar="INPUT", help="image or video files, or folders of them")
    add(
        "--weights",
        default="auto",
        metavar="auto|clean|photo|FILE",
        help="clean: for pictures stored without loss; photo: for compressed, noisy, blurred ones; auto: photo for files that "
        "were stored with loss (JPEG, lossy WebP, AVIF, HEIC, video), else clean; or a file of trained weights (default: auto)",
    )
    add(
        "--output",
        type=named_path,
        default=Path("results/test"),
        metavar="DIR",
        help="folder for the results; or the file, for one input",
    )
    add("--recursive", action="store_true", help="also look into the folders in a folder, and keep their structure")
    add("--blend", type=number(float, 0, 1), metavar="A", help="mix a pair: 0 is all faithful, 1 all sharp")
    add(
        "--blend-with",
        type=Path,
        metavar="FILE",
        help="the weights to mix in, which a --weights FILE was trained from (default: srresnet_x4)",
    )
    add("--self-ensemble", action="store_true", help="the mean over 8 flips and turns: a little better, 8 times the work")
    add("--outscale", type=number(float, 0.01, 100), metavar="FACTOR", help="resize the result to this factor")
    add(
        "--format",
        type=format_named,
        choices=FORMATS,
        help="of the results (default: the input's if it is lossless, else png)",
    )
    add("--quality", type=number(int, 1, 100), metavar="N", help="of JPEG, WebP and AVIF (default: 95, lossless, 90)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace results that exist")
    existing.add_argument("--skip-existing", action="store_true", help="go on with a batch: leave results that exist")
    add("--compare", action="store_true", help="also write a labelled panel and a page with a before/after slider")
    add("--tile", type=number(int, 16), metavar="PIXELS", help="side of the tiles of the input (default: what fits in memory)")
    add(
        "--white",
        type=number(int, 1, 65535),
        metavar="LEVEL",
        help="what is white in a 16-bit file that uses less of its range",
    )
    add("--damaged", action="store_true", help="take what can be decoded of a file that is cut or damaged")
    add_device_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":  # before the imports that take seconds, so that --help and a bad flag answer at once
    args = parse_arguments()

import contextlib
import os
import sys
import time
from collections import Counter

from tqdm import tqdm

from devices import Processes, is_out_of_memory
from inference import upscale_frame
from pictures.comparison import labelled_row, slider_figure, stack, write_page
from pictures.folders import KNOWN_SUFFIXES, NAME_LIMIT, find_inputs, is_video, path_of_result
from pictures.formats import FORMATS as ENDINGS
from pictures.formats import Frame, check_format, read_picture, to_8_bits
from pictures.pixels import enlarge
from pictures.video import upscale_video
from upscaling import network_chooser, upscale_picture
from utils import UserError, atomic_write


def compare(lr_img, sr_img, name, panel, page, network, keep):
    """Write the panel and the slider page of a result: bilinear and bicubic enlargement, and the network's.

    What of both exists stays as it is, if `keep`.
    """
    made = [file for file in (panel, page) if not (keep and file.exists())]
    lr_img, sr_img = to_8_bits(lr_img), to_8_bits(sr_img)
    height, width = sr_img.shape[:2]
    images = [enlarge(lr_img, (height, width), method) for method in ("bilinear", "bicubic")] + [sr_img]
    labels = ["bilinear", "bicubic", network]
    if panel in made:
        with atomic_write(panel) as file:
            stack([labelled_row(images, labels)]).save(file, "PNG", compress_level=4)
    if page in made:
        write_page(page, Path(name).stem, [slider_figure(name, images, labels, 1, 2)])
    if made:
        print(f"  comparison: {' '.join(map(str, made))}")


def upscale_file(path, place, choose, args, written):
    """Upscale one image or video file to its place in the output folder, and say so. Returns whether it was; else skipped.

    `choose` is a network_chooser's. Raises UserError or OSError, and then leaves no file behind.
    """
    if path.is_dir():  # it stays among the inputs for what is wrong with it
        os.listdir(path)
        raise UserError(f"{path}: no images or videos in this folder")
    picture = None if is_video(path) else read_picture(path, args.white, args.damaged)
    network, weights = choose(picture.lossy if picture else True)
    factor = f"_x{args.outscale:g}" if args.outscale else f"_x{network.config['scale']}"
    place, factor = (args.output.with_suffix(""), "") if args.output_file else (args.output / place, factor)
    ending = ENDINGS[args.format or picture.format] if picture else ".mp4"
    target = args.output if args.output_file else path_of_result(place, factor + ending)
    panel, page = (path_of_result(place, f"{factor}_compare.{ending}") for ending in ("png", "html"))
    shown = [panel, page] if picture and args.compare else []
    if not check_target(path, target, shown, args, written):
        if not all(file.exists() for file in shown):
            first = [next(iter(frames)).rgb for frames in (picture.frames, read_picture(target).frames)]
            compare(*first, target.name, panel, page, "result", keep=True)  # of whatever weights made it
        return False
    if not picture:
        enlarge_video(path, target, network, weights, args)
    else:
        first = []

        def keep_first(frame, result):
            if args.compare and not first:
                first.extend((frame.rgb, result.rgb))

        done = upscale_picture(picture, target, network, args.tile, args.outscale, args.quality, keep_first)
        sizes = f"{picture.size[0]}x{picture.size[1]} -> {target}: {done.size[0]}x{done.size[1]}"
        frames = f", {picture.count} frames" if picture.count > 1 else ""
        print(f"{path}: {sizes}{frames}, by {weights}, inference {done.seconds:.2f} s")
        if done.remark:
            print(f"  {done.remark}")
        if args.compare:
            compare(*first, target.name, panel, page, weights, keep=args.skip_existing)
    tell_of_name(path, place, target, factor)
    return True


def enlarge_video(path, target, network, weights, args):
    """Upscale a video file, and say so."""
    before, remarks = time.perf_counter(), []

    def upscale_rgb(rgb):
        return upscale_frame(network, Frame(rgb), args.tile, args.outscale).rgb

    frames = upscale_video(path, target, upscale_rgb, remarks)
    print(f"{path}: {frames} frames -> {target}, by {weights} ({time.perf_counter() - before:.1f} s)")
    if args.compare or args.format:
        remarks.append("--compare and --format are for pictures: a video becomes MP4, and has no panel")
    for remark in remarks:
        print(f"  {remark}")


def tell_of_name(path, place, target, factor):
    """Say why a result is not named as its input."""
    if factor and place.name != path.stem:
        print(f"  named with its ending, since another {path.stem} is beside it")
    if factor and not target.name.startswith(place.name + factor):
        print(f"  its name is shortened: no file's may have more than {NAME_LIMIT} bytes")


@contextlib.contextmanager
def memory_errors(path):
    """Turn the errors of memory that `upscale` cannot help, as by smaller tiles, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{path}: not enough memory for its result") from None


def check_target(path, target, shown, args, written):
    """Whether the result is to be made, and its folder; False if it exists and is to be skipped.

    `shown` are the files of its comparison. Raises UserError where one of them is not to be written.
    """
    for file in (target, *shown):
        if file in written:
            raise UserError(f"{path}: {file} is of another input of this call: give another --output, one call each")
        if file.is_dir():
            raise UserError(f"{path}: its result {file} is a folder: give another --output")
        if args.overwrite and os.path.abspath(file) in args.sources - {os.path.abspath(path)}:
            raise UserError(f"{path}: its result {file} is an input of this call too: give another --output")
        if file.exists() and not (args.overwrite or args.skip_existing):
            raise UserError(f"{file} exists: give --overwrite or --skip-existing, or another --output")
    written.update((target, *shown))
    if target.exists() and not args.overwrite:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    return True


def names_a_file(output, inputs, form):
    """Whether --output is the result of one input, and no folder. Raises UserError if it can be neither."""
    if output.suffix.lower() not in KNOWN_SUFFIXES or output.is_dir():
        return False
    if len(inputs) > 1 or inputs[0].is_dir():
        raise UserError(f"--output {output}: for several inputs, or a folder of them, give a folder")
    named = format_named(output.suffix)
    if is_video(inputs[0]) and named != "mp4":
        raise UserError(f"--output {output}: a video becomes an .mp4")
    if not is_video(inputs[0]) and named not in FORMATS:
        raise UserError(f"--output {output}: pictures are written as {', '.join(FORMATS)}")
    if form and form != named:
        raise UserError(f"--output {output} and --format {form} are two formats")
    return True


def main(args):
    args.output_file = names_a_file(args.output, args.inputs, args.format)
    form = format_named(args.output.suffix) if args.output_file else args.format
    if args.quality and form not in LOSSY_FORMATS:
        raise UserError("--quality is for JPEG, WebP and AVIF: give --format jpg, webp or avif too")
    if form in FORMATS:
        check_format(form)
    folder = args.output.parent if args.output_file else args.output
    processes = Processes(args.device)
    # One process looks, before any result is written beside the inputs.
    files = processes.gather(find_inputs(args.inputs, args.recursive, folder) if processes.rank == 0 else None)[0]
    args.sources = {os.path.abspath(path) for path in files}
    weights = args.weights, processes.device, args.precision, args.blend, args.blend_with, args.self_ensemble
    choose = network_chooser(*weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: {error.strerror}") from None
    by_place = {}  # files that may have the same result stay with one process, which sees that
    for path, place in files.items():
        by_place.setdefault(os.path.normcase(place), []).append((path, place))
    batches, written, counts = list(by_place.values()), set(), Counter()
    bar = tqdm(total=len(batches), unit="file", disable=None if len(files) > 1 and processes.rank == 0 else True)
    for i in processes.share_out(len(batches)):
        bar.update(i - bar.n)  # what all processes have begun with
        for path, place in batches[i]:
            counts[upscale_or_tell(path, place, choose, args, written, len(files) == 1)] += 1
    bar.update(bar.total - bar.n)
    bar.close()
    counts = sum(processes.gather(counts), Counter())
    if len(files) > 1 and processes.rank == 0:
        told = f", {counts['skipped']} skipped: their results exist" if counts["skipped"] else ""
        print(f"{counts['done']} of {len(files)} files upscaled, into {args.output}{told}")
    if counts["failed"]:
        sys.exit(2)


def upscale_or_tell(path, place, choose, args, written, alone):
    """As `upscale_file`; returns "done", "skipped" or "failed", which it says. If the file is `alone`, its error is raised."""
    try:
        with memory_errors(path):
            done = upscale_file(path, place, choose, args, written)
    except (UserError, OSError) as error:
        if not isinstance(error, UserError):  # of the file system
            error = UserError(f"{path}: {error.strerror or error}")
        if alone:
            raise error from None
        print(f"error: {error}", file=sys.stderr)
        return "failed"
    if not done and alone:
        print(f"{path}: skipped, its result exists")
    return "done" if done else "skipped"


if __name__ == "__main__":
    with user_errors():
        main(args)
