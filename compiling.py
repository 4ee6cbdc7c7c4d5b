"""torch.compile: whether a run gains from it, whether this machine can serve it, and the way back where it fails after all.

Not here: what is compiled.
"""

import copy
import importlib.util
import os
import shutil
import sysconfig

import torch

from devices import is_out_of_memory
from utils import UserError

LEAST_CAPABILITY = (7, 0)  # of a GPU that Triton, the compiler's language on CUDA, knows


def should_compile(args, device, dtype, network=None, tell=print):
    """Whether to torch.compile a network: it costs a minute at the start, and needs compilers. `tell(line)` hears why not.

    Raises UserError for `--compile on` where it cannot be done.
    """
    # On the CPU it gains a tenth of stage 1's step in bf16, nothing in fp32, and loses a tenth of stage 2's.
    gains = device.type == "cuda" or (device.type == "cpu" and dtype == torch.bfloat16 and args.stage == 1)
    if args.compile == "off" or (args.compile == "auto" and (args.dry_run or args.steps < 2000 or not gains)):
        return False
    lacking = what_compiling_lacks(device)
    if args.compile == "on":
        if lacking:
            raise UserError(f"--compile on needs {lacking}; or give --compile off")
        return True
    if network is not None and synchronises(network):
        lacking = "a graph that synchronised batch normalisation does not cut to pieces, as with --freeze-bn"
    if lacking:
        tell(f"training eagerly, without torch.compile, which needs {lacking}")
    return not lacking


def what_compiling_lacks(device):
    """What torch.compile needs on this device and does not have, in words; or None."""
    if device.type not in ("cpu", "cuda"):
        return "a CPU or a GPU of CUDA"
    variable, usual = ("CXX", ("c++", "g++", "clang++", "cl")) if device.type == "cpu" else ("CC", ("gcc", "clang"))
    if not any(map(shutil.which, [os.environ[variable]] if os.environ.get(variable) else usual)):
        return f"a {'C++' if device.type == 'cpu' else 'C'} compiler: install one (Debian: apt install g++)"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "Python.h: install Python's headers (Debian: apt install python3-dev)"
    if device.type == "cpu":
        return None
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        return f"a GPU of compute capability 7.0 or more, and this one has {capability[0]}.{capability[1]}"
    return None if importlib.util.find_spec("triton") else "Triton: pip install triton"


def synchronises(network):
    """Whether batch normalisation of the network exchanges its statistics between processes."""
    return any(isinstance(module, torch.nn.SyncBatchNorm) and module.training for module in network.modules())


def eager_if_it_fails(step, parts, scaler, tell=print):
    """A training step as `step`, whose first call is made again eagerly if it fails with torch.compile.

    `parts` are the networks and optimizers that it changes; they, and the scaler, are then put back to where they were.
    `tell(line)` hears why. What the step cannot do eagerly either is raised by the second try; a want of memory, at once.
    """
    tried = False

    def guarded(*arguments, **options):
        nonlocal tried
        if tried:
            return step(*arguments, **options)
        tried, before = True, copy.deepcopy([part.state_dict() for part in (*parts, scaler)])
        try:
            return step(*arguments, **options)
        except Exception as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split()).split(" Set TORCHDYNAMO")[0][:200]
        tell(f"torch.compile failed ({reason}): training eagerly, without it")
        torch.compiler.set_stance("force_eager")
        if scaler.is_enabled():
            scaler.scale(torch.zeros((), device=next(parts[0].parameters()).device))  # or there may be no scale to set yet,
            scaler.update(scaler.get_scale())  # which makes it forget what it has done to the optimizers
        for part, state in zip((*parts, scaler), before, strict=True):
            part.load_state_dict(state)
        return step(*arguments, **options)

    return guarded
