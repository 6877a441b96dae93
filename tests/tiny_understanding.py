"""An understanding model of a few thousand weights, drawn at random.

Its words are single bytes, so every string can be asked and answered.
"""

import torch
from PIL import Image

from tokenflow import TokenFlowConfig, TokenFlowForUnderstanding, TokenFlowTokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"]
WORDS = 256 + len(SPECIAL)
IMAGE_ID = WORDS  # the first id behind those of the words

TOKENIZER = {
    "image_size": 32,
    "grid": 4,
    "scales": [1, 2, 4],
    "semantic_encoder": {
        "kind": "siglip",
        "width": 32,
        "layers": 2,
        "heads": 4,
        "mlp_width": 48,
        "patch": 8,
        "image_size": 32,
    },
    "semantic_decoder": {"width": 24, "grid": 4, "depth": 1, "heads": 4},
    "semantic_target": 12,
    "pixel_encoder": {"width": 32, "multipliers": [1, 1, 1, 1], "blocks": 1},
    "pixel_decoder": {"width": 32, "multipliers": [1, 1, 1, 1], "blocks": 1},
    "pixel_latent": 16,
    "codebook_size": 64,
    "semantic_dim": 32,
    "pixel_dim": 8,
}
TEXT = {
    "vocab_size": WORDS + 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}


def words():
    """A text tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def eyes(**changes):
    """A tokenizer of pictures."""
    torch.manual_seed(0)
    return TokenFlowTokenizer(TokenFlowConfig(**{**TOKENIZER, **changes})).eval()


def teacher_folder(folder, image_size=32):
    """A teacher as `tokenflow train teacher` writes one; returns its folder."""
    from tokenflow.tokenizer.contrastive import ImageTextModel, Vocabulary

    torch.manual_seed(2)
    encoder = {"kind": "clip", "width": 32, "layers": 1, "heads": 2, "patch": 8}
    ImageTextModel(
        {**encoder, "image_size": image_size},
        Vocabulary.learn(["a red car"], 260),
        image_size,
        width=20,
        text={"width": 16, "layers": 1, "heads": 2, "length": 12},
    ).save_pretrained(folder)
    return folder


def speaker(family="qwen2", **changes):
    """A causal language model; its words have some weight, so answers vary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **{**TEXT, **changes})
    made = AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def model(family="qwen2", *, strategy="last", template="qwen_2_5", text=None):
    """All of it."""
    return TokenFlowForUnderstanding.from_parts(
        eyes(),
        speaker(family, **(text or {})),
        words(),
        strategy=strategy,
        template=template,
    )


def picture(seed=0, size=(40, 28)):
    made = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 5, 3), generator=made, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC)
