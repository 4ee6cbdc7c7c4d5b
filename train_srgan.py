"""Stage 2: train the generator against a discriminator, with a perceptual loss in VGG19 space (Ledig et al. 2017, section 2.2).

    python train_srgan.py --init checkpoints/srresnet_x4.pth
    python train_srgan.py --init checkpoints/srresnet_x4.pth --vgg-weights vgg19.pth --lpips-backbone alexnet.pth
    python train_srgan.py --resume

The lists in the data folder come from create_data_lists.py. Checkpoints go to checkpoints/NAME, logs and samples to
results/NAME. The bare defaults are the paper's recipe: 100,000 steps of Adam at 1e-4 and 100,000 at 1e-5, VGG54, an
adversarial weight of 1e-3. best.pth is chosen on the validation images, by LPIPS if --lpips-backbone is given and by
the content loss otherwise, never by PSNR, which falls as pictures get sharper. --recipe shipped is the current recipe
for weights that are to ship (docs/LOG.md): against ringing artifacts, false colours and what the LR image contradicts;
--recipe photo, with --init checkpoints/srresnet_x4_photo.pth, is that of the weights for photographs.
"""

from utils import ArgumentParser, add_training_arguments, check_training_arguments, number, parse_with_recipe, user_errors

LAYERS = {"vgg_layer": [22, 34, 44, 54], "vgg_before_relu": True, "content_loss": "cosine"}
TRUE_COLOURS = {"luma_adversary": True, "chroma_weight": 20.0, "consistency_weight": 100.0}
SHIPPED = {
    **LAYERS,
    "vgg_layer": [12, 22, 34, 44, 54],
    "luma_adversary": True,
    "chroma_weight": 150.0,
    "consistency_weight": 500.0,
    "vgg_crop": 128,
    "discriminator": "patch",
    "discriminator_channels": 48,
    "adversarial_weight": 0.4,
    "echo_weight": 1000.0,
    "detail_weight": 400.0,
    "mesh_weight": 3000.0,
    "excess_weight": 500.0,
    "freeze_bn": "generator",
    "crop_size": 192,
    "batch_size": 8,
    "optimizer": "muon",
    "learning_rate": 2e-4,
    "schedule": "cosine",
    "warmup_steps": 50,
    "ema_decay": 0.998,
    "gray_share": 0.3,
    "stretch_share": 0.1,
    "flat_share": 0.05,
    "drawn_share": 0.05,
    "steps": 7000,
}
# The LR image does not tell what HR is as exactly as a clean one: so what holds SR to HR is held less tightly, and what makes
# detail is weaker, or it would make detail of noise.
PHOTO = {"degradation": "photo", "chroma_weight": 50.0, "consistency_weight": 50.0, "adversarial_weight": 0.3}
PHOTO |= {"detail_weight": 150.0, "mesh_weight": 6000.0, "excess_weight": 1000.0, "gray_share": 0.1, "drawn_share": 0.0}
PHOTO |= {"batch_size": 4, "ema_decay": 0.995, "steps": 1800}
RECIPES = {
    "paper": {},
    "quick": LAYERS | TRUE_COLOURS | {"adversarial_weight": 2e-2, "echo_weight": 300.0, "learning_rate": 2e-4, "steps": 1000},
    "shipped": SHIPPED,
    "photo": SHIPPED | LAYERS | PHOTO,
}


