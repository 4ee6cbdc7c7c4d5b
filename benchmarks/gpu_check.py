"""Check this repository on a GPU in a few minutes: outputs, training steps, waiting, resuming, speed, memory, short trainings.

    python benchmarks/gpu_check.py                                   # on CUDA if there is a card
    python benchmarks/gpu_check.py --device cpu                      # small sizes, under a minute
    python benchmarks/gpu_check.py --vgg-weights vgg19.pth --data-folder data

Needs no data: it trains on photographs of scikit-image, and without --vgg-weights with a random VGG19. Prints one Markdown
table last, writes it as JSON, and ends with status 1 if a check failed, whose names are then the last line on stderr.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from utils import ArgumentParser, add_device_arguments, number, user_errors

NAMES = ("precision", "tiles", "steps", "waiting", "resume", "speed", "memory", "training")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"what to check, of {', '.join(NAMES)}")
    add_device_arguments(parser)
    add("--steps", type=number(int, 1), help="of the short trainings (default: 500, on the CPU 4)")
    add("--data-folder", type=Path, help="lists of create_data_lists.py to train on (default: made of scikit-image's pictures)")
    add("--vgg-weights", type=Path, metavar="FILE", help="VGG19's features (default: random ones)")
    add("--output", type=Path, default=Path("results/gpu_check.json"), metavar="FILE", help="where the table goes as JSON")
    return parser.parse_args()


if __name__ == "__main__":  # before the imports that take seconds
    args = parse_arguments()

import contextlib
import copy
import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import tempfile
import time
import traceback
import warnings
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from skimage import data as pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import benchmark
import create_data_lists
import models
import runs
import train_distilled
import train_srgan
import train_srresnet
from compiling import should_compile
from datasets import TestPairs, training_pair
from devices import autocast, is_out_of_memory, pick_device, pick_dtype, return_memory
from image_lists import read_list
from inference import for_inference, upscale
from metrics import evaluate, mean_figures
from utils import UserError, write_text
from weights import load_network

SHIPPED = {"srresnet": ROOT / "checkpoints/srresnet_x4.pth", "srgan": ROOT / "checkpoints/srgan_x4.pth"}
# The root of the mean squared error of an output, over its own root mean square, that a precision may have.
LIMITS = {"fp32": 1e-4, "TF32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
# The PSNR of a picture by a precision against that in float32 on the CPU, dB.
ALIKE = {"fp32": 60, "fp16": 50, "bf16": 35}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# --- What the checks share -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_tf32():
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(matmul)


def precisions(device):
    """Those that the device has units for, and on the CPU all."""
    if device.type == "mps":
        return ["fp32"]
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return ["fp32", "fp16"] if old else ["fp32", "fp16", "bf16"]


def error(output, reference):
    """The root mean square of the difference over that of the reference."""
    output, reference = output.detach().float().cpu(), reference.detach().float().cpu()
    return ((output - reference).square().mean() / reference.square().mean()).sqrt().item()


def level(value, limit, text="{:.2g}"):
    """A figure with its limit, and whether it is within: the end of a row."""
    return text.format(value), f"at most {text.format(limit)}", bool(value <= limit)


def crops(args, count):
    """Training pairs on the CPU, cut from a photograph."""
    photo, size = pictures.coffee(), args.sizes.crop
    places = np.random.default_rng(0).integers(0, min(photo.shape[:2]) - size, (count, 2))
    cut = np.stack([photo[top : top + size, left : left + size] for top, left in places])
    return training_pair(torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous(), 4)


def vgg19(args, device, dtype=torch.float32):
    vgg = models.TruncatedVGG19(5, 4, str(args.vgg)).to(device, memory_format=torch.channels_last)
    vgg.layers.to(dtype)
    return vgg


def random_vgg19(path):
    """A file with VGG19's features, whose weights are drawn so that the features keep their size."""
    torch.manual_seed(0)
    layers = models.vgg19_features()
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
    torch.save({key: value.half() for key, value in layers.state_dict().items()}, path)
    return path


