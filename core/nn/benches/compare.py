"""Times the cases of speed.rs in PyTorch and in this crate, in turns, and prints the ratios.

With torch and diffusers installed, and nothing else running on the machine:

    python core/nn/benches/compare.py                # all cases
    python core/nn/benches/compare.py conv3 train    # those whose name contains one of the words
    python core/nn/benches/compare.py --peak train   # the memory of a process instead
    python core/nn/benches/compare.py --avx2 conv3   # both without AVX-512

A figure is the median of all runs in `--rounds` rounds; both sides use `--threads` threads. A ratio
below 1 means that PyTorch takes longer.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

options = argparse.ArgumentParser()
options.add_argument("words", nargs="*")
options.add_argument("--rounds", type=int, default=5)
options.add_argument("--seconds", type=float, default=0.5, help="of a case in a round, on either side")
options.add_argument("--threads", type=int, default=2)
options.add_argument("--peak", action="store_true", help="peak memory instead of time")
options.add_argument("--avx2", action="store_true", help="without AVX-512 on either side")
options.add_argument("--torch-peak", metavar="CASE", help=argparse.SUPPRESS)
options = options.parse_args()

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(options.threads)
if options.avx2:
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    os.environ["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(options.threads)
torch.manual_seed(0)


class Double(nn.Sequential):
    def __init__(self, inputs, outputs):
        half = lambda i: [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*half(inputs), *half(outputs))


class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width]
        pairs = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList([Double(a, b) for a, b in pairs])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs[1:]])
        self.up = nn.ModuleList([Double(2 * a, a) for a, _ in pairs[1:]])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        x = self.down[0](x)
        skips = []
        for block in self.down[1:]:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for grow, block in reversed(list(zip(self.grow, self.up))):
            x = block(torch.cat([skips.pop(), grow(x)], 1))
        return self.head(x)


def without_gradients(f):
    def run():
        with torch.no_grad():
            f()

    return run


def case(name):
    """What to run for a case of speed.rs."""
    numbers = [int(word) for word in re.split("[ x]", name) if word.isdigit()]
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    kind, backward = name.split(" ")[0], "backward" in name
    if kind in ("conv3", "conv1"):
        stride = 2 if "stride 2" in name else 1
        batch, channels, size = numbers[-3:]
        side = int(kind[-1])
        x = torch.randn(batch, channels, size, size, dtype=dtype, requires_grad=backward)
        w = torch.randn(channels, channels, side, side, dtype=dtype, requires_grad=backward)
        f = lambda: F.conv2d(x, w, None, stride, side // 2)
        return summed(f, x, w) if backward else without_gradients(f)
    if kind == "linear":
        rows, inputs, outputs = numbers
        x, w = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        return without_gradients(lambda: F.linear(x, w))
    if kind == "attention":
        batch, heads, tokens, width = numbers
        draw = lambda: torch.randn(batch, heads, tokens, width, requires_grad=backward)
        q, k, v = draw(), draw(), draw()
        f = lambda: F.scaled_dot_product_attention(q, k, v)
        return summed(f, q, k, v) if backward else without_gradients(f)
    if kind == "gelu":
        x = torch.randn(*numbers)
        return without_gradients(lambda: F.gelu(x, approximate="tanh" if "tanh" in name else "none"))
    if kind == "group":
        batch, channels, size = numbers
        x, norm = torch.randn(batch, channels, size, size), nn.GroupNorm(32, channels)
        return without_gradients(lambda: F.silu(norm(x)))
    if kind == "layer":
        x, norm = torch.randn(*numbers), nn.LayerNorm(numbers[1])
        return without_gradients(lambda: norm(x))
    if kind == "train":
        return train(*numbers)
    if kind == "unet":
        return unet(*numbers, dtype)
    raise SystemExit(f"there is no case {name}")


def summed(f, *leaves):
    def run():
        for leaf in leaves:
            leaf.grad = None
        f().sum().backward()

    return run


def train(batch, size, width):
    net = Small(width).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x, y = torch.randn(batch, 3, size, size), (torch.rand(batch, 1, size, size) > 0.5).float()

    def step():
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(net(x), y).backward()
        optimiser.step()

    return step


def unet(width, batch, dtype):
    from diffusers import UNet2DConditionModel

    deep, heads = (4, (1, 2, 4)) if width == 64 else (10, (5, 5, 10))
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    net = UNet2DConditionModel(
        sample_size=32,
        in_channels=9,
        out_channels=4,
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownBlock2D", down, down),
        up_block_types=(up, up, "UpBlock2D"),
        transformer_layers_per_block=[1, 2, deep],
        attention_head_dim=heads,
        cross_attention_dim=2048,
        use_linear_projection=True,
    )
    net = net.eval().to(dtype)
    x, context = torch.randn(batch, 9, 32, 32, dtype=dtype), torch.randn(batch, 77, 2048, dtype=dtype)
    return without_gradients(lambda: net(x, 10.0, context).sample)


def memory(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) // 1024


def timed(f, seconds):
    f(), f()
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        f()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def program():
    """Builds speed.rs and returns the path of the program."""
    command = ["cargo", "bench", "-p", "diffaug-nn", "--bench", "speed", "--no-run"]
    if options.avx2:
        command.append("--no-default-features")
    built = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    found = re.search(r"Executable .*\((.*)\)", built.stderr)
    if not found:
        sys.exit(built.stderr)
    return Path(__file__).parents[3] / found[1]


def processor():
    lines = open("/proc/cpuinfo").read().splitlines() if os.path.exists("/proc/cpuinfo") else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main():
    source = (Path(__file__).parent / "speed.rs").read_text()
    listed = source[source.index("const CASES") : source.index("];")]
    names = re.findall(r'"(.*?)"', listed)
    names = [n for n in names if not options.words or any(word in n for word in options.words)]
    ours = str(program())
    print(f"{processor()}; PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}); {options.threads} threads\n")
    compare_memory(names, ours) if options.peak else compare_times(names, ours)


def compare_memory(names, ours):
    print("| case | PyTorch MiB: process, of it the work | ours | ratio: process, work |\n|---|---|---|---|")
    for name in names:
        run = lambda *command: [int(n) for n in subprocess.check_output(command, text=True).split()]
        theirs_before, theirs = run(sys.executable, __file__, "--torch-peak", name)
        before, peak = run(ours, "peak", *name.split(" "))
        work, their_work = peak - before, theirs - theirs_before
        print(f"| {name} | {theirs}, {their_work} | {peak}, {work} | {peak / theirs:.2f}, {work / their_work:.2f} |", flush=True)


def compare_times(names, ours):
    print("| case | PyTorch ms | ours ms | ratio |\n|---|---|---|---|")
    server = subprocess.Popen([ours, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for name in names:
        theirs = case(name)
        times = [], []
        for _ in range(options.rounds):
            time.sleep(0.3)  # threads of the other side stop spinning
            times[0].extend(timed(theirs, options.seconds))
            time.sleep(0.3)
            server.stdin.write(f"{name} {options.seconds}\n")
            server.stdin.flush()
            times[1].extend(float(t) for t in server.stdout.readline().split())
        a, b = map(statistics.median, times)
        print(f"| {name} | {a:.3f} | {b:.3f} | {b / a:.2f} |", flush=True)
        del theirs


if options.torch_peak:
    before = memory("VmRSS")
    run = case(options.torch_peak)
    for _ in range(3):
        run()
    print(before, memory("VmHWM"))
else:
    main()
