"""What can be known of a GPU without one: which precision, when torch.compile, what counts as out of memory, no waiting.

No GPU was at hand for these tests. What only a card can say (its capability, its name, its free memory) is said by stand-ins;
fp16 and its scaler are PyTorch's own, on the CPU; a step that waits for the GPU is found on PyTorch's device "meta", which has
no numbers to wait for. What a card itself does with all that, benchmarks/gpu_check.py measures.
"""

import copy
import gc
import os
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import call
from helpers import with_statistics
from torch._dynamo.backends.common import aot_autograd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import batchnorm
import compiling
import devices
import inference
import runs
import train_srgan
import train_srresnet
from datasets import training_pair
from inference import for_inference
from logs import Log
from models import SRCNN, Discriminator, Generator, SRResNet, TruncatedVGG19, vgg19_features
from utils import UserError
from weights import load_checkpoint, save_checkpoint

CUDA = torch.device("cuda")


def without(monkeypatch, name):
    """Let Python's headers seem to be there, unless it is `name` that is missing."""
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: name != "Python.h" if "Python.h" in str(path) else exists(path))


@pytest.fixture
def card(monkeypatch):
    """A stand-in for a GPU: card(capability, name) is what PyTorch would say of it; it remembers what it was asked for."""
    asked = []

    def describe(capability=(8, 0), name="NVIDIA A100"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.cuda, "set_device", asked.append)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)  # which would stay for the other tests
        monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: name)
        without(monkeypatch, "nothing")
        return asked

    return describe


# Device and precision


@pytest.mark.parametrize(
    "capability, name, precision",
    [
        ((9, 0), "NVIDIA H100", "bf16"),
        ((8, 6), "NVIDIA GeForce RTX 3060", "bf16"),
        ((7, 5), "Tesla T4", "fp16"),
        ((7, 5), "NVIDIA GeForce RTX 2080 Ti", "fp16"),
        ((7, 0), "Tesla V100-SXM2-16GB", "fp16"),
        ((7, 5), "NVIDIA GeForce GTX 1660 Ti", "fp32"),
        ((7, 5), "NVIDIA GeForce GTX 1650", "fp32"),
        ((7, 5), "NVIDIA T1000 8GB", "fp32"),
        ((6, 0), "Tesla P100-PCIE-16GB", "fp32"),
        ((6, 1), "NVIDIA GeForce GTX 1080", "fp32"),
    ],
)
def test_precision_follows_the_card(card, capability, name, precision):
    card(capability, name)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert devices.pick_dtype("auto", CUDA) == dtypes[precision]
    for asked, dtype in dtypes.items():
        assert devices.pick_dtype(asked, CUDA) == dtype


@pytest.mark.parametrize(
    "units, dtype",
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC 9654"}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
        (None, torch.float32),  # PyTorch before 2.10 does not tell
    ],
)
def test_precision_follows_the_cpu(monkeypatch, units, dtype):
    if units is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert devices.pick_dtype("auto", torch.device("cpu")) == dtype
    assert devices.pick_dtype("bf16", torch.device("cpu")) == torch.bfloat16


def test_a_gpu_with_a_number_is_set_before_anything_opens_the_first(card):
    asked = card()
    assert devices.pick_device("cuda:1") == torch.device("cuda:1") and asked == [torch.device("cuda:1"), "high"]
    asked.clear()
    assert devices.pick_device("auto") == CUDA and asked == ["high"]
    with pytest.raises(UserError, match="cuda:2: this PyTorch sees 2 CUDA devices"):
        devices.pick_device("cuda:2")


