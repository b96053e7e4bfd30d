//! SHA-256 of files and byte strings, in lower-case hex.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Result;

/// SHA-256 of a byte string.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// SHA-256 of a file's content.
pub fn sha256_file(path: &Path) -> Result<String> {
    Ok(sha256_reader(&mut fs_err::File::open(path)?)?)
}

/// SHA-256 of everything a reader still gives.
pub fn sha256_reader(reader: &mut impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(digest.finalize().as_slice()));
        }
        digest.update(&buffer[..n]);
    }
}

/// SHA-256 over the names and hashes of several files, in name order.
pub(crate) fn sha256_files(paths: &[PathBuf]) -> Result<String> {
    let mut lines = paths
        .iter()
        .map(|p| {
            let name = p.file_name().map(|n| n.to_string_lossy().into_owned());
            Ok(format!(
                "{} {}\n",
                sha256_file(p)?,
                name.unwrap_or_default()
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    lines.sort();
    Ok(sha256(lines.concat().as_bytes()))
}

/// A writer that hashes and counts what passes through it.
pub struct Hashing<W> {
    pub(crate) inner: W,
    digest: Sha256,
    pub(crate) bytes: u64,
}

impl<W> Hashing<W> {
    /// Nothing has passed yet.
    pub fn new(inner: W) -> Self {
        Hashing {
            inner,
            digest: Sha256::new(),
            bytes: 0,
        }
    }

    /// Where it passes to.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// SHA-256 of what has passed so far, in lower-case hex.
    pub fn sha256(&self) -> String {
        hex(self.digest.clone().finalize().as_slice())
    }
}

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.digest.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
