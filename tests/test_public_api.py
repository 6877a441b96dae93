"""The public names and signatures: names may be added, never renamed.

A later argument must have a default; those pinned here keep name, kind, default, order.
"""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenflow
import tokenflow_ext as tfx
from tokenflow.tokenizer.model import Encoded

OPS = {
    "quantize": "(semantic, pixel, semantic_book, pixel_book, *, pixel_weight=1.0, "
    "normalize=True, prepared=None, check=False)",
    "nearest": "(vectors, book, *, normalize=False, prepared=None, check=False)",
    "lookup": "(indices, semantic_book, pixel_book, *, normalize=True, check=False)",
    "pyramid_quantize": "(features, semantic_book, pixel_book, scales, *, "
    "pixel_weight=1.0, normalize=True, prepared=None, check=False)",
    "pyramid_lookup": "(indices, semantic_book, pixel_book, scales, *, size=None, "
    "normalize=True)",
    "prepare": "(semantic_book, pixel_book=None, *, normalize=True)",
    "upsample_conv": "(x, weight, bias=None, *, out=None)",
    "conv3x3": "(x, weight, bias=None, *, norm_weight=None, norm_bias=None, "
    "num_groups=32, eps=1e-06, residual=None)",
    "group_norm_silu": "(x, weight, bias, *, num_groups=32, eps=1e-6, out=None)",
    "code_histogram": "(indices, num_codes)",
    "info": "()",
    "accelerate_vq": "(model)",
    "fuse_decoder": "(model)",
}
REFERENCES = OPS.keys() - {"prepare", "info", "accelerate_vq", "fuse_decoder"}
MODULES = [
    "DualCodebook",
    "PyramidQuantizer",
    "UpsampleConv",
    "GroupNormSiLU",
    "Conv3x3",
]
COMMANDS = (
    *("demo", "encode", "decode", "reconstruct", "generate", "answer"),
    *("train", "evaluate", "convert", "bench", "info"),
)
TOKENIZER = {
    "encode": "(self, images)",
    "decode": "(self, encoded, *, output='pil')",
    "understanding_features": "(self, source)",
}
GENERATION = {
    "generate": "(self, prompts, *, guidance_scale=None, refinement=None, "
    "negative_prompt=None, generator=None, num_images=1, scales=None, output='pil')",
    "forward": "(self, prefix, indices, suffix=None)",
    "attach": "(self, tokenizer)",
}
UNDERSTANDING = {
    "answer": "(self, images, question, *, indices=None, system=None, stream=False)",
    "forward": "(self, input_ids=None, pixel_values=None, indices=None, "
    "attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, "
    "labels=None)",
}
UNIFIED = {
    "generate": GENERATION["generate"],
    "answer": "(self, images, question, *, indices=None, system=None, stream=False, "
    "max_new_tokens=512, do_sample=False, temperature=1.0, generator=None)",
    "forward": "(self, prefix=None, indices=None, suffix=None, *, input_ids=None, "
    "attention_mask=None, pictures=None, labels=None)",
}


def departure(function, pinned):
    """Say how a signature departs from the pinned one, or return None."""
    scope = {}
    exec(f"def f{pinned}: ...", scope)
    wanted = dict(inspect.signature(scope["f"]).parameters)
    found = dict(inspect.signature(function).parameters)
    for name, parameter in wanted.items():
        if name not in found:
            return f"{name} is gone"
        now = found.pop(name)
        if (now.kind, now.default) != (parameter.kind, parameter.default):
            return f"{name} was {parameter!r}, is {now.replace(annotation=now.empty)!r}"
    if [n for n in inspect.signature(function).parameters if n in wanted] != [*wanted]:
        return f"the order was {[*wanted]}"
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, now in found.items():
        if now.default is now.empty and now.kind not in variadic:
            return f"{name} is new and has no default"
    return None


@pytest.mark.parametrize("name", OPS)
def test_op_keeps_its_signature(name):
    assert name in tfx.__all__
    assert departure(getattr(tfx, name), OPS[name]) is None


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_op_has_a_public_reference(name):
    assert callable(getattr(tfx.reference, name))


@pytest.mark.parametrize("name", MODULES)
def test_module_keeps_its_name(name):
    assert name in tfx.nn.__all__
    assert issubclass(getattr(tfx.nn, name), torch.nn.Module)


@pytest.mark.parametrize("name", TOKENIZER)
def test_tokenizer_method_keeps_its_signature(name):
    method = getattr(tokenflow.TokenFlowTokenizer, name)
    assert departure(method, TOKENIZER[name]) is None


