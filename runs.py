"""A training run: its checkpoints, and when to print, validate, save and stop; learning rate and moving average.

`Checkpoints` keeps and restores, `Run` decides, `Log` (logs.py) writes. The processes of torchrun are devices.Processes.
Not here: networks, losses, and the steps themselves, which stand in the training scripts.
"""

import functools
import json
import math
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from batchnorm import fit_statistics
from compiling import eager_if_it_fails, should_compile
from datasets import SRDataset, TestPairs, train_loader, training_pair
from devices import Processes, available_cores, gradient_scaler, pick_dtype
from image_lists import list_called, test_images
from inference import upscale
from logs import Log
from metrics import SMALLEST_FOR_LPIPS, evaluate, mean_figures
from pictures.comparison import labelled_row, stack
from pictures.pixels import enlarge, write_image
from utils import ImageError, UserError, lock_file, replace_by_link, unlock_file, write_text
from weights import load_checkpoint, save_checkpoint

# What may differ when a run is resumed: it changes where things are, how fast they go or what is shown, not what is learnt.
FREE_ON_RESUME = {"data_folder", "name", "run", "recipe", "resume", "workers", "device", "precision", "compile", "dry_run"}
FREE_ON_RESUME |= {"init", "init_discriminator", "validate_on", "validate_every", "save_every", "log_every"}
# What was done before there was the flag, where that is not None, False or 0.
WITHOUT_FLAG = {"degradation": "bicubic", "discriminator": "paper", "optimizer": "adam"}

FILES = {"faithful", "sharp", "clean_pair", "vgg_weights", "lpips_backbone"}  # flags of files, which may be spelled anew

# dB, of two pixels in three wrong by a level. Beyond that a blank page would count more than all photographs, and without end.
PSNR_LIMIT = 50.0

LOCK = ".lock"  # in the folder of a run's checkpoints, while a process trains
STOP_EVERY = 10  # steps, after which several processes ask each other for the signal to stop: asking takes as long as a step


