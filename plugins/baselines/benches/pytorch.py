"""Trains the network of `unet` in PyTorch by the same recipe, to compare Dice and time with a run.

With torch, numpy and pillow installed, and the folder of a finished run on CVC-ClinicDB (PNG) that
was not augmented:

    diffaug run manifests/cvc-cpu.toml --set dataset.root=ROOT --set images.size=128 \
        --set synthesis.ratio=0 --set augment.enabled=false --set output=RUN --set \
        'evaluate.segmenter={ use = "unet", size = 128, width = 16, epochs = 30, batch = 8, patience = 0 }'
    python plugins/baselines/benches/pytorch.py ROOT RUN --width 16 --epochs 30 --batch 8 --seed 0

It takes the split from RUN/split.json. The recipe: images and masks at `--size`, batches of equal
size in an order drawn anew for each epoch, Dice over the batch plus binary cross-entropy, AdamW
(weight decay 1e-4), gradients clipped at norm 1, 20 steps of warm-up and a cosine to 0, weights with
the best validation Dice kept, mean Dice of the test images at a threshold of 0.5.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

options = argparse.ArgumentParser()
options.add_argument("root", type=Path)
options.add_argument("run", type=Path)
options.add_argument("--size", type=int, default=128)
options.add_argument("--width", type=int, default=16)
options.add_argument("--depth", type=int, default=4)
options.add_argument("--epochs", type=int, default=30)
options.add_argument("--batch", type=int, default=8)
options.add_argument("--lr", type=float, default=1e-3)
options.add_argument("--seed", type=int, default=0)
options.add_argument("--threads", type=int, default=2)
options = options.parse_args()
torch.set_num_threads(options.threads)
torch.manual_seed(options.seed)


class Double(nn.Sequential):
    def __init__(self, inputs, outputs):
        half = lambda i: [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*half(inputs), *half(outputs))


class UNet(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        pairs = list(zip(widths, widths[1:]))
        self.entry = Double(3, width)
        self.down = nn.ModuleList([Double(a, b) for a, b in pairs])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs])
        self.up = nn.ModuleList([Double(2 * a, a) for a, _ in pairs])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        x = self.entry(x)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for grow, block in reversed(list(zip(self.grow, self.up))):
            x = block(torch.cat([skips.pop(), grow(x)], 1))
        return self.head(x)


def load(names):
    """Images as [-1, 1] and masks as 0 or 1."""
    side = (options.size, options.size)
    images, masks = [], []
    for name in names:
        find = lambda folder: next((options.root / "PNG" / folder).glob(f"{name}.*"))
        image = Image.open(find("Original")).convert("RGB").resize(side, Image.BILINEAR)
        mask = Image.open(find("Ground Truth")).convert("L").resize(side, Image.NEAREST)
        images.append(np.asarray(image, np.float32) / 127.5 - 1)
        masks.append(np.asarray(mask) > 127)
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(np.stack(masks)).float().unsqueeze(1)


def dice_of(net, images, masks):
    net.eval()
    scores = []
    with torch.no_grad():
        for x, y in zip(images.split(options.batch), masks.split(options.batch)):
            found = net(x) > 0
            both = (found * y).sum((1, 2, 3))
            total = found.sum((1, 2, 3)) + y.sum((1, 2, 3))
            scores.append(torch.where(total > 0, 2 * both / total, torch.ones_like(both)))
    net.train()
    return torch.cat(scores).mean().item()


def loss_of(logits, y):
    p = logits.sigmoid()
    dice = (2 * (p * y).sum() + 1e-6) / (p.sum() + y.sum() + 1e-6)
    return 1 - dice + F.binary_cross_entropy_with_logits(logits, y)


split = json.load(open(options.run / "split.json"))
data = {part: load(split[part]) for part in ("train", "validation", "test")}
images, masks = data["train"]
net = UNet(options.width, options.depth)
optimiser = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=1e-4)
count = len(images)
per_epoch = math.ceil(count / options.batch)
total, warmup = per_epoch * options.epochs, 20
best, kept, step = -1.0, None, 0
begin = time.perf_counter()
for epoch in range(options.epochs):
    order = torch.randperm(count)
    for place in range(per_epoch):
        batch = order[place * count // per_epoch : (place + 1) * count // per_epoch]
        share = min(1.0, (step - warmup) / max(1, total - warmup))
        rate = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
        optimiser.param_groups[0]["lr"] = options.lr * rate
        optimiser.zero_grad()
        loss = loss_of(net(images[batch]), masks[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
    score = dice_of(net, *data["validation"])
    if score > best:
        best, kept = score, {name: value.clone() for name, value in net.state_dict().items()}
    print(f"epoch {epoch + 1}: loss {loss.item():.4f}, validation dice {score:.4f}", flush=True)
seconds = time.perf_counter() - begin
net.load_state_dict(kept)
print(f"seed {options.seed}: test dice {dice_of(net, *data['test']):.4f}, best validation {best:.4f}, {seconds:.0f} s for {step} steps")
