//! One target under libFuzzer: `TARGET` names it, and its samples are put into the corpus folder first.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use billhook_testkit::random::Random;
use billhook_tests::fuzz::{TARGETS, Target, mutate};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("TARGET={name} is none of {}", names.join(", "));
        std::process::exit(2)
    })
});

static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (TARGET.corpus)());

fn write_samples() {
    for folder in std::env::args()
        .skip(1)
        .filter(|argument| Path::new(argument).is_dir())
    {
        for (n, sample) in SAMPLES.iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("sample-{n}")), sample).unwrap();
        }
    }
}

fuzz_target!(init: write_samples(), |input: &[u8]| {
    (TARGET.run)(input);
});

// By structure and by bytes in turn: coverage decides what is worth going on from.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random::new(u64::from(seed));
    if random.per_mille(500) {
        return fuzzer_mutate(data, size, max_size);
    }
    let mutated = mutate(&data[..size], &SAMPLES, &mut random);
    let size = mutated.len().min(max_size).min(data.len());
    data[..size].copy_from_slice(&mutated[..size]);
    size
});
