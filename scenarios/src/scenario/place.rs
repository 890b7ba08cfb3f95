//! Where something stands in a scenario file: for what is wrong with keys rather than with values, and for keys that are not there.
//!
//! A [`toml::Spanned`] in each field would do the same, but a key has no type of its own to carry it.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// The places of a text's keys.
pub(super) struct Places<'a> {
    text: &'a str,
    root: Option<DeTable<'a>>,
}

impl<'a> Places<'a> {
    /// Of a text that has been read as a scenario. One that is no TOML has no places.
    pub(super) fn of(text: &'a str) -> Self {
        let root = DeTable::parse(text).ok().map(toml::Spanned::into_inner);
        Self { text, root }
    }

    /// The key at the end of a path, an element of a list being named by its position from 1. Where the path leads nowhere, the last
    /// that is there; empty for a text without its beginning.
    pub(super) fn find(&self, path: &[&str]) -> Range<usize> {
        let mut found = 0..0;
        let Some((first, rest)) = path.split_first() else {
            return found;
        };
        let Some((key, mut value)) = self.root.as_ref().and_then(|root| entry(root, first)) else {
            return found;
        };
        found = key;
        for part in rest {
            let next = match value {
                DeValue::Table(table) => entry(table, part),
                DeValue::Array(list) => part
                    .parse::<usize>()
                    .ok()
                    .and_then(|number| list.get(number.checked_sub(1)?))
                    .map(|element| (element.span(), element.get_ref())),
                _ => None,
            };
            let Some((span, inner)) = next else {
                break;
            };
            (found, value) = (self.first_line(span), inner);
        }
        found
    }

    /// That of the paths which stands last: in a conflict, the one that came to what was there.
    pub(super) fn last(&self, paths: &[Vec<&str>]) -> Range<usize> {
        let places = paths.iter().map(|path| self.find(path));
        places.max_by_key(|place| place.start).unwrap_or(0..0)
    }

    /// A table's span covers all of it: the first line says enough.
    fn first_line(&self, span: Range<usize>) -> Range<usize> {
        let length = self.text[span.clone()].find('\n').unwrap_or(span.len());
        span.start..span.start + length
    }
}

fn entry<'t, 'a>(table: &'t DeTable<'a>, key: &str) -> Option<(Range<usize>, &'t DeValue<'a>)> {
    table
        .iter()
        .find(|(name, _)| name.get_ref() == key)
        .map(|(name, value)| (name.span(), value.get_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_path_and_what_is_missing_at_its_parent() {
        let text = "a = 1\n[[steps]]\nwait = \"1s\"\n\n[[steps]]\nlink = { cut = true }\n[matrix]\n\"b.c\" = [1]\n";
        let places = Places::of(text);
        let at = |path: &[&str]| &text[places.find(path)];
        assert_eq!(at(&["a"]), "a");
        assert_eq!(at(&["steps", "1", "wait"]), "wait");
        assert_eq!(at(&["steps", "2", "link", "cut"]), "cut");
        assert_eq!(at(&["steps", "2", "when"]), "[[steps]]");
        assert_eq!(
            places.find(&["steps", "2", "when"]).start,
            text.rfind("[[steps]]").unwrap()
        );
        assert_eq!(at(&["matrix", "b.c"]), "\"b.c\"");
        assert_eq!(at(&["nothing"]), "");
        assert_eq!(Places::of("=").find(&["a"]), 0..0);
    }
}
