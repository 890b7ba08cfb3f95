//! Puts all images into the folder of a bundle: `bundle-images FOLDER`.

use std::path::Path;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let to = std::env::args_os()
        .nth(1)
        .context("usage: bundle-images FOLDER")?;
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.elab/images");
    images::bundle::write(&cache, Path::new(&to), &|line| eprintln!("{line}"))
}
