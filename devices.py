"""What a script computes on: device, precision, memory, torch.compile or not, and the processes of torchrun.

Not here: command lines, and what is computed.
"""

import contextlib
import ctypes
import importlib.util
import os
import shutil

import torch

from utils import UserError


def pick_device(name):
    """The torch device for `--device`, made ready. Raises UserError where it is not to be had."""
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
    """torch.bfloat16 or torch.float32, for `--precision` on `device`."""
    if precision == "auto":
        if device.type == "cuda":
            has_units = torch.cuda.get_device_capability(device) >= (8, 0)
        else:  # emulated bf16 is several times slower than fp32
            capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.10 has none: fp32
            has_units = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
        precision = "bf16" if has_units else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def autocast(device, dtype):
    return torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16)


def should_compile(args, device, dtype):
    """Whether to torch.compile the networks: it costs a minute at the start, and a C++ compiler on the CPU.

    Raises UserError for `--compile on` where it cannot be done.
    """
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


def is_out_of_memory(error):
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


class Processes:
    """The device, and the processes that work together under torchrun: NCCL between GPUs, Gloo between CPUs.

    Outside torchrun there is one, of rank 0. Raises UserError for a device that is not to be had.
    """

    def __init__(self, device_name="auto"):
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
        if self.count == 1:
            return [value]
        values = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values
