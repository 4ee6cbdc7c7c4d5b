"""Plumbing, in three sections: command line and runs; checkpoints; pixels and metrics.

PyTorch takes seconds to import, so here it is imported inside the functions that need it: `--help`, a bad flag and a
missing file are answered at once.
"""

import argparse
import contextlib
import csv
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

# ---------------------------------------------------------------------------------------------------------------------
# Command line and runs
# ---------------------------------------------------------------------------------------------------------------------


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


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and after the help of a flag its default, if it has one."""

    def _get_help_string(self, action):
        return super()._get_help_string(action) if action.default not in (None, False, []) else action.help


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with the script's docstring as its description, defaults in the help, and errors of one line."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

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
        if not (low <= value <= high and math.isfinite(value)):
            bounds = f"{low} or more" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
        return value

    return parse


def add_device_arguments(parser):
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where the hardware has units for it"
    )


def add_training_arguments(parser, stage, steps, learning_rate, schedule):
    """The flags that both stages (1 and 2) share."""
    add = parser.add_argument
    parser.set_defaults(stage=stage)
    add("--data-folder", type=Path, default=Path("data"), help="folder with the lists of create_data_lists.py")
    add("--run", help="name of the run, for checkpoints/NAME and results/NAME (default: srresnet_x4, srgan_x4, ...)")
    add("--resume", action="store_true", help="go on from the newest whole checkpoint of the run")
    add("--scale", type=int, choices=(2, 3, 4, 8), default=4, help="factor between LR and HR")
    add("--steps", type=number(int, 1), default=steps, help="optimizer steps, in all")
    add("--batch-size", type=number(int, 1), default=16, help="crops per step, over all processes")
    add("--crop-size", type=number(int, 16), default=96, help="side of the HR crops, pixels")
    add("--learning-rate", type=number(float, 0), default=learning_rate, help="of Adam, at its highest")
    add(
        "--schedule",
        choices=("constant", "step", "cosine"),
        default=schedule,
        help="of the learning rate: step divides it by ten after half the steps, cosine ends at zero",
    )
    add("--warmup-steps", type=number(int, 0), default=0, help="steps of linear rise of the learning rate")
    add("--ema-decay", type=number(float, 0, 1), default=0.999, help="of the moving average of the weights, per step")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of the initial weights and the sample stream")
    add("--workers", type=number(int, 0), help="loader processes (default: 0 for a pack on the CPU, else up to 8)")
    add_device_arguments(parser)
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: where a long run gains from it")
    add("--validate-on", default="validation", help="name of a list in the data folder, or a folder of HR images")
    add("--validate-every", type=number(int, 1), default=5000, help="steps")
    add("--save-every", type=number(int, 1), default=1000, help="steps")
    add("--log-every", type=number(int, 1), default=100, help="steps")
    add("--dry-run", action="store_true", help="two steps, one evaluation, one save, in the run dry_run, which is overwritten")


# What may differ when a run is resumed: it changes where things are, how fast they go or what is shown, not what is learnt.
FREE_ON_RESUME = {"data_folder", "run", "resume", "workers", "device", "precision", "compile", "dry_run"}
FREE_ON_RESUME |= {"init", "init_discriminator", "validate_on", "validate_every", "save_every", "log_every"}


def check_training_arguments(args):
    if args.crop_size % args.scale:
        raise UserError(f"--crop-size {args.crop_size} is no multiple of --scale {args.scale}")


def learning_rate_at(step, args):
    """The learning rate of step 1, 2, ..., a pure function of the step."""
    rate = args.learning_rate * min(1.0, step / max(1, args.warmup_steps))
    if args.schedule == "step" and step > args.steps // 2:
        rate *= 0.1
    if args.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (step - 1) / args.steps))
    return rate


def pick_device(name):
    """The torch device for `--device`, made ready. Raises UserError where it is not to be had."""
    import torch

    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; give auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: this PyTorch sees {torch.cuda.device_count()} CUDA devices; try --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only the CPU and CUDA are supported")
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory():
    """Let the C library (glibc) keep the memory of freed tensors for the next ones, up to tensors of 32 MB.

    By default it gives much of it back to the system at once, which clears it and hands it out anew page by page: a fifth of a
    training step. Larger tensors are beyond its limit, and M_MMAP_MAX, which has none, lets the memory grow without end.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # mallopt(3)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)
        mallopt(mmap_threshold, 32 * 2**20)


def pick_dtype(precision, device):
    """torch.bfloat16 or torch.float32, for `--precision` on `device`."""
    import torch

    if precision == "auto":
        if device.type == "cuda":
            has_units = torch.cuda.get_device_capability(device) >= (8, 0)
        else:  # emulated bf16 is several times slower than fp32
            capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.10 has none: fp32
            has_units = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
        precision = "bf16" if has_units else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def autocast(device, dtype):
    import torch

    return torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16)


