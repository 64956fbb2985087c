"""Times the published networks in PyTorch and here, in turns: a step of training (forward, backward, AdamW) and
an answer (of those that draw masks, one step), with the largest size of the process.

With torch, segmentation_models_pytorch, monai, ml_collections and scipy installed, checkouts of
github.com/Beckschen/TransUNet, SuperMedIntel/MedSegDiff and ge-xing/Diff-UNet in one folder, each under its own
name, and nothing else running on the machine:

    cargo build --release -p diffaug-baselines --example time
    python plugins/baselines/benches/compare.py CHECKOUTS [NAME ...]

Both sides use `--threads` threads. Each is started anew in every round and warms up once; a figure is the median of
all, and a ratio below 1 means that PyTorch takes longer, or more memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

# Side and number of the images.
CASES = {
    "unet": (128, 2),
    "unet-resnet50": (128, 4),
    "transunet": (128, 2),
    "medsegdiff-v1": (256, 1),
    "medsegdiff-v2": (128, 1),
    "diff-unet": (128, 2),
    "diff-trans": (128, 2),
}
HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"


def module(path):
    """What a fixture's script defines, without what it does."""
    space = {"__name__": "fixture"}
    exec(compile(path.read_text().split("torch.manual_seed(0)")[0], str(path), "exec"), space)
    return space


def network(name, side, checkouts):
    """The published network, called with images, noisy masks and timesteps."""
    import torch

    if name == "unet":
        space = module(FIXTURES / "make_fixtures.py")
        space["WIDTH"], space["DEPTH"] = 64, 4
        net = space["UNet"]()
        return net, lambda images, noisy, t: net(images)
    if name == "unet-resnet50":
        import segmentation_models_pytorch as smp

        net = smp.Unet("resnet50", encoder_weights=None)
        return net, lambda images, noisy, t: net(images)
    if name == "transunet":
        sys.path.insert(0, str(checkouts / "TransUNet"))
        from networks import vit_seg_configs, vit_seg_modeling

        config = vit_seg_configs.get_r50_b16_config()
        config.n_classes = 1
        config.patches.grid = (side // 16, side // 16)
        net = vit_seg_modeling.VisionTransformer(config, img_size=side)
        return net, lambda images, noisy, t: net(images)
    if name.startswith("medsegdiff"):
        sys.path.insert(0, str(FIXTURES))
        from medsegdiff_reference import open_reference

        unet = open_reference(str(checkouts / "MedSegDiff")).unet
        kind = unet.UNetModel_v1preview if name.endswith("v1") else unet.UNetModel_newpreview
        net = kind(
            image_size=side, in_channels=4, model_channels=128, out_channels=2, num_res_blocks=2,
            attention_resolutions=(16,), channel_mult=(1, 1, 2, 2, 4, 4), high_way=True,
        )

        def call(images, noisy, t):
            found = net(torch.cat([images, noisy], 1), t)
            answer, calibration = found if isinstance(found, tuple) else (found, None)
            return answer.narrow(1, 0, 1) + (0 if calibration is None else calibration)

        return net, call
    if name == "diff-unet":
        arguments, sys.argv = sys.argv, ["", str(checkouts / "Diff-UNet")]
        space = module(FIXTURES / "make_diff_unet.py")
        sys.argv = arguments
        text = (checkouts / "Diff-UNet/BraTS2020/unet/basic_unet_denose.py").read_text()
        whole = {"__name__": "whole"}
        exec(text.replace("[:, :, None, None, None]", "[:, :, None, None]"), whole)
        encoder = space["encoder"].BasicUNetEncoder(2, 3, 1, [64, 64, 128, 256, 512, 64])
        act = ("LeakyReLU", {"negative_slope": 0.1, "inplace": False})
        denoiser = whole["BasicUNetDe"](2, 4, 1, [64, 64, 128, 256, 512, 64], act=act)
        net = torch.nn.ModuleList([encoder, denoiser])
        return net, lambda images, noisy, t: denoiser(
            noisy, t=t, image=images, embeddings=encoder(images)
        )
    net = module(FIXTURES / "make_diff_trans.py")["DiffTrans"]()
    return net, net


def side_of_pytorch(name, what, side, batch, rounds, checkouts, threads):
    """What `examples/time.rs` does."""
    import resource
    import time

    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net, call = network(name, side, checkouts)
    images, noisy = torch.rand(batch, 3, side, side), torch.randn(batch, 1, side, side)
    t = torch.randint(0, 1000, (batch,))
    t = t.float() if name == "diff-trans" else t
    targets = (torch.rand(batch, 1, side, side) > 0.5).float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    net.train(what == "train")
    for round in range(rounds + 1):
        start = time.perf_counter()
        if what == "train":
            optimizer.zero_grad()
            output = call(images, noisy, t)
            if name in ("unet", "unet-resnet50", "transunet"):
                p = torch.sigmoid(output)
                dice = 1 - (2 * (p * targets).sum() + 1e-6) / ((p + targets).sum() + 1e-6)
                loss = dice + torch.nn.functional.binary_cross_entropy_with_logits(output, targets)
            else:
                loss = torch.nn.functional.mse_loss(output, noisy)
            loss.backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                call(images, noisy, t).sum().item()
        if round > 0:
            print(f"{(time.perf_counter() - start) * 1e3:.3f}")
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def figures(command, environment):
    """Milliseconds of the rounds, and bytes."""
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lines = output.stdout.split("\n")
    times = [float(line) for line in lines if line and line[0].isdigit()]
    return times, int(next(line for line in lines if line.startswith("peak")).split()[1])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("checkouts", type=Path)
    options.add_argument("names", nargs="*")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=2, help="timed in a round")
    options.add_argument("--program", type=Path, default=Path("target/release/examples/time"))
    options.add_argument("--pytorch", nargs=4, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.pytorch:
        name, what, side, batch = options.pytorch
        side_of_pytorch(
            name, what, int(side), int(batch), options.steps, options.checkouts, options.threads
        )
        return
    environment = os.environ | dict.fromkeys(
        ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"], str(options.threads)
    )
    print("| network | what | PyTorch ms | ours ms | ratio | PyTorch MB | ours MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.names or CASES:
        side, batch = CASES[name]
        for what in ["train", "answer"]:
            theirs, ours, bytes = [], [], [0, 0]
            for _ in range(options.rounds):
                own = [options.program, name, what, str(side), str(batch), str(options.steps)]
                asked = ["--pytorch", name, what, str(side), str(batch)]
                other = [sys.executable, __file__, options.checkouts, *asked]
                for place, (times, command) in enumerate(
                    [(theirs, [*other, "--steps", str(options.steps)]), (ours, own)]
                ):
                    more, peak = figures([str(part) for part in command], environment)
                    times += more
                    bytes[place] = max(bytes[place], peak)
            a, b = statistics.median(theirs), statistics.median(ours)
            x, y = (value / 1e6 for value in bytes)
            case = f"{name} {batch}x{side}x{side}"
            print(
                f"| {case} | {what} | {a:.1f} | {b:.1f} | {b / a:.2f} | {x:.0f} | {y:.0f} | {y / x:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
