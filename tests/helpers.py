"""Small pictures and weights, and training processes that start in milliseconds and can be killed, for several test files."""

import functools
import importlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections import namedtuple
from multiprocessing import forkserver
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

STEPS = 20
# A run of half a second. In fp32 and on one thread it is the same to the last bit wherever it is interrupted.
SMALL = ["--blocks=1", "--channels=4", "--crop-size=16", "--batch-size=2", "--device=cpu", "--precision=fp32", "--workers=0"]
SMALL += [f"--steps={STEPS}", "--save-every=2", "--log-every=3", "--validate-every=7"]
SMALL_GAN = ["--discriminator-channels=2", "--vgg-layer=11"]
TEMPORARY = "*.tmp"  # what utils.atomic_write and its like call a file that is not whole yet

# Everything that a training imports sooner or later: each process would spend seconds on it.
PRELOAD = ["helpers", "train_srresnet", "train_srgan", "pytest", "torch._dynamo", "torch.utils.tensorboard"]
PRELOAD += ["torch.nn.parallel", "torchvision.models", "skimage.metrics._structural_similarity", "scipy.ndimage"]
PRELOAD += [f"PIL.{name}" for name in ("ImageDraw", "ImageFont", "BmpImagePlugin", "GifImagePlugin", "JpegImagePlugin")]
PRELOAD += ["PIL.PngImagePlugin", "PIL.PpmImagePlugin"]

PATIENCE = 300  # seconds, on a busy machine, until a process is taken to hang
Result = namedtuple("Result", "status out err")


def make_pictures(folder, names=("astronaut", "chelsea", "coffee", "rocket"), size=(56, 44)):
    """A folder of small photographs, of those that come with scikit-image."""
    import skimage

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        source = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
        with Image.open(source) as image:
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(folder / f"{name}.png")
    return folder


def make_lists(folder, training, validation):
    """The two lists that training reads, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, paths in (("train", training), ("validation", validation)):
        (folder / f"{name}_images.json").write_text(json.dumps([os.path.relpath(path, folder) for path in paths]))
    return folder


def make_data(folder):
    """Lists of three training images and a validation image, the pictures beside them; returns the data folder."""
    paths = sorted(make_pictures(folder / "pictures").iterdir())
    return make_lists(folder / "data", paths[:3], paths[3:])


def make_vgg(path):
    """Random weights of the first convolutions of VGG19: Kaiming's, since PyTorch's own let the features fade."""
    import torch

    generator, state = torch.Generator().manual_seed(0), {}
    for number, (inputs, outputs) in {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}.items():
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * outputs)) ** 0.5
        state |= {f"{number}.weight": weight, f"{number}.bias": torch.zeros(outputs)}
    torch.save(state, path)
    return path


def random_vgg19():
    """The state dict of VGG19's features with random weights: Kaiming's fan-out keeps the activations of a size."""
    import torch

    from models import vgg19_features

    torch.manual_seed(0)
    layers = vgg19_features()
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            torch.nn.init.uniform_(layer.bias, -0.1, 0.1)
    return layers.state_dict()


def with_statistics(network):
    """The network with batch normalisation that does something: statistics and affine maps far from 0 and 1."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def start_server():
    """Start the process that has imported everything, and of which the others are forks; returns when it is ready."""
    # Neither fork nor bit-identity goes with several threads; and the server finds modules by PYTHONPATH alone.
    ours = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ours["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    before = {key: os.environ.get(key) for key in ours}
    os.environ.update(ours)
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()
    first = multiprocessing.get_context("forkserver").Process(target=int)
    first.start()
    first.join()
    for key, value in before.items():
        if value is None:
            del os.environ[key]
        else:
            os.environ[key] = value


class Script:
    """A script of the repository, `python SCRIPT.py ARGUMENTS` in `folder`, as a process that forks off the server.

    `trouble()` is called in the process before the script starts. The process leads a process group of its own.
    """

    def __init__(self, script, arguments, folder, trouble=None, **environment):
        start_server()
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{script}.{environment.get('RANK', 0)}"
        self.files = [folder / f"{name}.stdout", folder / f"{name}.stderr"]
        for file in self.files:
            file.write_text("")  # what an earlier process wrote is not of this one
        arguments, environment = [str(a) for a in arguments], {key: str(value) for key, value in environment.items()}
        context = multiprocessing.get_context("forkserver")
        job = (script, arguments, folder, self.files, trouble, environment)
        self.process = context.Process(target=run_script, args=job)
        self.process.start()
        self.pid = self.process.pid

    def wait(self, seconds=PATIENCE):
        """The exit status (minus the signal for a killed process) and what the process wrote."""
        self.process.join(seconds)
        stuck = self.process.is_alive()
        if stuck:
            self.process.kill()
            self.process.join()
        out, err = (file.read_text() for file in self.files)
        assert not stuck, f"still running after {seconds} s\n{out}\n{err}"
        return Result(self.process.exitcode, out, err)

    def wait_until(self, condition, seconds=PATIENCE):
        """Wait until `condition()` holds; returns whether it did before the process ended."""
        end = time.monotonic() + seconds
        while not condition():
            if not self.process.is_alive():
                return condition()
            assert time.monotonic() < end, self.wait(0)
            time.sleep(0.005)
        return True

    def output(self):
        """What the process has printed so far."""
        return self.files[0].read_text()

    def send(self, signal_number, group=False):
        """Signal the process, or its group, as Ctrl-C in a terminal and batch systems do."""
        (os.killpg if group else os.kill)(self.pid, signal_number)

    def kill(self):
        """End whatever is left of the process and of its own children."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()


def run(script, arguments, folder, trouble=None, **environment):
    """Run a script to its end: a Result."""
    return Script(script, arguments, folder, trouble, **environment).wait()


def run_script(script, arguments, folder, files, trouble, environment):
    """What a process of `Script` does."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.argv = [f"{script}.py", *arguments]
    module = importlib.import_module(script)
    from utils import user_errors

    if trouble:
        trouble()
    with user_errors():
        module.main(module.parse_arguments())


def at_save(step, action):
    """Call `action()` in this process before the checkpoint of `step` is written."""
    import runs

    save_checkpoint = runs.save_checkpoint

    def save(path, state):
        if state["step"] == step and path.name != "best.pth":
            action()
        save_checkpoint(path, state)

    runs.save_checkpoint = save


def pause_after(lines):
    """Let this process wait, when it has printed so many lines, until there is a file `go_on` in its folder."""
    import runs

    calls, show = itertools.count(1), runs.Run.print

    def show_and_wait(run, *words):
        show(run, *words)
        if next(calls) == lines:
            while not Path("go_on").exists():
                time.sleep(0.005)

    runs.Run.print = show_and_wait


FILE_CALLS = ("fsync", "replace", "link", "unlink")  # the moments of a save that a crash could fall between


def before_file_call(count, action):
    """Call `action(name)` before file call number `count` of the process (1, 2, ...)."""
    calls = iter(range(1, 1_000_000))

    def wrapped(name, function):
        def call(*args, **kwargs):
            if next(calls) == count:
                action(name)
            return function(*args, **kwargs)

        return call

    for name in FILE_CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def limit_file_size(size):
    """Let every file of this process end at `size` bytes, as a disk that is full does, with EFBIG for ENOSPC."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