def should_compile(args, device, dtype):
    """Whether to torch.compile the networks: it costs a minute at the start, and a C++ compiler on the CPU.

    Raises UserError for `--compile on` where it cannot be done.
    """
    import torch

    # On the CPU it gains a tenth of stage 1's step in bf16, nothing in fp32, and loses a tenth of stage 2's.
    gains = device.type == "cuda" or (dtype == torch.bfloat16 and args.stage == 1)
    if args.compile == "off" or (args.compile == "auto" and (args.dry_run or args.steps < 2000 or not gains)):
        return False
    compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"] if device.type == "cpu" else ["cc", "gcc", "clang"]
    if any(map(shutil.which, compilers)) and (device.type == "cpu" or importlib.util.find_spec("triton")):
        return True
    if args.compile == "on":
        raise UserError("--compile on needs a C++ compiler (and Triton, on CUDA): install it, or give --compile off")
    print("no compiler (or no Triton, on CUDA) found: training eagerly, without torch.compile")
    return False


class Processes:
    """The device, and the processes that work together under torchrun: NCCL between GPUs, Gloo between CPUs.

    Outside torchrun there is one, of rank 0. Raises UserError for a device that is not to be had.
    """

    def __init__(self, device_name="auto"):
        import torch

        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = pick_device(device_name)
        if self.count == 1:
            return
        if self.device.type == "cuda":
            if device_name not in ("auto", "cuda"):
                raise UserError(f"--device {device_name}: torchrun gives each process a GPU of its own; give --device cuda")
            self.device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")  # refused if there are more processes than GPUs
            torch.cuda.set_device(self.device)
        torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.control = torch.distributed.new_group(backend="gloo")  # for flags and figures, which are not on the GPU

    def any(self, flag) -> bool:
        """Whether the flag is up in any of the processes."""
        return any(self.gather(flag))

    def gather(self, value) -> list:
        """The values of all processes, by rank."""
        import torch

        if self.count == 1:
            return [value]
        values = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values


