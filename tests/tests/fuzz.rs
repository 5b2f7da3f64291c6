//! Runs every fuzz target briefly: on the samples and on seeded mutations of them. `make fuzz` runs the same targets
//! longer, under libFuzzer; `billhook_tests::fuzz` has the targets.
#![cfg(test)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use billhook_testkit::random::Random;
use billhook_tests::fuzz::{TARGETS, mutate};

const SEED: u64 = 7;

thread_local! {
    /// Panics so far, those that a handler caught included.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

fn round(name: &str, inputs: usize) {
    static COUNT: Once = Once::new();
    COUNT.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            print(panic);
        }));
    });
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = (target.corpus)();
    let check = |input: &[u8]| {
        let before = PANICS.get();
        let came_through = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
        if came_through.is_err() || PANICS.get() != before {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
            std::fs::write(&path, input).unwrap();
            panic!(
                "try it again: make fuzz TARGET={name} INPUT={}",
                path.display()
            );
        }
        came_through.unwrap()
    };
    for sample in &corpus {
        check(sample);
    }
    let mut random = Random::new(SEED);
    let mut came_through = 0;
    for _ in 0..inputs {
        let sample = random.pick(&corpus).unwrap();
        came_through += usize::from(check(&mutate(sample, &corpus, &mut random)));
    }
    println!("{name}: {came_through} of {inputs} came through");
    // Else the changes are so coarse that nothing behind the first check is met.
    assert!(came_through >= inputs / 20 && came_through < inputs);
}

// The three below are more than 100,000 requests: a body is delivered forged, genuine and again, by either provider.

#[test]
fn any_body() {
    round("body", 10_000);
}

#[test]
fn any_header() {
    round("header", 20_000);
}

#[test]
fn any_event_of_the_gateway() {
    round("proxy_event", 20_000);
}

#[test]
fn any_batch_of_the_queue() {
    round("queue_batch", 5_000);
}

#[test]
fn any_request_of_cloudformation() {
    round("custom_resource", 5_000);
}

#[test]
fn any_history_of_stripe() {
    round("stripe_mapping", 10_000);
}

#[test]
fn any_history_of_lob() {
    round("lob_mapping", 10_000);
}
