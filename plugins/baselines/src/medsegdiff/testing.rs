//! What the tests of the networks share: the reference's small networks, and what every network has to do.

#![allow(clippy::unwrap_used)]

use super::{Rule, loss};
use candle_core::{DType, Result, Tensor, Var, backprop::GradStore};
use diffaug_nn::{
    Device,
    diffusion::scheduler::{NoiseSchedule, Prediction, SamplerName, SchedulerConfig},
    layers::Mode,
    ops::{self, Dropping},
    params::Params,
    recompute,
    segmenter::{Architecture, Noised, Pass, Predicted},
    testing::{assert_all_trained, close, random},
    weights,
};
use std::{collections::HashMap, path::Path};

/// Answers to images, noisy masks and timesteps.
pub type Answer<'a> = dyn Fn(&Tensor, &Tensor, &Tensor, &Pass<'_>) -> Result<Predicted> + 'a;

pub const TRAIN: Pass<'static> = Pass {
    mode: Mode::Train,
    dropping: None,
    recompute: false,
};

/// The tensors of a fixture.
pub fn fixture(name: &str) -> HashMap<String, Tensor> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    weights::read(&folder.join(name).with_extension("safetensors")).unwrap()
}

/// Of these, the weights, under our names.
pub fn weights_of<A: Architecture>(
    architecture: &A,
    fixture: &HashMap<String, Tensor>,
) -> HashMap<String, Tensor> {
    let ours = |(name, tensor): (&String, &Tensor)| {
        let name = architecture.renamed(name.strip_prefix("weights.")?)?;
        Some((name, tensor.clone()))
    };
    fixture.iter().filter_map(ours).collect()
}

/// Gives the parameters these values.
pub fn fill(params: &Params, tensors: &HashMap<String, Tensor>) {
    assert_eq!(params.all().count(), tensors.len());
    params
        .all()
        .for_each(|(name, var)| var.set(&tensors[name]).unwrap());
}

/// Gives the parameters values that let gradients through everywhere: what begins with 0 lets none through.
pub fn stir(params: &Params) {
    for (name, var) in params.trainable() {
        let dims = var.dims();
        let values = match dims.len() {
            0 | 1 => (var.as_detached_tensor() + random(name, dims) * 0.2).unwrap(),
            _ => {
                let fan: usize = dims[1..].iter().product();
                (random(name, dims) * (2.0 / fan as f64).sqrt()).unwrap()
            }
        };
        var.set(&values).unwrap();
    }
}

/// Timesteps as numbers.
pub fn steps(t: &Tensor) -> Vec<u32> {
    let t = t.to_vec1::<f32>().unwrap();
    t.iter().map(|t| *t as u32).collect()
}

/// How probable each pixel is by the image alone.
pub fn calibration(output: &Predicted) -> Tensor {
    ops::sigmoid(output.logits.as_ref().unwrap()).unwrap()
}

/// The loss of an answer to `noisy` masks, made of `clean` ones and `noise` at the steps `t`.
pub fn judged(
    rule: Rule,
    output: &Predicted,
    clean: &Tensor,
    noisy: &Tensor,
    noise: &Tensor,
    t: &[u32],
) -> Result<Tensor> {
    let schedule = NoiseSchedule::new(&SchedulerConfig::new(SamplerName::Ddpm)).unwrap();
    let noised = Noised {
        masks: clean.clone(),
        clean: clean.clone(),
        noise: noise.clone(),
        noisy: noisy.clone(),
        t,
        schedule: &schedule,
        prediction: Prediction::Epsilon,
    };
    loss(rule, output, &noised)
}

/// Asserts that an answer is the reference's.
pub fn assert_answers(output: &Predicted, fixture: &HashMap<String, Tensor>) {
    let parts = [
        (&output.output, "noise"),
        (output.variance.as_ref().unwrap(), "variance"),
        (&calibration(output), "calibration"),
    ];
    for (ours, name) in parts {
        close(ours, &fixture[&format!("eval.{name}")], 1e-5);
    }
}

/// Asserts that a step of training is the reference's: its loss, gradients, and running statistics.
pub fn assert_trains<A: Architecture>(
    architecture: &A,
    params: &Params,
    fixture: &HashMap<String, Tensor>,
    answer: &Answer<'_>,
) {
    let get = |name: &str| &fixture[name];
    let (noisy, t) = (get("noisy"), get("t"));
    let output = answer(get("images"), noisy, t, &TRAIN).unwrap();
    let (clean, noise) = (get("clean"), get("noise"));
    let loss = judged(Rule::Released, &output, clean, noisy, noise, &steps(t)).unwrap();
    close(&loss.reshape(1).unwrap(), get("loss"), 1e-5);
    let grads = loss.backward().unwrap();
    let vars: HashMap<&str, &Var> = params.all().collect();
    let mut compared = 0;
    for (name, theirs) in fixture {
        if let Some(name) = name.strip_prefix("gradients.") {
            let name = architecture.renamed(name).unwrap();
            close(grads.get(vars[name.as_str()]).unwrap(), theirs, 2e-4);
            compared += 1;
        } else if let Some(name) = name.strip_prefix("after.") {
            let name = architecture.renamed(name).unwrap();
            close(vars[name.as_str()], theirs, 1e-5);
        }
    }
    assert!(compared > 12);
}