class Run:
    """One training run: its folders and logs, its processes, and when to print, validate, save and stop.

    Under torchrun there is a Run in each process; only that of rank 0 writes. Nothing is written before `start`.
    Raises UserError for a name that is taken, or for `--resume` of a run that there is not.
    """

    def __init__(self, args, default_name):
        import torch

        self.args, self.name = args, "dry_run" if args.dry_run else args.run or default_name
        self.checkpoints, self.results = Path("checkpoints") / self.name, Path("results") / self.name
        self.processes = Processes(args.device)
        self.rank, self.world_size, self.device = self.processes.rank, self.processes.count, self.processes.device
        if args.dry_run:
            args.steps, args.log_every, args.validate_every, args.save_every = 2, 1, 2, 2
        # Rank 0 looks for all, before any process goes on: soon it will have made the folders itself.
        problem = self.processes.gather(self._claim_name() if self.rank == 0 else None)[0]
        if problem:
            raise UserError(problem)
        if args.batch_size % self.world_size:
            raise UserError(f"--batch-size {args.batch_size} cannot be shared evenly among {self.world_size} processes")
        self.dtype = pick_dtype(args.precision, self.device)
        self.sums, self.count, self.best = {}, 0, None
        self.first_bad = torch.zeros((), dtype=torch.int64, device=self.device)
        self.bad_files, self.stop_signal, self.stopping = [], None, False

    def _claim_name(self):
        """Clear the folders of a dry run; return what is wrong with the name of the run, or None."""
        if self.args.dry_run:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            shutil.rmtree(self.results, ignore_errors=True)
        elif not self.args.resume and (self.checkpoints.exists() or self.results.exists()):
            return f"the run {self.name} exists: go on with it by --resume, or give another name by --run"
        return None

    def parallel(self, network):
        """The network to train with: synchronised, distributed, compiled, as the run needs it."""
        import torch

        if self.world_size > 1:
            if self.device.type == "cuda":
                network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
            network = torch.nn.parallel.DistributedDataParallel(network)
        if should_compile(self.args, self.device, self.dtype):
            network = torch.compile(network)
        return network

    def loader(self, dataset, start):
        """The batches of the steps after `start`, for this process (see datasets.train_loader)."""
        from datasets import train_loader

        self.dataset = dataset
        workers = self.args.workers
        if workers is None:
            quick = dataset.pack is not None and self.device.type == "cpu"
            workers = 0 if quick else max(1, min(8, (os.cpu_count() or 1) // self.world_size))
        return train_loader(
            dataset,
            self.args.batch_size,
            start,
            self.args.steps,
            self.rank,
            self.world_size,
            workers,
            pin_memory=self.device.type == "cuda",
        )

    def start(self, start, columns, **facts):
        """Open the folders and logs (of `columns`), and listen for SIGTERM and Ctrl-C; print and keep the `facts`."""
        for number_ in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number_, self._on_signal)
        self.clock, self.clock_step, self.waited = time.perf_counter(), start, 0.0
        if self.rank > 0:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in self.checkpoints.glob(".*.tmp"):
            left_by_a_kill.unlink()
        for newer in step_checkpoints(self.checkpoints):  # than what was restored, so they do not read back
            if newer.name > f"step_{start:08d}.pth":
                newer.unlink()
        self._tidy_checkpoints()
        (self.results / "samples").mkdir(parents=True, exist_ok=True)
        options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.args).items()}
        write_text(self.results / "config.json", json.dumps(options | facts, indent=2) + "\n")
        self.columns, self.row, self.figures = ["step", *columns], {}, {}
        self.csv_file = self._open_log(self.results / "log.csv", start)
        self.board = SummaryWriter(str(self.results), purge_step=start + 1)
        self.print(f"{self.name}: steps {start + 1} to {self.args.steps} on {self.device}, {str(self.dtype)[6:]}")
        for key, value in facts.items():
            self.print(f"  {key}: {value}")

    def _open_log(self, path, start):
        """The open log.csv, with the rows of earlier steps only: what a killed run wrote after its last save goes."""
        rows = []
        if path.exists():
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values() and int(row["step"]) <= start]
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)
        return open(path, "a", newline="")

    def _on_signal(self, signal_number, frame):
        # A second Ctrl-C does not wait for the step to end; but torchrun itself sends a second signal after the first.
        if self.stop_signal == signal_number == signal.SIGINT and self.world_size == 1:
            raise KeyboardInterrupt
        self.stop_signal = signal_number

    def print(self, *words):
        if self.rank == 0:
            print(*words, flush=True)

    def steps(self, loader, start):
        """Yield (step, lr_imgs, hr_imgs), on the device, for the steps after `start`, until the last or a signal."""
        from datasets import training_pair

        batches = iter(loader)
        for step in range(start + 1, self.args.steps + 1):
            before = time.perf_counter()
            crops, bad_files = next(batches)
            if bad_files and not self.bad_files:
                self.print(f"step {step}: another image is drawn in place of {bad_files[0]}")
            self.bad_files += bad_files
            self.waited += time.perf_counter() - before
            yield step, *training_pair(crops.to(self.device, non_blocking=True), self.args.scale)
            self._write_row()
            if self.stopping:
                if self.rank == 0:
                    self.board.close()
                self.print(f"stopped after step {step}; go on with the same command and --resume")
                return
        if self.rank == 0:
            options = {key: v if isinstance(v, (int, float)) else str(v) for key, v in vars(self.args).items()}
            self.board.add_hparams(options, {f"final/{key}": value for key, value in self.figures.items()}, run_name=".")
            self.board.close()
        self.bad_files = sum(self.processes.gather(self.bad_files), [])
        if self.bad_files:
            self.print(f"{len(self.bad_files)} times an image could not be used; the first: {self.bad_files[0]}")
        self.print(f"done: {self.args.steps} steps; weights in {self.checkpoints}, logs and samples in {self.results}")

    def log(self, step, learning_rate, **losses):
        """Add up the step's figures (tensors stay on the device); print and record their means every --log-every steps."""
        import torch

        losses = {key: value.detach().float() for key, value in losses.items()}
        total = sum(losses.values())
        self.first_bad = torch.where((self.first_bad == 0) & ~torch.isfinite(total), step, self.first_bad)
        for key, value in losses.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.count += 1
        if step % self.args.log_every and step != self.args.steps:
            return None
        self._check_finite()
        means = self._mean_of_processes({key: value / self.count for key, value in self.sums.items()})
        means = {key: value.item() for key, value in means.items()}
        self.sums, self.count = {}, 0
        self.record(step, learning_rate=learning_rate, **means)
        seconds = time.perf_counter() - self.clock
        rate = (step - self.clock_step) / seconds
        if self.rank == 0:
            self.board.add_scalar("speed/steps_per_second", rate, step)
            self.board.add_scalar("speed/share_waiting_for_data", self.waited / seconds, step)
        figures = "  ".join(f"{key} {value:.4g}" for key, value in means.items() if not key.startswith("share_"))
        left = (self.args.steps - step) / rate
        self.print(f"step {step}/{self.args.steps}  {figures}  {rate:.2f} steps/s  ETA {duration(left)}")
        self.clock, self.clock_step, self.waited = time.perf_counter(), step, 0.0
        return means

    def _mean_of_processes(self, figures):
        """The mean over the processes of figures that each has of its own share of the batch."""
        if self.world_size == 1:
            return figures
        import torch

        figures = {key: value / self.world_size for key, value in figures.items()}
        for value in figures.values():
            torch.distributed.all_reduce(value)
        return figures

    def _check_finite(self):
        bad = int(self.first_bad)
        if bad:
            last = newest_checkpoint(self.checkpoints)
            raise UserError(
                f"step {bad}: a loss or gradient is not finite; the last good checkpoint is {last or 'none yet'}; "
                "try a lower --learning-rate, --warmup-steps, or --precision fp32"
            )

    def record(self, step, **figures):
        """Take figures of a step for log.csv and TensorBoard."""
        if self.rank > 0:
            return
        self.row |= {"step": step} | figures
        self.figures |= figures
        for key, value in figures.items():
            self.board.add_scalar(key if "/" in key else f"train/{key}", value, step)

    def _write_row(self):
        if self.rank > 0 or not self.row:
            return
        try:
            csv.DictWriter(self.csv_file, self.columns).writerow(self.row)
            self.csv_file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.csv_file.name}: {error.strerror}; go on with --resume") from None
        self.row = {}

    def validate_due(self, step):
        due = step % self.args.validate_every == 0 or step == self.args.steps
        if due:
            self._check_finite()  # or best.pth could be of weights that are not
        return due

    def save_due(self, step):
        """Whether to save now: every --save-every steps, at the last, and when a signal asks the run to stop."""
        self.stopping = self.processes.any(self.stop_signal is not None)
        due = self.stopping or step % self.args.save_every == 0 or step == self.args.steps
        if due:
            self._check_finite()
        return due

    def validate(self, step, network, pairs, more_metrics=None):
        """Measure a network from `for_inference` on test pairs; record, print and return the means; write a sample panel."""
        if self.world_size > 1:  # on CPUs the processes' batch statistics are not quite the same
            import torch

            for tensor in network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        if self.rank == 0:
            panel = write_panel(self.results / "samples" / f"step_{step:08d}.png", network, pairs)
            self.board.add_image("samples", panel, step, dataformats="HWC")
        entries = evaluate(network, pairs, more_metrics, self.processes)
        means = mean_figures(entries)
        self.record(step, **{f"validation/{key}": value for key, value in means.items()})
        self.print(f"step {step}: validation " + "  ".join(f"{key} {value:.4f}" for key, value in means.items()))
        return means

    def save_if_best(self, step, figure, network):
        """Write best.pth, with the weights alone, if `figure` (the higher the better) is the best of the run so far."""
        if self.best is not None and not math.isnan(self.best) and not figure > self.best:
            return
        self.best = figure
        if self.rank == 0:
            save_checkpoint(
                self.checkpoints / "best.pth", {"config": network.config, "weights": network.state_dict(), "step": step}
            )

    def save(self, step, **state):
        """Write a checkpoint as step_*.pth, of which the newest two stay, and as last.pth."""
        self._write_row()
        sums = self._mean_of_processes(self.sums)
        if self.rank > 0:
            return
        log = {"sums": {key: value.item() for key, value in sums.items()}, "count": self.count}
        options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.args).items()}
        path = self.checkpoints / f"step_{step:08d}.pth"
        state |= {"step": step, "args": options, "data": self.dataset.fingerprint, "log": log, "best": self.best}
        save_checkpoint(path, state)
        self._tidy_checkpoints()
        self.print(f"step {step}: saved {path}")

    def _tidy_checkpoints(self):
        """Make last.pth the newest checkpoint, and keep but one older one; at the start too, after a kill in between."""
        checkpoints = step_checkpoints(self.checkpoints)
        for old in checkpoints[2:]:
            old.unlink()
        if checkpoints:
            replace_by_link(checkpoints[0], self.checkpoints / "last.pth")

    def restore(self, checkpoint, dataset):
        """Take up the log and the best figure of a checkpoint and return its step.

        Raises UserError if the arguments now would change the result.
        """
        import torch

        before, now = checkpoint["args"], vars(self.args)
        if before.get("stage") != now["stage"]:
            raise UserError(f"--resume: the run {self.name} is one of the other stage; give another name by --run")
        free = FREE_ON_RESUME | ({"steps"} if now["schedule"] == "constant" else set())
        # A flag that the checkpoint does not know yet was off: None, False or 0.
        changed = [key for key in sorted(now) if key not in free and (before.get(key) or None) != (now[key] or None)]
        if changed:
            changes = "; ".join(f"--{key.replace('_', '-')} was {before.get(key)}, is {now[key]}" for key in changed)
            raise UserError(f"--resume would change the result of the run {self.name}: {changes}")
        if checkpoint["data"] != dataset.fingerprint:
            raise UserError(f"--resume: {dataset.list_file} is not the list of images that the run {self.name} began with")
        self.sums = {k: torch.tensor(v, device=self.device) for k, v in checkpoint["log"]["sums"].items()}
        self.count, self.best = checkpoint["log"]["count"], checkpoint["best"]
        now |= {key: value for key, value in before.items() if key.startswith("init")}  # for the record of where it began
        return checkpoint["step"]


