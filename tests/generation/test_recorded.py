"""Inputs, masks, logits, losses and drawn tokens are those of the published model."""

import json

import numpy as np
import pytest
import torch
from generation_cases import RECORDED, recorded

from tokenflow.generation import inputs
from tokenflow.tokenizer.processing import to_uint8


@pytest.fixture(params=RECORDED, scope="module")
def name(request):
    return request.param


@pytest.fixture
def case(golden, name):
    return golden(name)


@pytest.fixture
def model(case):
    return recorded(case)


def close(made, wanted, tolerance=1e-5):
    torch.testing.assert_close(made, wanted, atol=tolerance, rtol=1e-5)


def halves(case):
    """The prompts and the negative prompts."""
    return case["in/prefix"].long().chunk(2)


@torch.no_grad()
def test_what_is_read_is_recorded(case, model):
    wanted, codes = halves(case)[0], case["in/codes"].long()
    entries = model.entries(codes)
    close(inputs.cascade(entries, model.scales), case["out/tower_feats"])
    nothing = wanted[:, :0]
    close(model.embed_sequence(wanted, codes, nothing), case["out/gen_inputs_embeds"])


@torch.no_grad()
def test_a_second_look_reads_what_was_drawn(case, model):
    """The last scale reads the sum with its own entries instead of without."""
    codes = case["in/codes"].long()
    entries = model.entries(codes)
    count = case.meta["scales"][-1] ** 2
    before = inputs.cascade(entries, model.scales)[:, -count:]
    rows = before + entries[:, -count:]
    start = model.config.num_tokens - count
    found = model.embed_image(rows, len(model.scales) - 1, start)
    recorded_rows = case["out/gen_inputs_embeds_pred_last"][:, -1 - count : -1]
    close(found, recorded_rows)
    assert not torch.allclose(found, case["out/gen_inputs_embeds"][:, -1 - count : -1])


def test_who_sees_whom_is_recorded(case, model):
    real = halves(case)[0] != model.config.pad_id
    seen = inputs.attended(real, model.scales)
    bits = np.unpackbits(case.arrays["out/gen_attn_allowed"])[: seen.numel()]
    assert torch.equal(seen, torch.from_numpy(bits).view(seen.shape).bool())


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_recorded(case, model, attention):
    model.llama.config._attn_implementation = attention
    found = model(halves(case)[0], case["in/codes"].long())
    close(found.logits, case["out/teacher_forced_logits"])


def test_losses_and_gradients_are_recorded(case, model):
    prompt, count = case.meta["prefix_len"], model.config.num_tokens
    ids, codes = case["in/train_input_ids"].long(), case["out/train_codes"].long()
    with torch.no_grad():
        seen = model.image_tokenizer.encode(case["in/images"]).indices
    assert torch.equal(seen, codes)
    found = model(ids[:, :prompt], codes, ids[:, prompt + count :], with_text=True)
    close(found.image_loss, case["out/train_loss_vision"])
    close(found.text_loss, case["out/train_loss_text"])
    close(found.loss, case["out/train_loss"])
    alone = model(ids[:, :prompt], codes, ids[:, prompt + count :])
    assert alone.text_loss is None and torch.equal(alone.loss, found.image_loss)
    alone.loss.backward()
    norms = json.loads(str(case.arrays["out/train_grad_norms"]))
    from tokenflow import checkpoint

    for key, parameter in model.named_parameters():
        theirs = checkpoint.upstream_generation_name(key)
        close(parameter.grad.norm(), torch.tensor(norms.pop(theirs)), 1e-5)
    assert not norms


def test_drawn_tokens_and_pictures_are_recorded(case, model):
    wanted, unwanted = halves(case)
    for number, facts in enumerate(case.meta["generation"]):
        passes = list(zip(facts["topk"], facts["topp"], strict=True))
        settings = {
            "negative_prompt": unwanted,
            "guidance_scale": facts["cfg"],
            "refinement": passes,
        }
        drawn = case[f"out/gen{number}_step_ids"].long()
        draw = torch.Generator().manual_seed(facts["g_seed"])
        found = model.generate(wanted, output="tokens", generator=draw, **settings)
        ends = torch.tensor(case.meta["scales"]).square()
        steps = drawn.split([ends[0], *ends[1:].repeat_interleave(len(passes))], dim=1)
        last = [steps[0], *steps[len(passes) :: len(passes)]]
        assert torch.equal(found, torch.cat(last, dim=1))
        draw = torch.Generator().manual_seed(facts["g_seed"])
        pixels = to_uint8(
            model.generate(wanted, output="pt", generator=draw, **settings)
        )
        published = case[f"out/gen{number}_image_u8"].permute(0, 3, 1, 2)
        assert (pixels.int() - published.int()).abs().max() <= 1


def test_guided_logits_are_recorded(case, model, monkeypatch):
    """Of every pass: whole for the first setting, the maximum for the rest."""
    from tokenflow.generation import sampling

    seen, draw = [], sampling.draw

    def watch(logits, *limits, **more):
        seen.append(logits)
        return draw(logits, *limits, **more)

    monkeypatch.setattr(sampling, "draw", watch)
    wanted, unwanted = halves(case)
    for number, facts in enumerate(case.meta["generation"]):
        seen.clear()
        model.generate(
            wanted,
            negative_prompt=unwanted,
            guidance_scale=facts["cfg"],
            refinement=list(zip(facts["topk"], facts["topp"], strict=True)),
            generator=torch.Generator().manual_seed(facts["g_seed"]),
            output="tokens",
        )
        assert len(seen) == facts["n_model_calls"]
        published = case[f"out/gen{number}_step_logits"]
        if number:
            found = torch.stack([step.amax(dim=(1, 2)) for step in seen], dim=1)
            torch.testing.assert_close(found, published, atol=1e-4, rtol=1e-5)
        else:  # stored in float16
            found = torch.cat(seen, dim=1)
            torch.testing.assert_close(found, published, atol=1e-3, rtol=1e-3)
