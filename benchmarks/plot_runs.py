"""Draw the curves of training runs out of their log.csv: losses, accuracies, PSNR, LPIPS, shares of the loss, artifacts.

    python benchmarks/plot_runs.py srgan_x4
    python benchmarks/plot_runs.py try1 try2 results/try3/log.csv --output results/tries.svg
    python benchmarks/plot_runs.py --joined docs/logs/stage1_crop256.csv docs/logs/stage1_long.csv --output stage1.svg

A RUN is the name of a run (its log is results/NAME/log.csv), a folder with a log.csv, or a CSV file. Needs matplotlib.
"""

import csv
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import ArgumentParser, UserError, user_errors

TERMS = ["content", "adversarial", "texture", "pixel", "luma", "chroma", "consistency", "echo", "detail", "calm", "mesh"]
TERMS += ["excess", "colour", "grid", "ldl"]  # the last three in old logs alone
ARTIFACTS = ("chroma", "consistency", "echo", "gray", "colour_shift")
# Each plot is drawn if a run has one of its columns: (title, columns, whether on a scale of logarithms).
PLOTS = [
    ("loss", ("loss", "generator"), True),
    ("terms of the loss", TERMS, True),
    ("their shares", [f"share_{term}" for term in TERMS], False),
    ("loss of the discriminator (1.386 is chance)", ("discriminator",), False),
    ("share the discriminator tells right", ("accuracy_hr", "accuracy_sr"), False),
    ("PSNR on validation images (dB)", ("validation/psnr",), False),
    ("LPIPS or content loss there", ("validation/lpips", "validation/content"), False),
    ("artifacts there (grey levels)", [f"validation/{figure}" for figure in ARTIFACTS], False),
    ("learning rate", ("learning_rate",), False),
]
DASHES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 5)))


def parse_arguments():
    parser = ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names of runs, folders with a log.csv, or CSV files")
    parser.add_argument("--joined", action="store_true", help="one run after the other, as each went on from the one before")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/curves.svg"),
        metavar="FILE",
        help="picture to write: .svg, .png, .webp, ...",
    )
    return parser.parse_args()


def log_of(run):
    """The path of the log that a word of the command line means. Raises UserError if there is none."""
    path = Path(run)
    for found in (path, path / "log.csv", Path("results") / run / "log.csv"):
        if found.is_file():
            return found
    raise UserError(f"{run}: no CSV file, no folder with a log.csv, and no run in results")


def read_log(path):
    """The columns of a log as {name: [(step, value), ...]}; empty cells are left out. Raises UserError for no log."""
    columns = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                for key, value in row.items():
                    if value:
                        columns.setdefault(key, []).append((step, float(value)))
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path}: not a log.csv of a training run") from None
    if not columns:
        raise UserError(f"{path}: holds no figures yet")
    return columns


def joined(logs):
    """Logs one after the other as one, the steps of each counted on from the last of the one before; and where each ends."""
    whole, ends, before = {}, [], 0
    for columns in logs:
        for key, points in columns.items():
            whole.setdefault(key, []).extend((before + step, value) for step, value in points)
        before += max(step for points in columns.values() for step, _ in points)
        ends.append(before)
    return whole, ends


def names_of(paths):
    """A name for each log: its file's, or its folder's if it is called log.csv."""
    return [path.parent.resolve().name if path.stem == "log" else path.stem for path in paths]


def draw(axes, title, keys, logarithmic, logs, ends):
    """One plot of the columns `keys` of all logs, {name: columns}; of one log they differ in colour, of several in dashes."""
    choice = len(keys) > 1
    keys = [key for key in keys if any(key in columns for columns in logs.values())]
    several, values = len(logs) > 1, []
    for number, columns in enumerate(logs.values()):
        for place, key in enumerate(keys):
            points = [(step, value) for step, value in columns.get(key, ()) if math.isfinite(value)]
            style = {"color": f"C{number if several else place}", "linestyle": DASHES[place % len(DASHES) if several else 0]}
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                marker="." if "validation" in key else None,
                linewidth=1.2,
                **style,
            )
            values += [value for _, value in points]
    if choice:
        for place, key in enumerate(keys):  # lines of no points, for the legend alone
            style = {"color": "#444", "linestyle": DASHES[place % len(DASHES)]} if several else {"color": f"C{place}"}
            axes.plot([], [], label=key.split("/")[-1].removeprefix("share_"), **style)
        axes.legend(fontsize=7)
    for end in ends[:-1]:
        axes.axvline(end, color="#999", linewidth=0.6, linestyle=":")
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if logarithmic and min(values, default=0) > 0:
        axes.set_yscale("log")


def main(args):
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plots need the package matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "runs", "svg.fonttype": "none"})
    from matplotlib import pyplot

    paths = [log_of(run) for run in args.runs]
    names, found, ends = names_of(paths), [read_log(path) for path in paths], []
    if args.joined:
        whole, ends = joined(found)
        logs = {" + ".join(names): whole}
    else:
        logs = dict(zip(names, found))
        if len(logs) < len(paths):
            raise UserError(f"two runs would have one name in the legend: {', '.join(names)}")
    plots = [plot for plot in PLOTS if any(key in columns for columns in logs.values() for key in plot[1])]
    columns = 2 if len(plots) in (2, 4) else min(3, len(plots))
    rows = math.ceil(len(plots) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 2.7 * rows), layout="constrained", squeeze=False)
    for place, plot in zip(axes.flat, plots):
        draw(place, *plot, logs, ends)
    for place in axes.flat[len(plots) :]:
        place.axis("off")
    if len(logs) > 1:
        lines = [axes.flat[0].plot([], [], color=f"C{number}")[0] for number in range(len(logs))]
        figure.legend(lines, list(logs), loc="outside upper center", ncols=4, fontsize=9)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        metadata = {"metadata": {"Date": None}} if args.output.suffix == ".svg" else {}
        figure.savefig(args.output, **metadata)
    except (ValueError, OSError) as error:
        raise UserError(f"{args.output}: {error}") from None
    print(f"{args.output}: {len(paths)} logs, {len(plots)} plots")


if __name__ == "__main__":
    arguments = parse_arguments()
    with user_errors():
        main(arguments)
