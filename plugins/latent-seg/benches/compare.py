"""Times verdicts of the published network (Stable Diffusion Segmentation, 413 million parameters with
its autoencoder) in PyTorch and here: vision encoder, one or more steps, decoder, threshold, IoU; image
by image at 256x256.

With a clone of github.com/lin-tianyu/Stable-Diffusion-Seg, torch, einops and numpy, and nothing else
running on the machine:

    cargo build --release
    python plugins/latent-seg/benches/compare.py PATH/TO/Stable-Diffusion-Seg

Weights are random and are written once to `--folder`. Both sides use `--threads` threads and take turns;
a figure is the median of the images, and a ratio below 1 means that PyTorch takes longer.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

options = argparse.ArgumentParser()
options.add_argument("reference", type=Path)
options.add_argument("--threads", type=int, default=2)
options.add_argument("--images", type=int, default=7)
options.add_argument("--steps", type=int, nargs="*", default=[1, 50])
options.add_argument("--folder", type=Path, default=Path("runs/benches/sdseg"))
options.add_argument("--program", type=Path, default=Path("target/release/diffaug"))
options = options.parse_args()
os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(options.threads)

import numpy as np
import torch

sys.path.insert(0, str(options.reference))
from ldm.modules.diffusionmodules import model, openaimodel

torch.set_num_threads(options.threads)
torch.manual_seed(0)
SIDE, LAST = 256, 999
sizes = dict(
    ch=128, out_ch=3, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=[], dropout=0.0,
    in_channels=3, resolution=SIDE, z_channels=4, double_z=True,
)
parts = {
    "model.diffusion_model": openaimodel.UNetModel(
        image_size=32, in_channels=8, out_channels=4, model_channels=192, num_res_blocks=2,
        attention_resolutions=[1, 2, 4, 8], channel_mult=[1, 2, 2, 4, 4], num_heads=8,
        use_scale_shift_norm=True, resblock_updown=True, dropout=0.2,
    ),
    "first_stage_model.encoder": model.Encoder(**sizes),
    "first_stage_model.decoder": model.Decoder(**sizes),
    "first_stage_model.quant_conv": torch.nn.Conv2d(8, 8, 1),
    "first_stage_model.post_quant_conv": torch.nn.Conv2d(4, 4, 1),
    "cond_stage_model.encoder": model.Encoder(**sizes),
    "cond_stage_model.out": torch.nn.Conv2d(8, 4, 1),
}
for part in parts.values():
    part.eval()
    for p in part.parameters():
        if not p.any():
            p.data = torch.randn_like(p) * 0.02
betas = torch.linspace(0.0015**0.5, 0.0155**0.5, 1000) ** 2
bars = torch.cumprod(1 - betas, 0)


def weights():
    """The same weights for the other side."""
    if not (options.folder / "config.json").exists():
        options.folder.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = options.folder.parent / "sdseg.ckpt"
        state = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.state_dict().items()}
        torch.save({"state_dict": state | {"scale_factor": torch.tensor(0.12)}}, checkpoint)
        command = [options.program, "convert", "segmenter", "sdseg", checkpoint, options.folder]
        subprocess.run(command, check=True)
        checkpoint.unlink()
    return options.folder


@torch.no_grad()
def verdict(image, wanted, steps):
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    condition = parts["cond_stage_model.out"](parts["cond_stage_model.encoder"](x))
    z = torch.randn(1, 4, SIDE // 8, SIDE // 8)
    times = [LAST * (steps - i) // steps for i in range(steps + 1)]
    for t, after in zip(times, times[1:]):
        found = parts["model.diffusion_model"](torch.cat([z, condition], 1), torch.tensor([t]))
        clean = (z - (1 - bars[t]) ** 0.5 * found) / bars[t] ** 0.5
        z = bars[after] ** 0.5 * clean + (1 - bars[after]) ** 0.5 * found
    pixels = parts["first_stage_model.decoder"](parts["first_stage_model.post_quant_conv"](clean / 0.12))
    mask = ((pixels + 1) / 2).clamp(0, 1).mean(1)[0].numpy() > 0.5
    return (mask & wanted).sum() / max(1, (mask | wanted).sum())


def theirs(steps):
    draw, times = np.random.default_rng(0), []
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[:, : SIDE // 3] = True
    for index in range(options.images + 2):
        image = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        begin = time.perf_counter()
        verdict(image, wanted, steps)
        if index > 1:
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def ours(folder, steps):
    command = ["cargo", "bench", "-q", "-p", "diffaug-latent-seg", "--bench", "speed", "--"]
    command += [str(folder.resolve()), str(steps), str(options.images)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


print(f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), {options.threads} threads\n")
print("| steps | PyTorch ms | ours ms | ratio | ours, images a second |")
print("|---|---|---|---|---|")
folder = weights()
for steps in options.steps:
    a, b = theirs(steps), ours(folder, steps)
    print(f"| {steps} | {a:.0f} | {b:.0f} | {b / a:.2f} | {1e3 / b:.2f} |", flush=True)
