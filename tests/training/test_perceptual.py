"""The stand-in for LPIPS: what an eye misses costs more than what no eye sees."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tokenflow.evaluation import pictures
from tokenflow.training import perceptual
from tokenflow.training.losses import LossConfig, TokenizerLoss
from tokenflow.training.perceptual import OrientedEnergy

SIDE = 96


@pytest.fixture(scope="module")
def photos():
    pytest.importorskip("skimage")
    found = pictures.load("photos", size=SIDE)
    images = torch.stack([found.read(i) for i in range(len(found))])
    return images.float().div(127.5).sub(1)


@pytest.fixture(scope="module")
def energy():
    return OrientedEnergy()


def jpeg(x, strength):
    made = []
    for picture in x:
        array = ((picture + 1) * 127.5).round().clamp(0, 255).byte()
        file = io.BytesIO()
        image = Image.fromarray(array.permute(1, 2, 0).numpy())
        image.save(file, "JPEG", quality=int(strength))
        made.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(made).float() / 127.5 - 1


def blur(x, sigma):
    width = int(4 * sigma) + 1
    bell = torch.exp(-(torch.arange(-width, width + 1.0) ** 2) / (2 * sigma**2))
    kernel = (bell / bell.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (width,) * 4, "reflect"), kernel, groups=3)
    return F.conv2d(x, kernel.transpose(2, 3), groups=3)


def blocks(x, share):
    coarse = F.interpolate(F.avg_pool2d(x, 8), scale_factor=8)
    return x + share * (coarse - x)


def shift(x, pixels):
    """Everything moves to the right and down, bicubic between pixels."""
    grid = torch.linspace(-1 + 1 / SIDE, 1 - 1 / SIDE, SIDE) - 2 * pixels / SIDE
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
    return F.grid_sample(
        x,
        points.expand(len(x), -1, -1, -1),
        "bicubic",
        padding_mode="reflection",
        align_corners=False,
    )


def tint(x, amount):
    return x + amount * torch.tensor([1.0, -0.5, -0.5])[:, None, None]


VISIBLE = {"blur": (blur, 0.3, 6.0), "blocks": (blocks, 0.0, 1.0)}
FORGIVEN = {
    "brightness": (lambda x, s: x + s, 0.0, 0.8),
    "tint": (tint, 0.0, 0.8),
    "shift": (shift, 0.0, 4.0),
}


def as_wrong(distort, low, high, x, error):
    """Distort one picture by as much as gives this squared error; None if none does."""
    if (distort(x, high) - x).square().mean() < error:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        less = (distort(x, middle) - x).square().mean() < error
        low, high = (middle, high) if less else (low, middle)
    return distort(x, high)


def test_at_equal_squared_error_visible_damage_costs_more(photos, energy):
    """JPEG, blur and blocks against brightness, tint and shift, on every photograph."""
    right, pairs, means = 0, 0, {}
    for x in photos.split(1):
        worst = jpeg(x, 10)
        error = (worst - x).square().mean()
        costs = {"jpeg": energy(x, worst).item()}
        for name, how in (VISIBLE | FORGIVEN).items():
            other = as_wrong(*how, x, error)
            if other is not None:
                costs[name] = energy(x, other).item()
        for name, cost in costs.items():
            means.setdefault(name, []).append(cost)
        for bad in costs.keys() & {"jpeg", *VISIBLE}:
            for good in costs.keys() & FORGIVEN.keys():
                pairs += 1
                right += costs[bad] > costs[good]
    means = {name: sum(found) / len(found) for name, found in means.items()}
    assert pairs > 100 and right / pairs > 0.97, (right, pairs, means)
    assert max(means["brightness"], means["tint"]) < 0.02 * means["blur"], means
    assert means["shift"] < 0.4 * means["blur"], means


def test_more_blur_and_more_noise_cost_more(photos, energy):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(photos.shape, generator=generator)
    for series in (
        [energy(photos, blur(photos, s)) for s in (0.4, 0.7, 1.0, 1.5, 2.5)],
        [energy(photos, photos + s * noise) for s in (0.01, 0.03, 0.1, 0.3)],
        [energy(photos, jpeg(photos, q)) for q in (90, 50, 20, 5)],
    ):
        costs = torch.stack(series)
        assert (costs.diff(dim=0) > 0).all()


def test_descending_it_sharpens(photos, energy):
    """From a blurred picture, beside the squared error, waves come back."""
    x = photos[:2]
    found = blur(x, 1.2).requires_grad_()
    start = energy(x, found).mean().item()
    optimizer = torch.optim.Adam([found], lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        energy(x, found).mean().backward()
        optimizer.step()
    assert energy(x, found).mean().item() < 0.5 * start


def test_it_is_a_distance_between_0_and_1(photos, energy):
    a, b = photos[:4], photos[4:8]
    assert energy(a, a).tolist() == [0.0] * 4
    assert torch.equal(energy(a, b), energy(b, a))
    assert ((energy(a, b) > 0) & (energy(a, b) < 1)).all()
    assert energy(a, b).shape == (4,) and energy(a, b).dtype == torch.float32


def test_a_picture_is_judged_alone(photos, energy):
    a, b = photos[:3], photos[3:6]
    torch.testing.assert_close(energy(a, b)[1:2], energy(a[1:2], b[1:2]))


def test_it_sees_neither_brightness_nor_an_exchange_of_black_and_white(photos, energy):
    """What its docstring warns of."""
    x = photos[:4] / 2
    assert energy(x, x + 0.3).max() < 1e-5
    assert energy(x, -x).max() < 1e-5


def test_a_wave_answers_at_its_own_direction(energy):
    columns = torch.arange(32.0)
    wave = torch.cos(2 * torch.pi * columns / 3.2).expand(1, 3, 32, 32) / 2
    first = energy._amplitudes(wave)[0][0, 0, :, 16, 16]
    assert first.argmax() == 0 and first[0] > 5 * first[2]
    assert first[0].item() == pytest.approx(0.5, abs=0.05)  # of the wave's own height


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (64, 16), (130, 70)], ids=str)
def test_pictures_of_any_size_have_finite_gradients(size, energy):
    flat = torch.zeros(1, 3, *size, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    other = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    energy(flat, other).sum().backward()
    assert flat.grad.isfinite().all()
    again = flat.detach().clone().requires_grad_()
    energy(again, torch.zeros_like(flat)).sum().backward()
    assert again.grad.abs().max() == 0


def test_gradients_are_those_of_the_value(energy):
    generator = torch.Generator().manual_seed(0)
    a, b, d = (torch.rand(1, 3, 12, 12, generator=generator) * 2 - 1 for _ in "abd")
    a.requires_grad_()
    value = energy(a, b).sum()
    (grad,) = torch.autograd.grad(value, a)
    step = 1e-2
    ahead, behind = (energy(a + s * step * d, b) for s in (1, -1))
    slope = ((ahead - behind) / (2 * step)).item()
    assert (grad * d).sum().item() == pytest.approx(slope, rel=0.02)


def test_autocast_changes_no_distance(photos, energy):
    a, b = photos[:2], photos[2:4]
    plain = energy(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(energy(a, b), plain)


def test_the_measure_is_chosen_by_name(tmp_path):
    assert isinstance(perceptual.make("stand-in"), OrientedEnergy)
    assert perceptual.make("none") is None
    with pytest.raises(ValueError, match="kind must be one of"):
        perceptual.make("ssim")
    with pytest.raises(ValueError, match="needs the paths vgg and heads .* got None"):
        perceptual.make("lpips", heads="vgg.pth")
    with pytest.raises(FileNotFoundError, match="LPIPS: there is no file"):
        perceptual.make("lpips", tmp_path / "vgg16.pth", tmp_path / "vgg.pth")


def test_lpips_is_read_from_both_paths(monkeypatch):
    given = []
    monkeypatch.setattr(
        perceptual.LPIPS, "from_files", lambda *paths: given.append(paths)
    )
    perceptual.make("lpips", "vgg16.pth", heads="vgg.pth")
    TokenizerLoss(LossConfig(vgg="vgg16.pth", heads="vgg.pth"))
    assert given == [("vgg16.pth", "vgg.pth")] * 2


def test_wrong_pictures_are_named(energy):
    x = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match="OrientedEnergy: both must be"):
        energy(x, x[:1])
    with pytest.raises(ValueError, match="H and W at least 8, got"):
        energy(x[..., :7], x[..., :7])
