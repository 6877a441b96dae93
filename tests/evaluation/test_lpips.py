"""LPIPS: the recorded core, published names of weights, frozen for good."""

import pytest
import torch
from safetensors.torch import save_file

from tokenflow.evaluation.lpips import LPIPS, WIDTHS

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def vgg16(seed=0):
    """A state dict with torchvision's names, weights that keep the values' size."""
    generator = torch.Generator().manual_seed(seed)
    state = {"classifier.0.weight": torch.zeros(2, 3)}
    for i, index in enumerate(CONVOLUTIONS):
        shape = (CHANNELS[i + 1], CHANNELS[i], 3, 3)
        weight = torch.randn(shape, generator=generator) * (2 / (9 * shape[1])) ** 0.5
        state[f"features.{index}.weight"] = weight
        state[f"features.{index}.bias"] = torch.zeros(shape[0])
    return state


def heads(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate(WIDTHS)
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(vgg16(), folder / "vgg16.pth")
    torch.save(heads(), folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth"


@pytest.fixture(scope="module")
def lpips(files):
    return LPIPS.from_files(*files)


def pictures(seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, size, size, generator=generator) * 2 - 1


@pytest.mark.parametrize("name", ["lpips_core_0", "lpips_core_1"])
def test_given_features_the_distance_is_that_recorded(name, golden, files, tmp_path):
    case = golden(name)
    torch.save(case.weights(), tmp_path / "heads.pth")
    made = LPIPS.from_files(files[0], tmp_path / "heads.pth")
    one, two = ([case[f"in/f{k}_{i}"] for i in range(5)] for k in (0, 1))
    value = made.compare(one, two)
    torch.testing.assert_close(value, case["out/value"].flatten())
    scaled = made.scaled(case["in/input0"])
    torch.testing.assert_close(scaled, case["out/scaled_input0"])


def test_the_trunk_is_vgg16_up_to_relu5_3(lpips):
    """Layer by layer in plain functions, under torchvision's numbers."""
    x, state, expected = lpips.scaled(pictures()), vgg16(), []
    for index in CONVOLUTIONS:
        if index in (5, 10, 17, 24):
            x = torch.nn.functional.max_pool2d(x, 2)
        weight, bias = (state[f"features.{index}.{k}"] for k in ("weight", "bias"))
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
        if index in (2, 7, 14, 21, 28):
            expected.append(x)
    found = lpips.features(lpips.scaled(pictures()))
    assert [f.shape[1:] for f in found] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)
    ]  # fmt: skip
    torch.testing.assert_close(found, expected)


def test_a_distance_worked_by_hand():
    made = LPIPS()
    with torch.no_grad():
        for i, head in enumerate(made.heads):
            head[:2] = torch.tensor([1.0, 10.0]) if i == 3 else 0.0
    one = [torch.zeros(1, width, 1, 2) for width in WIDTHS]
    two = [x.clone() for x in one]
    one[3][0, :2, 0, 0] = torch.tensor([3.0, 4.0])  # (0.6, 0.8) at unit length
    two[3][0, :2, 0, 0] = torch.tensor([5.0, 0.0])  # (1, 0); the second cell is equal
    value = made.compare(one, two).item()
    assert value == pytest.approx((0.4**2 + 10 * 0.8**2) / 2)


def test_it_is_zero_for_equal_pictures_and_symmetric(lpips):
    a, b = pictures(0), pictures(1)
    assert lpips(a, a).tolist() == [0.0, 0.0]
    assert (lpips(a, b) > 0).all()
    assert torch.equal(lpips(a, b), lpips(b, a))


def test_gradients_reach_the_picture_and_are_finite(lpips):
    redrawn = pictures(1).requires_grad_()
    lpips(pictures(), redrawn).sum().backward()
    assert redrawn.grad.isfinite().all() and redrawn.grad.abs().sum() > 0
    dark = torch.zeros(1, 64, 2, 2, requires_grad=True)  # nothing fires anywhere
    others = [torch.ones(1, width, 2, 2) for width in WIDTHS]
    lpips.compare([dark, *others[1:]], others).sum().backward()
    assert dark.grad.isfinite().all()


def test_it_never_trains(lpips):
    lpips.train()
    assert not any(module.training for module in lpips.modules())
    assert not any(p.requires_grad for p in lpips.parameters())
    assert torch.equal(lpips(pictures(0), pictures(1)), lpips(pictures(0), pictures(1)))


def test_autocast_changes_no_distance(lpips):
    a, b = pictures(0), pictures(1)
    plain = lpips(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lpips(a, b), plain)


def test_safetensors_are_read_alike(lpips, tmp_path):
    save_file(vgg16(), tmp_path / "vgg16.safetensors")
    save_file(heads(), tmp_path / "heads.safetensors")
    made = LPIPS.from_files(
        tmp_path / "vgg16.safetensors", tmp_path / "heads.safetensors"
    )
    a, b = pictures(0), pictures(1)
    assert torch.equal(made(a, b), lpips(a, b))


def test_a_wrong_file_is_named_with_its_weights(files, tmp_path):
    vgg, lin = files
    with pytest.raises(FileNotFoundError, match="LPIPS: there is no file .*gone.pth"):
        LPIPS.from_files(tmp_path / "gone.pth", lin)
    with pytest.raises(FileNotFoundError, match="no file .*gone.safetensors"):
        LPIPS.from_files(vgg, tmp_path / "gone.safetensors")
    for name in ("half.pth", "half.safetensors"):
        (tmp_path / name).write_bytes(b"half a file")
        with pytest.raises(ValueError, match=f"LPIPS: .*{name} must be"):
            LPIPS.from_files(vgg, tmp_path / name)
    with pytest.raises(ValueError, match=r"missing: \['lin0.model.1.weight'"):
        LPIPS.from_files(vgg, vgg)
    few = vgg16()
    del few["features.14.bias"]
    torch.save(few, tmp_path / "few.pth")
    with pytest.raises(ValueError, match=r"few.pth: .*missing: \['features.14.bias'\]"):
        LPIPS.from_files(tmp_path / "few.pth", lin)
    other = heads() | {"lin2.model.1.weight": torch.zeros(1, 384, 1, 1)}
    torch.save(other, tmp_path / "alex.pth")
    words = r"lin2.model.1.weight is \[1, 384, 1, 1\] where \[1, 256, 1, 1\]"
    with pytest.raises(ValueError, match=words):
        LPIPS.from_files(vgg, tmp_path / "alex.pth")


def test_wrong_pictures_are_named(lpips):
    with pytest.raises(ValueError, match="of one shape with H and W at least 16"):
        lpips(pictures(), pictures()[:1])
    with pytest.raises(ValueError, match="at least 16, got"):
        lpips(pictures(size=8), pictures(size=8))
