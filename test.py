"""Upscale pictures: one, several, or all of a folder.

    python test.py photo.jpg
    python test.py photos/ --output results/photos --compare
    python test.py photo.jpg --blend 0.5 --outscale 3 --format webp

photo.jpg becomes results/test/photo_x4.png. The picture stays what it was: upright, with its transparency, gray or 16
bits deep, animated, with its colour profile and text. The weights that ship are checkpoints/srgan_x4.pth (sharp) and
checkpoints/srresnet_x4.pth (faithful); --blend goes from one to the other. Video needs the package av.
"""

from pathlib import Path

from utils import ArgumentParser, add_device_arguments, number, user_errors

FORMATS = ("png", "jpg", "webp", "tiff", "bmp", "gif")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="image or video files, or folders of them")
    add("--weights", type=Path, default=Path("checkpoints/srgan_x4.pth"), metavar="FILE", help="trained weights")
    add("--output", type=Path, default=Path("results/test"), metavar="DIR", help="folder for the results")
    add("--blend", type=number(float, 0, 1), metavar="A", help="mix the weights: 0 is all --blend-with, 1 all --weights")
    add(
        "--blend-with",
        type=Path,
        default=Path("checkpoints/srresnet_x4.pth"),
        metavar="FILE",
        help="the weights to mix in, which --weights were trained from",
    )
    add("--outscale", type=number(float, 0.01, 100), metavar="FACTOR", help="resize the result to this factor")
    add("--format", choices=FORMATS, help="of the results (default: the input's if it is lossless, else png)")
    add("--overwrite", action="store_true", help="replace results that exist")
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
import sys
import time
from dataclasses import replace

from tqdm import tqdm

from devices import is_out_of_memory, pick_device
from inference import for_pictures, upscale_frame
from pictures.comparison import labelled_row, slider_figure, stack, write_page
from pictures.formats import FORMATS as ENDINGS
from pictures.formats import Frame, read_picture, to_8_bits, write_picture
from pictures.opening import MORE_SUFFIXES
from pictures.pixels import IMAGE_SUFFIXES, enlarge
from pictures.video import VIDEO_SUFFIXES, upscale_video
from utils import UserError, atomic_write
from weights import blend_networks, load_network

KNOWN_SUFFIXES = IMAGE_SUFFIXES | MORE_SUFFIXES | VIDEO_SUFFIXES


def find_inputs(inputs):
    """The files to upscale: those given, and the images and videos of the folders given, sorted.

    (A name that begins with ._ is macOS's, for what it knows of the file without.)
    """
    files = []
    for path in inputs:
        if path.is_dir():
            files_in_it = (file for file in path.iterdir() if not file.name.startswith("._") and not file.is_dir())
            found = sorted(file for file in files_in_it if file.suffix.lower() in KNOWN_SUFFIXES)
            if not found:
                raise UserError(f"{path}: no images or videos in this folder")
            files += found
        else:
            files.append(path)
    return files


def compare(lr_img, sr_img, target, network):
    """Write the panel and the slider page of a result beside it: bilinear and bicubic enlargement, and the network's."""
    lr_img, sr_img = to_8_bits(lr_img), to_8_bits(sr_img)
    height, width = sr_img.shape[:2]
    images = [enlarge(lr_img, (height, width), method) for method in ("bilinear", "bicubic")] + [sr_img]
    labels = ["bilinear", "bicubic", network]
    panel = target.with_name(f"{target.stem}_compare.png")
    with atomic_write(panel) as file:
        stack([labelled_row(images, labels)]).save(file, "PNG", compress_level=4)
    page = target.with_name(f"{target.stem}_compare.html")
    write_page(page, target.stem, [slider_figure(target.name, images, labels, 1, 2)])
    print(f"  comparison: {panel} {page}")


def upscale_file(path, network, args, written):
    """Upscale one image or video file and say so. Raises UserError, and then leaves no file behind."""
    scale = network.config["scale"]
    factor = f"{args.outscale:g}" if args.outscale else scale
    before = time.perf_counter()
    if path.suffix.lower() in VIDEO_SUFFIXES:
        target = args.output / f"{path.stem}_x{factor}.mp4"
        check_target(target, args, written)
        frames = upscale_video(path, target, lambda rgb: upscale_frame(network, Frame(rgb), args.tile, args.outscale).rgb)
        print(f"{path}: {frames} frames -> {target} ({time.perf_counter() - before:.1f} s)")
        return
    picture = read_picture(path, args.white, args.damaged)
    target = args.output / f"{path.stem}_x{factor}{ENDINGS[args.format or picture.format]}"
    check_target(target, args, written)
    first, seconds, size = [], [0.0], [None]

    def results():
        quiet = None if picture.count > 1 else True  # None: a bar if stderr is a terminal
        for frame in tqdm(picture.frames, total=picture.count, unit="frame", leave=False, disable=quiet):
            start = time.perf_counter()
            result = upscale_frame(network, frame, args.tile, args.outscale)
            seconds[0] += time.perf_counter() - start
            size[0] = f"{result.rgb.shape[1]}x{result.rgb.shape[0]}"
            if args.compare and not first:
                first.extend((frame.rgb, result.rgb))
            yield result

    dropped = write_picture(target, replace(picture, frames=results()))
    frames = f", {picture.count} frames" if picture.count > 1 else ""
    print(f"{path}: {picture.size[0]}x{picture.size[1]} -> {target}: {size[0]}{frames}, inference {seconds[0]:.2f} s")
    if picture.remark or dropped:
        print(f"  {'; '.join(filter(None, (picture.remark, dropped)))}")
    if args.compare:
        compare(*first, target, args.weights.stem)


@contextlib.contextmanager
def memory_errors(path):
    """Turn the errors of memory that `upscale` cannot help, as by smaller tiles, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{path}: not enough memory for its result") from None


def check_target(target, args, written):
    if target in written:
        raise UserError(f"{target} is the result of another input of this call: give another --output, one call each")
    if target.exists() and not args.overwrite:
        raise UserError(f"{target} exists: give --overwrite to replace it, or another --output")
    written.add(target)


def main(args):
    files = find_inputs(args.inputs)
    network = load_network(args.weights)
    if args.blend is not None:
        network = blend_networks(load_network(args.blend_with), network, args.blend)
    device = pick_device(args.device)
    network = for_pictures(network, device, args.precision)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: {error.strerror}") from None
    written, failed = set(), 0
    for path in tqdm(files, unit="file", disable=None if len(files) > 1 else True):
        try:
            with memory_errors(path):
                upscale_file(path, network, args, written)
        except UserError as error:
            if len(files) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if len(files) > 1:
        print(f"{len(files) - failed} of {len(files)} files upscaled, into {args.output}")
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    with user_errors():
        main(args)
