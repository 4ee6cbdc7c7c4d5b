"""Stage 3, not in the paper: teach a network what finished ones know together (Hinton et al. 2015; docs/LOG.md, 2026-11-26).

    python train_distilled.py --recipe faithful --faithful checkpoints/srresnet_x4.pth
    python train_distilled.py --recipe shipped --faithful checkpoints/srresnet_x4.pth --sharp checkpoints/srgan_x4.pth

There is no discriminator and no VGG19, so a step costs a fraction of stage 2's, and nothing drifts: the target of each LR
image is a function of networks that stay as they are. Without --sharp it is what the network of stage 1 makes of it, with
--turns 8 the mean of what it makes of its eight flips and turns. With --sharp it has that network's colours and, in luma,
--factor times the difference between the network of stage 2 and it, but, with --trust, for what that one gets wrong against
the HR image, and without what repeats from LR pixel to LR pixel: a mesh. Of drawings, pages of one colour and flat ground
beside strong edges, where echoes would be seen, the HR image itself is the target. --recipe faithful is for the former,
shipped for the latter, and photo for the latter on degraded pictures, with the weights for photographs and, by
--clean-pair, what those for clean pictures make of clean LR images, where the degraded ones are nearly so. The lists in the
data folder come from create_data_lists.py. Checkpoints go to checkpoints/NAME, logs and samples to results/NAME; the same
command with --resume goes on with a run. best.pth is chosen on the validation images: by LPIPS if --lpips-backbone is
given; otherwise by PSNR without --sharp, and with it, since PSNR falls as pictures get sharper, it is that of the last
validation.
"""

from utils import ArgumentParser, add_training_arguments, check_training_arguments, number, parse_with_recipe, user_errors

FAITHFUL = {
    "turns": 2,
    "crop_size": 256,
    "batch_size": 2,
    "schedule": "cosine",
    "warmup_steps": 50,
    "gray_share": 0.2,
    "stretch_share": 0.1,
    "flat_share": 0.02,
    "steps": 3000,
}
SHARP = {
    "factor": 3.2,
    "fine_factor": 1.2,
    "trust": 1.3,
    "luma_weight": 40.0,
    "ground_weight": 20.0,
    "chroma_weight": 100.0,
    "consistency_weight": 500.0,
    "echo_weight": 2500.0,
    "mesh_weight": 10000.0,
    "excess_weight": 1000.0,
    "crop_size": 128,
    "batch_size": 4,
    "optimizer": "muon",
    "schedule": "cosine",
    "warmup_steps": 20,
    "ema_decay": 0.99,
    "gray_share": 0.4,
    "stretch_share": 0.1,
    "flat_share": 0.02,
    "drawn_share": 0.45,
    "learning_rate": 5e-4,
    "steps": 9000,
}
# With --clean-pair. The LR image does not tell HR as exactly as a clean one, so what holds SR to it is held less tightly.
PHOTO = {"degradation": "photo", "factor": 2.0, "fine_factor": 0.7, "chroma_weight": 60.0, "consistency_weight": 50.0}
PHOTO |= {"trust": 0.0, "ground_weight": 5.0, "calm_weight": 18.0}
PHOTO |= {"gray_share": 0.35, "drawn_share": 0.3, "learning_rate": 4e-4, "steps": 5000}
RECIPES = {"plain": {}, "faithful": FAITHFUL, "shipped": SHARP, "photo": SHARP | PHOTO}