class Checkpoints:
    """The checkpoints of a run in their folder: step_*.pth, of which the newest two stay, last.pth and best.pth."""

    def __init__(self, folder):
        self.folder, self.lock = folder, None

    def claim(self):
        """Lock the folder, which is made if need be, for this process; returns whether no other process has it."""
        if self.lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = lock_file(self.folder / LOCK)
        return self.lock is not None

    def release(self):
        if self.lock is not None:
            unlock_file(self.lock)
            self.lock = None

    def clear(self):
        """Remove all that is in the folder, but for the lock, without which the next process would take it."""
        for path in self.folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def open(self, start):
        """Make the folder ready to go on after step `start`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in self.folder.glob(".*.tmp"):
            left_by_a_kill.unlink()
        for newer in self.of_steps():  # than what was restored, so they do not read back
            if newer.name > f"step_{start:08d}.pth":
                newer.unlink()
        self._tidy()

    def of_steps(self):
        """The step_*.pth files, newest first."""
        return sorted(self.folder.glob("step_*.pth"), reverse=True)

    def existing(self):
        """The paths that --resume may go on from, newest first."""
        return [path for path in (*self.of_steps(), self.folder / "last.pth") if path.exists()]

    def load_newest(self) -> dict:
        """The newest checkpoint that reads back whole. Raises UserError if there is none."""
        for path in self.existing():
            try:
                return load_checkpoint(path)
            except UserError as error:
                print(f"passed over: {error}", file=sys.stderr)
        raise UserError(f"{self.folder} holds no checkpoint to go on from; start anew without --resume, under another --name")

    def save(self, step, state):
        """Write a checkpoint as step_*.pth and as last.pth; return its path."""
        path = self.folder / f"step_{step:08d}.pth"
        save_checkpoint(path, state)
        self._tidy()
        return path

    def save_best(self, step, network):
        """Write best.pth, with the weights alone."""
        state = {"config": network.config, "weights": network.state_dict(), "step": step}
        save_checkpoint(self.folder / "best.pth", state)

    def _tidy(self):
        """Make last.pth the newest checkpoint, and keep but one older one; at the start too, after a kill in between."""
        paths = self.of_steps()
        for old in paths[2:]:
            old.unlink()
        if paths:
            replace_by_link(paths[0], self.folder / "last.pth")


class Run:
    """One training run: its folders, log and processes, and when to validate, save and stop.

    Under torchrun there is a Run in each process; only that of rank 0 writes. Nothing is written before `start`, but for
    the lock of a run that is there already. Raises UserError for a name that is taken, or for a run that another process
    trains.
    """

    def __init__(self, args, default_name):
        self.args, self.name = args, "dry_run" if args.dry_run else args.name or default_name
        parts = Path(self.name).parts
        if Path(self.name).is_absolute() or ".." in parts or not parts:
            raise UserError(f"--name {self.name}: it is of a folder below checkpoints and results")
        if parts[0] == "dry_run" and not args.dry_run:
            raise UserError(f"--name {self.name}: the next --dry-run would overwrite it")
        if args.dry_run and args.resume:
            raise UserError("--dry-run tries a run from its start: leave out --resume")
        self.checkpoints, self.results = Checkpoints(Path("checkpoints") / self.name), Path("results") / self.name
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
        self.scaler, self.compiled = gradient_scaler(self.device, self.dtype), False
        self.told = set()
        self.writer = Log(self.processes, args.steps)
        self.best, self.best_of = None, None  # the best figure, and the content of the pairs that it was measured on
        self.bad_files, self.stop_signal, self.stopping = [], None, False
        self.teachers = {}  # the fingerprints of the networks that it learns from, by flag

    @property
    def _taken(self):
        if self.checkpoints.existing():
            return f"the run {self.name} exists: go on with it by --resume, or give another name by --name"
        if any(path.is_dir() for path in self.checkpoints.folder.glob("*")):
            return f"{self.checkpoints.folder} holds other runs: give another name by --name"
        rest = " and ".join(str(folder) for folder in (self.checkpoints.folder, self.results) if folder.exists())
        return f"the run {self.name} exists, without a checkpoint for --resume: remove {rest}, or give another name by --name"

    def _claim_name(self):
        """Lock a run that is there, and clear the folders of a dry run; return what is wrong with the name, or None."""
        folders = self.checkpoints.folder, self.results
        if not self.args.dry_run and not self.args.resume and any(folder.exists() for folder in folders):
            running = self._lock() if (self.checkpoints.folder / LOCK).exists() else None
            self.checkpoints.release()
            return running or self._taken
        if self.checkpoints.folder.exists():  # a new run's folder is made and locked at its start
            problem = self._lock()
            if problem:
                return problem
            if self.args.dry_run:
                self.checkpoints.clear()
        if self.args.dry_run:
            shutil.rmtree(self.results, ignore_errors=True)
        return None

    def _lock(self):
        """Lock the folder of the run for this process; return why that cannot be done, or None."""
        try:
            if not self.checkpoints.claim():
                return f"another process is training the run {self.name}: let it end, stop it, or give another name by --name"
        except OSError as error:
            return f"cannot write {self.checkpoints.folder}: {error.strerror}"
        return None

    def parallel(self, network):
        """The network to train with: synchronised, distributed, compiled, as the run needs it."""
        if self.world_size > 1:
            if self.device.type == "cuda":
                network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
            network = torch.nn.parallel.DistributedDataParallel(network)
        if should_compile(self.args, self.device, self.dtype, network, self.tell_once):
            network, self.compiled = torch.compile(network), True
        return network

    def fit_to_crops(self, network, dataset):
        """Let a network of --init know the batch statistics of the crops, if it knows quite others (see `fit_statistics`)."""
        batch, _ = dataset.__getitems__(range(16))
        if isinstance(batch, UserError):
            raise batch
        lr_imgs, _ = training_pair(batch, self.args.scale, self.device)
        if fit_statistics(network, lr_imgs):
            self.print(f"{self.args.init}: trained with other batch statistics than those of the crops, and fitted to these")

    def guarded(self, step, *parts):
        """The training step `step`, which goes on eagerly if its first call fails with torch.compile; it changes `parts`."""
        return eager_if_it_fails(step, parts, self.scaler, self.print) if self.compiled else step

    def loader(self, dataset, start):
        """The batches of the steps after `start`, for this process (see datasets.train_loader)."""
        self.dataset = dataset
        if dataset.too_small:
            problem = f"{dataset.too_small} of {len(dataset.paths)} training images are smaller than --crop-size"
            self.print(f"{problem} {self.args.crop_size}; others are drawn in their place")
        workers = self.args.workers
        if workers is None:
            quick = dataset.pack is not None and dataset.degradation == "bicubic" and self.device.type == "cpu"
            workers = 0 if quick else max(1, min(8, available_cores() // self.world_size))
        pinned = self.device.type == "cuda"
        share = self.args.batch_size, start, self.args.steps, self.rank, self.world_size
        return train_loader(dataset, *share, workers, pin_memory=pinned)

    def start(self, start, columns, recipe=(), **facts):
        """Open the folders and logs (of `columns`), and listen for SIGTERM and Ctrl-C; print and keep the `facts`.

        Of the `recipe`, names of arguments, prints what they are now.
        """
        problem = self._lock() if self.rank == 0 else None
        if self.rank == 0 and not self.args.resume and (self.checkpoints.existing() or self.results.exists()):
            problem = problem or self._taken  # by a run that began, and perhaps ended, since _claim_name
        problem = self.processes.gather(problem)[0]
        if problem:
            raise UserError(problem)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if self.rank == 0:
            self.checkpoints.open(start)
            (self.results / "samples").mkdir(parents=True, exist_ok=True)
            write_text(self.results / "config.json", json.dumps(self._options() | facts, indent=2) + "\n")
        scaled = self.scaler.is_enabled() or "loss_scale" in self.writer.sums  # the latter after a change of precision
        self.writer.open(self.results, [*columns, "loss_scale"] if scaled else columns, start)
        self.print(f"{self.name}: steps {start + 1} to {self.args.steps} on {self.device}, {str(self.dtype)[6:]}")
        if recipe:
            options = (f"--{key.replace('_', '-')} {getattr(self.args, key)}" for key in recipe)
            self.print(f"  recipe {self.args.recipe}: {' '.join(options)}")
        for key, value in facts.items():
            self.print(f"  {key}: {value}")

    def _options(self):
        """The arguments, as JSON and checkpoints hold them."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.args).items()}

    def _on_signal(self, signal_number, frame):
        # A second Ctrl-C does not wait for the step to end; but torchrun itself sends a second signal after the first.
        if self.stop_signal == signal_number == signal.SIGINT and self.world_size == 1:
            raise KeyboardInterrupt
        self.stop_signal = signal_number

    def print(self, *words):
        self.writer.print(*words)

    def tell_once(self, line):
        if line not in self.told:
            self.told.add(line)
            self.print(line)

    def steps(self, loader, start):
        """Yield (step, lr_imgs, hr_imgs), on the device, for the steps after `start`, until the last or a signal."""
        batches = iter(loader)
        for step in range(start + 1, self.args.steps + 1):
            before = time.perf_counter()
            batch, bad_files = next(batches)
            if bad_files and not self.bad_files:
                self.print(f"step {step}: another image is drawn in place of {bad_files[0]}")
            self.bad_files += bad_files
            self.writer.waited += time.perf_counter() - before
            torch.backends.cudnn.benchmark = self.device.type == "cuda"  # the crops are of one size: its trials pay
            yield step, *training_pair(batch, self.args.scale, self.device)
            self.writer.write_row()
            if self.stopping:
                self.writer.close()
                self.checkpoints.release()
                self.print(f"stopped after step {step}; go on with the same command and --resume")
                return
        self.writer.close(vars(self.args))
        self.checkpoints.release()
        self.bad_files = sum(self.processes.gather(self.bad_files), [])
        if self.bad_files:
            self.print(f"{len(self.bad_files)} times an image could not be used; the first: {self.bad_files[0]}")
        folder = self.checkpoints.folder
        self.print(f"done: {self.args.steps} steps; weights in {folder}, logs and samples in {self.results}")

    def log(self, step, learning_rate, **figures):
        """Take the step's figures, tensors of one number; every --log-every steps return their means, else None."""
        if self.scaler.is_enabled():
            figures["loss_scale"] = self.scaler.scale(torch.ones((), device=self.device))
        self.writer.add(step, figures)
        if step % self.args.log_every and step != self.args.steps:
            return None
        self._check_finite()
        return self.writer.means(step, learning_rate)

    def _check_finite(self):
        bad = int(self.writer.first_bad)
        if bad:
            last = next(iter(self.checkpoints.existing()), "none yet")
            raise UserError(
                f"step {bad}: a loss or gradient is not finite; the last good checkpoint is {last}; "
                "try a lower --learning-rate, --warmup-steps, or --precision fp32"
            )

    def validate_due(self, step):
        due = step % self.args.validate_every == 0 or step == self.args.steps
        if due:
            self._check_finite()  # or best.pth could be of weights that are not
        return due

    def save_due(self, step):
        """Whether to save now: every --save-every steps, at the last, and when a signal asks the run to stop."""
        due = step % self.args.save_every == 0 or step == self.args.steps
        if self.world_size == 1 or due or step % STOP_EVERY == 0:
            self.stopping = self.processes.any(self.stop_signal is not None)
        due = due or self.stopping
        if due:
            self._check_finite()
        return due

    def validate(self, step, network, pairs, more_metrics=None):
        """Measure a network from `for_inference` on test pairs; record, print and return the means; write a sample panel.

        The PSNR of an image counts as at most PSNR_LIMIT.
        """
        if self.world_size > 1:  # on CPUs the processes' batch statistics are not quite the same
            for tensor in network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        torch.backends.cudnn.benchmark = False  # pictures are of many sizes
        if self.best is not None and self.best_of not in (None, pairs.content):
            self.best = None  # the figures of two sets are not to be compared
            self.print("best.pth will be chosen anew: the validation images are not those of before")
        self.best_of = pairs.content
        if self.rank == 0:
            panel = write_panel(self.results / "samples" / f"step_{step:08d}.png", network, pairs)
            self.writer.board.add_image("samples", panel, step, dataformats="HWC")
        entries = evaluate(network, pairs, more_metrics, self.processes)
        means = mean_figures([entry | {"psnr": min(entry["psnr"], PSNR_LIMIT)} for entry in entries])
        self.writer.record(step, **{f"validation/{key}": value for key, value in means.items()})
        self.print(f"step {step}: validation " + "  ".join(f"{key} {value:.4f}" for key, value in means.items()))
        return means

    def save_if_best(self, step, figure, network):
        """Write best.pth, with the weights alone, if `figure` (the higher the better) is the best of the run so far."""
        if self.best is not None and math.isfinite(self.best) and not figure > self.best:
            return
        self.best = figure
        if self.rank == 0:
            self.checkpoints.save_best(step, network)

    def save(self, step, **state):
        """Write a checkpoint to go on from: `state`, and what the run itself needs."""
        self.writer.write_row()
        log = self.writer.state()
        if self.rank > 0:
            return
        state |= {"step": step, "args": self._options(), "log": log, "best": self.best}
        state |= {"data": self.dataset.fingerprint, "content": self.dataset.content, "validation": self.best_of}
        state["teachers"] = self.teachers
        state["scaler"] = self.scaler.state_dict()
        path = self.checkpoints.save(step, state)
        self.print(f"step {step}: saved {path}")

    def _another_run(self):
        """The flags, in place of --resume, of a run that begins where this one is."""
        compares = getattr(self.args, "excess_weight", None) and self.args.stage == 2
        faithful = f" --faithful {self.args.faithful or self.args.init}" if compares else ""
        return f"--name ANOTHER --init {self.checkpoints.folder / 'last.pth'}{faithful}"

    def restore(self, checkpoint, dataset):
        """Take up the log, the best figure and the scale of the loss of a checkpoint and return its step.

        Raises UserError if the arguments now would change the result.
        """
        before, now = checkpoint["args"], vars(self.args)
        if before.get("stage") != now["stage"]:
            raise UserError(f"--resume: the run {self.name} is one of another stage; give another name by --name")
        free = FREE_ON_RESUME | ({"steps"} if now["schedule"] == "constant" else set())
        # A flag that the checkpoint does not know was off: None, False or 0, or as WITHOUT_FLAG says. So was one that is gone
        # by now, or the run cannot go on as it began.
        before = {key: value for key, value in WITHOUT_FLAG.items() if key in now} | before
        keys = sorted((now.keys() | before.keys()) - free)
        changed = [key for key in keys if (before.get(key) or None) != (now.get(key) or None)]
        changed = [key for key in changed if key not in FILES or not one_file(before.get(key), now[key])]
        if changed:
            changes = "; ".join(f"--{key.replace('_', '-')} was {before.get(key)}, is {now.get(key)}" for key in changed)
            way_on = f"give them as they were, or begin another run with its weights: {self._another_run()}"
            raise UserError(f"--resume would change the result of the run {self.name}: {changes}; {way_on}")
        if checkpoint["step"] > self.args.steps:
            step = checkpoint["step"]
            raise UserError(f"--resume --steps {self.args.steps}: the run {self.name} is at step {step} already; give more")
        if checkpoint["data"] != dataset.fingerprint:
            problem = f"--resume: {dataset.list_file} is not the list of images that the run {self.name} began with"
            way_on = f"give the --data-folder of then, or begin another run with its weights: {self._another_run()}"
            raise UserError(f"{problem}; {way_on}")
        if checkpoint.get("content", dataset.content) != dataset.content:  # versions before did not keep it
            problem = f"--resume: the images of {dataset.list_file} are not the files, or not the pack, that the run began with"
            raise UserError(f"{problem}; begin another run with its weights: {self._another_run()}")
        self.writer.restore(checkpoint["log"])
        self.best, self.best_of = checkpoint["best"], checkpoint.get("validation")
        images = before.get("validate_on", now["validate_on"]), now["validate_on"]
        if images[0] != images[1] and not one_file(*images):  # their figures are not to be compared
            self.best = None
            self.print(f"best.pth will be chosen anew: --validate-on was {images[0]}, is {images[1]}")
        self.scaler.load_state_dict(checkpoint.get("scaler") or self.scaler.state_dict())  # none of before, or of fp32
        now |= {key: value for key, value in before.items() if key.startswith("init")}  # for the record of where it began
        return checkpoint["step"]

    def learn_from(self, checkpoint, **networks):
        """Keep which networks the run learns from: lists of them, by flag.

        Raises UserError if they were others when the run of the checkpoint (None: a new run) began.
        """
        self.teachers = {flag: fingerprint(of_flag) for flag, of_flag in networks.items() if of_flag}
        before = (checkpoint or {}).get("teachers", {})  # versions before did not keep them
        for flag, found in self.teachers.items():
            if before.get(flag, found) != found:
                flag = flag.replace("_", "-")
                problem = f"--resume: the weights of --{flag} are not those that the run {self.name} began with"
                raise UserError(f"{problem}; give those, or begin another run with its weights: {self._another_run()}")