def parse_arguments(words=None):
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--init", metavar="FILE", help="weights of stage 1 to start from; or none: from scratch, which works worse")
    add("--blocks", type=number(int, 1), default=16, help="residual blocks of the generator, for --init none")
    add("--channels", type=number(int, 1), default=64, help="channels of the generator, for --init none")
    add("--discriminator-channels", type=number(int, 1), default=64, help="of the discriminator's first convolution")
    add(
        "--discriminator",
        choices=("paper", "patch"),
        default="paper",
        help="paper: one answer for each crop, by dense layers; patch: one for each 16x16 pixels, by a convolution",
    )
    add(
        "--discriminator-crop",
        type=number(int, 16),
        metavar="SIDE",
        help="judge the crops in squares of this side, a divisor of --crop-size (default: whole)",
    )
    add("--vgg-weights", default="imagenet", metavar="FILE", help="state dict of VGG19's features; imagenet is downloaded")
    add(
        "--vgg-layer",
        type=int,
        choices=(11, 12, 21, 22, 31, 32, 33, 34, 41, 42, 43, 44, 51, 52, 53, 54),
        nargs="+",
        default=[54],
        metavar="IJ",
        help="54: the 4th convolution before max-pool 5; of several layers, the losses are added",
    )
    add("--vgg-before-relu", action="store_true", help="features before their ReLU, as in ESRGAN")
    add(
        "--vgg-factor",
        type=number(float, 0),
        default=1.0,
        help="scale of the features: 1 suits torchvision's weights, the paper's 1/12.75 = 0.0784 the original Caffe ones",
    )
    add(
        "--content-loss",
        choices=("mse", "l1", "cosine"),
        default="mse",
        help="distance between VGG features; cosine is 1 - cos of the angle at each place, where no factor counts",
    )
    add("--adversarial-weight", type=number(float, 0), default=1e-3, help="of the adversarial loss")
    add("--texture-weight", type=number(float, 0), default=0.0, help="of the distance between Gram matrices of VGG features")
    add("--pixel-weight", type=number(float, 0), default=0.0, help="of the mean squared error between pixels")
    add("--luma-adversary", action="store_true", help="let the discriminator and VGG19 see the luma of SR images alone")
    add("--chroma-weight", type=number(float, 0), default=0.0, help="of the mean squared error of Cb and Cr")
    add(
        "--consistency-weight",
        type=number(float, 0),
        default=0.0,
        help="of the squared error between the SR and the HR images, made small",
    )
    add(
        "--echo-weight",
        type=number(float, 0),
        default=0.0,
        help="of the squared excess of local detail over HR's: holds down ringing artifacts beside edges",
    )
    add(
        "--detail-weight",
        type=number(float, 0),
        default=0.0,
        help="of the squared want of local detail against HR's: keeps pictures from going soft",
    )
    add(
        "--mesh-weight",
        type=number(float, 0),
        default=0.0,
        help="of the squared excess, over HR's, of a pattern that repeats in each LR pixel",
    )
    add(
        "--excess-weight",
        type=number(float, 0),
        default=0.0,
        help="of the squared excess of local error over that of the network of --faithful",
    )
    add("--faithful", metavar="FILE", help="weights of stage 1, for --excess-weight (default: those of --init, if of stage 1)")
    add("--vgg-crop", type=number(int, 16), metavar="SIDE", help="let VGG19 see a square of the crops (default: whole)")
    add("--init-discriminator", metavar="FILE", help="last.pth of another run, to go on with its discriminator")
    add(
        "--discriminator-alone",
        type=number(int, 0),
        default=0,
        metavar="STEPS",
        help="first steps in which only the discriminator learns: for an --init that is sharp, as checkpoints/srgan_x4.pth, "
        "which a discriminator that knows nothing would make soft",
    )
    add(
        "--freeze-bn",
        choices=("generator", "both"),
        help="keep the statistics of batch normalisation of the start, in the generator or in both networks",
    )
    add("--lpips-backbone", metavar="FILE", help="state dict of AlexNet's features, or imagenet: choose best.pth by LPIPS")
    add_training_arguments(parser, stage=2, steps=200_000, learning_rate=1e-4, schedule="step")
    return parse_with_recipe(parser, RECIPES, words)


if __name__ == "__main__":  # before the imports that take seconds, so that --help and a bad flag answer at once
    args = parse_arguments()

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from batchnorm import freeze_bn
from devices import UNSCALED, autocast, descend
from inference import for_inference
from losses import (
    chroma_loss,
    consistency_loss,
    content_loss,
    echo_loss,
    excess_error_loss,
    luma,
    mesh_loss,
    missing_detail_loss,
    squares,
    texture_loss,
    vgg_features,
    with_luma_of,
)
from metrics import DIAGNOSTICS, FIGURES, load_lpips
from models import Discriminator, Generator, TruncatedVGG19, build_network
from optimizers import build_optimizer, set_learning_rate
from pictures.pixels import to_tensor
from runs import Run, learning_rate_at, load_data, update_ema
from utils import UserError
from weights import load_checkpoint, load_network, start_from

WON_AFTER = 1000  # steps with every image told apart, after which the discriminator has won


def features_of(vgg, imgs, args):
    """The features that the content loss compares, as the flags say."""
    return vgg_features(vgg, imgs, args.vgg_layer, args.vgg_before_relu, args.vgg_factor)


def seen_by_vgg(sr_imgs, hr_imgs, args, step):
    """The images that VGG19 compares: of each pair the same square, a function of (seed, step); SR's luma alone, or all."""
    sr_imgs = with_luma_of(hr_imgs, sr_imgs) if args.luma_adversary else sr_imgs
    if not args.vgg_crop:
        return sr_imgs, hr_imgs
    places = (args.crop_size - args.vgg_crop) // 16 + 1  # 16: the strides of VGG54, so that it meets each pixel as before
    top, left = 16 * np.random.default_rng([args.seed, 5, step]).integers(places, size=2)
    return (imgs[:, :, top : top + args.vgg_crop, left : left + args.vgg_crop] for imgs in (sr_imgs, hr_imgs))


