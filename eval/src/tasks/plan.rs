//! In which order requests are scored, and which of their tokens are computed once for several.
//!
//! The requests of a document begin with the same tokens: these, its *prefix*, are computed once, and each request then
//! continues from the KV cache with its own *tail*. Documents whose prefixes are equally long share a pass, one a row of
//! the batch; nothing is padded there. The tails of a pass are padded behind their end, which no token before it sees. What
//! a token gets does not depend on the rows beside it (see `cinder_models::ops`), so neither does a score.

use super::encode::Encoded;

/// Tokens that go through a layer at a time, unless a single document has more: as many as a product keeps in the second-level
/// cache. 64 and one document at a time take some 7 to 10 % longer, 256 and 512 no less.
const TOKENS_AT_ONCE: usize = 128;

/// The requests of some documents, in the order in which they are scored.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) questions: Vec<Question>,
    /// Documents that share passes, as ranges of `order`.
    pub(super) groups: Vec<Vec<usize>>,
}

/// The requests of one document.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub requests: Vec<Encoded>,
    /// Tokens that all inputs begin with.
    pub prefix: usize,
    /// Indices of the requests with tokens behind the prefix, the longest first.
    pub tails: Vec<usize>,
}

impl Question {
    fn new(requests: Vec<Encoded>) -> Self {
        let prefix = common_prefix(&requests);
        let mut tails: Vec<usize> = (0..requests.len()).collect();
        tails.retain(|index| requests[*index].input.len() > prefix);
        tails.sort_by_key(|index| std::cmp::Reverse(requests[*index].input.len()));
        Question {
            requests,
            prefix,
            tails,
        }
    }

    /// The tokens of a request behind the prefix.
    pub fn tail(&self, request: usize) -> &[u32] {
        &self.requests[request].input[self.prefix..]
    }

    /// Tokens of the longest tail.
    fn longest(&self) -> usize {
        self.tails
            .first()
            .map_or(0, |index| self.tail(*index).len())
    }

    /// Tokens that have to be computed.
    pub fn tokens(&self) -> usize {
        let tails = self.tails.iter().map(|index| self.tail(*index).len());
        self.prefix + tails.sum::<usize>()
    }
}

/// How many tokens all inputs begin with.
fn common_prefix(requests: &[Encoded]) -> usize {
    let Some((first, others)) = requests.split_first() else {
        return 0;
    };
    let same = |other: &Encoded| {
        let pairs = first.input.iter().zip(&other.input);
        pairs.take_while(|(a, b)| a == b).count()
    };
    others.iter().map(same).min().unwrap_or(first.input.len())
}

impl Plan {
    /// A plan for the requests of each document.
    pub fn new(documents: Vec<Vec<Encoded>>) -> Self {
        let questions: Vec<Question> = documents.into_iter().map(Question::new).collect();
        // The longest come first: time left is then foretold too long rather than too short, and memory runs out at once or not
        // at all. Tails of like length are padded least.
        let mut order: Vec<usize> = (0..questions.len()).collect();
        order.sort_by_key(|index| {
            let question = &questions[*index];
            std::cmp::Reverse((question.prefix, question.longest(), question.tokens()))
        });
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for index in order {
            let question = &questions[index];
            let joins = groups.last().is_some_and(|group| {
                // The first of a group has its longest tail.
                let first = &questions[group[0]];
                let longest = first.prefix.max(first.longest());
                first.prefix == question.prefix && (group.len() + 1) * longest <= TOKENS_AT_ONCE
            });
            match groups.last_mut() {
                Some(group) if joins => group.push(index),
                _ => groups.push(vec![index]),
            }
        }
        Plan { questions, groups }
    }

    /// Tokens that have to be computed, without padding.
    pub fn tokens(&self) -> usize {
        self.questions.iter().map(Question::tokens).sum()
    }

    /// Tokens that the requests have together: what would be computed if nothing were shared.
    pub fn tokens_unshared(&self) -> usize {
        let requests = self.questions.iter().flat_map(|q| &q.requests);
        requests.map(|request| request.input.len()).sum()
    }

    /// Requests that lost tokens at their beginning.
    pub fn truncated(&self) -> usize {
        let requests = self.questions.iter().flat_map(|q| &q.requests);
        requests.filter(|request| request.truncated).count()
    }

    /// The most tokens a cache holds, over all rows of a batch.
    pub fn held(&self) -> usize {
        self.largest(|question| question.prefix + question.longest())
    }

    /// The most tokens that go through a layer at a time.
    pub fn at_once(&self) -> usize {
        self.largest(|question| question.prefix.max(question.longest()))
    }

    fn largest(&self, size: impl Fn(&Question) -> usize) -> usize {
        let groups = self.groups.iter();
        let sizes = groups.map(|group| group.len() * size(&self.questions[group[0]]));
        sizes.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(input: &[u32], targets: &[u32]) -> Encoded {
        Encoded {
            input: input.to_vec(),
            targets: targets.to_vec(),
            truncated: false,
        }
    }

    #[test]
    fn what_requests_share_is_computed_once() {
        let choices = vec![
            encoded(&[1, 2, 3, 4], &[4, 5]),
            encoded(&[1, 2, 3], &[9]),
            encoded(&[1, 2, 3, 7, 8], &[7, 8, 9]),
        ];
        let plan = Plan::new(vec![choices.clone()]);
        let question = &plan.questions[0];
        assert_eq!(
            (question.prefix, question.tails.as_slice()),
            (3, &[2, 0][..])
        );
        assert_eq!((plan.tokens(), plan.tokens_unshared()), (6, 12));
        assert_eq!((plan.held(), plan.at_once(), plan.truncated()), (5, 3, 0));
        // A single request has no tail.
        let plan = Plan::new(vec![choices[..1].to_vec()]);
        assert_eq!((plan.questions[0].prefix, plan.tokens()), (4, 4));
    }

    #[test]
    fn documents_with_prefixes_of_one_length_share_passes() {
        let document = |prefix: usize, tail: u32| {
            let tail: Vec<u32> = (0..tail).collect();
            let input = [vec![5; prefix], tail].concat();
            vec![encoded(&input, &[1]), encoded(&vec![5; prefix], &[1])]
        };
        let plan = Plan::new(vec![
            document(3, 2),
            document(4, 1),
            document(3, 9),
            document(3, 2),
        ]);
        assert_eq!(plan.groups, [vec![1], vec![2, 0, 3]]);
        let long = TOKENS_AT_ONCE / 2;
        let plan = Plan::new(vec![
            document(long, 1),
            document(long, 2),
            document(long, 3),
        ]);
        assert_eq!(plan.groups, [vec![2, 1], vec![0]]);
        let plan = Plan::new(vec![document(1000, 1), document(1000, 1)]);
        assert_eq!(plan.groups.len(), 2);
    }
}
