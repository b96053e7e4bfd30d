//! How deep to draft: what a round takes against what it gives, of what rounds took and gave so far.
//!
//! With `α` the chance that a drafted token stays when those before it did, a draft of `D` levels gives
//! `τ(D) = 1 + α + … + α^D` tokens (Leviathan et al. 2023, eq. 1) and takes `D` drafting passes and one pass of the target
//! over its nodes. The depth with the most tokens a second is taken. Where that is none, text comes plainly, and speculation
//! is tried again now and then, more and more seldom.

use serde::{Deserialize, Serialize};

/// How many levels a draft has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Depth {
    /// As many as win most by running estimates; none where drafting does not pay.
    #[default]
    Auto,
    Fixed(usize),
}

impl std::fmt::Display for Depth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Depth::Auto => f.pad("auto"),
            Depth::Fixed(depth) => depth.fmt(f),
        }
    }
}

impl std::str::FromStr for Depth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Depth::Auto),
            _ => match text.parse() {
                Ok(depth) if depth > 0 => Ok(Depth::Fixed(depth)),
                _ => Err("a depth is `auto` or at least 1".into()),
            },
        }
    }
}

/// Levels that are never exceeded: the depth of the published system.
const DEEPEST: usize = 48;
/// Levels of the first try, however long they take.
pub(super) const FIRST: usize = 4;
/// What the first try may take for more levels, of the target's pass over one token: where that is long, being wrong about
/// the first draft costs little, and another shallow one would.
const FIRST_SHARE: f64 = 1.0 / 3.0;
/// The probability of the likeliest leaf below which the first try goes no deeper.
const FIRST_STOP: f64 = 1.0 / 16.0;
/// The part of a pass over a draft that reading has to be for a pass over one token to be taken for as long as reading is.
const READING: f64 = 0.8;
/// Rounds between plain ones that measure what speculation is compared with.
const PLAIN_EVERY: usize = 64;
/// Plain rounds before the first new try, and at most.
const REST: (usize, usize) = (16, 512);
/// What an estimate keeps of itself when something is measured.
const KEEP: f64 = 0.9;

/// What the next round should do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Plan {
    pub depth: usize,
    /// See [`Round::stop`](super::Round::stop).
    pub stop: Option<f64>,
    /// Seconds after which no level is begun, but for the first [`FIRST`].
    pub seconds: Option<f64>,
}

/// What a round took and gave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// Whether a draft was asked for, and how many levels it had.
    pub asked: bool,
    pub levels: usize,
    pub nodes: usize,
    pub accepted: usize,
    /// Whether something was drafted behind the last accepted node.
    pub open: bool,
    pub draft_seconds: f64,
    pub verify_seconds: f64,
    pub overhead_seconds: f64,
}

/// Decides depths, and learns from outcomes.
#[derive(Debug)]
pub(super) struct Planner {
    depth: Depth,
    width: usize,
    /// Seconds of a target's pass over one token.
    plain: Mean,
    /// See [`Planner::expect`].
    expected: Option<f64>,
    /// Seconds of drafting a level.
    level: Mean,
    /// Whether nothing was drafted yet: the first draft brings the weights into memory, and says nothing of later ones unless
    /// it is long.
    cold: bool,
    /// Seconds of a round that are neither.
    overhead: Mean,
    verify: Line,
    accepted: f64,
    tried: f64,
    /// Speculative rounds since the last plain one.
    since_plain: usize,
    /// Plain rounds still to come before the next try, and those before the one after it.
    rest: usize,
    next_rest: usize,
    /// The rest is over.
    retry: bool,
}

impl Planner {
    pub fn new(depth: Depth, width: usize) -> Self {
        Planner {
            depth,
            width,
            plain: Mean::default(),
            expected: None,
            level: Mean::default(),
            cold: true,
            overhead: Mean::default(),
            verify: Line::default(),
            // As much as two tries at 0.8, so that the first round does not decide alone.
            accepted: 1.6,
            tried: 2.0,
            since_plain: 0,
            rest: 0,
            next_rest: REST.0,
            retry: false,
        }
    }

    /// What any pass of the target takes at least, where that is known before one over a single token was seen.
    pub fn expect(&mut self, least_seconds: Option<f64>) {
        self.expected = least_seconds;
    }

