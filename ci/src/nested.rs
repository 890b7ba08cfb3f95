//! A lab whose hosts run under KVM, as on a runner with nested virtualization, where there is neither: the program, its images and
//! `ci/nested` go to a machine that emulates such a runner's CPU (`images::nested`). What happens there is `ci/nested/run`.

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::cargo::step;
use crate::dist;

/// It takes some minutes; one that hangs is ended.
const LIMIT_S: &str = "1200";

/// Builds everything and runs it there.
pub fn run(sh: &Shell) -> Result<()> {
    let target = dist::target_folder(&dist::metadata(sh)?)?;
    let folder = target.join("nested");
    sh.remove_path(&folder)?;
    sh.create_dir(&folder)?;
    dist::program_and_images(sh, &target, &folder)?;
    for file in sh.read_dir("ci/nested")? {
        sh.copy_file(file, &folder)?;
    }
    step(
        "a lab under nested KVM, on an emulated CPU: three machines deep, so no figure of it means anything",
    );
    let machine = target.join("release/nested-machine");
    cmd!(sh, "{machine} {folder} {LIMIT_S}").run()?;
    Ok(sh.remove_path(&folder)?)
}

/// Whether this share of a campaign runs it: one does.
pub fn is_due(arguments: &[String]) -> bool {
    let shard = arguments
        .iter()
        .position(|word| word == "--shard")
        .and_then(|place| arguments.get(place + 1));
    shard.is_none_or(|shard| shard.starts_with("1/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_share_of_a_night_runs_it() {
        let due = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            is_due(&words)
        };
        assert!(due("") && due("--repetitions 5") && due("--shard 1/3 --repetitions 5"));
        assert!(!due("--shard 2/3") && !due("-n 2 --shard 3/3"));
    }
}
