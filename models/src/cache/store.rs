//! The memory of latents: panels of consecutive tokens.

use super::CacheFormat;
use super::panels::{PANEL, PanelLayout};

/// Tokens from `first` on, of sequences side by side.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub layout: PanelLayout,
    /// The first token held, of a panel.
    pub first: usize,
    /// `[panels, batch]` of `layout.bytes`.
    panels: Vec<u8>,
}

/// A store's memory as the kernel reads it: `[panels, batch]` of `layout.bytes` each.
#[derive(Clone, Copy)]
pub(crate) struct Latents<'a> {
    pub layout: &'a PanelLayout,
    pub panels: &'a [u8],
    pub batch: usize,
    /// The first token that the memory holds.
    pub first: usize,
    /// The token behind the last.
    pub length: usize,
}

impl Store {
    /// No tokens, in slices of the given ranks.
    pub fn new(format: CacheFormat, ranks: &[usize]) -> Self {
        Store {
            layout: PanelLayout::new(format, ranks),
            first: 0,
            panels: Vec::new(),
        }
    }

    /// Tokens that there is room for.
    pub fn room(&self, batch: usize) -> usize {
        self.panels.len() / (batch * self.layout.bytes).max(1) * PANEL
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> u64 {
        self.panels.capacity() as u64
    }

    /// Makes room for `tokens`, zeros behind what there is. New memory is taken as zeros rather than filled with them, so that
    /// the system gives pages only as tokens come.
    pub fn resize(&mut self, tokens: usize, batch: usize) {
        let mut panels = vec![0; tokens.div_ceil(PANEL) * batch * self.layout.bytes];
        let kept = panels.len().min(self.panels.len());
        panels[..kept].copy_from_slice(&self.panels[..kept]);
        self.panels = panels;
    }

    /// Makes `first` the first token, with room for `room` from there on; the tokens from there to `length` stay. Those that
    /// were not held are what `other` says they are.
    pub fn restart(
        &mut self,
        first: usize,
        length: usize,
        room: usize,
        batch: usize,
        other: &Store,
    ) {
        if (first, room) == (self.first, self.room(batch)) {
            return;
        }
        let mut new = Store {
            layout: self.layout.clone(),
            first,
            panels: vec![0; room.div_ceil(PANEL) * batch * self.layout.bytes],
        };
        let mut values = vec![0.0; self.layout.rank];
        for panel in (first..length).step_by(PANEL) {
            for sequence in 0..batch {
                if panel >= self.first {
                    let from = self.place(panel, sequence, batch);
                    let to = new.place(panel, sequence, batch);
                    new.panels[to].copy_from_slice(&self.panels[from]);
                    continue;
                }
                for token in panel..(panel + PANEL).min(length) {
                    other.read(token, sequence, batch, &mut values);
                    new.write(token, sequence, batch, &values);
                }
            }
        }
        *self = new;
    }

    /// Where a token's panel is.
    fn place(&self, token: usize, sequence: usize, batch: usize) -> std::ops::Range<usize> {
        let record = self.layout.bytes;
        let at = ((token - self.first) / PANEL * batch + sequence) * record;
        at..at + record
    }

    /// Puts in the latents of a token.
    pub fn write(&mut self, token: usize, sequence: usize, batch: usize, values: &[f32]) {
        let place = self.place(token, sequence, batch);
        let panel = &mut self.panels[place];
        self.layout.write(panel, token % PANEL, values);
    }

    /// What the latents of a token stand for.
    pub fn read(&self, token: usize, sequence: usize, batch: usize, values: &mut [f32]) {
        let panel = &self.panels[self.place(token, sequence, batch)];
        self.layout.read(panel, token % PANEL, values);
    }

    /// The memory, for the kernel.
    pub fn latents(&self, batch: usize, length: usize) -> Latents<'_> {
        Latents {
            layout: &self.layout,
            panels: &self.panels,
            batch,
            first: self.first,
            length,
        }
    }
}
