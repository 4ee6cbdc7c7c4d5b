"""The repository at work, in a few minutes and without a network: `./run demo`.

Upscales a photograph and measures the shipped weights on three, then trains both stages for a few steps to show that they
run. The photographs come with scikit-image; those used here are in the public domain or CC0, by its documentation.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import torch
from helpers import ROOT, random_vgg19
from PIL import Image
from skimage import data

DEMO = Path("results/demo")
TRAINING = ("rocket", "hubble_deep_field", "retina", "camera", "brick", "grass", "gravel")
TEST = ("astronaut", "chelsea", "coffee")


def run(*words, script):
    print(f"\n$ python {script} {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, script, *words], cwd=ROOT).returncode
    if status:
        sys.exit(f"{script} failed with status {status}")


def save_photographs():
    for folder, names in (("train", TRAINING), ("test", TEST)):
        (ROOT / DEMO / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            photograph = Image.fromarray(getattr(data, name)()).convert("RGB")
            photograph.thumbnail((512, 512))
            photograph.save(ROOT / DEMO / folder / f"{name}.png")
    small = Image.open(ROOT / DEMO / "test/astronaut.png")
    small = small.resize((128, 128), Image.Resampling.BICUBIC)
    small.save(ROOT / DEMO / "small.png")
    small.save(ROOT / DEMO / "compressed.jpg", quality=30)


def main():
    weights = [f"checkpoints/{name}_x4.pth" for name in ("srresnet", "srgan")]
    save_photographs()
    torch.save(random_vgg19(), ROOT / DEMO / "random_vgg19.pth")  # enough to see stage 2 run, and of no use to train with

    print("== One picture, four times as large, with the weights that ship")
    run(f"{DEMO}/small.png", "--output", str(DEMO), "--compare", "--overwrite", script="test.py")

    print("\n== The same, compressed: with the weights for clean pictures, and with those for photographs")
    for pair in ("clean", "photo"):
        result = str(DEMO / f"compressed_{pair}.png")
        run(f"{DEMO}/compressed.jpg", "--weights", pair, "--output", result, "--overwrite", script="test.py")

    print("\n== The shipped weights measured on three photographs")
    options = ["--test-sets", f"{DEMO}/test", "--save-images", "--output", f"{DEMO}/eval"]
    run("--weights", *weights, *options, script="eval.py")

    print("\n== A smoke run of the training: a tiny network, a few steps, and for stage 2 a VGG19 of random weights.")
    print("== It shows that both stages run here; its pictures are worth nothing.")
    folders = ["--train-folders", f"{DEMO}/train", "--validation-images", "1", "--output-folder", f"{DEMO}/data"]
    run(*folders, script="create_data_lists.py")
    small = ["--data-folder", f"{DEMO}/data", "--dry-run", "--batch-size", "4", "--crop-size", "48"]
    run(*small, "--blocks", "2", script="train_srresnet.py")
    (ROOT / "checkpoints/dry_run/best.pth").replace(ROOT / DEMO / "stage1.pth")
    stage2 = ["--init", f"{DEMO}/stage1.pth", "--vgg-weights", f"{DEMO}/random_vgg19.pth"]
    run(*small, *stage2, script="train_srgan.py")

    print("\n== Done. The table of the shipped weights:\n")
    print((ROOT / DEMO / "eval/metrics.md").read_text())
    print(f"The picture and its comparison: {DEMO}/small_x4.png {DEMO}/small_x4_compare.html")
    print(f"The measured photographs side by side: {DEMO}/eval/test/compare.html")
    print("A page to drop your pictures on: pip install -r requirements-app.txt && python app.py (in the environment .venv)")


if __name__ == "__main__":
    main()
