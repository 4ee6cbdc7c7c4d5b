"""What `photo` does to a picture: each part by its own measure, the whole a pure function of (seed, k) or of a file's name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, refusal
from PIL import Image
from scipy import ndimage

import degradations
from datasets import SRDataset, TestPairs, train_loader, training_pair
from degradations import PHOTO, disc_kernel, gaussian_kernel, photo, photo_by_name
from pictures.pixels import downscale

SHARES = {"blurred", "disc", "round", "twice", "detour", "noisy", "poisson", "gray", "saved", "webp", "halved_colours"}


def generator(*seed):
    return np.random.default_rng(seed)


def plain(value, side=256):
    return np.full((side, side, 3), value, np.uint8)


def high_frequencies(image):
    """The energy of the differences between neighbours."""
    image = image.astype(float)
    return np.square(np.diff(image, axis=0)).mean() + np.square(np.diff(image, axis=1)).mean()


# Blur


@pytest.mark.parametrize("sigma, across, angle", [(2, 2, 0.0), (3, 1, 0.0), (1, 3, 0.0), (3, 1, 0.6), (2.5, 1.5, 2.0)])
def test_a_gaussian_has_the_spread_asked_along_each_axis(sigma, across, angle):
    kernel = gaussian_kernel(sigma, across, angle)
    radius = len(kernel) // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    turned = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    assert kernel.sum() == pytest.approx(1) and kernel.shape == (2 * radius + 1,) * 2
    for place, expected in zip(turned, (sigma, across), strict=True):
        assert np.sqrt((kernel * place**2).sum()) == pytest.approx(expected, rel=0.03)
    assert (kernel * turned[0] * turned[1]).sum() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("radius", [0.3, 1.0, 4.0, 7.5])
def test_a_disc_is_even_within_and_nothing_without(radius):
    kernel = disc_kernel(radius)
    reach = len(kernel) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(y, x)
    assert kernel.sum() == pytest.approx(1)
    assert np.ptp(kernel[distance <= radius - 0.5]) == 0 if radius >= 0.5 else kernel.max() > 0.9
    assert not kernel[distance >= radius + 0.5].any()
    if radius > 3:  # the area of the disc
        assert kernel.max() == pytest.approx(1 / (np.pi * radius**2), rel=0.05)


@pytest.mark.parametrize("shape", [(96, 72), (31, 40), (9, 5), (2, 3), (1, 1)])
def test_blur_is_the_convolution_mirrored_at_the_borders(shape):
    image = generator(0).integers(0, 256, (*shape, 3), np.uint8)
    for kernel in (gaussian_kernel(2, 0.7, 0.5), disc_kernel(2.6), np.ones((1, 1))):
        expected = [ndimage.convolve(image[..., c].astype(float), kernel, mode="mirror") for c in range(3)]
        blurred = degradations.blur(image, kernel)
        assert blurred.dtype == np.uint8 and blurred.shape == image.shape
        assert np.abs(blurred - np.stack(expected, -1)).max() < 0.51  # rounded


def test_blur_takes_high_frequencies_and_leaves_what_is_plain(photographs):
    energies = [high_frequencies(degradations.blur(photographs[0], gaussian_kernel(s, s))) for s in (0.1, 1, 2, 4)]
    assert energies[0] == high_frequencies(photographs[0])
    assert all(softer < 0.7 * sharper for sharper, softer in zip(energies, energies[1:]))
    across, along = (degradations.blur(photographs[0], gaussian_kernel(4, 0.2, angle)) for angle in (0, np.pi / 2))
    ratio = [np.square(np.diff(image.astype(float), axis=1)).sum() for image in (across, along)]
    assert ratio[0] < 0.5 * ratio[1]  # only what lies along the blur
    for value in (0, 7, 255):
        assert (degradations.blur(plain(value, 40), disc_kernel(3.3)) == value).all()


# Resizing


@pytest.mark.parametrize("method, resampling", [("area", "BOX"), ("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
def test_resizing_is_pillows(photographs, method, resampling):
    resized = degradations.resize(photographs[0], 37, 41, method)
    assert np.array_equal(resized, np.asarray(Image.fromarray(photographs[0]).resize((41, 37), Image.Resampling[resampling])))


def test_area_means_areas_and_repeats_no_pixel():
    image = generator(0).integers(0, 256, (12, 16, 3), np.uint8)
    means = image.reshape(3, 4, 4, 4, 3).mean((1, 3))
    assert np.abs(degradations.resize(image, 3, 4, "area") - means).max() <= 1
    ramp = np.arange(0, 250, 25, dtype=np.uint8)[None, :, None].repeat(10, 0).repeat(3, 2)
    assert (np.diff(degradations.resize(ramp, 10, 19, "area")[0, 2:-2, 0].astype(int)) > 0).all()


def test_nothing_is_shifted(photographs):
    """The mean place of what is bright stays, whatever the sizes between."""
    spot = np.zeros((128, 96, 3), np.uint8)
    spot[40:72, 20:60] = 255
    rows, columns = (np.arange(side) + 0.5 for side in (32, 24))
    for k in range(40):
        lr_img = photo(spot, 4, generator(k)).astype(float).mean(-1)
        lr_img = np.where(lr_img > 60, lr_img, 0)  # without noise
        assert (lr_img.sum(1) * rows).sum() / lr_img.sum() == pytest.approx(56 / 4, abs=0.5)
        assert (lr_img.sum(0) * columns).sum() / lr_img.sum() == pytest.approx(40 / 4, abs=0.5)


# Noise


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("sigma", [1.0, 6.0, 15.0])
def test_gaussian_noise_has_the_sigma_asked(sigma, gray):
    noise = degradations.gaussian_noise(plain(120), sigma, gray, generator(1)).astype(float) - 120
    assert noise.std() == pytest.approx(np.hypot(sigma, 12**-0.5), rel=0.02)  # rounding to whole levels adds its own
    assert abs(noise.mean()) < 0.1
    assert bool((np.ptp(noise, axis=-1) == 0).all()) == gray
    if not gray:
        assert abs(np.corrcoef(noise.reshape(-1, 3).T)[0, 1]) < 0.02


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("level", [30, 100, 200])
def test_photons_scatter_with_the_root_of_the_light(level, gray):
    noise = degradations.poisson_noise(plain(level), 12.0, gray, generator(2)).astype(float) - level
    assert noise.std() == pytest.approx(12 * np.sqrt(level / 255), rel=0.03)
    assert abs(noise.mean()) < 0.1
    assert bool((np.ptp(noise, axis=-1) == 0).all()) == gray
    assert not degradations.poisson_noise(plain(0), 12.0, gray, generator(2)).any()  # no light, no noise


def test_noise_is_clamped_and_does_not_wrap():
    for noise in (degradations.gaussian_noise, degradations.poisson_noise):
        white = noise(plain(255), 15.0, False, generator(3))
        assert white.min() > 150 and (white == 255).mean() > 0.4
    assert degradations.gaussian_noise(plain(0), 15.0, False, generator(3)).max() < 100


# Files


@pytest.mark.parametrize("quality", [30, 61, 95])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_jpeg_is_that_of_a_file(photographs, tmp_path, quality, subsampling):
    Image.fromarray(photographs[1]).save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.layer[0][1:3] == ((2, 2) if subsampling == "4:2:0" else (1, 1))  # brightness, per colour
        assert np.array_equal(degradations.jpeg(photographs[1], quality, subsampling), np.asarray(image))


@pytest.mark.parametrize("quality", [30, 95])
def test_webp_is_that_of_a_file_with_loss(photographs, tmp_path, quality):
    Image.fromarray(photographs[2]).save(tmp_path / "a.webp", quality=quality)
    with Image.open(tmp_path / "a.webp") as image:
        assert np.array_equal(degradations.webp(photographs[2], quality), np.asarray(image.convert("RGB")))
    assert not np.array_equal(degradations.webp(photographs[2], quality), photographs[2])


def test_a_lower_quality_loses_more(photographs):
    def loss(save, *options):
        return np.square(save(photographs[0], *options).astype(float) - photographs[0]).mean()

    for subsampling in ("4:2:0", "4:4:4"):
        losses = [loss(degradations.jpeg, quality, subsampling) for quality in (95, 60, 30)]
        assert 0 < losses[0] < losses[1] < losses[2]
    assert loss(degradations.webp, 90) < loss(degradations.webp, 30)
    assert loss(degradations.jpeg, 90, "4:4:4") < loss(degradations.jpeg, 90, "4:2:0")


# The whole


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 6), (21, 16)])
def test_every_scale_and_size(scale, size):
    hr_img = generator(4).integers(0, 256, (scale * size[0], scale * size[1], 3), np.uint8)
    before = hr_img.copy()
    for k in range(30):
        lr_img = photo(hr_img, scale, generator(scale, k))
        assert lr_img.shape == (*size, 3) and lr_img.dtype == np.uint8
    assert np.array_equal(hr_img, before)


@pytest.mark.parametrize("share", sorted(SHARES))
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_each_branch_works(photographs, monkeypatch, share, value):
    monkeypatch.setitem(PHOTO, share, value)
    for k in range(5):
        lr_img = photo(photographs[0], 4, generator(k), clean=0)
        assert lr_img.shape == (18, 24, 3) and lr_img.dtype == np.uint8
        assert np.abs(lr_img.mean((0, 1)) - photographs[0].mean((0, 1))).max() < 12  # still that picture


def test_each_part_is_used_about_as_often_as_it_should(monkeypatch):
    calls = {"gaussian_noise": [], "poisson_noise": [], "blur": [], "jpeg": [], "webp": [], "size_between": []}
    for name, seen in calls.items():
        part = getattr(degradations, name)
        monkeypatch.setattr(degradations, name, lambda *args, part=part, seen=seen: seen.append(args) or part(*args))
    hr_img = generator(5).integers(0, 256, (16, 16, 3), np.uint8)
    for k in range(1000):
        photo(hr_img, 4, generator(k), clean=0)
    shares = {"blur": PHOTO["blurred"], "size_between": PHOTO["detour"] + PHOTO["twice"] / (1 + PHOTO["twice"])}
    shares |= {"gaussian_noise": PHOTO["noisy"] * (1 - PHOTO["poisson"]), "poisson_noise": PHOTO["noisy"] * PHOTO["poisson"]}
    shares |= {"jpeg": PHOTO["saved"] * (1 - PHOTO["webp"]), "webp": PHOTO["saved"] * PHOTO["webp"]}
    for name, share in shares.items():
        assert len(calls[name]) == pytest.approx(1000 * (1 + PHOTO["twice"]) * share, rel=0.12), name
    assert {quality for _, quality, _ in calls["jpeg"]} == set(range(30, 96))
    assert {subsampling for *_, subsampling in calls["jpeg"]} == {"4:2:0", "4:4:4"}
    for name in ("gaussian_noise", "poisson_noise"):
        sigmas = [sigma for _, sigma, _, _ in calls[name]]
        assert 1 <= min(sigmas) < 2 and 14 < max(sigmas) <= 15 and {gray for _, _, gray, _ in calls[name]} == {True, False}


def test_the_clean_share_is_bicubic_to_the_last_bit(photographs):
    hr_img = photographs[2][:16, :16]
    expected = downscale(hr_img, 4)
    assert all(np.array_equal(photo(hr_img, 4, generator(k), clean=1), expected) for k in range(5))
    shares = [
        np.mean([np.array_equal(photo(hr_img, 4, generator(k), *clean), expected) for k in range(400)]) for clean in ((), (0,))
    ]
    assert shares[0] == pytest.approx(PHOTO["clean"], abs=0.05)
    assert shares[1] < 0.03


def test_a_picture_is_as_soft_at_every_scale(monkeypatch):
    """Lengths are in LR pixels: of the same LR image, two and four times as large, the same is left."""
    for share in ("twice", "detour", "noisy", "saved"):
        monkeypatch.setitem(PHOTO, share, 0)
    monkeypatch.setitem(PHOTO, "blurred", 1)
    monkeypatch.setattr(degradations, "draw_method", lambda rng: "area")
    small = ndimage.zoom(generator(6).integers(0, 256, (8, 8, 3), np.uint8), (8, 8, 1), order=1)  # 64 pixels
    large = [small.repeat(scale, 0).repeat(scale, 1) for scale in (2, 4, 8)]
    for k in range(10):
        lr_imgs = [photo(hr_img, scale, generator(k), clean=0).astype(int) for scale, hr_img in zip((2, 4, 8), large)]
        assert np.abs(lr_imgs[1] - lr_imgs[2]).max() <= 3 and np.abs(lr_imgs[0] - lr_imgs[2]).max() <= 6


def test_photo_is_a_function_of_the_image_and_the_seed(photographs):
    samples = {k: photo(photographs[0], 4, generator(7, k)) for k in range(20)}
    np.random.seed(1)  # the state of the process does not count
    torch.manual_seed(1)
    for k in reversed(range(20)):
        assert np.array_equal(photo(photographs[0].copy(), 4, generator(7, k)), samples[k])
    assert len({sample.tobytes() for sample in samples.values()}) >= 15  # all but the clean ones


# The stream of samples


def open_lists(folder, degradation="photo", scale=4, seed=0):
    return SRDataset(folder / "train_images.json", 32, seed, degradation=degradation, scale=scale)


def stream(dataset, *args, **kwargs):
    """The crops and the LR images of a loader as two tensors."""
    return [torch.cat(part) for part in zip(*(batch for batch, _ in train_loader(dataset, *args, **kwargs)))]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("pack", ["off", "on"])
def test_photo_leaves_the_crops_as_they_were(lists, pack):
    crops, lr_imgs = stream(open_lists(lists[pack]), 4, steps=20)
    bicubic = torch.cat([batch for batch, _ in train_loader(open_lists(lists[pack], "bicubic"), 4, steps=20)])
    assert torch.equal(crops, bicubic)
    assert lr_imgs.shape == (80, 3, 8, 8) and lr_imgs.dtype == torch.uint8
    dataset = open_lists(lists[pack])
    for k in (79, 3, 40):
        assert np.array_equal(dataset.lr_image(k, dataset[k]), lr_imgs[k])
    assert not torch.equal(stream(open_lists(lists[pack], seed=1), 4, steps=20)[1], lr_imgs)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_degradations(lists, workers):
    expected = stream(open_lists(lists["on"]), 8, steps=40)
    assert same(stream(open_lists(lists["on"]), 8, steps=40, workers=workers), expected)


@pytest.mark.parametrize("start", [1, 13, 32])
def test_resumed_degradations_go_on_where_they_stopped(lists, start):
    expected = stream(open_lists(lists["off"]), 8, steps=40)
    assert same(stream(open_lists(lists["off"]), 8, start, 40), [part[8 * start :] for part in expected])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_the_degradations(lists, world_size):
    whole = stream(open_lists(lists["on"]), 6, start=2, steps=12)
    ranks = [train_loader(open_lists(lists["on"]), 6, 2, 12, rank, world_size) for rank in range(world_size)]
    shared = [batch for shares in zip(*ranks, strict=True) for batch, _ in shares]
    assert same([torch.cat(part) for part in zip(*shared)], whole)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_pairs_and_their_ranges(lists, scale):
    batch, _ = next(train_loader(open_lists(lists["on"], scale=scale), 16))
    lr_imgs, hr_imgs = training_pair(batch, scale, torch.device("cpu"))
    assert lr_imgs.shape == (16, 3, 32 // scale, 32 // scale) and lr_imgs.dtype == hr_imgs.dtype == torch.float32
    assert torch.equal((255 * lr_imgs).round().byte(), batch[1]) and lr_imgs.min() >= 0 and lr_imgs.max() <= 1
    assert torch.equal(((hr_imgs + 1) * 127.5).round().byte(), batch[0])
    assert lr_imgs.is_contiguous(memory_format=torch.channels_last)
    # The pictures of a pair belong together.
    small = training_pair(batch[0], scale)[0]
    assert (lr_imgs.mean((2, 3)) - small.mean((2, 3))).abs().max() < 0.1


# Fixed by the image's name


def saved_as(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_test_images_are_degraded_by_their_names(tmp_path, photographs):
    def lr_image(name, *others, scale=4):
        paths = [saved_as(tmp_path / name, photographs[0]), *(saved_as(tmp_path / other, photographs[1]) for other in others)]
        return TestPairs(paths, scale, degradation="photo")[0][1]

    expected = lr_image("a/baby.png")
    assert np.array_equal(expected, photo_by_name(photographs[0], 4, "baby"))
    for elsewhere in ("b/c/baby.png", "baby.bmp", "x/baby.tif"):
        assert np.array_equal(lr_image(elsewhere), expected)
    assert np.array_equal(lr_image("a/baby.png", "b/baby.png", "b/other.png"), expected)  # where it is called a_baby.png
    assert len({lr_image(f"{name}.png").tobytes() for name in ("baby", "bird", "Baby", "баба", "baby2")}) == 5
    assert np.array_equal(photo_by_name(photographs[0], 4, "e\u0301te"), photo_by_name(photographs[0], 4, "\u00e9te"))
    assert photo_by_name(photographs[0], 4, "\udcff").shape == expected.shape  # a name that is no valid UTF-8
    assert lr_image("a/baby.png", scale=3).shape == (24, 32, 3)


def test_eval_measures_on_them(work, image_folder, lists, capsys):
    def figures(*flags):
        call("eval", "--test-sets", image_folder, "--device", "cpu", "--output", "out", *flags)
        results = json.loads(Path("out/metrics.json").read_text())
        return [entry["psnr"] for entry in results["bicubic"][image_folder.name]], Path("out/metrics.md").read_text()

    clean, table = figures("--scale", 2)
    assert table.startswith("| x2, PSNR")
    degraded, table = figures("--scale", 2, "--degradation", "photo")
    assert table.startswith("| x2 photo, PSNR")
    assert figures("--scale", 2, "--degradation", "photo")[0] == degraded
    assert all(a <= b + 0.1 for a, b in zip(degraded, clean, strict=True)) and np.mean(degraded) < np.mean(clean) - 1
    error = refusal(capsys, "eval", "--test-sets", image_folder, "--lr-folder", image_folder, "--degradation", "photo")
    assert "--lr-folder" in error and "--degradation photo" in error


# Whole runs


def flags_of(lists, name, *more):
    flags = ["--data-folder", lists["on"], "--run", name, "--device", "cpu", "--precision", "fp32", "--workers", 0]
    flags += ["--blocks", 1, "--channels", 4, "--crop-size", 32, "--batch-size", 4, "--save-every", 2, "--validate-every", 2]
    return [*flags, "--steps", 4, *more]


def last(name):
    return torch.load(f"checkpoints/{name}/last.pth", weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_on_photographs_is_the_uninterrupted_one(work, lists, workers):
    call("train_srresnet", *flags_of(lists, "straight", "--degradation", "photo"))
    call("train_srresnet", *flags_of(lists, "resumed", "--degradation", "photo"))
    for newest in ("last", "step_00000004"):
        Path(f"checkpoints/resumed/{newest}.pth").unlink()
    call("train_srresnet", *flags_of(lists, "resumed", "--degradation", "photo", "--resume", "--workers", workers))
    call("train_srresnet", *flags_of(lists, "bicubic"))
    straight, resumed, bicubic = (last(name)["weights"] for name in ("straight", "resumed", "bicubic"))
    assert all(torch.equal(resumed[key], value) for key, value in straight.items())
    assert not all(torch.equal(bicubic[key], value) for key, value in straight.items())
    logs = [Path(f"results/{name}/log.csv").read_text() for name in ("straight", "resumed")]
    assert logs[0] == logs[1]


def test_the_second_stage_takes_them_too(work, lists, vgg_file):
    flags = flags_of(lists, "gan", "--degradation", "photo", "--init", "none", "--vgg-weights", vgg_file, "--vgg-layer", 22)
    call("train_srgan", *flags, "--discriminator-channels", 4)
    assert last("gan")["step"] == 4 and last("gan")["args"]["degradation"] == "photo"


def test_a_run_of_before_the_flag_was_one_of_bicubic(work, lists, capsys):
    call("train_srresnet", *flags_of(lists, "old"))
    expected = last("old")["weights"]
    for path in (Path("checkpoints/old/last.pth"), Path("checkpoints/old/step_00000004.pth")):
        path.unlink()
    path = Path("checkpoints/old/step_00000002.pth")
    state = torch.load(path, weights_only=True)
    del state["args"]["degradation"]
    torch.save(state, path)
    error = refusal(capsys, "train_srresnet", *flags_of(lists, "old", "--resume", "--degradation", "photo"))
    assert "--degradation was bicubic, is photo" in error
    call("train_srresnet", *flags_of(lists, "old", "--resume"))
    assert all(torch.equal(last("old")["weights"][key], value) for key, value in expected.items())


def test_a_run_on_photographs_does_not_go_on_with_bicubic(work, lists, capsys):
    call("train_srresnet", *flags_of(lists, "photos", "--degradation", "photo"))
    for more in ((), ("--degradation", "bicubic")):
        error = refusal(capsys, "train_srresnet", *flags_of(lists, "photos", "--resume", *more))
        assert "--degradation was photo, is bicubic" in error


def test_validation_images_are_degraded_as_the_training_is(work, lists):
    for name, more in (("photos", ["--degradation", "photo"]), ("clean", [])):
        call("train_srresnet", *flags_of(lists, name, "--learning-rate", 0, *more))
    first = [Path(f"results/{name}/log.csv").read_text().splitlines()[-1] for name in ("photos", "clean")]
    assert first[0].split(",")[-3:] != first[1].split(",")[-3:]  # of the same weights, which a rate of zero leaves
