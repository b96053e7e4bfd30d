//! What a substitute is made of, and how that is written: `hqq:4:64`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::rounding::Method;
use crate::decoder::Site;
use crate::ops::LowBit;

/// Inputs that share a scale where nothing else is said: the paper's.
const GROUP: usize = 64;

/// How the projections of a model become low-bit codes.
///
/// Written as `METHOD:BITS:GROUP`, then, with commas between them, what is different: `down=8` or `down=8:32` for one kind of
/// projection, `head=8` for a low-bit copy of the output head, `round_zero`. The group may be left out, and is 64 then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstituteSettings {
    /// How codes are chosen.
    pub method: Method,
    /// Bits and group.
    pub format: LowBit,
    /// Whether zeros are whole codes (of HQQ, those it starts from): what the reference does for 4 bits.
    pub round_zero: bool,
    /// Other bits and groups of some projections, by their names.
    pub overrides: BTreeMap<&'static str, LowBit>,
    /// Bits and group of a copy of the output head; none shares the model's own.
    pub head: Option<LowBit>,
}

impl SubstituteSettings {
    /// The same for every projection, and the model's own head.
    pub fn new(method: Method, format: LowBit) -> Self {
        SubstituteSettings {
            method,
            format,
            round_zero: false,
            overrides: BTreeMap::new(),
            head: None,
        }
    }

    /// Bits and group of a projection.
    pub fn format_of(&self, projection: &str) -> LowBit {
        let own = self.overrides.get(projection);
        own.copied().unwrap_or(self.format)
    }
}

impl Default for SubstituteSettings {
    /// The paper's: `hqq:4:64`.
    fn default() -> Self {
        let format = const {
            match LowBit::new(4, GROUP) {
                Some(format) => format,
                None => panic!("4 bits in groups of 64"),
            }
        };
        Self::new(Method::Hqq, format)
    }
}

impl fmt::Display for LowBit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.bits(), self.group())
    }
}

impl fmt::Display for SubstituteSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.method.name(), self.format)?;
        for (projection, format) in &self.overrides {
            write!(f, ",{projection}={format}")?;
        }
        if let Some(head) = self.head {
            write!(f, ",head={head}")?;
        }
        f.write_str(if self.round_zero { ",round_zero" } else { "" })
    }
}

impl FromStr for SubstituteSettings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, format) = first.split_once(':').unwrap_or((first, ""));
        let method = Method::ALL.into_iter().find(|m| m.name() == name);
        let method = method.ok_or_else(|| {
            format!("the methods are hqq and round, not `{name}`: write METHOD:BITS:GROUP, such as hqq:4:64")
        })?;
        let mut settings = Self::new(method, low_bit(format, GROUP)?);
        for part in parts {
            if part == "round_zero" {
                settings.round_zero = true;
                continue;
            }
            let (name, format) = part.split_once('=').unwrap_or((part, ""));
            if name == "head" {
                settings.head = Some(low_bit(format, settings.format.group())?);
                continue;
            }
            let projections = Site::ALL.iter().flat_map(|site| site.projections());
            let mut projections = projections.filter(|known| **known == name);
            let Some(projection) = projections.next() else {
                return Err(format!(
                    "`{part}` is no addition: there are head=BITS, round_zero, and q, k, v, o, gate, up or down=BITS:GROUP"
                ));
            };
            let format = low_bit(format, settings.format.group())?;
            settings.overrides.insert(projection, format);
        }
        Ok(settings)
    }
}

/// `BITS` or `BITS:GROUP`.
fn low_bit(text: &str, group: usize) -> Result<LowBit, String> {
    let (bits, group) = match text.split_once(':') {
        Some((bits, group)) => (bits, group.parse().ok()),
        None => (text, Some(group)),
    };
    let format = bits.parse().ok().zip(group);
    format
        .and_then(|(bits, group)| LowBit::new(bits, group))
        .ok_or_else(|| {
            format!(
                "`{text}` is no BITS:GROUP: bits are 2, 3, 4 or 8, groups 32, 64 or 128, as in 4:64"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let whole = "hqq:3:64,down=8:32,o=4:128,head=8:64,round_zero";
        for text in ["hqq:4:64", "round:2:128", "hqq:8:32,head=4:32", whole] {
            let settings: SubstituteSettings = text.parse().expect("is one");
            assert_eq!(settings.to_string(), text);
        }
        let settings: SubstituteSettings = "round:3,down=8,head=4".parse().expect("is one");
        assert_eq!(settings.to_string(), "round:3:64,down=8:64,head=4:64");
        assert_eq!(settings.format_of("down").bits(), 8);
        assert_eq!(settings.format_of("up").bits(), 3);
        assert_eq!(SubstituteSettings::default().to_string(), "hqq:4:64");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "the methods are"),
            ("gptq:4:64", "`gptq`"),
            ("hqq", "bits are 2, 3, 4 or 8"),
            ("hqq:5:64", "`5:64`"),
            ("hqq:4:48", "groups 32, 64 or 128"),
            ("hqq:4:64:8", "`4:64:8`"),
            ("hqq:4:64,down", "bits are"),
            ("hqq:4:64,embedding=8", "`embedding=8`"),
            ("round:-4", "`-4`"),
        ] {
            let why = text.parse::<SubstituteSettings>().expect_err(text);
            assert!(why.contains(part), "{text}: {why}");
        }
    }
}
