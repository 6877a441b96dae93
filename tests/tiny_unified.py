"""A unified model of a few thousand weights on `small_tokenizer`, drawn at random."""

import torch
from generation_cases import small_tokenizer
from PIL import Image

from tokenflow import TokenFlowUnified, TokenFlowUnifiedConfig
from tokenflow.training.unified import UnifiedTask
from tokenflow.training.words import learn

SCALES = (1, 2, 4)
TEXT_IDS = 320
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODEL = {
    "language": LANGUAGE,
    "scales": list(SCALES),
    "codebook_size": 64,
    "code_width": 12,
    "image_start": TEXT_IDS,
    "text_length": 12,
}


def words(size=TEXT_IDS):
    """A text tokenizer of bytes, a few pairs of them, and all marks."""
    texts = ["<|im_start|>user\nwhat colour is it?", "red", "blue"]
    return learn(texts, size, UnifiedTask.marks)


def eyes(scales=SCALES):
    torch.manual_seed(0)
    return small_tokenizer(scales)


def model(scales=SCALES, *, seed=0, sure=4.0, **changes):
    """A model of random weights; `sure` enlarges the head's, so that ids vary."""
    torch.manual_seed(seed)
    changes = {"scales": list(scales), **changes}
    made = TokenFlowUnified(TokenFlowUnifiedConfig(**{**MODEL, **changes}))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.5 if weight.ndim > 1 else 0.1)
        made.head.weight.mul_(sure)
    made.text_tokenizer = words()
    return made.eval().attach(eyes(scales))


def picture(seed=0, size=(20, 14)):
    made = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 5, 3), generator=made, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC)