def make_data(folder, small):
    """Lists of four training and two validation images in `folder`, with a pack."""
    with contextlib.redirect_stdout(io.StringIO()):
        for kind, names in (("train", ("coffee", "rocket", "camera", "brick")), ("validation", ("astronaut", "chelsea"))):
            shapes = {}
            for name in names:
                image = Image.fromarray(getattr(pictures, name)()).convert("RGB")
                path = folder / f"{name}.png"
                (image.resize((96, 80)) if small and kind == "validation" else image).save(path)
                shapes[path] = Image.open(path).size[::-1]
            create_data_lists.write_list(folder / f"{kind}_images.json", shapes)
            if kind == "train":
                create_data_lists.write_pack(folder / "train_images.json", shapes, "on", 0)
    return folder


def words(args, stage, name, *more):
    """The command line of a training of the stage, in the sizes of this device."""
    shared = ["--data-folder", args.data, "--device", args.device, "--precision", args.precision, "--name", name]
    shared += ["--crop-size", args.sizes.crop, "--batch-size", args.sizes.batch, *args.sizes.flags]
    if stage == 2:
        shared += ["--vgg-weights", args.vgg, *args.sizes.gan_flags]
    return [str(word) for word in (*shared, *more)]


def train(stage, arguments):
    """Run a training script in this process; returns what it printed. What it does to signals is undone."""
    script = (train_srresnet, train_srgan)[stage - 1]
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            script.main(script.parse_arguments(arguments))
    finally:
        for n, handler in handlers.items():
            signal.signal(n, handler)
    return out.getvalue()