def parse_arguments(words=None):
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--faithful", metavar="FILE", help="weights of stage 1")
    add(
        "--turns",
        type=number(int, 1, 8),
        default=1,
        help="let it see each LR image in so many of the eight flips and turns, drawn anew each step, and take the mean; "
        "1: upright alone",
    )
    add("--sharp", metavar="FILE", help="weights of stage 2 (default: none)")
    add("--factor", type=number(float, 0), default=1.0, help="of the difference in luma between --sharp and --faithful")
    add(
        "--fine-factor",
        type=number(float, 0),
        metavar="FACTOR",
        help="of the part of it that is finer than three pixels, of which adversaries draw too much (default: --factor)",
    )
    add(
        "--trust",
        type=number(float, 0),
        metavar="RATIO",
        help="take that difference where the local error of --sharp, against the HR image, is at most so many times that of "
        "--faithful, and less of it beyond, to none at 1.4 times as many (default, and 0: everywhere)",
    )
    add(
        "--clean-pair",
        nargs=2,
        metavar=("STAGE1", "STAGE2"),
        help="with --degradation photo: weights for clean pictures; where the LR image is hardly degraded, what these make of "
        "the clean one is to be learnt, in place of what --faithful and --sharp make (default: none)",
    )
    add("--init", metavar="FILE", help="weights to start from (default: --sharp, or else --faithful)")
    add("--luma-weight", type=number(float, 0), default=20.0, help="of the mean absolute error of luma against the target")
    add(
        "--ground-weight",
        type=number(float, 0),
        default=0.0,
        help="how many times more it weighs on flat ground beside strong edges, where echoes are seen",
    )
    add("--chroma-weight", type=number(float, 0), default=20.0, help="of that of Cb and Cr")
    add("--consistency-weight", type=number(float, 0), default=0.0, help="as in train_srgan.py, against the HR image")
    add("--echo-weight", type=number(float, 0), default=0.0, help="as in train_srgan.py")
    add("--calm-weight", type=number(float, 0), default=0.0, help="of detail that HR lacks, against HR's own")
    add("--mesh-weight", type=number(float, 0), default=0.0, help="as in train_srgan.py")
    add("--excess-weight", type=number(float, 0), default=0.0, help="as in train_srgan.py")
    add("--lpips-backbone", metavar="FILE", help="state dict of AlexNet's features, or imagenet: choose best.pth by LPIPS")
    add_training_arguments(parser, stage=3, steps=1000, learning_rate=1e-4, schedule="cosine")
    return parse_with_recipe(parser, RECIPES, words)


if __name__ == "__main__":  # before the imports that take seconds, so that --help and a bad flag answer at once
    args = parse_arguments()

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F

from batchnorm import freeze_bn
from devices import UNSCALED, autocast, descend
from inference import TURNS, for_inference, turn, turned_back
from losses import calm_loss, chroma, consistency_loss, echo_loss, excess_error_loss, local_rms, luma, mesh_loss, resize
from metrics import DIAGNOSTICS, FIGURES, load_lpips
from models import build_network
from optimizers import build_optimizer, set_learning_rate
from runs import Run, learning_rate_at, load_data, update_ema
from utils import UserError
from weights import load_network, start_from


def faithful_images(faithful, lr_imgs, args, step):
    """What the network of stage 1 makes of LR images (N, 3, h, w) in [0, 1]: (N, 3, H, W) float32 in about [-1, 1].

    Of the flips and turns, whose mean is better than what it makes of the upright image, a few in each step will do: on
    average over the steps they are all (Timofte et al., CVPR 2016, section 3.6). They are a function of (seed, step).
    """
    lr_imgs = lr_imgs.to(next(faithful.parameters()).dtype)
    if args.turns == 1:
        return faithful(lr_imgs).float()
    drawn = np.random.default_rng([args.seed, 6, step]).permutation(len(TURNS))[: args.turns]
    return sum(turned_back(faithful(turn(lr_imgs, *TURNS[i])).float(), *TURNS[i]) for i in drawn) / args.turns


def learnt_from(faithful, sharp, lr_imgs, hr_imgs, args, step):
    """What a pair of networks has to teach of LR images, and what the one of stage 1 makes of them; as in `target_images`."""
    faithful_imgs = faithful_images(faithful, lr_imgs, args, step)
    if sharp is None:
        return faithful_imgs, faithful_imgs
    sharp_imgs = sharp(lr_imgs.to(next(sharp.parameters()).dtype)).float()
    difference = luma(sharp_imgs - faithful_imgs)
    if args.fine_factor is None:
        difference = args.factor * difference
    else:
        coarse = blurred(difference)
        difference = args.factor * coarse + args.fine_factor * (difference - coarse)
    if args.trust:
        difference = difference * trust(sharp_imgs, faithful_imgs, hr_imgs, args.trust)
    return faithful_imgs + difference, faithful_imgs  # Y is one offset of all three channels


