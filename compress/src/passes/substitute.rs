//! # substitute
//!
//! **What it does.** Stores each projection as low-bit codes: 2, 3, 4 or 8 bits a weight, and for each group of 32, 64 or 128
//! inputs of a row a scale and a minimum in f16. Biases, norms and embedding stay as they are, and so does the output head
//! unless `head_bits` asks for codes of it: in the place of a head, or beside an embedding that is one too.
//!
//! **When to use it.** To have the draft of speculative decoding on disk: a copy of the target's own layers that fits where
//! the target does not. (`--draft hqq:4:64,head=8` makes the same copy when a model is loaded, of factored models too.) Also as
//! a small model in its own right: at 4 bits HQQ loses little.
//!
//! **Cost.** A few passes over the weights; no calibration text.
//!
//! **Guarantees.** Every projection, and the head if asked, takes `bits + 32 / group` bits a weight, and no more but that rows are filled up to
//! multiples of 16 and columns to multiples of 32. What is stored is what is multiplied: nothing is unpacked in memory.
//!
//! **Reference.** SubSpec, arXiv 2509.18344, §3.1 (the substitute layers); HQQ: see `cinder_models::substitute`.

use std::collections::BTreeMap;

use burn::nn::Linear;
use burn::tensor::DType;
use cinder_models::checkpoint::{Frame, HeadRecord, SiteRecord};
use cinder_models::ops::LowBit;
use cinder_models::projection::{BlockLinear, Projection};
use cinder_models::substitute::{
    Method, SubstituteSettings, dense_head, substitute_head, substitute_projection,
};
use cinder_models::{DecoderLayer, ModelConfig, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::factor::{self, AlternativePlan, Analysis, Losses, UnitPlan};
use super::{Entry, LayerPlan, Needs, Pass, Plan, PlannedUnit, SiteWork, Takes};
use crate::allocation::Matrix;
use crate::calibration::Moments;
use crate::error::{Error, Result};

/// Settings of `substitute`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SubstituteSettings")]
struct Settings {
    /// Bits of a code: 2, 3, 4 (default) or 8.
    #[serde(default = "default_bits")]
    #[schemars(extend("enum" = LowBit::BITS))]
    bits: usize,
    /// Inputs that share a scale: 32, 64 (default) or 128.
    #[serde(default = "default_group")]
    #[schemars(extend("enum" = LowBit::GROUPS))]
    group: usize,
    /// `hqq` (default): the zero that loses least in the norm of p = 0.7; `round`: the nearest code.
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["hqq", "round"]))]
    method: Method,
    /// Let zeros be whole codes (of `hqq`, those it starts from), as the reference does for 4 bits.
    #[serde(default)]
    round_zero: bool,
    /// The sites whose projections become codes: `qkv`, `o`, `gate_up`, `down`.
    #[serde(default = "factor::default_sites")]
    #[schemars(schema_with = "factor::sites_schema")]
    sites: Vec<String>,
    /// Other bits and groups for some projections, by their names: `q`, `k`, `v`, `o`, `gate`, `up`, `down`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    overrides: BTreeMap<String, Override>,
    /// Bits of the output head's codes: 2, 3, 4 or 8. Without it the head stays as it is. The embedding always does, tied to the
    /// head or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = LowBit::BITS))]
    head_bits: Option<usize>,
    /// Inputs of the output head that share a scale; `group` where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = LowBit::GROUPS))]
    head_group: Option<usize>,
}

/// What is different for one kind of projection.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Bits of a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = LowBit::BITS))]
    pub bits: Option<usize>,
    /// Inputs that share a scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = LowBit::GROUPS))]
    pub group: Option<usize>,
}

fn default_bits() -> usize {
    SubstituteSettings::default().format.bits()
}

fn default_group() -> usize {
    SubstituteSettings::default().format.group()
}

pub(super) const ENTRY: Entry = Entry {
    name: "substitute",
    summary: "low-bit copies of the projections, made without text (HQQ), as SubSpec drafts with",
    has_keep: false,
    build: |table| {
        let settings: Settings = factor::settings(table)?;
        Ok(Box::new(SubstitutePass::checked(settings)?) as Box<dyn Pass>)
    },
    schema: |generator| generator.subschema_for::<Settings>(),
};

