//! diffusers' `scheduler_config.json`: what a checkpoint says about its noise, and how one samples.

use super::schedule::Prediction;
use crate::weights::input;
use diffaug::{Error, ErrorKind, Result, ResultExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{fmt, path::Path};

/// A way from noise to a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerName {
    /// Euler's method (Karras et al., 2022), what SDXL comes with.
    Euler,
    /// Implicit steps (Song et al., 2021), with noise between them if `eta` says so.
    Ddim,
    /// The reverse Markov chain (Ho et al., 2020): fresh noise in every step, and many steps.
    Ddpm,
    /// DPM-Solver++ of second order (Lu et al., 2022): good with 20 to 30 steps.
    #[serde(rename = "dpmpp-2m")]
    Dpmpp2m,
    /// The same with the noise levels of Karras et al. (2022).
    #[serde(rename = "dpmpp-2m-karras")]
    Dpmpp2mKarras,
    /// Predictor and corrector (Zhao et al., 2023): good with 10 to 20 steps.
    Unipc,
}

impl SamplerName {
    /// Every sampler there is.
    pub const ALL: [SamplerName; 6] = [
        SamplerName::Euler,
        SamplerName::Ddim,
        SamplerName::Ddpm,
        SamplerName::Dpmpp2m,
        SamplerName::Dpmpp2mKarras,
        SamplerName::Unipc,
    ];

    /// The name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            SamplerName::Euler => "euler",
            SamplerName::Ddim => "ddim",
            SamplerName::Ddpm => "ddpm",
            SamplerName::Dpmpp2m => "dpmpp-2m",
            SamplerName::Dpmpp2mKarras => "dpmpp-2m-karras",
            SamplerName::Unipc => "unipc",
        }
    }

    fn class(self) -> Class {
        match self {
            SamplerName::Euler => Class::Euler,
            SamplerName::Ddim => Class::Ddim,
            SamplerName::Ddpm => Class::Ddpm,
            SamplerName::Dpmpp2m | SamplerName::Dpmpp2mKarras => Class::Dpm,
            SamplerName::Unipc => Class::Unipc,
        }
    }
}

impl fmt::Display for SamplerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The classes of diffusers that can be sampled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Euler,
    Ddim,
    Ddpm,
    Dpm,
    Unipc,
}

impl Class {
    const ALL: [Class; 5] = [
        Class::Euler,
        Class::Ddim,
        Class::Ddpm,
        Class::Dpm,
        Class::Unipc,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Class::Euler => "EulerDiscreteScheduler",
            Class::Ddim => "DDIMScheduler",
            Class::Ddpm => "DDPMScheduler",
            Class::Dpm => "DPMSolverMultistepScheduler",
            Class::Unipc => "UniPCMultistepScheduler",
        }
    }

    /// Whether it keeps earlier predictions, and so cannot have two steps at one noise level.
    pub(super) fn is_multistep(self) -> bool {
        matches!(self, Class::Dpm | Class::Unipc)
    }

    /// Whether its steps go from one ratio of noise to signal to the next.
    pub(super) fn has_sigmas(self) -> bool {
        self == Class::Euler || self.is_multistep()
    }
}

/// Where the timesteps lie (Lin et al., 2024, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

