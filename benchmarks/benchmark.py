"""Measure this repository against a plain baseline, in alternation, and print a Markdown table of medians and ratios.

    python benchmarks/benchmark.py --output benchmarks/results.md
    python benchmarks/benchmark.py --quick
    python benchmarks/benchmark.py --only loader waiting --images train2014

The baseline is what a few plain lines of PyTorch do: float32, contiguous NCHW, eager, one crop per decoded image, the
same networks. It stands at the top of this file. benchmarks/README.md says how to read the table.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import ArgumentParser, add_device_arguments, number, user_errors

NAMES = ("srresnet-step", "srgan-step", "loader", "waiting", "upscale", "start")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"what to measure, of {', '.join(NAMES)}")
    add("--rounds", type=number(int, 1), default=7, help="measurements of each side, in turn; the table has their medians")
    add("--quick", action="store_true", help="2 rounds at most and small sizes: to see that everything runs")
    add("--batch-size", type=number(int, 1), default=16, help="crops per training step")
    add("--crop-size", type=number(int, 16), default=96, help="side of the HR crops, pixels")
    add_device_arguments(parser)
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile for our steps; auto: as training does")
    add("--images", type=Path, metavar="DIR", help="JPEGs for the loader (default: 1024-pixel ones out of scikit-image)")
    add("--vgg-weights", type=Path, metavar="FILE", help="VGG19's features (default: random ones, which are as fast)")
    add("--output", type=Path, metavar="FILE", help="write the table there too")
    return parser.parse_args()


if __name__ == "__main__":  # before the imports that take seconds
    args = parse_arguments()

import contextlib
import datetime
import io
import itertools
import math
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

with contextlib.suppress(ImportError):  # Windows has none
    import resource

import create_data_lists
import inference
import models
import train_srgan
import train_srresnet
from datasets import SAMPLES_PER_CHUNK, SRDataset, train_loader, training_pair
from compiling import should_compile
from devices import available_cores, is_out_of_memory, pick_device, pick_dtype
from inference import upscale
from utils import UserError, write_text
from weights import save_checkpoint

# --- The plain baseline ----------------------------------------------------------------------------------------------


def plain_srresnet_step(network, optimizer, lr_imgs, hr_imgs):
    loss = F.mse_loss(network(lr_imgs), hr_imgs)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def plain_srgan_step(generator, discriminator, vgg, optimizer_g, optimizer_d, lr_imgs, hr_imgs):
    sr_imgs = generator(lr_imgs)
    sr_features, hr_features = vgg(sr_imgs), vgg(hr_imgs).detach()
    sr_logits = discriminator(sr_imgs)
    adversarial = F.binary_cross_entropy_with_logits(sr_logits, torch.ones_like(sr_logits))
    generator_loss = F.mse_loss(sr_features, hr_features) + 1e-3 * adversarial
    optimizer_g.zero_grad()
    generator_loss.backward()  # also fills the gradients of the discriminator's weights, for nothing
    optimizer_g.step()

    hr_logits, sr_logits = discriminator(hr_imgs), discriminator(sr_imgs.detach())
    discriminator_loss = F.binary_cross_entropy_with_logits(hr_logits, torch.ones_like(hr_logits))
    discriminator_loss = discriminator_loss + F.binary_cross_entropy_with_logits(sr_logits, torch.zeros_like(sr_logits))
    optimizer_d.zero_grad()
    discriminator_loss.backward()
    optimizer_d.step()
    return generator_loss.item(), discriminator_loss.item()


class PlainDataset(torch.utils.data.Dataset):
    """One random crop of each image that is decoded, and its LR image by Pillow."""

    def __init__(self, paths, crop_size, length):
        self.paths, self.crop_size, self.length = paths, crop_size, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        image, size = Image.open(self.paths[i % len(self.paths)]).convert("RGB"), self.crop_size
        left, top = random.randint(0, image.width - size), random.randint(0, image.height - size)
        hr_img = image.crop((left, top, left + size, top + size))
        lr_img = hr_img.resize((size // 4, size // 4), Image.Resampling.BICUBIC)
        lr, hr = (torch.from_numpy(np.array(img)).permute(2, 0, 1).contiguous().float().div(255) for img in (lr_img, hr_img))
        return lr, 2 * hr - 1


def plain_upscale(network, lr_img):
    with torch.no_grad():
        lr = torch.from_numpy(lr_img).permute(2, 0, 1)[None].float().div(255).to(next(network.parameters()).device)
        sr = network(lr)[0].clamp(-1, 1).add(1).mul(127.5).round().byte()
        return sr.permute(1, 2, 0).cpu().numpy()


# --- Measuring -------------------------------------------------------------------------------------------------------


def seconds(function, device):
    synchronize = getattr(torch, device.type).synchronize
    synchronize()
    before = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - before


def alternate(args, **sides):
    """The median seconds of each function, called in turn: A B A B ... after each was called once to warm up."""
    for function in sides.values():
        function()
    times = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, function in sides.items():
            times[name].append(seconds(function, args.device))
    return {name: statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def two_processes(start, *arguments):
    """A process for the plain side and one for ours, since what speeds up one must not help the other: (plain, ours).

    In each `start(ours, *arguments)` makes the global `child`.
    """
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), initializer=start, initargs=(ours, *arguments)))
            for ours in (False, True)
        ]


def prepared(network, args, ours):
    """The network on the device with its optimizer; for our side channels last, fused, and compiled where asked for."""
    network.to(args.device, memory_format=torch.channels_last if ours else torch.contiguous_format)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True if ours else None)
    return torch.compile(network) if ours and args.compile else network, optimizer


def srresnet_step(ours, args):
    """SRResNet's training step of a side, as a function of LR and HR images."""
    trained = prepared(models.SRResNet(), args, ours)
    if ours:
        return lambda lr, hr: train_srresnet.train_step(*trained, lr, hr, args.dtype)
    return lambda lr, hr: plain_srresnet_step(*trained, lr, hr)


