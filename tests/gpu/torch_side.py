"""The side of PyTorch in tests/gpu/check: the same work in PyTorch and diffusers, and pictures compared.

    torch_side.py alike A B LIMIT                 # largest difference in grey levels
    torch_side.py masks A B SHARE                 # share of pixels that differ
    torch_side.py sdxl MODEL SIZE COUNT BATCH STEPS DEVICE DTYPE    # pictures a second
    torch_side.py lora MODEL SIZE DEVICE          # milliseconds of a training step, like those below
    torch_side.py latent-seg SIZE BATCH DEVICE
    torch_side.py unet WIDTH SIZE BATCH DEVICE
    torch_side.py times OURS DEVICE TABLE         # operations; writes a table
"""

import math
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# Convolutions of f32 are to be compared with convolutions of f32; products of matrices are so anyway.
torch.backends.cudnn.allow_tf32 = False


def picture(path):
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"), np.float32)


def alike(a, b, limit):
    import numpy as np

    off = np.abs(picture(a) - picture(b))
    print(f"pictures differ by {off.max():.0f} grey levels at most, {off.mean():.4f} in the mean")
    return off.max() <= float(limit)


def masks(a, b, share):
    off = (picture(a) != picture(b)).any(-1).mean()
    print(f"masks differ at {100 * off:.3f} % of the pixels")
    return off <= float(share)


def synchronize(device):
    if device != "cpu":
        torch.cuda.synchronize()


def milliseconds(step, device, count=None):
    """The median time of a step, after three that do not count."""
    count = count or (3 if device == "cpu" else 15)
    times = []
    for _ in range(count + 3):
        synchronize(device)
        begin = time.perf_counter()
        step()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[3:])


def sdxl(model, size, count, batch, steps, device, dtype):
    from diffusers import StableDiffusionXLInpaintPipeline
    from PIL import Image
    import numpy as np

    size, count, batch, steps = map(int, (size, count, batch, steps))
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    pipe = StableDiffusionXLInpaintPipeline.from_pretrained(model, torch_dtype=kind).to(device)
    pipe.set_progress_bar_config(disable=True)
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (size, size, 3), np.uint8))
    hole = np.zeros((size, size), np.uint8)
    hole[size // 4 : size // 2, size // 4 : size // 2] = 255
    hole = Image.fromarray(hole)

    def paint(number, steps):
        pipe(
            prompt=["sessile polyp"] * number,
            negative_prompt=["healthy mucosa"] * number,
            image=[image] * number,
            mask_image=[hole] * number,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=7.5,
            strength=1.0,
        )
        synchronize(device)

    paint(min(batch, count), 2)
    begin = time.perf_counter()
    for start in range(0, count, batch):
        paint(min(batch, count - start), steps)
    print(f"{count / (time.perf_counter() - begin):.3f}")
    return True


class Adapted(nn.Module):
    """A linear map with an adapter of low rank beside it."""

    def __init__(self, inner, rank):
        super().__init__()
        self.inner = inner
        kwargs = dict(device=inner.weight.device, dtype=torch.float32)
        self.down = nn.Parameter(torch.randn(rank, inner.in_features, **kwargs) * 0.02)
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank, **kwargs))

    def forward(self, x):
        return self.inner(x) + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def lora(model, size, device):
    from diffusers import UNet2DConditionModel

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    net = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=dtype).to(device)
    net.requires_grad_(False)
    adapters = []
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if name in ("to_q", "to_k", "to_v") and isinstance(child, nn.Linear):
                setattr(module, name, Adapted(child, 16))
                adapters.append(getattr(module, name))
            if name == "to_out" and isinstance(child, nn.ModuleList):
                child[0] = Adapted(child[0], 16)
                adapters.append(child[0])
    parameters = [p for a in adapters for p in (a.down, a.up)]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    config, side = net.config, int(size) // 8
    draw = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    x, context = draw(1, config.in_channels, side, side), draw(1, 77, config.cross_attention_dim)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    added = {"text_embeds": draw(1, pooled), "time_ids": torch.full((1, 6), float(size), device=device)}
    target = torch.randn(1, 4, side, side, device=device)

    def step():
        optimiser.zero_grad()
        found = net(x, torch.tensor([500], device=device), context, added_cond_kwargs=added).sample
        F.mse_loss(found.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    print(f"{milliseconds(step, device):.2f}")
    return True


class Residual(nn.Module):
    """A residual block of the latent diffusion models (openaimodel.ResBlock), told the time by scale and
    shift, that may change the resolution."""

    def __init__(self, inputs, outputs, time, resize=None):
        super().__init__()
        self.resize = resize
        self.norm1, self.conv1 = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, 2 * outputs)
        self.norm2, self.conv2 = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def sized(self, x):
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2)
        return F.avg_pool2d(x, 2) if self.resize == "down" else x

    def forward(self, x, t):
        y = self.conv1(self.sized(F.silu(self.norm1(x))))
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, 1)
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return self.skip(self.sized(x)) + y


