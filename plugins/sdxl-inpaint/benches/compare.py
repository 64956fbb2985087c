"""Paints the same picture with diffaug and with diffusers on the processor, in turns, and compares
time, memory and cold starts.

With torch, diffusers, transformers and safetensors installed, diffaug built, and nothing else running
on the machine:

    cargo build --release
    python plugins/sdxl-inpaint/benches/compare.py                  # widths 64 and 160
    python plugins/sdxl-inpaint/benches/compare.py 64 --steps 20 --rounds 5
    python plugins/sdxl-inpaint/benches/compare.py full             # SDXL's own sizes, one step
    python plugins/sdxl-inpaint/benches/compare.py full --dtype bf16

Checkpoints have random weights and are written once to `--models`. All figures are of whole processes:
program start, loading, text encoders, the steps with guidance at 256x256 (a latent of 32x32), decoding
and writing the image. Weights are in the system's cache. A cold start is the same with one step. A figure is the median of the rounds;
a ratio below 1 means that diffusers takes more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

options = argparse.ArgumentParser()
options.add_argument("models", nargs="*", default=["64", "160"], help="64, 160 or full")
options.add_argument("--steps", type=int, default=20)
options.add_argument("--rounds", type=int, default=5)
options.add_argument("--threads", type=int, default=2)
options.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
options.add_argument("--folder", type=Path, default=Path("runs/benches"), help="where checkpoints lie")
options.add_argument("--program", type=Path, default=Path("target/release/diffaug"))
options.add_argument("--device", default="cpu", help="where random weights are drawn")
options.add_argument("--write", nargs=2, metavar=("KIND", "FOLDER"), help="only write a checkpoint; `tiny` is one more")
options.add_argument("--diffusers", nargs=3, metavar=("MODEL", "STEPS", "OUT"), help=argparse.SUPPRESS)
options = options.parse_args()
os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(options.threads)
PROMPT, NEGATIVE = "sessile polyp, smooth surface", "healthy mucosa"


def symbols():
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in printed + [256 + i for i in range(256 - len(printed))]]


def write_tokenizer(folder, pad):
    tokens = symbols() + [symbol + "</w>" for symbol in symbols()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad, "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


def networks(kind):
    """Modules without memory, by folder."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    full, tiny = kind == "full", kind == "tiny"
    width = {"full": 320, "tiny": 32}.get(kind) or int(kind)
    depths, heads = {
        32: ((1, 1, 1), (1, 2, 4)),
        64: ((1, 2, 4), (1, 2, 4)),
        160: ((1, 2, 10), (5, 5, 10)),
        320: ((1, 2, 10), (5, 10, 20)),
    }[width]
    layers = (12, 32) if full else (1, 1) if tiny else (12, 4)
    text = lambda width, layers, heads, act: CLIPTextConfig(
        vocab_size=49408 if full else 514,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    cross = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(
                sample_size=32,
                in_channels=9,
                out_channels=4,
                block_out_channels=(width, 2 * width, 4 * width),
                down_block_types=cross,
                up_block_types=tuple(name.replace("Down", "Up") for name in reversed(cross)),
                transformer_layers_per_block=depths,
                attention_head_dim=heads,
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            "vae": AutoencoderKL(
                block_out_channels=(32, 32, 32, 32) if tiny else (128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                scaling_factor=0.13025,
                sample_size=256,
                force_upcast=False,
            ),
            "text_encoder": CLIPTextModel(text(768, layers[0], 12, "quick_gelu")),
            "text_encoder_2": CLIPTextModelWithProjection(text(1280, layers[1], 20, "gelu")),
        }


def write_model(kind, folder):
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator(options.device).manual_seed(0)
    dtype = torch.bfloat16 if kind == "full" else torch.float32
    for name, module in networks(kind).items():
        tensors = {}
        for key, value in module.state_dict().items():
            if not value.is_floating_point():
                tensors[key] = torch.arange(value.numel()).reshape(value.shape)
                continue
            drawn = torch.randn(value.shape, generator=generator, device=options.device)
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.02
            norm = value.ndim == 1 and "norm" in key and key.endswith("weight")
            tensors[key] = (1 + 0.02 * drawn if norm else scale * drawn).to("cpu", dtype)
        place = folder / name
        place.mkdir(parents=True)
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        save_file(tensors, place / f"{stem}.safetensors", metadata={"format": "pt"})
        module.config.save_pretrained(place) if name.startswith("text") else module.save_config(place)
        parameters = sum(value.numel() for value in module.parameters())
        print(f"{kind} {name}: {parameters:,} parameters", file=sys.stderr)
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", "!")
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "num_train_timesteps": 1000,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusionXLInpaintPipeline",
        "force_zeros_for_empty_prompt": True,
        "requires_aesthetics_score": False,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def write_scene(folder):
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:256, 0:256]
    waves = np.stack([150 + 60 * np.sin(x / 31 + k) * np.cos(y / 47 - k) for k in range(3)], -1)
    Image.fromarray(waves.clip(0, 255).astype(np.uint8)).save(folder / "image.png")
    hole = (((x - 140) / 50.0) ** 2 + ((y - 110) / 36.0) ** 2 < 1) * 255
    Image.fromarray(hole.astype(np.uint8)).save(folder / "mask.png")


def diffusers_side(model, steps, out):
    """What a process of diffusers does."""
    import torch
    from diffusers import StableDiffusionXLInpaintPipeline
    from PIL import Image

    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    pipe = StableDiffusionXLInpaintPipeline.from_pretrained(model, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    scene = Path(model).parent
    times = []
    note = lambda *arguments: times.append(time.perf_counter()) or arguments[-1]
    image = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        image=Image.open(scene / "image.png"),
        mask_image=Image.open(scene / "mask.png"),
        height=256,
        width=256,
        num_inference_steps=int(steps),
        guidance_scale=7.5,
        strength=1.0,
        generator=torch.Generator("cpu").manual_seed(0),
        callback_on_step_end=note,
    ).images[0]
    image.save(out)
    if len(times) > 1:
        print("seconds a step:", statistics.median(b - a for a, b in zip(times, times[1:])), file=sys.stderr)


def ours(model, steps, out):
    scene = model.parent
    command = [str(options.program), "try", "generator", "sdxl-inpaint", "-q", "--seed", "0"]
    command += ["--image", str(scene / "image.png"), "--mask", str(scene / "mask.png")]
    command += ["--prompt", PROMPT, "--negative", NEGATIVE, "-o", str(out)]
    sets = [f"weights={model}", f"steps={steps}", "guidance=7.5", "strength=1.0", "rng=torch-cpu"]
    sets += ["composite=none", f"dtype={options.dtype}"]
    return command + [word for value in sets for word in ("--set", value)]


def theirs(model, steps, out):
    command = [sys.executable, __file__, "--threads", str(options.threads), "--dtype", options.dtype]
    return command + ["--diffusers", str(model), str(steps), str(out)]


def warm(model, mebibytes):
    """Lets neither side wait for the disk, or for memory that a hypervisor has taken back: reads the
    weights, and writes to as much memory as the process will want."""
    for path in model.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    # In a process of its own, whose memory is not counted as that of the next.
    touch = f"import numpy; numpy.ones(({int(mebibytes)}, 1 << 20), numpy.uint8)"
    subprocess.run([sys.executable, "-c", touch], check=True)


def measured(command, model, mebibytes):
    """Seconds and MiB of a process that will want so much memory."""
    warm(model, mebibytes)
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def difference(a, b):
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(path), np.float32) for path in (a, b))
    return np.abs(a - b)