def srgan_step(ours, args):
    """SRGAN's training step of a side, as a function of LR and HR images."""
    weights = args.vgg_weights
    if weights is None:
        layers = models.vgg19_features()
        for parameter in layers.parameters():
            if parameter.dim() == 4:
                torch.nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        weights = layers.state_dict()
    vgg = models.TruncatedVGG19(5, 4, weights).requires_grad_(not ours)  # the usual code leaves it its gradients
    vgg.to(args.device, memory_format=torch.channels_last if ours else torch.contiguous_format)
    (g, optimizer_g), (d, optimizer_d) = (prepared(net, args, ours) for net in (models.Generator(), models.Discriminator()))
    if not ours:
        return lambda lr, hr: plain_srgan_step(g, d, vgg, optimizer_g, optimizer_d, lr, hr)
    vgg.layers.to(args.dtype)
    options = train_srgan.parse_arguments([])  # the paper's
    return lambda lr, hr: train_srgan.train_step(g, d, vgg, optimizer_g, optimizer_d, lr, hr, options, args.dtype)


def batch(args):
    """Random crops on the device, as our loader gives them."""
    crops = torch.randint(0, 256, (args.batch_size, 3, args.crop_size, args.crop_size), dtype=torch.uint8).to(args.device)
    return training_pair(crops, 4)


def start_steps(ours, make_step, args):
    """In a process of its own: a training step with its batch, for step_in_child."""
    global child
    if ours:
        pick_device(str(args.device))
    step, imgs = make_step(ours, args), batch(args)
    imgs = imgs if ours else tuple(part.contiguous() for part in imgs)
    child = args.device, lambda: step(*imgs)


def step_in_child():
    device, step = child
    return seconds(step, device)


