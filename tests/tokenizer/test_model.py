"""A picture in, tokens out, the picture back: the promises of the whole tokenizer."""

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from small_tokenizer import small_tokenizer

from tokenflow import Encoded, TokenFlowConfig, TokenFlowTokenizer, checkpoint
from tokenflow.tokenizer import model as model_module
from tokenflow.tokenizer import scales as schedule
from tokenflow.tokenizer.quantizer import Quantizer

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))


def build(**changes):
    own = {"semantic_dim": 32, "pixel_weight": 1.0}
    own["semantic_encoder"] = {"width": 32, "layers": 2}
    return small_tokenizer(**{**own, **changes})


@pytest.fixture
def tokenizer(device):
    return build().eval().to(device)


@pytest.fixture
def images(device):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(3, 3, 64, 64, generator=generator) * 2 - 1).to(device)


def picture(height=80, width=100, seed=0):
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(array.astype(np.uint8))


def test_encode_says_what_it_made(tokenizer, images):
    encoded = tokenizer.encode(images)
    assert encoded.scales == SCALES and encoded.grid == (8, 8)
    assert encoded.indices.shape == (3, 130) and encoded.indices.dtype == torch.int64
    assert encoded.indices.min() >= 0 and encoded.indices.max() < 256
    assert encoded.quantized.shape == (3, 40, 8, 8)
    assert encoded.quantized.dtype == torch.float32
    assert not encoded.quantized.requires_grad


def test_decoding_an_encoding_and_its_indices_is_bit_equal(tokenizer, images):
    for scales in (None, [8], [1, 2], [(2, 3), 5]):
        encoded = tokenizer.encode(images, scales=scales)
        whole = tokenizer.decode(encoded, output="pt")
        again = tokenizer.decode(encoded.indices, scales=scales, output="pt")
        assert torch.equal(whole, again)
        summed = tokenizer.quantized(encoded.indices, scales=scales)
        assert torch.equal(summed, encoded.quantized)


def test_pictures_come_back_as_pictures(tokenizer):
    decoded = tokenizer.decode(tokenizer.encode([picture(), picture(seed=1)]))
    assert [image.size for image in decoded] == [(64, 64)] * 2
    assert all(image.mode == "RGB" for image in decoded)
    tensor = tokenizer.decode(tokenizer.encode(picture()), output="pt")
    assert tensor.shape == (1, 3, 64, 64) and tensor.dtype == torch.float32
    assert tensor.abs().max() <= 1


def test_every_kind_of_input_gives_the_same_tokens(tokenizer):
    image = picture(64, 64)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = tokenizer.encode(image).indices
    floats = tensor.float() / 255 * 2 - 1
    for same in ([image], array, tensor, tensor[None], floats[None]):
        assert torch.equal(tokenizer.encode(same).indices, expected)


def test_resize_decides_what_of_a_long_picture_is_seen(tokenizer):
    image = picture(64, 128)
    seen = {way: tokenizer.encode(image, resize=way) for way in ("crop", "pad")}
    middle = image.crop((32, 0, 96, 64))
    assert torch.equal(seen["crop"].indices, tokenizer.encode(middle).indices)
    assert not torch.equal(seen["crop"].indices, seen["pad"].indices)


def test_prefixes_of_whole_scales_are_decoded(tokenizer, images):
    indices = tokenizer.encode(images).indices
    for count in range(1, 7):
        length = sum(h * w for h, w in SCALES[:count])
        by_prefix = tokenizer.decode(indices[:, :length], output="pt")
        short = [side for side, _ in SCALES[:count]]
        given = tokenizer.decode(indices[:, :length], scales=short, output="pt")
        assert torch.equal(by_prefix, given)
    stored = tokenizer.decode(indices.cpu().to(torch.uint16), output="pt")
    assert torch.equal(stored, tokenizer.decode(indices, output="pt"))
    single = tokenizer.decode(indices[0].tolist(), output="pt")
    assert torch.equal(single, tokenizer.decode(indices[:1], output="pt"))


def test_a_length_between_scales_is_refused_with_those_possible(tokenizer):
    with pytest.raises(ValueError, match=r"1, 5, 14, 30, 66 or 130 tokens, got 6"):
        tokenizer.decode(torch.zeros(1, 6, dtype=torch.int64))


