"""Tokenizers with one codebook alone: what decides an index, what the decoders read."""

import copy

import pytest
import torch
from tiny_recipe import TINY

from tokenflow import TokenFlowConfig, TokenFlowTokenizer
from tokenflow.training.codebook import CodebookConfig, CodebookHealth, centre_features
from tokenflow.training.task import Moment
from tokenflow.training.world import World

SMALL = {**TINY, "codebook_size": 64}
HALVES = {"semantic": {"pixel_dim": 0}, "pixel": {"semantic_dim": 0}}


def tokenizer(**changes):
    torch.manual_seed(0)
    widths = {"semantic_dim": 16, "pixel_dim": 16}
    config = TokenFlowConfig.preset("mini", **{**SMALL, **widths, **changes})
    model = TokenFlowTokenizer(config)
    torch.manual_seed(1)
    centre_features(model, pictures(16))
    return model


def pictures(count=2):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1


def nearest(features, book):
    """The pyramid with one book in plain torch, in float64: indices [B, L]."""
    rest = features.double()
    book = torch.nn.functional.normalize(book.double(), dim=1)
    found = []
    for side in (1, 2, 4):
        pooled = torch.nn.functional.adaptive_avg_pool2d(rest, side)
        rows = pooled.flatten(2).transpose(1, 2)
        at = (rows @ book.T).argmax(dim=-1)
        found.append(at)
        cells = book[at].transpose(1, 2).unflatten(2, (side, side)).float()
        rest = rest - torch.nn.functional.interpolate(
            cells, size=(4, 4), mode="bicubic", align_corners=False
        )
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("half", HALVES)
def test_one_book_finds_what_a_plain_search_finds(half):
    model = tokenizer(**HALVES[half]).eval()
    features = model.features(pictures(8)).detach()
    (book,) = model.quantizer.parameters()
    indices, quantized = model.quantizer.quantize(features)
    assert torch.equal(indices, nearest(features, book))
    assert quantized.shape == features.shape == (8, 16, 4, 4)
    assert torch.equal(model.quantizer.lookup(indices), quantized)
    rows = torch.nn.functional.normalize(book[indices], dim=-1)
    torch.testing.assert_close(model.quantizer.entries(indices), rows)


@pytest.mark.parametrize("half", HALVES)
def test_both_decoders_read_the_same_entries(half):
    model = tokenizer(**HALVES[half]).eval()
    quantized = model.encode(pictures()).quantized.requires_grad_()
    for decode in (model.decode_pixels, model.decode_semantics):
        (gradient,) = torch.autograd.grad(decode(quantized).square().sum(), quantized)
        assert (gradient.abs().sum(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize("half", HALVES)
def test_a_half_that_is_not_there_has_no_encoder_and_no_book(half, tmp_path):
    model = tokenizer(**HALVES[half]).eval()
    other = "pixel" if half == "semantic" else "semantic"
    names = [name for name in model.state_dict() if f"{other}_decoder" not in name]
    gone = (f"{other}_encoder", f"{other}_book")
    gone += ("quant_conv",) if other == "pixel" else ("semantic_head",)
    assert not [
        n
        for n in names
        if any(n.removeprefix("quantizer.").startswith(g) for g in gone)
    ]
    model.save_pretrained(tmp_path)
    again = TokenFlowTokenizer.from_pretrained(str(tmp_path))
    assert again.fingerprint() == model.fingerprint()
    encoded, found = (m.encode(pictures()) for m in (model, again))
    assert torch.equal(encoded.indices, found.indices)
    assert torch.equal(
        model.decode(encoded, output="pt"), again.decode(found.indices, output="pt")
    )


@pytest.mark.parametrize("half", HALVES)
def test_indices_do_not_depend_on_the_mode_or_the_way(half):
    model = tokenizer(**HALVES[half])
    model.config.scale_drop = model.quantizer.scale_drop = 0.0
    trained = model.train()(pictures())
    encoded = model.eval().encode(pictures())
    assert torch.equal(trained.indices, encoded.indices)
    assert torch.equal(trained.quantized, encoded.quantized)


def test_without_its_gradient_a_picture_teaches_the_pixel_decoder_alone():
    model = tokenizer(pixel_dim=0, pixel_gradient=False, scale_drop=0.0).train()
    output = model(pictures())
    output.pixel_reconstruction.square().mean().backward()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {"pixel_decoder", "post_quant_conv"}
    plain = tokenizer(pixel_dim=0, scale_drop=0.0).train()
    redrawn = plain(pictures()).pixel_reconstruction
    assert torch.equal(redrawn, output.pixel_reconstruction)
    redrawn.square().mean().backward()
    assert plain.semantic_head[0].weight.grad is not None


def test_pixels_do_not_decide_where_there_is_no_pixel_half():
    model = tokenizer(pixel_dim=0).eval()
    before = model.encode(pictures(4))
    with torch.no_grad():
        for weight in model.pixel_decoder.parameters():
            weight.add_(1.0)
    assert torch.equal(model.encode(pictures(4)).indices, before.indices)
    both = tokenizer().eval()
    changed = copy.deepcopy(both)
    with torch.no_grad():
        changed.quant_conv.weight.mul_(-1.0)
    found = [m.encode(pictures(4)).indices for m in (both, changed)]
    assert not torch.equal(*found)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("start", ["vectors", "kmeans"])
def test_one_book_is_kept_in_health(half, start):
    model = tokenizer(**HALVES[half]).train()
    health = CodebookHealth(model.quantizer, CodebookConfig(start=start))
    optimizer = torch.optim.Adam(model.parameters())
    moment = Moment(0, 0.0, 0, World())
    (book,) = model.quantizer.parameters()
    before = book.detach().clone()
    with torch.no_grad(), health.watch():
        model(pictures(8))
    health.start(optimizer, moment)
    assert not torch.equal(before, book)
    with health.watch():
        model(pictures(8)).vq_loss.backward()
    facts = health.after_step(optimizer, moment)
    assert facts["usage"] > 0.3 and book.grad.abs().sum() > 0


def test_meaning_is_asked_for_where_there_is_some():
    images = pictures()
    with pytest.raises(ValueError, match="needs a semantic half, the model has none"):
        tokenizer(semantic_dim=0).understanding_features(images, "semantic")
    model = tokenizer(pixel_dim=0).eval()
    whole, half = (
        model.understanding_features(images, s) for s in ("last", "semantic")
    )
    assert torch.equal(whole, half)


@pytest.mark.parametrize("widths", [(0, 0), (-1, 8), (8, -1)], ids=str)
def test_an_entry_has_some_width(widths):
    with pytest.raises(ValueError, match="semantic_dim and pixel_dim must be ≥ 0"):
        TokenFlowConfig(semantic_dim=widths[0], pixel_dim=widths[1])
