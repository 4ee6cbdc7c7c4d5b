"""What a script computes on: device, precision with the scaling that fp16 needs, memory, and the processes of torchrun.

Not here: command lines, what is computed, and torch.compile (compiling.py).
"""

import contextlib
import ctypes
import os
import re

import torch

from utils import UserError

# GPUs of compute capability 7.5 as the T4 is, but without its tensor cores: fp16 gains little there, and their convolutions
# in fp16 are known for NaN (https://github.com/pytorch/pytorch/issues/77955).
WITHOUT_TENSOR_CORES = r"GTX 16|MX[45]50|CMP 30HX|\bT(500|550|600|1000|1200|2000)\b"
# What PyTorch, CUDA, cuBLAS, cuDNN and Metal say when memory is short. cuDNN's front end says that it finds no engine after
# it has tried them all and their work space did not fit; a library that cannot be initialised lacks memory for its handle.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|unable to find an engine|CU(BLAS|DNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED|cannot allocate memory",
    re.IGNORECASE,
)
UNSCALED = torch.amp.GradScaler("cpu", enabled=False)  # what float32 and bf16 need: see gradient_scaler


def pick_device(name):
    """The torch device for `--device`, made ready. Raises UserError where it is not to be had."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; give auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: this PyTorch sees {torch.cuda.device_count()} CUDA devices; try --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: this PyTorch finds no GPU of Apple's; try --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: only the CPU, CUDA and Apple's MPS are supported")
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)  # or pinned memory would open GPU 0 too, and take some of its memory
        torch.set_float32_matmul_precision("high")  # TF32, in which cuDNN convolves float32 anyway
    return device


def keep_freed_memory():
    """Let the C library (glibc) keep the memory of freed tensors for the next ones, up to tensors of 32 MB.

    By default it gives much of it back to the system at once, which clears it and hands it out anew page by page: a fifth of a
    training step. Larger tensors are beyond its limit, and M_MMAP_MAX, which has none, lets the memory grow without end.
    """
    trim_threshold, mmap_threshold = -1, -3  # mallopt(3)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)
        mallopt(mmap_threshold, 32 * 2**20)


def give_back_memory():
    """Let the C library return what it keeps to the system, in a program that waits for its next work."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def pick_dtype(precision, device):
    """torch.bfloat16, torch.float16 or torch.float32, for `--precision` on `device`. Raises UserError for what MPS has not."""
    if device.type == "mps" and precision not in ("auto", "fp32"):
        raise UserError(f"--precision {precision}: on MPS there is only fp32")
    if precision == "auto":
        precision = quickest_precision(device)
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def quickest_precision(device):
    """What `--precision auto` means: bf16 or else fp16 where there are units for it; emulated, both are slower than fp32.

    On CPUs these units are AMX; the bf16 instructions of AVX-512 alone do as well, but not on those of Intel, where they
    take one and a half times as long as fp32 (docs/LOG.md, 2026-11-27).
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return "bf16"
        has_units = capability >= (7, 0) and not re.search(WITHOUT_TENSOR_CORES, torch.cuda.get_device_name(device))
        return "fp16" if has_units else "fp32"
    if device.type == "mps":
        return "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.10 has none: fp32
    by_avx512 = capabilities.get("avx512_bf16", False) and "Intel" not in capabilities.get("cpu_name", "")
    return "bf16" if capabilities.get("amx_bf16", False) or by_avx512 else "fp32"


def autocast(device, dtype):
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def gradient_scaler(device, dtype):
    """What keeps the gradients of fp16 in its range: it scales a loss, and skips a step whose gradients overflow.

    For other precisions it does nothing. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def gradient_norm(network, scaler):
    """The norm of the gradients, on the device, after scaler.unscale_.

    It is 0 for a step that the scaler skips, unless the scale is below 1 already: then the gradients are not finite by
    themselves, and the run shall hear of it.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters()])
    if not scaler.is_enabled():
        return norm
    skipped = ~norm.isfinite() & (scaler.scale(torch.ones_like(norm)) >= 1)
    return norm.masked_fill(skipped, 0)


def descend(loss, network, optimizer, scaler):
    """A step of the optimizer down the gradient of `loss`; returns the gradient's norm. The scaler's update is the caller's."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = gradient_norm(network, scaler)
    scaler.step(optimizer)
    return norm


def is_out_of_memory(error):
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(OUT_OF_MEMORY.search(str(error)))


def free_memory(device):
    """The bytes that tensors on the device can still take, as far as the system tells."""
    if device.type == "cuda":  # what PyTorch keeps of freed tensors is free for new ones
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows and macOS do not tell
        return 3e9


def return_memory(device):
    """Give back what PyTorch keeps of freed tensors, for the libraries that ask the driver for their own."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def available_cores():
    """The CPU cores that this process may use, of which a container or a batch system may leave it a few."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Windows and macOS
        return os.cpu_count() or 1


class Processes:
    """The device, and the processes that work together under torchrun: NCCL between GPUs, Gloo between CPUs.

    Outside torchrun there is one, of rank 0. Raises UserError for a device that is not to be had.
    """

    def __init__(self, device_name="auto"):
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1 and device_name.startswith("cuda:"):
            raise UserError(f"--device {device_name}: torchrun gives each process a GPU of its own; give --device cuda")
        self.device = pick_device(device_name)
        if self.count == 1:
            return
        if self.device.type == "mps":
            raise UserError(f"--device {device_name}: torchrun is for GPUs of CUDA and for CPUs; start the script without it")
        if self.device.type == "cuda":
            self.device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")  # refused if there are more processes than GPUs
        torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.control = torch.distributed.new_group(backend="gloo")  # for flags and figures, which are not on the GPU

    def share_out(self, total):
        """The numbers below `total`, each to the process that is free first. To be called once, by all of them."""
        if self.count == 1:
            yield from range(total)
            return
        store = torch.distributed.distributed_c10d._get_default_store()
        while (number := store.add("shared_out", 1) - 1) < total:
            yield number

    def any(self, flag) -> bool:
        """Whether the flag is up in any of the processes."""
        return any(self.gather(flag))

    def gather(self, value) -> list:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values
