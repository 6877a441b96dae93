"""The shipped model as people use it; evaluation/test_shipped.py judges how well."""

from pathlib import Path

import pytest
import torch

import tokenflow
from tokenflow import TokenFlowTokenizer
from tokenflow.data.glyphs import GlyphPictures
from tokenflow.evaluation.metrics import psnr
from tokenflow.samples import SCENE
from tokenflow.tokenizer.processing import open_image, to_batch, to_uint8

FOLDER = Path(tokenflow.__file__).parent / "weights" / "mini"


@pytest.fixture(scope="module")
def mini():
    return TokenFlowTokenizer.from_pretrained("mini")


def test_its_card_names_its_books_and_its_recipe(mini):
    card = (FOLDER / "README.md").read_text()
    assert mini.fingerprint() in card
    assert "tokenflow train tokenizer" in card
    assert "seed 0" in card


def test_the_sample_picture_comes_back(mini):
    picture = open_image(SCENE)
    encoded = mini.encode(picture)
    tokens = sum(height * width for height, width in encoded.scales)
    assert encoded.indices.shape == (1, tokens)
    whole = mini.decode(encoded, output="pt")
    assert torch.equal(mini.decode(encoded.indices, output="pt"), whole)
    assert psnr(to_uint8(whole), to_uint8(_seen(picture))).item() > 20  # 22 dB


def test_more_scales_redraw_better(mini, emoji_font):
    picture = _heldout(8)
    encoded = mini.encode(picture)
    ends = torch.tensor([h * w for h, w in encoded.scales]).cumsum(0).tolist()
    scores = []
    for end in (ends[0], ends[3], ends[-1]):
        part = mini.decode(encoded.indices[:, :end], scales=encoded.scales, output="pt")
        scores.append(psnr(to_uint8(part), picture).mean().item())
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 3


def _seen(picture):
    """The picture as the model sees it."""
    return to_batch(picture, 64, "crop")


def _heldout(count):
    pictures = GlyphPictures("heldout", seed=12345)
    return torch.stack([pictures[i]["image"] for i in range(count)])
