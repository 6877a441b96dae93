"""fuse_decoder: other people's decoders redraw the same, in fewer passes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from transformers import ChameleonVQVAEConfig, Emu3VQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

import tokenflow_ext as tfx
from tokenflow_ext.interop import replaced

# By structure: our own plain writing of the blocks of taming-transformers.


class Block(nn.Module):
    def __init__(self, channels, out_channels, time_width=0):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        if time_width:
            self.temb_proj = nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(8, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(0.2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, temb=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            h = h + temb
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Swapped(Block):
    """The structure of a block, another order."""

    def forward(self, x):
        return super().forward(self.norm1(x))


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.with_conv = True
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Upsample2x(Upsample):
    """VAR's name for it."""


class UpsampleSmoothly(Upsample):
    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))


TINY = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "embed_dim": 8,
    "latent_channels": 8,
    "attn_resolutions": [],
    "resolution": 16,
}


def emu3():
    config = {**TINY, "codebook_size": 16, "temporal_downsample_factor": 1}
    config |= {"hidden_size": 64, "num_attention_heads": 1}
    return Emu3VQVAE(Emu3VQVAEConfig(**config))


def vq_model():
    return VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=8,
        norm_num_groups=8,
    )


MODELS = {
    "janus": lambda: JanusVQVAE(JanusVQVAEConfig(**TINY, num_patches=8)).decoder,
    "chameleon": lambda: ChameleonVQVAE(ChameleonVQVAEConfig(**TINY)).encoder,
    "emu3_encoder": lambda: emu3().encoder,
    "emu3_decoder": lambda: emu3().decoder,
    "diffusers_vq": lambda: vq_model().decoder,
    "diffusers_vq_encoder": lambda: vq_model().encoder,
    "diffusers_kl": lambda: (
        AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=8,
            norm_num_groups=8,
        ).decoder
    ),
    "taming": lambda: nn.Sequential(Block(8, 16), Upsample(16), Block(16, 16)),
    "var": lambda: nn.Sequential(Upsample2x(8), Block(8, 8)),
}
# What each must find: blocks, upsamplings, norms at the end.
COUNTS = {
    "janus": (6, 1, 0),
    "chameleon": (4, 0, 0),
    "emu3_encoder": (4, 0, 0),
    "emu3_decoder": (0, 1, 0),
    "diffusers_vq": (6, 1, 1),
    "diffusers_vq_encoder": (4, 0, 1),
    "diffusers_kl": (6, 1, 1),
    "taming": (2, 1, 0),
    "var": (1, 1, 0),
}
PICTURES = {
    "chameleon": (2, 3, 16, 16),
    "diffusers_vq_encoder": (2, 3, 16, 16),
    "emu3_encoder": (1, 2, 3, 16, 16),
    "emu3_decoder": (1, 2, 8, 8, 8),
}


def built(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs(name, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(PICTURES.get(name, (2, 8, 8, 8)), generator=generator).to(device)
    return (x, x.flip(0)) if name == "emu3_decoder" else (x,)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_redraws_the_same(name, device):
    theirs = built(name).to(device)
    ours = tfx.fuse_decoder(copy.deepcopy(theirs))
    kinds = list(replaced(ours).values())
    found = [sum(kind.endswith(end) for kind in kinds) for end in ENDS]
    assert tuple(found) == COUNTS[name]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for mode in (False, True):
        results = []
        for model in (ours, theirs):
            torch.manual_seed(2)  # dropout
            arguments = [x.clone().requires_grad_() for x in inputs(name, device)]
            model.zero_grad()
            y = model.train(mode)(*arguments)
            (
                y * torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
            ).sum().backward()
            grads = [x.grad for x in arguments] + [p.grad for p in model.parameters()]
            results.append((y, grads))
        (y, grads), (expected, expected_grads) = results
        # float32, sums in another order
        torch.testing.assert_close(y, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(grads, expected_grads, atol=2e-4, rtol=1e-3)


ENDS = ("block", "upsampling", "norm")


def test_parameters_are_shared_not_copied():
    model = built("taming")
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    tfx.fuse_decoder(model)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    x = inputs("taming")[0]
    y = model(x)
    with torch.no_grad():
        model[1].conv.weight.neg_()
    assert not torch.allclose(model(x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_errs_no_more_than_the_original(dtype):
    exact = built("taming")
    theirs = copy.deepcopy(exact).to(dtype)
    ours = tfx.fuse_decoder(copy.deepcopy(theirs))
    x = inputs("taming")[0].to(dtype)
    with torch.no_grad():
        wanted = copy.deepcopy(theirs).double()(x.double())
        error = (ours(x).double() - wanted).abs().max()
        allowed = (theirs(x).double() - wanted).abs().max()
    assert ours(x).dtype == dtype
    assert error <= 2 * allowed + 1e-6


def test_arguments_of_the_original_forward_are_passed_on():
    theirs = Upsample2D(8, use_conv=True)
    ours = tfx.fuse_decoder(copy.deepcopy(theirs))
    x = torch.randn(1, 8, 3, 4)
    torch.testing.assert_close(ours(x, (7, 9)), theirs(x, (7, 9)), rtol=0, atol=0)
    torch.testing.assert_close(ours(x, None), theirs(x))
    block = Block(8, 8).eval()
    fused = tfx.fuse_decoder(copy.deepcopy(block))
    temb = torch.randn(1, 8, 3, 4)
    torch.testing.assert_close(fused(x, temb), block(x, temb), rtol=0, atol=0)
    torch.testing.assert_close(fused(x, None), block(x))


def test_calling_again_changes_nothing():
    model = built("diffusers_vq")
    assert tfx.fuse_decoder(model) is model
    first = [type(m) for m in model.modules()]
    tfx.fuse_decoder(model)
    assert [type(m) for m in model.modules()] == first


def test_a_decoder_of_ours_is_fused_already():
    model = nn.Sequential(tfx.nn.GroupNormSiLU(32), tfx.nn.UpsampleConv(32))
    kinds = [type(m) for m in model.modules()]
    assert tfx.fuse_decoder(model) is model
    assert [type(m) for m in model.modules()] == kinds
    assert replaced(model) == {}


def resnet(**options):
    return ResnetBlock2D(
        **{"in_channels": 8, "groups": 4, "temb_channels": None} | options
    )


LEFT_ALONE = {
    "it takes a time embedding": lambda: resnet(temb_channels=16),
    "its activation is Mish": lambda: resnet(non_linearity="mish"),
    "it changes the size": lambda: resnet(up=True),
    "it has no plain convolution": lambda: Upsample2D(8),
    "it has a norm": lambda: Upsample2D(8, use_conv=True, norm_type="ln_norm"),
    "its convolution is not 3": lambda: Upsample2D(8, True, kernel_size=1, padding=0),
    "taming block, its forward computes": lambda: Swapped(8, 8),
    "taming upsampling, its forward computes": lambda: UpsampleSmoothly(8),
    "got a Block with none": lambda: Block(8, 8, time_width=4),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_what_does_not_fit_is_left_alone_and_said(reason):
    module = LEFT_ALONE[reason]()
    kinds = [type(m) for m in module.modules()]
    with pytest.raises(ValueError, match=f"fuse_decoder: model must.*{reason}"):
        tfx.fuse_decoder(module)
    assert [type(m) for m in module.modules()] == kinds


def test_what_is_no_module_is_named():
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got list"):
        tfx.fuse_decoder([])
