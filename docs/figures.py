"""Draw the figures of docs/HOW_IT_WORKS.md anew, from the networks, the weights and the losses of this repository.

    python docs/figures.py
    python docs/figures.py plane terms --vgg-weights vgg19.pth --lpips-backbone alexnet.pth

Without names all are drawn, into docs/images. `losses` and `discriminator` train for some minutes, by train_srgan.py, from
checkpoints/srresnet_x4.pth; what they have trained stays in results/figures, and is used again as long as the flags and those
weights are the same. The photographs come with scikit-image. Needs matplotlib and lpips.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import ArgumentParser, UserError, add_device_arguments, number, user_errors

NAMES = ("networks", "enlarged", "sub_pixel", "features", "candidates", "content", "discriminator", "losses", "terms", "plane")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="FIGURE", help=f"which to draw, of {', '.join(NAMES)} (default: all)")
    add("--vgg-weights", default="imagenet", metavar="FILE", help="state dict of VGG19's features; imagenet is downloaded")
    add("--vgg-factor", type=number(float, 0), default=1.0, help="scale of its features, as of train_srgan.py")
    add("--lpips-backbone", default="imagenet", metavar="FILE", help="state dict of AlexNet's features; imagenet is downloaded")
    add(
        "--steps",
        type=number(int, 1),
        default=100,
        help="of each small training of `losses`; `discriminator` takes twice as many",
    )
    add("--output", type=Path, default=ROOT / "docs/images", metavar="DIR", help="folder for the figures")
    add("--work", type=Path, default=ROOT / "results/figures", metavar="DIR", help="folder for the small trainings")
    add_device_arguments(parser)
    args = parser.parse_args()
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return args


if __name__ == "__main__":  # before the imports that take seconds
    arguments = parse_arguments()

import functools
import hashlib
import shlex
import subprocess

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import losses
from devices import pick_device, pick_dtype
from inference import for_inference, upscale
from layers import PReLU
from metrics import artifacts, load_lpips, psnr
from models import SRCNN, Discriminator, ResidualBlock, SRResNet, TruncatedVGG19
from pictures.pixels import crop_to_multiple, downscale, enlarge, to_tensor, write_image
from weights import blend_networks, load_checkpoint, load_network

SCALE, SIDE = 4, 320  # the shipped weights' factor, and the longer side of a photograph
PANELS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "brick")  # as in the README
SHOWN, TRAINING = (
    "chelsea",
    ("coffee", "rocket", "hubble_deep_field", "retina", "camera", "brick", "grass", "gravel", "astronaut"),
)
CHECKPOINTS = ROOT / "checkpoints"
START = CHECKPOINTS / "srresnet_x4.pth"

# What `losses` compares: flags of train_srgan.py. The content loss has no weight of its own: features times 0 take it away.
# Where the adversary weighs nothing, its size is of no account.
COMMON = "--batch-size 2 --crop-size 96 --learning-rate 2e-4 --schedule constant --freeze-bn generator --ema-decay 0"
COMMON += " --log-every 50 --workers 0"
NO_CONTENT, NO_ADVERSARY = "--vgg-factor 0 --vgg-layer 11", "--adversarial-weight 0 --discriminator-channels 1"
FOUR_LAYERS = "--vgg-layer 22 34 44 54 --vgg-before-relu --content-loss cosine"
RUNS = {
    "squared error of pixels": f"{NO_CONTENT} {NO_ADVERSARY} --pixel-weight 1",
    "content, VGG22": f"{NO_ADVERSARY} --vgg-layer 22",
    "content, VGG54": f"{NO_ADVERSARY} --vgg-layer 54",
    "content, cosine, 4 layers": f"{NO_ADVERSARY} {FOUR_LAYERS}",
    "texture (Gram), VGG22": f"{NO_ADVERSARY} --vgg-layer 22 --texture-weight 1e6",
    "adversarial": f"{NO_CONTENT} --adversarial-weight 1 --discriminator-channels 32",
    "VGG54 + adversarial 1e-3": "--vgg-layer 54 --discriminator-channels 32",
    "recipe quick": "--recipe quick --discriminator-channels 32",
}
# The discriminator of `discriminator`: it answers about patches, and hardly moves the generator, whose pictures it learns.
# With batch normalisation, HR and SR each by its own statistics, it still tells nothing apart after 200 steps.
JUDGE = f"{NO_CONTENT} --pixel-weight 1 --adversarial-weight 1e-5 --discriminator patch --discriminator-channels 32"
JUDGE += " --batch-size 4 --learning-rate 4e-4 --freeze-bn both"


def trained(name, flags, steps, args):
    """The folder with the checkpoints of a small training by train_srgan.py, which is run unless it is there already."""
    start, vgg = (shlex.quote(Path(file).resolve().as_posix()) for file in (START, args.vgg_weights))
    vgg = args.vgg_weights if args.vgg_weights == "imagenet" else vgg
    flags = f"--steps {steps} {COMMON} --init {start} --vgg-weights {vgg} --vgg-factor {args.vgg_factor} {flags}"
    digest = hashlib.sha256(START.read_bytes() + flags.encode()).hexdigest()[:8]
    run = f"{''.join(c if c.isalnum() else '_' for c in name)}_{digest}"
    folder = args.work / "checkpoints" / run
    if (folder / "best.pth").exists() and load_checkpoint(folder / "last.pth")["step"] == steps:
        return folder
    if not (args.work / "data").exists():
        for kind, names in (("train", TRAINING), ("shown", (SHOWN,))):
            for photograph in names:
                write_image(args.work / kind / f"{photograph}.png", picture(photograph, 512 if kind == "train" else SIDE))
        python("create_data_lists.py", "--train-folders train --validation-images 1 --output-folder data", args.work)
    resume = " --resume" if (folder / "last.pth").exists() else ""
    python("train_srgan.py", f"--name {run} --validate-on shown --validate-every {steps} {flags}{resume}", args.work)
    return folder


def python(script, words, folder):
    """Run a script of the repository in a folder. Raises UserError if it fails."""
    print(f"$ python {script} {words}", flush=True)
    if subprocess.run([sys.executable, ROOT / script, *shlex.split(words)], cwd=folder).returncode:
        raise UserError(f"{script} failed; what it printed stands above")


def picture(name, side=SIDE):
    """A photograph that comes with scikit-image, its longer side made `side`: (H, W, 3) uint8, sides multiples of 4."""
    from skimage import data

    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return crop_to_multiple(np.asarray(image), SCALE)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def pyplot():
    """matplotlib, set so that the same data give the same file. Raises UserError where the package is missing."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the figures need the package matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "figures", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    )
    from matplotlib import pyplot

    return pyplot


