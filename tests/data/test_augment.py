"""Crops for training: the recorded ones, bit for bit, drawn from one generator."""

import random

import numpy as np
import pytest
import torch
from data.files import picture
from PIL import Image

from tokenflow.data.augment import augmented

CASES = ["recon_metrics_0", "recon_metrics_1", "recon_metrics_2"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["picture", "tensor"])
def test_crops_are_the_recorded_ones(golden, case, as_tensor):
    case = golden(case)
    pixels, size = case["in/image_hwc"], case.meta["crop"]
    image = pixels.permute(2, 0, 1) if as_tensor else Image.fromarray(pixels.numpy())
    for augment in ("none", "adm"):
        rng = random.Random(case.meta["seed"])
        made = augmented(image, size, rng, augment=augment)
        name = {"none": "out/center_crop", "adm": "out/random_crop"}[augment]
        assert torch.equal(made, case[name].permute(2, 0, 1))


@pytest.mark.parametrize("augment", ["none", "adm"])
def test_a_flip_mirrors_what_the_same_crop_gives(augment):
    image, mirrored = picture(0, (50, 40)), 0
    for seed in range(20):
        plain = augmented(image, 16, random.Random(seed), augment=augment)
        made = augmented(image, 16, random.Random(seed), augment=augment, flip=True)
        assert torch.equal(made, plain) or torch.equal(made, plain.flip(2))
        mirrored += torch.equal(made, plain.flip(2))
    assert 3 < mirrored < 17


def test_a_drawn_picture_of_the_right_size_is_taken_as_it_is():
    image = torch.from_numpy(np.array(picture(1, (16, 16)))).permute(2, 0, 1)
    made = augmented(image, 16, random.Random(0))
    assert torch.equal(made, image)
    made.zero_()  # is no view of what the source may keep
    assert image.any()


def test_other_modes_become_rgb():
    made = augmented(Image.new("L", (20, 20), 9), 16, random.Random(0))
    assert made.shape == (3, 16, 16) and (made == 9).all()


@pytest.mark.parametrize(
    "image, error, words",
    [
        (torch.zeros(3, 8, 8), ValueError, r"uint8 .*got torch.float32 \[3, 8, 8\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), ValueError, r"\[8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint8), TypeError, "got ndarray"),
        (Image.new("RGB", (500, 1)), ValueError, "100 times longer"),
    ],
    ids=["float", "layout", "array", "strip"],
)
@pytest.mark.parametrize("augment", ["none", "adm"])
def test_errors_say_what_must_hold(image, error, words, augment):
    with pytest.raises(error, match=words):
        augmented(image, 8, random.Random(0), augment=augment)


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match=r"one of \['none', 'adm'\], got 'zoom'"):
        augmented(picture(0), 8, random.Random(0), augment="zoom")
