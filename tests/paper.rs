//! The paper's manifests, made small and run whole.

use crate::util::{Sandbox, root};
use std::{fs, path::Path};

/// Makes the paper's manifests small: a phantom for a dataset, a tiny checkpoint for SDXL's, two steps
/// of every training.
fn small_paper(sandbox: &Sandbox, name: &str, kind: &str) -> String {
    let base = root().join(format!("manifests/paper/{name}.toml"));
    let model = sandbox.path("model");
    format!(
        r#"
base = {base:?}
device = "cpu"
output = "runs/{name}"

[dataset]
use = "phantom"
kind = "{kind}"
size = 64
train = 6
validation = 2
test = 2

[split]
use = "parts"

[images]
size = 64

[generator]
use = "sdxl-inpaint"
base = {model:?}
dtype = "f32"
steps = 2

[generator.train]
rank = 2
steps = 2
batch = 2
precision = "f32"
evaluate_every = 2

[segmenter]
use = "latent-seg"
vae = {:?}
base = {:?}

[segmenter.architecture]
width = 16
multipliers = [1, 2]
layers = 1
heads = 2
groups = 4
attention = [2]
vision = [8]
vision_layers = 1

[segmenter.train]
steps = 2
batch = 2
accumulate = 2
evaluate_every = 2

[synthesis]
variants = 2
ratio = 0.5
batch = 2

[evaluate]
runs = 1
"#,
        model.join("vae"),
        sandbox.path("base")
    )
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

#[test]
fn small_copies_of_the_papers_runs_go_through() {
    let sandbox = Sandbox::new();
    let model = sandbox.path("model");
    copy(&root().join("plugins/sdxl-inpaint/fixtures/xl"), &model);
    // The manifests ask for the variant in half precision.
    let weights = |name: &str| model.join("unet").join(name);
    fs::rename(
        weights("diffusion_pytorch_model.safetensors"),
        weights("diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    // The manifests begin with published weights, as `diffaug convert` makes a folder of them.
    let set = [
        "width=16",
        "multipliers=[1,2]",
        "layers=1",
        "heads=2",
        "groups=4",
        "attention=[2]",
    ];
    let set = set
        .map(|option| format!("--set architecture.{option}"))
        .join(" ");
    let made = sandbox.run(&format!(
        "convert segmenter latent-seg model base --set size=64 {set}"
    ));
    let made = made.ok();
    assert!(made.stdout.contains("way down"), "{made}");
    for (name, kind) in [("kvasir", "colon"), ("cvc", "colon"), ("refuge2", "fundus")] {
        sandbox.write("m.toml", small_paper(&sandbox, name, kind));
        let result = sandbox.run("run m.toml --json").ok().json();
        assert_eq!(result["arms"][0]["name"], "real", "{name}: {result}");
        assert!(
            result["synthesis"]["candidates"].as_u64().unwrap() > 0,
            "{name}"
        );
        let folder = sandbox.path(&format!("runs/{name}"));
        assert!(
            folder
                .join("generator/pytorch_lora_weights.safetensors")
                .is_file()
        );
        assert!(folder.join("segmenter/weights.safetensors").is_file());
    }
}