def duration(seconds):
    """Seconds as 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: state dicts, config and step; plain Python values and tensors only
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path):
    """A binary file to write to, which takes the place of `path` when, and only when, it is whole and on the disk.

    Raises UserError if it cannot be written; the earlier file, if any, is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a small file, whole or not at all, making its folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # names of files need not be valid UTF-8


def read_json(path):
    """The value in a JSON file that `write_text` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))


def save_checkpoint(path, state):
    """Write a dict of plain values and tensors to `path`, whole or not at all. Raises UserError, as on a full disk."""
    import io

    import torch

    buffer = io.BytesIO()  # so that what fails below is the file, and says so as an OSError
    torch.save(state, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


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


def load_checkpoint(path) -> dict:
    """The dict in a checkpoint or safetensors file, on the CPU; never runs code from it. Raises UserError if none is whole."""
    import pickle

    import torch

    if Path(path).suffix == ".safetensors":
        from weight_formats import read_safetensors

        return read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read, or is not whole: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not found:
            raise UserError(f"{path}: not a whole PyTorch file (truncated, or something else)") from None
        raise UserError(
            f"{path}: holds a Python object ({found[1]}), which could run code, and is not loaded; with the code that made it, "
            "load it and save its weights alone: torch.save(model.state_dict(), 'weights.pth')"
        ) from None
    except Exception:  # PyTorch raises whatever the bytes lead it to
        raise UserError(f"{path}: not a whole PyTorch file (truncated, or something else)") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def step_checkpoints(folder):
    """The step_*.pth files of a run, newest first."""
    return sorted(Path(folder).glob("step_*.pth"), reverse=True)


def newest_checkpoint(folder):
    """The path of the newest checkpoint of a run, or None."""
    candidates = [*step_checkpoints(folder), Path(folder) / "last.pth"]
    return next((path for path in candidates if path.exists()), None)


def load_newest(folder) -> dict:
    """The newest checkpoint of a run that reads back whole. Raises UserError if there is none."""
    for path in filter(Path.exists, [*step_checkpoints(folder), Path(folder) / "last.pth"]):
        try:
            return load_checkpoint(path)
        except UserError as error:
            print(f"passed over: {error}", file=sys.stderr)
    raise UserError(f"{folder} holds no checkpoint to go on from; start anew without --resume, under another --run")


def load_network(path):
    """The network in a checkpoint, on the CPU: the moving average of its weights if there is one.

    Also takes a bare state dict of a SRResNet or SRGAN generator, with or without the prefixes that DataParallel and
    torch.compile put before the names, and those of other implementations that weight_formats.py knows. Raises UserError
    for anything else.
    """
    from models import build_network
    from weight_formats import config_of, in_our_names, state_dict_in

    checkpoint = load_checkpoint(path)
    weights = state_dict_in(checkpoint)
    try:
        network = build_network(checkpoint.get("config") or config_of(weights))
        network.load_state_dict(in_our_names(weights, network, path))
    except (ValueError, RuntimeError, AttributeError, LookupError) as error:
        reason = "no weights of a network that upscales" if isinstance(error, (AttributeError, LookupError)) else error
        raise UserError(f"{path}: does not fit: {str(reason)[:300]}") from None
    return network


def blend_networks(first, second, share):
    """The network with weights (1 - share) * first + share * second; `second` was trained from `first`.

    Wang et al., "Deep Network Interpolation for Continuous Imagery Effect Transition", CVPR 2019. Raises UserError for
    networks of different sizes.
    """
    first, second = (getattr(network, "net", network) for network in (first, second))
    if first.config != second.config:
        raise UserError(f"only networks of one size can be blended, not {first.config} and {second.config}")
    values = second.state_dict()
    for key, value in first.state_dict().items():
        if value.is_floating_point():
            values[key].lerp_(value, 1 - share)
    return second


def start_from(path, network):
    """Give a network the weights of another one, as far as they fit; says which did not."""
    source, target = load_network(path), getattr(network, "net", network)
    if source.config.get("imagenet_input") != target.config.get("imagenet_input"):
        raise UserError(f"{path}: these weights take LR images normalised as for ImageNet, unlike the network to start")
    weights = {key.removeprefix("net."): value for key, value in source.state_dict().items()}
    own = target.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    target.load_state_dict(own | fitting)
    fresh = [key for key in own if key not in fitting]
    unused = [key for key in weights if key not in fitting]
    if fresh or unused:
        print(f"{path}: what fits is taken; not in it or of another shape, so untrained: {', '.join(fresh) or 'nothing'}")
        print(f"{path}: not used: {', '.join(unused) or 'nothing'}")


def update_ema(ema, network, step, decay):
    """Move the average `ema` a step towards `network`: weights and batch statistics; the first steps move it faster."""
    import torch

    decay = min(decay, (1 + step) / (10 + step))
    for average, value in zip(ema.state_dict().values(), network.state_dict().values(), strict=True):
        if not value.is_floating_point():
            average.copy_(value)
    averages = [value for value in ema.state_dict().values() if value.is_floating_point()]
    values = [value for value in network.state_dict().values() if value.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_(averages, values, 1 - decay)


def freeze_bn(network):
    """Let batch normalisation use the statistics it has, and leave them as they are."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Pixels and metrics: pictures are uint8 arrays (H, W, 3), RGB
