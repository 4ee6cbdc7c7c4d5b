"""Measure PSNR, SSIM and LPIPS of trained weights on test sets, beside bicubic enlargement.

    python eval.py --weights checkpoints/srresnet_x4.pth checkpoints/srgan_x4.pth --test-sets Set5 Set14 BSD100
    python eval.py --weights checkpoints/srgan_x4.pth --test-sets path/to/hr_images --lpips --save-images

A test set is a folder of HR images, or the name of a list made by create_data_lists.py. Prints the table as Markdown and
writes metrics.md, metrics.json (with an entry per image) and, with --save-images, the pictures under --output.
Protocol: HR cropped to a multiple of the scale, LR by Pillow's bicubic (or as --degradation says), SR rounded to 8 bits;
PSNR and SSIM on Y of BT.601 in studio range without a border of `scale` pixels; LPIPS (AlexNet, v0.1) on the whole RGB image.
"""

from pathlib import Path

from utils import ArgumentParser, add_device_arguments, number, user_errors


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--weights", type=Path, nargs="*", default=[], metavar="FILE", help="checkpoints of one scale, rows after bicubic")
    add(
        "--blend",
        type=number(float, 0, 1),
        nargs="+",
        default=[],
        metavar="A",
        help="also rows for mixtures of two --weights, as test.py --blend makes them: 0 is the first, 1 the second",
    )
    add(
        "--self-ensemble",
        action="store_true",
        help="also a row (named with a +) for the mean of each network over eight flips and turns of the picture",
    )
    add(
        "--test-sets",
        nargs="+",
        required=True,
        metavar="SET",
        help="folders of HR images, or names of lists in --data-folder; NAME=SET says what one is called in the table",
    )
    add("--data-folder", type=Path, default=Path("data"), metavar="DIR", help="where the lists are")
    add("--lr-folder", type=Path, metavar="DIR", help="given LR images, of the same names, in place of bicubic downscaling")
    add(
        "--degradation",
        choices=("bicubic", "photo"),
        default="bicubic",
        help="what makes LR of HR images; photo: what training with it does (blur, noise, JPEG, WebP), without its share of "
        "clean ones, fixed by the name of each file (not its folder, nor its ending), so that everyone measures the same",
    )
    add("--scale", type=int, choices=(2, 3, 4, 8), help="factor, where no weights tell it (default: 4)")
    add("--lpips", action="store_true", help="measure LPIPS too (needs the package lpips)")
    add(
        "--lpips-backbone",
        default="imagenet",
        metavar="FILE",
        help="state dict of AlexNet's features, or imagenet: torchvision downloads it",
    )
    add("--save-images", action="store_true", help="write each SR image, and a labelled side-by-side panel per image")
    add("--output", type=Path, default=Path("results/eval"), metavar="DIR", help="folder for the table and the images")
    add_device_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()

import json
import math

from tqdm import tqdm

from datasets import TestPairs
from devices import Processes, pick_dtype
from image_lists import named_sets, test_images
from inference import SelfEnsemble, for_inference, upscale
from metrics import DIAGNOSTICS, evaluate, load_lpips, mean_figures
from pictures.comparison import slider_figure, with_close_ups, write_page
from pictures.pixels import enlarge, write_image
from utils import UserError, atomic_write, write_text
from weights import blend_networks, load_network


def load_models(files, blends, device, dtype, scale, self_ensemble=False):
    """The networks by their names in the table, bicubic (None) first, and their common scale."""
    if blends and len(files) != 2:
        raise UserError("--blend mixes two networks: give two files to --weights")
    models, scales = {"bicubic": None}, {} if scale is None else {"--scale": scale}
    for file in files:
        network = load_network(file)
        name = file.stem
        if name in models or name in ("best", "last"):  # as each run has them
            name = f"{file.parent.name}_{name}"
        if name in models:
            raise UserError(f"--weights: two files would be called {name} in the table")
        scales[name] = network.config["scale"]
        models[name] = for_inference(network, device, dtype)
    if len(set(scales.values())) > 1:
        raise UserError("different scales: " + ", ".join(f"{name} x{value}" for name, value in scales.items()))
    for share in blends:
        models[f"blend_{share:g}"] = for_inference(blend_networks(*map(load_network, files), share), device, dtype)
    if self_ensemble:
        models = with_self_ensembles(models)
    return models, next(iter(scales.values()), 4)


