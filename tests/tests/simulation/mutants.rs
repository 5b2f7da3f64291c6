//! Mutation tests of the simulation: deliberate defects, at least one per invariant. The checks must detect each of
//! them; otherwise nobody would know that they can fail.

use std::num::NonZero;
use std::sync::Mutex;
use std::thread;

use billhook_testkit::sim::Mutant;

use crate::profile::{PROFILES, run};

/// Each with the invariant that it breaks, the profile that it is looked for in, and the most seeds that may pass.
const MUTANTS: &[(Mutant, u8, &str, u64)] = &[
    (Mutant::SendForgets, 1, "ordinary", 5),
    (Mutant::ArrivedForgotten, 1, "heavy", 60),
    (Mutant::EndlessTolerance, 2, "ordinary", 10),
    (Mutant::Unconditional, 3, "contention", 20),
    (Mutant::FactsForgotten, 4, "ordinary", 5),
    (Mutant::RelinkForgotten, 4, "entangled", 20),
    (Mutant::RivalForgotten, 4, "entangled", 60),
    (Mutant::AliasForgotten, 4, "entangled", 10),
    (Mutant::InvoiceForgotten, 4, "entangled", 20),
    (Mutant::EditForgotten, 4, "overwritten", 10),
    (Mutant::CopyBelieved, 4, "overwritten", 10),
    (Mutant::RecipientForgotten, 4, "adversarial", 10),
    (Mutant::OpenForgotten, 4, "ordinary", 200),
    (Mutant::PreviousForgotten, 4, "ordinary", 10),
    (Mutant::RefundsRenamed, 5, "ordinary", 10),
    (Mutant::SuccessForgotten, 6, "ordinary", 20),
    (Mutant::AnyTenant, 7, "adversarial", 10),
    (Mutant::RowLags, 7, "adversarial", 20),
    (Mutant::LiveTaken, 8, "adversarial", 5),
    (Mutant::TornCommit, 9, "ordinary", 5),
    (Mutant::RefundsAdded, 10, "ordinary", 10),
    (Mutant::ProcessingUnheard, 11, "contention", 100),
    (Mutant::SessionUnheard, 11, "abandoned", 40),
    (Mutant::ActionUnheard, 11, "abandoned", 40),
    (Mutant::InvisibleForADay, 12, "heavy", 5),
    (Mutant::BatchFails, 13, "ordinary", 10),
    (Mutant::RetrySwallowed, 14, "adversarial", 20),
    (Mutant::EventsExpire, 15, "heavy", 10),
    (Mutant::SecretsLag, 16, "rotation", 10),
    (Mutant::SecretUnreadable, 17, "ordinary", 10),
    (Mutant::PanicsOnUnicode, 18, "adversarial", 5),
    (Mutant::SecretTold, 19, "heavy", 5),
    (Mutant::EndpointStays, 20, "rotation", 5),
    (Mutant::RowsForgotten, 21, "overwritten", 10),
    (Mutant::RecentForgotten, 21, "overwritten", 60),
    (Mutant::AmountMisread, 22, "ordinary", 10),
    (Mutant::AgeForgotten, 23, "adversarial", 5),
];

#[test]
fn every_deliberate_defect_is_seen() {
    let todo = Mutex::new(MUTANTS.iter());
    let alive: Mutex<Vec<String>> = Mutex::default();
    let threads = thread::available_parallelism().map_or(2, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = todo.lock().unwrap().next();
                    let Some((mutant, invariant, profile, most)) = next else {
                        return;
                    };
                    let profile = PROFILES.iter().find(|it| it.name == *profile);
                    let Some(profile) = profile else {
                        alive
                            .lock()
                            .unwrap()
                            .push(format!("{mutant:?} (no profile)"));
                        continue;
                    };
                    let kills = |seed: &u64| {
                        let violations = run(profile, *seed, Some(*mutant), false).violations;
                        violations
                            .iter()
                            .any(|violation| violation.invariant == *invariant)
                    };
                    match (0..*most).find(kills) {
                        Some(seed) => {
                            println!("{invariant:>2} {mutant:?}: seed {} of {most}", seed + 1);
                        }
                        None => alive
                            .lock()
                            .unwrap()
                            .push(format!("{invariant} {mutant:?}")),
                    }
                }
            });
        }
    });
    let alive = alive.into_inner().unwrap();
    assert!(alive.is_empty(), "not seen: {alive:?}");
}

#[test]
fn no_invariant_is_without_a_defect() {
    for invariant in 1..=23 {
        assert!(MUTANTS.iter().any(|(_, breaks, ..)| *breaks == invariant));
    }
}