@pytest.mark.parametrize("grid", [(8, 16), (5, 3), (2, 1), (12, 8)])
def test_pictures_that_are_not_square(tokenizer, grid):
    generator = torch.Generator().manual_seed(2)
    size = (8 * grid[0], 8 * grid[1])
    image = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    encoded = tokenizer.encode(image)
    assert encoded.grid == grid and encoded.scales[-1] == grid
    assert encoded.indices.shape[1] == sum(h * w for h, w in encoded.scales)
    decoded = tokenizer.decode(encoded, output="pt")
    assert decoded.shape == image.shape
    again = tokenizer.decode(encoded.indices, grid=grid, output="pt")
    assert torch.equal(decoded, again)
    resized = tokenizer.encode(picture(), size=size)
    assert resized.grid == grid


def test_a_size_between_cells_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"multiples of 8 pixels.*got 64×60"):
        tokenizer.encode(torch.zeros(1, 3, 64, 60))


def test_scales_stretch_per_axis():
    pairs = schedule.as_pairs([1, 2, 3, 4, 6, 8])
    assert schedule.for_grid(pairs, 8, (8, 8)) == pairs
    wide = ((1, 2), (2, 4), (3, 6), (4, 8), (6, 12), (8, 16))
    assert schedule.for_grid(pairs, 8, (8, 16)) == wide
    # 3·6/8 = 2.25 → 2, 6·6/8 = 4.5 → 5; never below one
    low = ((1, 1), (2, 1), (2, 1), (3, 1), (5, 1), (6, 1))
    assert schedule.for_grid(pairs, 8, (6, 1)) == low


@pytest.mark.parametrize("bad", [[], [0], [-1, 2], [(1, 2, 3)], [True], ["4"]])
def test_a_schedule_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="scales"):
        schedule.as_pairs(bad)


@pytest.mark.parametrize("case", ["drop_scale_0", "drop_scale_1"])
def test_the_dropped_scale_is_the_recorded_one(golden, case):
    case = golden(case)
    pairs = schedule.as_pairs(case.meta["scales"])
    for name in case.names("out/seed"):
        kept = schedule.drop_one(pairs, random.Random(int(name[len("out/seed") :])))
        assert [side for side, _ in kept] == case[name].tolist()


def test_understanding_features(tokenizer, images):
    encoded = tokenizer.encode(images)
    read = {
        way: tokenizer.understanding_features(encoded, way)
        for way in model_module.STRATEGIES
    }
    assert torch.equal(read["last"], encoded.quantized.flatten(2).transpose(1, 2))
    assert torch.equal(read["semantic"], read["last"][..., :32])
    assert read["residual"].shape == read["all"].shape == (3, 130, 40)
    halves = read["residual"].split([32, 8], dim=-1)
    for half in halves:  # entries are unit vectors, half by half
        torch.testing.assert_close(half.norm(dim=-1), torch.ones_like(half[..., 0]))
    # the first sum is the first entry; the last is the summed map
    torch.testing.assert_close(read["all"][:, :1], read["residual"][:, :1])
    assert torch.equal(read["all"][:, -64:], read["last"])
    for way, features in read.items():
        by_indices = tokenizer.understanding_features(encoded.indices, way)
        assert torch.equal(by_indices, features)


def test_understanding_pads_and_generation_crops(tokenizer):
    image = picture(64, 128)
    padded = tokenizer.understanding_features(image)
    same = tokenizer.understanding_features(tokenizer.encode(image, resize="pad"))
    assert torch.equal(padded, same)
    cropped = tokenizer.understanding_features(image, resize="crop")
    assert not torch.equal(cropped, padded)


def test_pictures_that_are_not_finite_give_minus_one(tokenizer, images):
    images[1, :, 5, 7] = torch.nan
    indices = tokenizer.encode(images).indices
    assert (indices[1] == -1).any() and (indices[[0, 2]] >= 0).all()
    assert torch.equal(indices[0], tokenizer.encode(images[:1]).indices[0])
    assert len(tokenizer.decode(indices)) == 3


def test_double_precision_networks_quantize_in_float32(tokenizer, images):
    encoded = tokenizer.double().encode(images)
    assert encoded.quantized.dtype == torch.float32
    assert tokenizer.decode(encoded, output="pt").dtype == torch.float32


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_books_stay_float32_whatever_the_networks_are(tokenizer, images, half):
    books = [book.clone() for book in tokenizer.quantizer.books()]
    tokenizer.to(half)
    assert tokenizer.quant_conv.weight.dtype == half
    assert all(map(torch.equal, tokenizer.quantizer.books(), books))
    encoded = tokenizer.encode(images)
    assert encoded.quantized.dtype == torch.float32
    decoded = tokenizer.decode(encoded, output="pt")
    assert torch.equal(decoded, tokenizer.decode(encoded.indices, output="pt"))