    /// The next round, of at most `most` levels.
    pub fn plan(&mut self, most: usize) -> Plan {
        let auto = |depth: usize| Plan {
            depth,
            stop: None,
            seconds: None,
        };
        if let Depth::Fixed(depth) = self.depth {
            return auto(depth.min(most));
        }
        let most = most.min(DEEPEST);
        let first = |target: f64| Plan {
            depth: most,
            stop: Some(FIRST_STOP.ln()),
            seconds: Some(FIRST_SHARE * target),
        };
        if most == 0 || self.since_plain >= PLAIN_EVERY {
            return auto(0);
        }
        if self.plain.is_empty() {
            // A pass that is mostly reading need not be seen over one token.
            return match self.expected {
                Some(least) if self.verify.is_empty() => first(least),
                _ => auto(0),
            };
        }
        if self.rest > 0 {
            self.rest -= 1;
            self.retry = self.rest == 0;
            return auto(0);
        }
        if self.level.is_empty() {
            return first(self.plain.value);
        }
        let depth = self.best(most);
        if depth == 0 {
            // Two levels cost little and say whether drafts stay.
            if std::mem::take(&mut self.retry) {
                return auto(2.min(most));
            }
            // This round is the first of them.
            self.rest = self.next_rest - 1;
            self.next_rest = (2 * self.next_rest).min(REST.1);
            return auto(0);
        }
        self.next_rest = REST.0;
        Plan {
            depth,
            stop: Some(self.stop(depth)),
            seconds: None,
        }
    }

    fn alpha(&self) -> f64 {
        (self.accepted / self.tried).clamp(0.01, 0.999)
    }

    /// Seconds of a round and the tokens it gives.
    fn predict(&self, depth: usize) -> (f64, f64) {
        let alpha = self.alpha();
        let tokens = (1.0 - alpha.powi(depth as i32 + 1)) / (1.0 - alpha);
        let verify = match depth {
            0 => self.plain.value,
            _ => self
                .verify
                .at((1 + self.width * depth) as f64)
                .max(self.plain.value),
        };
        let seconds = depth as f64 * self.level.value + verify + self.overhead.value;
        (seconds, tokens)
    }

    fn best(&self, most: usize) -> usize {
        let speed = |depth: &usize| {
            let (seconds, tokens) = self.predict(*depth);
            tokens / seconds
        };
        // Of equals the first: the shallowest.
        let depths = (0..=most).rev();
        depths
            .max_by(|a, b| speed(a).total_cmp(&speed(b)))
            .unwrap_or(0)
    }

    /// The logarithm of a leaf's probability at which its next level wins as much time as it takes.
    fn stop(&self, depth: usize) -> f64 {
        let (seconds, tokens) = self.predict(depth);
        let level = self.level.value + self.verify.slope() * self.width as f64;
        (level * tokens / (seconds * self.alpha())).ln()
    }

    pub fn learn(&mut self, outcome: &Outcome) {
        self.overhead.add(outcome.overhead_seconds);
        self.verify
            .add(outcome.nodes as f64, outcome.verify_seconds);
        if outcome.nodes == 1 {
            self.plain.add(outcome.verify_seconds);
            self.since_plain = 0;
        } else {
            self.since_plain += 1;
            let least = self.expected.filter(|_| self.plain.is_empty());
            if let Some(least) = least.filter(|least| *least > READING * outcome.verify_seconds) {
                self.plain.add(least);
            }
        }
        if outcome.asked {
            // A drafter that has nothing to say has taken its time all the same.
            if !std::mem::take(&mut self.cold) || outcome.levels > FIRST {
                self.level
                    .add(outcome.draft_seconds / outcome.levels.max(1) as f64);
            }
            let tried = outcome.accepted + usize::from(outcome.open);
            for trial in 0..tried {
                self.accepted =
                    0.98 * self.accepted + f64::from(u8::from(trial < outcome.accepted));
                self.tried = 0.98 * self.tried + 1.0;
            }
        }
    }
}

/// A mean that forgets.
#[derive(Debug, Default)]
struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.weight = KEEP * self.weight + 1.0;
        self.value += (value - self.value) / self.weight;
    }

    fn is_empty(&self) -> bool {
        self.weight == 0.0
    }
}

/// A line through points, by least squares; it forgets.
#[derive(Debug, Default)]
struct Line {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    fn add(&mut self, x: f64, y: f64) {
        let sums = [
            (&mut self.weight, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ];
        for (sum, term) in sums {
            *sum = KEEP * *sum + term;
        }
    }

    fn is_empty(&self) -> bool {
        self.weight == 0.0
    }

    /// Never downhill: more nodes do not take less time but by chance.
    fn slope(&self) -> f64 {
        let spread = self.weight * self.xx - self.x * self.x;
        match spread > 1e-6 * self.weight * self.xx {
            true => ((self.weight * self.xy - self.x * self.y) / spread).max(0.0),
            false => 0.0,
        }
    }

