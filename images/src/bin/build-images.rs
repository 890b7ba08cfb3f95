//! Builds all images into the cache, so that whoever needs them next finds them there.

use std::path::Path;

use anyhow::Result;

fn main() -> Result<()> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.elab/images");
    images::guest::build(&cache, &|line| eprintln!("{line}"))?;
    images::hypervisor::build()?;
    images::hypervisor::build_test_guests()?;
    Ok(())
}