@pytest.mark.parametrize("half", [None, torch.float16], ids=str)
def test_saved_and_loaded_it_is_the_same_tokenizer(tokenizer, images, tmp_path, half):
    tokenizer.save_pretrained(tmp_path / "saved", dtype=half)
    loaded = TokenFlowTokenizer.from_pretrained(tmp_path / "saved").to(images.device)
    assert not loaded.training
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert loaded.fingerprint() == tokenizer.fingerprint()
    indices = tokenizer.encode(images).indices
    quantized = tokenizer.quantized(indices)
    assert torch.equal(loaded.quantized(indices), quantized)
    if half is None:
        assert torch.equal(loaded.encode(images).indices, indices)
        assert torch.equal(
            loaded.decode(indices, output="pt"), tokenizer.decode(indices, output="pt")
        )
    else:
        close = loaded.decode(indices, output="pt")
        expected = tokenizer.decode(indices, output="pt")
        torch.testing.assert_close(close, expected, atol=2e-2, rtol=0)


def test_a_pushed_model_is_named_as_its_folder(tokenizer, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    asked = []
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained", lambda *_, **kwargs: asked.append(kwargs)
    )
    tokenizer.save_pretrained(tmp_path / "mine", push_to_hub=True)
    tokenizer.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/other")
    assert [kwargs["repo_id"] for kwargs in asked] == ["mine", "me/other"]


def test_loading_other_weights_is_refused_by_name(tokenizer, tmp_path):
    state = tokenizer.state_dict()
    del state["quant_conv.bias"]
    tokenizer.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"1 weights are missing: \['quant_conv\.bias"):
        TokenFlowTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_weights_are_refused(tokenizer, tmp_path, share):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*truncated or damaged"):
        TokenFlowTokenizer.from_pretrained(tmp_path)


def test_weights_of_another_size_are_refused_by_name(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    other = TokenFlowConfig.from_pretrained(tmp_path)
    other.semantic_target = 21
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"2 weights have another shape.*\[20\] where"):
        TokenFlowTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such", "/no/such"])
def test_a_name_of_nothing_is_told_what_is_shipped(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="no folder, none of those shipped"):
        TokenFlowTokenizer.from_pretrained(name)


def test_auto_classes_find_it(tokenizer, tmp_path):
    from transformers import AutoModel

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is TokenFlowTokenizer
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_follows_books_and_comparison_alone(tokenizer):
    first = tokenizer.fingerprint()
    assert len(first) == 16 and int(first, 16) >= 0
    with torch.no_grad():
        tokenizer.post_quant_conv.weight.add_(1)
    assert tokenizer.fingerprint() == first
    tokenizer.quantizer.pixel_weight = 2.0
    assert tokenizer.fingerprint() != first
    tokenizer.quantizer.pixel_weight = 1.0
    with torch.no_grad():
        tokenizer.quantizer.books()[1][3, 2] += 1e-3
    assert tokenizer.fingerprint() != first


def test_a_shipped_name_is_found_without_network(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.files, "SHIPPED", tmp_path)
    tokenizer.save_pretrained(tmp_path / "little")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = TokenFlowTokenizer.from_pretrained("little")
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_the_books_in_use_are_those_of_the_state(tokenizer, images):
    before = tokenizer.encode(images)
    state = tokenizer.state_dict()
    state["quantizer.semantic_book"] = state["quantizer.semantic_book"].flip(0)
    state["quantizer.pixel_book"] = state["quantizer.pixel_book"].flip(0)
    tokenizer.load_state_dict(state)
    after = tokenizer.encode(images)
    assert torch.equal(after.indices, 255 - before.indices)
    assert torch.equal(after.quantized, before.quantized)


