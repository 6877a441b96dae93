"""A folder of pictures as one array of tokens, ready to train a language model on.

python examples/tokenise_a_folder.py PHOTOS OUT.safetensors [MODEL]
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer.processing import open_image

folder, out, name = (*sys.argv[1:], "mini")[:3]
tokenizer = TokenFlowTokenizer.from_pretrained(name)
paths = sorted(p for p in Path(folder).rglob("*") if p.suffix in (".png", ".jpg"))

rows, names = [], []
for path in tqdm(paths):
    try:
        encoded = tokenizer.encode(open_image(path))
    except ValueError as error:  # a broken file stops nothing
        print(error, file=sys.stderr)
        continue
    rows.append(encoded.indices)
    names.append(path.relative_to(folder).as_posix())

indices = torch.cat(rows)  # [pictures, tokens]
facts = {"names": json.dumps(names), "model": tokenizer.fingerprint()}
save_file({"indices": indices.to(torch.int32)}, out, facts)
print(f"{len(names)} pictures, {indices.shape[1]} tokens each, in {out}")
print("first tokens of the first:", indices[0, :8].tolist())