# ---------------------------------------------------------------------------------------------------------------------

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


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
    if not paths:
        raise UserError(f"{list_file}: the list is empty; make it anew with create_data_lists.py")
    return paths


def read_image(path) -> np.ndarray:
    """An image file as RGB, (H, W, 3) uint8, upright. Raises ImageError if it is no image that can be read whole.

    Transparent pixels are laid on white; 16-bit values lose their lower half.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is no file")  # a named pipe would be waited for
        with open(path, "rb") as file, Image.open(file) as image:  # by its path, Pillow would map it, with errors
            image = upright(image)
            if image.mode == "F":
                raise ValueError("floating-point pixels, whose range nobody knows")
            if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
                image = Image.fromarray((deep_gray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # Pillow raises whatever its decoders do
        raise ImageError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from None


def orientation_of(image):
    """The orientation of a Pillow image by its EXIF, 1 (upright) to 8; 1 if that is damaged, as it often is."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises whatever the bytes lead it to
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def upright(image):
    """The Pillow image turned as its EXIF says; itself, and not a copy, if it is upright."""
    image.load()  # which turns a TIFF
    turns = Image.Transpose
    methods = [None, turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM]
    methods += [turns.TRANSPOSE, turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90]
    method = methods[orientation_of(image) - 1]
    return image if method is None else image.transpose(method)