def main():
    import torch

    options.folder.mkdir(parents=True, exist_ok=True)
    write_scene(options.folder)
    print(f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), {options.threads} threads, {options.dtype}\n")
    print("| model | steps | diffusers s | ours s | ratio | diffusers MiB | ours MiB | ratio | largest difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in options.models:
        model = options.folder / kind
        if not (model / "model_index.json").exists():
            write_model(kind, model)
        for steps in [1] if kind == "full" else [options.steps, 1]:
            times, sizes = ([], []), ([], [])
            images = [options.folder / f"{side}.png" for side in ("theirs", "ours")]
            commands = [theirs(model, steps, images[0]), ours(model, steps, images[1])]
            for _ in range(options.rounds):
                for side, command in enumerate(commands):
                    seconds, size = measured(command, model, max(sizes[side], default=4096))
                    times[side].append(seconds)
                    sizes[side].append(size)
            (a, b), (c, d) = (tuple(map(statistics.median, pair)) for pair in (times, sizes))
            worst = difference(*images).max()
            print(f"| {kind} | {steps} | {a:.2f} | {b:.2f} | {b / a:.2f} | {c:.0f} | {d:.0f} | {d / c:.2f} | {worst:.0f} |", flush=True)


if options.diffusers:
    diffusers_side(*options.diffusers)
elif options.write:
    write_model(options.write[0], Path(options.write[1]))
else:
    main()
