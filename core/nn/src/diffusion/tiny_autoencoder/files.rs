//! Tiny autoencoders on disk: in the author's layout or in that of diffusers.

use super::{TinyAutoencoder, TinyAutoencoderConfig};
use crate::{
    params::Params,
    weights::{self, input},
};
use candle_core::{Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// The file that diffusers keeps both halves in.
const WHOLE: &str = "diffusion_pytorch_model.safetensors";
const CONFIG: &str = "config.json";

impl TinyAutoencoder {
    /// Opens what lies in `folder`, to answer and not to learn: a pair of `*_encoder.safetensors`
    /// and `*_decoder.safetensors` in the author's own layout, or diffusers'
    /// `diffusion_pytorch_model.safetensors` with its `config.json`. Of the former the channels
    /// are found in the weights and may be any.
    ///
    /// # Errors
    /// When neither is there, a file is broken, or the weights do not fit.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let (tensors, config) = match folder.join(WHOLE).is_file() {
            true => read_whole(folder)?,
            false => read_pair(folder)?,
        };
        let misfit = || {
            let shown = folder.display();
            format!("`{shown}` does not hold a tiny autoencoder")
        };
        let mut params = Params::frozen(device, tensors);
        let net = Self::new(params.root(), &config).or_error(ErrorKind::Model, misfit)?;
        match params.left_over().first() {
            None => Ok(net),
            Some(name) => {
                let error = Error::model(format!("tensor `{name}` is not part of it"));
                Err(error.context(misfit()))
            }
        }
    }
}

type Found = (HashMap<String, Tensor>, TinyAutoencoderConfig);

/// The layout of diffusers.
fn read_whole(folder: &Path) -> Result<Found> {
    let path = folder.join(CONFIG);
    let shown = path.display();
    let text = input::read(&path, input::CONFIG_BYTES)
        .or_error(ErrorKind::Model, || format!("cannot read `{shown}`"))?;
    let config = input::parse_json(&text).or_error(ErrorKind::Model, || {
        format!("`{shown}` is not the configuration of a tiny autoencoder")
    })?;
    Ok((weights::read(&folder.join(WHOLE))?, config))
}

/// The author's layout: two files whose tensors are called by their place in a sequence.
fn read_pair(folder: &Path) -> Result<Found> {
    let (encoder, decoder) = (find(folder, "encoder")?, find(folder, "decoder")?);
    let mut tensors = HashMap::new();
    for (name, tensor) in weights::read(&encoder)? {
        tensors.insert(format!("encoder.layers.{name}"), tensor);
    }
    for (name, tensor) in weights::read(&decoder)? {
        tensors.insert(earlier(&name), tensor);
    }
    let size = |name: &str, dim: usize| tensors.get(name).and_then(|t| t.dims().get(dim)).copied();
    let mut config = TinyAutoencoderConfig::default();
    for (field, name, dim) in [
        (&mut config.in_channels, "encoder.layers.0.weight", 1),
        (&mut config.latent_channels, "decoder.layers.0.weight", 1),
        (&mut config.out_channels, "decoder.layers.18.weight", 0),
    ] {
        *field = size(name, dim).unwrap_or(*field);
    }
    for (widths, name) in [
        (
            &mut config.encoder_block_out_channels,
            "encoder.layers.0.weight",
        ),
        (
            &mut config.decoder_block_out_channels,
            "decoder.layers.0.weight",
        ),
    ] {
        if let Some(width) = size(name, 0) {
            widths.fill(width);
        }
    }
    Ok((tensors, config))
}

/// The author counts what bends the latents as the first layer of the decoder.
fn earlier(name: &str) -> String {
    let place = name.split_once('.');
    let moved = place.and_then(|(place, rest)| {
        let place = place.parse::<usize>().ok()?.checked_sub(1)?;
        Some(format!("decoder.layers.{place}.{rest}"))
    });
    moved.unwrap_or_else(|| format!("decoder.layers.{name}"))
}