def seen_by_discriminator(imgs, args):
    """The images that the discriminator judges: cut into squares or whole; their luma, three times, or all."""
    imgs = squares(imgs, args.discriminator_crop)
    return luma(imgs).expand(-1, 3, -1, -1) if args.luma_adversary else imgs


def train_step(
    generator,
    discriminator,
    vgg,
    optimizer_g,
    optimizer_d,
    lr_imgs,
    hr_imgs,
    args,
    dtype=torch.float32,
    step=0,
    scaler=UNSCALED,
    faithful=None,
):
    """One step of both networks on LR images in [0, 1] and HR images in [-1, 1]; returns the step's figures."""
    # The generator's half (equations 3 to 6). The discriminator judges, and is spared the gradients of its weights.
    judge = getattr(discriminator, "module", discriminator)  # not DistributedDataParallel, which would wait for them
    judge.requires_grad_(False)
    with autocast(lr_imgs.device, dtype):
        sr_imgs = generator(lr_imgs).float()
        sr_logits = judge(seen_by_discriminator(sr_imgs, args)).float()
        seen_sr, seen_hr = seen_by_vgg(sr_imgs, hr_imgs, args, step)
        sr_features = features_of(vgg, seen_sr, args)
        with torch.no_grad():
            hr_features = features_of(vgg, seen_hr, args)
    terms = {
        "content": content_loss(sr_features, hr_features, args.content_loss),
        "adversarial": args.adversarial_weight * F.binary_cross_entropy_with_logits(sr_logits, torch.ones_like(sr_logits)),
    }
    if args.texture_weight:
        terms["texture"] = args.texture_weight * texture_loss(sr_features, hr_features)
    if args.pixel_weight:
        terms["pixel"] = args.pixel_weight * F.mse_loss(sr_imgs, hr_imgs)
    if args.chroma_weight:
        terms["chroma"] = args.chroma_weight * chroma_loss(sr_imgs, hr_imgs)
    if args.consistency_weight:
        terms["consistency"] = args.consistency_weight * consistency_loss(sr_imgs, hr_imgs, args.scale)
    if args.echo_weight:
        terms["echo"] = args.echo_weight * echo_loss(sr_imgs, hr_imgs, args.scale)
    if args.detail_weight:
        terms["detail"] = args.detail_weight * missing_detail_loss(sr_imgs, hr_imgs, args.scale)
    if args.mesh_weight:
        terms["mesh"] = args.mesh_weight * mesh_loss(sr_imgs, hr_imgs, args.scale)
    if args.excess_weight:
        with torch.no_grad():
            faithful_imgs = faithful(lr_imgs.to(dtype)).float()
        terms["excess"] = args.excess_weight * excess_error_loss(sr_imgs, hr_imgs, faithful_imgs)
    generator_loss = sum(terms.values())
    norm_g = descend(generator_loss, generator, optimizer_g, scaler)

    # The discriminator's half (equation 2), on the SR images as data. HR and SR images go through it one after the
    # other, since in one batch they would share the statistics of batch normalisation.
    judge.requires_grad_(True)
    with autocast(lr_imgs.device, dtype):
        hr_logits = discriminator(seen_by_discriminator(hr_imgs, args)).float()
        sr_logits = discriminator(seen_by_discriminator(sr_imgs.detach(), args)).float()
    discriminator_loss = F.binary_cross_entropy_with_logits(hr_logits, torch.ones_like(hr_logits))
    discriminator_loss = discriminator_loss + F.binary_cross_entropy_with_logits(sr_logits, torch.zeros_like(sr_logits))
    norm_d = descend(discriminator_loss, discriminator, optimizer_d, scaler)
    scaler.update()  # of either's overflow

    return {
        "generator": generator_loss,
        **terms,
        **{f"share_{name}": term / generator_loss for name, term in terms.items()},
        "discriminator": discriminator_loss,
        "accuracy_hr": (hr_logits > 0).float().mean(),
        "accuracy_sr": (sr_logits < 0).float().mean(),
        "gradient_norm_g": norm_g,
        "gradient_norm_d": norm_d,
    }


