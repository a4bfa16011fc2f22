//! Rotary embeddings: from a configuration's base and scaling to inverse frequencies.

use std::f64::consts::PI;

use serde_json::Value;

use crate::backend::RopeSpec;
use crate::error::Result;

use super::config::limits;
use super::fields::Fields;

/// The rotation that a configuration asks for, over the whole of each head. Two styles are known:
/// `rope_theta` with `rope_scaling`, and `rope_parameters`, which holds both.
pub(super) fn read(fields: &Fields, head_dim: usize, max_positions: usize) -> Result<RopeSpec> {
    if !head_dim.is_multiple_of(2) {
        return Err(fields.bad("head_dim", &Value::from(head_dim), "even, to be rotated"));
    }
    let nested = match fields.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => fields.object("rope_parameters")?,
    };
    let theta = match &nested {
        Some(nested) => nested.positive("rope_theta")?,
        None => None,
    };
    let theta = theta.or(fields.positive("rope_theta")?).unwrap_or(DEFAULT_THETA);
    let plain = plain_frequencies(theta, head_dim);
    let (inv_freq, magnitude) = match &nested {
        None => (plain, 1.0),
        Some(nested) => {
            refuse_unknown_keys(nested)?;
            let old_style = nested.text("type")?;
            let kind = nested.text("rope_type")?.or(old_style).unwrap_or("default");
            match kind {
                "default" => (plain, 1.0),
                "linear" => {
                    let factor = nested.required_positive("factor")?;
                    (plain.iter().map(|f| f / factor).collect(), 1.0)
                }
                "llama3" => {
                    (llama3(nested, &plain, original(fields, nested, max_positions)?)?, 1.0)
                }
                "yarn" => yarn(nested, &plain, theta, original(fields, nested, max_positions)?)?,
                other => return Err(nested.unsupported("rope_type", &Value::from(other))),
            }
        }
    };
    // Models are trained with frequencies in single precision: over long contexts that shows.
    let inv_freq = inv_freq.into_iter().map(|f| f64::from(f as f32)).collect();
    Ok(RopeSpec { inv_freq, magnitude, max_positions })
}

/// Base where none is given.
const DEFAULT_THETA: f64 = 10_000.0;

/// `theta^(-2i / head_dim)`, `[head_dim / 2]`.
fn plain_frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64)).collect()
}

/// Positions that the model was first trained with. A field outside the nested object counts more.
fn original(fields: &Fields, nested: &Fields, max_positions: usize) -> Result<f64> {
    let key = "original_max_position_embeddings";
    let outer = fields.optional_size(key, limits::POSITIONS)?;
    let inner = nested.optional_size(key, limits::POSITIONS)?;
    Ok(outer.or(inner).unwrap_or(max_positions) as f64)
}

/// Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, those between blend.
fn llama3(nested: &Fields, plain: &[f64], original: f64) -> Result<Vec<f64>> {
    let factor = nested.required_positive("factor")?;
    let low = nested.required_positive("low_freq_factor")?;
    let high = nested.required_positive("high_freq_factor")?;
    if high <= low {
        let wanted = format!("greater than low_freq_factor {low}");
        return Err(nested.bad("high_freq_factor", &Value::from(high), &wanted));
    }
    let scale = |&frequency: &f64| {
        let turns = original * frequency / (2.0 * PI);
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * frequency / factor + kept * frequency
    };
    Ok(plain.iter().map(scale).collect())
}

/// YaRN: between the dimensions that turn `beta_fast` and `beta_slow` times over the original
/// context, frequencies go over from unchanged to divided by `factor`; sine and cosine grow.
fn yarn(nested: &Fields, plain: &[f64], theta: f64, original: f64) -> Result<(Vec<f64>, f32)> {
    let factor = nested.required_positive("factor")?;
    let head_dim = (2 * plain.len()) as f64;
    let dimension =
        |turns: f64| head_dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let low = dimension(nested.positive("beta_fast")?.unwrap_or(32.0));
    let high = dimension(nested.positive("beta_slow")?.unwrap_or(1.0));
    let (low, high) =
        if nested.flag("truncate", true)? { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(head_dim - 1.0));
    let width = if high == low { 0.001 } else { high - low };
    let scale = |(i, frequency): (usize, &f64)| {
        let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
        frequency / factor * stretched + frequency * (1.0 - stretched)
    };
    let inv_freq = plain.iter().enumerate().map(scale).collect();
    let grow = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let weights = nested.number("mscale")?.zip(nested.number("mscale_all_dim")?);
    let magnitude = match (nested.positive("attention_factor")?, weights) {
        (Some(given), _) => given,
        (None, Some((m, all))) if m != 0.0 && all != 0.0 => grow(m) / grow(all),
        (None, _) => grow(1.0),
    };
    Ok((inv_freq, magnitude as f32))
}

/// A key that is not known may change the arithmetic (`mrope_section`, `short_factor`, ...).
fn refuse_unknown_keys(nested: &Fields) -> Result<()> {
    for key in nested.keys() {
        let Some(value) = nested.get(key) else { continue };
        let whole = key == "partial_rotary_factor" && value.as_f64() == Some(1.0);
        if !whole && !KEYS.contains(&key) {
            return Err(nested.unsupported(key, value));
        }
    }
    Ok(())
}

const KEYS: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned",
];
