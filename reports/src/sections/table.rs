//! A table that page, Markdown and data file share.

use crate::csv::quoted;

/// Columns and rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub heads: Vec<Head>,
    pub rows: Vec<Vec<Value>>,
}

/// A column.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// Its name in the data file.
    pub key: &'static str,
    /// As people read it.
    pub name: String,
    pub unit: &'static str,
    pub number: bool,
}

/// A cell.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    /// The number, and how people see it.
    Number(f64, String),
    None,
}

impl Value {
    pub fn optional(value: Option<f64>, show: impl Fn(f64) -> String) -> Self {
        value.map_or(Self::None, |value| Self::Number(value, show(value)))
    }

    pub fn count(value: u64) -> Self {
        Self::Number(value as f64, crate::number::count(value))
    }

    /// As people see it.
    pub fn shown(&self) -> &str {
        match self {
            Self::Text(text) | Self::Number(_, text) => text,
            Self::None => "–",
        }
    }
}

impl Table {
    /// A table with these columns: key, name, unit. Those of numbers have a unit or `#`, which is not shown.
    pub fn new(heads: &[(&'static str, &str, &'static str)]) -> Self {
        let heads = heads.iter().map(|(key, name, unit)| Head {
            key,
            name: (*name).to_owned(),
            unit: if *unit == "#" { "" } else { unit },
            number: !unit.is_empty(),
        });
        Self {
            heads: heads.collect(),
            rows: Vec::new(),
        }
    }

    /// With full numbers, one line a row.
    pub fn csv(&self) -> String {
        let heads: Vec<&str> = self.heads.iter().map(|head| head.key).collect();
        let mut text = heads.join(",") + "\n";
        for row in &self.rows {
            let cells = row.iter().map(|cell| match cell {
                Value::Text(text) => quoted(text),
                Value::Number(value, _) => value.to_string(),
                Value::None => String::new(),
            });
            text += &(cells.collect::<Vec<_>>().join(",") + "\n");
        }
        text
    }
}
