"""Training samples are a pure function of their number, reach every part of every image, and are degraded as Pillow does."""

import itertools
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from conftest import make_lists
from PIL import Image

import datasets
import utils
from datasets import CROPS_PER_IMAGE, WINDOW, SRDataset, train_loader, training_pair
from degradations import degrade
from image_lists import read_list
from pictures.pixels import crop_to_multiple, downscale, read_image

SIZE = 32


def open_lists(folder, seed=0, crop_size=SIZE):
    return SRDataset(folder / "train_images.json", crop_size, seed)


def stream(dataset, *args, **kwargs):
    """The batches of a loader as one tensor, and all that it reported of bad files."""
    batches = list(train_loader(dataset, *args, **kwargs))
    return torch.cat([batch for batch, _ in batches]), [line for _, bad_files in batches for line in bad_files]


def list_of(folder, images, pack=False):
    """A list of the given pixels, in the given order."""
    folder.mkdir(parents=True)
    names = [f"{i:03d}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name, compress_level=0)
    list_file = folder / "train_images.json"
    utils.write_text(list_file, str(names).replace("'", '"'))
    if pack:
        import create_data_lists

        sizes = {folder / name: image.shape[:2] for name, image in zip(names, images, strict=True)}
        create_data_lists.write_pack(list_file, sizes, "on", 8)
    return folder


# Degradation


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_degrade_is_pillows_bicubic_to_one_grey_level(photographs, scale):
    random = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    edges = np.where(random > 127, 255, 0).astype(np.uint8)  # where bicubic overshoots and has to be clamped
    for hr_img in (photographs[0], photographs[1], photographs[6], random, edges):
        height, width = hr_img.shape[0] // scale * scale, hr_img.shape[1] // scale * scale
        hr_img = hr_img[:height, :width]
        lr_imgs = degrade(torch.from_numpy(hr_img.copy()).permute(2, 0, 1)[None], scale)
        assert lr_imgs.shape == (1, 3, height // scale, width // scale) and lr_imgs.dtype == torch.float32
        levels = 255 * lr_imgs[0].permute(1, 2, 0).double().numpy()
        assert np.abs(levels - levels.round()).max() < 1e-4  # whole grey levels, as a file would hold
        difference = np.abs(levels.round() - downscale(hr_img, scale))
        assert difference.max() <= 1 and difference.mean() < 0.2


def test_training_pairs_and_their_ranges(photographs):
    crops = torch.from_numpy(np.stack([photographs[0][:SIZE, :SIZE], np.zeros((SIZE, SIZE, 3), np.uint8)])).permute(0, 3, 1, 2)
    crops[1, :, :, SIZE // 2 :] = 255
    lr_imgs, hr_imgs = training_pair(crops, 4)
    assert lr_imgs.shape == (2, 3, 8, 8) and hr_imgs.shape == (2, 3, SIZE, SIZE)
    assert lr_imgs.dtype == hr_imgs.dtype == torch.float32
    assert (lr_imgs[1].min(), lr_imgs[1].max()) == (0, 1) and (hr_imgs[1].min(), hr_imgs[1].max()) == (-1, 1)
    assert torch.equal(((hr_imgs + 1) * 127.5).round().byte(), crops)
    assert torch.equal(lr_imgs, degrade(crops, 4))


# Crops


def position_image(height, width):
    """Each pixel holds its own row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("pack", [False, True])
def test_crops_reach_every_position_flip_and_turn(tmp_path, pack):
    dataset = open_lists(list_of(tmp_path / "data", [position_image(20, 25)], pack), crop_size=16)
    assert (dataset.pack is not None) == pack
    square = position_image(16, 16)[..., :2]
    views = {np.rot90(flipped, turn).tobytes() for flipped in (square, square[:, ::-1]) for turn in range(4)}
    assert len(views) == 8
    seen = {"top": set(), "left": set(), "view": set()}
    for k in range(600):
        crop = dataset[k].transpose(1, 2, 0)
        corner = crop.min((0, 1))
        view = np.ascontiguousarray(crop[..., :2] - corner[:2]).tobytes()
        assert crop.shape == (16, 16, 3) and view in views  # whole, and not scrambled
        for key, value in zip(seen, (int(corner[0]), int(corner[1]), view)):
            seen[key].add(value)
    # 20 - 16 and 25 - 16 are the last positions.
    assert seen == {"top": set(range(5)), "left": set(range(10)), "view": views}


def test_a_crop_may_be_the_whole_image(tmp_path):
    dataset = open_lists(list_of(tmp_path / "data", [position_image(16, 16)]), crop_size=16)
    assert all(dataset[k].min() == 0 and dataset[k].max() == 15 for k in range(20))


# The order of the images


def grey_levels(tmp_path, count, pack):
    """A data set whose image number i is plain grey of level i."""
    return open_lists(list_of(tmp_path / "data", [np.full((16, 16, 3), i, np.uint8) for i in range(count)], pack), crop_size=16)


def test_an_epoch_visits_each_image_once_with_a_pack(tmp_path):
    dataset = grey_levels(tmp_path, 50, pack=True)
    epochs = [[int(dataset[k].max()) for k in range(50 * epoch, 50 * epoch + 50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))


def test_an_epoch_visits_each_image_four_times_without_a_pack(tmp_path):
    dataset = grey_levels(tmp_path, 96, pack=False)
    # Of three windows two whole epochs are made, and a round through a window has no image of an epoch twice.
    visits = [[dataset.visit_of(k) for k in range(start, start + WINDOW)] for start in range(0, 3 * 4 * WINDOW, WINDOW)]
    assert CROPS_PER_IMAGE == 4 and all(len(set(turn)) == WINDOW for turn in visits)
    samples = [(visit // 96, int(dataset[k].max())) for k, visit in enumerate(itertools.chain(*visits))]
    assert sorted(samples) == [(epoch, image) for epoch in (0, 1) for image in range(96) for _ in range(4)]
    orders = [[image for epoch, image in dict.fromkeys(samples) if epoch == number] for number in (0, 1)]
    assert orders[0] != orders[1]


def test_an_image_is_decoded_once_for_its_crops(tmp_path, monkeypatch):
    dataset = grey_levels(tmp_path, 2 * WINDOW, pack=False)
    opened = []
    monkeypatch.setattr(datasets, "read_image", lambda path, white: opened.append(path) or read_image(path, white))
    stream(dataset, 16, steps=2 * WINDOW * CROPS_PER_IMAGE // 16)
    assert sorted(opened) == dataset.paths


# A pure function of (seed, k)


@pytest.mark.parametrize("pack", ["off", "on"])
def test_sample_k_depends_on_the_seed_and_k_alone(lists, pack):
    ks = [0, 1, 5, 63, 64, 255, 256, 257, 1000, 12345]
    straight, backwards = open_lists(lists[pack]), open_lists(lists[pack])
    samples = {k: straight[k] for k in ks}
    for k in reversed(ks):
        assert np.array_equal(backwards[k], samples[k])
        assert np.array_equal(open_lists(lists[pack])[k], samples[k])
    other = open_lists(lists[pack], seed=1)
    assert sum(np.array_equal(other[k], samples[k]) for k in ks) == 0


@pytest.mark.parametrize("pack", ["off", "on"])
@pytest.mark.parametrize("batch_size", [4, 3])  # 3 does not divide a window
def test_the_stream_is_that_of_the_numbers(lists, pack, batch_size):
    steps = 300 // batch_size
    samples, bad_files = stream(open_lists(lists[pack]), batch_size, steps=steps)
    dataset = open_lists(lists[pack])
    assert bad_files == [] and samples.dtype == torch.uint8
    assert torch.equal(samples, torch.from_numpy(np.stack([dataset[k] for k in range(batch_size * steps)])))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_stream(lists, workers):
    expected, _ = stream(open_lists(lists["off"]), 4, steps=160)
    assert torch.equal(stream(open_lists(lists["off"]), 4, steps=160, workers=workers)[0], expected)


@pytest.mark.parametrize("start", [1, 37, 64, 65])
def test_a_resumed_stream_goes_on_where_it_stopped(lists, start):
    expected, _ = stream(open_lists(lists["off"]), 4, steps=80)
    assert torch.equal(stream(open_lists(lists["off"]), 4, start, 80)[0], expected[4 * start :])


@pytest.mark.parametrize("pack", ["off", "on"])
def test_the_shares_of_the_ranks_make_up_the_batch_of_one_process(lists, pack):
    whole = [batch for batch, _ in train_loader(open_lists(lists[pack]), 6, start=2, steps=50)]
    for world_size in (2, 3):
        ranks = [train_loader(open_lists(lists[pack]), 6, 2, 50, rank, world_size) for rank in range(world_size)]
        shared = [torch.cat([batch for batch, _ in shares]) for shares in zip(*ranks, strict=True)]
        assert len(whole) == len(shared) == 48
        assert all(torch.equal(a, b) for a, b in zip(whole, shared))


def test_the_loader_has_no_end_unless_told(lists):
    batches = train_loader(open_lists(lists["on"]), 2)
    assert sum(len(batch) for batch, _ in itertools.islice(batches, 300)) == 600


# Images that cannot be used


@pytest.fixture
def damaged(tmp_path, image_folder):
    """A list of ten images, of which one has gone, one is cut short, one is text and one has become small."""
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    make_lists(folder, folder, "--pack", "off")
    gone, short, text, small = (path for path in read_list(folder / "train_images.json")[2:6])
    gone.unlink()
    short.write_bytes(short.read_bytes()[:2000])
    text.write_text("no image")
    Image.new("RGB", (SIZE - 1, 100)).save(small)
    return folder, (gone, short, text, small)


def test_bad_files_are_replaced_and_named(damaged):
    folder, bad = damaged
    dataset = open_lists(folder)
    samples = [dataset[k] for k in range(256)]
    for path, reason in zip(bad, ("no such file", "cannot be read", "cannot be read", "smaller than the crop")):
        assert any(str(path) in line and reason in line for line in dataset.bad_files)
    assert all(any(str(path) in line for path in bad) for line in dataset.bad_files)
    again = open_lists(folder)
    assert all(np.array_equal(again[k], samples[k]) for k in reversed(range(256)))
    # The samples of the other images are those they would have been without the damage.
    readable = [k for k in range(256) if dataset.paths[dataset.image_number(dataset.visit_of(k))] not in bad]
    assert 0 < len(readable) < 256
    for k in readable[:20]:
        image = read_image(dataset.paths[dataset.image_number(dataset.visit_of(k))])
        assert {tuple(pixel) for pixel in samples[k].reshape(3, -1).T} <= {tuple(pixel) for pixel in image.reshape(-1, 3)}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_do_not_change_with_the_workers(damaged, workers):
    folder, bad = damaged
    expected, _ = stream(open_lists(folder), 4, steps=40)
    samples, lines = stream(open_lists(folder), 4, steps=40, workers=workers)
    assert torch.equal(samples, expected)
    assert all(any(str(path) in line for line in lines) for path in bad)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_any_usable_image_the_loader_says_so(tmp_path, workers):
    folder = list_of(tmp_path / "data", [position_image(16, 16)] * 3)
    with pytest.raises(utils.UserError, match="no image can be used.*smaller than the crop of 32"):
        next(train_loader(open_lists(folder), 4, workers=workers))


@pytest.mark.parametrize("pack", [False, True])
def test_a_few_usable_images_of_many_will_do(tmp_path, pack):
    """With any seed, and again after a stop: which image is drawn in place of another is a function of the sample."""
    folder = list_of(tmp_path / "data", [position_image(16, 16)] * 57 + [position_image(32, 40)], pack)
    for seed in range(3):
        dataset = SRDataset(folder / "train_images.json", 32, seed)
        assert all(dataset[k].shape == (3, 32, 32) for k in range(0, 300, 4))  # a visit each, or four
        assert dataset.too_small == (57 if pack else 0)


def test_the_loader_takes_what_crops_makes(lists, monkeypatch):
    """Which is where the README sends those who want another augmentation."""
    monkeypatch.setattr(SRDataset, "crops", lambda self, k: [np.full((3, 32, 32), 7, np.uint8)])
    batch, _ = next(train_loader(open_lists(lists["on"]), 4))
    assert (batch == 7).all()


# Packs


def test_a_pack_holds_the_pixels_of_the_files(lists):
    dataset = open_lists(lists["on"])
    assert len(dataset.paths) == 10
    for number, path in enumerate(dataset.paths):
        assert np.array_equal(dataset.pack[number], read_image(path))


def test_a_worker_that_is_no_fork_opens_the_pack_itself(lists):
    dataset = open_lists(lists["on"])
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000 < dataset.pack.pixels.nbytes
    assert np.array_equal(pickle.loads(sent)[7], dataset[7])


def test_names_of_test_images_are_unique(tmp_path, photographs):
    paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/y.png")]
    for path, photograph in zip(paths, photographs):
        for folder in (tmp_path, tmp_path / "lr"):
            (folder / path.relative_to(tmp_path)).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph).save(path)
        small = downscale(crop_to_multiple(photograph, 4), 4)
        Image.fromarray(small).save(tmp_path / "lr" / path.relative_to(tmp_path))
    given, made = datasets.TestPairs(paths, 4, tmp_path / "lr"), datasets.TestPairs(paths, 4)
    assert given.names == ["a_x.png", "b_x.png", "y"]
    for (_, lr_img, _), (_, expected, _) in zip(given, made):
        assert np.array_equal(lr_img, expected)


def test_no_two_test_images_have_one_name(tmp_path, photographs):
    paths = [tmp_path / name for name in ("x/y/a.png", "x_y/a.png", "z/a.png")]
    for path, photograph in zip(paths, photographs):
        path.parent.mkdir(parents=True)
        Image.fromarray(photograph).save(path)
    assert datasets.TestPairs(paths, 4).names == ["x_y_a.png", "x_y_a.png_", "z_a.png"]


def test_a_pack_that_is_older_than_its_images_is_refused(tmp_path, image_folder):
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    make_lists(tmp_path / "data", folder, "--pack", "on")
    path, content = read_list(tmp_path / "data/train_images.json")[3], open_lists(tmp_path / "data").content
    shutil.move(path, tmp_path / "away.png")  # what is packed may go
    assert open_lists(tmp_path / "data").content == content
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(utils.UserError, match=f"older than .*{path.name}"):
        open_lists(tmp_path / "data")
    make_lists(tmp_path / "data", folder, "--pack", "on")
    assert open_lists(tmp_path / "data").content != content


def test_a_pack_of_another_list_or_cut_short_is_refused(tmp_path, image_folder):
    make_lists(tmp_path, image_folder, "--pack", "on")
    pixels, list_file = tmp_path / "train_images.pack", tmp_path / "train_images.json"
    content = pixels.read_bytes()
    pixels.write_bytes(content[:-1])
    with pytest.raises(utils.UserError, match="not whole"):
        open_lists(tmp_path)
    pixels.unlink()
    with pytest.raises(utils.UserError, match="not whole"):
        open_lists(tmp_path)
    pixels.write_bytes(content)
    assert open_lists(tmp_path)[0].shape == (3, SIZE, SIZE)
    names = list_file.read_text().splitlines()
    list_file.write_text("\n".join([names[0], names[2], names[1], *names[3:]]))  # same images, other order
    with pytest.raises(utils.UserError, match="another list"):
        open_lists(tmp_path)


# Reading images


def test_images_of_every_mode_are_read_as_rgb(tmp_path):
    def read(image, name="image.png", **options):
        image.save(tmp_path / name, **options)
        pixels = read_image(tmp_path / name)
        assert pixels.dtype == np.uint8
        return pixels

    assert (read(Image.new("L", (5, 4), 77)) == 77).all()
    assert read(Image.new("L", (5, 4), 77)).shape == (4, 5, 3)
    assert (read(Image.new("1", (5, 4), 1)) == 255).all()
    assert (read(Image.new("CMYK", (5, 4), (0, 0, 0, 0)), "image.jpg") == 255).all()
    assert (read(Image.new("RGBA", (5, 4), (10, 20, 30, 255))) == [10, 20, 30]).all()
    assert (read(Image.new("RGBA", (5, 4), (10, 20, 30, 0))) == 255).all()  # on white
    assert (read(Image.new("P", (5, 4), 0), transparency=0) == 255).all()
    assert (read(Image.fromarray(np.full((4, 5), 0x80FF, np.uint16))) == 0x80).all()  # the upper half of 16 bits
    # A camera held upright notes that its rows are columns.
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1))
    upright = read(lying, "image.jpg", exif=exif, quality=100)
    assert upright.shape == (8, 16, 3) and upright[4, 2, 2] > 200 and upright[4, 13, 0] > 200


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a.png": 1}', "[1, 2]", '"text"', "[", "3", "null"])
def test_a_list_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "train_images.json").write_text(content)
    with pytest.raises(utils.UserError, match="create_data_lists.py"):
        open_lists(tmp_path)


# Shares of the crops


def test_shares_of_the_crops_are_gray_or_stretched_and_the_rest_is_as_before(lists):
    plain = open_lists(lists["on"])
    changed = SRDataset(lists["on"] / "train_images.json", SIZE, 0, gray_share=0.3, stretch_share=0.3)
    kinds = {"gray": 0, "stretched": 0, "same": 0}
    for k in range(200):
        before, after = plain[k], changed[k]
        assert after.shape == before.shape and after.dtype == np.uint8
        is_gray = bool((after == after[:1]).all() and not (before == before[:1]).all())
        stretched = after.min() == 0 and after.max() == 255 and not (before.min() == 0 and before.max() == 255)
        kinds["gray"] += is_gray
        kinds["stretched"] += bool(stretched)
        kinds["same"] += np.array_equal(before, after)
        assert is_gray or stretched or np.array_equal(before, after) or before.min() == 0 or before.max() == 255
    assert all(30 < kinds[kind] < 90 for kind in ("gray", "stretched")) and 60 < kinds["same"] < 140
    assert np.array_equal(changed[7], SRDataset(lists["on"] / "train_images.json", SIZE, 0, 0.3, 0.3)[7])


def test_a_share_of_the_crops_is_one_colour_and_the_rest_is_as_before(lists):
    list_file = lists["on"] / "train_images.json"
    plain, changed = SRDataset(list_file, SIZE), SRDataset(list_file, SIZE, flat_share=0.5)
    flat = {k: changed[k] for k in range(200) if not np.array_equal(changed[k], plain[k])}
    assert 70 < len(flat) < 130
    assert all(crop.shape == plain[0].shape and (crop == crop[:, :1, :1]).all() for crop in flat.values())
    colours = [tuple(crop[:, 0, 0]) for crop in flat.values()]
    grays = [colour for colour in colours if len(set(colour)) == 1]
    assert min(colours.count((level,) * 3) for level in (0, 255)) > 10 and len(set(grays)) > 10  # and any others
    assert len(grays) < len(colours) - 10


def test_a_flat_crop_is_spoiled_as_a_photograph_is(lists):
    dataset = SRDataset(lists["on"] / "train_images.json", SIZE, flat_share=1, degradation="photo")
    (hr_imgs, lr_imgs), _ = dataset.__getitems__(range(40))
    colours, means = (imgs.float().mean((2, 3)) for imgs in (hr_imgs, lr_imgs))
    assert (hr_imgs == hr_imgs[:, :, :1, :1]).all() and (colours - means).abs().max() < 20  # noise is cut at white
    assert lr_imgs.float().std((2, 3)).max() > 3


def test_a_share_of_the_crops_is_drawn_and_the_rest_is_as_before(lists):
    list_file = lists["on"] / "train_images.json"
    plain, changed = SRDataset(list_file, SIZE), SRDataset(list_file, SIZE, drawn_share=0.5)
    drawn = {k: changed[k] for k in range(200) if not np.array_equal(changed[k], plain[k])}
    assert 70 < len(drawn) < 130 and all(crop.shape == plain[0].shape and crop.dtype == np.uint8 for crop in drawn.values())
    again = SRDataset(list_file, SIZE, drawn_share=0.5)
    assert all(np.array_equal(again[k], drawn[k]) for k in reversed(list(drawn)[:20]))


def test_a_drawing_is_lines_on_flat_ground():
    """Most of its pixels lie within the grain of one colour, and some clearly beyond, but for a few faint or crowded ones."""
    drawings = [datasets.drawing(np.random.default_rng(seed), 64) for seed in range(60)]
    ground = [np.median(drawing, axis=(0, 1)) for drawing in drawings]
    away = np.array([(np.abs(drawing - colour).max(2) > 30).mean() for drawing, colour in zip(drawings, ground)])
    assert np.mean(away < 0.6) > 0.8 and np.mean(away > 0.01) > 0.8 and np.mean((away > 0.01) & (away < 0.6)) > 0.7
    assert len({drawing.tobytes() for drawing in drawings}) > 50
    assert np.mean([(drawing == drawing[..., :1]).all() for drawing in drawings]) > 0.3  # gray ones, so that they stay gray


@pytest.mark.parametrize("side", [4, 8, 16])
def test_the_smallest_crops_can_be_drawn(side):
    with warnings.catch_warnings(action="error"):  # as of a division by the deviation of a single value
        drawings = [datasets.drawing(np.random.default_rng(seed), side) for seed in range(60)]
    assert all(drawing.shape == (side, side, 3) and drawing.dtype == np.uint8 for drawing in drawings)


def test_grain_is_faint_and_its_spots_are_of_several_sizes():
    grains = [datasets.grain(np.random.default_rng(seed), 64)[..., 0] for seed in range(200)]
    assert 0.2 < np.mean([not grain.any() for grain in grains]) < 0.5 and max(grain.std() for grain in grains) < 2.6
    grains = [grain - grain.mean() for grain in grains if grain.any()]
    alike = [(grain[:, 1:] * grain[:, :-1]).mean() / grain.var() for grain in grains]
    assert np.quantile(alike, 0.2) < 0.2 and np.quantile(alike, 0.8) > 0.6


def test_a_gray_crop_has_the_luma_of_bt601_and_a_flat_one_can_be_stretched():
    crop = np.zeros((4, 4, 3), np.uint8)
    crop[..., 1] = 200
    assert (datasets.gray(crop) == 117).all()
    assert datasets.stretched(np.full((8, 8, 3), 90, np.uint8), 5, 5).max() <= 255
