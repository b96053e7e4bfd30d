//! The key/value half of a GGUF file, with getters that name the key when it is not what it should be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One value. GGUF's ten scalar widths are folded into the widest type of each kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    /// 32-bit values are widened exactly.
    Float(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A homogeneous array. GGUF allows arrays of arrays; no model Cinder reads has one, so the reader refuses them.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Elements of one byte, signed or not, as they are stored: widening them would cost eight times the file.
    Bytes(Vec<u8>),
    Unsigned(Vec<u64>),
    Signed(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
}

impl Array {
    fn kind(&self) -> &'static str {
        match self {
            Array::Bytes(_) => "an array of bytes",
            Array::Unsigned(_) => "an array of unsigned integers",
            Array::Signed(_) => "an array of signed integers",
            Array::Float(_) | Array::Double(_) => "an array of floats",
            Array::Bool(_) => "an array of booleans",
            Array::String(_) => "an array of strings",
        }
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "an unsigned integer",
            Value::Signed(_) => "a signed integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::String(_) => "a string",
            Value::Array(array) => array.kind(),
        }
    }

    /// The integer, if it is one and not negative: writers disagree about the signedness of counts.
    fn unsigned(&self) -> Option<u64> {
        match self {
            Value::Unsigned(value) => Some(*value),
            Value::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// All metadata of one file.
#[derive(Debug, Clone)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

/// A getter for one kind of value: `None` when the key is absent, an error when it holds something else.
macro_rules! getter {
    ($(#[$doc:meta])* $name:ident -> $type:ty, $expected:literal, $pattern:pat => $value:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Error::Config`] naming the key, if it is there with another type.
        pub fn $name(&self, key: &str) -> Result<Option<$type>> {
            match self.values.get(key) {
                None => Ok(None),
                Some($pattern) => Ok(Some($value)),
                Some(other) => Err(self.mistyped(key, other, $expected)),
            }
        }
    };
}

impl Metadata {
    pub(crate) fn new(path: &Path) -> Self {
        Metadata {
            path: path.to_owned(),
            values: BTreeMap::new(),
        }
    }

    /// Adds a value; `false` if the key was there already (and keeps the first).
    pub(crate) fn insert(&mut self, key: String, value: Value) -> bool {
        use std::collections::btree_map::Entry;
        match self.values.entry(key) {
            Entry::Occupied(_) => false,
            Entry::Vacant(slot) => {
                slot.insert(value);
                true
            }
        }
    }

    /// The file this came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Any value, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Every key with its value, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A non-negative integer of any width.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, if it is negative or not an integer.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.values
            .get(key)
            .map(|value| {
                value
                    .unsigned()
                    .ok_or_else(|| self.mistyped(key, value, "a non-negative integer"))
            })
            .transpose()
    }

    /// A token id: a non-negative integer that fits 32 bits.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, if it is something else.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        self.unsigned(key)?
            .map(|id| {
                u32::try_from(id)
                    .map_err(|_| self.error(format!("metadata `{key}` = {id} is not a token id")))
            })
            .transpose()
    }

    getter!(
        /// A float of either width.
        float -> f64, "a float", Value::Float(value) => *value);
    getter!(
        /// A boolean.
        boolean -> bool, "a boolean", Value::Bool(value) => *value);
    getter!(
        /// A string.
        string -> &str, "a string", Value::String(value) => value.as_str());
    getter!(
        /// An array of strings.
        strings -> &[String], "an array of strings",
        Value::Array(Array::String(values)) => values.as_slice());
    getter!(
        /// An array of 32-bit floats, such as the scores of a SentencePiece vocabulary.
        floats -> &[f32], "an array of 32-bit floats",
        Value::Array(Array::Float(values)) => values.as_slice());

    /// An array of integers of 16 bits or more, signed or not, such as token types.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, if it holds anything else or a value beyond 64 signed bits.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Signed(values))) => Ok(Some(values.clone())),
            Some(Value::Array(Array::Unsigned(values))) => values
                .iter()
                .map(|value| i64::try_from(*value))
                .collect::<Result<Vec<_>, _>>()
                .map(Some)
                .map_err(|_| self.error(format!("metadata `{key}` holds an integer too large"))),
            Some(other) => Err(self.mistyped(key, other, "an array of integers")),
        }
    }

    /// A count that may be given once for the model or once per layer, where every layer must agree.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not made of non-negative integers, [`Error::Unsupported`] if layers differ.
    pub fn uniform(&self, key: &str) -> Result<Option<u64>> {
        let Some(Value::Array(_)) = self.values.get(key) else {
            return self.unsigned(key);
        };
        let values = self.integers(key)?.unwrap_or_default();
        let first = values
            .first()
            .and_then(|value| u64::try_from(*value).ok())
            .ok_or_else(|| self.error(format!("metadata `{key}` is an empty or negative array")))?;
        if values.iter().any(|value| Some(value) != values.first()) {
            return Err(Error::Unsupported {
                path: self.path.clone(),
                what: format!("metadata `{key}` differs between layers"),
                hint: "Cinder reads decoders whose layers all have one shape".into(),
            });
        }
        Ok(Some(first))
    }

    /// Turns an absent key into an error that names it.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(format!("metadata `{key}` is missing")))
    }

    fn mistyped(&self, key: &str, found: &Value, expected: &str) -> Error {
        self.error(format!(
            "metadata `{key}` is {}, expected {expected}",
            found.kind()
        ))
    }

    pub(crate) fn error(&self, why: String) -> Error {
        Error::Config {
            path: self.path.clone(),
            why,
        }
    }
}