def warn_of_trouble(run, step, means, health):
    """Say once, in words, that the discriminator has won or that the content loss has doubled; `health` remembers."""
    told_apart = means["accuracy_hr"] == 1 and means["accuracy_sr"] == 1
    health["won_since"] = health.get("won_since", step) if told_apart else step
    if step - health["won_since"] >= WON_AFTER and not health.get("told_won"):
        health["told_won"] = True
        run.print(
            f"warning: for {WON_AFTER} steps the discriminator has told every image apart, so the generator learns little "
            "from it: try a higher --adversarial-weight, a lower --learning-rate, or a better start (--init)"
        )
    first = health.setdefault("first_content", means["content"])
    if means["content"] > 2 * first and not health.get("told_content"):
        health["told_content"] = True
        run.print(
            f"warning: the content loss has doubled since the start ({first:.3g} to {means['content']:.3g}): the generator "
            "drifts away from the images; try a lower --adversarial-weight or --learning-rate"
        )


def start_generator(args):
    """The generator before its first step. Raises UserError unless --init is given."""
    if args.init is None:
        raise UserError("give --init FILE, the weights of stage 1 (as checkpoints/srresnet_x4.pth), or --init none")
    if args.init == "none":
        return Generator(args.scale, args.blocks, args.channels)
    config = load_network(args.init).config
    if config["arch"] == "srcnn":
        raise UserError(f"--init {args.init}: SRCNN is no generator; give the weights of a SRResNet")
    generator = build_network(config | {"arch": "srgan", "scale": args.scale})
    start_from(args.init, generator)
    return generator


def load_faithful(path, scale, given=True):
    """The network of stage 1 in a file, for --excess-weight. Raises UserError for one of another scale.

    And, if the file was not `given` for it, for one of stage 2, which would be measured by its own errors.
    """
    network, problem = load_network(path), None
    if network.config["scale"] != scale:
        problem = f"{path} is for x{network.config['scale']}, not x{scale}"
    elif not given and network.config["arch"] == "srgan":
        problem = f"{path} is of stage 2"
    if problem:
        raise UserError(f"--excess-weight compares with a network of stage 1: {problem}; give --faithful FILE")
    return network


def start_discriminator(args):
    """The discriminator before its first step. Raises UserError for a file of --init-discriminator that does not fit."""
    discriminator = Discriminator(args.discriminator_channels, patches=args.discriminator == "patch")
    if args.init_discriminator and not args.resume:
        state = load_checkpoint(args.init_discriminator).get("discriminator")
        if state is None:  # best.pth and the weights of stage 1 have none
            raise UserError(
                f"--init-discriminator {args.init_discriminator}: holds no discriminator; give a last.pth of stage 2"
            )
        try:
            discriminator.load_state_dict(state)
        except (RuntimeError, TypeError):
            problem = "holds another discriminator; give --discriminator and --discriminator-channels as that run had them"
            raise UserError(f"--init-discriminator {args.init_discriminator}: {problem}") from None
    return discriminator


