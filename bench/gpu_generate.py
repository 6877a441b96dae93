"""How fast the published text-to-image layout paints: 7B, bfloat16, random weights.

    python bench/gpu_generate.py RESULT.json [--device cpu --tiny]

From the ids of prompts to pictures: 947 positions a row with one look at a scale, 2,579
with three, guidance 7.5 against the empty prompt, so rows are padded as they are in
use; decoding by the enhanced decoder at 256 pixels. What weights say changes no time.
The paper has 2.7 s a picture on one A100 and does not say for which batch; it stands
beside a batch of one. A row is a batch and how many looks; of each the median of three
calls, after one that warms up. What does not fit into the memory is told and left out,
and what was measured is written after every row. --tiny runs a small model, to see that
this file works.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from tokenflow import TokenFlowConfig, TokenFlowForGeneration, TokenFlowTokenizer
from tokenflow.generation import sampling
from tokenflow.generation.config import TokenFlowGenerationConfig

PROMPT, GUIDANCE, CALLS = 131, 7.5, 3  # positions before a picture; t; timed calls
PAPER = 2700.0  # ms a picture


def build(device, tiny):
    """Return the model with a tokenizer, in bfloat16, made where it is to run."""
    config = TokenFlowGenerationConfig.preset("mini" if tiny else "llama_7b_256")
    books = TokenFlowConfig.preset("mini" if tiny else "clip_b_256_enhanced")
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = TokenFlowForGeneration(config)
    finally:
        torch.set_default_dtype(usual)
    tokenizer = TokenFlowTokenizer(books).to(torch.bfloat16)
    return model.eval().requires_grad_(False).attach(tokenizer)


def milliseconds(call, device):
    """Return the median of some calls."""
    times = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measure(model, batch, looks, device):
    """Return one row: batch pictures, so many looks at a scale."""
    ids = torch.randint(1, 100, (batch + 1, PROMPT), device=device)
    ids[0, : PROMPT - 4] = model.config.pad_id  # the empty prompt
    ids[2:, : PROMPT // 2] = model.config.pad_id

    def paint():
        return model.generate(
            ids[1:],
            negative_prompt=ids[:1],
            guidance_scale=GUIDANCE,
            refinement=sampling.PASSES[looks],
            generator=torch.Generator(device).manual_seed(0),
            output="pt",
        )

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row = {"batch": batch, "looks": looks}
    try:
        took = milliseconds(paint, device)
    except (ValueError, torch.OutOfMemoryError) as error:
        torch.cuda.empty_cache()
        return {**row, "left_out": str(error).splitlines()[0]}
    row |= {"ms_a_picture": took / batch, "pictures_a_second": 1e3 * batch / took}
    if device.type == "cuda":
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = options.device
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    facts = {"device": name, "torch": torch.__version__}
    model, rows = build(device, options.tiny), []
    print("| batch | looks | ms a picture | pictures a second | paper's time / ours |")
    print("| --: | --: | --: | --: | --: |")
    for looks in (1, 3):
        for batch in (1, 2) if options.tiny else (1, 8, 64):
            row = measure(model, batch, looks, device)
            rows.append(row)
            text = json.dumps({**facts, "rows": rows}, indent=1)
            options.result.write_text(text + "\n")
            if "left_out" in row:
                print(f"| {batch} | {looks} | {row['left_out']} | | |", flush=True)
                continue
            took, rate = row["ms_a_picture"], row["pictures_a_second"]
            beside = f"{PAPER / took:.1f}" if batch == 1 else ""
            cells = f"{took:.1f} | {rate:.2f} | {beside}"
            print(f"| {batch} | {looks} | {cells} |", flush=True)
    return not any("ms_a_picture" in row for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
