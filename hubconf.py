"""The trained networks for torch.hub: RGB (N, 3, h, w) in [0, 1] -> (N, 3, 4*h, 4*w) in [0, 1].

    network = torch.hub.load("OWNER/REPO", "srgan_x4")
    network = torch.hub.load("path/to/this/folder", "srgan_x4", source="local")

In eval mode and float32, on the CPU; `.to("cuda")` and `.half()` work on it. A picture goes through it whole: for large ones
`upscale` in inference.py works by tiles.
"""

import contextlib
import pathlib
import sys

dependencies = ["torch", "numpy", "PIL", "tqdm"]  # the name that torch.hub asks for; what it may load has no underscore

FOLDER = pathlib.Path(__file__).resolve().parent


@contextlib.contextmanager
def _our_modules():
    """Let `import utils` and the like find the modules of this folder, also where the caller has others of these names.

    The caller's stay what they are, for him.
    """
    ours = {path.stem for path in FOLDER.glob("*.py")} | {"pictures"}
    named_alike = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ours}
    theirs = {
        name: module
        for name, module in named_alike.items()
        if FOLDER not in pathlib.Path(getattr(module, "__file__", None) or "").resolve().parents
    }
    for name in theirs:
        del sys.modules[name]
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.update(theirs)


def _load(name):
    """The network in checkpoints/NAME.pth. Raises FileNotFoundError if there is none."""
    path = FOLDER / "checkpoints" / f"{name}.pth"
    if not path.exists():
        raise FileNotFoundError(
            f"the weights of {name} are not in this copy of the repository: there is no checkpoints/{path.name}"
        )
    with _our_modules():
        from inference import Upscaler
        from weights import load_network

        return Upscaler(load_network(path))


def srresnet_x4():
    """SRResNet, x4, trained with the mean squared error: faithful, and soft."""
    return _load("srresnet_x4")


def srgan_x4():
    """The generator of SRGAN, x4: sharp, with detail that it invents."""
    return _load("srgan_x4")


def srresnet_x4_photo():
    """As srresnet_x4, trained on what cameras and the web make of pictures: blur, noise, JPEG."""
    return _load("srresnet_x4_photo")


def srgan_x4_photo():
    """As srgan_x4, trained on what cameras and the web make of pictures: blur, noise, JPEG."""
    return _load("srgan_x4_photo")
