//! Runs the program `run` of a folder on a machine whose KVM nests: `nested-machine FOLDER SECONDS`. Ends with its exit code.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use images::nested::NestedMachine;

fn main() -> Result<ExitCode> {
    const USAGE: &str = "usage: nested-machine FOLDER SECONDS";
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context(USAGE)?;
    let limit_s = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .context(USAGE)?;
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.elab/images");
    let machine = NestedMachine::build(&cache, &|line| eprintln!("{line}"))?;
    let code = machine.run(Path::new(&folder), limit_s, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