/// Images, noisy masks and timesteps for a network of so many masks.
pub fn inputs(masks: usize, [height, width]: [usize; 2]) -> [Tensor; 3] {
    let images = random("images", &[2, 3, height, width]);
    let noisy = random("noisy", &[2, masks, height, width]);
    let t = Tensor::new(&[0f32, 995.0], &Device::Cpu).unwrap();
    [(images + 1.0).unwrap() * 0.5, noisy * 2.0, Ok(t)].map(Result::unwrap)
}

/// The gradients of a network's loss.
fn gradients(
    rule: Rule,
    masks: usize,
    sides: [usize; 2],
    answer: &Answer<'_>,
    pass: &Pass<'_>,
) -> GradStore {
    let [images, noisy, t] = inputs(masks, sides);
    let output = answer(&images, &noisy, &t, pass).unwrap();
    let clean = random("clean", noisy.dims()).gt(0f32).unwrap();
    let clean = clean.to_dtype(DType::F32).unwrap();
    let noise = random("noise", noisy.dims());
    let loss = judged(rule, &output, &clean, &noisy, &noise, &steps(&t));
    recompute::backward(&loss.unwrap()).unwrap()
}

/// Asserts what every network has to do: each parameter is trained, blocks that are computed again change
/// nothing, also with dropout, another type comes near to f32, and misfits are errors.
pub fn assert_sound(
    rule: Rule,
    params: &Params,
    masks: usize,
    sides: [usize; 2],
    answer: &Answer<'_>,
) {
    stir(params);
    let all = gradients(rule, masks, sides, answer, &TRAIN);
    assert_all_trained(params.trainable(), &all);
    let dropped = [false, true].map(|recompute| {
        let dropping = Dropping::new(0.5, 1, 0);
        let pass = Pass {
            dropping: Some(&dropping),
            recompute,
            ..TRAIN
        };
        let grads = gradients(rule, masks, sides, answer, &pass);
        let flat = |var: &Var| grads.get(var).unwrap().flatten_all().unwrap();
        let flat = |var: &Var| flat(var).to_vec1::<f32>().unwrap();
        params
            .trainable()
            .map(|(_, var)| flat(var))
            .collect::<Vec<_>>()
    });
    let [kept, again] = dropped;
    let most = |values: &[f32]| values.iter().fold(0f32, |a, v| a.max(v.abs()));
    let apart = |a: &[f32], b: &[f32]| {
        let gaps: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        most(&gaps)
    };
    let largest = kept.iter().fold(0f32, |a, values| a.max(most(values)));
    let mut differ = false;
    for ((name, var), (kept, again)) in params.trainable().zip(kept.iter().zip(&again)) {
        // Of some biases before a normalisation, rounding is all that is left.
        let allowed = 1e-5 * most(kept) + 1e-7 * largest;
        assert!(
            apart(again, kept) <= allowed,
            "{name}: {} of {}",
            apart(again, kept),
            most(kept)
        );
        let plain = all.get(var).unwrap().flatten_all().unwrap();
        differ |= apart(&plain.to_vec1::<f32>().unwrap(), again) > 1e-3 * largest;
    }
    assert!(differ, "nothing was dropped");
    assert_types(masks, sides, answer);
    assert_misfits(masks, sides, answer);
}

fn assert_types(masks: usize, sides: [usize; 2], answer: &Answer<'_>) {
    let [images, noisy, t] = inputs(masks, sides);
    let run = |dtype: DType| {
        let [images, noisy] = [&images, &noisy].map(|x| x.to_dtype(dtype).unwrap());
        let output = answer(&images, &noisy, &t, &Pass::ANSWER).unwrap();
        assert_eq!(output.output.dtype(), dtype);
        let found = calibration(&output);
        let parts = [output.output, found];
        parts.map(|part| part.to_dtype(DType::F32).unwrap())
    };
    let (narrow, wide) = (run(DType::BF16), run(DType::F32));
    // As another device computes it.
    let composed = ops::composed(|| run(DType::F32));
    for (ours, theirs) in composed.iter().zip(&wide) {
        close(ours, theirs, 1e-4);
    }
    for (ours, theirs) in narrow.iter().zip(&wide) {
        assert_eq!(theirs.dims(), [2, masks, sides[0], sides[1]]);
        close(ours, theirs, 0.1);
    }
}

fn assert_misfits(masks: usize, [height, width]: [usize; 2], answer: &Answer<'_>) {
    let error = |masks: usize, sides: [usize; 2], t: usize| {
        let [images, noisy, _] = inputs(masks, sides);
        let t = Tensor::zeros(t, DType::F32, &Device::Cpu).unwrap();
        let answer = answer(&images, &noisy, &t, &Pass::ANSWER);
        answer.err().map(|error| error.to_string()).unwrap()
    };
    let odd = error(masks, [height, width - 1], 2);
    assert!(odd.contains("sides have to be multiples of"), "{odd}");
    let many = error(masks + 1, [height, width], 2);
    assert!(many.contains("need masks of shape"), "{many}");
    let few = error(masks, [height, width], 1);
    assert!(few.contains("as many timesteps"), "{few}");
}

/// The field that an architecture, given as JSON, is refused for.
pub fn refused<A: Architecture>(json: &str) -> String {
    let architecture: A = serde_json::from_str(json).unwrap();
    architecture.check().unwrap_err().field.to_string()
}
