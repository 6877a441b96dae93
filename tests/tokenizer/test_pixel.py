"""The convolutional encoder and decoder are the published ones, part by part.

Recorded cases judge the numbers; their README promises 1e-5, measured here is
at most 7e-6 (the deepest decoder), so the tolerance is the promised one.
"""

import pytest
import torch
from golden_weights import case_weights, renamed

from tokenflow.tokenizer.pixel import (
    AttentionBlock,
    Downsample,
    PixelDecoder,
    PixelEncoder,
    ResidualBlock,
)
from tokenflow_ext.nn import UpsampleConv

TOLERANCE = 1e-5


def our_key(key):
    """Upstream's name of a convolutional weight → ours."""
    return (
        key.replace("downsample.conv.", "resize.")
        .replace("upsample.conv.", "resize.")
        .removeprefix("conv.")  # a resizing step recorded alone
    )


def loaded(module, case, device):
    module.load_state_dict(renamed(case_weights(case), our_key), strict=True)
    return module.to(device).eval()


def build(case, device):
    """Return the module of a recorded case, named in its description."""
    meta = case.meta
    desc = meta["desc"]
    if "ResnetBlock" in desc:
        module = ResidualBlock(meta["cin"], meta["cout"])
    elif "AttnBlock" in desc:
        module = AttentionBlock(meta["c"])
    elif "Downsample" in desc:
        module = Downsample(meta["c"])
    elif "Upsample" in desc:
        module = UpsampleConv(meta["c"])
    else:
        kind = PixelEncoder if "Encoder" in desc else PixelDecoder
        module = kind(
            meta["ch"], meta["ch_mult"], meta["num_res_blocks"], meta["z_channels"]
        )
    return loaded(module, case, device)


CASES = [
    *("resblock_same", "resblock_shortcut", "resblock_2"),
    *("attnblock_0", "attnblock_1"),
    *("downsample_0", "downsample_1", "upsample_0", "upsample_1"),
    *("encoder_0", "encoder_1", "encoder_2"),
    *("decoder_0", "decoder_1", "decoder_2"),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_recorded_case_is_reproduced(name, layout, golden, device):
    case = golden(name)
    module = build(case, device)
    x = case["in/x"].to(device)
    if layout == "channels_last":
        module = module.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = module(x)
    torch.testing.assert_close(y.cpu(), case["out/y"], rtol=0, atol=TOLERANCE)


def parameters(build_module):
    with torch.device("meta"):
        return sum(p.numel() for p in build_module().parameters())


def test_full_size_parts_have_the_published_parameter_counts():
    assert parameters(PixelEncoder) == 29_298_176
    assert parameters(PixelDecoder) == 42_449_795
    assert parameters(lambda: PixelDecoder(256, blocks=4)) == 237_117_187


def test_decoder_returns_to_the_size_the_encoder_read():
    torch.manual_seed(0)
    encoder = PixelEncoder(32, (1, 1, 2), 1, 8)
    decoder = PixelDecoder(32, (1, 1, 2), 1, 8)
    images = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        latent = encoder(images)
        assert latent.shape == (2, 8, 2, 3)
        assert decoder(latent).shape == images.shape


def test_one_level_keeps_the_size():
    with torch.no_grad():
        latent = PixelEncoder(32, (1,), 1, 4)(torch.zeros(1, 3, 5, 7))
    assert latent.shape == (1, 4, 5, 7)


def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    encoder = PixelEncoder(32, (1, 2), 1, 4)
    decoder = PixelDecoder(32, (1, 2), 1, 4)
    decoder(encoder(torch.randn(1, 3, 4, 6))).square().sum().backward()
    for part in (encoder, decoder):
        silent = [n for n, p in part.named_parameters() if not p.grad.abs().sum() > 0]
        # A key's bias shifts all scores of a query alike, and softmax ignores that.
        assert [name for name in silent if not name.endswith("k.bias")] == []


def test_residual_block_by_hand():
    """All convolutions zero but the shortcut, which doubles: y = 2x."""
    block = ResidualBlock(32, 64)
    for p in block.parameters():
        torch.nn.init.zeros_(p)
    with torch.no_grad():
        eye = torch.eye(32).repeat(2, 1)[..., None, None]
        block.nin_shortcut.weight.copy_(2 * eye)
        x = torch.randn(1, 32, 3, 3)
        assert torch.equal(block(x), torch.cat([2 * x, 2 * x], 1))


def test_downsample_looks_right_and_down():
    """A kernel with a one only in its last corner reads the pixel at (2i+2, 2j+2)."""
    down = Downsample(1)
    with torch.no_grad():
        down.weight.zero_()
        down.bias.zero_()
        down.weight[0, 0, 2, 2] = 1
        x = torch.arange(16.0).reshape(1, 1, 4, 4)
        assert down(x).flatten().tolist() == [10.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("part", [PixelEncoder, PixelDecoder])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 48}, "multiple of 32, got width 48"),
        ({"multipliers": ()}, "one or more numbers"),
        ({"multipliers": (1, 0)}, "one or more numbers"),
        ({"blocks": 0}, "blocks must be ≥ 1, got 0"),
    ],
)
def test_plans_that_cannot_be_built_are_named(part, options, words):
    with pytest.raises(ValueError, match=words):
        part(**options)


def test_inputs_that_do_not_fit_are_named():
    encoder = PixelEncoder(32, (1, 1), 1, 4)
    decoder = PixelDecoder(32, (1, 1), 1, 4)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\], got \[1, 4, 8, 8\]"):
        encoder(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="multiples of 2, got 8×7"):
        encoder(torch.zeros(1, 3, 8, 7))
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\], got \[1, 3, 8, 8\]"):
        decoder(torch.zeros(1, 3, 8, 8))