/// The file as it is. A field that is missing has the default of the class, so that another class
/// (see [`SchedulerConfig::with_sampler`]) gives it its own.
///
/// Any class can be read, written and trained with ([`super::NoiseSchedule`]); what
/// [`super::Sampler`] does not offer is refused there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchedulerConfig {
    /// diffusers' name of the method, such as `EulerDiscreteScheduler`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Timesteps of training, 2 or more; 1000 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_train_timesteps: Option<usize>,
    /// Variance added by the first of them, between 0 and 1; 0.0001 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,
    /// Variance added by the last of them, between 0 and 1; 0.02 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,
    /// How it grows: `linear` (the default), `scaled_linear` (its root does) or
    /// `squaredcos_cap_v2` (of which start and end are fixed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_schedule: Option<String>,
    /// The variance of each timestep, instead of the three before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_betas: Option<Vec<f64>>,
    /// Whether the last timestep holds no signal (Lin et al., 2024); no by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescale_betas_zero_snr: Option<bool>,
    /// What the network predicts: `epsilon` (the default), `v_prediction` or `sample`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction_type: Option<String>,
    /// `linspace`, `leading` or `trailing`; the default depends on the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<String>,
    /// Added to `leading` timesteps; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_offset: Option<usize>,
    /// Whether noise levels lie as in Karras et al. (2022); no by default. Not for DDIM and DDPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_karras_sigmas: Option<bool>,
    /// The lowest of these levels, above 0; the schedule's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// The highest of these levels; the schedule's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// Where the last step ends: `zero` (the default) or `sigma_min`. Not for DDIM and DDPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_sigmas_type: Option<String>,
    /// DDIM: whether the last step ends without noise (the default) or at timestep 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_alpha_to_one: Option<bool>,
    /// DDIM and DDPM: whether the predicted latent is cut off at `clip_sample_range`. They do so
    /// by default; latent models must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_sample: Option<bool>,
    /// Largest absolute value that passes, above 0; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_sample_range: Option<f64>,
    /// DDIM: whether the noise of a step follows from the clean latent after it was cut off, as in
    /// guided-diffusion; no by default. diffusers has it as an argument, not in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_clipped_model_output: Option<bool>,
    /// DDPM: `fixed_small` (the default), `fixed_small_log`, `fixed_large` or `learned_range`, for networks
    /// that answer with twice the channels: the second half says where the logarithm of the variance lies
    /// between its bounds, -1 to 1 (Nichol & Dhariwal, 2021, eq. 15).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variance_type: Option<String>,
    /// DDIM: share of DDPM's noise that is drawn, from 0 (the default) to 1. diffusers has it as an
    /// argument, not in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// DPM-Solver: `dpmsolver++` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm_type: Option<String>,
    /// DPM-Solver and UniPC: 1 or 2 (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver_order: Option<usize>,
    /// DPM-Solver: `midpoint` (the default) or `heun`; UniPC: `bh1` or `bh2` (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver_type: Option<String>,
    /// Whether the last steps are of lower order (DPM-Solver: of fewer than 15); yes by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_order_final: Option<bool>,
    /// DPM-Solver: whether the last step is of first order whatever else; no by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub euler_at_final: Option<bool>,
    /// DPM-Solver: lowest logarithm of signal to noise that is sampled; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda_min_clipped: Option<f64>,
    /// UniPC: steps (from 0) whose result is not corrected; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_corrector: Option<Vec<usize>>,
    /// Everything else in the file, kept for writing.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl SchedulerConfig {
    /// Everything as diffusers has it by default.
    pub fn new(sampler: SamplerName) -> Self {
        let empty = SchedulerConfig {
            class_name: String::new(),
            num_train_timesteps: None,
            beta_start: None,
            beta_end: None,
            beta_schedule: None,
            trained_betas: None,
            rescale_betas_zero_snr: None,
            prediction_type: None,
            timestep_spacing: None,
            steps_offset: None,
            use_karras_sigmas: None,
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: None,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: None,
            variance_type: None,
            eta: None,
            use_clipped_model_output: None,
            algorithm_type: None,
            solver_order: None,
            solver_type: None,
            lower_order_final: None,
            euler_at_final: None,
            lambda_min_clipped: None,
            disable_corrector: None,
            rest: Map::new(),
        };
        empty.with_sampler(sampler)
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    /// When it is missing or not what [`SchedulerConfig::parse`] reads.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = input::read_text(path, input::CONFIG_BYTES)
            .or_error(ErrorKind::Model, || {
                format!("cannot read the scheduler's configuration `{shown}`")
            })?;
        Self::parse(&text).map_err(|error| error.context(format!("`{shown}`")))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// When it is no JSON object with a `_class_name`, or a field has another type.
    pub fn parse(text: &str) -> Result<Self> {
        // Python writes the default of `lambda_min_clipped` in a way that is not JSON.
        let text = text.replace(": -Infinity", ": null");
        let parsed = input::parse_json::<Value>(text.as_bytes());
        let typed = parsed.and_then(|value| input::typed(&value));
        typed.map_err(|error| error.context("this is no configuration of a diffusers scheduler"))
    }

    /// The same noise sampled in another way (diffusers' `X.from_config(other.config)`):
    /// [`SamplerName::Dpmpp2mKarras`] sets `use_karras_sigmas`, the others leave it as it is.
    #[must_use]
    pub fn with_sampler(&self, sampler: SamplerName) -> Self {
        let mut config = self.clone();
        config.class_name = sampler.class().name().to_owned();
        if sampler == SamplerName::Dpmpp2mKarras {
            config.use_karras_sigmas = Some(true);
        }
        config
    }

    /// What the network predicts.
    ///
    /// # Errors
    /// When `prediction_type` is none of the known.
    pub fn prediction(&self) -> Result<Prediction> {
        let known = [
            ("epsilon", Prediction::Epsilon),
            ("v_prediction", Prediction::Velocity),
            ("sample", Prediction::Sample),
        ];
        pick("prediction_type", &self.prediction_type, known)
    }

    pub(super) fn class(&self) -> Result<Class> {
        let class = Class::ALL.into_iter().find(|c| c.name() == self.class_name);
        class.ok_or_else(|| {
            let names = SamplerName::ALL.map(|name| format!("`{name}`")).join(", ");
            let name = &self.class_name;
            let message = format!("`_class_name` is `{name}`, which is not offered: use {names}");
            Error::unsupported(message).at("_class_name")
        })
    }

    pub(super) fn spacing(&self, class: Class) -> Result<Spacing> {
        let linspace = ("linspace", Spacing::Linspace);
        let leading = ("leading", Spacing::Leading);
        let trailing = ("trailing", Spacing::Trailing);
        let known = match class.has_sigmas() {
            true => [linspace, leading, trailing],
            false => [leading, linspace, trailing],
        };
        pick("timestep_spacing", &self.timestep_spacing, known)
    }

    /// 1 or 2.
    pub(super) fn order(&self) -> Result<usize> {
        match self.solver_order.unwrap_or(2) {
            order @ 1..=2 => Ok(order),
            other => Err(wrong("solver_order", other, &["1", "2"])),
        }
    }

    /// Checks that no other field asks `class` for what it is not offered with.
    pub(super) fn check_rest(&self, class: Class) -> Result<()> {
        let offered: &[(&str, Value)] = match class {
            Class::Euler => &[
                ("interpolation_type", "linear".into()),
                ("timestep_type", "discrete".into()),
            ],
            Class::Ddim | Class::Ddpm => &[("thresholding", false.into())],
            Class::Dpm => &[
                ("thresholding", false.into()),
                ("use_lu_lambdas", false.into()),
            ],
            Class::Unipc => &[
                ("thresholding", false.into()),
                ("predict_x0", true.into()),
                ("solver_p", Value::Null),
                ("shift_terminal", Value::Null),
            ],
        };
        let sigmas = ["use_exponential_sigmas", "use_beta_sigmas"].map(|f| (f, false.into()));
        let flow = ["use_flow_sigmas", "use_dynamic_shifting"].map(|f| (f, false.into()));
        let sigmas = sigmas.iter().filter(|_| class.has_sigmas());
        let flow = flow.iter().filter(|_| class.is_multistep());
        for (field, expected) in offered.iter().chain(sigmas).chain(flow) {
            match self.rest.get(*field) {
                None | Some(Value::Null) => {}
                Some(given) if given == expected => {}
                Some(given) => {
                    return Err(wrong(field, unquoted(given), &[&unquoted(expected)]));
                }
            }
        }
        Ok(())
    }
}

/// A word as it is, everything else as JSON.
fn unquoted(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// What `given` stands for; the first of `known` is the default.
pub(super) fn pick<T: Copy, const N: usize>(
    field: &str,
    given: &Option<String>,
    known: [(&str, T); N],
) -> Result<T> {
    let Some(given) = given else {
        return Ok(known[0].1);
    };
    match known.iter().find(|(name, _)| name == given) {
        Some((_, value)) => Ok(*value),
        None => Err(wrong(field, given, &known.map(|(name, _)| name))),
    }
}

/// `given` is not offered as the value of `field`.
pub(super) fn wrong(field: &str, given: impl fmt::Display, offered: &[&str]) -> Error {
    let offered = offered.join("` or `");
    let message = format!("`{field}` is `{given}`, which is not offered, expected `{offered}`");
    Error::unsupported(message).at(field)
}

/// A number that makes no sense.
pub(super) fn out_of_range(field: &str, given: impl fmt::Display, expected: &str) -> Error {
    Error::config(format!("`{field}` is {given}, expected {expected}")).at(field)
}
