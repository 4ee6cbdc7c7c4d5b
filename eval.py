"""Measure PSNR, SSIM and LPIPS of trained weights on test sets, beside bicubic enlargement.

    python eval.py --weights checkpoints/srresnet_x4.pth checkpoints/srgan_x4.pth --test-sets Set5 Set14 BSD100
    python eval.py --weights checkpoints/srgan_x4.pth --test-sets path/to/hr_images --lpips --save-images

A test set is a folder of HR images, or the name of a list made by create_data_lists.py. Prints the table as Markdown and
writes metrics.md, metrics.json (with an entry per image) and, with --save-images, the pictures under --output.
Protocol: HR cropped to a multiple of the scale, LR by Pillow's bicubic, SR rounded to 8 bits; PSNR and SSIM on Y of BT.601
in studio range without a border of `scale` pixels; LPIPS (AlexNet, v0.1) on the whole RGB image.
"""

from pathlib import Path

from utils import ArgumentParser, add_device_arguments, user_errors


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--weights", type=Path, nargs="*", default=[], metavar="FILE", help="checkpoints, all of one scale; bicubic comes first in any case")
    add("--test-sets", nargs="+", required=True, metavar="SET", help="folders of HR images, or names of lists in --data-folder")
    add("--data-folder", type=Path, default=Path("data"), metavar="DIR", help="where the lists are")
    add("--lr-folder", type=Path, metavar="DIR", help="given LR images, of the same names, in place of bicubic downscaling")
    add("--scale", type=int, choices=(2, 3, 4, 8), help="factor, if there are no weights to tell it (default: 4)")
    add("--lpips", action="store_true", help="measure LPIPS too (needs the package lpips)")
    add("--lpips-backbone", default="imagenet", metavar="FILE", help="state dict of AlexNet's features, or imagenet: torchvision downloads it")
    add("--save-images", action="store_true", help="write each SR image, and a labelled side-by-side panel per image")
    add("--output", type=Path, default=Path("results/eval"), metavar="DIR", help="folder for the table and the images")
    add_device_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()

import json

from tqdm import tqdm

from datasets import TestPairs
from models import for_inference
from utils import (
    UserError,
    evaluate,
    labelled_row,
    load_lpips,
    load_network,
    mean_figures,
    pick_device,
    pick_dtype,
    test_images,
    write_text,
)


def load_models(files, device, dtype, scale):
    """The networks to compare by their names in the table, bicubic (None) first, and their common scale."""
    models, scales = {"bicubic": None}, {} if scale is None else {"--scale": scale}
    for file in files:
        network = load_network(file)
        name = file.stem if file.stem not in models and file.stem not in ("best", "last") else f"{file.parent.name}_{file.stem}"
        if name in models:
            raise UserError(f"--weights: two files would be called {name} in the table")
        scales[name] = network.config["scale"]
        models[name] = for_inference(network, device, dtype)
    if len(set(scales.values())) > 1:
        raise UserError("weights of different scales: " + ", ".join(f"{name} x{value}" for name, value in scales.items()))
    return models, next(iter(scales.values()), 4)


def markdown_table(results, sets, columns):
    """One row per model, one column per test set: PSNR / SSIM, or PSNR / SSIM / LPIPS."""
    digits = {"psnr": "{:.2f}", "ssim": "{:.4f}", "lpips": "{:.4f}"}
    heading = " / ".join(column.upper() for column in columns)
    lines = [f"| {heading} | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for model, by_set in results.items():
        means = [mean_figures(by_set[name]) for name in sets]
        cells = [" / ".join(digits[column].format(mean[column]).replace("0.", ".", 1) if column != "psnr" else digits[column].format(mean[column]) for column in columns) for mean in means]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args):
    device = pick_device(args.device)
    dtype = pick_dtype(args.precision, device)
    models, scale = load_models(args.weights, device, dtype, args.scale)
    sets = {Path(name).name: TestPairs(test_images(name, args.data_folder), scale, args.lr_folder) for name in args.test_sets}
    metrics = {"lpips": load_lpips(args.lpips_backbone, device)} if args.lpips else {}
    results = {model: {} for model in models}
    for set_name, pairs in sets.items():
        for model, network in models.items():
            bar = tqdm(total=len(pairs), desc=f"{set_name}, {model}", unit="image", disable=None)
            results[model][set_name] = evaluate(network, pairs, metrics, on_image=lambda *_, bar=bar: bar.update())
            bar.close()
    columns = ["psnr", "ssim", *metrics]
    print(markdown_table(results, list(sets), columns))


if __name__ == "__main__":
    with user_errors():
        main(args)
