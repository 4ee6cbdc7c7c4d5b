"""Measure PSNR, SSIM and LPIPS of trained weights on test sets, beside bicubic enlargement.

    python eval.py --weights checkpoints/srresnet_x4.pth checkpoints/srgan_x4.pth --test-sets Set5 Set14 BSD100
    python eval.py --weights checkpoints/srgan_x4.pth --test-sets path/to/hr_images --lpips --save-images
    python eval.py --results path/to/pictures --metrics niqe

    python eval.py --scale 4 --test-sets Set5/HR --lr-folder Set5/LR_bicubic

A test set is a folder of HR images, or the name of a list made by create_data_lists.py. Prints the table as Markdown and
writes metrics.md, metrics.json (with an entry per image) and, with --save-images, the pictures under --output.
--metrics adds columns by the package pyiqa; --results adds rows for finished pictures, of whatever method. Without
--test-sets these alone are measured, by metrics that need no HR images.
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
        default=[],
        metavar="SET",
        help="folders of HR images, or names of lists in --data-folder; NAME=SET says what one is called in the table",
    )
    add(
        "--results",
        nargs="+",
        default=[],
        metavar="DIR",
        help="also rows for finished pictures, which have the names of the HR images, or those names with more behind "
        "(baby_x4.png); for several test sets in a sub-folder for each; NAME=DIR says what the row is called",
    )
    add("--data-folder", type=Path, default=Path("data"), metavar="DIR", help="where the lists are")
    add(
        "--lr-folder",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="given LR images, in place of bicubic downscaling: a folder for each of --test-sets, or one for all; with the "
        "names of the HR images, or those of benchmarks, as X4/babyx4.png, baby_LR.png and img_001_SRF_4_LR.png",
    )
    add(
        "--degradation",
        choices=("bicubic", "photo"),
        default="bicubic",
        help="what makes LR of HR images; photo: what training with it does (blur, noise, JPEG, WebP), without its share of "
        "clean ones, fixed by the name of each file (not its folder, nor its ending), so that everyone measures the same",
    )
    add(
        "--white",
        type=number(int, 1, 65535),
        metavar="LEVEL",
        help="what is white in 16-bit files that use less of their range, in folders (a list made with --white has its own)",
    )
    add("--scale", type=int, choices=(2, 3, 4, 8), help="factor, where no weights tell it (default: 4)")
    add("--lpips", action="store_true", help="measure LPIPS too (needs the package lpips): --metrics lpips")
    add(
        "--metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help="further columns: lpips, and by their names the metrics of the package pyiqa (dists, niqe, ...)",
    )
    add(
        "--metric-weights",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="files of weights for metrics of pyiqa, which otherwise downloads them; it unpickles them, so trust their source",
    )
    add(
        "--lpips-backbone",
        default="imagenet",
        metavar="FILE",
        help="state dict of AlexNet's features, or imagenet: torchvision downloads it",
    )
    add("--save-images", action="store_true", help="write each SR image, and a labelled side-by-side panel per image")
    add("--output", type=Path, default=Path("results/eval"), metavar="DIR", help="folder for the table and the images")
    add_device_arguments(parser)
    args = parser.parse_args()
    if not args.test_sets and not args.results:
        parser.error("give --test-sets, or --results for finished pictures without HR images")
    for flag in ("weights", "blend", "self_ensemble", "lr_folder", "save_images"):
        if getattr(args, flag) and not args.test_sets:
            parser.error(f"--{flag.replace('_', '-')} needs --test-sets")
    if not args.test_sets and not (args.metrics or args.lpips):
        parser.error("--results without --test-sets needs --metrics that need no HR images (niqe, ...)")
    return args


if __name__ == "__main__":
    args = parse_arguments()

import json
import math
import re
import sys

from tqdm import tqdm

from datasets import TestPairs
from devices import Processes, pick_dtype
from image_lists import finished_pictures, images_of, named_sets, on_16_bits, test_images
from inference import SelfEnsemble, for_inference
from metrics import DIAGNOSTICS, evaluate, evaluate_alone, load_lpips, mean_figures, sr_picture
from more_metrics import LOWER_IS_BETTER, check_names, load_metric
from pairs import unlike
from pictures.comparison import slider_figure, with_close_ups, write_page
from pictures.pixels import write_image
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
        if f"blend_{share:g}" in models:
            raise UserError(f"--blend: two rows would be called blend_{share:g} in the table")
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


def load_sets(names, data_folder, scale, lr_folders, degradation, white):
    """The test sets by their names in the table. Raises UserError for given LR images that are missing or do not fit."""
    if lr_folders and degradation != "bicubic":
        raise UserError(f"--degradation {degradation} makes the LR images that --lr-folder gives: leave one of them out")
    named = named_sets(names, "--test-sets")
    if len(lr_folders) not in (0, 1, len(named)):
        raise UserError(f"--lr-folder: give one for all of --test-sets, or one for each of the {len(named)}")
    sets = {}
    for (label, name), lr_folder in zip(named.items(), (lr_folders or [None]) * (1 if lr_folders[1:] else len(named))):
        sets[label] = TestPairs(test_images(name, data_folder, white, lr_folder), scale, lr_folder, degradation)
        sets[label].check_given()
    return sets


def warn_of_files(sets, models):
    """Name, on stderr, files of 16 bits that are nearly black, or cut to the white that is given; and LR images of others."""
    for label, pairs in sets.items():
        given = [pairs.given_lr_image(i) for i in range(len(pairs))]
        finished = [file for model in on_set(models, label).values() if isinstance(model, list) for file in model]
        told = on_16_bits([*pairs.paths, *filter(None, given), *finished], pairs.white)
        if told:
            print(f"warning: {label}: {told}", file=sys.stderr)
        some = {path: given[i] for i, path in list(enumerate(pairs.paths))[:100] if given[i]}
        if different := unlike(some, pairs.white):
            hr = different[0]
            told = f"{len(different)} of {len(some)} pairs do not look alike, as {hr} and {some[hr]}: are both upright, "
            told += "of one picture, and of one white?"
            print(f"warning: {label}: {told}", file=sys.stderr)


def in_table(entries):
    """The means of a test set that stand in the table."""
    return {key: value for key, value in mean_figures(entries).items() if key not in DIAGNOSTICS}


def table_cell(entries):
    """The means of a test set as they stand in the table: 28.43 / .8111 / .3396."""
    means = in_table(entries)
    return " / ".join(
        f"{means[key]:.2f}" if key == "psnr" else re.sub(r"^(-?)0\.", r"\1.", f"{means[key]:.4f}") for key in means
    )


def markdown_table(results, sets, title, lower_is_better):
    """One row per model, one column per test set. If there are metrics of others, arrows say where each is better."""
    keys = list(in_table(next(iter(results.values()))[sets[0]]))
    arrows = (
        {key: " ↓" if lower else " ↑" for key, lower in lower_is_better.items()} if set(keys) - set(LOWER_IS_BETTER) else {}
    )
    figures = " / ".join(key.upper() + arrows.get(key, "") for key in keys)
    rows = [[f"{title}, {figures}", *sets]]
    rows += [[model, *(table_cell(by_set[name]) for name in sets)] for model, by_set in results.items()]
    head, *lines = (f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)
    return "\n".join([head, "|---" * (len(sets) + 1) + "|", *lines])


def load_metrics(args, device):
    """The further metrics: functions by their names, and for all whether lower is better."""
    wanted = [*(["lpips"] if args.lpips else []), *args.metrics]
    names = check_names(wanted, bool(args.test_sets))
    files = {}
    for word in args.metric_weights:
        name, equals, file = word.partition("=")
        if not equals or name not in names:
            raise UserError(f"--metric-weights {word}: give NAME=FILE, with a name of pyiqa's that stands in --metrics")
        files[name] = file
    metrics, lower_is_better = {}, dict(LOWER_IS_BETTER)
    if "lpips" in map(str.lower, wanted):
        metrics["lpips"] = load_lpips(args.lpips_backbone, device)
    for name in tqdm(names, desc="loading metrics", leave=False, disable=None):
        metrics[name], lower_is_better[name] = load_metric(name, files.get(name), device)
    return metrics, lower_is_better


def with_results(models, folders, sets):
    """The models by their names, and after them the finished pictures: a dict of lists of files, by test set."""
    models = dict(models)
    for name, folder in named_sets(folders, "--results").items():
        if name in models:
            raise UserError(f"--results: two rows would be called {name}; say by NAME=DIR what it is called")
        models[name] = {set_name: finished_pictures(folder, set_name, pairs.paths) for set_name, pairs in sets.items()}
    return models


def on_set(models, set_name):
    """The models as `evaluate` takes them on a test set."""
    return {name: model[set_name] if isinstance(model, dict) else model for name, model in models.items()}


def check_file_names(output, sets, models):
    """Raises UserError if --save-images would write two pictures into one file, or beside HR images or finished pictures."""
    for label, pairs in sets.items():
        finished = [file for model in on_set(models, label).values() if isinstance(model, list) for file in model]
        if (output / label).resolve() in {file.parent.resolve() for file in [*pairs.paths, *finished]}:
            raise UserError(f"--save-images: {output / label} holds the pictures to measure; give another --output")
        made = {}
        for image in pairs.names:
            for row in (*models, "panel"):
                if other := made.get(f"{image}_{row}"):
                    both = " and ".join(f"{row} of {image}" for image, row in (other, (image, row)))
                    raise UserError(f"--save-images: {label}: {both} would both be {image}_{row}.png; call one something else")
                made[f"{image}_{row}"] = image, row


def save_images(folder, pairs, models, entries, processes):
    """Write each model's pictures of a test set, a labelled panel and a slider per image, both with close-ups."""
    figures = {}
    share = range(processes.rank, len(pairs), processes.count)
    for i in tqdm(share, desc=f"pictures of {folder.name}", unit="image", disable=None):
        name, lr_img, hr_img = pairs[i]
        labels, images = [], []
        for model, network in models.items():
            sr_img = sr_picture(network, i, lr_img, hr_img.shape, pairs.white)
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