/// The pass with its settings.
pub struct SubstitutePass {
    /// As they go into the manifest.
    written: Value,
    sites: Vec<Site>,
    /// Projections of those sites that another pass works on.
    left: Vec<&'static str>,
    settings: SubstituteSettings,
}

impl SubstitutePass {
    fn checked(settings: Settings) -> std::result::Result<Self, String> {
        let format = |what: &str, bits, group| {
            LowBit::new(bits, group).ok_or_else(|| {
                format!("{what} are {bits} bits in groups of {group}; bits are 2, 3, 4 or 8, and groups 32, 64 or 128")
            })
        };
        let mut own = SubstituteSettings::new(
            settings.method,
            format("codes", settings.bits, settings.group)?,
        );
        own.round_zero = settings.round_zero;
        for (name, other) in &settings.overrides {
            let mut known = Site::ALL.iter().flat_map(|site| site.projections());
            let projection = known.find(|known| *known == name).ok_or_else(|| {
                format!("`overrides` names `{name}`; projections are q, k, v, o, gate, up and down")
            })?;
            let bits = other.bits.unwrap_or(settings.bits);
            let group = other.group.unwrap_or(settings.group);
            let format = format(&format!("the codes of `{name}`"), bits, group)?;
            own.overrides.insert(projection, format);
        }
        own.head = match (settings.head_bits, settings.head_group) {
            (Some(bits), group) => {
                let group = group.unwrap_or(settings.group);
                Some(format("the codes of the head", bits, group)?)
            }
            (None, None) => None,
            (None, Some(_)) => {
                return Err("`head_group` is for `head_bits`, which is not given".into());
            }
        };
        let sites = factor::parse_sites(&settings.sites)?;
        if sites.is_empty() {
            return Err(
                "`sites` is empty; it must name at least one of qkv, o, gate_up, down".into(),
            );
        }
        Ok(SubstitutePass {
            written: factor::with_name(ENTRY.name, &settings),
            sites,
            left: Vec::new(),
            settings: own,
        })
    }

    /// The places of a site's projections that are codes, with their names.
    fn members(&self, site: Site) -> impl Iterator<Item = (usize, &'static str)> {
        let wanted = self.sites.contains(&site);
        let names = site.projections().iter().copied().enumerate();
        names.filter(move |(_, name)| wanted && !self.left.contains(name))
    }
}

impl Pass for SubstitutePass {
    fn settings(&self) -> Value {
        self.written.clone()
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn takes(&self) -> Takes {
        Takes::Dense
    }

    fn projections(&self) -> Vec<&'static str> {
        let names = |site: &Site| {
            self.members(*site)
                .map(|(_, name)| name)
                .collect::<Vec<_>>()
        };
        Site::ALL.iter().flat_map(names).collect()
    }

