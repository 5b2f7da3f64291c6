//! How long a wrong signature takes says nothing of where it is wrong. Measured over many interleaved runs; that the
//! measurement sees a comparison which stops at the first difference is a test of its own.
#![cfg(test)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use billhook_core::provider::signature::{KeyScope, SigningKey, UnverifiedSignature};
use billhook_core::provider::stripe::signature::parse_signature_header;
use billhook_core::time::Timestamp;
use billhook_testkit::random::Random;
use billhook_testkit::sign::sign_stripe;

const NOW_S: i64 = 1_781_000_000;
const SECRET: &str = "whsec_timing";
const BODY: &[u8] = b"{}";
const VARIANTS: usize = 16;
const RUNS: usize = 20_000;
/// A byte compared more takes about as long; a leak of one byte's place shows 31 of them.
const LEAK_NS: i64 = 25;
/// On a busy machine a measurement may go wrong once; a leak shows every time.
const MEASUREMENTS: usize = 5;

/// Headers that are wrong from this digit of the signature on.
fn wrong_at(digit: usize) -> Vec<String> {
    let good = sign_stripe(BODY, SECRET, NOW_S);
    let at = good.len() - 64 + digit;
    let digits = "0123456789abcdef".chars();
    let wrong = digits.filter(|digit| !good[at..].starts_with(*digit));
    let headers = wrong.map(|digit| format!("{}{digit}{}", &good[..at], &good[at + 1..]));
    headers.cycle().take(VARIANTS).collect()
}

/// The median time of the last-digit class less that of the first-digit class.
fn difference_ns<T>(first: &[T], last: &[T], is_good: impl Fn(&T) -> bool) -> i64 {
    let mut random = Random::new(7);
    let mut times: [Vec<Duration>; 2] = [(); 2].map(|()| Vec::with_capacity(RUNS));
    for _ in 0..RUNS {
        let class = random.below(2);
        let claim = random.pick([first, last][class]).unwrap();
        let begun = Instant::now();
        assert!(!black_box(is_good(black_box(claim))));
        times[class].push(begun.elapsed());
    }
    let [first, last] = times.map(|mut times| {
        times.sort_unstable();
        i64::try_from(times[times.len() / 2].as_nanos()).unwrap()
    });
    last - first
}

/// The least of some measurements, either side of nothing.
fn leak_ns<T>(first: &[T], last: &[T], is_good: impl Fn(&T) -> bool) -> i64 {
    let differences = (0..MEASUREMENTS).map(|_| difference_ns(first, last, &is_good));
    let least = differences
        .min_by_key(|difference| difference.abs())
        .unwrap();
    println!("the last digit takes {least} ns longer than the first");
    least
}

#[test]
fn the_place_of_the_first_wrong_digit_does_not_show() {
    let claims = |digit| -> Vec<UnverifiedSignature> {
        let headers = wrong_at(digit);
        let claims = headers
            .iter()
            .map(|header| parse_signature_header(Some(header)));
        claims.map(Result::unwrap).collect()
    };
    let keys: Vec<_> = SigningKey::from_value("timing", SECRET, KeyScope::AllEvents)
        .into_iter()
        .collect();
    let now = Timestamp::from_unix_s(NOW_S).unwrap();
    let tolerance = Duration::from_secs(300);
    let leak = leak_ns(&claims(0), &claims(63), |claim| {
        claim.verify(BODY, &keys, now, tolerance).is_ok()
    });
    assert!(leak.abs() < LEAK_NS, "{leak} ns");
}

#[test]
fn a_comparison_that_stops_at_the_first_difference_shows() {
    let bytes = |header: &String| {
        let (_, hex) = header.rsplit_once('=').unwrap();
        data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()
    };
    let claims = |digit| -> Vec<Vec<u8>> { wrong_at(digit).iter().map(bytes).collect() };
    let leak = leak_ns(&claims(0), &claims(63), |claimed| {
        // As much work before it as the real one has.
        let good = bytes(&sign_stripe(BODY, SECRET, NOW_S));
        let mut pairs = good.iter().zip(claimed);
        pairs.all(|(good, claimed)| black_box(good) == black_box(claimed))
    });
    assert!(leak >= LEAK_NS, "{leak} ns");
}