    fn at(&self, x: f64) -> f64 {
        (self.y + self.slope() * (x * self.weight - self.x)) / self.weight
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A machine and a draft: seconds of a pass over one token, of each node more, and of a level; the chance that a token stays.
    #[derive(Clone, Copy)]
    struct World {
        plain: f64,
        node: f64,
        level: f64,
        alpha: f64,
    }

    impl World {
        /// Seconds a token, of `tokens`.
        fn play(self, depth: Depth, tokens: usize, least: Option<f64>) -> f64 {
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let mut planner = Planner::new(depth, 1);
            planner.expect(least);
            let (mut seconds, mut given) = (0.0, 0);
            while given < tokens {
                let mut plan = planner.plan(tokens - given - 1);
                if let Some(seconds) = plan.seconds {
                    let levels = (seconds / self.level) as usize;
                    plan.depth = plan.depth.min(levels.max(FIRST));
                }
                let stays = |_: &usize| rng.random::<f64>() < self.alpha;
                let accepted = (0..plan.depth).take_while(stays).count();
                // Machines are not steady.
                let noise = 0.9 + 0.2 * ((given * 7919) % 10) as f64 / 9.0;
                let outcome = Outcome {
                    asked: plan.depth > 0,
                    levels: plan.depth,
                    nodes: 1 + plan.depth,
                    accepted,
                    open: accepted < plan.depth,
                    draft_seconds: noise * self.level * plan.depth as f64,
                    verify_seconds: noise * (self.plain + self.node * plan.depth as f64),
                    overhead_seconds: 0.0,
                };
                planner.learn(&outcome);
                seconds += outcome.draft_seconds + outcome.verify_seconds;
                given += accepted + 1;
            }
            seconds / given as f64
        }
    }

    #[test]
    fn automatic_depth_is_near_the_best_and_never_much_slower_than_plain() {
        for plain in [0.02, 1.0] {
            for node in [0.0, 0.01, 0.2] {
                for level in [0.001, 0.02, 0.1, 0.5] {
                    for alpha in [0.0, 0.3, 0.6, 0.8, 0.95, 0.98] {
                        let world = World {
                            plain,
                            node: node * plain,
                            level: level * plain,
                            alpha,
                        };
                        let depths = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48];
                        let fixed = depths.map(|d| world.play(Depth::Fixed(d), 2000, None));
                        let best = fixed.into_iter().fold(plain, f64::min);
                        // Nothing is known of a pass; or what reading takes of it: all, or little.
                        for least in [None, Some(0.95 * plain), Some(0.05 * plain)] {
                            let auto = world.play(Depth::Auto, 2000, least);
                            let what =
                                format!("{node} {level} {alpha}: {auto} but {best} of {plain}");
                            assert!(auto < 1.2 * best, "{what}");
                            assert!(auto < 1.06 * plain, "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn text_from_a_slow_target_is_drafted_from_the_start() {
        let world = World {
            plain: 1.0,
            node: 0.001,
            level: 0.01,
            alpha: 1.0,
        };
        let plain_first = world.play(Depth::Auto, 40, None);
        let at_once = world.play(Depth::Auto, 40, Some(0.95));
        // Two passes in place of three.
        assert!(
            40.0 * (plain_first - at_once) > 0.9,
            "{plain_first} {at_once}"
        );
    }

    #[test]
    fn a_level_is_left_out_where_it_wins_less_than_it_takes() {
        let mut planner = Planner::new(Depth::Auto, 1);
        let mut round = Outcome {
            asked: false,
            levels: 0,
            nodes: 1,
            accepted: 0,
            open: false,
            draft_seconds: 0.0,
            verify_seconds: 1.0,
            overhead_seconds: 0.0,
        };
        planner.learn(&round);
        assert_eq!(
            planner.plan(30),
            Plan {
                depth: 30,
                stop: Some(FIRST_STOP.ln()),
                seconds: Some(FIRST_SHARE)
            }
        );
        for _ in 0..50 {
            round = Outcome {
                asked: true,
                levels: 4,
                nodes: 5,
                accepted: 4,
                draft_seconds: 0.04,
                verify_seconds: 1.0,
                ..round
            };
            planner.learn(&round);
        }
        let plan = planner.plan(30);
        assert_eq!(plan.depth, 30);
        // A level takes 10 ms; a token is worth the seconds of a round of 30 levels, over 31 tokens.
        let stop = plan.stop.unwrap().exp();
        assert!((0.2..0.35).contains(&stop), "{stop}");
        assert_eq!(planner.plan(0).depth, 0);
        assert_eq!(Planner::new(Depth::Fixed(7), 1).plan(3).depth, 3);
    }

    #[test]
    fn depths_are_read_as_they_are_written() {
        for depth in [Depth::Auto, Depth::Fixed(12)] {
            assert_eq!(depth.to_string().parse(), Ok(depth));
        }
        assert!("0".parse::<Depth>().is_err() && "deep".parse::<Depth>().is_err());
    }

    #[test]
    fn a_line_is_found_and_never_falls() {
        let mut line = Line::default();
        line.add(5.0, 2.0);
        assert_eq!((line.slope(), line.at(9.0)), (0.0, 2.0));
        line.add(1.0, 1.0);
        assert!((line.at(9.0) - 3.0).abs() < 1e-9);
        line.add(100.0, 0.1);
        assert_eq!(line.slope(), 0.0);
    }
}
