"""The Inception of FID: recorded from torchvision's with FID's pooling put in."""

import hashlib
import json
import math

import pytest
import torch
from golden_weights import hash_image, hash_tensor

from tokenflow.evaluation.inception import Inception

# torchvision 0.28.0, inception_v3 with average pooling that leaves padding out and a
# last block that pools by maximum; the weights of `weight`, the picture of `image`.
KEYS = "53dfbd0c1bd592f43bd9a5c50b8fb183575be4d885e6f9835ec99912ac69d1f7"
FEATURES = {
    0: 0.0,
    1: 0.20586306,
    2: 0.01755862,
    3: 0.54797292,
    1000: 0.02139369,
    1001: 0.47178808,
    2046: 0.71570009,
    2047: 0.04132096,
}
LENGTH, LARGEST = 52.6653748, 5.9835


def weight(key, shape):
    if len(shape) == 4:  # keeps the size of what goes through fifty ReLUs
        return hash_tensor(key, shape, math.sqrt(6 / math.prod(shape[1:])))
    centre = 1.0 if key.endswith(("bn.weight", "running_var")) else 0.0
    return hash_tensor(key, shape, 0.2, centre)


@pytest.fixture(scope="module")
def weights():
    shapes = Inception().state_dict()
    return {
        key: weight(key, value.shape)
        for key, value in shapes.items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """As published: PyTorch's first format, with the classifier."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**weights, **classifier}, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def inception(file):
    return Inception.from_file(file)


@pytest.fixture(scope="module")
def image():
    return hash_image("inception", 64).mul(127.5).add(128).to(torch.uint8)


def test_names_and_shapes_are_those_of_the_published_file(weights):
    shapes = sorted((key, list(value.shape)) for key, value in weights.items())
    assert hashlib.sha256(json.dumps(shapes).encode()).hexdigest() == KEYS


def test_features_are_those_recorded(inception, image, threads):
    threads(1)
    features = inception(image)
    assert features.shape == (1, 2048) and features.dtype == torch.float32
    for number, value in FEATURES.items():
        assert features[0, number].item() == pytest.approx(value, abs=1e-4)
    assert features.norm().item() == pytest.approx(LENGTH, rel=1e-5)
    assert features.max().item() == pytest.approx(LARGEST, abs=1e-3)


def test_a_larger_picture_is_read_between_pixels_without_smoothing(inception):
    """At twice the side every new pixel is the mean of four."""
    large = torch.cat([hash_image(f"large/{i}", 299) for i in range(4)])
    large = large.reshape(2, 2, 3, 299, 299).permute(2, 3, 0, 4, 1)
    large = large.reshape(1, 3, 598, 598).mul(127.5).add(128).to(torch.uint8)
    halved = torch.nn.functional.avg_pool2d(large.float() / 255, 2)
    want = inception.features(2 * halved - 1)
    torch.testing.assert_close(inception(large), want, atol=1e-4, rtol=1e-4)


def test_it_is_frozen_and_stays_in_evaluation(inception):
    assert not any(p.requires_grad for p in inception.parameters())
    assert not any(m.training for m in inception.train().modules())


def test_safetensors_are_read_too(weights, inception, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "inception.safetensors"
    save_file(weights, path)
    read = Inception.from_file(path).state_dict()
    assert all(torch.equal(read[key], value) for key, value in weights.items())


def test_a_file_that_is_not_what_its_name_promises_is_refused(file, tmp_path):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    right, wrong = tmp_path / f"net-{digest}.pth", tmp_path / "net-6726825d.pth"
    right.symlink_to(file)
    wrong.symlink_to(file)
    assert Inception.from_file(right).width == 2048
    with pytest.raises(ValueError, match="must start with 6726825d.*got " + digest):
        Inception.from_file(wrong)


def test_other_files_are_refused_by_name(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Inception: .*none\.pth"):
        Inception.from_file(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"Inception: .*text\.pth"):
        Inception.from_file(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"Inception: .*text\.safetensors"):
        Inception.from_file(tmp_path / "text.safetensors")
    key = "Mixed_7c.branch_pool.conv.weight"
    part = {k: v for k, v in weights.items() if k != key}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=f"missing.*{key}"):
        Inception.from_file(tmp_path / "part.pth")
    torch.save({**part, key: torch.zeros(1, 2, 3, 4)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"{key} is \[1, 2, 3, 4\]"):
        Inception.from_file(tmp_path / "other.pth")


def test_wrong_pictures_are_refused(inception, image):
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\], got \[3, 64, 64\]"):
        inception(image[0])
    with pytest.raises(TypeError, match="uint8"):
        inception(image.float())