def save(figure, path):
    """Write a figure, as small as its kind allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None})
    else:
        figure.savefig(path, dpi=100, pil_kwargs={"quality": 78, "method": 6})
    pyplot().close(figure)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def grid(path, rows, width, lines=1, ends=None):
    """Rows of (label, image) side by side, each image `width` pixels wide; maps (H, W) in [0, 1] in colours.

    `lines` is the height of the labels. `ends` (low, high) makes a bar of colours below that names the ends of the scale.
    """
    plt = pyplot()
    columns, gap, strip = max(len(row) for row in rows), 6, 16 * lines + 6
    heights = [strip + max(width * image.shape[0] / image.shape[1] for _, image in row) for row in rows]
    total = columns * (width + gap) + gap, sum(heights) + gap * len(rows) + (34 if ends else 0)
    figure, top = plt.figure(figsize=(total[0] / 100, total[1] / 100)), total[1]
    for row, height in zip(rows, heights, strict=True):
        for column, (label, image) in enumerate(row):
            left, tall = gap + column * (width + gap), width * image.shape[0] / image.shape[1]
            place = left / total[0], (top - strip - tall) / total[1], width / total[0], tall / total[1]
            axes = figure.add_axes(place)
            axes.imshow(image, vmin=0, vmax=1, cmap="inferno", interpolation="nearest", aspect="auto")
            axes.axis("off")
            figure.text(left / total[0], (top - strip + 4) / total[1], label, va="bottom", linespacing=1.15)
        top -= height + gap
    if ends:
        bar = figure.add_axes((0.3, 20 / total[1], 0.4, 10 / total[1]))
        bar.imshow(np.linspace(0, 1, 256)[None], cmap="inferno", aspect="auto")
        bar.axis("off")
        figure.text(0.29, 18 / total[1], ends[0], ha="right")
        figure.text(0.71, 18 / total[1], ends[1])
    save(figure, path)


def crop(image, top, left, size):
    """A square of an image or a map."""
    return image[top : top + size, left : left + size]


def tensor_of_lr(lr_img):
    """(h, w, 3) uint8 -> (1, 3, h, w) float32 in [0, 1], as LR images are."""
    return (to_tensor(lr_img) + 1) / 2


def heat(values, top):
    """A map (1, 1, H, W) or (H, W) as an array in [0, 1], where 1 stands for `top` and more."""
    return (values.detach().float().squeeze() / top).clamp(0, 1).numpy()


class Tools:
    """What several figures need, made when the first of them asks."""

    def __init__(self, args):
        self.args = args

    @functools.cached_property
    def vgg(self):
        try:
            return TruncatedVGG19(5, 4, self.args.vgg_weights)
        except (ValueError, OSError) as error:
            raise UserError(f"--vgg-weights {self.args.vgg_weights}: {error}") from None

    @functools.cached_property
    def lpips(self):
        return load_lpips(self.args.lpips_backbone)

    @functools.cache  # noqa: B019 (there is one, for the whole run)
    def network(self, path):
        device = pick_device(self.args.device)
        return for_inference(load_network(path), device, pick_dtype(self.args.precision, device))

    def enlarged(self, lr_img):
        """The pictures of the ladder by their names: nearest pixel, bicubic, and the two networks that ship."""
        nearest = lr_img.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        found = {"nearest pixel": nearest, "bicubic": enlarge(lr_img, SCALE)}
        shipped = ("srresnet_x4", "srgan_x4")
        return found | {name: upscale(self.network(CHECKPOINTS / f"{name}.pth"), lr_img) for name in shipped}

    def figures(self, sr_img, hr_img):
        return f"{psnr(sr_img, hr_img, SCALE):.2f} dB, LPIPS {self.lpips(sr_img, hr_img):.3f}"


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def stages(network, input_shape, classes=()):
    """What an image (C, H, W) passes in a network: [(what, times, shape)], from hooks on its layers as they are built.

    An activation or a normalisation belongs to the layer before it; equal stages in a row are one. `classes` are modules that
    are stages as a whole.
    """
    found, hooks = [], []

    def hook(module, _, output):
        shape = tuple(output.shape[1:])
        what = describe(module)
        if what.startswith("+"):
            name, times, _ = found.pop()
            found.append((name + "\n" + what[1:], times, shape))
        else:
            found.append((what, 1, shape))

    for name, module in network.named_modules():
        inner = any(isinstance(network.get_submodule(name[:i]), classes) for i, c in enumerate(name) if c == ".")
        if not inner and (isinstance(module, classes) or not list(module.children())):
            hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        network.eval()(torch.zeros(1, *input_shape))
    for handle in hooks:
        handle.remove()
    merged = []
    for what, times, shape in found:
        if merged and merged[-1][0] == what and merged[-1][2] == shape:
            merged[-1] = (what, merged[-1][1] + times, shape)
        else:
            merged.append((what, times, shape))
    return merged


def describe(module):
    """A layer in a few words; with a + before them if it belongs to the layer before it."""
    if isinstance(module, ResidualBlock):
        return "residual\nblock"
    if isinstance(module, torch.nn.Conv2d):
        stride = f"\nstride {module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {module.kernel_size[0]}x{module.kernel_size[1]}{stride}"
    names = {torch.nn.PixelShuffle: "pixel\nshuffle", torch.nn.MaxPool2d: "max-pool", torch.nn.AdaptiveAvgPool2d: "pool"}
    names |= {torch.nn.Linear: "dense", torch.nn.BatchNorm2d: "+BN", PReLU: "+PReLU", torch.nn.LeakyReLU: "+LeakyReLU"}
    names |= {torch.nn.ReLU: "+ReLU", torch.nn.Tanh: "+tanh"}
    return names[type(module)]


def draw_networks(tools, path):
    """The four networks: each box is a stage, as wide as its channels and as high as its maps (logarithms)."""
    plt = pyplot()
    plain = SRResNet(SCALE)
    plain.joins_last_shuffle = False  # the layers one after the other, as on a GPU
    networks = {
        "SRCNN (bicubic enlargement comes first)": (SRCNN(SCALE).layers, (3, 96, 96), ()),
        "SRResNet, the generator": (plain, (3, 24, 24), (ResidualBlock,)),
        "Discriminator": (Discriminator(), (3, 96, 96), ()),
        "VGG19 up to phi_5,4 (frozen: it only measures)": (meta_vgg(), (3, 96, 96), ()),
    }
    figure, all_axes = plt.subplots(len(networks), figsize=(12.2, 9.4), layout="constrained")
    for axes, (title, (network, shape, classes)) in zip(all_axes, networks.items(), strict=True):
        boxes = [("input", 1, shape), *stages(network, shape, classes)]
        for x, (what, times, (channels, *sides)) in enumerate(boxes):
            height = 0.25 * np.log2(sides[0]) if sides else 0.12
            width = 0.08 * np.log2(channels + 1) if channels > 1 else 0.09
            colour = "#d9a441" if x == 0 else "#7a9cc6" if "conv" in what else "#b07aa1" if "block" in what else "#8cbf88"
            axes.add_patch(plt.Rectangle((x - width / 2, -height / 2), width, height, facecolor=colour, edgecolor="#333"))
            if times > 1:
                axes.text(x, height / 2 + 0.06, f"x {times}", ha="center", va="bottom", weight="bold")
            axes.text(x, -0.9, " x ".join(map(str, (channels, *sides))), ha="center", va="top", fontsize=9, color="#a33")
            axes.text(x, -1.14, what, ha="center", va="top", fontsize=9, linespacing=1.1)
            if x:
                axes.annotate("", (x - 0.42, 0), (x - 0.58, 0), arrowprops={"arrowstyle": "->", "color": "#555"})
        count = sum(p.numel() for p in network.parameters())
        axes.set_title(f"{title}: {count:,} parameters", loc="left", fontsize=11, weight="bold")
        axes.set(xlim=(-0.6, 11.6), ylim=(-2.0, 1.15))
        axes.axis("off")
        if "SRResNet" in title:
            last = next(x for x, (what, _, _) in enumerate(boxes) if "block" in what) + 1
            axes.annotate(
                "", (last + 0.3, 0.72), (1.3, 0.72), arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.12"}
            )
            axes.text((last + 1.6) / 2, 1.02, "+ long skip", ha="center", fontsize=9)
    save(figure, path)


def meta_vgg():
    """VGG19 up to phi_5,4 without weights, for its shapes and its count."""
    from models import vgg19_features

    return vgg19_features()[: TruncatedVGG19.depth(5, 4)]


def draw_sub_pixel(tools, path):
    """Four channels of the last sub-pixel block and the one that the shuffle makes of them."""
    network = load_network(START).eval()
    lr_imgs = tensor_of_lr(crop(downscale(picture(SHOWN), SCALE), 6, 18, 36))
    with torch.no_grad():
        convolution, shuffle, _ = network.upsampling[-1]
        before = convolution(network.upsampling[:-1](network.features(lr_imgs)))
        after = shuffle(before)
    channel = int(clearest(after[0])[0])
    four, result = before[0, 4 * channel : 4 * channel + 4], after[0, channel]
    assert torch.equal(result[1::2, ::2], four[2])  # what the page says of the order
    scaled = scale_of(result)
    zoom = [crop(scaled(values), 20, 24, 12) for values in four]
    first = [(f"channel {4 * channel + i}", scaled(values)) for i, values in enumerate(four)]
    second = [(f"12 x 12 of channel {4 * channel + i}", values) for i, values in enumerate(zoom)]
    first.append((f"shuffled: channel {channel}", scaled(result)))
    second.append((f"24 x 24 of channel {channel}", crop(scaled(result), 40, 48, 24)))
    grid(path, [first, second], 190)


def clearest(maps):
    """The channels of maps (C, H, W) in the order of how much of their variance is left in means of 4x4 pixels."""
    return (F.avg_pool2d(maps, 4).var((1, 2)) / maps.var((1, 2))).argsort(descending=True)


def scale_of(values):
    """A function that maps values to [0, 1] between those that 2 % and 98 % of (H, W) lie below, without its border."""
    low, high = values[4:-4, 4:-4].quantile(torch.tensor([0.02, 0.98]))
    return lambda values: heat(values - low, high - low)


def draw_features(tools, path):
    """Feature maps of one photograph on its way through SRResNet."""
    network = load_network(START).eval()
    network.joins_last_shuffle = False
    lr_img = downscale(picture(SHOWN), SCALE)
    modules = {"after the first convolution": network.head, "after residual block 4": network.body[3]}
    modules |= {
        f"after residual block {len(network.body)}": network.body[-1],
        "after the last convolution of the body": network.body_end,
    }
    modules |= {"first sub-pixel block": network.upsampling[0], "second sub-pixel block": network.upsampling[1]}
    maps = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: maps.update({name: output[0].clone()}))
    with torch.no_grad():
        network(tensor_of_lr(lr_img))
    rows = [[("the LR image, 3 x {} x {}".format(*lr_img.shape[:2]), lr_img)]]
    for name, found in maps.items():
        label = f"{name}: {' x '.join(map(str, found.shape))}"
        rows.append([("" if i else label, scale_of(found[c])(found[c])) for i, c in enumerate(clearest(found)[:5])])
    grid(path, rows, 160)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and losses
# ---------------------------------------------------------------------------------------------------------------------


def draw_enlarged(tools, path):
    """One photograph from its LR image by interpolation and by the networks that ship."""
    hr_img = picture(SHOWN)
    found = tools.enlarged(downscale(hr_img, SCALE)) | {"HR": hr_img}
    row = []
    for name, image in found.items():
        label = name if name == "HR" else f"{name}\n{tools.figures(image, hr_img)}"
        row.append((label, crop(image, 24, 70, 120)))
    grid(path, [row], 236, lines=2)


def draw_candidates(tools, path, count=32, size=128):
    """Sharp pictures that all have one LR image, and their mean."""
    hr_img = crop(picture("grass", 512), 0, 0, 512).astype(np.float64)
    target = hr_img[:size, :size]
    rng = np.random.default_rng(0)
    small = resized(target, 1 / SCALE)
    candidates = []
    for _ in range(count):
        top, left = 4 * rng.integers(0, (512 - size) // 4, 2)
        other = hr_img[top : top + size, left : left + size][:, :: rng.choice([-1, 1])]
        image = resized(small, SCALE) + other - resized(resized(other, 1 / SCALE), SCALE)
        for _ in range(30):
            image = np.clip(image + resized(small - resized(image, 1 / SCALE), SCALE), 0, 255)
        candidates.append(image)
    mean = np.mean(candidates, axis=0)
    *candidates, mean, target = [np.round(image).astype(np.uint8) for image in (*candidates, mean, target)]
    error = max(np.sqrt(np.mean((resized(image, 1 / SCALE) - small) ** 2)) for image in candidates)
    all_figures = [(psnr(image, target, SCALE), tools.lpips(image, target)) for image in candidates]
    print("candidates, on average: {:.2f} dB, LPIPS {:.3f}".format(*np.mean(all_figures, axis=0)))
    lr_img = np.round(small).clip(0, 255).astype(np.uint8).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    row = [(f"the LR image, which all\nshare to {error:.2f} levels rms", lr_img)]
    row += [(f"candidate {i + 1}\n{tools.figures(image, target)}", image) for i, image in enumerate(candidates[:2])]
    row += [(f"mean of {count} candidates\n{tools.figures(mean, target)}", mean), ("HR", target)]
    grid(path, [row], 236, lines=2)


def resized(image, factor):
    """Pillow's bicubic without rounding: (H, W, 3) float64 by a factor."""
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    planes = [Image.fromarray(image[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
    return np.stack(planes, axis=-1).astype(np.float64)


def draw_content(tools, path):
    """Where the content loss finds a difference: 1 - cos between the features of SR and HR, layer by layer."""
    hr_img = picture(SHOWN)
    layers, rows = (22, 34, 44, 54), []
    found = tools.enlarged(downscale(hr_img, SCALE))
    hr_features = losses.vgg_features(tools.vgg, to_tensor(hr_img), layers, before_relu=True)
    for name in ("bicubic", "srresnet_x4", "srgan_x4"):
        row = [(name, found[name])]
        sr_features = losses.vgg_features(tools.vgg, to_tensor(found[name]), layers, before_relu=True)
        for layer, sr, hr in zip(layers, sr_features, hr_features, strict=True):
            distance = 1 - F.cosine_similarity(sr, hr, dim=1)
            row.append((f"layer {layer}: {losses.cosine_distance(sr, hr):.3f}", heat(distance, 0.5)))
        rows.append(row)
    grid(path, rows, 236, ends=("0: the same direction", "0.5 and more"))


def draw_discriminator(tools, path):
    """What a discriminator answers about each patch, and which pixels it would change to be convinced."""
    folder = trained("judge", JUDGE, 2 * tools.args.steps, tools.args)
    checkpoint = load_checkpoint(folder / "last.pth")
    judge = Discriminator(32, patches=True).eval()  # as --freeze-bn both trained it
    judge.load_state_dict(checkpoint["discriminator"])
    hr_img = picture(SHOWN)
    found = tools.enlarged(downscale(hr_img, SCALE)) | {"HR": hr_img}
    rows, answers, gradients = [[], [], []], [], {}
    for name in ("srresnet_x4", "srgan_x4", "HR"):
        image = to_tensor(found[name]).requires_grad_()
        logits = judge(image)
        (gradient,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)), image)
        gradients[name] = losses.luma(gradient).abs()
        rows[0].append((name, found[name]))
        answers.append(torch.sigmoid(logits).detach())
    low, high = torch.cat([answer.flatten() for answer in answers]).quantile(torch.tensor([0.01, 0.99]))
    for answer in answers:
        rows[1].append((f"answers, {answer.mean():.3f} on average", heat(answer - low, high - low)))
    top = gradients["srresnet_x4"].quantile(0.99)
    rows[2] = [("gradient at each pixel", heat(gradient, top)) for gradient in gradients.values()]
    grid(path, rows, 270, ends=(f"an answer of {low:.2f}; no gradient", f"an answer of {high:.2f}; large gradient"))


def draw_losses(tools, path):
    """What each loss alone makes of one picture after the same number of steps from the same weights."""
    hr_img = picture(SHOWN)
    lr_img = downscale(hr_img, SCALE)
    found = {"start: srresnet_x4": upscale(tools.network(START), lr_img)}
    for name, flags in RUNS.items():
        folder = trained(name, flags, tools.args.steps, tools.args)
        found[name] = upscale(tools.network(folder / "last.pth"), lr_img)
    cells = [(f"{name}\n{tools.figures(image, hr_img)}", crop(image, 24, 70, 120)) for name, image in found.items()]
    cells.append((f"HR; {tools.args.steps} steps each\n", crop(hr_img, 24, 70, 120)))
    grid(path, [cells[:5], cells[5:]], 236, lines=2)


def draw_terms(tools, path):
    """Where the newer terms of the objective find a fault: colours, what the LR image says, detail that HR does not have."""
    hr_img = picture("brick")
    lr_img, rows = downscale(hr_img, SCALE), []
    found = tools.enlarged(lr_img)
    hr_imgs, lr_imgs = to_tensor(hr_img), tensor_of_lr(lr_img)
    for name in ("srresnet_x4", "srgan_x4"):
        sr_imgs, faults = to_tensor(found[name]), artifacts(found[name], lr_img, hr_img)
        colours = (losses.chroma(sr_imgs) - losses.chroma(hr_imgs)).norm(dim=1)
        small = (losses.resize(sr_imgs, lr_imgs.shape[-2:]) - (2 * lr_imgs - 1)).square().mean(1).sqrt()
        sr, hr = (losses.local_rms(losses.detail(losses.luma(imgs), SCALE)) for imgs in (sr_imgs, hr_imgs))
        row = [(name, crop(found[name], 40, 40, 200))]
        row.append((f"chroma: {faults['chroma']:.2f}", heat(colours, 0.12)[40:240, 40:240]))
        row.append((f"consistency: {faults['consistency']:.2f}", heat(small, 0.12)[10:60, 10:60]))
        row.append((f"echo: {faults['echo']:.2f}", heat(F.relu(sr - 1.2 * hr), 0.12)[40:240, 40:240]))
        rows.append(row)
    rows[0].append(("HR", crop(hr_img, 40, 40, 200)))
    grid(path, rows, 236, ends=("0", f"{0.12 * 127.5:.0f} grey levels and more"))


def draw_plane(tools, path):
    """PSNR against LPIPS of all weights that ship, and of the blends between them."""
    plt = pyplot()
    pairs = [(downscale(image, SCALE), image) for image in map(picture, PANELS)]

    def place(enlarge_it):
        found = [(enlarge_it(lr_img), hr_img) for lr_img, hr_img in pairs]
        return np.mean([(psnr(*pair, SCALE), tools.lpips(*pair)) for pair in found], axis=0)

    device = pick_device(tools.args.device)
    dtype = pick_dtype(tools.args.precision, device)
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    bicubic = place(lambda lr_img: enlarge(lr_img, SCALE))
    axes.plot(*bicubic, "s", color="#666")
    axes.annotate("bicubic", bicubic, textcoords="offset points", xytext=(6, 4))
    for end in sorted(CHECKPOINTS.glob(f"srgan_x{SCALE}*.pth")):
        start = end.with_name(end.name.replace("srgan", "srresnet"))
        curve = []
        for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
            network = for_inference(blend_networks(load_network(start), load_network(end), share), device, dtype)
            curve.append(place(lambda lr_img, network=network: upscale(network, lr_img)))
        (line,) = axes.plot(*zip(*curve, strict=True), "o-", label=f"blends of {start.stem} and {end.stem}")
        for share, point in zip(("0", ".2", ".4", ".6", ".8", "1"), curve, strict=True):
            name = {"0": start.stem, "1": end.stem}.get(share, share)
            axes.annotate(name, point, textcoords="offset points", xytext=(6, 4), color=line.get_color(), fontsize=9)
    axes.set(xlabel="PSNR (dB): to the right is more faithful", ylabel="LPIPS: down is nearer to the eye")
    axes.margins(x=0.18, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def main(args):
    tools = Tools(args)
    for name in args.names or NAMES:
        suffix = "svg" if name in ("networks", "plane") else "webp"
        globals()[f"draw_{name}"](tools, args.output / f"{name}.{suffix}")


if __name__ == "__main__":
    with user_errors():
        main(arguments)