def median_steps(make_step, args):
    """The median seconds of a training step, plain and ours, in turn, after two to warm up."""
    with two_processes(start_steps, make_step, args) as pools:
        times = [[pool.submit(step_in_child).result() for pool in pools] for _ in range(args.rounds + 2)]
    return [statistics.median(side) for side in zip(*times[2:])]


def measure_srresnet_step(args):
    yield f"SRResNet training step, {args.batch_size} crops of {args.crop_size}", "s", *median_steps(srresnet_step, args)


def measure_srgan_step(args):
    args = SimpleNamespace(**vars(args) | {"compile": args.compile_gan})
    yield f"SRGAN training step with VGG19, {args.batch_size} crops of {args.crop_size}", "s", *median_steps(srgan_step, args)


def make_lists(args):
    """The paths of up to 256 JPEGs, of --images or made here, and their lists without and with a pack."""
    folder = args.images or args.temporary / "images"
    if not folder.exists() and not args.images:
        from skimage import data

        folder.mkdir()
        for i, photo in zip(range(64), itertools.cycle((data.astronaut(), data.chelsea(), data.coffee(), data.rocket()))):
            picture = Image.fromarray(photo).resize((1024, 768), Image.Resampling.BICUBIC)
            picture.save(folder / f"{i:02d}.jpg", quality=90)
    paths = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in (".jpg", ".jpeg"))[:256]
    shapes = {path: Image.open(path).size[::-1] for path in paths}
    shapes = {path: shape for path, shape in shapes.items() if min(shape) >= args.crop_size}
    if not shapes:
        raise UserError(f"{folder}: no JPEGs of at least {args.crop_size} pixels")
    lists = [args.temporary / name / "train_images.json" for name in ("files", "packed")]
    with contextlib.redirect_stdout(io.StringIO()):
        for list_file, pack in zip(lists, ("off", "on")):
            list_file.parent.mkdir(exist_ok=True)
            create_data_lists.write_list(list_file, shapes)
            create_data_lists.write_list(list_file.with_name("validation_images.json"), list(shapes)[:1])
            create_data_lists.write_pack(list_file, shapes, pack, 0)
    return list(shapes), *lists


def plain_loader(paths, args, workers=0):
    dataset = PlainDataset(paths, args.crop_size, 10**9)
    return iter(torch.utils.data.DataLoader(dataset, args.batch_size, num_workers=workers))


def our_loader(list_file, args, workers=0, degradation="bicubic"):
    """(LR, HR) pairs as runs.Run.steps makes them out of the loader's batches."""
    on_gpu = args.device.type == "cuda"
    dataset = SRDataset(list_file, args.crop_size, degradation=degradation, scale=4)
    loader = train_loader(dataset, args.batch_size, workers=workers, pin_memory=on_gpu)
    return (training_pair(batch, 4, args.device) for batch, _ in loader)


