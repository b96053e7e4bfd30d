//! Where a point's value goes, so that it covers nothing and nothing covers it.

use super::canvas::Point;

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Area {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

impl Area {
    /// A square of the given half side around a point.
    pub fn around(at: Point, half: f64) -> Self {
        Self {
            left: at.0 - half,
            top: at.1 - half,
            right: at.0 + half,
            bottom: at.1 + half,
        }
    }

    /// From the nearest edge to a point; 0 inside.
    fn distance(&self, (x, y): Point) -> f64 {
        let across = (self.left - x).max(x - self.right).max(0.0);
        let down = (self.top - y).max(y - self.bottom).max(0.0);
        across.hypot(down)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn holds(&self, other: &Self) -> bool {
        self.left <= other.left
            && other.right <= self.right
            && self.top <= other.top
            && other.bottom <= self.bottom
    }

    /// Whether the line from `a` to `b` passes through: clipped against each side, something is left of it.
    fn crossed(&self, a: Point, b: Point) -> bool {
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let (mut enter, mut leave) = (0.0_f64, 1.0_f64);
        let sides = [
            (-dx, a.0 - self.left),
            (dx, self.right - a.0),
            (-dy, a.1 - self.top),
            (dy, self.bottom - a.1),
        ];
        for (slope, distance) in sides {
            if slope == 0.0 {
                if distance < 0.0 {
                    return false;
                }
            } else if slope < 0.0 {
                enter = enter.max(distance / slope);
            } else {
                leave = leave.min(distance / slope);
            }
        }
        enter <= leave
    }
}

/// What is drawn already.
#[derive(Debug)]
pub(crate) struct Obstacles {
    /// Labels stay inside.
    pub inside: Area,
    /// Markers, error bars and placed labels.
    pub areas: Vec<Area>,
    /// Centres of all markers: a label stays nearer to its own than to any other.
    pub markers: Vec<Point>,
    /// Series lines and the dense line.
    pub lines: Vec<(Point, Point)>,
}

/// Distance between a marker's centre and its label's nearest edge.
const REACH: f64 = 9.0;
/// Free space kept around a label.
const AIR: f64 = 2.0;

impl Obstacles {
    /// A free place for a label of `width × height` near `point`, taken from then on; none where there is no room (the
    /// table has the value).
    pub fn place(&mut self, point: Point, width: f64, height: f64) -> Option<Area> {
        let free = candidates(point, width, height)
            .find(|area| self.is_free(area) && self.belongs(area, point))?;
        self.areas.push(free);
        Some(free)
    }

    /// Whether a reader would give the label to `point` and not to a neighbour.
    fn belongs(&self, area: &Area, point: Point) -> bool {
        let others = self.markers.iter().filter(|&&other| other != point);
        others
            .into_iter()
            .all(|&other| area.distance(other) > area.distance(point) + AIR)
    }

    fn is_free(&self, area: &Area) -> bool {
        let airy = Area {
            left: area.left - AIR,
            top: area.top - AIR,
            right: area.right + AIR,
            bottom: area.bottom + AIR,
        };
        self.inside.holds(area)
            && !self.areas.iter().any(|other| airy.overlaps(other))
            && !self.lines.iter().any(|&(a, b)| airy.crossed(a, b))
    }
}

/// Places around a point, the most natural first: beside and above, where a falling curve leaves room, then around, then
/// the same a little further out.
fn candidates((x, y): Point, width: f64, height: f64) -> impl Iterator<Item = Area> {
    const DIRECTIONS: [(f64, f64); 8] = [
        (1.0, -0.6),
        (0.0, -1.0),
        (1.0, 0.0),
        (-1.0, 0.6),
        (0.0, 1.0),
        (-1.0, 0.0),
        (1.0, 0.6),
        (-1.0, -0.6),
    ];
    [1.0, 1.5, 2.2].into_iter().flat_map(move |far| {
        DIRECTIONS.into_iter().map(move |(right, down)| {
            let centre = (
                x + right * (REACH * far + width / 2.0),
                y + down * (REACH * far + height / 2.0),
            );
            Area {
                left: centre.0 - width / 2.0,
                top: centre.1 - height / 2.0,
                right: centre.0 + width / 2.0,
                bottom: centre.1 + height / 2.0,
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Area = Area {
        left: 0.0,
        top: 0.0,
        right: 200.0,
        bottom: 200.0,
    };

    #[test]
    fn labels_avoid_lines_markers_and_each_other() {
        let mut obstacles = Obstacles {
            inside: PAGE,
            areas: vec![Area::around((100.0, 100.0), 6.0)],
            markers: Vec::new(),
            lines: vec![((100.0, 100.0), (200.0, 80.0))],
        };
        let first = obstacles
            .place((100.0, 100.0), 40.0, 12.0)
            .expect("room enough");
        assert!(!first.crossed((100.0, 100.0), (200.0, 80.0)));
        let second = obstacles
            .place((100.0, 100.0), 40.0, 12.0)
            .expect("room enough");
        assert!(!first.overlaps(&second));
    }

    #[test]
    fn a_label_is_nearest_to_its_own_marker() {
        let (upper, lower) = ((100.0, 95.0), (100.0, 102.0));
        let mut obstacles = Obstacles {
            inside: PAGE,
            areas: vec![Area::around(upper, 6.0), Area::around(lower, 6.0)],
            markers: vec![upper, lower],
            lines: Vec::new(),
        };
        let above = obstacles.place(upper, 40.0, 12.0).expect("room enough");
        let below = obstacles.place(lower, 40.0, 12.0).expect("room enough");
        assert!(above.bottom < below.top);
    }

    #[test]
    fn no_label_rather_than_one_outside() {
        let mut obstacles = Obstacles {
            inside: PAGE,
            areas: Vec::new(),
            markers: Vec::new(),
            lines: Vec::new(),
        };
        assert_eq!(obstacles.place((100.0, 100.0), 190.0, 150.0), None);
    }

    #[test]
    fn crossing_is_seen_from_every_side() {
        let square = Area::around((0.0, 0.0), 1.0);
        assert!(square.crossed((-5.0, 0.0), (5.0, 0.0)));
        assert!(square.crossed((0.0, 0.0), (0.1, 0.1)));
        assert!(!square.crossed((-5.0, 0.0), (-2.0, 0.0)));
        assert!(!square.crossed((-5.0, 3.0), (5.0, 3.0)));
        assert!(!square.crossed((-3.0, 0.0), (0.0, 3.0)));
    }
}
