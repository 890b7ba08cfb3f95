//! The configuration file: keys and looks. The sample that the program prints is the whole of it, with every default.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use crate::keys::{Group, Keys, TABLE};
use crate::theme::Theme;

/// What can be configured.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// `dark`, `light` or `mono`.
    pub theme: Theme,
    /// Only ASCII characters.
    pub ascii: bool,
    /// Let the mouse select; shift-drag still marks text.
    pub mouse: bool,
    /// Look only: no command is sent.
    pub readonly: bool,
    /// Other keys by action.
    pub keys: BTreeMap<String, Vec<String>>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or holds something unknown; the text names file, line and field.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self =
            toml::from_str(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        config
            .bindings()
            .with_context(|| format!("{}, under [keys]", path.display()))?;
        Ok(config)
    }

    /// The keys that follow from it.
    ///
    /// # Errors
    /// When an action is unknown, a key is none, or one is bound twice.
    pub fn bindings(&self) -> Result<Keys> {
        let mut keys = Keys::default();
        for (name, bound) in &self.keys {
            keys.rebind(name, bound).map_err(|words| anyhow!(words))?;
        }
        keys.check().map_err(|words| anyhow!(words))?;
        Ok(keys)
    }
}

/// A file with every setting at its default.
#[must_use]
pub fn sample() -> String {
    let mut out = String::from(
        "# Settings of `elab tui`, with their defaults. Give the file with --config.\n\n\
         # dark, light or mono\ntheme = \"dark\"\n\
         # only ASCII characters\nascii = false\n\
         # let the mouse select; shift-drag still marks text\nmouse = false\n\
         # look only: no command is sent\nreadonly = false\n\n[keys]\n",
    );
    for group in Group::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# {}", group.title());
        for row in TABLE.iter().filter(|row| row.group == group) {
            let keys: Vec<_> = row.keys.iter().map(|key| format!("{key:?}")).collect();
            let setting = format!("{} = [{}]", row.name, keys.join(", "));
            let _ = writeln!(out, "{setting:<36} # {}", row.help);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_defaults() {
        let config: Config = toml::from_str(&sample()).unwrap();
        let keys = config.bindings().unwrap();
        for row in TABLE {
            assert_eq!(
                keys.keys(row.action),
                Keys::default().keys(row.action),
                "{}",
                row.name
            );
        }
        assert_eq!(config.keys.len(), TABLE.len());
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let write = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            format!("{:#}", Config::read(file.path()).unwrap_err())
        };
        assert!(write("colour = 1").contains("unknown field `colour`"));
        assert!(write("theme = \"pink\"").contains("unknown variant `pink`"));
        assert!(write("[keys]\nfly = [\"z\"]").contains("no action \"fly\""));
        assert!(write("[keys]\npull = [\"m\"]").contains("both"));
    }
}