def measure_loader(args):
    paths, files, packed = make_lists(args)
    steps = max(1, SAMPLES_PER_CHUNK // args.batch_size)  # of a chunk, which our loader makes at one go
    _, hr_imgs = batch(args)
    pixels = hr_imgs.add(1).mul(127.5).round().byte()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def take(loader):
        return lambda: [None for _ in itertools.islice(loader, steps)]

    sides = {"plain": take(plain_loader(paths, args))}
    sides |= {name: take(our_loader(list_file, args)) for name, list_file in (("JPEGs", files), ("the pack", packed))}
    sides["photo"] = take(our_loader(packed, args, degradation="photo"))
    times = alternate(args, **sides, pairs=lambda: [training_pair(pixels, 4) for _ in range(steps)])
    torch.set_num_threads(threads)
    speed = {name: steps * args.batch_size / value for name, value in times.items()}
    for name in ("JPEGs", "the pack"):
        yield f"LR and HR crops from {name}, one core", "crops/s", speed["plain"], speed[name]
    yield f"of this: LR crops and ranges, on {args.device.type}", "crops/s", None, speed["pairs"]
    yield "LR and HR crops from the pack, --degradation photo, one core", "crops/s", None, speed["photo"]


def measure_waiting(args):
    """The share of a loop's wall time that passes in next(loader), over one chunk of ours, after a first step."""
    paths, files, packed = make_lists(args)
    plain_step, our_step = (srresnet_step(ours, args) for ours in (False, True))
    count = max(1, SAMPLES_PER_CHUNK // args.batch_size)
    workers = max(1, min(8, available_cores()))

    def share(loader, step):
        for i in range(1 + count):
            if i <= 1:
                waited, start = 0.0, time.perf_counter()
            before = time.perf_counter()
            lr_imgs, hr_imgs = next(loader)
            waited += time.perf_counter() - before
            seconds(lambda lr=lr_imgs, hr=hr_imgs: step(lr.to(args.device), hr.to(args.device)), args.device)
        return 100 * waited / (time.perf_counter() - start)

    plain = share(plain_loader(paths, args, workers), plain_step)
    yield f"time waiting for data, JPEGs, {workers} workers", "%", plain, share(our_loader(files, args, workers), our_step)
    workers = 0 if args.device.type == "cpu" else workers  # as runs.Run.loader decides
    yield f"time waiting for data, the pack, {workers} workers", "%", plain, share(our_loader(packed, args, workers), our_step)


def start_upscaling(ours, device, dtype):
    """In a process of its own: the network of one side, ready to upscale, kept for upscale_in_child."""
    global child
    torch.manual_seed(0)
    device = pick_device(device) if ours else torch.device(device)
    network = models.SRResNet().eval()
    child = (upscale, inference.for_inference(network, device, dtype)) if ours else (plain_upscale, network.to(device))


def upscale_in_child(height, width):
    """Seconds, and the highest memory so far in MB (of the process on the CPU, of tensors on CUDA); None: out of memory."""
    function, network = child
    device, img = next(network.parameters()).device, np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    on_linux_cpu = device.type == "cpu" and sys.platform == "linux"
    if on_linux_cpu:  # the free memory is the limit, so that this process fails and not another
        pages = int(Path("/proc/self/statm").read_text().split()[0]) + int(0.9 * os.sysconf("SC_AVPHYS_PAGES"))
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE"), resource.RLIM_INFINITY))
    try:
        time_taken = seconds(lambda: function(network, img), device)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise
    if device.type == "cuda":
        return time_taken, torch.cuda.max_memory_allocated(device) / 1e6
    if on_linux_cpu:  # where ru_maxrss may be that of the process that started this one
        return time_taken, int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return time_taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def measure_upscale(args):
    for height, width in ((64, 64), (128, 128), (200, 300)) if args.quick else ((128, 128), (512, 512), (1500, 2000)):
        results = [], []
        with two_processes(start_upscaling, str(args.device), args.dtype) as pools:
            for _ in range(args.rounds + 1 if height == width else 1):  # the first is to warm up; the large one is run once
                for pool, values in zip(pools, results):
                    try:
                        values.append(pool.submit(upscale_in_child, height, width).result())
                    except BrokenProcessPool:  # killed for want of memory
                        values.append(None)
        figures = []
        for values in results:
            values = values[-args.rounds :]
            failed = None in values
            figures.append(["out of memory"] * 2 if failed else [statistics.median(v[0] for v in values), values[-1][1]])
        (plain_time, plain_memory), (our_time, our_memory) = figures
        yield f"upscaling {width}x{height} to {4 * width}x{4 * height}", "s", plain_time, our_time
        yield f"upscaling {width}x{height}, peak memory", "MB", plain_memory, our_memory


def measure_start(args):
    """Whole commands, in a folder of their own."""
    *_, packed = make_lists(args)
    device = ["--device", str(args.device), "--precision", args.precision]

    def first_step():
        options = ["--name", f"run_{time.time_ns()}", "--log-every", "1", "--compile", "off", "--data-folder", packed.parent]
        sizes = ["--batch-size", str(args.batch_size), "--crop-size", str(args.crop_size)]
        command = [sys.executable, ROOT / "train_srresnet.py", *options, *sizes, *device]
        lines = []
        with subprocess.Popen(command, cwd=args.temporary, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            for line in run.stdout:
                lines.append(line)
                if line.startswith("step 1/"):
                    run.kill()
                    return
        raise UserError(f"train_srresnet.py failed: {''.join(lines[-3:])}")

    weights, network = ROOT / "checkpoints" / "srgan_x4.pth", models.Generator()
    if not weights.exists():
        weights = args.temporary / "weights.pth"
        save_checkpoint(weights, {"config": network.config, "weights": network.state_dict(), "step": 0})
    Image.effect_noise((128, 128), 50).convert("RGB").save(args.temporary / "small.png")

    def test_py():
        command = [ROOT / "test.py", "small.png", "--weights", weights, "--output", f"results/{time.time_ns()}", *device]
        result = subprocess.run([sys.executable, *command], cwd=args.temporary, capture_output=True, text=True)
        if result.returncode:
            raise UserError(f"test.py failed: {result.stderr[-300:]}")

    def import_torch():
        subprocess.run([sys.executable, "-c", "import torch"], check=True)

    times = alternate(args, torch=import_torch, first=first_step, test=test_py)
    yield "from the command to the first training step", "s", None, times["first"]
    yield "test.py on a picture of 128x128, the whole command", "s", None, times["test"]
    yield "of each of these two: import torch", "s", None, times["torch"]


# --- Report ----------------------------------------------------------------------------------------------------------


def machine(args):
    cpu, memory = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError, IndexError):
        cpu = Path("/proc/cpuinfo").read_text().split("model name")[1].split(":")[1].split("\n")[0].strip()
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    units = "with" if pick_dtype("auto", torch.device("cpu")) == torch.bfloat16 else "without"
    compiled = ", ".join(f"{'on' if on else 'off'} in stage {i}" for i, on in ((1, args.compile), (2, args.compile_gan)))
    gpu = f"; GPU: {torch.cuda.get_device_name(args.device)}" if args.device.type == "cuda" else ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {units} bf16 units{memory}{gpu}; "
        f"PyTorch {torch.__version__}; {datetime.date.today()}.\n\nOurs: {args.device.type}, {str(args.dtype)[6:]}, "
        f"channels last, torch.compile {compiled}. {args.rounds} rounds in alternation, medians."
    )


def table_row(name, unit, plain, ours):
    def cell(value):
        if not isinstance(value, float):
            return value or "-"
        return f"{value:.{max(0, 2 - math.floor(math.log10(value or 1)))}f} {unit}"  # three digits

    known = isinstance(plain, float) and isinstance(ours, float) and unit != "%"
    ratio = f"{ours / plain if unit == 'crops/s' else plain / ours:.2f}x" if known else "-"
    return f"| {name} | {cell(plain)} | {cell(ours)} | {ratio} |"


def main(args):
    args.device = pick_device(args.device)
    args.dtype = pick_dtype(args.precision, args.device)
    long_run = {"compile": args.compile, "dry_run": args.quick, "steps": 10**6}
    args.compile_gan = should_compile(SimpleNamespace(**long_run, stage=2), args.device, args.dtype)
    args.compile = should_compile(SimpleNamespace(**long_run, stage=1), args.device, args.dtype)
    if args.quick:
        args.rounds, args.batch_size, args.crop_size = min(args.rounds, 2), min(args.batch_size, 8), min(args.crop_size, 32)
    lines = [machine(args), "", "| what | plain baseline | this repository | times better |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        args.temporary = Path(folder)
        for name in NAMES:
            if name in args.only:
                for row in globals()[f"measure_{name.replace('-', '_')}"](args):
                    lines.append(table_row(*row))
                    print(lines[-1], flush=True)
    if args.output:
        write_text(args.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    with user_errors():
        main(args)