def test_mps_is_taken_by_name_and_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # a stand-in: no Mac was at hand either
    mps = devices.pick_device("mps")
    assert mps.type == "mps" and devices.pick_dtype("auto", mps) == devices.pick_dtype("fp32", mps) == torch.float32
    assert devices.pick_device("auto").type != "mps" or torch.cuda.is_available()
    for precision in ("bf16", "fp16"):
        with pytest.raises(UserError, match="on MPS there is only fp32"):
            devices.pick_dtype(precision, mps)
    assert not devices.gradient_scaler(mps, torch.float32).is_enabled()
    with monkeypatch.context() as under_torchrun, pytest.raises(UserError, match="torchrun is for GPUs of CUDA and for CPUs"):
        under_torchrun.setenv("WORLD_SIZE", "2")
        devices.Processes("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, words in (("mps", "no GPU of Apple's"), ("xpu", "only the CPU, CUDA and Apple's MPS"), ("gpu", "no such device")):
        with pytest.raises(UserError, match=words):
            devices.pick_device(name)


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert devices.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on Windows and macOS
    assert devices.available_cores() == (os.cpu_count() or 1)


# torch.compile


def should_compile(compile="auto", network=None, device=CUDA, **more):
    args = SimpleNamespace(**{"compile": compile, "dry_run": False, "steps": 2000, "stage": 2} | more)
    return compiling.should_compile(args, device, torch.float16, network)


def test_triton_serves_a_card_that_is_young_enough(card, capsys):
    card()
    assert should_compile() and should_compile("on", steps=1) and not should_compile(steps=1) and not should_compile("off")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("fault", ["capability 6.1", "capability 5.2", "Python.h", "C compiler", "CC of the user", "Triton"])
def test_what_triton_lacks_is_said_in_a_line_and_training_is_eager(card, monkeypatch, capsys, fault):
    card(tuple(int(digit) for digit in fault[-3:].split(".")) if "capability" in fault else (8, 0))
    without(monkeypatch, fault)
    if fault == "C compiler":
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    if fault == "CC of the user":  # Triton asks for no other then
        monkeypatch.setenv("CC", "no-such-compiler")
        monkeypatch.setattr(compiling.shutil, "which", lambda name: None if name == "no-such-compiler" else name)
    if fault == "Triton":
        monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: None)
    assert not should_compile()
    out = capsys.readouterr().out
    needed = "C compiler" if fault.startswith("CC") else fault.replace("capability", "this one has")
    assert out.startswith("training eagerly") and out.count("\n") == 1 and needed in out
    with pytest.raises(UserError, match="--compile on needs .*; or give --compile off"):
        should_compile("on")


@pytest.mark.parametrize("device, fault", [("cpu", "C++ compiler"), ("cpu", "Python.h"), ("mps", "CUDA")])
def test_other_devices_have_their_needs(monkeypatch, device, fault):
    if fault == "C++ compiler":
        monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    without(monkeypatch, fault)
    with pytest.raises(UserError) as refused:
        should_compile("on", device=torch.device(device))
    assert fault in str(refused.value)


def test_synchronised_statistics_are_not_compiled_unless_they_are_frozen(card, capsys):
    card()
    network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(SRResNet(4, 1, 4))
    assert not should_compile(network=network) and "--freeze-bn" in capsys.readouterr().out
    assert should_compile("on", network)
    batchnorm.freeze_bn(network)
    assert should_compile(network=network) and should_compile(network=SRCNN()) and capsys.readouterr().out == ""


