//! The simulation's random choices, all drawn from one seed.

use std::time::Duration;

use crate::random::Random;

#[derive(Clone, Debug)]
pub struct Rng(Random);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// A number from 0 to below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.next_u64() % n.max(1)
    }

    /// True with this probability in 1,000.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// Chooses one of them.
    ///
    /// # Panics
    /// If there are none.
    #[expect(clippy::expect_used, reason = "lists are written out by whoever asks")]
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let most = u64::try_from(of.len()).unwrap_or(u64::MAX);
        let at = usize::try_from(self.below(most)).unwrap_or(0);
        of.get(at).cloned().expect("something to pick from")
    }

    /// A duration between the two, in whole milliseconds.
    pub fn span(&mut self, least: Duration, most: Duration) -> Duration {
        let width = most.saturating_sub(least).as_millis();
        let width = u64::try_from(width).unwrap_or(u64::MAX);
        least + Duration::from_millis(self.below(width.saturating_add(1)))
    }
}
