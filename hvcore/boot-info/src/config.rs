//! The host's settings, as its launcher writes them: `key=value`, one on each line of a fw_cfg file, or
//! separated by spaces on the command line.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{net::Ipv4Addr, str::FromStr};

use thiserror::Error;

/// Most bytes of settings accepted.
pub const SETTINGS_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the pool's key.
pub const KEY_BYTES: usize = 32;
/// TCP port of NFS (RFC 1813).
const NFS_PORT: u16 = 2049;
/// Smallest and largest MTU the host's rings are built for.
const MTU_RANGE: core::ops::RangeInclusive<usize> = 576..=9000;

/// An address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The host's own address.
    pub address: Ipv4Addr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// A TCP endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub address: Ipv4Addr,
    /// Port.
    pub port: u16,
}

/// What a host of a pool has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `name`: the host's name.
    pub name: String,
    /// `management`: its address there.
    pub management: Cidr,
    /// `storage`: its address there.
    pub storage: Cidr,
    /// `nfs`: the storage server.
    pub nfs: Endpoint,
    /// `export`: the path it exports.
    pub export: String,
    /// `key`: the pool's key.
    pub key: [u8; KEY_BYTES],
    /// `mtu` of management and storage network; 1500 unless told.
    pub mtu: usize,
    /// `tsc_hz`: ticks of the time-stamp counter in a second; measured unless told.
    pub tsc_hz: Option<u64>,
}

/// Why settings were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// A word without `=`.
    #[error("`{0}` is not of the form key=value")]
    NotAPair(String),
    /// A key nobody reads: most likely a typing error.
    #[error("there is no setting `{0}`; the settings are {KEYS}")]
    UnknownKey(String),
    /// The same key again.
    #[error("`{0}` is set twice")]
    Twice(String),
    /// A key without which the host cannot work.
    #[error("`{0}` is not set")]
    Missing(&'static str),
    /// A value that does not parse.
    #[error("`{key}={value}`: expected {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What would do.
        expected: String,
    },
}

const KEYS: &str = "name, management, storage, nfs, export, key, mtu, tsc_hz";

impl Settings {
    /// Parses settings separated by line ends or spaces; lines that begin with `#` are comments.
    ///
    /// # Errors
    /// At the first setting that is wrong, unknown, doubled or missing.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        let lines = text.lines().map(str::trim);
        for word in lines
            .filter(|line| !line.starts_with('#'))
            .flat_map(str::split_whitespace)
        {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| SettingsError::NotAPair(word.to_string()))?;
            if !KEYS.split(", ").any(|known| known == key) {
                return Err(SettingsError::UnknownKey(key.to_string()));
            }
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(SettingsError::Twice(key.to_string()));
            }
            pairs.push((key, value));
        }
        let find = |wanted: &'static str| pairs.iter().find(|(key, _)| *key == wanted);
        let required = |wanted| find(wanted).copied().ok_or(SettingsError::Missing(wanted));
        Ok(Self {
            name: parse(required("name")?, "a word of 1 to 64 characters", |value| {
                (1..=64).contains(&value.len()).then(|| value.to_string())
            })?,
            management: cidr(required("management")?)?,
            storage: cidr(required("storage")?)?,
            nfs: parse(required("nfs")?, "an address like 192.0.2.1:2049", endpoint)?,
            export: parse(required("export")?, "an absolute path", |value| {
                (value.starts_with('/') && value.len() <= 1024).then(|| value.to_string())
            })?,
            key: parse(required("key")?, "64 hexadecimal digits", key)?,
            mtu: match find("mtu") {
                None => 1500,
                Some(pair) => parse(
                    *pair,
                    &format!("a number from {} to {}", MTU_RANGE.start(), MTU_RANGE.end()),
                    |value| value.parse().ok().filter(|mtu| MTU_RANGE.contains(mtu)),
                )?,
            },
            tsc_hz: match find("tsc_hz") {
                None => None,
                Some(pair) => Some(parse(*pair, "a number from 10 MHz to 100 GHz", |value| {
                    let range = 10_000_000..=100_000_000_000;
                    value.parse().ok().filter(|hz| range.contains(hz))
                })?),
            },
        })
    }

    /// Whether `text` holds any setting at all, as opposed to a command line for something else.
    #[must_use]
    pub fn present(text: &str) -> bool {
        text.split_whitespace()
            .any(|word| word.starts_with("name="))
    }
}