class Masked(torch.autograd.Function):
    """A stand-in for the function of SyncBatchNorm, which is for GPUs: it too selects the statistics that count by a mask."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        both = torch.stack([torch.cat([x.mean((0, 2, 3)), x.var((0, 2, 3)), x.new_ones(1)])] * 2)
        mean, var, _ = both[both[:, -1] >= 1].mean(0).split([len(weight), len(weight), 1])
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias)


class Synchronised(torch.nn.BatchNorm2d):
    def forward(self, x):
        return Masked.apply(x, self.weight, self.bias) if self.training else super().forward(x)


def operators_by_graph(network, imgs):
    """How many operators each of the graphs has that reach the compiler."""
    found = []

    def count(graph, _):
        found.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    torch.compile(network, backend=count)(imgs)
    return found


def with_stand_ins(network):
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, torch.nn.BatchNorm2d):
                setattr(module, name, Synchronised(layer.num_features))
    return network


def test_synchronised_statistics_cut_the_graph_to_pieces():
    """Why `--compile auto` leaves it out under torchrun; frozen, they do not."""
    make, imgs = lambda: SRResNet(4, 1, 4), torch.rand(2, 3, 8, 8)
    alone, torn = operators_by_graph(make(), imgs), operators_by_graph(with_stand_ins(make()), imgs)
    frozen = with_stand_ins(make())
    batchnorm.freeze_bn(frozen)
    print(f"operators in each graph: alone {alone}, synchronised {torn}, frozen {operators_by_graph(frozen, imgs)}")
    assert len(alone) == len(operators_by_graph(frozen, imgs)) == 1 and len(torn) > 1


def fails(*_, **__):
    raise RuntimeError("ptxas fatal: no such target\nand a page of this")


COMPILERS = {"forward": fails, "backward": aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=fails)}


@pytest.fixture
def batch(photographs):
    """Two real training pairs: LR images (2, 3, 8, 8), HR images (2, 3, 32, 32)."""
    crops = [torch.from_numpy(photographs[i][20:52, 20:52].copy()).permute(2, 0, 1) for i in (0, 6)]
    return training_pair(torch.stack(crops), 4)


@pytest.fixture
def stance():
    """Undoes what a failed compiler leaves, which holds for the whole process."""
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.mark.parametrize("half, dtype", [("forward", torch.float32), ("backward", torch.float16)])
def test_a_first_step_that_does_not_compile_is_made_eagerly(batch, stance, half, dtype):
    """The compiler is a stand-in, which fails; the rest is as in a run."""
    torch.manual_seed(0)
    network, told = SRResNet(4, 1, 4), []
    optimizer, scaler = (
        torch.optim.Adam(network.parameters(), 1e-3, fused=True),
        devices.gradient_scaler(torch.device("cpu"), dtype),
    )
    expected, reference_scaler = copy.deepcopy(network), devices.gradient_scaler(torch.device("cpu"), dtype)
    reference = torch.optim.Adam(expected.parameters(), 1e-3, fused=True)
    compiled = torch.compile(network, backend=COMPILERS[half])
    step = compiling.eager_if_it_fails(train_srresnet.train_step, (network, optimizer), scaler, told.append)
    for _ in range(3):
        step(compiled, optimizer, *batch, dtype, scaler)
        train_srresnet.train_step(expected, reference, *batch, dtype, reference_scaler)
    assert len(told) == 1 and "ptxas fatal" in told[0] and "\n" not in told[0]
    same = [torch.equal(a, b) for a, b in zip(network.state_dict().values(), expected.state_dict().values(), strict=True)]
    assert all(same) and scaler.state_dict() == reference_scaler.state_dict()


def test_a_discriminator_that_does_not_compile_leaves_the_generator_a_single_step(batch, stance, vgg_state):
    """Stage 2 has stepped with its generator by then, under a scaled loss."""
    cpu, args = torch.device("cpu"), train_srgan.parse_arguments(["--vgg-layer=12"])
    results = []
    for backend in (None, COMPILERS["backward"]):
        torch.manual_seed(0)
        networks, told = (Generator(4, 1, 4), Discriminator(2)), []
        optimizers = [torch.optim.Adam(network.parameters(), 1e-3, fused=True) for network in networks]
        scaler = devices.gradient_scaler(cpu, torch.float16)
        trained = networks if backend is None else (networks[0], torch.compile(networks[1], backend=backend))
        step = compiling.eager_if_it_fails(train_srgan.train_step, (*networks, *optimizers), scaler, told.append)
        vgg = TruncatedVGG19(1, 2, vgg_state)
        for number in (1, 2):
            step(*trained, vgg, *optimizers, *batch, args, torch.float16, number, scaler)
        assert len(told) == (backend is not None)
        results.append([value for network in networks for value in network.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_other_errors_of_the_first_step_are_raised(batch):
    scaler, network = devices.UNSCALED, SRResNet(4, 1, 4)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), UserError("a fault of the user's")):
        calls = []

        def step(error=error, calls=calls):
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            compiling.eager_if_it_fails(step, (network,), scaler)()
        assert calls == [1]


# Memory


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "FIND was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
        "MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 240000000 bytes",
    ],
)
def test_every_way_of_saying_out_of_memory_is_understood(message):
    assert devices.is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_BAD_PARAM",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "Expected all tensors to be on the same device",
    ],
)
def test_another_fault_of_a_gpu_is_none_of_memory(message):
    assert not devices.is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("gigabytes", [0.001, 4, 80, 192, 2000])
@pytest.mark.parametrize("make", [lambda: SRResNet(4, 16, 64), lambda: SRResNet(2, 4, 96), lambda: SRCNN(3)])
def test_no_card_is_so_large_that_kernels_cannot_count_a_map(monkeypatch, gigabytes, make):
    """The free memory is a stand-in, and so is the device: anything but the CPU."""
    network = make().half().to("meta")
    monkeypatch.setattr(inference, "free_memory", lambda _: gigabytes * 1e9)
    side, margin = inference.tile_that_fits(network), network.features_margin + network.reconstruct_margin
    largest = inference.largest_tile(network)
    channels = network.config.get("channels", 64)
    assert side >= 64 and channels * (largest + 2 * margin) ** 2 < 2**31 <= channels * (largest + 2 * margin + 1) ** 2
    planned = []

    def note(network, lr_img, part, out):
        planned.append(max(part[2] - part[0], part[3] - part[1]))

    monkeypatch.setattr(inference, "upscale_tile", note)
    wide = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1, 20_000, 3), (0, 0, 0))
    for tile in (None, 19_000):
        inference.upscale(network, wide, tile)
    assert max(planned) <= largest


def test_memory_is_given_back_when_the_tile_that_did_not_fit_has_let_go(monkeypatch):
    held, alive, upscale_tile = [], [], inference.upscale_tile

    def with_little_memory(network, lr_img, part, out):
        if part[2] - part[0] > 20:
            maps = torch.zeros(10)
            held.append(weakref.ref(maps))
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        upscale_tile(network, lr_img, part, out)

    gc.collect()
    monkeypatch.setattr(inference, "upscale_tile", with_little_memory)
    monkeypatch.setattr(inference, "return_memory", lambda _: alive.append(held[-1]() is not None))
    inference.upscale(for_inference(SRResNet(2, 1, 4)), np.zeros((40, 40, 3), np.uint8))
    assert alive and not any(alive)


# fp16


def test_upscaling_in_fp16_is_that_in_float32(photographs):
    network = with_statistics(SRResNet(4, 2, 8))
    exact, half = for_inference(network, plain=True), for_inference(network, dtype=torch.float16)
    for picture in (photographs[0][:30, :30], photographs[4][:20, :40]):
        difference = inference.upscale(half, picture).astype(int) - inference.upscale(exact, picture)
        assert 0 < np.abs(difference).max() <= 2
    assert np.array_equal(inference.upscale(half, picture, 16), inference.upscale(half, picture, 16))


def test_values_beyond_fp16_are_no_picture(photographs):
    network = SRResNet(4, 1, 4)
    with torch.no_grad():
        network.head[0].bias.fill_(1e5)
    with pytest.raises(UserError, match="leave the range of fp16 .* --precision fp32"):
        inference.upscale(for_inference(network, dtype=torch.float16), photographs[0][:20, :20])
    inference.upscale(for_inference(network), photographs[0][:20, :20])


def test_a_step_whose_gradients_overflow_is_skipped_and_the_scale_halved(batch):
    torch.manual_seed(0)
    network, seen = SRResNet(4, 1, 4), []
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**36)
    while scaler.get_scale() > 2.0**8 and not seen:
        figures = train_srresnet.train_step(network, optimizer, *batch, torch.float16, scaler)
        assert figures["loss"].isfinite() and figures["gradient_norm"].isfinite()
        if figures["gradient_norm"] > 0:
            seen.append(scaler.get_scale())
        else:
            assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert seen and seen[0] < 2.0**36 and not torch.equal(next(network.parameters()), before[0])
    # The same norm as in float32, to what fp16 rounds.
    reference = SRResNet(4, 1, 4)
    reference.load_state_dict(network.state_dict())
    norms = [
        train_srresnet.train_step(net, torch.optim.SGD(net.parameters(), 0.0), *batch, dtype, scale)["gradient_norm"].item()
        for net, dtype, scale in ((network, torch.float16, scaler), (reference, torch.float32, devices.UNSCALED))
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_gradients_that_no_scale_helps_are_heard_of(batch):
    network = SRResNet(4, 1, 4)
    optimizer, scaler = torch.optim.SGD(network.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=0.5)
    for p in network.parameters():
        p.grad = torch.full_like(p, torch.inf)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    assert devices.gradient_norm(network, scaler).isinf()


@pytest.fixture(params=["train_srresnet", "train_srgan"])
def stage(request, work, lists, vgg_file):
    """A script and the flags of a small run of it, in fp16 on the CPU."""
    flags = ["--data-folder", lists["on"], "--name", "small", "--device", "cpu", "--precision", "fp16", "--workers", 0]
    flags += ["--blocks", 1, "--channels", 4, "--crop-size", 32, "--batch-size", 2, "--steps", 4, "--log-every", 3]
    if request.param == "train_srgan":
        flags += ["--init", "none", "--vgg-weights", vgg_file, "--vgg-layer", 12, "--discriminator-channels", 2]
    return request.param, flags


def test_a_run_in_fp16_is_resumed_exactly_and_those_of_before_go_on(stage, work, monkeypatch, capsys):
    script, flags = stage
    path = work / "checkpoints/small/step_00000004.pth"
    flags = [*flags, "--schedule", "constant"]
    call(script, *flags)
    whole, log = load_checkpoint(path), (work / "results/small/log.csv").read_text()
    assert whole["scaler"]["scale"] > 0 and whole["scaler"]["_growth_tracker"] > 0 and "loss_scale" in log
    call(script, *flags, "--name", "half", "--steps", 2)
    call(script, *flags, "--name", "half", "--resume")
    resumed = load_checkpoint(work / "checkpoints/half/step_00000004.pth")
    assert resumed["scaler"] == whole["scaler"]
    networks = {"weights", "ema", "discriminator"} & whole.keys()
    assert all(torch.equal(resumed[n][key], value) for n in networks for key, value in whole[n].items())
    # A checkpoint of before there was a scaler goes on, and so does a run in another precision.
    del whole["scaler"]
    save_checkpoint(path, whole)
    call(script, *flags, "--steps", 5, "--resume")
    call(script, *flags, "--steps", 6, "--resume", "--precision", "fp32")
    assert capsys.readouterr().out.count("done: ") == 5


# A step that waits for nothing


class Copies(TorchDispatchMode):
    """Notes the operators that have tensors of the host and of the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        places = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        if len(places) > 1:
            self.found.append(str(function))
        return result


