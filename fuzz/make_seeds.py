"""Writes small valid files for the fuzzer to begin with: python make_seeds.py OUT (Pillow, numpy, torch, safetensors)."""
import io
import json
import os
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

OUT = sys.argv[1]


def path(target, name):
    os.makedirs(f"{OUT}/{target}", exist_ok=True)
    return f"{OUT}/{target}/{name}"


grey = (np.mgrid[0:9, 0:12].sum(0) * 12).astype("uint8")
rgb = np.stack([grey, 255 - grey, grey // 2], -1)
palette = Image.frombytes("P", (12, 9), (grey > 99).astype("uint8").tobytes())
palette.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
exif = Image.Exif()
exif[0x112] = 6
for ext in ("png", "jpg", "tif", "bmp"):
    Image.fromarray(rgb).save(path("images", f"rgb.{ext}"), exif=exif)
    Image.fromarray(grey).save(path("images", f"grey.{ext}"))
for ext in ("png", "tif", "bmp"):
    palette.save(path("images", f"palette.{ext}"))
    Image.fromarray(grey > 99).save(path("images", f"bits.{ext}"))
Image.fromarray(grey.astype("uint16") * 16).save(path("images", "twelve.png"))
Image.fromarray(rgb).save(path("images", "big.tif"), big_tiff=True)
for kind in ("int32", "float32"):
    Image.fromarray(grey.astype(kind)).save(path("images", f"{kind}.tif"))
for packing in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
    Image.fromarray(rgb).save(path("images", f"{packing}.tif"), compression=packing)
Image.fromarray(np.dstack([rgb, grey])).save(path("images", "alpha.png"))

with open(path("splits", "a.json"), "w") as f:
    json.dump({"train": ["s0", "s1", "s2"], "validation": ["s3"], "test": ["s4", "s5"]}, f)
with open(path("splits", "groups.csv"), "w") as f:
    f.write('id,group\ns0,"video 1"\ns1,2\n')

tensors = {"a.weight": np.ones((2, 3), "float32"), "b": np.zeros(4, "float16"), "c": np.arange(3)}
save_file(tensors, path("safetensors", "a.safetensors"), metadata={"format": "pt"})
state = {name: torch.from_numpy(value) for name, value in tensors.items()}
state["tied"] = state["a.weight"].t()
torch.save(state, path("pickle", "plain.bin"))
torch.save({"state_dict": state, "epoch": 3, "nested": [{"x": (1, 2.5, None)}]}, path("pickle", "lightning.ckpt"))
