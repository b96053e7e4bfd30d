//! Making blocks of a checkpoint: as a file that is whole or not there, or in memory.

use std::io::{ErrorKind, Seek, Write};
use std::path::Path;

use burn::tensor::Device;

use super::budget::size;
use super::buffer::AlignedBuffer;
use super::checksum::checksum;
use super::layout::Layout;
use super::{StreamedDecoder, partial, weights};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::progress::Progress;

/// The blocks of a model, their checksums not known. Reads no weight.
///
/// # Errors
/// [`Error::Unsupported`] for what blocks can not hold; those of the checkpoint.
pub(super) fn layout(
    checkpoint: &Checkpoint,
    precision: Precision,
    device: &Device,
) -> Result<Layout> {
    let unsupported = |what: String, hint: &str| Error::Unsupported {
        path: checkpoint.path().into(),
        what,
        hint: hint.into(),
    };
    if !StreamedDecoder::PRECISIONS.contains(&precision) {
        return Err(unsupported(
            format!("streaming blocks in {precision}"),
            "blocks are streamed in f32, f16 or bf16: what is run from a disk is the model itself, to its last bit",
        ));
    }
    if (checkpoint.projections().iter()).any(|projection| projection.quantized.is_some()) {
        return Err(unsupported(
            "streaming blocks that are stored as codes".into(),
            "codes are made for a draft, which stays in memory; stream the model that they were made of",
        ));
    }
    if checkpoint.has_latents() {
        return Err(unsupported(
            "streaming blocks whose keys and values are rebuilt from latents".into(),
            "their expansions are kept in a prepared form, which a streamed block would have to make again in every pass; run \
             the model in memory",
        ));
    }
    let layers = 0..checkpoint.config().layers;
    let blocks = layers.map(|layer| {
        let hollow = checkpoint.hollow_layer(layer, precision, device)?;
        Ok(weights::matrices(&hollow))
    });
    let blocks = blocks.collect::<Result<_>>()?;
    Ok(Layout::place(checkpoint.sha256()?, precision, blocks))
}

/// One block of a checkpoint, and its checksum.
fn block(
    checkpoint: &Checkpoint,
    layout: &Layout,
    index: usize,
    device: &Device,
) -> Result<(AlignedBuffer, u64)> {
    let block = &layout.blocks[index];
    let layer = checkpoint.load_layer(index, layout.precision, device)?;
    let mut buffer = AlignedBuffer::new(block.length as usize);
    weights::write(&layer, index, block, buffer.as_mut_slice())?;
    let sum = checksum(buffer.as_slice());
    Ok((buffer, sum))
}

/// All blocks in memory.
///
/// # Errors
/// Those of loading; [`Error::NonFinite`].
pub(super) fn in_memory(
    checkpoint: &Checkpoint,
    mut layout: Layout,
    device: &Device,
    progress: &dyn Progress,
) -> Result<(Layout, Vec<AlignedBuffer>)> {
    progress.start("making blocks", layout.blocks.len() as u64);
    let mut buffers = Vec::new();
    for index in 0..layout.blocks.len() {
        let (buffer, sum) = block(checkpoint, &layout, index, device)?;
        layout.blocks[index].checksum = sum;
        buffers.push(buffer);
        progress.advance(1);
    }
    progress.finish();
    Ok((layout, buffers))
}

/// A block file at `path`, where nothing is. It is written under another name beside it, synced, and renamed; when
/// another program has put a file there meanwhile, that one stays.
///
/// # Errors
/// [`Error::Output`] when it can not be written; those of loading; [`Error::NonFinite`].
pub(super) fn file(
    checkpoint: &Checkpoint,
    mut layout: Layout,
    path: &Path,
    device: &Device,
    progress: &dyn Progress,
) -> Result<()> {
    let room = size(layout.file_length());
    let output = |why: String| Error::Output {
        path: path.into(),
        why,
        hint: format!(
            "the blocks take {room}: name a file in a folder that exists, can be written to and has that room"
        ),
    };
    let unwritable = |e: std::io::Error| output(format!("could not be written: {e}"));
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(output(
            "could not be written: its folder is not there".into(),
        ));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    partial::remove_abandoned(folder, &name);
    let mut partial = partial::create(folder, &name).map_err(unwritable)?;
    progress.start("writing blocks", layout.blocks.len() as u64);
    // The checksums come later; the length is this one's.
    partial.write_all(&layout.encode()).map_err(unwritable)?;
    for index in 0..layout.blocks.len() {
        let (buffer, sum) = block(checkpoint, &layout, index, device)?;
        layout.blocks[index].checksum = sum;
        partial.write_all(buffer.as_slice()).map_err(unwritable)?;
        progress.advance(1);
    }
    partial.rewind().map_err(unwritable)?;
    partial.write_all(&layout.encode()).map_err(unwritable)?;
    partial.as_file().sync_all().map_err(unwritable)?;
    match partial.persist_noclobber(path) {
        Err(e) if e.error.kind() != ErrorKind::AlreadyExists => return Err(unwritable(e.error)),
        _ => {}
    }
    // The name too is to outlive a failure of power; a system that can not say so is not worth an error.
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
    progress.finish();
    Ok(())
}
