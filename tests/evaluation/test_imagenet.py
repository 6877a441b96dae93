"""The paper's protocol: which pictures, in which order, cut how."""

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.evaluation import imagenet
from tokenflow.evaluation.pictures import Pictures, batches
from tokenflow.tokenizer.processing import center_crop


def never(name, error):
    raise AssertionError(f"{name}: {error}")


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def folder(tmp_path):
    """Two classes; the files as ImageNet names them."""
    for i, name in enumerate(("n02/b.JPEG", "n02/a.JPEG", "n01/z.JPEG")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (90, 70), (100 * i, 0, 0)).save(tmp_path / name)
    return tmp_path


def test_every_picture_in_order_of_classes_and_names(folder):
    found = imagenet.load(folder, size=32)
    assert list(found.names) == ["n01/z.JPEG", "n02/a.JPEG", "n02/b.JPEG"]
    (images,) = batches(found, 8, never)
    assert images.shape == (3, 3, 32, 32) and images[0, 0, 0, 0] in range(195, 206)


@pytest.mark.parametrize("name", ["recon_metrics_0", "recon_metrics_2"])
def test_the_crop_is_the_published_one(golden, name, tmp_path):
    case = golden(name)
    (tmp_path / "class").mkdir()
    picture = Image.fromarray(case["in/image_hwc"].numpy())
    picture.save(tmp_path / "class" / "one.png")
    (image,) = batches(imagenet.load(tmp_path, size=case.meta["crop"]), 1, never)
    assert torch.equal(image[0].permute(1, 2, 0), case["out/center_crop"])


def test_pictures_are_taken_as_they_are_stored(tmp_path):
    """A rotation tag is not applied, transparency is not laid on white."""
    (tmp_path / "class").mkdir()
    turned, clear = noise(60, 40), noise(60, 40, seed=1)
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "class" / "a.png", exif=exif)
    layer = clear.copy()
    layer.putalpha(0)
    layer.save(tmp_path / "class" / "b.png")
    (images,) = batches(imagenet.load(tmp_path, size=32), 2, never)
    for image, picture in zip(images, (turned, clear), strict=True):
        want = np.array(center_crop(picture, 32))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), want)


def test_broken_pictures_are_told(folder):
    (folder / "n01" / "y.JPEG").write_bytes(b"no picture")
    whole = (folder / "n02" / "a.JPEG").read_bytes()
    (folder / "n02" / "a.JPEG").write_bytes(whole[: len(whole) // 2])
    told = []
    found = imagenet.load(folder, size=32)
    (images,) = batches(found, 8, lambda name, error: told.append(name))
    assert told == ["n01/y.JPEG", "n02/a.JPEG"] and len(images) == 2


def test_a_folder_of_another_kind_is_refused(folder):
    Image.new("RGB", (8, 8)).save(folder / "astray.png")
    with pytest.raises(ValueError, match=r"one folder for each class.*astray\.png"):
        imagenet.load(folder, size=32)


def test_another_number_of_pictures_is_said(folder):
    said = imagenet.complaint(imagenet.load(folder, size=32))
    assert "50,000 pictures of 1,000 classes" in said and "3 of 2" in said
    names = [f"n{i % 1000}/{i}.JPEG" for i in range(50_000)]
    assert imagenet.complaint(Pictures(names, never)) is None
