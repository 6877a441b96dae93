"""accelerate_vq: other people's quantizers return what they returned, found exactly."""

import copy
import io
import types

import pytest
import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.autoencoders.vae import VectorQuantizer as DiffusersQuantizer
from torch import nn
from transformers.models.chameleon import modeling_chameleon as chameleon
from transformers.models.emu3 import modeling_emu3 as emu3
from transformers.models.glm_image import modeling_glm_image as glm_image
from transformers.models.janus import modeling_janus as janus
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

import tokenflow_ext as tfx
from tokenflow_ext.interop import replaced

K, D = 64, 8


# By structure: our own plain writing of what those repositories return.


class Taming(nn.Module):
    """VectorQuantizer2 of taming-transformers."""

    def __init__(self, legacy=True, sane_index_shape=False, used=None):
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.legacy = K, D, 0.25, legacy
        self.embedding = nn.Embedding(K, D)
        self.remap = None if used is None else "somewhere"
        self.used = used
        self.sane_index_shape = sane_index_shape

    def remap_to_used(self, indices):
        return (indices[..., None] == self.used).long().argmax(-1)

    def forward(self, z, temp=None, rescale_logits=False, return_logits=False):
        z = z.movedim(1, -1)
        indices = torch.cdist(z.reshape(-1, D), self.embedding.weight).argmin(1)
        q = self.embedding(indices).view_as(z)
        one, two = F.mse_loss(q.detach(), z), F.mse_loss(q, z.detach())
        loss = one + self.beta * two if self.legacy else self.beta * one + two
        if temp is not None:
            loss = loss + temp
        q = (z + (q - z).detach()).movedim(-1, 1)
        if self.remap is not None:
            indices = self.remap_to_used(indices.view(len(z), -1)).view(-1, 1)
        if self.sane_index_shape:
            indices = indices.view(z.shape[:-1])
        return q, loss, (None, None, indices)


class FirstTaming(nn.Module):
    """VectorQuantizer of taming-transformers, which returns the one-hot rows too."""

    def __init__(self):
        super().__init__()
        self.n_e, self.e_dim, self.beta = K, D, 0.25
        self.embedding = nn.Embedding(K, D)

    def forward(self, z):
        z = z.movedim(1, -1)
        indices = torch.cdist(z.reshape(-1, D), self.embedding.weight).argmin(1)
        one_hot = F.one_hot(indices, K).float()
        q = (one_hot @ self.embedding.weight).view_as(z)
        loss = F.mse_loss(q.detach(), z) + self.beta * F.mse_loss(q, z.detach())
        mean = one_hot.mean(0)
        perplexity = (-(mean * (mean + 1e-10).log()).sum()).exp()
        q = (z + (q - z).detach()).movedim(-1, 1)
        return q, loss, (perplexity, one_hot, indices[:, None])


class LlamaGen(nn.Module):
    def __init__(self, l2_norm=True, entropy_loss_ratio=0.1, show_usage=True):
        super().__init__()
        self.n_e, self.e_dim, self.beta = K, D, 0.25
        self.entropy_loss_ratio = entropy_loss_ratio
        self.l2_norm, self.show_usage = l2_norm, show_usage
        self.embedding = nn.Embedding(K, D)
        if show_usage:
            self.register_buffer("codebook_used", torch.zeros(100))

    def forward(self, z):
        unit = (lambda x: F.normalize(x, dim=-1)) if self.l2_norm else (lambda x: x)
        z, book = unit(z.movedim(1, -1)), unit(self.embedding.weight)
        d = (z.reshape(-1, 1, D) - book).square().sum(-1)
        indices = d.argmin(1)
        q = book[indices].view_as(z)
        losses = (None, None, None, 0)
        if self.training:
            usage = 0
            if self.show_usage:
                latest = torch.cat([self.codebook_used, indices.float()])[-100:]
                self.codebook_used.copy_(latest)
                usage = len(latest.unique()) / K
            p = (-d / 0.01).softmax(-1)
            mean = p.mean(0)
            entropy = -(p * (-d / 0.01).log_softmax(-1)).sum(-1).mean()
            entropy = entropy + (mean * (mean + 1e-5).log()).sum()
            commitment = self.beta * F.mse_loss(q.detach(), z)
            entropy = self.entropy_loss_ratio * entropy
            losses = (F.mse_loss(q, z.detach()), commitment, entropy, usage)
        q = (z + (q - z).detach()).movedim(-1, 1)
        return q, losses, (None, None, indices)


