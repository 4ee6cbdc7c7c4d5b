"""Photographs spoiled in ways that training does not have: LR and HR belong together, and the weights for them help."""

import os
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

from inference import upscale
from metrics import load_lpips, psnr
from pictures.pixels import enlarge
from upscaling import network_chooser

sys.path.insert(0, str(ROOT / "benchmarks"))

import photo_cases


def arrays(case, name):
    return tuple(np.asarray(image) for image in case(photo_cases.photograph(name)))


@pytest.mark.parametrize("case", photo_cases.CASES)
@pytest.mark.parametrize("name", ["chelsea", "camera"])
def test_the_lr_image_lies_where_the_hr_image_does(case, name):
    lr, hr = arrays(case, name)
    assert hr.shape[0] == 4 * lr.shape[0] and hr.shape[1] == 4 * lr.shape[1]
    here = psnr(enlarge(lr, 4), hr, 16)
    for axis in (0, 1):
        for places in (-1, 1):
            assert here > psnr(enlarge(np.roll(lr, places, axis), 4), hr, 16) + 0.3
    assert all(np.array_equal(*pair) for pair in zip(arrays(case, name), (lr, hr)))  # the same each time


def test_noise_is_taken_away_by_the_weights_for_photographs():
    lr, hr = arrays(photo_cases.noisy, "chelsea")
    made = photo_cases.enlargements(lr, torch.device("cpu"), "fp32")
    assert psnr(made["srresnet_x4_photo"], hr, 4) > psnr(made["bicubic"], hr, 4) + 0.5
    assert psnr(made["srgan_x4_photo"], hr, 4) > psnr(made["srgan_x4"], hr, 4) + 3


def test_what_has_hardly_a_fault_is_not_spoiled():
    """The photo SRGAN drew a mesh of coloured dots there once, which no figure of heavy faults had told."""
    gains, (network, _) = {}, network_chooser("photo", torch.device("cpu"), "fp32")(True)
    for name in photo_cases.PHOTOGRAPHS:
        lr, hr = arrays(photo_cases.well_kept, name)
        gains[name] = psnr(upscale(network, lr), hr, 4) - psnr(enlarge(lr, 4), hr, 4)
    assert min(gains.values()) > -2 and gains["brick"] > 4, gains  # texture costs decibels, dots cost more


@pytest.mark.skipif("ALEXNET_WEIGHTS" not in os.environ, reason="ALEXNET_WEIGHTS names no file of AlexNet, for LPIPS")
@pytest.mark.parametrize("case", [*photo_cases.UNSEEN, photo_cases.well_kept])
def test_faults_that_are_not_in_the_training_come_out_no_worse_than_by_bicubic(case):
    lpips = load_lpips(os.environ["ALEXNET_WEIGHTS"], torch.device("cpu"))
    distances = {}
    for name in photo_cases.PHOTOGRAPHS:
        lr, hr = arrays(case, name)
        for method, sr in photo_cases.enlargements(lr, torch.device("cpu"), "auto").items():
            distances.setdefault(method, []).append(lpips(sr, hr))
    assert np.mean(distances["srgan_x4_photo"]) < np.mean(distances["bicubic"])
