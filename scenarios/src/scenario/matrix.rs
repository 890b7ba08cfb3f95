//! One scenario file, several scenarios: every combination of a matrix's values, each put in its place in the file.

use toml::{Table, Value};

/// A combination: the paths and their values, in words for reports and as they are put in.
pub type Combination = Vec<(String, Value)>;

/// More combinations than this are a mistake.
const MAX: usize = 256;

/// A value that does not fit into the file.
#[derive(Debug)]
pub(super) struct Misfit {
    /// The path of the matrix that is wrong, where it is one.
    pub(super) path: Option<String>,
    /// In words.
    pub(super) words: String,
}

impl Misfit {
    fn at(path: &str, what: &str) -> Self {
        Self {
            path: Some(path.to_owned()),
            words: format!("\"{path}\" {what}"),
        }
    }

    /// What is wrong with the file that comes of it.
    pub(super) fn of_all(words: String) -> Self {
        Self { path: None, words }
    }
}

/// All combinations of a matrix; one empty one for none.
///
/// # Errors
/// In words, with the path at which it is wrong: there are too many, or an entry has no values.
pub(super) fn combinations(
    matrix: &std::collections::BTreeMap<String, Vec<Value>>,
) -> Result<Vec<Combination>, Misfit> {
    let mut all: Vec<Combination> = vec![Vec::new()];
    for (path, values) in matrix {
        if values.is_empty() {
            return Err(Misfit::at(path, "has no values"));
        }
        all = all
            .into_iter()
            .flat_map(|combination| {
                values.iter().map(move |value| {
                    let mut longer = combination.clone();
                    longer.push((path.clone(), value.clone()));
                    longer
                })
            })
            .collect();
        if all.len() > MAX {
            return Err(Misfit::at(
                path,
                &format!("makes more than {MAX} combinations"),
            ));
        }
    }
    Ok(all)
}

/// Puts a value at a path of a file.
///
/// # Errors
/// When there is no such place.
pub(super) fn put(table: &mut Table, path: &str, value: Value) -> Result<(), Misfit> {
    let missing = |at: &str| Misfit::at(path, &format!("leads nowhere: there is no \"{at}\""));
    let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
    let mut place = table;
    let mut parts = parents.split('.').filter(|part| !part.is_empty());
    while let Some(part) = parts.next() {
        // A table that the file leaves out is made: whether there may be one, the file's reader says.
        let next = place
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()));
        place = match next {
            Value::Table(table) => table,
            Value::Array(list) => {
                let which = parts.next().ok_or_else(|| missing("element"))?;
                let position = position(list, which).ok_or_else(|| missing(which))?;
                list[position]
                    .as_table_mut()
                    .ok_or_else(|| missing(which))?
            }
            _ => return Err(missing(part)),
        };
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

/// An element of a list: by its name, or by its position from 1.
fn position(list: &[Value], which: &str) -> Option<usize> {
    let named = |value: &Value| {
        ["name", "guest", "figure"]
            .iter()
            .any(|key| value.get(key).and_then(Value::as_str) == Some(which))
    };
    list.iter().position(named).or_else(|| {
        let number: usize = which.parse().ok()?;
        (1..=list.len()).contains(&number).then(|| number - 1)
    })
}

/// A combination in words: `loss=0.01 hosts=3`.
#[must_use]
pub fn words(combination: &Combination) -> String {
    let parts: Vec<_> = combination
        .iter()
        .map(|(path, value)| {
            let last = path.rsplit('.').next().unwrap_or(path);
            let text = value.to_string();
            format!("{last}={}", text.trim_matches('"'))
        })
        .collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_meets_every_other() {
        let matrix = [
            ("a".to_owned(), vec![Value::Integer(1), Value::Integer(2)]),
            (
                "b".to_owned(),
                vec![Value::Boolean(true), Value::Boolean(false)],
            ),
        ]
        .into();
        let all = combinations(&matrix).unwrap();
        let words: Vec<_> = all.iter().map(words).collect();
        assert_eq!(
            words,
            ["a=1 b=true", "a=1 b=false", "a=2 b=true", "a=2 b=false"]
        );
    }

    #[test]
    fn a_place_is_found_by_name_and_by_position() {
        let text = "[pool]\nhosts = 2\n[[steps]]\nname = \"cut\"\nlink = { link = \"h1:mgmt\" }\n[[steps]]\nwait = \"1s\"";
        let mut table: Table = text.parse().unwrap();
        put(&mut table, "pool.hosts", Value::Integer(3)).unwrap();
        put(&mut table, "steps.cut.link.loss", Value::Float(0.5)).unwrap();
        put(&mut table, "steps.2.wait", Value::String("2s".into())).unwrap();
        assert_eq!(table["pool"]["hosts"].as_integer(), Some(3));
        assert_eq!(table["steps"][0]["link"]["loss"].as_float(), Some(0.5));
        assert_eq!(table["steps"][1]["wait"].as_str(), Some("2s"));
        put(&mut table, "storage.link.loss", Value::Float(0.5)).unwrap();
        assert_eq!(table["storage"]["link"]["loss"].as_float(), Some(0.5));
        for nowhere in ["steps.3.wait", "steps.wait", "pool.hosts.more"] {
            assert!(
                put(&mut table, nowhere, Value::Integer(1)).is_err(),
                "{nowhere}"
            );
        }
    }
}