fn parse<T>(
    (key, value): (&str, &str),
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, SettingsError> {
    parse(value).ok_or_else(|| SettingsError::BadValue {
        key: key.to_string(),
        // The key of the pool is a secret, and this text reaches a console.
        value: if key == "key" { "…" } else { value }.to_string(),
        expected: expected.to_string(),
    })
}

fn cidr(pair: (&str, &str)) -> Result<Cidr, SettingsError> {
    parse(pair, "an address like 192.0.2.11/24", |value| {
        let (address, prefix) = value.split_once('/')?;
        Some(Cidr {
            address: Ipv4Addr::from_str(address).ok()?,
            prefix: prefix.parse().ok().filter(|bits| *bits <= 32)?,
        })
    })
}

fn endpoint(value: &str) -> Option<Endpoint> {
    let (address, port) = match value.split_once(':') {
        None => (value, NFS_PORT),
        Some((address, port)) => (address, port.parse().ok()?),
    };
    Some(Endpoint {
        address: Ipv4Addr::from_str(address).ok()?,
        port,
    })
}

fn key(value: &str) -> Option<[u8; KEY_BYTES]> {
    let digits = value.as_bytes();
    if digits.len() != 2 * KEY_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(value.as_bytes().chunks_exact(2)) {
        let pair = core::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines() -> Vec<String> {
        [
            "name=h1",
            "management=198.18.0.11/24",
            "storage=198.18.1.11/24",
            "nfs=198.18.1.1:2049",
            "export=/export",
            "mtu=9000",
        ]
        .into_iter()
        .map(String::from)
        .chain([format!("key={}", "0a".repeat(32))])
        .collect()
    }

    #[test]
    fn lines_and_words_say_the_same() {
        let settings = Settings::parse(&lines().join("\n")).unwrap();
        assert_eq!(Settings::parse(&lines().join(" ")), Ok(settings.clone()));
        assert_eq!(settings.name, "h1");
        assert_eq!(settings.management.address, Ipv4Addr::new(198, 18, 0, 11));
        assert_eq!(settings.storage.prefix, 24);
        assert_eq!(settings.nfs.port, 2049);
        assert_eq!(settings.key, [10; 32]);
        assert_eq!(settings.mtu, 9000);
        assert_eq!(settings.tsc_hz, None);
    }

    #[test]
    fn each_missing_setting_is_named() {
        for left_out in 0..lines().len() {
            let mut some = lines();
            let gone = some.remove(left_out);
            let result = Settings::parse(&some.join("\n"));
            if gone.starts_with("mtu") {
                assert_eq!(result.unwrap().mtu, 1500);
            } else {
                let key = gone.split_once('=').unwrap().0;
                assert_eq!(
                    result.unwrap_err().to_string(),
                    format!("`{key}` is not set")
                );
            }
        }
    }

    #[test]
    fn wrong_settings_are_named_and_the_key_is_not_shown() {
        for (line, message) in [
            ("mtu=9001", "`mtu=9001`: expected a number from 576 to 9000"),
            ("mtu", "`mtu` is not of the form key=value"),
            ("name=h2", "`name` is set twice"),
            (
                "mgmt=1",
                "there is no setting `mgmt`; the settings are name, management, storage, nfs, export, key, mtu, tsc_hz",
            ),
            (
                "tsc_hz=0",
                "`tsc_hz=0`: expected a number from 10 MHz to 100 GHz",
            ),
        ] {
            let mut all = lines();
            all.retain(|line| !line.starts_with("mtu"));
            all.push(line.to_string());
            assert_eq!(
                Settings::parse(&all.join("\n")).unwrap_err().to_string(),
                message
            );
        }
        let mut all = lines();
        all.pop();
        all.push(format!("key={}", "secret".repeat(10)));
        let message = Settings::parse(&all.join("\n")).unwrap_err().to_string();
        assert!(!message.contains("secret"), "{message}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(name|mtu|nfs|key|storage)=[0-9./:é a-f]{0,70}\\s.{0,40}") {
            let _ = Settings::parse(&text);
        }
    }
}
