//! Where blocks are read from: a block file, or host memory.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::buffer::AlignedBuffer;
use super::checksum::checksum;
use super::layout::{ALIGN, Layout};
use crate::error::{Error, Result};

/// Blocks, to be read piece by piece.
#[derive(Debug)]
pub(super) enum BlockSource {
    File(BlockFile),
    /// One buffer a block; those that stay resident are empty.
    Memory(Vec<AlignedBuffer>),
}

/// An open block file.
#[derive(Debug)]
pub(super) struct BlockFile {
    path: PathBuf,
    file: File,
    direct: bool,
    stamp: Stamp,
}

/// What tells that a file is the one that was opened, as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    /// Device and number of the file where the system has them.
    identity: Option<(u64, u64)>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt;
            Some((metadata.dev(), metadata.ino()))
        };
        #[cfg(not(unix))]
        let identity = None;
        Stamp {
            length: metadata.len(),
            modified: metadata.modified().ok(),
            identity,
        }
    }
}

/// What to do about a block file that is of no use.
pub(super) fn remake(path: &Path) -> String {
    format!(
        "remove `{}`, and the next run makes it again; or name another file",
        path.display()
    )
}

impl BlockFile {
    /// Opens a block file of the model that `wanted` describes; its layout has the checksums.
    ///
    /// # Errors
    /// [`Error::Offload`] when it is no block file, another model's, damaged or not whole; [`Error::Io`].
    pub fn open(path: &Path, wanted: &Layout) -> Result<(Layout, Self)> {
        let wrong = |why: String| Error::Offload {
            path: path.into(),
            why,
            hint: remake(path),
        };
        let mut file = fs_err::File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Error::Offload {
                path: path.into(),
                why: "is not a file".into(),
                hint: "name a file for the blocks; it is made when it is not there".into(),
            });
        }
        let layout = Layout::decode(&mut file).map_err(wrong)?;
        if layout.model_sha256 != wanted.model_sha256 {
            return Err(wrong("holds the blocks of another model".into()));
        }
        if layout.precision != wanted.precision {
            return Err(wrong(format!(
                "holds the blocks in {}, not in {}",
                layout.precision, wanted.precision
            )));
        }
        if !layout.same_but_checksums(wanted) {
            return Err(wrong("does not have the blocks of this model".into()));
        }
        if metadata.len() != layout.file_length() {
            return Err(wrong(format!(
                "has {} bytes, and its blocks take {}",
                metadata.len(),
                layout.file_length()
            )));
        }
        let direct = open_direct(path);
        let block_file = BlockFile {
            path: path.into(),
            direct: direct.is_some(),
            file: direct.unwrap_or_else(|| file.into_parts().0),
            stamp: Stamp::of(&metadata),
        };
        // What was opened for direct reads could be another file by now.
        block_file.check()?;
        Ok((layout, block_file))
    }

    /// # Errors
    /// [`Error::Offload`] when the file at the path is gone, or not the one that was opened, as it was.
    pub fn check(&self) -> Result<()> {
        let now = match std::fs::metadata(&self.path) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(self.changed("was removed".into()));
            }
            Err(e) => return Err(self.changed(format!("can no longer be looked at ({e})"))),
        };
        let was = &self.stamp;
        if now == *was {
            return Ok(());
        }
        Err(self.changed(match () {
            () if now.identity != was.identity => "was replaced by another file".into(),
            () if now.length < was.length => {
                format!("was cut from {} bytes to {}", was.length, now.length)
            }
            () => "was written to".into(),
        }))
    }

    fn changed(&self, what: String) -> Error {
        Error::Offload {
            path: self.path.clone(),
            why: format!("{what} while the model was running from it"),
            hint: "nothing was computed from the change; leave the file alone while a model runs from it"
                .into(),
        }
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let failed = match read_exact_at(&self.file, to, offset) {
            Ok(()) => return Ok(()),
            Err(failed) => failed,
        };
        // A short read has its reason in what has happened to the file.
        self.check()?;
        Err(Error::Offload {
            path: self.path.clone(),
            why: format!("could not be read at byte {offset}: {failed}"),
            hint: "the disk or the connection to it may have failed".into(),
        })
    }
}

impl BlockSource {
    /// Whether what was opened is still there, as it was: asked before every pass.
    ///
    /// # Errors
    /// As [`BlockFile::check`].
    pub fn check(&self) -> Result<()> {
        match self {
            BlockSource::File(file) => file.check(),
            BlockSource::Memory(_) => Ok(()),
        }
    }

    /// Reads a piece of a block, whose place and length are multiples of [`ALIGN`], as the piece's address is.
    ///
    /// # Errors
    /// [`Error::Offload`] saying what has become of the file.
    pub fn read(&self, layout: &Layout, block: usize, at: usize, to: &mut [u8]) -> Result<()> {
        match self {
            BlockSource::File(file) => file.read(layout.blocks[block].offset + at as u64, to),
            BlockSource::Memory(blocks) => {
                to.copy_from_slice(&blocks[block].as_slice()[at..][..to.len()]);
                Ok(())
            }
        }
    }

    /// Reads and checks a whole block.
    ///
    /// # Errors
    /// As [`BlockSource::read`].
    pub fn block(&self, layout: &Layout, block: usize) -> Result<AlignedBuffer> {
        let entry = &layout.blocks[block];
        let mut buffer = AlignedBuffer::new(entry.length as usize);
        self.read(layout, block, 0, buffer.as_mut_slice())?;
        match checksum(buffer.as_slice()) == entry.checksum {
            true => Ok(buffer),
            false => Err(self.damaged(block)),
        }
    }

    /// The error of a block whose checksum is not the one that was written.
    pub fn damaged(&self, block: usize) -> Error {
        let BlockSource::File(file) = self else {
            return Error::Request(format!(
                "block {block} in this machine's memory is no longer what was put there (its checksum differs)"
            ));
        };
        file.check().err().unwrap_or_else(|| Error::Offload {
            path: file.path.clone(),
            why: format!(
                "is damaged: block {block} is not what was written (its checksum differs)"
            ),
            hint: remake(&file.path),
        })
    }

    /// Gives up the blocks before `first` that memory holds; returns the bytes it still holds.
    pub fn keep_from(&mut self, first: usize) -> u64 {
        let BlockSource::Memory(blocks) = self else {
            return 0;
        };
        for block in &mut blocks[..first] {
            *block = AlignedBuffer::new(0);
        }
        blocks.iter().map(|b| b.as_slice().len() as u64).sum()
    }

    /// Where the blocks are.
    pub fn path(&self) -> Option<&Path> {
        match self {
            BlockSource::File(file) => Some(&file.path),
            BlockSource::Memory(_) => None,
        }
    }

    /// How they are read, in words for records.
    pub fn reading(&self) -> &'static str {
        match self {
            BlockSource::File(file) if file.direct => "direct (O_DIRECT)",
            BlockSource::File(_) => "buffered (the system's cache may serve it)",
            BlockSource::Memory(_) => "copied from host memory",
        }
    }
}

/// The file for reads that pass the system's cache by, where the file system has them.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .ok()?;
    // Some file systems take the flag and refuse the reads.
    let mut first = AlignedBuffer::new(ALIGN);
    read_exact_at(&file, first.as_mut_slice(), 0).ok()?;
    Some(file)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Option<File> {
    None
}

#[cfg(unix)]
fn read_exact_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, to: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(to)
}