def deep_gray(image):
    """The pixels of a loaded Pillow image of more than 8 bits, gray: (H, W) uint16, 0 black. Raises ValueError for others."""
    pixels, tags = np.asarray(image).astype(np.int64), getattr(image, "tag_v2", {})
    levels = 4095 if np.max(tags.get(258, 16)) == 12 else 65535
    if pixels.min() < 0 or pixels.max() > levels:
        raise ValueError("gray of 32 bits, whose range nobody knows; save it with 8 or 16 bits")
    pixels = levels - pixels if tags.get(262) == 0 else pixels  # a TIFF in which 0 is white
    return (pixels * 65535 // levels).astype(np.uint16)


def write_image(path, img):
    """Write (H, W, 3) uint8 as a PNG file, whole or not at all, making its folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(img).save(file, "PNG")


def crop_to_multiple(image, scale, name="image"):
    """The image without the last rows and columns that are no multiple of `scale`. Raises ImageError if none are left."""
    height, width = (size // scale * scale for size in image.shape[:2])
    if not height or not width:
        raise ImageError(f"{name}: smaller than {scale} pixels")
    return image[:height, :width]


def downscale(hr_img, scale):
    """Pillow's bicubic, which is antialiased: (scale*h, scale*w, 3) uint8 -> (h, w, 3) uint8."""
    height, width = hr_img.shape[0] // scale, hr_img.shape[1] // scale
    return np.asarray(Image.fromarray(hr_img).resize((width, height), Image.Resampling.BICUBIC))


def enlarge(lr_img, size, method="bicubic"):
    """Pillow's bicubic or bilinear: (h, w, 3) uint8 -> (H, W, 3) uint8, where `size` is (H, W) or the factor to it."""
    height, width = size if isinstance(size, tuple) else (size * side for side in lr_img.shape[:2])
    return np.asarray(Image.fromarray(lr_img).resize((width, height), Image.Resampling[method.upper()]))


def to_tensor(img, device="cpu"):
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [-1, 1], as HR and SR images are."""
    import torch

    return torch.from_numpy(img.copy()).to(device).permute(2, 0, 1)[None].float().div_(127.5).sub_(1)


# Upscaling by tiles. `features` sees far, through cheap maps on the LR grid; `reconstruct` sees a few pixels, through
# maps of scale * scale times the size. So a large tile of features is reconstructed in small blocks: the overlap of the
# large tiles wastes little, and the memory is that of a block. (Whole-network tiles as small would do half their work twice.)

# In LR pixels: the side of a tile of features on the CPU, and of what is reconstructed at a time. With their margins the
# largest maps in bf16 are then just under the 32 MB up to which keep_freed_memory keeps them.
TILE, BLOCK = 430, 120


def upscale(network, lr_img, tile=None, progress=None) -> np.ndarray:
    """The SR image of a network from `for_inference`: (h, w, 3) -> (scale*h, scale*w, 3), both uint8 or both uint16.

    The output is clamped and rounded. An image larger than `tile` LR pixels (default: what fits in memory) is made in
    tiles that overlap by the receptive field, so that the result is that of the whole image, to rounding; a tile that
    does not fit after all is halved. `progress(done, total)` hears of each finished part, in LR pixels.
    Raises UserError if not even a tile of 16 pixels fits.
    """
    scale, (height, width) = network.config["scale"], lr_img.shape[:2]
    out = np.empty((scale * height, scale * width, 3), lr_img.dtype)
    tile = tile or tile_that_fits(network)
    todo = tiles(0, 0, height, width, tile)[::-1]
    done = 0
    while todo:
        top, left, bottom, right = part = todo.pop()
        if max(bottom - top, right - left) > tile:  # a tile did not fit since this part was planned
            todo += tiles(*part, tile)[::-1]
            continue
        try:
            upscale_tile(network, lr_img, part, out)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if tile <= 16:
                raise UserError("not enough memory even for a tile of 16 pixels; close other programs") from None
            tile = max(16, min(tile, max(bottom - top, right - left)) // 2)
            todo.append(part)
            continue
        done += (bottom - top) * (right - left)
        if progress:
            progress(done, height * width)
    return out


def upscale_tile(network, lr_img, part, out):
    """Write the SR pixels of `part` (top, left, bottom, right) of the LR image where they belong in `out`."""
    import torch

    def around(area, margin):
        top, left, bottom, right = area
        return max(0, top - margin), max(0, left - margin), min(height, bottom + margin), min(width, right + margin)

    scale, (height, width) = network.config["scale"], lr_img.shape[:2]
    weight, levels = next(network.parameters()), np.iinfo(lr_img.dtype).max
    margin = network.reconstruct_margin
    wanted = around(part, margin)
    seen = y0, x0, y1, x1 = around(wanted, network.features_margin)
    halo = [abs(outer - inner) for outer, inner in zip(seen, wanted)]
    with torch.inference_mode():
        lr = torch.from_numpy(lr_img[y0:y1, x0:x1].astype(np.float32) / levels).to(weight.device, weight.dtype)
        features = network.features(lr.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last), halo)
        for block in tiles(*part, BLOCK):
            top, left, bottom, right = around(block, margin)
            maps = features[:, :, top - wanted[0] : bottom - wanted[0], left - wanted[1] : right - wanted[1]]
            sr = network.reconstruct(maps)[0]
            sr = sr[:, scale * (block[0] - top) :, scale * (block[1] - left) :]
            sr = sr[:, : scale * (block[2] - block[0]), : scale * (block[3] - block[1])].float()
            pixels = sr.add(1).mul(levels / 2).round().clamp(0, levels).permute(1, 2, 0).cpu().numpy()
            top, left, bottom, right = (scale * edge for edge in block)
            out[top:bottom, left:right] = pixels


def tiles(top, left, bottom, right, size):
    """Cut an area into equal parts of at most `size` pixels a side: [(top, left, bottom, right), ...]."""
    rows = np.linspace(top, bottom, -(-(bottom - top) // size) + 1).astype(int).tolist()
    columns = np.linspace(left, right, -(-(right - left) // size) + 1).astype(int).tolist()
    return [(y0, x0, y1, x1) for y0, y1 in zip(rows, rows[1:]) for x0, x1 in zip(columns, columns[1:])]


def tile_that_fits(network):
    """The side of a tile, LR pixels, whose features take at most a third of the free memory; on the CPU at most TILE."""
    import torch

    weight = next(network.parameters())
    if weight.device.type == "cuda":
        memory = torch.cuda.mem_get_info(weight.device)[0] / 3
    else:
        try:
            memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 3
        except (AttributeError, ValueError, OSError):  # Windows and macOS do not tell
            memory = 1e9
    maps = 6  # feature maps alive at a time: the long skip, the short one, a convolution's input and output, its scratch
    side = math.sqrt(memory / (maps * network.config.get("channels", 64) * weight.element_size()))
    side = max(64, int(side) - 2 * (network.features_margin + network.reconstruct_margin))
    return side if weight.device.type == "cuda" else min(side, TILE)


def is_out_of_memory(error):
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def luminance(img):
    """Y of BT.601 in studio range: (H, W, 3) uint8 -> (H, W) float64 in [16, 235]."""
    return 16 + img.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


def psnr(sr_img, hr_img, border):
    """Peak signal-to-noise ratio on Y in dB, without `border` pixels at each side; infinite for equal images."""
    error = without_border(luminance(sr_img) - luminance(hr_img), border)
    if not error.size:
        return math.nan
    mse = np.mean(error**2)
    return 10 * math.log10(255**2 / mse) if mse else math.inf


def ssim(sr_img, hr_img, border):
    """Structural similarity on Y, at most 1, without `border` pixels at each side: 11x11 Gaussian window, sigma 1.5."""
    from skimage.metrics import structural_similarity

    sr, hr = (without_border(luminance(img), border) for img in (sr_img, hr_img))
    if min(hr.shape) < 11:
        return math.nan  # the window does not fit
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(sr, hr, **options))


def colour_shift(sr_img, lr_img):
    """How far the mean colour of the SR image is from that of the LR image: grey levels, in the channel where it is most.

    For looking at what a network does wrong, no metric of the table. Means are those of the SR image made small again.
    """
    small = np.asarray(Image.fromarray(sr_img).resize(lr_img.shape[1::-1], Image.Resampling.BICUBIC))
    return float(np.abs(small.mean((0, 1)) - lr_img.mean((0, 1))).max())


def without_border(plane, border):
    return plane[border : plane.shape[0] - border, border : plane.shape[1] - border]


def test_images(name, data_folder="data"):
    """The paths of a test set: the images of a folder, or a list in the data folder: `Set5` is Set5_test_images.json.

    Raises UserError where there is neither, or no image in it.
    """
    folder = Path(name)
    if folder.is_dir():
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise UserError(f"{folder}: no images in this folder (known endings: {' '.join(sorted(IMAGE_SUFFIXES))})")
        return paths
    lists = [Path(data_folder) / f"{name}{ending}" for ending in ("_images.json", "_test_images.json")]
    found = next((path for path in [folder, *lists] if path.suffix == ".json" and path.is_file()), None)
    if found is None:
        raise UserError(f"{name}: no folder of images, and no list {lists[0]} or {lists[1].name}")
    return read_list(found)


def evaluate(network, pairs, more_metrics=None, processes=None, on_image=None) -> list[dict]:
    """PSNR, SSIM, `more_metrics` (functions of the SR and the HR image, by name) and colour shift of each image.

    By the README's protocol. `pairs` is a datasets.TestPairs; `network` comes from `for_inference`, or is None for bicubic
    enlargement. Of several `processes` each measures its share and all get the whole list. `on_image(entry)` hears of each.
    """
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    entries = {}
    for i in range(rank, len(pairs), count):
        name, lr_img, hr_img = pairs[i]
        sr_img = enlarge(lr_img, pairs.scale) if network is None else upscale(network, lr_img)
        entries[i] = {"image": name, "psnr": psnr(sr_img, hr_img, pairs.scale), "ssim": ssim(sr_img, hr_img, pairs.scale)}
        for key, measure in (more_metrics or {}).items():
            entries[i][key] = measure(sr_img, hr_img)
        entries[i]["colour_shift"] = colour_shift(sr_img, lr_img)
        if on_image:
            on_image(entries[i])
    if count > 1:
        entries = {i: entry for share in processes.gather(entries) for i, entry in share.items()}
    return [entries[i] for i in sorted(entries)]


def mean_figures(entries):
    """The mean over images of each figure."""
    return {key: float(np.mean([entry[key] for entry in entries])) for key in entries[0] if key != "image"}


def write_panel(path, network, pairs, images=4, size=192):
    """Write the middles of a few test pairs as rows of bicubic | SR | HR; return that picture, (H, W, 3) uint8."""
    from comparison import labelled_row, stack

    rows = []
    for i in range(min(images, len(pairs))):
        name, lr_img, hr_img = pairs[i]
        height, width = (min(size // pairs.scale, side) for side in lr_img.shape[:2])
        top, left = (lr_img.shape[0] - height) // 2, (lr_img.shape[1] - width) // 2
        lr_img = lr_img[top : top + height, left : left + width]
        hr_img = hr_img[top * pairs.scale :, left * pairs.scale :][: height * pairs.scale, : width * pairs.scale]
        trio = [enlarge(lr_img, pairs.scale), upscale(network, lr_img), hr_img]
        rows.append(labelled_row(trio, [f"bicubic, {name[:12]}", "SR", "HR"]))
    panel = np.asarray(stack(rows))
    write_image(path, panel)
    return panel


def load_lpips(backbone="imagenet", device="cpu"):
    """The metric LPIPS (AlexNet, v0.1): a function of an SR and an HR image (H, W, 3) uint8; the lower the closer.

    `backbone` is "imagenet" (torchvision downloads AlexNet) or the path of a state dict of `alexnet().features`.
    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, by their package.
    Raises UserError where the package or the weights are not to be had.
    """
    import torch

    try:
        import lpips
    except ImportError:
        raise UserError("LPIPS needs the package lpips: pip install lpips") from None
    with warnings.catch_warnings():  # the package asks torchvision for AlexNet in an old way
        warnings.simplefilter("ignore")
        metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # its linear layers come with it
    if backbone == "imagenet":
        from torchvision.models import AlexNet_Weights

        try:
            state = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        except OSError as error:
            raise UserError(f"AlexNet cannot be downloaded ({error}); give a file by --lpips-backbone") from None
    else:
        state = load_checkpoint(backbone)
    state = {key.removeprefix("features."): value for key, value in state.items()}
    try:
        for layers in (getattr(metric.net, f"slice{i}") for i in range(1, metric.net.N_slices + 1)):
            layers.load_state_dict({key: state[key] for key in layers.state_dict()})
    except (KeyError, RuntimeError):
        raise UserError(f"{backbone}: not the features of torchvision's AlexNet") from None
    metric.to(device).requires_grad_(False)

    def measure(sr_img, hr_img):
        with torch.inference_mode():
            return metric(to_tensor(sr_img, device), to_tensor(hr_img, device)).item()

    return measure