@pytest.mark.parametrize("name", GENERATION)
def test_generation_method_keeps_its_signature(name):
    method = getattr(tokenflow.TokenFlowForGeneration, name)
    assert departure(method, GENERATION[name]) is None


@pytest.mark.parametrize("name", UNDERSTANDING)
def test_understanding_method_keeps_its_signature(name):
    method = getattr(tokenflow.TokenFlowForUnderstanding, name)
    assert departure(method, UNDERSTANDING[name]) is None


@pytest.mark.parametrize("name", UNIFIED)
def test_unified_method_keeps_its_signature(name):
    method = getattr(tokenflow.TokenFlowUnified, name)
    assert departure(method, UNIFIED[name]) is None


def test_tokenizer_loads_and_saves_as_transformers_models_do():
    from transformers import PreTrainedModel

    assert issubclass(tokenflow.TokenFlowTokenizer, PreTrainedModel)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_keeps_its_name(name):
    from tokenflow.cli import build

    app = build()
    assert name in {c.name for c in (*app.registered_commands, *app.registered_groups)}


def test_encoded_keeps_its_fields():
    fields = [field.name for field in dataclasses.fields(Encoded)]
    assert fields[:3] == ["indices", "quantized", "scales"]


@pytest.mark.parametrize(
    "name",
    [
        *("TokenFlowTokenizer", "TokenFlowConfig", "Encoded"),
        *("TokenFlowForGeneration", "TokenFlowGenerationConfig"),
        *("TokenFlowForUnderstanding", "TokenFlowUnderstandingConfig"),
        "TokenFlowProcessor",
    ],
)
def test_name_is_at_the_top_of_tokenflow(name):
    assert name in tokenflow.__all__
    assert name in dir(tokenflow)
    assert getattr(tokenflow, name).__name__ == name


def test_info_keeps_its_keys():
    keys = ["version", "torch", "kernels", "build", "isa", "isas", "threads"]
    assert {*keys, "cuda_device"} <= set(tfx.info())


@pytest.mark.parametrize(
    "source, words",
    [
        ("def f(a): ...", "b is gone"),
        ("def f(a, b=2): ...", "b was"),
        ("def f(a, *, b=1): ...", "b was"),
        ("def f(b=1, a=0): ...", "a was"),
        ("def f(a, b=1, *, c): ...", "no default"),
        ("def f(a, b=1, *, c=None): ...", None),
    ],
)
def test_a_departure_is_told(source, words):
    scope = {}
    exec(source, scope)
    told = departure(scope["f"], "(a, b=1)")
    assert told is None if words is None else words in told


def run(code, folder):
    """Run Python in an empty folder; return what it printed, on both streams."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_tokenflow_is_light(tmp_path):
    heavy = "{'torch', 'numpy', 'transformers', 'PIL'}"
    code = f"import sys, tokenflow; print({heavy} & sys.modules.keys())"
    assert run(code, tmp_path).strip() == "set()"


def test_importing_the_ops_leaves_the_compiler_alone(tmp_path):
    # A second and more, before anybody has compiled anything.
    code = "import sys, tokenflow_ext; print('torch._dynamo' in sys.modules)"
    assert run(code, tmp_path).strip() == "False"


def test_importing_the_ops_does_nothing_else(tmp_path):
    code = (
        "import torch, random; torch.manual_seed(5); random.seed(5);"
        "before = torch.get_rng_state(), random.getstate(), torch.get_num_threads();"
        "import tokenflow_ext, tokenflow_ext.nn, tokenflow_ext.testing;"
        "after = torch.get_rng_state(), random.getstate(), torch.get_num_threads();"
        "assert before[0].equal(after[0]) and before[1:] == after[1:]"
    )
    assert run(code, tmp_path) == ""
    assert not [*tmp_path.iterdir()]


def test_an_old_torch_is_one_sentence(tmp_path):
    code = (
        "import torch; torch.__version__ = type(torch.__version__)('2.10.1')\n"
        "try: import tokenflow_ext\nexcept ImportError as error: print(error)"
    )
    told = run(code, tmp_path)
    assert told.strip() == "tokenflow_ext: needs torch >= 2.11, found 2.10.1"


def test_the_compiled_kernels_are_the_ones_in_use():
    """Also from the repository's root, where the sources' folder has the same name."""
    code = "import tokenflow_ext as tfx; tfx.nn; print(tfx.info()['kernels'])"
    assert run(code, Path(__file__).resolve().parent.parent).strip() == "compiled"