def fingerprint(networks):
    """A number that tells networks apart from those with other weights."""
    tensors = (tensor for network in networks for tensor in network.state_dict().values())
    return functools.reduce(lambda crc, tensor: zlib.crc32(tensor.cpu().contiguous().numpy(), crc), tensors, 0)


def one_file(path, other):
    """Whether two flags name one file or folder that exists, or the same ones."""
    if isinstance(path, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(path) == len(other) and all(map(one_file, path, other))
    return bool(path and other) and Path(path).exists() and Path(path).resolve() == Path(other).resolve()


def load_data(args):
    """The training samples and the validation pairs of a run. Raises UserError or ImageError for what cannot be used."""
    list_file = args.data_folder / "train_images.json"
    shares = args.gray_share, args.stretch_share, args.flat_share, args.drawn_share
    dataset = SRDataset(list_file, args.crop_size, args.seed, *shares, args.degradation, args.scale)
    white = dataset.paths.white if list_called(args.validate_on, args.data_folder) is None else None  # a list has its own
    validation = test_images(args.validate_on, args.data_folder, white)
    validation = TestPairs(validation, args.scale, degradation=args.degradation)
    smallest = SMALLEST_FOR_LPIPS if getattr(args, "lpips_backbone", None) else 0
    for i, (_, _, hr_img) in enumerate(validation):  # a bad file is better found now than after thousands of steps
        if min(hr_img.shape[:2]) < smallest:
            raise ImageError(f"{validation.paths[i]}: too small to validate on: LPIPS needs {smallest} pixels each way")
    return dataset, validation


def learning_rate_at(step, args):
    """The learning rate of step 1, 2, ..., a pure function of the step."""
    rate = args.learning_rate * min(1.0, step / max(1, args.warmup_steps))
    if args.schedule == "step" and step > args.steps // 2:
        rate *= 0.1
    if args.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (step - 1) / args.steps))
    return rate


def update_ema(ema, network, step, decay):
    """Move the average `ema` a step towards `network`: weights and batch statistics; the first steps move it faster.

    Neither may have got new tensors since the first call.
    """
    decay = min(decay, (1 + step) / (10 + step))
    (averages, values), (counts, new_counts) = tensors_to_average(ema, network)
    with torch.no_grad():
        torch._foreach_lerp_(averages, values, 1 - decay)
        if counts:
            torch._foreach_copy_(counts, new_counts)


@functools.lru_cache(maxsize=1)  # to look them up takes a GPU's time for a step of small crops
def tensors_to_average(ema, network):
    """The tensors of both, in the same order: ((averages, values), (counts, new counts)), the counts being whole numbers."""
    pairs = list(zip(ema.state_dict().values(), network.state_dict().values(), strict=True))
    kinds = ([pair for pair in pairs if pair[0].is_floating_point() == floating] for floating in (True, False))
    return tuple(tuple(map(list, zip(*kind))) or ([], []) for kind in kinds)


def write_panel(path, network, pairs, images=4, size=192):
    """Write the middles of a few test pairs as rows of bicubic | SR | HR; return that picture, (H, W, 3) uint8."""
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
