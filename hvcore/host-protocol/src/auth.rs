//! Proof that both ends of a connection hold the pool's key.
//!
//! Each end sends a random nonce; the proof is HMAC-SHA-256 (RFC 2104) with the key over a label, the
//! client's nonce and the server's. The label names the purpose and the side that proves, so that a
//! proof can neither be reflected to its sender nor carried from one protocol to another. What
//! follows on the connection is not encrypted: the key keeps strangers out, the management network
//! keeps them from listening.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Random bytes that make a proof worthless for any other connection.
pub type Nonce = [u8; 16];

/// A proof.
pub type Proof = [u8; 32];

/// What a proof is for, and who gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The lab, to a host's control service.
    ControlClient,
    /// A host's control service, to the lab.
    ControlHost,
    /// The source of a migration, to its destination.
    MigrationSource,
    /// The destination of a migration, to its source.
    MigrationDestination,
    /// A host's heartbeat, to the others.
    Heartbeat,
    /// A host's slot in the statefile.
    Statefile,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::ControlClient => b"client",
            Self::ControlHost => b"host",
            Self::MigrationSource => b"migration source",
            Self::MigrationDestination => b"migration destination",
            Self::Heartbeat => b"heartbeat",
            Self::Statefile => b"statefile",
        }
    }
}

/// The pool's key, shared by all its hosts and the lab.
#[derive(Clone, PartialEq, Eq)]
pub struct PoolKey([u8; 32]);

/// A text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pool key is 64 hexadecimal digits")]
pub struct NotAKey;

impl PoolKey {
    /// The key with these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn from_hex(text: &str) -> Result<Self, NotAKey> {
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NotAKey)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(NotAKey);
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?)
                .expect("two hexadecimal digits fit a byte");
        }
        Ok(Self(key))
    }

    fn hmac(&self, purpose: Purpose, client: &Nonce, server: &Nonce) -> Hmac<Sha256> {
        let mut hmac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key length");
        hmac.update(purpose.label());
        hmac.update(client);
        hmac.update(server);
        hmac
    }

    /// The proof to send.
    #[must_use]
    pub fn prove(&self, purpose: Purpose, client: &Nonce, server: &Nonce) -> Proof {
        self.hmac(purpose, client, server)
            .finalize()
            .into_bytes()
            .into()
    }

    /// Whether a proof that arrived is right, in a time that does not depend on where it is wrong.
    #[must_use]
    pub fn accepts(&self, purpose: Purpose, client: &Nonce, server: &Nonce, proof: &Proof) -> bool {
        self.hmac(purpose, client, server)
            .verify_slice(proof)
            .is_ok()
    }
}

impl PoolKey {
    /// The seal for messages of one purpose that stand alone, outside any connection.
    #[must_use]
    pub fn seal(&self, purpose: Purpose) -> Seal {
        let mut hmac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key length");
        hmac.update(purpose.label());
        Seal(hmac)
    }
}

/// Proves that a message comes from the pool. What makes it worthless another time must be in the message.
#[derive(Clone)]
pub struct Seal(Hmac<Sha256>);

impl Seal {
    /// The proof for a message.
    #[must_use]
    pub fn prove(&self, message: &[u8]) -> Proof {
        self.0
            .clone()
            .chain_update(message)
            .finalize()
            .into_bytes()
            .into()
    }

    /// Whether a proof that arrived is right, in a time that does not depend on where it is wrong.
    #[must_use]
    pub fn accepts(&self, message: &[u8], proof: &Proof) -> bool {
        self.0
            .clone()
            .chain_update(message)
            .verify_slice(proof)
            .is_ok()
    }
}

impl fmt::Debug for PoolKey {
    /// A key has no business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    const CLIENT: Nonce = [1; 16];
    const HOST: Nonce = [2; 16];

    #[test]
    fn a_proof_holds_for_its_key_purpose_and_nonces_only() {
        let key = PoolKey::new([7; 32]);
        let proof = key.prove(Purpose::ControlClient, &CLIENT, &HOST);
        assert!(key.accepts(Purpose::ControlClient, &CLIENT, &HOST, &proof));
        assert!(!key.accepts(Purpose::ControlHost, &CLIENT, &HOST, &proof));
        assert!(!key.accepts(Purpose::MigrationSource, &CLIENT, &HOST, &proof));
        assert!(!key.accepts(Purpose::ControlClient, &HOST, &CLIENT, &proof));
        assert!(!key.accepts(Purpose::ControlClient, &CLIENT, &[3; 16], &proof));
        assert!(!PoolKey::new([8; 32]).accepts(Purpose::ControlClient, &CLIENT, &HOST, &proof));
    }

    #[test]
    fn the_proof_is_hmac_sha_256() {
        // RFC 4231, test case 2, shows the primitive; the message here is label and nonces.
        let mut hmac = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        hmac.update(b"what do ya want for nothing?");
        let digest: Proof = hmac.finalize().into_bytes().into();
        assert_eq!(digest[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }

    #[test]
    fn keys_are_read_from_hexadecimal_and_never_shown() {
        let key = PoolKey::from_hex(&"0f".repeat(32)).unwrap();
        assert_eq!(key, PoolKey::new([0x0f; 32]));
        assert_eq!(PoolKey::from_hex("0f"), Err(NotAKey));
        assert_eq!(PoolKey::from_hex(&"0g".repeat(32)), Err(NotAKey));
        assert_eq!(PoolKey::from_hex(&"+f".repeat(32)), Err(NotAKey));
        assert!(!format!("{key:?}").contains("15"));
    }
}