class Var(nn.Module):
    """VAR's, with the identity for the convolution of every second scale."""

    def __init__(self, using_znorm=False):
        super().__init__()
        self.vocab_size, self.Cvae, self.using_znorm = K, D, using_znorm
        self.v_patch_nums, self.prog_si = (1, 2, 5), -1
        self.embedding = nn.Embedding(K, D)
        self.convolution = nn.Conv2d(D, D, 3, padding=1)
        self.quant_resi = {
            0.0: nn.Identity(),
            0.5: self.convolution,
            1.0: nn.Identity(),
        }

    def f_to_idxBl_or_fhat(self, f_BChw, to_fhat, v_patch_nums=None):
        grids = [(s, s) for s in v_patch_nums or self.v_patch_nums]
        assert grids[-1] == f_BChw.shape[-2:]
        rest, total, found = f_BChw.detach(), 0, []
        unit = (lambda x: F.normalize(x, dim=-1)) if self.using_znorm else (lambda x: x)
        for i, grid in enumerate(grids):
            z = unit(F.interpolate(rest, grid, mode="area").movedim(1, -1))
            d = torch.cdist(z.reshape(-1, D), unit(self.embedding.weight))
            indices = d.argmin(1).view(z.shape[:-1])
            q = self.embedding(indices).movedim(-1, 1)
            q = F.interpolate(q, grids[-1], mode="bicubic") if grid != grids[-1] else q
            q = self.quant_resi[i / (len(grids) - 1)](q)
            total, rest = total + q, rest - q
            found.append(total if to_fhat else indices.flatten(1))
        return found


class Other(Taming):
    """The structure of taming's, another meaning: the farthest entry."""

    def forward(self, z):
        z = z.movedim(1, -1)
        indices = torch.cdist(z.reshape(-1, D), self.embedding.weight).argmax(1)
        q = self.embedding(indices).view_as(z)
        return q.movedim(-1, 1), F.mse_loss(q, z), (None, None, indices)


def config(**more):
    return types.SimpleNamespace(
        num_embeddings=K, codebook_size=K, embed_dim=D, num_patches=3, beta=0.3, **more
    )


USED = torch.arange(0, K, 2)
EMBEDDINGS = {
    "chameleon": lambda: chameleon.ChameleonVQVAEVectorQuantizer(config()),
    "janus": lambda: janus.JanusVQVAEVectorQuantizer(config()),
    "glm_image": lambda: glm_image.GlmImageVQVAEVectorQuantizer(config()),
    "diffusers": lambda: DiffusersQuantizer(K, D, beta=0.25),
    "diffusers_fixed": lambda: DiffusersQuantizer(
        K, D, beta=0.25, legacy=False, sane_index_shape=True
    ),
    "taming": Taming,
    "taming_fixed": lambda: Taming(legacy=False, sane_index_shape=True),
    "taming_remap": lambda: Taming(used=USED),
    "first_taming": FirstTaming,
    "llamagen": LlamaGen,
    "llamagen_plain": lambda: LlamaGen(False, 0.0, False),
}


def built(make, seed=0):
    torch.manual_seed(seed)
    module = make()
    if hasattr(module, "embedding"):
        nn.init.normal_(module.embedding.weight)
    return module


def picture(seed=1, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, D, 5, 7, generator=generator).to(device)


