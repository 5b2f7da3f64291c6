//! Micro-benchmarks of the steps that every delivery needs.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use billhook_core::ids::ProviderId;
use billhook_core::provider::read_envelope;
use billhook_core::provider::signature::{KeyScope, SigningKey};
use billhook_core::provider::stripe::event::StripeEvent;
use billhook_core::provider::stripe::signature::parse_signature_header;
use billhook_core::time::Timestamp;
use billhook_testkit::events::verified;
use billhook_testkit::sign::sign_stripe;
use libdeflater::{CompressionLvl, Compressor};
use webhook_ingress::base64::decode_base64;

use crate::kinds::paid;

const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(20);

/// The nanoseconds of each step for each size.
pub(crate) fn measure() -> Vec<(&'static str, usize, f64)> {
    let mut figures = Vec::new();
    let keys: Vec<_> = SigningKey::from_value("bench", "whsec_bench", KeyScope::AllEvents)
        .into_iter()
        .collect();
    let now = Timestamp::from_unix_s(1_781_000_000).unwrap();
    for bytes in [3_000, 60_000] {
        let body = paid(1, bytes);
        let header = sign_stripe(&body, "whsec_bench", now.unix_s());
        let base64 = data_encoding::BASE64.encode(&body);
        let mut time = |name, step: &dyn Fn()| figures.push((name, bytes, median(step)));
        time("decode the gateway's base64", &|| {
            black_box(decode_base64(black_box(base64.as_bytes())).unwrap());
        });
        time("verify the signature", &|| {
            let claim = parse_signature_header(Some(black_box(&header))).unwrap();
            let verified = claim.verify(black_box(&body), &keys, now, Duration::from_secs(300));
            assert_eq!(verified.unwrap().1, "bench");
        });
        let proven = verified(ProviderId::Stripe, &body);
        time("read the envelope (ingress)", &|| {
            black_box(read_envelope(black_box(&proven)).unwrap());
        });
        time("read the event (worker)", &|| {
            black_box(StripeEvent::parse(black_box(&body)).unwrap());
        });
        // As in ingress, with a compressor that is reused.
        for (name, level) in [
            ("compress at level 1", 1),
            ("compress at level 5", 5),
            ("compress at level 7", 7),
        ] {
            let compressor = RefCell::new(Compressor::new(CompressionLvl::new(level).unwrap()));
            time(name, &|| {
                let mut compressor = compressor.borrow_mut();
                let mut compressed = vec![0; compressor.gzip_compress_bound(bytes)];
                let ended = compressor.gzip_compress(black_box(&body), &mut compressed);
                assert!(ended.is_ok());
            });
        }
    }
    figures
}

/// The median over several rounds.
fn median(step: &dyn Fn()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (begun, mut times) = (Instant::now(), 0_u32);
            while begun.elapsed() < ROUND {
                step();
                times += 1;
            }
            begun.elapsed().as_secs_f64() * 1e9 / f64::from(times)
        })
        .collect();
    crate::report::percentile(&mut rounds, 50)
}