def measured(args, processes, metrics):
    """The entries of each row and column of the table, {row: {column: [entry of each image, ...]}}; and models, sets, title."""
    device = processes.device
    if not args.test_sets:
        results = {}
        for name, folder in named_sets(args.results, "--results").items():
            paths = images_of(folder)
            with tqdm(total=len(paths), desc=name, unit="image", leave=False, disable=None) as bar:
                entries = evaluate_alone(paths, metrics, processes, lambda _, bar=bar: bar.update(), args.white)
            results[name] = {"pictures": entries}
        return results, {}, {"pictures": None}, "without reference"
    dtype = pick_dtype(args.precision, device)
    models, scale = load_models(args.weights, args.blend, device, dtype, args.scale, args.self_ensemble)
    sets = load_sets(args.test_sets, args.data_folder, scale, args.lr_folder, args.degradation, args.white)
    models = with_results(models, args.results, sets)
    if args.save_images:
        check_file_names(args.output, sets, models)
    if processes.rank == 0:
        warn_of_files(sets, models)
    results = {model: {} for model in models}
    for set_name, pairs in sets.items():
        for model, network in on_set(models, set_name).items():
            with tqdm(total=len(pairs), desc=f"{set_name}, {model}", unit="image", leave=False, disable=None) as bar:
                entries = evaluate(network, pairs, metrics, processes, on_image=lambda _, bar=bar: bar.update())
            results[model][set_name] = entries
    return results, models, sets, f"x{scale}" if args.degradation == "bicubic" else f"x{scale} {args.degradation}"


def main(args):
    processes = Processes(args.device)
    metrics, lower_is_better = load_metrics(args, processes.device)
    results, models, sets, title = measured(args, processes, metrics)
    if processes.rank == 0:
        table = markdown_table(results, list(sets), title, lower_is_better)
        print(table, flush=True)
        write_text(args.output / "metrics.md", table + "\n")
        write_text(args.output / "metrics.json", json.dumps(finite(results), indent=2, ensure_ascii=False) + "\n")
    if args.save_images:
        for set_name, pairs in sets.items():
            entries = {model: results[model][set_name] for model in models}
            save_images(args.output / set_name, pairs, on_set(models, set_name), entries, processes)
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