def with_self_ensembles(models):
    """The networks by their names, each followed by its SelfEnsemble, whose name has a plus."""
    if set(models) == {"bicubic"}:
        raise UserError("--self-ensemble is for networks: give --weights too")
    pairs = []
    for name, network in models.items():
        if f"{name}+" in models:
            raise UserError(f"--self-ensemble: two rows would be called {name}+ in the table")
        pairs += [(name, network), (f"{name}+", SelfEnsemble(network))] if network else [(name, network)]
    return dict(pairs)


def load_sets(names, data_folder, scale, lr_folder, degradation):
    """The test sets by their names in the table."""
    if lr_folder and degradation != "bicubic":
        raise UserError(f"--degradation {degradation} makes the LR images that --lr-folder gives: leave one of them out")
    named = named_sets(names, "--test-sets")
    sets = {label: test_images(name, data_folder) for label, name in named.items()}
    return {label: TestPairs(paths, scale, lr_folder, degradation) for label, paths in sets.items()}


def in_table(entries):
    """The means of a test set that stand in the table."""
    return {key: value for key, value in mean_figures(entries).items() if key not in DIAGNOSTICS}


def table_cell(entries):
    """The means of a test set as they stand in the table: 28.43 / .8111 / .3396."""
    means = in_table(entries)
    return " / ".join(f"{means[key]:.2f}" if key == "psnr" else f"{means[key]:.4f}".replace("0.", ".", 1) for key in means)


def markdown_table(results, sets, title):
    """One row per model, one column per test set."""
    figures = " / ".join(key.upper() for key in in_table(results["bicubic"][sets[0]]))
    lines = [f"| {title}, {figures} | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for model, by_set in results.items():
        lines.append(f"| {model} | {' | '.join(table_cell(by_set[name]) for name in sets)} |")
    return "\n".join(lines)


def save_images(folder, pairs, models, entries, processes):
    """Write each model's pictures of a test set, a labelled panel and a slider per image, both with close-ups."""
    figures = {}
    share = range(processes.rank, len(pairs), processes.count)
    for i in tqdm(share, desc=f"pictures of {folder.name}", unit="image", disable=None):
        name, lr_img, hr_img = pairs[i]
        labels, images = [], []
        for model, network in models.items():
            sr_img = enlarge(lr_img, pairs.scale) if network is None else upscale(network, lr_img)
            write_image(folder / f"{name}_{model}.png", sr_img)
            labels.append(f"{model} {entries[model][i]['psnr']:.2f} dB")
            images.append(sr_img)
        labels, images = [*labels, "HR"], [*images, hr_img]
        with atomic_write(folder / f"{name}_panel.png") as file:
            with_close_ups(images, labels).save(file, "PNG")
        figures[i] = slider_figure(name, images, labels, before=0, after=len(models) - 1)
    figures = {i: figure for part in processes.gather(figures) for i, figure in part.items()}
    if processes.rank == 0:
        write_page(folder / "compare.html", folder.name, [figures[i] for i in range(len(pairs))])


def main(args):
    processes = Processes(args.device)
    device = processes.device
    models, scale = load_models(
        args.weights, args.blend, device, pick_dtype(args.precision, device), args.scale, args.self_ensemble
    )
    sets = load_sets(args.test_sets, args.data_folder, scale, args.lr_folder, args.degradation)
    metrics = {"lpips": load_lpips(args.lpips_backbone, device)} if args.lpips else {}
    results = {model: {} for model in models}
    for set_name, pairs in sets.items():
        for model, network in models.items():
            bar = tqdm(total=len(pairs), desc=f"{set_name}, {model}", unit="image", leave=False, disable=None)
            entries = evaluate(network, pairs, metrics, processes, on_image=lambda _, bar=bar: bar.update())
            results[model][set_name] = entries
            bar.close()
    if processes.rank == 0:
        title = f"x{scale}" if args.degradation == "bicubic" else f"x{scale} {args.degradation}"
        table = markdown_table(results, list(sets), title)
        print(table, flush=True)
        write_text(args.output / "metrics.md", table + "\n")
        write_text(args.output / "metrics.json", json.dumps(finite(results), indent=2, ensure_ascii=False) + "\n")
    if args.save_images:
        for set_name, pairs in sets.items():
            entries = {model: results[model][set_name] for model in models}
            save_images(args.output / set_name, pairs, models, entries, processes)
    if processes.rank == 0:
        print(f"written to {args.output}:", "metrics.md", "metrics.json", *(sets if args.save_images else ()))


def finite(value):
    """The value with null for what JSON has no number for: the PSNR of equal images."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    with user_errors():
        main(args)
