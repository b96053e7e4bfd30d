//! What a token is drawn from.

/// Probabilities of the tokens that can be drawn; they sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// By token, ascending; every probability is above 0, and there is at least one.
    kept: Vec<(u32, f64)>,
}

impl Distribution {
    /// One token for certain.
    pub fn point(id: u32) -> Self {
        Distribution {
            kept: vec![(id, 1.0)],
        }
    }

    /// The tokens in proportion to their weights, each named once; none where no weight is above 0.
    pub fn of_weights(mut weights: Vec<(u32, f64)>) -> Option<Self> {
        weights.retain(|(_, weight)| *weight > 0.0);
        if !weights.is_sorted_by_key(|(id, _)| *id) {
            weights.sort_unstable_by_key(|(id, _)| *id);
        }
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        if total <= 0.0 {
            return None;
        }
        for (_, weight) in &mut weights {
            *weight /= total;
        }
        Some(Distribution { kept: weights })
    }

    /// The tokens that can be drawn, ascending, with their probabilities.
    pub fn entries(&self) -> &[(u32, f64)] {
        &self.kept
    }

    /// The probability of a token.
    pub fn probability(&self, id: u32) -> f64 {
        let found = self.kept.binary_search_by_key(&id, |(kept, _)| *kept);
        found.map_or(0.0, |at| self.kept[at].1)
    }

    /// The token at `uniform` in `[0, 1)` of the cumulative distribution.
    pub fn draw(&self, uniform: f64) -> u32 {
        let mut left = uniform;
        for (id, probability) in &self.kept {
            left -= probability;
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding can leave a sliver beyond the last token.
        self.kept[self.kept.len() - 1].0
    }

    /// What is left when a token can not be drawn any more; none when it was the only one.
    pub fn without(&self, id: u32) -> Option<Self> {
        let others = self.kept.iter().filter(|(kept, _)| *kept != id);
        Distribution::of_weights(others.copied().collect())
    }

    /// `(scale · self − other)₊`: its sum, and it divided by that; none where it is 0.
    pub fn excess(&self, scale: f64, other: &Distribution) -> (f64, Option<Self>) {
        let mut theirs = other.kept.iter().peekable();
        let mut left = Vec::new();
        for (id, probability) in &self.kept {
            while theirs.next_if(|(other, _)| other < id).is_some() {}
            let taken = theirs.next_if(|(other, _)| other == id);
            let weight = scale * probability - taken.map_or(0.0, |(_, p)| *p);
            left.push((*id, weight.max(0.0)));
        }
        let mass = left.iter().map(|(_, weight)| weight).sum();
        (mass, Distribution::of_weights(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(weights: &[(u32, f64)]) -> Distribution {
        Distribution::of_weights(weights.to_vec()).unwrap()
    }

    #[test]
    fn weights_become_probabilities_in_the_order_of_tokens() {
        let law = of(&[(7, 3.0), (2, 1.0), (4, 0.0)]);
        assert_eq!(law.entries(), [(2, 0.25), (7, 0.75)]);
        assert_eq!([2, 4, 7].map(|id| law.probability(id)), [0.25, 0.0, 0.75]);
        assert_eq!(
            [0.0, 0.2, 0.25, 0.9, 1.0].map(|u| law.draw(u)),
            [2, 2, 7, 7, 7]
        );
        assert_eq!(law.without(2), Some(Distribution::point(7)));
        assert_eq!(Distribution::point(3).without(3), None);
        assert_eq!(Distribution::of_weights(vec![(1, 0.0)]), None);
    }

    #[test]
    fn the_excess_is_what_the_other_does_not_cover() {
        let (p, q) = (
            of(&[(0, 0.5), (1, 0.25), (3, 0.25)]),
            of(&[(0, 0.25), (2, 0.5), (3, 0.25)]),
        );
        let (mass, left) = p.excess(1.0, &q);
        assert_eq!(mass, 0.5);
        assert_eq!(left.unwrap().entries(), [(0, 0.5), (1, 0.5)]);
        assert_eq!(p.excess(1.0, &p), (0.0, None));
        assert_eq!(p.excess(0.5, &q).0, 0.125);
    }
}
