"""Stage 1: train SRResNet with the mean squared error between SR and HR images (Ledig et al. 2017, section 3.2).

    python train_srresnet.py --data-folder data
    python train_srresnet.py --data-folder data --resume

The lists in the data folder come from create_data_lists.py. Checkpoints go to checkpoints/NAME, logs and samples to
results/NAME. The bare defaults are the paper's recipe: 1,000,000 steps of Adam at 1e-4, batches of 16 crops of 96 pixels.
--recipe quick is a first try on a CPU, --recipe shipped the current recipe for weights that are to ship (docs/LOG.md), and
--recipe photo, with --init checkpoints/srresnet_x4.pth, that of the weights for photographs.
"""

from utils import ArgumentParser, add_training_arguments, check_training_arguments, number, parse_with_recipe, user_errors

SHIPPED = {
    "crop_size": 256,
    "batch_size": 2,
    "freeze_bn": True,
    "optimizer": "muon",
    "learning_rate": 3e-4,
    "schedule": "cosine",
    "warmup_steps": 200,
    "gray_share": 0.1,
    "stretch_share": 0.1,
    "flat_share": 0.05,
    "drawn_share": 0.05,
    "steps": 60_000,
}
PHOTO = {"degradation": "photo", "crop_size": 192, "learning_rate": 5e-4, "warmup_steps": 20, "ema_decay": 0.999}
PHOTO |= {"gray_share": 0.15, "flat_share": 0.02, "drawn_share": 0.0, "steps": 16_000}
RECIPES = {
    "paper": {},
    "quick": {"crop_size": 48, "learning_rate": 1e-3, "schedule": "cosine", "steps": 7000},
    "shipped": SHIPPED,
    "photo": SHIPPED | PHOTO,
}


def parse_arguments(words=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--arch", choices=("srresnet", "srcnn"), default="srresnet", help="the network to train")
    parser.add_argument("--init", metavar="FILE", help="weights to start from, of any scale; what fits is taken")
    parser.add_argument("--blocks", type=number(int, 1), default=16, help="residual blocks of SRResNet")
    parser.add_argument("--channels", type=number(int, 1), default=64, help="channels of SRResNet")
    parser.add_argument("--freeze-bn", action="store_true", help="keep the statistics of batch normalisation of the start")
    add_training_arguments(parser, stage=1, steps=1_000_000, learning_rate=1e-4, schedule="constant")
    return parse_with_recipe(parser, RECIPES, words)


if __name__ == "__main__":  # before the imports that take seconds, so that --help and a bad flag answer at once
    args = parse_arguments()

import copy

import torch
import torch.nn.functional as F

from batchnorm import freeze_bn
from devices import UNSCALED, autocast, descend
from inference import for_inference
from metrics import DIAGNOSTICS, FIGURES
from models import build_network
from optimizers import build_optimizer, set_learning_rate
from runs import Run, learning_rate_at, load_data, update_ema
from weights import start_from


def train_step(network, optimizer, lr_imgs, hr_imgs, dtype=torch.float32, scaler=UNSCALED):
    """One step on LR images (N, 3, h, w) in [0, 1] and HR images (N, 3, H, W) in [-1, 1]; returns its figures."""
    with autocast(lr_imgs.device, dtype):
        sr_imgs = network(lr_imgs)
    loss = F.mse_loss(sr_imgs.float(), hr_imgs)
    gradient_norm = descend(loss, network, optimizer, scaler)
    scaler.update()
    return {"loss": loss, "gradient_norm": gradient_norm}


def main(args):
    check_training_arguments(args)
    run = Run(args, default_name=f"{args.arch}_x{args.scale}")
    dataset, validation = load_data(args)

    torch.manual_seed(args.seed)
    sizes = {"blocks": args.blocks, "channels": args.channels} if args.arch == "srresnet" else {}
    network = build_network({"arch": args.arch, "scale": args.scale, **sizes})
    if args.init and not args.resume:
        start_from(args.init, network)
    network.to(run.device, memory_format=torch.channels_last)
    if args.init and not args.resume and not args.freeze_bn:
        run.fit_to_crops(network, dataset)
    ema = copy.deepcopy(network).requires_grad_(False)
    optimizer = build_optimizer(args.optimizer, network, args.learning_rate)
    start = 0
    if args.resume:
        checkpoint = run.checkpoints.load_newest()
        start = run.restore(checkpoint, dataset)
        network.load_state_dict(checkpoint["weights"])
        ema.load_state_dict(checkpoint["ema"])
        optimizer.load_state_dict(checkpoint["optimizer"])

    if args.freeze_bn:
        freeze_bn(network)
    trained = run.parallel(network)
    step_once = run.guarded(train_step, network, optimizer)
    run.start(
        start,
        columns=["learning_rate", "loss", "gradient_norm", *[f"validation/{key}" for key in (*FIGURES, *DIAGNOSTICS)]],
        recipe=RECIPES[args.recipe],
        parameters=sum(p.numel() for p in network.parameters()),
        training_images=len(dataset.paths),
        validation_images=len(validation),
    )
    for step, lr_imgs, hr_imgs in run.steps(run.loader(dataset, start), start):
        learning_rate = learning_rate_at(step, args)
        set_learning_rate(optimizer, learning_rate)
        figures = step_once(trained, optimizer, lr_imgs, hr_imgs, run.dtype, run.scaler)
        update_ema(ema, network, step, args.ema_decay)
        run.log(step, learning_rate, **figures)

        if run.validate_due(step):
            measured = run.validate(step, for_inference(ema, run.device, run.dtype), validation)
            run.save_if_best(step, measured["psnr"], ema)
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