    fn leave(&mut self, projections: &[&'static str]) {
        self.left.extend(projections);
    }

    fn low_bit(&self, projection: &str) -> Option<LowBit> {
        let own = self.projections().contains(&projection);
        own.then(|| self.settings.format_of(projection))
    }

    fn head_format(&self) -> Option<LowBit> {
        self.settings.head
    }

    fn head(&self, frame: &Frame) -> Result<Option<(BlockLinear, HeadRecord)>> {
        let Some(format) = self.settings.head else {
            return Ok(None);
        };
        let dense = dense_head(frame.lm_head.as_ref(), &frame.embedding);
        let codes = substitute_head(&dense, &self.settings)?;
        Ok(codes.map(|codes| {
            let (out, input) = codes.shape();
            let record = HeadRecord {
                shape: [out, input],
                bits: format.bits(),
                group: format.group(),
                bytes: codes.bytes(),
                error: relative_error(&dense, &codes.to_dense()),
                bits_per_weight: bits_per_weight(&codes),
            };
            (codes, record)
        }))
    }

    /// Nothing is to be decided: the shapes alone, each matrix kept whole.
    fn analyse(
        &self,
        config: &ModelConfig,
        layer: usize,
        _known: Option<(&DecoderLayer, &dyn Moments)>,
    ) -> Result<Analysis> {
        let unit = |site: usize, (member, name): (usize, &str)| {
            let (out, input) = config.projection_shape(name);
            UnitPlan {
                site,
                members: vec![member],
                out,
                input,
                losses: Losses::Unknown,
                score: 0.0,
            }
        };
        let group = |(place, site): (usize, &Site)| {
            let units = self.members(*site).map(|member| unit(place, member));
            let only = AlternativePlan {
                neurons: None,
                removal_loss: 0.0,
                units: units.collect(),
                sizes: Vec::new(),
            };
            vec![only]
        };
        Ok(Analysis {
            layer,
            groups: Site::ALL.iter().enumerate().map(group).collect(),
            ..Analysis::default()
        })
    }

    fn plans_from_shapes(&self) -> bool {
        true
    }

    fn plan(&self, analyses: &[Analysis]) -> Result<Plan> {
        let unit = |unit: &UnitPlan| PlannedUnit {
            site: unit.site(),
            members: unit.members.clone(),
            matrix: Matrix {
                out: unit.out,
                input: unit.input,
                identity: false,
            },
            rank: None,
            predicted_loss: None,
        };
        let layer = |analysis: &Analysis| LayerPlan {
            layer: analysis.layer,
            units: (analysis.groups.iter().flatten())
                .flat_map(|only| only.units.iter().map(unit))
                .collect(),
            ..LayerPlan::default()
        };
        Ok(Plan {
            layers: analyses.iter().map(layer).collect(),
        })
    }

    fn apply(&self, work: SiteWork<'_>, block: &mut DecoderLayer) -> Result<Vec<SiteRecord>> {
        let SiteWork { plan, site, .. } = work;
        let mut projections = block.site_mut(site);
        let mut records = Vec::new();
        for (member, name) in self.members(site) {
            let not_dense = |kind: &str| Error::NotDense {
                layer: plan.layer,
                projection: name.into(),
                kind: kind.into(),
            };
            let projection = projections
                .get_mut(member)
                .ok_or_else(|| not_dense("rebuilt from latents"))?;
            if !matches!(projection, Projection::Dense(_)) {
                return Err(not_dense(projection.kind()));
            }
            let codes = substitute_projection(projection, name, &self.settings);
            let codes = codes.map_err(|error| match error {
                cinder_models::Error::NonFinite { what } => {
                    let what = format!("layer {}, {what}", plan.layer);
                    cinder_models::Error::NonFinite { what }
                }
                other => other,
            })?;
            records.push(SiteRecord {
                kind: codes.kind().into(),
                scalars: codes.scalars(),
                keep_ratio: 1.0,
                error: relative_error(&projection.to_dense(), &codes.to_dense()),
                bits_per_weight: match &codes {
                    Projection::Quantized(blocks) => Some(bits_per_weight(blocks)),
                    _ => None,
                },
                ..work.record(name, codes.shape().into())
            });
            **projection = codes;
        }
        Ok(records)
    }
}

/// Bits that codes take for each weight, with scales, minimums and padding.
fn bits_per_weight(codes: &BlockLinear) -> f64 {
    let (out, input) = codes.shape();
    8.0 * codes.bytes() as f64 / (out * input) as f64
}

/// `‖W - Ŵ‖_F / ‖W‖_F`, summed in f64.
fn relative_error(dense: &Linear, codes: &Linear) -> f64 {
    let values = |linear: &Linear| {
        // By output, as both lie.
        let weight = linear.weight.val().transpose();
        weight.cast(DType::F32).into_data()
    };
    let (dense, codes) = (values(dense), values(codes));
    let (mut off, mut all) = (0.0, 0.0);
    for (w, v) in dense.iter::<f32>().zip(codes.iter::<f32>()) {
        off += (f64::from(w) - f64::from(v)).powi(2);
        all += f64::from(w).powi(2);
    }
    if all > 0.0 { (off / all).sqrt() } else { 0.0 }
}