def test_training_reaches_every_parameter(device, images):
    tokenizer = build(entropy_weight=0.1, scale_drop=0.0).train().to(device)
    result = tokenizer(images)
    assert result.pixel_reconstruction.shape == images.shape
    assert result.semantic_reconstruction.shape == (3, 64, 20)
    assert result.indices.shape == (3, 130)
    assert 0 < result.usage <= 1
    losses = [result.vq_loss, result.commitment_loss, result.entropy_loss]
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses)
    total = sum(losses) + (result.pixel_reconstruction - images).square().mean()
    (total + result.semantic_reconstruction.square().mean()).backward()
    silent = [
        name
        for name, parameter in tokenizer.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    # a bias in front of softmax or of a norm moves nothing; all else must learn
    assert [name for name in silent if not name.endswith(".k.bias")] == []


def test_training_quantizes_as_inference_does(device, images):
    tokenizer = build(scale_drop=0.0).to(device).train()
    with torch.no_grad():
        trained = tokenizer(images)
        encoded = tokenizer.eval().encode(images)
    assert torch.equal(trained.indices, encoded.indices)
    torch.testing.assert_close(trained.quantized, encoded.quantized)


def test_one_scale_is_left_out_in_training_alone(device, images):
    tokenizer = build(scale_drop=1.0).to(device).train()
    with torch.no_grad():
        result = tokenizer(images[:1], rng=random.Random(0))
        assert result.quantized.shape[-2:] == (8, 8)
        assert 130 - result.indices.shape[1] in {4, 9, 16, 36, 64}
        assert tokenizer.eval()(images[:1]).indices.shape[1] == 130


def test_scales_are_dropped_as_often_as_asked(device):
    changes = {"scales": [1, 2, 3], "grid": 3, "codebook_size": 8, "semantic_dim": 32}
    quantizer = Quantizer(TokenFlowConfig.preset("mini", **changes))
    quantizer = quantizer.to(device).train()
    features, rng = torch.ones(1, 40, 3, 3, device=device), random.Random(0)
    with torch.no_grad():
        counts = Counter(
            quantizer(features, rng=rng).indices.shape[1] for _ in range(200)
        )
    assert set(counts) == {14, 10, 5}  # all, without the second, without the last
    assert 0.05 < 1 - counts[14] / 200 < 0.16  # 0.1 as published


def test_the_pixel_branch_may_work_at_another_size(device):
    # as the SigLIP preset: 42 pixels, 3 cells of 14, redrawn at 3 · 8 = 24 → 42
    tokenizer = build(
        image_size=42,
        grid=3,
        scales=[1, 3],
        semantic_encoder={"width": 32, "layers": 1, "patch": 14, "image_size": 42},
        semantic_decoder={"width": 32, "grid": 3},
    ).to(device)
    tokenizer.eval()
    encoded = tokenizer.encode(torch.zeros(1, 3, 42, 42))
    assert encoded.grid == (3, 3)
    assert tokenizer.decode(encoded, output="pt").shape == (1, 3, 42, 42)


def test_a_size_at_which_cells_and_patches_part_is_refused():
    tokenizer = build(
        image_size=384,
        grid=27,
        semantic_encoder={"width": 32, "layers": 1, "patch": 14, "image_size": 384},
        semantic_decoder={"width": 32, "grid": 27},
    )
    assert tokenizer.grid(384, 768) == (27, 54)
    with pytest.raises(ValueError, match=r"\(27, 63\) from 384×896 .* \(27, 64\)"):
        tokenizer.grid(384, 896)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"8×8 from 64×64 pixels, it makes \(4, 4\)"):
        build(semantic_encoder={"patch": 16})


def test_wrong_arguments_are_told(tokenizer, images):
    encoded = tokenizer.encode(images)
    with pytest.raises(ValueError, match="output must be 'pil' or 'pt', got 'np'"):
        tokenizer.decode(encoded, output="np")
    with pytest.raises(TypeError, match="indices must be integers, got torch.float32"):
        tokenizer.decode(encoded.quantized)
    with pytest.raises(IndexError, match=r"in \[0, 256\).*got 7 to 256"):
        tokenizer.decode([7] * 129 + [256])
    with pytest.raises(ValueError, match=r"\[B, L\] or \[L\], got \[1, 3, 130\]"):
        tokenizer.decode(encoded.indices[None])
    with pytest.raises(ValueError, match=r"one of \['last'.*got 'first'"):
        tokenizer.understanding_features(encoded, "first")


def test_encoded_cannot_be_changed_by_accident(tokenizer, images):
    encoded = tokenizer.encode(images)
    assert isinstance(encoded, Encoded)
    with pytest.raises(AttributeError):
        encoded.indices = None


def test_import_is_light():
    code = (
        "import sys, tokenflow; dir(tokenflow); "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_a_torchvision_that_does_not_import_does_no_harm(tmp_path):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    (broken / "__init__.py").write_text(text)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tokenflow; "
    code += "print(tokenflow.TokenFlowTokenizer.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "TokenFlowTokenizer", out.stderr


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import tokenflow

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        tokenflow.Nothing  # noqa: B018