def main(args):
    check_training_arguments(args)
    if args.discriminator_crop and args.crop_size % args.discriminator_crop:
        raise UserError(f"--discriminator-crop {args.discriminator_crop} does not divide --crop-size {args.crop_size}")
    if args.vgg_crop and args.vgg_crop > args.crop_size:
        raise UserError(f"--vgg-crop {args.vgg_crop} is more than --crop-size {args.crop_size}")
    if args.excess_weight and args.init == "none" and not args.faithful:
        raise UserError("--excess-weight compares with a network of stage 1: give its weights by --faithful FILE")
    run = Run(args, default_name=f"srgan_x{args.scale}")
    # Batch normalisation needs two values, and of 16 pixels the discriminator's four strides of 2 leave one.
    if args.crop_size == 16 and args.batch_size == run.world_size and args.freeze_bn != "both":
        raise UserError("--crop-size 16 with one crop per process: batch normalisation needs more, --batch-size or --crop-size")
    dataset, validation = load_data(args)

    torch.manual_seed(args.seed)
    try:
        vgg = TruncatedVGG19(*divmod(max(args.vgg_layer), 10), args.vgg_weights)
    except (ValueError, OSError) as error:
        raise UserError(
            f"--vgg-weights {args.vgg_weights}: {error}; give the path of a state dict of torchvision's vgg19().features"
        ) from None
    checkpoint = run.checkpoints.load_newest() if args.resume else None
    generator = build_network(checkpoint["config"]) if checkpoint else start_generator(args)
    generator.to(run.device, memory_format=torch.channels_last)
    if not checkpoint and args.init != "none" and not args.freeze_bn:
        run.fit_to_crops(generator, dataset)
    discriminator = start_discriminator(args).to(run.device, memory_format=torch.channels_last)
    ema = copy.deepcopy(generator).requires_grad_(False)
    optimizer_g = build_optimizer(args.optimizer, generator, args.learning_rate)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), args.learning_rate, fused=True)
    start, health = 0, {}
    given = args.init  # where the file of the start may have moved to: what --resume restores is the name it had
    if checkpoint:
        start, health = run.restore(checkpoint, dataset), checkpoint["health"]
        generator.load_state_dict(checkpoint["weights"])
        ema.load_state_dict(checkpoint["ema"])
        discriminator.load_state_dict(checkpoint["discriminator"])
        optimizer_g.load_state_dict(checkpoint["optimizer_g"])
        optimizer_d.load_state_dict(checkpoint["optimizer_d"])

    faithful = None  # the network that is right where it can be, whose error is the measure of --excess-weight
    if args.excess_weight:
        faithful_file = args.faithful or (args.init if Path(args.init).is_file() else given or args.init)
        faithful = load_faithful(faithful_file, args.scale, given=args.faithful or checkpoint)
    run.learn_from(checkpoint, vgg_weights=[vgg], faithful=faithful and [faithful])
    faithful = faithful and for_inference(faithful, run.device, run.dtype)
    vgg.to(run.device, memory_format=torch.channels_last)
    vgg.layers.to(run.dtype)  # or autocast would cast the weights anew in each step
    judged_by = "lpips" if args.lpips_backbone else "content"
    measure = load_lpips(args.lpips_backbone, run.device) if args.lpips_backbone else content_measure(vgg, run.device, args)
    judged = args.lpips_backbone or args.vgg_factor  # without features the content loss is 0, and the last is as good as any
    if args.freeze_bn:
        freeze_bn(generator)
    if args.freeze_bn == "both":
        freeze_bn(discriminator)
    trained_g, trained_d = run.parallel(generator), run.parallel(discriminator)
    step_once = run.guarded(train_step, generator, discriminator, optimizer_g, optimizer_d)
    terms = ["content", "adversarial", "texture", "pixel", "chroma", "consistency", "echo", "detail", "mesh", "excess"]
    columns = ["learning_rate", "generator", *terms, *[f"share_{term}" for term in terms], "discriminator", "accuracy_hr"]
    columns += ["accuracy_sr", "gradient_norm_g", "gradient_norm_d"]
    columns += [f"validation/{figure}" for figure in (*FIGURES, judged_by, *DIAGNOSTICS)]
    run.start(
        start,
        columns=columns,
        recipe=RECIPES[args.recipe],
        training_images=len(dataset.paths),
        validation_images=len(validation),
        best_by=judged_by if judged else "step",
    )
    for step, lr_imgs, hr_imgs in run.steps(run.loader(dataset, start), start):
        learning_rate = learning_rate_at(step, args)
        set_learning_rate(optimizer_g, learning_rate if step > args.discriminator_alone else 0.0)
        set_learning_rate(optimizer_d, learning_rate)
        if args.discriminator_alone and not args.freeze_bn:  # or its statistics would learn
            freeze_bn(generator, step <= args.discriminator_alone)
        networks, optimizers = (trained_g, trained_d, vgg), (optimizer_g, optimizer_d)
        figures = step_once(*networks, *optimizers, lr_imgs, hr_imgs, args, run.dtype, step, run.scaler, faithful)
        update_ema(ema, generator, step, args.ema_decay)
        means = run.log(step, learning_rate, **figures)
        if means:
            warn_of_trouble(run, step, means, health)

        if run.validate_due(step):
            network = for_inference(ema, run.device, run.dtype)
            measured = run.validate(step, network, validation, {judged_by: measure})
            run.save_if_best(step, -measured[judged_by] if judged else step, ema)
        if run.save_due(step):
            run.save(
                step,
                config=generator.config,
                weights=generator.state_dict(),
                ema=ema.state_dict(),
                discriminator=discriminator.state_dict(),
                optimizer_g=optimizer_g.state_dict(),
                optimizer_d=optimizer_d.state_dict(),
                health=health,
            )


def content_measure(vgg, device, args):
    """The content loss as a metric: a function of an SR and an HR image, (H, W, 3) uint8, of which it takes the middles."""

    def middle(img, size=512):  # VGG19 would need gigabytes for a whole photograph
        top, left = (max(0, side - size) // 2 for side in img.shape[:2])
        return to_tensor(img[top : top + size, left : left + size], device)

    def measure(sr_img, hr_img):
        with torch.inference_mode():
            sr_features, hr_features = (features_of(vgg, middle(img), args) for img in (sr_img, hr_img))
            return content_loss(sr_features, hr_features, args.content_loss).item()

    return measure


if __name__ == "__main__":
    with user_errors():
        main(args)
