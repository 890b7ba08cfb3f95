//! Scenario files: those that come with the program are right, and a wrong one is told what is wrong with it, and where.

use std::path::{Path, PathBuf};

use scenarios::scenario::{self, library};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_scenario_of_the_library_is_right_and_known_by_its_name() {
    let mut names: Vec<String> = files(&folder(""))
        .iter()
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_owned))
        .filter(|name| name != "Cargo")
        .collect();
    let mut included: Vec<String> = library::ALL.iter().map(|one| one.name.to_owned()).collect();
    names.sort();
    included.sort();
    assert_eq!(
        names, included,
        "files in scenarios/ and the library's list"
    );
    for one in library::ALL {
        let variants =
            scenario::parse(one.name, one.text).unwrap_or_else(|error| panic!("{error}"));
        for variant in variants {
            let scenario = variant.scenario;
            assert_eq!(scenario.name.get_ref(), one.name);
            assert!(!scenario.tags.is_empty(), "{} has no tag", one.name);
            let proves = !scenario.expect.is_empty() || !scenario.sometimes.is_empty();
            assert!(proves, "{} expects nothing", one.name);
        }
    }
}

/// The texts are in `malformed/*.txt`; with `ELAB_BLESS=1` they are written.
#[test]
fn a_wrong_file_is_told_what_is_wrong_and_where() {
    let folder = folder("tests/malformed");
    let all = files(&folder);
    assert!(all.len() >= 25, "the corpus is not where it should be");
    let mut changed = Vec::new();
    for path in all {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let said = match scenario::parse(name, &text) {
            Ok(_) => panic!("{name} is taken for right"),
            Err(error) => format!("{error}\n"),
        };
        let golden = path.with_extension("txt");
        if std::env::var_os("ELAB_BLESS").is_some() {
            std::fs::write(&golden, &said).unwrap();
        }
        if std::fs::read_to_string(&golden).unwrap_or_default() != said {
            changed.push(format!("{name} now says:\n{said}"));
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

#[test]
fn no_text_makes_the_reader_panic() {
    // Every prefix of a right file, and every file with one byte of it changed, is either right or an error.
    let text = library::find("link-cut").unwrap().text;
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        let _ = scenario::parse("prefix", &text[..end]).map_err(|error| error.to_string());
    }
    for place in 0..text.len() {
        for byte in [b'"', b'[', b'=', b'9', b'\n', b'}'] {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] = byte;
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = scenario::parse("changed", &text).map_err(|error| error.to_string());
            }
        }
    }
}

#[test]
fn the_schema_names_every_field_and_refuses_others() {
    let schema = scenario::schema();
    let fields = schema["properties"].as_object().unwrap();
    for field in [
        "name", "why", "pool", "guests", "sessions", "steps", "expect", "matrix",
    ] {
        assert!(fields.contains_key(field), "{field}");
        assert!(
            fields[field].get("description").is_some(),
            "{field} says nothing of itself"
        );
    }
    assert_eq!(schema["additionalProperties"], false);
    let required: Vec<_> = schema["required"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one.as_str())
        .collect();
    assert_eq!(required, ["name", "why", "guests"]);
}

#[test]
fn a_matrix_makes_every_combination() {
    let cancel = library::find("cancel").unwrap();
    let variants = scenario::parse("cancel", cancel.text).unwrap();
    let words: Vec<_> = variants
        .iter()
        .map(|variant| variant.words.as_str())
        .collect();
    assert_eq!(
        words,
        [
            "phase=set-up",
            "phase=pre-copy",
            "phase=drain",
            "phase=device-state"
        ]
    );
    let again = scenario::parse_with("cancel", cancel.text, &variants[2].settings).unwrap();
    assert_eq!(
        format!("{:?}", again.steps),
        format!("{:?}", variants[2].scenario.steps)
    );
}

#[test]
fn a_name_is_a_scenario_and_a_wrong_one_is_told_what_may_have_been_meant() {
    let (text, variants) = scenario::find("demo").unwrap();
    assert_eq!(text, library::find("demo").unwrap().text);
    assert_eq!(variants.len(), 1);

    let said = |word: &str| scenario::find(word).unwrap_err().to_string();
    assert!(
        said("demoo").contains("did you mean `demo`?"),
        "{}",
        said("demoo")
    );
    assert!(said("nothing-like-it").contains("`elab list`"));
    assert!(said("demoo.toml").contains("cannot be read"));
    assert!(said("/nowhere/demo").contains("cannot be read"));
}
