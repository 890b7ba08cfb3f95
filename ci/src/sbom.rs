//! The bill of materials of a bundle in CycloneDX 1.5 (cyclonedx.org/docs/1.5/json): the crates that program and image are linked from,
//! and the packages of the session guest.
//!
//! Cargo says what is needed by what, so the bill is a walk through its answer. A tool for it was left out: none knows the guest.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a bundle is linked from: its program, the hypervisor's image, the test guests.
const ROOTS: [&str; 3] = ["elab", "hvcore", "test-guests"];

/// The bill of what `cargo metadata`, `Cargo.lock` and the guest's manifest say.
pub fn bill(metadata: &Value, lock: &str, guest: &Value, commit: &str) -> Result<Value> {
    let hashes = hashes(lock);
    let mut components = Vec::new();
    let mut version = "";
    for package in needed(metadata)? {
        let text = |field: &str| package[field].as_str().unwrap_or_default();
        let (name, of) = (text("name"), text("version"));
        if name == "elab" {
            version = of;
        }
        // A crate of this workspace is part of the program.
        if package["source"].is_null() {
            continue;
        }
        let mut component = json!({
            "type": "library",
            "name": name,
            "version": of,
            "purl": format!("pkg:cargo/{name}@{of}"),
        });
        if !text("license").is_empty() {
            // Cargo's older form of "or" is no expression of SPDX.
            let expression = text("license").replace('/', " OR ");
            component["licenses"] = json!([{ "expression": expression }]);
        }
        if let Some(hash) = hashes.get(&(name, of)) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
        }
        components.push(component);
    }
    for package in guest["packages"].as_array().into_iter().flatten() {
        components.push(debian(package)?);
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": "elab",
                "version": version,
                "licenses": [{ "expression": "Apache-2.0" }],
                "properties": [{ "name": "commit", "value": commit }],
            },
        },
        "components": components,
    }))
}

/// The packages that are linked, in order of their identities. What only builds or tests is not in the bundle.
fn needed(metadata: &Value) -> Result<Vec<&Value>> {
    let packages: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()
        .context("cargo's metadata has no packages")?
        .iter()
        .filter_map(|one| Some((one["id"].as_str()?, one)))
        .collect();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo's metadata says nothing of what needs what")?
        .iter()
        .filter_map(|one| Some((one["id"].as_str()?, one)))
        .collect();
    let is_root =
        |one: &Value| one["source"].is_null() && ROOTS.iter().any(|root| one["name"] == **root);
    let mut todo: Vec<&str> = packages
        .iter()
        .filter(|(_, one)| is_root(one))
        .map(|(id, _)| *id)
        .collect();
    let mut found = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if !found.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array();
            let linked = kinds.into_iter().flatten().any(|kind| {
                kind["kind"].is_null() && is_ours(kind["target"].as_str().unwrap_or_default())
            });
            if linked {
                todo.extend(dependency["pkg"].as_str());
            }
        }
    }
    Ok(found
        .iter()
        .filter_map(|id| packages.get(id).copied())
        .collect())
}

/// Whether what is needed on some platforms is needed on ours; what cannot be told is.
fn is_ours(target: &str) -> bool {
    ![
        "windows", "macos", "wasm", "android", "\"apple", "bsd", "hermit", "wasi", "redox",
    ]
    .iter()
    .any(|other| target.contains(other) && !target.contains("not(") && !target.contains("unix"))
}

/// The sums of `Cargo.lock`, by name and version.
fn hashes(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let mut all = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            package.lines().find_map(|line| {
                line.strip_prefix(key)?
                    .strip_prefix(" = \"")?
                    .strip_suffix('"')
            })
        };
        if let (Some(name), Some(version), Some(sum)) =
            (value("name"), value("version"), value("checksum"))
        {
            all.insert((name, version), sum);
        }
    }
    all
}

/// A package of the guest, by the name of its file: `name_version_architecture.deb`, with `%3a` for a colon.
fn debian(package: &Value) -> Result<Value> {
    let file = package["name"].as_str().unwrap_or_default();
    let stem = file.strip_suffix(".deb").unwrap_or(file);
    let mut parts = stem.split('_');
    let (Some(name), Some(version), Some(architecture)) =
        (parts.next(), parts.next(), parts.next())
    else {
        anyhow::bail!("{file} is no name of a Debian package");
    };
    Ok(json!({
        "type": "library",
        "group": "session guest",
        "name": name,
        "version": version.replace("%3a", ":"),
        "purl": format!("pkg:deb/debian/{name}@{version}?arch={architecture}"),
        "hashes": [{ "alg": "SHA-256", "content": package["sha256"] }],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Value {
        let package = |name: &str, source: Value, license: &str| json!({ "id": name, "name": name, "version": "1.0.0", "source": source, "license": license });
        let dep = |name: &str, kind: Value, target: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind, "target": target }] });
        json!({
            "packages": [
                package("elab", Value::Null, "Apache-2.0"),
                package("switch", Value::Null, "Apache-2.0"),
                package("nix", "registry".into(), "MIT/Apache-2.0"),
                package("tempfile", "registry".into(), "MIT"),
                package("winapi", "registry".into(), "MIT"),
            ],
            "resolve": { "nodes": [
                { "id": "elab", "deps": [
                    dep("switch", Value::Null, Value::Null),
                    dep("tempfile", "dev".into(), Value::Null),
                    dep("winapi", Value::Null, "cfg(windows)".into()),
                ] },
                { "id": "switch", "deps": [dep("nix", Value::Null, "cfg(unix)".into())] },
            ] },
        })
    }

    #[test]
    fn what_is_linked_is_on_the_bill_and_what_only_tests_is_not() {
        let lock = "version = 4\n[[package]]\nname = \"nix\"\nversion = \"1.0.0\"\nsource = \"x\"\nchecksum = \"abcd\"\n";
        let guest = json!({ "packages": [
            { "name": "busybox-static_1%3a1.35.0-4+b1_amd64.deb", "sha256": "ef01" },
        ] });
        let bill = bill(&metadata(), lock, &guest, "0123").unwrap();
        let components = bill["components"].as_array().unwrap();
        let names: Vec<_> = components.iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["nix", "busybox-static"]);
        assert_eq!(components[0]["purl"], "pkg:cargo/nix@1.0.0");
        assert_eq!(
            components[0]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(components[0]["hashes"][0]["content"], "abcd");
        assert_eq!(components[1]["version"], "1:1.35.0-4+b1");
        assert_eq!(bill["metadata"]["component"]["version"], "1.0.0");
        assert_eq!(
            bill["metadata"]["component"]["properties"][0]["value"],
            "0123"
        );
    }

    #[test]
    fn a_guest_of_something_else_is_refused() {
        let guest = json!({ "packages": [{ "name": "busybox.rpm", "sha256": "" }] });
        assert!(bill(&metadata(), "", &guest, "").is_err());
    }
}
