"""Paints a picture with what training left, here and in diffusers, and prints how far they differ.

With torch, diffusers, transformers, peft and pillow installed, and diffaug built:

    python plugins/sdxl-inpaint/benches/load_in_diffusers.py MODEL IMAGE MASK --side 64
    python plugins/sdxl-inpaint/benches/load_in_diffusers.py ADAPTER IMAGE MASK --side 64

MODEL is a folder in the layout of diffusers, ADAPTER one with `base.json` and a LoRA file. Image and
mask have the side given, and the whole of them is painted.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

options = argparse.ArgumentParser()
options.add_argument("weights", type=Path)
options.add_argument("image")
options.add_argument("mask")
options.add_argument("--side", type=int, default=64)
options.add_argument("--steps", type=int, default=10)
options.add_argument("--prompt", default="red polyp")
options.add_argument("--program", default="target/release/diffaug")
options = options.parse_args()

base = options.weights / "base.json"
model = Path(json.loads(base.read_text())["base"]) if base.exists() else options.weights
pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
if base.exists():
    pipe.load_lora_weights(options.weights)
pipe.set_progress_bar_config(disable=True)
theirs = pipe(
    prompt=options.prompt,
    image=Image.open(options.image).convert("RGB"),
    mask_image=Image.open(options.mask),
    height=options.side,
    width=options.side,
    num_inference_steps=options.steps,
    guidance_scale=3.0,
    strength=1.0,
    generator=torch.Generator("cpu").manual_seed(0),
).images[0]

with tempfile.TemporaryDirectory() as folder:
    sets = [f"weights={options.weights}", f"steps={options.steps}", "guidance=3.0", "strength=1.0"]
    sets += ["rng=torch-cpu", "composite=none", "window=full"]
    command = [options.program, "try", "generator", "sdxl-inpaint", "-q", "--prompt", options.prompt]
    command += ["--image", options.image, "--mask", options.mask, "-o", f"{folder}/ours.png"]
    subprocess.run(command + [word for value in sets for word in ("--set", value)], check=True)
    ours = np.asarray(Image.open(f"{folder}/ours.png"), np.float32)
difference = np.abs(ours - np.asarray(theirs, np.float32))
print(f"mean difference {difference.mean():.4f}, largest {difference.max():.0f} grey levels")