def assert_same(a, b):
    """The same structure, shapes, dtypes and values, up to rounding."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def scalars(result):
    """Every floating tensor with a gradient that a call returned."""
    if isinstance(result, torch.Tensor):
        return [result] if result.requires_grad else []
    return (
        [x for part in result or () for x in scalars(part)]
        if isinstance(result, tuple | list)
        else []
    )


def run(module, x, seed=3, **options):
    """Result, gradients and buffers of one call, with the same draws each time."""
    torch.manual_seed(seed)
    module.zero_grad()
    x = x.clone().requires_grad_()
    result = module(x, **options)
    floats = scalars(result)
    if floats:
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(t.shape, generator=generator).to(t) for t in floats]
        sum((t * w).sum() for t, w in zip(floats, weights, strict=True)).backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    return (result, (x.grad,), tuple(grads.values()), tuple(buffers.values()))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_one_embedding_returns_what_it_did(name, mode, device):
    theirs = built(EMBEDDINGS[name]).to(device).train(mode)
    if name == "taming_remap":
        theirs.used = USED.to(device)
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    assert list(replaced(ours)) == [""]
    assert isinstance(ours, type(theirs))
    assert type(ours).__name__ == type(theirs).__name__
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for _ in range(2):
        x = picture(device=device)
        assert_same(run(ours, x), run(theirs, x))


def test_emu3_returns_what_it_did(device):
    theirs = built(lambda: emu3.Emu3VQVAEVectorQuantizer(config())).to(device)
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    x = torch.stack([picture(1, device), picture(2, device)], dim=1)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("using_znorm", [False, True])
@pytest.mark.parametrize("to_fhat", [False, True], ids=["indices", "sums"])
def test_var_encodes_as_it_did(using_znorm, to_fhat):
    theirs = built(lambda: Var(using_znorm))
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    assert replaced(ours) == {"": "VAR"}
    x = picture()[..., :5]
    with torch.no_grad():
        found = ours.f_to_idxBl_or_fhat(x, to_fhat)
        assert_same(tuple(found), tuple(theirs.f_to_idxBl_or_fhat(x, to_fhat)))
        found = ours.f_to_idxBl_or_fhat(x, to_fhat, [2, 3, 5])
        expected = theirs.f_to_idxBl_or_fhat(x, to_fhat, [2, 3, 5])
        assert_same(tuple(found), tuple(expected))
    with pytest.raises(AssertionError):
        ours.f_to_idxBl_or_fhat(x, to_fhat, [1, 2, 3])


VECTOR_QUANTIZE = {
    "euclidean": {},
    "cosine": {"use_cosine_sim": True},
    "image": {"accept_image_fmap": True},
    "heads": {"heads": 2, "codebook_dim": 4},
    "codebook_per_head": {"heads": 2, "separate_codebook_per_head": True},
    "projected": {"codebook_dim": 4, "use_cosine_sim": True},
    "kmeans": {"kmeans_init": True, "threshold_ema_dead_code": 2},
    "learnable": {
        "learnable_codebook": True,
        "ema_update": False,
        "rotation_trick": False,
    },
    "orthogonal": {"orthogonal_reg_weight": 1.0, "ema_update": False},
    "diversity": {"codebook_diversity_loss_weight": 1.0},
    "cross_entropy": {"commitment_use_cross_entropy_loss": True},
    "straight": {"rotation_trick": False, "threshold_ema_dead_code": 1},
}


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", VECTOR_QUANTIZE)
def test_vector_quantize_returns_what_it_did(name, mode, device):
    options = VECTOR_QUANTIZE[name]
    theirs = built(lambda: VectorQuantize(D, K, **options)).to(device).train(mode)
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    assert list(replaced(ours)) == ["", "_codebook"]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for seed in range(3):
        x = picture(seed, device)
        x = x if name == "image" else x.flatten(2).transpose(1, 2)
        assert_same(run(ours, x), run(theirs, x))


@pytest.mark.parametrize(
    "options",
    [
        {"mask": torch.arange(35).expand(2, 35) < torch.tensor([[35], [9]])},
        {"indices": torch.zeros(2, 35, dtype=torch.long)},
        {"topk": 3},
        {"freeze_codebook": True},
        {"return_loss_breakdown": True},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_vector_quantize_takes_every_argument(options, mode):
    theirs = built(lambda: VectorQuantize(D, K, threshold_ema_dead_code=1)).train(mode)
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    x = picture().flatten(2).transpose(1, 2)
    a, b = run(ours, x, **options), run(theirs, x, **options)
    if "return_loss_breakdown" in options:
        a, b = (tuple(map(tuple_of, r)) for r in (a, b))
    assert_same(a, b)


def tuple_of(result):
    return tuple(tuple(x) if isinstance(x, tuple) else x for x in result)


def test_residual_quantizers_gain_with_it():
    theirs = built(lambda: ResidualVQ(dim=D, num_quantizers=3, codebook_size=K))
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    assert len(replaced(ours)) == 6
    x = picture().flatten(2).transpose(1, 2)
    assert_same(run(ours.train(), x), run(theirs.train(), x))


def test_the_search_never_makes_every_distance():
    """Peak of one evaluation: far from the N · K floats of the original."""
    module = built(lambda: VectorQuantize(D, 5000, codebook_dim=D)).eval()
    x = torch.randn(1, 1000, D)

    def largest(module):
        sizes = []

        class Watch(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor):
                    sizes.append(result.numel())
                return result

        with torch.no_grad(), Watch():
            module(x)
        return max(sizes)

    assert largest(module) >= 5_000_000
    assert largest(tfx.accelerate_vq(module)) < 5_000_000


def test_indices_differ_only_within_the_margin():
    theirs = built(Taming).eval()
    with torch.no_grad():  # pairs of entries 1e-4 apart: near ties everywhere
        theirs.embedding.weight[1::2] = theirs.embedding.weight[::2]
        theirs.embedding.weight[1::2] += 1e-4 * torch.randn(K // 2, D)
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    x = picture()
    a, b = ours(x)[2][2], theirs(x)[2][2]
    rows, book = (
        x.movedim(1, -1).reshape(-1, D).double(),
        ours.embedding.weight.double(),
    )
    d = (rows[:, None] - book).square().sum(-1)
    assert torch.equal(a, d.argmin(1))
    best = d.topk(2, largest=False).values
    clear = best[:, 1] - best[:, 0] > 1e-5
    assert clear.any()
    assert torch.equal(a[clear], b[clear])


def test_half_precision_becomes_exact():
    module = tfx.accelerate_vq(built(Taming).bfloat16())
    x = picture().bfloat16()
    quantized, _, (_, _, indices) = module(x)
    rows, book = x.movedim(1, -1).reshape(-1, D), module.embedding.weight
    d = (rows[:, None].double() - book.double()).square().sum(-1)
    assert torch.equal(indices, d.argmin(1))
    assert quantized.dtype == torch.bfloat16


def test_vectors_that_are_not_finite_get_entry_0():
    theirs = built(lambda: DiffusersQuantizer(K, D, beta=0.25)).eval()
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    x = picture()
    x[0, :, 0, 0] = torch.nan
    assert torch.equal(ours(x)[2][2], theirs(x)[2][2])


@pytest.mark.parametrize("kind", ["embedding", "codebook"])
def test_entries_changed_in_evaluation_are_met_as_they_are(kind):
    if kind == "embedding":
        module = tfx.accelerate_vq(built(Taming).eval())
        book, x = module.embedding.weight, picture()
    else:
        module = tfx.accelerate_vq(built(lambda: VectorQuantize(D, K)).eval())
        book, x = module._codebook.embed, picture().flatten(2).transpose(1, 2)
    twin = copy.deepcopy(module)
    before = module(x)[0].clone()
    if kind == "embedding":
        optimizer = torch.optim.Adam([book], lr=1.0, fused=True)
        module(x)[1].backward()
        optimizer.step()
        twin.load_state_dict(module.state_dict())
    else:
        book.data.neg_()
        twin._codebook.embed.data.neg_()
    after = module(x)[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, twin(x)[0])


def test_a_whole_model_keeps_its_keys_and_results():
    torch.manual_seed(0)
    theirs = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        num_vq_embeddings=K,
        latent_channels=D,
        norm_num_groups=8,
    ).eval()
    nn.init.normal_(theirs.quantize.embedding.weight)
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    assert replaced(ours) == {"quantize": "diffusers"}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).sample, theirs(x).sample)


def test_calling_again_changes_nothing(caplog):
    caplog.set_level("INFO", "tokenflow_ext.interop")
    module = nn.ModuleDict({"a": built(Taming), "b": VectorQuantize(D, K)})
    assert tfx.accelerate_vq(module) is module
    assert "replaced 3 modules" in caplog.text
    first = [type(m) for m in module.modules()]
    assert replaced(tfx.accelerate_vq(module)) == {
        "a": "taming",
        "b": "vector-quantize-pytorch",
        "b._codebook": "vector-quantize-pytorch codebook",
    }
    assert [type(m) for m in module.modules()] == first


def test_copies_and_pickles_stay_accelerated():
    module = tfx.accelerate_vq(built(Taming).eval())
    expected = module(picture())[0]
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert replaced(twin) == {"": "taming"}
        assert torch.equal(twin(picture())[0], expected)


def test_options_of_the_original_forward_are_passed_on():
    theirs = built(Taming)
    ours = tfx.accelerate_vq(copy.deepcopy(theirs))
    assert_same(ours(picture(), temp=2.0), theirs(picture(), temp=2.0))


class Wrapped(Taming):
    """An embedding that is called with more than indices."""

    def __init__(self):
        super().__init__()
        self.embedding.forward = lambda indices, scale: indices * scale

    def forward(self, z):
        return z


def hooked():
    module = Taming()
    module.forward = module.forward
    return module


LEFT_ALONE = {
    "its forward was replaced on the instance": hooked,
    "it samples its codes": lambda: VectorQuantize(D, K, stochastic_sample_codes=True),
    "it has affine parameters": lambda: VectorQuantize(D, K, affine_param=True),
    "its cosine codebook is learnable": lambda: VectorQuantize(
        D, K, use_cosine_sim=True, orthogonal_reg_weight=1.0, ema_update=False
    ),
    "its forward computes something else": Other,
    "it works otherwise": Wrapped,
    "got a Linear with none": lambda: nn.Linear(3, 3),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_what_does_not_fit_is_left_alone_and_said(reason):
    module = LEFT_ALONE[reason]()
    kinds = [type(m) for m in module.modules()]
    with pytest.raises(ValueError, match=f"accelerate_vq: model must.*{reason}"):
        tfx.accelerate_vq(module)
    assert [type(m) for m in module.modules()] == kinds


def test_what_is_no_module_is_named():
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got dict"):
        tfx.accelerate_vq({})
