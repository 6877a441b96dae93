"""A VQ model of another library, with our search under it: same indices, sooner.

pip install vector-quantize-pytorch; python examples/accelerate_another_library.py
"""

import copy
import time

import torch
from vector_quantize_pytorch import VectorQuantize

import tokenflow_ext as tfx


def milliseconds(model, features):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        model(features)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


torch.manual_seed(0)
theirs = VectorQuantize(dim=32, codebook_size=16384).eval()
ours = tfx.accelerate_vq(copy.deepcopy(theirs))
print("replaced:", tfx.interop.replaced(ours))

features = torch.randn(2, 512, 32)
with torch.no_grad():
    (one, indices, _), (other, same, _) = theirs(features), ours(features)
    print("equal indices:", f"{(indices == same).float().mean().item():.2%}")
    print("equal vectors:", torch.equal(one, other))
    before, after = milliseconds(theirs, features), milliseconds(ours, features)
print(f"theirs {before:.1f} ms, with ours {after:.1f} ms")
