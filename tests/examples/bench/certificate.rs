//! Creates a self-signed certificate for `localhost` in each run: X.509 in DER, reduced to what TLS requires.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

const SEQUENCE: u8 = 0x30;
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// The certificate, and its key in PKCS #8.
pub(crate) fn for_localhost() -> (Vec<u8>, Vec<u8>) {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap();
    let oid = |bytes: &[u8]| der(0x06, &[bytes]);
    let bits = |bytes: &[u8]| der(0x03, &[&[0], bytes]);
    let host = b"localhost";
    let algorithm = der(SEQUENCE, &[&oid(ECDSA_WITH_SHA256)]);
    let name = der(SEQUENCE, &[&oid(COMMON_NAME), &der(0x0c, &[host])]);
    let name = der(SEQUENCE, &[&der(0x31, &[&name])]);
    let time = |text: &str| der(0x17, &[text.as_bytes()]);
    let alternative = der(0x04, &[&der(SEQUENCE, &[&der(0x82, &[host])])]);
    let extension = der(SEQUENCE, &[&oid(SUBJECT_ALT_NAME), &alternative]);
    let to_be_signed = der(
        SEQUENCE,
        &[
            &der(0xa0, &[&der(0x02, &[&[2]])]),
            &der(0x02, &[&[1]]),
            &algorithm,
            &name,
            &der(SEQUENCE, &[&time("200101000000Z"), &time("491231235959Z")]),
            &name,
            &der(
                SEQUENCE,
                &[
                    &der(SEQUENCE, &[&oid(EC_PUBLIC_KEY), &oid(P256)]),
                    &bits(pair.public_key().as_ref()),
                ],
            ),
            &der(0xa3, &[&der(SEQUENCE, &[&extension])]),
        ],
    );
    let signature = pair.sign(&random, &to_be_signed).unwrap();
    let parts: [&[u8]; 3] = [&to_be_signed, &algorithm, &bits(signature.as_ref())];
    (der(SEQUENCE, &parts), key.as_ref().to_vec())
}

/// The certificate in PEM, for a bundle of roots.
pub(crate) fn pem(certificate: &[u8]) -> String {
    let base64 = data_encoding::BASE64.encode(certificate);
    let lines = base64.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// A DER value: tag, length, content.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let mut value = vec![tag];
    match length {
        [0, short @ 0..0x80] => value.push(short),
        [0, one] => value.extend([0x81, one]),
        two => value.extend([[0x82].as_slice(), &two].concat()),
    }
    value.extend(content);
    value
}
