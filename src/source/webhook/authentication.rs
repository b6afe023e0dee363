//! Authenticates a post: by a bearer token, `?token=`, or a signature over the body as sent (`X-Hub-Signature-256`, W3C
//! WebSub §7.1). Any of a feed's secrets is accepted. Comparisons take constant time. Knows nothing of connections.

use axum::http::{HeaderMap, Uri, header};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// What a request's head authenticates, before its body is read.
pub(super) enum ShownCredential {
    /// One of the secrets.
    Secret,
    /// A signature, to be compared once the body has been read.
    Signature(SignatureCheck),
    /// Neither one of the secrets nor a signature.
    Nothing,
}

/// The MACs of a body, one for each secret, and the signature that the request gave.
pub(super) struct SignatureCheck {
    given: Vec<u8>,
    macs: SignatureMacs,
}

enum SignatureMacs {
    Sha256(Vec<Hmac<Sha256>>),
    Sha1(Vec<Hmac<Sha1>>),
}

/// Checks the credentials in a request's head.
pub(super) fn check_credentials(headers: &HeaderMap, uri: &Uri, secrets: &[SecretString]) -> ShownCredential {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes())).map(<[u8]>::to_vec);
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let tokens = query.filter(|(name, _)| name == "token").map(|(_, token)| token.as_bytes().to_vec());
    let known =
        bearer.into_iter().chain(tokens).fold(Choice::from(0), |known, token| known | is_one_of(secrets, &token));
    if known.into() {
        return ShownCredential::Secret;
    }
    // Where a request has both signatures, the stronger one counts.
    let named = |name: &str, prefix: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(value.trim().strip_prefix(prefix).and_then(unhex).unwrap_or_default())
    };
    if let Some(given) = named("x-hub-signature-256", "sha256=") {
        return ShownCredential::Signature(SignatureCheck { given, macs: SignatureMacs::Sha256(keyed(secrets)) });
    }
    match named("x-hub-signature", "sha1=") {
        Some(given) => ShownCredential::Signature(SignatureCheck { given, macs: SignatureMacs::Sha1(keyed(secrets)) }),
        None => ShownCredential::Nothing,
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares digests, which have one length whatever was sent, and compares every secret.
fn is_one_of(secrets: &[SecretString], token: &[u8]) -> Choice {
    let given = Sha256::digest(token);
    let same = |secret: &SecretString| Sha256::digest(secret.expose_secret()).as_slice().ct_eq(given.as_slice());
    secrets.iter().fold(Choice::from(0), |known, secret| known | same(secret))
}

fn keyed<M: KeyInit>(secrets: &[SecretString]) -> Vec<M> {
    // HMAC takes keys of any length.
    secrets.iter().filter_map(|secret| M::new_from_slice(secret.expose_secret().as_bytes()).ok()).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<Vec<_>>>()?;
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(high << 4 | low),
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}

impl SignatureCheck {
    /// Adds the next bytes of the body.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.macs {
            SignatureMacs::Sha256(macs) => macs.iter_mut().for_each(|mac| mac.update(bytes)),
            SignatureMacs::Sha1(macs) => macs.iter_mut().for_each(|mac| mac.update(bytes)),
        }
    }

    /// Whether the given signature was made with one of the secrets.
    pub(super) fn verify(self) -> bool {
        let Self { given, macs } = self;
        let same = |macs: &[u8]| macs.ct_eq(given.as_slice());
        let none = Choice::from(0);
        let known = match macs {
            SignatureMacs::Sha256(macs) => {
                macs.into_iter().fold(none, |known, mac| known | same(&mac.finalize().into_bytes()))
            }
            SignatureMacs::Sha1(macs) => {
                macs.into_iter().fold(none, |known, mac| known | same(&mac.finalize().into_bytes()))
            }
        };
        known.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The example of GitHub's documentation of webhooks, and RFC 2202 §3, case 2.
    #[test]
    fn signatures_are_those_of_the_standards() {
        let genuine = |header: &'static str, value: &str, secret: &str, body: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(header, value.parse().unwrap());
            let secrets = [SecretString::from("another"), SecretString::from(secret)];
            match check_credentials(&headers, &Uri::from_static("/"), &secrets) {
                ShownCredential::Signature(mut signature) => {
                    body.chunks(3).for_each(|chunk| signature.update(chunk));
                    signature.verify()
                }
                _ => false,
            }
        };
        let sha256 = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let sha1 = "sha1=effcdf6ae5eb2fa2d27416d5f184df9c259a7c79";
        assert!(genuine("x-hub-signature-256", sha256, "It's a Secret to Everybody", b"Hello, World!"));
        assert!(!genuine("x-hub-signature-256", sha256, "It's a Secret to Everybody", b"Hello, World?"));
        assert!(!genuine("x-hub-signature-256", &sha256[..70], "It's a Secret to Everybody", b"Hello, World!"));
        assert!(genuine("x-hub-signature", sha1, "Jefe", b"what do ya want for nothing?"));
        for wrong in ["", "sha1=", "sha1=zz", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"] {
            assert!(!genuine("x-hub-signature", wrong, "Jefe", b"what do ya want for nothing?"), "{wrong}");
        }
    }
}