/// The one file in `folder` whose name ends in `_HALF.safetensors`.
fn find(folder: &Path, half: &str) -> Result<PathBuf> {
    let shown = folder.display();
    let unreadable = || format!("cannot read the folder `{shown}`");
    let ending = format!("_{half}.safetensors");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).or_error(ErrorKind::Model, unreadable)? {
        let path = entry.or_error(ErrorKind::Model, unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.ends_with(&ending)) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [path] => Ok(path.clone()),
        [] => Err(Error::model(format!(
            "`{shown}` holds neither `*{ending}` nor `{WHOLE}`"
        ))),
        [first, second, ..] => Err(Error::model(format!(
            "`{}` and `{}` are both a tiny {half}, expected one in a folder",
            first.display(),
            second.display()
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    fn save(tensors: HashMap<String, Tensor>, path: &Path) {
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    /// The tensors of a tiny autoencoder of `width` and `latent` channels.
    fn made(width: usize, latent: usize) -> (TinyAutoencoderConfig, HashMap<String, Tensor>) {
        let config = TinyAutoencoderConfig {
            latent_channels: latent,
            encoder_block_out_channels: vec![width; 4],
            decoder_block_out_channels: vec![width; 4],
            ..TinyAutoencoderConfig::default()
        };
        let mut params = Params::new(&Device::Cpu, 0);
        TinyAutoencoder::new(params.root(), &config).unwrap();
        let tensors = params.trainable();
        let tensors = tensors.map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
        (config, tensors.collect())
    }

    /// Writes the author's layout.
    fn save_pair(tensors: &HashMap<String, Tensor>, folder: &Path) {
        let half = |prefix: &str, before: usize| {
            let own = tensors.iter().filter_map(|(name, tensor)| {
                let (place, rest) = name.strip_prefix(prefix)?.split_once('.')?;
                let place = place.parse::<usize>().unwrap() + before;
                Some((format!("{place}.{rest}"), tensor.clone()))
            });
            own.collect::<HashMap<_, _>>()
        };
        let path = |name: &str| folder.join(name).with_extension("safetensors");
        save(half("encoder.layers.", 0), &path("taetest_encoder"));
        save(half("decoder.layers.", 1), &path("taetest_decoder"));
    }

    #[test]
    fn both_layouts_open() {
        let (config, tensors) = made(8, 6);
        let folder = tempfile::tempdir().unwrap();
        save(tensors.clone(), &folder.path().join(WHOLE));
        let text = serde_json::to_string(&config).unwrap();
        fs::write(folder.path().join(CONFIG), text).unwrap();
        let whole = TinyAutoencoder::open(folder.path(), &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        save_pair(&tensors, folder.path());
        let pair = TinyAutoencoder::open(folder.path(), &Device::Cpu).unwrap();
        let x = random("x", &[1, 3, 16, 24]);
        let latent = whole.encode(&x).unwrap();
        assert_eq!(latent.dims(), [1, 6, 2, 3]);
        close(&pair.encode(&x).unwrap(), &latent, 0.0);
        let y = whole.decode(&latent).unwrap();
        assert_eq!(y.dims(), x.dims());
        close(&pair.decode(&latent).unwrap(), &y, 0.0);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let error = |folder: &Path| {
            let error = TinyAutoencoder::open(folder, &Device::Cpu).unwrap_err();
            error.to_string()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(error(&path("none")).contains("cannot read the folder"));
        let text = error(folder.path());
        assert!(
            text.contains("holds neither `*_encoder.safetensors` nor"),
            "{text}"
        );
        let (_, mut tensors) = made(4, 4);
        let extra = tensors["encoder.layers.0.bias"].clone();
        tensors.insert("encoder.layers.0.more".to_owned(), extra);
        save_pair(&tensors, folder.path());
        let text = error(folder.path());
        assert!(
            text.contains("`encoder.layers.0.more` is not part of it"),
            "{text}"
        );
        tensors.remove("encoder.layers.0.more");
        tensors.remove("decoder.layers.3.conv.0.bias");
        save_pair(&tensors, folder.path());
        let text = error(folder.path());
        assert!(
            text.contains("`decoder.layers.3.conv.0.bias` is missing"),
            "{text}"
        );
        save(HashMap::new(), &path("other_decoder.safetensors"));
        let text = error(folder.path());
        assert!(text.contains("are both a tiny decoder"), "{text}");
        save(tensors, &path(WHOLE));
        assert!(error(folder.path()).contains("config.json`"));
        fs::write(path(CONFIG), r#"{"num_encoder_blocks": [1]}"#).unwrap();
        let text = error(folder.path());
        assert!(text.contains("as many as `num_encoder_blocks`"), "{text}");
        fs::write(path(CONFIG), r#"{"act_fn": "gelu"}"#).unwrap();
        assert!(error(folder.path()).contains("not `gelu`, `nearest` and 2"));
    }
}
