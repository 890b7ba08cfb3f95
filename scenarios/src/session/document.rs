//! Compares a fetched document with the model and says in a typist's words what is wrong with it.

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Byte by byte.
    pub equal: bool,
    /// Characters of the model that are missing.
    pub lost: u32,
    /// Characters that repeat the one before them and that the model does not have.
    pub duplicated: u32,
    /// Neighbours that stand the other way round.
    pub reordered: u32,
    /// Characters that come from nowhere.
    pub other: u32,
    /// The first line that differs.
    pub detail: String,
}

/// Compares `fetched` with what it must be.
#[must_use]
pub fn compare(expected: &str, fetched: &[u8]) -> Comparison {
    if expected.as_bytes() == fetched {
        return Comparison {
            equal: true,
            ..Comparison::default()
        };
    }
    let fetched = String::from_utf8_lossy(fetched);
    let mut comparison = Comparison::default();
    let (expected, fetched): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), fetched.lines().collect());
    for line in 0..expected.len().max(fetched.len()) {
        let (want, have) = (expected.get(line).copied(), fetched.get(line).copied());
        if want == have {
            continue;
        }
        if comparison.detail.is_empty() {
            comparison.detail = format!(
                "line {}: expected {}, found {}",
                line + 1,
                want.map_or("nothing".to_owned(), |line| format!("{line:?}")),
                have.map_or("nothing".to_owned(), |line| format!("{line:?}")),
            );
        }
        comparison.count(
            want.unwrap_or_default().as_bytes(),
            have.unwrap_or_default().as_bytes(),
        );
    }
    if comparison.detail.is_empty() {
        "the files differ only in line ends".clone_into(&mut comparison.detail);
    }
    comparison
}

impl Comparison {
    /// Walks two lines side by side; at a difference, takes the explanation after which most agrees.
    fn count(&mut self, mut want: &[u8], mut have: &[u8]) {
        loop {
            let same = want.iter().zip(have).take_while(|(a, b)| a == b).count();
            let before = same.checked_sub(1).map(|last| want[last]);
            (want, have) = (&want[same..], &have[same..]);
            if want.is_empty() && have.is_empty() {
                return;
            }
            let agree = |want_skipped: usize, have_skipped: usize| {
                let want = want.get(want_skipped..).unwrap_or_default();
                let have = have.get(have_skipped..).unwrap_or_default();
                want.iter().zip(have).take_while(|(a, b)| a == b).count()
            };
            let (lost, extra) = (agree(1, 0), agree(0, 1));
            let swapped = want.len() > 1
                && have.len() > 1
                && (want[0], want[1]) == (have[1], have[0])
                && agree(2, 2) + 2 > lost.max(extra);
            if swapped {
                self.reordered += 1;
                (want, have) = (&want[2..], &have[2..]);
            } else if have.is_empty() || (!want.is_empty() && lost >= extra) {
                self.lost += 1;
                want = &want[1..];
            } else {
                if before == Some(have[0]) {
                    self.duplicated += 1;
                } else {
                    self.other += 1;
                }
                have = &have[1..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "# head\nleftstring A0 = \"Casablanca\"\nlet B0 = 1942\n";

    fn counts(fetched: &str) -> (u32, u32, u32, u32) {
        let found = compare(MODEL, fetched.as_bytes());
        assert!(
            !found.equal && found.detail.contains("line"),
            "{}",
            found.detail
        );
        (found.lost, found.duplicated, found.reordered, found.other)
    }

    #[test]
    fn an_equal_document_is_equal() {
        assert!(compare(MODEL, MODEL.as_bytes()).equal);
    }

    #[test]
    fn lost_duplicated_and_reordered_keys_are_told_apart() {
        assert_eq!(counts(&MODEL.replace("Casa", "Csa")), (1, 0, 0, 0));
        assert_eq!(counts(&MODEL.replace("Casa", "Caasa")), (0, 1, 0, 0));
        assert_eq!(counts(&MODEL.replace("Casa", "Csaa")), (0, 0, 1, 0));
        assert_eq!(counts(&MODEL.replace("Casa", "Ca!sa")), (0, 0, 0, 1));
        assert_eq!(counts(&MODEL.replace("1942", "194")), (1, 0, 0, 0));
        assert_eq!(counts(&MODEL.replace("let B0 = 1942\n", "")).0, 13);
    }

    #[test]
    fn line_ends_count() {
        assert!(!compare(MODEL, MODEL.trim_end().as_bytes()).equal);
    }
}
