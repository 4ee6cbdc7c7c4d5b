"""What every script shares: errors of one line, command lines, files that are written whole or not at all.

Not here: PyTorch, which takes seconds to import, so that `--help`, a bad flag and a missing file are answered at once.
"""

import argparse
import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import sys
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


class UserError(Exception):
    """Something the user can put right; its message is one line that says how, whatever the names in it hold."""

    def __str__(self):
        return " ".join(super().__str__().split())


class ImageError(UserError):
    """An image file that cannot be used; its message names the file and the reason."""


@contextlib.contextmanager
def user_errors():
    """Turn a UserError into one line on stderr and exit status 2, and Ctrl-C into status 130, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal cannot show
    warnings.filterwarnings("ignore", module="PIL")  # of files that are read all the same; what matters we say ourselves
    try:
        yield
        if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
            sys.modules["torch"].distributed.barrier()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # while Python winds up, Gloo's threads sometimes abort the process ("terminate called ...")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ or not re.search("gloo|nccl|connection (closed|reset)", str(error), re.IGNORECASE):
            raise
        print("error: another process of the run has ended; go on from the last checkpoint with --resume", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def without_traceback_of_interrupts(kind, error, traceback):
    """For sys.excepthook. Python ends by the signal afterwards, which shells show as status 130."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and after the help of a flag its default, if it has one."""

    def _get_help_string(self, action):
        return super()._get_help_string(action) if action.default not in (None, False, []) else action.help


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with the script's docstring as its description, defaults in the help, and errors of one line."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        sys.excepthook = without_traceback_of_interrupts  # the imports that follow take seconds, and user_errors comes after
        return super().parse_args(args, namespace)

    def error(self, message):
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def number(kind=int, low=-math.inf, high=math.inf):
    """An argparse type: a finite number from `low` to `high`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        finite = abs(value) < 2**63 if kind is int else math.isfinite(value)
        if not (low <= value <= high and finite):
            bounds = f"{low} or more" if high == math.inf else f"from {low} to {high}"
            bounds = bounds if value < low or value > high else "a number that fits"
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
        return value

    return parse


def add_device_arguments(parser):
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16, or else fp16 on CUDA, where the hardware has units for it",
    )


def add_training_arguments(parser, stage, steps, learning_rate, schedule):
    """The flags that the stages (1 to 3) share."""
    add = parser.add_argument
    parser.set_defaults(stage=stage)
    add("--data-folder", type=Path, default=Path("data"), help="folder with the lists of create_data_lists.py")
    add("--name", help="of the run, for checkpoints/NAME and results/NAME (default: srresnet_x4, srgan_x4, ...)")
    # Its name of before, which torchrun takes for the beginning of its own --run-path and refuses.
    add("--run", dest="name", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--resume", action="store_true", help="go on from the newest whole checkpoint of the run")
    add("--scale", type=int, choices=(2, 3, 4, 8), default=4, help="factor between LR and HR")
    add("--steps", type=number(int, 1), default=steps, help="optimizer steps, in all")
    add("--batch-size", type=number(int, 1), default=16, help="crops per step, over all processes")
    add("--crop-size", type=number(int, 16), default=96, help="side of the HR crops, pixels")
    add(
        "--degradation",
        choices=("bicubic", "photo"),
        default="bicubic",
        help="what makes LR of HR images: bicubic downscaling, or what cameras and the web do (blur, noise, JPEG, WebP)",
    )
    add(
        "--optimizer",
        choices=("adam", "muon"),
        default="adam",
        help="of the network that is to upscale: the paper's, or Muon for its kernels between the first and the last layer",
    )
    add("--learning-rate", type=number(float, 0), default=learning_rate, help="at its highest; one for Adam suits Muon")
    add(
        "--schedule",
        choices=("constant", "step", "cosine"),
        default=schedule,
        help="of the learning rate: step divides it by ten after half the steps, cosine ends at zero",
    )
    add("--warmup-steps", type=number(int, 0), default=0, help="steps of linear rise of the learning rate")
    add("--ema-decay", type=number(float, 0, 1), default=0.999, help="of the moving average of the weights, per step")
    add("--gray-share", type=number(float, 0, 1), default=0.0, help="of the crops that are made gray, so that gray stays gray")
    add(
        "--stretch-share",
        type=number(float, 0, 1),
        default=0.0,
        help="of the crops that are stretched to reach black and white, so that white stays white",
    )
    add("--drawn-share", type=number(float, 0, 1), default=0.0, help="of the crops that are drawn: thin lines on flat ground")
    add("--flat-share", type=number(float, 0, 1), default=0.0, help="of the crops that are one colour, so that it has no rim")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of the initial weights and the sample stream")
    add("--workers", type=number(int, 0), help="loader processes (default: 0 for a pack and bicubic on the CPU, else up to 8)")
    add_device_arguments(parser)
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: where a long run gains from it")
    add("--validate-on", default="validation", help="name of a list in the data folder, or a folder of HR images")
    add("--validate-every", type=number(int, 1), default=5000, help="steps")
    add("--save-every", type=number(int, 1), default=1000, help="steps")
    add("--log-every", type=number(int, 1), default=100, help="steps")
    add("--dry-run", action="store_true", help="two steps, one evaluation, one save, in the run dry_run, which is overwritten")


def parse_with_recipe(parser, recipes, words=None):
    """The arguments, with the defaults of the recipe that --recipe names, or of the first; flags override them."""
    bare = next(iter(recipes))
    parser.add_argument("--recipe", choices=recipes, default=bare, help="a preset of flags, which other flags override")
    parser.set_defaults(**recipes[parser.parse_args(words).recipe])
    return parser.parse_args(words)


def check_training_arguments(args):
    if args.crop_size % args.scale:
        raise UserError(f"--crop-size {args.crop_size} is no multiple of --scale {args.scale}")


def temporary_beside(path, ending=".tmp"):
    """A path beside `path` for what is not whole yet, of a name that no other process takes, on this machine or another."""
    return Path(path).with_name(f".{secrets.token_hex(8)}{ending}")


@contextlib.contextmanager
def atomic_write(path):
    """A binary file to write to, which takes the place of `path` when, and only when, it is whole and on the disk.

    Raises UserError if it cannot be written; the earlier file, if any, is then untouched.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def lock_file(path):
    """Lock a file, which is made if need be, for this process alone: the open file, or None if another process has it.

    The operating system holds the lock, and lets go of it when the process ends, however it does. A process that this one
    forks does not have it. Where the file system knows no locks, a warning is printed and the file returned all the same.
    """
    while True:
        file = open(path, "ab")  # noqa: SIM115 (it stays open as long as the lock)
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                file.close()
                return None
            print(f"warning: {path} cannot be locked ({error.strerror}): start nothing else that writes there", file=sys.stderr)
        with contextlib.suppress(FileNotFoundError):  # another process may just have removed it, as its last act
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def unlock_file(file):
    """Remove a file of `lock_file` and let go of its lock."""
    if fcntl:  # while the lock holds, or it could be the next one's
        Path(file.name).unlink(missing_ok=True)
    file.close()
    if not fcntl:  # which removes no open file, so not the next one's either
        with contextlib.suppress(OSError):
            os.unlink(file.name)


def write_text(path, text):
    """Write a small file, whole or not at all, making its folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # names of files need not be valid UTF-8


def read_json(path):
    """The value in a JSON file that `write_text` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))


def replace_by_link(source, target):
    """Make `target` a second name of `source`, or a copy where the file system has no links."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with atomic_write(target) as copy, open(source, "rb") as file:
            shutil.copyfileobj(file, copy)
        return
    os.replace(temporary, target)


# Upscaling by tiles. `features` sees far, through cheap maps on the LR grid; `reconstruct` sees a few pixels, through
# maps of scale * scale times the size. So a large tile of features is reconstructed in small blocks: the overlap of the
# large tiles wastes little, and the memory is that of a block. (Whole-network tiles as small would do half their work twice.)