def logged(name, column):
    """The figures of a column that a run has written."""
    with open(f"results/{name}/log.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


# --- The checks: each yields rows (what, figure, limit, whether it holds or None) -------------------------------------


def check_precision(args):
    """Outputs of each network: on the device against the CPU in float32, and each precision against float32."""
    torch.manual_seed(0)
    lr_imgs, hr_imgs = crops(args, 2)
    networks = {name: (load_network(path).eval(), lr_imgs) for name, path in SHIPPED.items()}
    networks |= {"discriminator": (models.Discriminator().eval(), hr_imgs), "VGG19": (vgg19(args, "cpu"), hr_imgs)}
    for name, (network, imgs) in networks.items():
        with torch.no_grad():
            reference = network(imgs)
            there = copy.deepcopy(network).to(args.device, memory_format=torch.channels_last)
            imgs = imgs.to(args.device)
            with without_tf32():
                exact = there(imgs)
            yield f"{name}: float32 on the device against the CPU, error", *level(error(exact, reference), LIMITS["fp32"])
            if args.device.type == "cuda":
                yield f"{name}: TF32 against float32, error", *level(error(there(imgs), exact), LIMITS["TF32"])
            for key in precisions(args.device)[1:]:
                with autocast(args.device, DTYPES[key]):
                    yield f"{name}: {key} against float32, error", *level(error(there(imgs), exact), LIMITS[key])


def check_tiles(args):
    """Upscaled pictures: each precision against float32 on the CPU, and tiles against the whole."""
    picture = pictures.astronaut()[100:, 150:][: args.sizes.picture, : args.sizes.picture + 12]
    for name, path in SHIPPED.items():
        network = load_network(path)
        reference = upscale(for_inference(network), picture).astype(float)
        for key in precisions(args.device):
            there = for_inference(network, args.device, DTYPES[key])
            whole = upscale(there, picture, 10_000)
            mse = np.mean((whole - reference) ** 2)
            psnr = 10 * math.log10(255**2 / mse) if mse else math.inf
            yield (
                f"{name}, picture in {key} against the CPU, PSNR",
                f"{psnr:.1f} dB",
                f"at least {ALIKE[key]}",
                psnr >= ALIKE[key],
            )
            tiled = upscale(there, picture, args.sizes.picture // 2 + 3).astype(int)
            most = int(np.abs(tiled - whole).max())
            yield f"{name}, tiles against the whole in {key}, grey levels", *level(most, 1 if key == "fp32" else 4, "{}")


def check_steps(args):
    """A training step of each stage in float32, on the device against the CPU: figures and gradients."""
    batch = crops(args, args.sizes.batch)
    options = train_srgan.parse_arguments(["--recipe", "shipped", *args.sizes.gan_flags, "--crop-size", str(args.sizes.crop)])
    distilled = train_distilled.parse_arguments(["--recipe", "shipped"])
    for stage in (1, 2, 3):
        results = []
        for device in (torch.device("cpu"), args.device):
            torch.manual_seed(0)
            networks = [load_network(SHIPPED["srresnet" if stage == 1 else "srgan"])]
            networks += [models.Discriminator(16, patches=True)] if stage == 2 else []
            for network in networks:
                network.to(device, memory_format=torch.channels_last).train()
            optimizers = [torch.optim.SGD(network.parameters(), 1e-4) for network in networks]
            imgs = [part.to(device) for part in batch]
            with without_tf32():
                if stage == 1:
                    figures = train_srresnet.train_step(networks[0], optimizers[0], *imgs)
                elif stage == 2:
                    parts = *networks, vgg19(args, device), *optimizers
                    faithful = load_network(SHIPPED["srresnet"]).to(device)
                    figures = train_srgan.train_step(*parts, *imgs, options, faithful=faithful)
                else:
                    teachers = [for_inference(load_network(SHIPPED[name]), device) for name in ("srresnet", "srgan")]
                    figures = train_distilled.train_step(networks[0], *teachers, optimizers[0], *imgs, distilled)
            gradients = [torch.cat([p.grad.flatten().cpu() for p in network.parameters()]) for network in networks]
            results.append(({key: value.item() for key, value in figures.items()}, gradients))
        (expected, gradients), (found, ours) = results
        worst = max(abs(found[key] - expected[key]) / (abs(expected[key]) + 1e-6) for key in expected)
        yield f"stage {stage}, step on the device against the CPU, largest error of a figure", *level(worst, 1e-2)
        worst = max(error(a, b) for a, b in zip(ours, gradients))
        yield f"stage {stage}, the same, error of the gradients", *level(worst, 1e-2)


def check_waiting(args):
    """How often 20 steps of a run make the host wait for the device, by PyTorch's own watch."""
    on_cuda, steps_of = args.device.type == "cuda", runs.Run.steps

    def watched(run, loader, start):
        for item in steps_of(run, loader, start):
            if on_cuda:
                torch.cuda.set_sync_debug_mode("warn" if 5 <= item[0] < 25 else "default")
            yield item

    for stage in (1, 2):
        last = 26 if on_cuda else 3
        more = ["--steps", last, "--log-every", last, "--optimizer", "muon"]
        more += ["--init", SHIPPED["srresnet" if stage == 1 else "srgan"]]
        runs.Run.steps = watched
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                train(stage, words(args, stage, f"waiting{stage}", *more))
        finally:
            runs.Run.steps = steps_of
        places = {f"{Path(w.filename).name}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)}
        what = f"stage {stage}, places where 20 steps wait for the device"
        if on_cuda:
            yield what, f"{len(places)} {' '.join(sorted(places))}".strip(), "0", not places
        else:
            yield what, f"the loop ran, {args.device.type} has no such watch", "-", None


def check_resume(args):
    """A run that is killed after a save and resumed, against one that was left alone."""
    for stage in (1, 2):
        sizes = ["--steps", 6, "--save-every", 2, "--log-every", 1, "--schedule", "constant"]
        sizes += ["--blocks", 2, "--channels", 16] + (["--init", "none"] if stage == 2 else [])
        train(stage, words(args, stage, f"straight{stage}", *sizes))
        script = ROOT / ("train_srresnet.py", "train_srgan.py")[stage - 1]
        command = [sys.executable, script, *words(args, stage, f"killed{stage}", *sizes)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("step 2: saved"):
                    process.kill()
                    break
        if not any(line.startswith("step 2: saved") for line in lines):
            raise UserError(f"the run to kill ended by itself: {' '.join(lines[-3:])}")
        train(stage, words(args, stage, f"killed{stage}", *sizes, "--resume"))
        ours, theirs = (logged(f"{name}{stage}", "loss" if stage == 1 else "generator") for name in ("killed", "straight"))
        worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
        limit = 0.0 if args.device.type == "cpu" else 1e-2  # kernels of a GPU need not add in the same order twice
        yield f"stage {stage}, killed and resumed against uninterrupted, largest error of a loss", *level(worst, limit)


def check_speed(args):
    """Training steps by benchmark.py: the plain baseline, ours, and ours compiled where a long run would be."""
    for stage, make in ((1, benchmark.srresnet_step), (2, benchmark.srgan_step)):
        imgs = benchmark.batch(args)
        lacking = io.StringIO()
        with contextlib.redirect_stdout(lacking):
            long_run = SimpleNamespace(compile="auto", dry_run=args.small, steps=10**6, stage=stage)
            compiled = should_compile(long_run, args.device, args.dtype)
        sides = {"plain baseline": (False, False), "ours": (True, False)} | (
            {"ours, compiled": (True, True)} if compiled else {}
        )
        functions = {}
        for name, (ours, compiling) in sides.items():
            step = make(ours, SimpleNamespace(**vars(args) | {"compile": compiling, "vgg_weights": args.vgg}))
            pair = imgs if ours else tuple(part.contiguous() for part in imgs)
            functions[name] = lambda step=step, pair=pair: step(*pair)
            if compiling:
                try:
                    functions[name]()
                except Exception as problem:  # training would go on eagerly
                    functions.pop(name)
                    yield f"stage {stage}, torch.compile", f"failed: {one_line(problem)}", "-", None
        times = benchmark.alternate(args, **functions)
        for name, seconds in times.items():
            ratio = f", {times['plain baseline'] / seconds:.2f}x the baseline" if name != "plain baseline" else ""
            size = f"{args.batch_size} crops of {args.crop_size}"
            yield f"stage {stage}, {size}, {name}", f"{seconds:.3g} s, {1 / seconds:.3g} steps/s{ratio}", "-", None
        if lacking.getvalue():
            yield f"stage {stage}, torch.compile", lacking.getvalue().strip(), "-", None
    if not args.small:
        benchmark_args = SimpleNamespace(**vars(args) | {"compile": False})
        for what, unit, plain, ours in benchmark.measure_waiting(benchmark_args):
            yield what, f"{ours:.2g} {unit} (plain baseline {plain:.2g} {unit})", "-", None


def check_memory(args):
    """The highest memory of a step of each stage, by batch size."""
    if args.device.type != "cuda":
        yield "peak memory of a step by batch size", f"{args.device.type} does not tell it", "-", None
        return
    for stage, make in ((1, benchmark.srresnet_step), (2, benchmark.srgan_step)):
        figures = []
        for batch_size in (1, 4, 16, 64):
            sizes = {"batch_size": batch_size, "compile": False, "vgg_weights": args.vgg}
            here = SimpleNamespace(**vars(args) | sizes)
            return_memory(args.device)
            torch.cuda.reset_peak_memory_stats(args.device)
            try:
                make(True, here)(*benchmark.batch(here))
            except RuntimeError as problem:
                if not is_out_of_memory(problem):
                    raise
                figures.append(f"{batch_size}: out of memory")
                break
            figures.append(f"{batch_size}: {torch.cuda.max_memory_allocated(args.device) / 1e9:.2f} GB")
        yield f"stage {stage}, crops of {args.crop_size}, peak memory by batch size", ", ".join(figures), "-", None


def check_training(args):
    """Short trainings from the shipped weights, with the validation before and after, and their speed."""
    pairs = TestPairs(read_list(args.data / "validation_images.json"), 4)
    for stage, name in ((1, "srresnet"), (2, "srgan")):
        before = mean_figures(evaluate(for_inference(load_network(SHIPPED[name]), args.device, args.dtype), pairs))
        more = ["--recipe", "shipped", "--init", SHIPPED[name], "--steps", args.steps, "--learning-rate", "1e-4"]
        more += ["--log-every", max(1, args.steps // 2)]
        more += ["--faithful", SHIPPED["srresnet"]] if stage == 2 else []
        train(stage, words(args, stage, f"training{stage}", *more))
        psnr, fall = logged(f"training{stage}", "validation/psnr")[-1], 0.5 if stage == 1 else 2.0
        what = f"stage {stage}, {args.steps} steps from {SHIPPED[name].name}, validation PSNR"
        limit = f"a fall of at most {fall}"
        yield what, f"{before['psnr']:.2f} to {psnr:.2f} dB", limit, bool(psnr >= before["psnr"] - fall)
        events = EventAccumulator(f"results/training{stage}")
        events.Reload()
        rate, waiting = (events.Scalars(f"speed/{key}")[-1].value for key in ("steps_per_second", "share_waiting_for_data"))
        size = f"{args.sizes.batch} crops of {args.sizes.crop}"
        yield (
            f"stage {stage}, the same, {size}, its later half",
            f"{rate:.3g} steps/s, {waiting:.1%} waiting for data",
            "-",
            None,
        )


# --- The report ------------------------------------------------------------------------------------------------------


def machine(args):
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    parts = [name, f"{str(args.dtype)[6:]}", f"PyTorch {torch.__version__}"]
    if args.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(args.device)
        parts += [
            f"CUDA {torch.version.cuda}",
            f"cuDNN {torch.backends.cudnn.version()}",
            f"compute capability {major}.{minor}",
        ]
    parts.append("VGG19 by --vgg-weights" if args.vgg_weights else "a random VGG19")
    return "; ".join(parts)


def one_line(problem):
    """An error in a cell of the table."""
    return re.sub(r"[\s|]+", " ", f"{type(problem).__name__}: {problem}")[:200]


def rows_of(name, args):
    """The rows of a check; of one that fails, the error as its last row."""
    try:
        for what, figure, limit, holds in globals()[f"check_{name}"](args):
            yield {"check": name, "what": what, "figure": figure, "limit": limit, "holds": holds}
    except (Exception, SystemExit) as problem:
        traceback.print_exc()
        yield {"check": name, "what": "went wrong", "figure": one_line(problem), "limit": "-", "holds": False}


def table(rows):
    words = {True: "yes", False: "**NO**", None: "-"}
    lines = ["| check | what | figure | limit | holds |", "|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join([*list(row.values())[:4], words[row['holds']]])} |" for row in rows])


def main(args):
    args.device = pick_device(args.device)
    args.dtype = pick_dtype(args.precision, args.device)
    args.small = args.device.type == "cpu"
    args.steps = args.steps or (4 if args.small else 500)
    args.output = args.output.absolute()
    args.vgg = args.vgg_weights and args.vgg_weights.absolute()
    args.data = args.data_folder and args.data_folder.absolute()
    # For benchmark.py: the paper's sizes on a GPU. For the scripts: those of --recipe shipped, or small ones.
    args.batch_size, args.crop_size, args.rounds = (2, 32, 1) if args.small else (16, 96, 7)
    args.images, args.quick = None, args.small
    args.sizes = SimpleNamespace(batch=8, crop=192, picture=256, flags=[], gan_flags=["--vgg-crop", "128"])
    if args.small:
        gan_flags = ["--vgg-crop", "32", "--vgg-layer", "22", "--discriminator-channels", "8"]
        args.sizes = SimpleNamespace(batch=2, crop=64, picture=40, flags=["--workers", "0"], gan_flags=gan_flags)
    began, rows, folder_before = time.perf_counter(), [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        args.temporary = Path(folder)
        os.chdir(folder)
        try:
            args.vgg = args.vgg or random_vgg19(args.temporary / "vgg19.pth")
            args.data = args.data or make_data(args.temporary, args.small)
            for name in args.only:
                before = time.perf_counter()
                for row in rows_of(name, args):
                    rows.append(row)
                    print(f"{name}: {row['what']}: {row['figure']}", file=sys.stderr, flush=True)
                print(f"{name}: {time.perf_counter() - before:.1f} s", file=sys.stderr, flush=True)
        finally:
            os.chdir(folder_before)
    report = {"machine": machine(args), "seconds": round(time.perf_counter() - began, 1), "rows": rows}
    write_text(args.output, json.dumps(report, indent=2) + "\n")
    print(f"\n{report['machine']}; {report['seconds']:.0f} s.\n\n{table(rows)}")
    failed = list(dict.fromkeys(row["check"] for row in rows if row["holds"] is False))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with user_errors():
        main(args)