def flat_beside_edges(y, share=0.15):
    """How flat the ground beside the strong edges of a luma is: (N, 1, H, W) -> the same, from 0 to 1.

    It is half where the detail of y is `share` times as strong (local rms) as the strongest edge within some ten pixels, and
    more where it is weaker. There, as on bricks between their mortar, the faintest echo of the edges is seen as lines.
    """
    strengths = local_rms(y - blurred(y, 2.0))
    weak, strong = (share * F.max_pool2d(strengths, 17, stride=1, padding=8)).square(), strengths.square()
    return weak / (weak + strong)


def repeated(y, scale, sigma=1.5):
    """What of a luma (N, 1, H, W) is the same in each LR pixel and those around it, but for their brightness: a mesh.

    Of a texture that knows no LR pixels it is a thirtieth of the variance.
    """
    parts = F.pixel_unshuffle(y, scale)  # (N, scale^2, h, w): one channel for each place in an LR pixel
    means = blurred(parts.flatten(0, 1).unsqueeze(1), sigma).view(parts.shape)
    return F.pixel_shuffle(means - means.mean(1, keepdim=True), scale)


def blurred(y, sigma=0.8):
    """A luma (N, 1, H, W), blurred by a Gaussian: with .8, of a wave of 4.3 pixels half is left, of one of 2.5 a seventh."""
    reach = math.ceil(3.5 * sigma)
    at = torch.arange(-reach, reach + 1.0, device=y.device)
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(y)
    y = F.pad(y, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(y, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def back_projected(imgs, lr_imgs):
    """The images with what LR images show, of which they are to be the HR images (Irani and Peleg 1991, one step)."""
    return imgs + resize(2 * lr_imgs - 1 - resize(imgs, lr_imgs.shape[-2:]), imgs.shape[-2:])


def target_images(faithful, sharp, lr_imgs, hr_imgs, args, step, clean=True, clean_pair=None):
    """The images to learn, (N, 3, H, W) in about [-1, 1], and those of stage 1, which they are made of.

    `clean` LR images are the HR images, made small by bicubic, and nothing else. Where others are nearly so, a `clean_pair`
    of networks, which have not learnt to expect faults, knows better: it sees the clean LR image.
    """
    targets, faithful_imgs = learnt_from(faithful, sharp, lr_imgs, hr_imgs, args, step)
    if clean:
        targets = back_projected(targets, lr_imgs)
    elif clean_pair:
        clean_lr_imgs = made_small(hr_imgs, lr_imgs.shape[-2:])
        share = clean_share(lr_imgs, clean_lr_imgs)
        some = share.flatten() > 0
        if some.any():
            better, _ = learnt_from(*clean_pair, clean_lr_imgs[some], hr_imgs[some], args, step)
            better = back_projected(better, clean_lr_imgs[some])
            targets = targets.clone()
            targets[some] = torch.lerp(targets[some], better, share[some])
    if sharp is not None:  # a mesh is not in the picture, or else HR has it
        targets = targets - repeated(luma(targets - hr_imgs), args.scale)
        targets = targets + flat_beside_edges(luma(hr_imgs)) * luma(hr_imgs - targets)
    # The colours of gray pictures are known; and what is drawn has nothing to invent, so there the HR image is the target.
    gray = chroma(hr_imgs).abs().amax((1, 2, 3), keepdim=True) < 1e-3
    return torch.where(drawn(hr_imgs), hr_imgs, torch.where(gray, luma(targets), targets)), faithful_imgs


def made_small(hr_imgs, size):
    """The clean LR images (N, 3, h, w) in [0, 1] of HR images, `size` being (h, w)."""
    return ((resize(hr_imgs, size) + 1) / 2).clamp(0, 1)


def clean_share(lr_imgs, clean_lr_imgs):
    """How nearly LR images are clean: (N, 1, 1, 1), 1 up to an rms difference of 2 grey levels of 255, 0 from 5 on."""
    levels = 255 * (lr_imgs - clean_lr_imgs).square().mean((1, 2, 3), keepdim=True).sqrt()
    return ((5 - levels) / 3).clamp(0, 1)


def trust(sharp_imgs, faithful_imgs, hr_imgs, ratio):
    """How far the detail of a sharp network is to be learnt, (N, 1, H, W): 1 up to that ratio of errors, 0 from 1.4 times it.

    The errors are local rms of luma less HR's. In texture, what an adversary invents is little worse than to leave it out;
    beside edges, where the faithful network knows the picture, it is much worse, and a network can learn to see where.
    """
    sharp, faithful = (local_rms(luma(imgs) - luma(hr_imgs)) for imgs in (sharp_imgs, faithful_imgs))
    return ((1.4 - sharp / (ratio * faithful)) / 0.4).clamp(0, 1)


def drawn(imgs):
    """Which of the images (N, 3, H, W) in [-1, 1] are drawn, rather than photographed: (N, 1, 1, 1), True or False.

    Those of which one level of luma, of 256, fills more than an eighth: pages of one colour, lines on flat ground, even with a
    little grain, and one in fifteen crops of photographs, such as those of a bright sky.
    """
    levels = ((luma(imgs) + 1) * 127.5).round().clamp(0, 255).long().flatten(1)
    counts = imgs.new_zeros(len(imgs), 256).scatter_add_(1, levels, imgs.new_ones(levels.shape))
    return (counts.amax(1) > levels.shape[1] / 8).view(-1, 1, 1, 1)


def train_step(
    network,
    faithful,
    sharp,
    optimizer,
    lr_imgs,
    hr_imgs,
    args,
    dtype=torch.float32,
    step=0,
    scaler=UNSCALED,
    clean=True,
    clean_pair=None,
):
    """One step on LR images (N, 3, h, w) in [0, 1] and HR images (N, 3, H, W) in [-1, 1]; returns its figures."""
    with torch.no_grad():
        targets, faithful_imgs = target_images(faithful, sharp, lr_imgs, hr_imgs, args, step, clean, clean_pair)
    with autocast(lr_imgs.device, dtype):
        sr_imgs = network(lr_imgs)
    sr_imgs = sr_imgs.float()
    weights = 1 + args.ground_weight * flat_beside_edges(luma(hr_imgs)) if args.ground_weight else 1
    terms = {
        "luma": args.luma_weight * (weights * luma(sr_imgs - targets).abs()).mean(),
        "chroma": args.chroma_weight * F.l1_loss(chroma(sr_imgs), chroma(targets)),
    }
    if args.consistency_weight:
        terms["consistency"] = args.consistency_weight * consistency_loss(sr_imgs, hr_imgs, args.scale)
    if args.echo_weight:
        terms["echo"] = args.echo_weight * echo_loss(sr_imgs, hr_imgs, args.scale)
    if args.calm_weight:
        # Of pictures that are hardly degraded the clean pair knows the texture, so they need not be calmed.
        degraded = 1 - clean_share(lr_imgs, made_small(hr_imgs, lr_imgs.shape[-2:])) if clean_pair else 1
        terms["calm"] = args.calm_weight * calm_loss(sr_imgs, hr_imgs, args.scale, degraded)
    if args.mesh_weight:
        terms["mesh"] = args.mesh_weight * mesh_loss(sr_imgs, hr_imgs, args.scale)
    if args.excess_weight:
        terms["excess"] = args.excess_weight * excess_error_loss(sr_imgs, hr_imgs, faithful_imgs)
    loss = sum(terms.values())
    gradient_norm = descend(loss, network, optimizer, scaler)
    scaler.update()
    return {"loss": loss, **terms, "gradient_norm": gradient_norm}


def main(args):
    check_training_arguments(args)
    if args.faithful is None:
        raise UserError("give --faithful FILE, the weights of stage 1 (as checkpoints/srresnet_x4.pth)")
    run = Run(args, default_name=f"distilled_x{args.scale}")
    dataset, validation = load_data(args)
    clean = args.degradation == "bicubic" and not dataset.paths.lr_images  # those of a second camera may differ from HR
    if clean and args.clean_pair:
        raise UserError("--clean-pair: all LR images are clean here, so --faithful and --sharp are that pair; leave it out")

    torch.manual_seed(args.seed)
    checkpoint = run.checkpoints.load_newest() if args.resume else None
    start_file = None if checkpoint else args.init or args.sharp or args.faithful
    files = (args.faithful, args.sharp, *(args.clean_pair or ()))
    finished = {path: load_network(path) for path in (*files, start_file) if path}
    for path, teacher in finished.items():
        if teacher.config["scale"] != args.scale:
            raise UserError(f"{path} is for x{teacher.config['scale']}, not x{args.scale}; give --scale, or other weights")
    network = build_network(checkpoint["config"] if checkpoint else finished[start_file].config)
    if start_file:
        start_from(start_file, network)
    network.to(run.device, memory_format=torch.channels_last)
    faithful, sharp, *clean_pair = (path and finished[path] for path in files)
    if faithful.config["arch"] == "srgan":
        run.print(f"note: --faithful {args.faithful} is of stage 2; it was meant for the weights of stage 1")
    run.learn_from(checkpoint, faithful=[faithful], sharp=sharp and [sharp], clean_pair=clean_pair)
    faithful, sharp, *clean_pair = (net and for_inference(net, run.device, run.dtype) for net in (faithful, sharp, *clean_pair))
    ema = copy.deepcopy(network).requires_grad_(False)
    optimizer = build_optimizer(args.optimizer, network, args.learning_rate)
    start = 0
    if checkpoint:
        start = run.restore(checkpoint, dataset)
        network.load_state_dict(checkpoint["weights"])
        ema.load_state_dict(checkpoint["ema"])
        optimizer.load_state_dict(checkpoint["optimizer"])

    more_metrics = {"lpips": load_lpips(args.lpips_backbone, run.device)} if args.lpips_backbone else {}
    freeze_bn(network)  # crops of a page of one colour are no sample of pictures
    trained = run.parallel(network)
    step_once = run.guarded(train_step, network, optimizer)
    terms = ["luma", "chroma", "consistency", "echo", "calm", "mesh", "excess"]
    run.start(
        start,
        columns=["learning_rate", "loss", *terms, "gradient_norm"]
        + [f"validation/{figure}" for figure in (*FIGURES, *more_metrics, *DIAGNOSTICS)],
        recipe=RECIPES[args.recipe],
        training_images=len(dataset.paths),
        validation_images=len(validation),
    )
    for step, lr_imgs, hr_imgs in run.steps(run.loader(dataset, start), start):
        learning_rate = learning_rate_at(step, args)
        set_learning_rate(optimizer, learning_rate)
        networks = trained, faithful, sharp
        figures = step_once(*networks, optimizer, lr_imgs, hr_imgs, args, run.dtype, step, run.scaler, clean, clean_pair)
        update_ema(ema, network, step, args.ema_decay)
        run.log(step, learning_rate, **figures)

        if run.validate_due(step):
            measured = run.validate(step, for_inference(ema, run.device, run.dtype), validation, more_metrics)
            figure = -measured["lpips"] if more_metrics else step if args.sharp else measured["psnr"]
            run.save_if_best(step, figure, ema)
        if run.save_due(step):
            run.save(
                step,
                config=network.config,
                weights=network.state_dict(),
                ema=ema.state_dict(),
                optimizer=optimizer.state_dict(),
            )


if __name__ == "__main__":
    with user_errors():
        main(args)