class Attends(nn.Module):
    """Self-attention of pixels with eight heads (openaimodel.AttentionBlock)."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.qkv, self.out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x, _):
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2)).view(n, 3, 8, c // 8, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h * w)
        return x + self.out(y).view(n, c, h, w)


class Denoiser(nn.Module):
    """The published denoising network of `sdseg`: 192 channels times 1, 2, 2, 4, 4, attention at every
    resolution but the lowest."""

    def __init__(self, inputs=8, outputs=4, width=192, factors=(1, 2, 2, 4, 4)):
        super().__init__()
        self.width, time = width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.entry = nn.Conv2d(inputs, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        present, skips = width, [width]
        for level, factor in enumerate(factors):
            attends = level < len(factors) - 1
            for _ in range(2):
                parts = [Residual(present, factor * width, time)]
                present = factor * width
                parts += [Attends(present)] if attends else []
                self.down.append(nn.ModuleList(parts))
                skips.append(present)
            if attends:
                self.down.append(nn.ModuleList([Residual(present, present, time, "down")]))
                skips.append(present)
        self.middle = nn.ModuleList(
            [Residual(present, present, time), Attends(present), Residual(present, present, time)]
        )
        for level, factor in reversed(list(enumerate(factors))):
            attends = level < len(factors) - 1
            for i in range(3):
                parts = [Residual(present + skips.pop(), factor * width, time)]
                present = factor * width
                parts += [Attends(present)] if attends else []
                if level and i == 2:
                    parts.append(Residual(present, present, time, "up"))
                self.up.append(nn.ModuleList(parts))
        self.exit = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x, t):
        half = self.width // 2
        angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half, device=x.device) / half)
        t = self.time(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        x = self.entry(x)
        skips = [x]
        for parts in self.down:
            for part in parts:
                x = part(x, t)
            skips.append(x)
        for part in self.middle:
            x = part(x, t)
        for parts in self.up:
            x = torch.cat([x, skips.pop()], 1)
            for part in parts:
                x = part(x, t)
        return self.exit(x)


class Vision(nn.Module):
    """The trainable encoder of `sdseg`: that of its autoencoder, 128 channels times 1, 2, 4, 4."""

    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
            self.norm2, self.conv2 = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
            self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

        def forward(self, x):
            y = self.conv1(F.silu(self.norm1(x)))
            return self.skip(x) + self.conv2(F.silu(self.norm2(y)))

    class Mix(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.norm = nn.GroupNorm(32, channels)
            self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

        def forward(self, x):
            n, c, h, w = x.shape
            y = self.norm(x)
            q, k, v = (f(y).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).view(n, c, h, w)
            return x + self.out(y)

    class Shrink(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, 2)

        def forward(self, x):
            return self.conv(F.pad(x, (0, 1, 0, 1)))

    def __init__(self, width=128, factors=(1, 2, 4, 4)):
        super().__init__()
        parts, present = [nn.Conv2d(3, width, 3, padding=1)], width
        for level, factor in enumerate(factors):
            for _ in range(2):
                parts.append(self.Block(present, factor * width))
                present = factor * width
            if level < len(factors) - 1:
                parts.append(self.Shrink(present))
        parts += [self.Block(present, present), self.Mix(present), self.Block(present, present)]
        parts += [nn.GroupNorm(32, present), nn.SiLU(), nn.Conv2d(present, 8, 3, padding=1), nn.Conv2d(8, 4, 1)]
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return self.parts(x)


def latent_seg(size, batch, device):
    size, batch = int(size), int(batch)
    net, vision = Denoiser().to(device), Vision().to(device)
    counts = [sum(p.numel() for p in part.parameters()) for part in (net, vision)]
    if counts != [294_973_828, 34_163_628]:
        print(f"the twin has {counts} parameters, not those of the published network", file=sys.stderr)
        return False
    parameters = [*net.parameters(), *vision.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    x = torch.randn(batch, 3, size, size, device=device)
    z = torch.randn(batch, 4, size // 8, size // 8, device=device)
    t = torch.full((batch,), 500.0, device=device)

    def step():
        optimiser.zero_grad()
        found = net(torch.cat([z, vision(x)], 1), t)
        (found - z).abs().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    print(f"{milliseconds(step, device):.2f}")
    return True


class Double(nn.Sequential):
    def __init__(self, inputs, outputs):
        half = lambda i: [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*half(inputs), *half(outputs))


class UNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        widths = [width << level for level in range(5)]
        pairs = list(zip(widths, widths[1:]))
        self.entry, self.down = Double(3, width), nn.ModuleList([Double(a, b) for a, b in pairs])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs])
        self.up = nn.ModuleList([Double(2 * a, a) for a, _ in pairs])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        x, skips = self.entry(x), []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for grow, block in reversed(list(zip(self.grow, self.up))):
            x = block(torch.cat([skips.pop(), grow(x)], 1))
        return self.head(x)


def unet(width, size, batch, device):
    width, size, batch = int(width), int(size), int(batch)
    net = UNet(width).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
    x = torch.randn(batch, 3, size, size, device=device)
    y = (torch.rand(batch, 1, size, size, device=device) > 0.8).float()

    def step():
        optimiser.zero_grad()
        found = net(x)
        p = found.sigmoid()
        dice = 1 - (2 * (p * y).sum() + 1e-6) / (p.sum() + y.sum() + 1e-6)
        (dice + F.binary_cross_entropy_with_logits(found, y)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()

    print(f"{milliseconds(step, device):.2f}")
    return True


def case(name, device):
    """The work of times.rs called `name`."""
    what, dtype = name.rsplit(" ", 1)
    dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    draw = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    numbers = [int(n) for word in what.split() for n in word.split("x") if n.isdigit()]
    if what.startswith("matmul"):
        a, b = draw(4096, 4096), draw(4096, 4096)
        return lambda: a @ b
    if what.startswith("linear"):
        x, w = draw(numbers[0], numbers[1]), draw(numbers[2], numbers[1])
        return lambda: F.linear(x, w)
    if what.startswith("conv3"):
        batch, channels, side = numbers[-3:]
        x, w = draw(batch, channels, side, side), draw(channels, channels, 3, 3)
        stride = 2 if "stride 2" in what else 1
        return lambda: F.conv2d(x, w, None, stride, 1)
    if what.startswith("attention"):
        q, k, v = (draw(*numbers) for _ in range(3))
        if "backward" not in what:
            return lambda: F.scaled_dot_product_attention(q, k, v)
        for leaf in (q, k, v):
            leaf.requires_grad_(True)

        def backward():
            for leaf in (q, k, v):
                leaf.grad = None
            F.scaled_dot_product_attention(q, k, v).float().sum().backward()

        return backward
    if what.startswith("group norm"):
        x, w, b = draw(2, 320, 128, 128), draw(320), draw(320)
        return lambda: F.silu(F.group_norm(x, 32, w, b))
    if what.startswith("layer norm"):
        x, w, b = draw(8192, 640), draw(640), draw(640)
        return lambda: F.layer_norm(x, (640,), w, b)
    if what.startswith("geglu"):
        x = draw(8192, 5120)

        def gated():
            values, gates = x.chunk(2, -1)
            return values * F.gelu(gates)

        return gated
    if what.startswith("nearest"):
        x = draw(2, 640, 64, 64)
        return lambda: F.interpolate(x, scale_factor=2)
    raise SystemExit(f"there is no case {name}")


def times(ours, device, table):
    lines, ratios = ["| case | PyTorch ms | ours ms | ratio |", "|---|---|---|---|"], []
    for entry in Path(ours).read_text().strip().split(";"):
        name, found = entry.split("=")
        run = case(name, device)
        grad = torch.enable_grad() if "backward" in name else torch.no_grad()
        with grad:
            synchronize(device)
            for _ in range(3):
                run()
            groups = []
            for _ in range(5):
                synchronize(device)
                begin = time.perf_counter()
                for _ in range(20):
                    run()
                synchronize(device)
                groups.append(50 * (time.perf_counter() - begin))
        theirs, found = statistics.median(groups), float(found)
        ratios.append((found / theirs, name))
        lines.append(f"| {name} | {theirs:.3f} | {found:.3f} | {found / theirs:.2f} |")
    Path(table).write_text("\n".join(lines) + "\n")
    middle = statistics.median(ratio for ratio, _ in ratios)
    worst = max(ratios)
    print(f"{len(ratios)} cases beside PyTorch: median ratio {middle:.2f}, largest {worst[0]:.2f} ({worst[1]})")
    return True


if __name__ == "__main__":
    actions = {"latent-seg": latent_seg} | {f.__name__: f for f in (alike, masks, sdxl, lora, unet, times)}
    sys.exit(0 if actions[sys.argv[1]](*sys.argv[2:]) else 1)
