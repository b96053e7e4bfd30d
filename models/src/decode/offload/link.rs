//! A link of a given speed, simulated by waiting.

use std::time::{Duration, Instant};

/// How far a transfer that woke late may catch up. More would let the link save up speed while a read is slow.
const CATCH_UP: Duration = Duration::from_millis(2);

/// Lets bytes pass at a rate: a token bucket that holds next to nothing.
#[derive(Debug)]
pub(super) struct Link {
    /// Bytes per second; none for as fast as it goes.
    rate: Option<f64>,
    /// When the last byte is through.
    free: Instant,
}

impl Link {
    pub fn new(rate: Option<f64>) -> Self {
        Link {
            rate,
            free: Instant::now(),
        }
    }

    /// The link has stood still: what it could have carried meanwhile is lost.
    pub fn idle(&mut self) {
        self.free = Instant::now();
    }

    /// How many bytes to ask for at a time: about 10 milliseconds' worth, in whole multiples of `align`.
    pub fn piece(&self, align: usize) -> usize {
        const MOST: usize = 4 << 20;
        let worth = self.rate.map_or(MOST, |rate| (rate / 100.0) as usize);
        (worth.min(MOST) / align * align).max(align)
    }

    /// Waits until `bytes` that were asked for at `start`, and have come, would have come over the link.
    pub fn carry(&mut self, start: Instant, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let start = start.checked_sub(CATCH_UP).unwrap_or(start);
        self.free = self.free.max(start) + Duration::from_secs_f64(bytes as f64 / rate);
        std::thread::sleep(self.free.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_and_standing_still_saves_nothing() {
        let mut link = Link::new(Some(1e6));
        let carry = |link: &mut Link, bytes: usize| {
            let start = Instant::now();
            let piece = link.piece(1000);
            assert_eq!(piece, 10_000);
            for _ in 0..bytes / piece {
                link.carry(Instant::now(), piece);
            }
            start.elapsed().as_secs_f64()
        };
        // A busy machine makes it later, never earlier.
        assert!(carry(&mut link, 60_000) > 0.059);
        std::thread::sleep(Duration::from_millis(20));
        link.idle();
        assert!(carry(&mut link, 40_000) > 0.039);
        // Even where nobody says that it stood still, little is saved.
        std::thread::sleep(Duration::from_millis(20));
        assert!(carry(&mut link, 40_000) > 0.035);
    }

    #[test]
    fn pieces_are_whole_and_no_rate_is_no_wait() {
        assert_eq!(Link::new(Some(1.0)).piece(4096), 4096);
        assert_eq!(Link::new(Some(1e9)).piece(4096) % 4096, 0);
        let mut link = Link::new(None);
        assert_eq!(link.piece(4096), 4 << 20);
        let start = Instant::now();
        link.carry(start, usize::MAX);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
