//! Reading ahead: a thread that fills one staging buffer while the block in the other is computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::buffer::{AlignedBuffer, BlockBytes};
use super::checksum::Checksum;
use super::layout::{ALIGN, Layout};
use super::link::Link;
use super::source::BlockSource;
use crate::error::{Error, Result};

/// Staging buffers: one is filled while the other is read.
pub(super) const STAGES: usize = 2;

/// Reads blocks `first..` in a circle, always [`STAGES`] ahead of what is used; sleeps when there is no buffer to fill.
pub(super) struct Reader {
    source: Arc<BlockSource>,
    /// None while the reader is being dropped.
    ends: Option<Ends>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

struct Ends {
    loaded: Receiver<Result<Loaded>>,
    home: Sender<AlignedBuffer>,
}

struct Loaded {
    block: usize,
    buffer: AlignedBuffer,
}

/// What the thread has done so far.
#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    bytes: AtomicU64,
    /// Nanoseconds of reading, waiting for a simulated link included.
    reading: AtomicU64,
    /// Nanoseconds of checksums.
    checking: AtomicU64,
}

/// What reading has cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReadingCost {
    pub bytes: u64,
    pub reading: Duration,
    pub checking: Duration,
}

impl Reader {
    /// Starts to read. `layout` has a block at `first`, at least.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread.
    pub fn start(
        source: BlockSource,
        layout: Arc<Layout>,
        first: usize,
        rate: Option<f64>,
    ) -> Result<Self> {
        let (source, counts) = (Arc::new(source), Arc::new(Counts::default()));
        let (home, free) = channel();
        let (send, loaded) = channel();
        let blocks = &layout.blocks[first..];
        let longest = blocks.iter().map(|b| b.length).max().unwrap_or(0);
        for _ in 0..STAGES {
            // Both ends are here: nothing is lost.
            let _ = home.send(AlignedBuffer::new(longest as usize));
        }
        let work = Work {
            source: source.clone(),
            layout,
            counts: counts.clone(),
            link: Link::new(rate),
        };
        let thread = thread::Builder::new()
            .name("cinder-offload".into())
            .spawn(move || work.run(first, &free, &send))?;
        Ok(Reader {
            source,
            ends: Some(Ends { loaded, home }),
            counts,
            thread: Some(thread),
        })
    }

    /// Where it reads.
    pub fn source(&self) -> &BlockSource {
        &self.source
    }

    /// The block's bytes, once they are there.
    ///
    /// # Errors
    /// What reading has failed with; [`Error::Request`] once it has.
    pub fn block(&mut self, wanted: usize) -> Result<BlockBytes> {
        let over = || {
            Error::Request(
                "the model's blocks can no longer be read: see the error before this one".into(),
            )
        };
        let ends = self.ends.as_ref().ok_or_else(over)?;
        loop {
            let loaded = ends.loaded.recv().map_err(|_| over())??;
            let bytes = BlockBytes::staged(loaded.buffer, ends.home.clone());
            // A pass that ended early has left blocks that nobody wants: their buffers go back.
            if loaded.block == wanted {
                return Ok(bytes);
            }
        }
    }

    pub fn cost(&self) -> ReadingCost {
        let nanoseconds = |count: &AtomicU64| Duration::from_nanos(count.load(Ordering::Relaxed));
        ReadingCost {
            bytes: self.counts.bytes.load(Ordering::Relaxed),
            reading: nanoseconds(&self.counts.reading),
            checking: nanoseconds(&self.counts.checking),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits for a buffer or to hand one over.
        self.ends = None;
        if let Some(thread) = self.thread.take() {
            // It has no panic to pass on: what it could say has no reader now.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Work {
    source: Arc<BlockSource>,
    layout: Arc<Layout>,
    counts: Arc<Counts>,
    link: Link,
}

impl Work {
    fn run(mut self, first: usize, free: &Receiver<AlignedBuffer>, to: &Sender<Result<Loaded>>) {
        for block in (first..self.layout.blocks.len()).cycle() {
            let buffer = match free.try_recv() {
                Err(TryRecvError::Empty) => {
                    let buffer = free.recv();
                    self.link.idle();
                    buffer.ok()
                }
                other => other.ok(),
            };
            let Some(mut buffer) = buffer else { return };
            let outcome = self.fill(block, &mut buffer);
            let Some(outcome) = outcome.transpose() else {
                return;
            };
            let failed = outcome.is_err();
            let loaded = outcome.map(|()| Loaded { block, buffer });
            if to.send(loaded).is_err() || failed {
                return;
            }
        }
    }

    /// Reads and checks one block; none when it was stopped.
    fn fill(&mut self, block: usize, buffer: &mut AlignedBuffer) -> Result<Option<()>> {
        let entry = &self.layout.blocks[block];
        let to = &mut buffer.as_mut_slice()[..entry.length as usize];
        let (mut sum, piece) = (Checksum::new(), self.link.piece(ALIGN));
        for (index, part) in to.chunks_mut(piece).enumerate() {
            if self.counts.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let start = Instant::now();
            self.source.read(&self.layout, block, index * piece, part)?;
            self.counts
                .bytes
                .fetch_add(part.len() as u64, Ordering::Relaxed);
            // While the bytes are still near; a simulated link's wait covers it.
            let read = Instant::now();
            sum.update(part);
            let checked = read.elapsed();
            self.link.carry(start, part.len());
            add(&self.counts.checking, checked);
            add(
                &self.counts.reading,
                start.elapsed().saturating_sub(checked),
            );
        }
        match sum.finish(&[]) == entry.checksum {
            true => Ok(Some(())),
            false => Err(self.source.damaged(block)),
        }
    }
}

fn add(count: &AtomicU64, time: Duration) {
    count.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
}
