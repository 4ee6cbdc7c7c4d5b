"""Draw PSNR against LPIPS along the blend of two networks, out of the metrics.json of eval.py.

    python eval.py --weights checkpoints/srresnet_x4.pth checkpoints/srgan_x4.pth --blend 0.2 0.4 0.6 0.8 \\
        --test-sets Set5 Set14 BSD100 --lpips --output results/blend
    python benchmarks/blend_curve.py results/blend/metrics.json docs/images/blend.svg

Needs matplotlib.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from metrics import mean_figures
from utils import ArgumentParser, UserError, read_json, user_errors


def parse_arguments():
    parser = ArgumentParser(__doc__)
    parser.add_argument("metrics", type=Path, metavar="METRICS", help="metrics.json of eval.py --blend --lpips")
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="what to write: .svg, .png, ...")
    return parser.parse_args()


def points(results, test_set):
    """(share of the second network, PSNR, LPIPS) of a test set, by share: the two networks and their blends.

    Without the images of which a network's error is 0, as of a blank page, and PSNR has no end.
    """
    _, first, second, *blends = results
    if not blends:
        raise ValueError
    shares = {first: 0.0, second: 1.0} | {name: float(name.removeprefix("blend_")) for name in blends}
    exact = {entry["image"] for name in shares for entry in results[name][test_set] if entry["psnr"] is None}
    if exact:
        print(f"{test_set}: without {', '.join(sorted(exact))}, of which a network makes no error at all")
    means = {name: mean_figures([entry for entry in results[name][test_set] if entry["image"] not in exact]) for name in shares}
    return sorted((share, means[name]["psnr"], means[name]["lpips"]) for name, share in shares.items())


def main(args):
    try:
        import matplotlib
    except ImportError:
        raise UserError("the picture needs the package matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    try:
        results = read_json(args.metrics)
        curves = {test_set: points(results, test_set) for test_set in results["bicubic"]}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{args.metrics}: not the figures of eval.py with two --weights, --blend and --lpips") from None
    figure, axes = pyplot.subplots(figsize=(6.5, 4.2), layout="constrained")
    for test_set, curve in curves.items():
        axes.plot([p[1] for p in curve], [p[2] for p in curve], "o-", label=test_set)
        for share, psnr, lpips in curve:
            axes.annotate(f"{share:g}", (psnr, lpips), textcoords="offset points", xytext=(5, 5), fontsize=7)
    axes.set(xlabel="PSNR (dB): the higher the more faithful", ylabel="LPIPS: the lower the sharper to the eye")
    axes.grid(alpha=0.3)
    axes.legend()
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(args.picture)
    except ValueError as error:
        raise UserError(f"{args.picture}: {error}") from None


if __name__ == "__main__":
    arguments = parse_arguments()
    with user_errors():
        main(arguments)
