"""Metrics of the package pyiqa (IQA-PyTorch), as further columns beside PSNR, SSIM and LPIPS: DISTS, NIQE and many more.

pyiqa sees whole RGB pictures in [0, 1]: no border is cut, and what it does with colours is each metric's own affair. The
package is imported where it is used, since it takes seconds. Not here: our own metrics and the protocol (metrics.py).
"""

import contextlib
import difflib
import inspect
import io
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import torch

from utils import UserError

OURS = ("psnr", "ssim", "lpips")  # in metrics.py, whatever pyiqa calls so
LOWER_IS_BETTER = {"psnr": False, "ssim": False, "lpips": True}
# What pyiqa counts among its metrics and does not measure pictures one by one: sets of them, or how they fit a sentence.
NOT_OF_PICTURES = ("fid", "sfid", "fid_dinov2", "inception_score", "clipscore")


def import_pyiqa(names):
    """The package. Raises UserError, in the `names` of the metrics that need it, where it is not to be had."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pyiqa
    except ImportError as error:
        needs = "the metric needs" if len(names) == 1 else "the metrics need"
        raise UserError(f"--metrics {' '.join(names)}: {needs} the package pyiqa: pip install pyiqa ({error})") from None
    return pyiqa


def check_names(names, with_hr):
    """The names of metrics as pyiqa spells them, ours and repeated ones left out.

    Raises UserError for an unknown name, and for a metric that compares with HR images where there are none.
    """
    compared = [name for name in names if name.lower() in OURS]
    names = [name for name in dict.fromkeys(names) if name.lower() not in OURS]
    spelled = []
    if names:
        pyiqa = import_pyiqa(names)
        known = {name.lower(): name for name in pyiqa.list_models() if name not in NOT_OF_PICTURES}
        for name in names:
            if name.lower() in NOT_OF_PICTURES:
                raise UserError(f"--metrics {name}: it does not measure pictures one by one")
            if name.lower() not in known:
                raise UserError(f"--metrics {name}: neither ours nor of pyiqa; {near(name.lower(), [*known, *OURS])}")
            spelled.append(known[name.lower()])
        compared += [name for name in spelled if name in pyiqa.list_models("FR")]
    if compared and not with_hr:
        raise UserError(f"--metrics {compared[0]} compares with HR images: give their folder by --test-sets")
    return list(dict.fromkeys(spelled))


def near(name, known):
    """The known names that were perhaps meant, in words."""
    contained = [other for other in known if name in other]
    close = list(dict.fromkeys([*difflib.get_close_matches(name, known, 3, 0.5), *contained]))[:5]
    return f"perhaps {', '.join(close)}" if close else "pyiqa.list_models() in Python lists the names"


def load_metric(name, weights=None, device="cpu"):
    """A metric of pyiqa: a function of an SR and an HR image (H, W, 3) uint8, None for a metric without reference.

    And whether lower is better. `weights` is a file of the metric's own weights, in place of a download. Metrics that look
    at random crops look at the same ones each time. Raises UserError if it cannot be loaded, or measured.
    """
    pyiqa = import_pyiqa([name])
    options = {"pretrained_model_path": str(weights)} if weights else {}
    if weights and not Path(weights).is_file():
        raise UserError(f"--metric-weights {name}={weights}: no such file")
    said = io.StringIO()
    try:
        with quiet(said):
            metric = pyiqa.create_metric(name, device=torch.device(device), **options).requires_grad_(False)
    except Exception as error:  # whatever the authors of sixty metrics, and their ways to download, raise
        raise UserError(why_not_loaded(pyiqa, name, weights, error, said.getvalue())) from None
    if weights and not takes_a_file(pyiqa, name):
        raise UserError(f"--metric-weights {name}={weights}: pyiqa's {name} takes no file")

    def measure(sr_img, hr_img):
        images = [img for img in (sr_img, hr_img) if img is not None]
        tensors = [torch.from_numpy(img.copy()).to(device).permute(2, 0, 1)[None].float() / 255 for img in images]
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                return torch.as_tensor(metric(*tensors)).item()
        except Exception as error:
            size = f"{sr_img.shape[1]}x{sr_img.shape[0]}"
            raise UserError(f"--metrics {name}: pyiqa fails on a picture of {size} ({first_line(error)})") from None

    return measure, bool(metric.lower_better)


@contextlib.contextmanager
def quiet(said):
    """Let what libraries print go to the file `said`, and their warnings nowhere."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def why_not_loaded(pyiqa, name, weights, error, said):
    """The message for a metric that could not be made; `said` is what was printed, the file it tried to download among it."""
    wanted = re.findall(r'Downloading: "(\S+)" to (.+)', said)
    if wanted and isinstance(error, OSError):
        url, path = wanted[-1]
        ways = f"put it at {path.strip()}"
        if Path(path).parent.name == "pyiqa" and takes_a_file(pyiqa, name):  # else it is a network of torchvision's
            ways += f", or give it by --metric-weights {name}=FILE"
        return f"--metrics {name}: {url} cannot be downloaded ({first_line(error)}); {ways}"
    if type(error).__module__.startswith("huggingface_hub"):
        way = "load it once where there is a network, and copy ~/.cache/huggingface from there"
        return f"--metrics {name}: its network cannot be downloaded from Hugging Face; {way}"
    if weights:
        takes = "not its weights" if takes_a_file(pyiqa, name) else f"pyiqa's {name} takes no file"
        return f"--metric-weights {name}={weights}: {takes} ({first_line(error)})"
    return f"--metrics {name}: pyiqa cannot load it ({first_line(error)})"


def takes_a_file(pyiqa, name):
    """Whether a metric, which pyiqa has at least tried to make, takes its own weights as a file."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from pyiqa.utils.registry import ARCH_REGISTRY

    network = ARCH_REGISTRY.get(DEFAULT_CONFIGS[name]["metric_opts"]["type"])
    return "pretrained_model_path" in inspect.signature(network.__init__).parameters


def first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
