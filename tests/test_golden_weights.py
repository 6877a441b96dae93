"""The hash rule gives the numbers its description prints."""

import zlib

import numpy as np
import pytest
import torch
from golden_weights import (
    CHUNK,
    hash_image,
    hash_tensor,
    hash_uniform,
    hash_weight,
)

PRINTED = [
    (
        "quant_conv.weight",
        (8, 256, 1, 1),
        [-0.013228547, 0.086171620, 0.004181845, 0.064228550],
    ),
    ("decoder.norm_out.weight", (128,), [1.0511743, 0.9789096]),
    ("decoder.conv_in.bias", (512,), [-0.03222855, 0.01472326]),
    ("quantize.embedding_vqkd.weight", (32768, 32), [0.47159383, -0.87374055]),
    ("decoder_vqkd.pos_embed", (1, 197, 768), [0.49046755, 0.29155847]),
]


@pytest.mark.parametrize(("key", "shape", "start"), PRINTED, ids=lambda v: str(v)[:24])
def test_hash_weight_starts_with_the_printed_values(key, shape, start):
    weight = hash_weight(key, shape)
    assert weight.shape == shape and weight.dtype == torch.float32
    printed = torch.tensor(start)
    torch.testing.assert_close(
        weight.flatten()[: len(start)], printed, rtol=0, atol=6e-8
    )


def test_stream_starts_at_the_printed_checksum():
    assert zlib.crc32(b"quant_conv.weight") == 959108745


def test_usage_buffer_is_zero():
    assert not hash_weight("quantize.codebook_used", (131072,)).any()


def test_hash_uniform_is_the_scalar_rule():
    def scalar(name, i):
        x = (zlib.crc32(name.encode()) + i * 2654435761) % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return (x ^ x >> 16) / 2**32 * 2 - 1

    for start in (0, 5_000_000_000):  # the second wraps the position itself
        expected = [scalar("a name", start + i) for i in range(64)]
        assert np.array_equal(hash_uniform("a name", start, 64), expected)


def test_chunks_leave_no_seam():
    values = hash_tensor("long", (CHUNK + 3,))
    seam = hash_uniform("long", CHUNK - 2, 5).astype(np.float32)
    assert np.array_equal(values[-5:].numpy(), seam)


@pytest.mark.parametrize("name", ["full_clipb_224", "full_siglip_384"])
def test_hash_image_is_the_recorded_one(name, golden):
    case = golden(name)
    image = hash_image(case.meta["image_name"], case.meta["image_size"])
    recorded = case["in/image_stride8"]
    torch.testing.assert_close(image[..., ::8, ::8], recorded, rtol=0, atol=1e-7)
