//! UUIDs as they name disks and repositories. Making one takes random bytes from the caller.

use core::{fmt, str::FromStr};

/// A UUID.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

/// Text that is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID such as 6f6b1ab4-5a0e-4ee2-8c0a-1f3f1c3c2c11")]
pub struct BadUuid;

impl Uuid {
    /// A version 4 UUID of these random bytes (RFC 9562 section 5.4).
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// No disk has this one.
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = BadUuid;

    fn from_str(text: &str) -> Result<Self, BadUuid> {
        let text = text.as_bytes();
        if text.len() != 36 || [8, 13, 18, 23].iter().any(|&i| text[i] != b'-') {
            return Err(BadUuid);
        }
        let mut digits = text
            .iter()
            .enumerate()
            .filter(|(i, _)| !matches!(i, 8 | 13 | 18 | 23));
        let mut digit = || {
            let (_, byte) = digits.next().ok_or(BadUuid)?;
            let value = char::from(*byte).to_digit(16).ok_or(BadUuid)?;
            Ok(value as u8)
        };
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            *byte = digit()? << 4 | digit()?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn text_form() {
        let text = "6f6b1ab4-5a0e-4ee2-8c0a-1f3f1c3c2c11";
        assert_eq!(text.parse::<Uuid>().expect("well formed").to_string(), text);
        for bad in [
            "",
            "6f6b1ab45a0e4ee28c0a1f3f1c3c2c11",
            "6f6b1ab4-5a0e-4ee2-8c0a-1f3f1c3c2c1g",
        ] {
            assert_eq!(bad.parse::<Uuid>(), Err(BadUuid), "{bad}");
        }
    }
}