class Numbers(TorchFunctionMode):
    """Notes the tensors that are made of numbers of the host for the device, of which no operator hears."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device.type != "cpu":
            self.found.append(function.__name__)
        return result


def test_waiting_is_found():
    """The three faults that the next test looks for: a copy, a tensor of numbers, and a number of a tensor."""
    there, here = torch.zeros(3, device="meta"), torch.zeros(3)
    with Copies() as copies, Numbers() as numbers:
        here.to("meta")
        there.copy_(here)
        there.new_tensor((1.0, 2.0, 3.0))
        torch.tensor(2, device="meta")
    assert len(copies.found) == len(numbers.found) == 2
    for ask in (lambda: there[0].item(), lambda: bool(there.sum() > 0), lambda: float(there.mean()), there.tolist):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_training_step_waits_for_nothing(stage):
    meta, crops = torch.device("meta"), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    flags = ["--vgg-layer", "12", "--luma-adversary", "--vgg-crop", "16", "--discriminator-crop", "16", "--crop-size", "32"]
    terms = ("texture", "pixel", "chroma", "consistency", "echo", "detail", "mesh", "excess")
    flags += [f"--{term}-weight=1" for term in terms]
    args = train_srgan.parse_arguments(flags)
    networks = [(Generator if stage == 2 else SRResNet)(4, 1, 4).to(meta), Discriminator(2).to(meta)]
    averaged = copy.deepcopy(networks[0])
    vgg, faithful = TruncatedVGG19(1, 2, vgg19_features().state_dict()).to(meta), SRResNet(4, 1, 4).to(meta)
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in networks]
    log = Log(SimpleNamespace(device=meta, rank=0, count=1), 100)

    def step(number):
        lr_imgs, hr_imgs = training_pair(crops, 4, meta)
        if stage == 1:
            figures = train_srresnet.train_step(networks[0], optimizers[0], lr_imgs, hr_imgs)
        else:
            pairs = lr_imgs, hr_imgs
            figures = train_srgan.train_step(*networks, vgg, *optimizers, *pairs, args, step=number, faithful=faithful)
            assert set(terms) <= set(figures)
        runs.update_ema(averaged, networks[0], number, 0.999)
        log.add(number, figures)

    step(1)  # makes what is kept
    with Copies() as copies, Numbers() as numbers:
        step(2)
    assert len(copies.found) == 1 and not numbers.found  # the crops, from pinned memory


def test_moving_average_is_that_of_the_plain_loop_to_the_last_bit():
    torch.manual_seed(0)
    network, ema = with_statistics(SRResNet(4, 2, 8)), SRResNet(4, 2, 8)
    expected = copy.deepcopy(ema)
    for step in (1, 5, 1000, 100_000):
        network(torch.rand(2, 3, 8, 8))  # moves the statistics, and counts
        runs.update_ema(ema, network, step, 0.99)
        decay = min(0.99, (1 + step) / (10 + step))
        for average, value in zip(expected.state_dict().values(), network.state_dict().values(), strict=True):
            average.lerp_(value, 1 - decay) if value.is_floating_point() else average.copy_(value)
        assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), expected.state_dict().values(), strict=True))


def test_moving_average_keeps_its_lists(monkeypatch):
    network, ema, calls = SRResNet(4, 1, 4), SRResNet(4, 1, 4), []
    state_dict = torch.nn.Module.state_dict
    monkeypatch.setattr(torch.nn.Module, "state_dict", lambda self, **more: calls.append(1) or state_dict(self, **more))
    runs.update_ema(ema, network, 1, 0.9)
    made = len(calls)
    for step in (2, 3, 4):
        runs.update_ema(ema, network, step, 0.9)
    assert made and len(calls) == made


def test_processes_ask_each_other_to_stop_at_every_tenth_step_and_save():
    asked = []
    run = SimpleNamespace(args=SimpleNamespace(save_every=7, steps=25), world_size=2, stop_signal=None, stopping=False)
    run.processes = SimpleNamespace(any=lambda flag: asked.append(step) or flag)
    run._check_finite = lambda: None
    saved = []
    for step in range(1, 26):
        run.stop_signal = 15 if step >= 15 else None
        if runs.Run.save_due(run, step):
            saved.append(step)
        if run.stopping:
            break
    assert asked == [7, 10, 14, 20] and saved == [7, 14, 20]
