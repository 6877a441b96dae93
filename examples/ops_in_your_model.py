"""The ops in a model of your own: an autoencoder with two books that share indices.

python examples/ops_in_your_model.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import tokenflow_ext as tfx

torch.manual_seed(0)
images = F.interpolate(torch.rand(16, 3, 4, 4), size=(16, 16))
encoder = nn.Conv2d(3, 10, 4, stride=4)
books = nn.ParameterList([torch.randn(64, 6), torch.randn(64, 4)])
decoder = nn.ConvTranspose2d(10, 3, 4, stride=4)
model = nn.ModuleList([encoder, books, decoder])
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

for step in range(201):
    features = encoder(images).permute(0, 2, 3, 1)  # [B, h, w, 6 + 4]
    halves = [F.normalize(half, dim=-1) for half in features.split([6, 4], dim=-1)]
    indices = tfx.quantize(*halves, *books)  # [B, h, w]
    entries = tfx.lookup(indices, *books)  # [B, h, w, 6 + 4], moves the books
    features = torch.cat(halves, dim=-1)
    straight = features + (entries - features).detach()  # moves the encoder
    redrawn = decoder(straight.permute(0, 3, 1, 2))

    error = F.mse_loss(redrawn, images)
    optimizer.zero_grad()
    (error + F.mse_loss(entries, features.detach())).backward()
    optimizer.step()
    if step % 100 == 0:
        used = (tfx.code_histogram(indices, 64) > 0).sum()
        print(f"step {step}: error {error:.4f}, {used} of 64 entries in use")
