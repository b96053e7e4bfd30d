//! Arrays of numbers on disk, written whole or not at all.
//!
//! A file is eight bytes of magic, the length of a JSON note, the note, the values in little-endian order, and the SHA-256
//! of all that. It is written beside its place and renamed, so that a process killed at any moment leaves either nothing
//! or all of it.

use std::io::{BufWriter, Read, Write};
use std::path::Path;

use bytemuck::Pod;
use cinder_models::checkpoint::Hashing;
use fs_err::File;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"CINDARR1";

/// Writes a file beside its place and renames it.
///
/// # Errors
/// I/O errors.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    file.write_all(content)?;
    // What comes after takes a file that is there for whole.
    file.sync_all()?;
    Ok(fs_err::rename(unfinished, path)?)
}

/// Reads a JSON file that a run has left.
///
/// # Errors
/// I/O errors, and [`Error::Work`] when it is not what was written.
pub(crate) fn read_json<V: DeserializeOwned>(path: &Path) -> Result<V> {
    serde_json::from_slice(&fs_err::read(path)?).map_err(|e| Error::Work {
        path: path.into(),
        why: e.to_string(),
    })
}

/// Writes values with a note of what they are.
///
/// # Errors
/// I/O errors.
pub(crate) fn save<T: Pod>(path: &Path, note: &Value, values: &[T]) -> Result<()> {
    let note = note.to_string();
    let length = (note.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [
        MAGIC,
        &length,
        note.as_bytes(),
        bytemuck::cast_slice(values),
    ];
    let mut hashing = Hashing::new(std::io::sink());
    let unfinished = path.with_extension("new");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
    for part in parts {
        hashing.write_all(part)?;
        out.write_all(part)?;
    }
    out.write_all(hashing.sha256().as_bytes())?;
    out.into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .sync_all()?;
    fs_err::rename(unfinished, path)?;
    Ok(())
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// I/O errors, and [`Error::Work`] when the file is not what was written.
pub(crate) fn load<T: Pod>(path: &Path) -> Result<(Value, Vec<T>)> {
    let damaged = |why: &str| Error::Work {
        path: path.into(),
        why: why.into(),
    };
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    let (content, hash) = bytes
        .split_at_checked(bytes.len().saturating_sub(64))
        .ok_or_else(|| damaged("it is too short"))?;
    if cinder_models::checkpoint::sha256(content).as_bytes() != hash {
        return Err(damaged("its content is not what was written"));
    }
    let rest = content
        .strip_prefix(MAGIC)
        .ok_or_else(|| damaged("it is no file of Cinder's"))?;
    let (length, rest) = rest
        .split_at_checked(8)
        .ok_or_else(|| damaged("it is too short"))?;
    let length = length
        .iter()
        .rev()
        .fold(0usize, |n, b| n << 8 | usize::from(*b));
    let (note, values) = rest
        .split_at_checked(length)
        .ok_or_else(|| damaged("it is too short"))?;
    let note = serde_json::from_slice(note).map_err(|e| damaged(&e.to_string()))?;
    let values = values.chunks_exact(size_of::<T>());
    if !values.remainder().is_empty() {
        return Err(damaged("its values are not whole"));
    }
    Ok((note, values.map(bytemuck::pod_read_unaligned).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_was_damaged_is_refused() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("values");
        save(
            &path,
            &json!({"rows": 3}),
            &[1.5f64, f64::MIN_POSITIVE, -0.0],
        )
        .expect("writes");
        let (note, values) = load::<f64>(&path).expect("reads");
        assert_eq!(note["rows"], 3);
        assert_eq!(values, [1.5, f64::MIN_POSITIVE, -0.0]);
        let mut bytes = fs_err::read(&path).expect("reads");
        for change in [20, bytes.len() - 70] {
            bytes[change] ^= 1;
            fs_err::write(&path, &bytes).expect("writes");
            assert!(matches!(load::<f64>(&path), Err(Error::Work { .. })));
            bytes[change] ^= 1;
        }
        fs_err::write(&path, &bytes[..30]).expect("writes");
        assert!(matches!(load::<f64>(&path), Err(Error::Work { .. })));
    }
}
