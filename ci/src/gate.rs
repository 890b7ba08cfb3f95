//! Real runs for the benchmark of the gate (`scenarios/benches/gate.rs`): of one image twice, as when nothing has changed, and of one
//! that takes 30 ms more for its stop, interleaved so that what drifts falls on all alike.

use std::path::Path;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::cargo::step;
use crate::dist;
use crate::setup::IMAGE_TARGET;

/// The name of each arm's image, and the file its runs go to.
const ARMS: [(&str, &str); 3] = [
    ("base", "demo-runs.jsonl"),
    ("same", "demo-runs.jsonl"),
    ("longer-stop", "demo-runs-longer-stop.jsonl"),
];
/// Short, for it stands in each run's command.
const IMAGES: &str = ".elab/gate";
const BENCHES: &str = "scenarios/benches";

/// Makes so many runs of each arm, in place of those that are there.
pub fn collect(sh: &Shell, runs: u32) -> Result<()> {
    step("building");
    let target = dist::target_folder(&dist::metadata(sh)?)?;
    cmd!(sh, "cargo build --quiet --locked --release --package elab").run()?;
    let elab = target.join("release/elab");
    sh.create_dir(IMAGES)?;
    for (arm, _) in ARMS {
        let features: &[&str] = if arm == "longer-stop" {
            &["--features", arm]
        } else {
            &[]
        };
        cmd!(
            sh,
            "cargo build --quiet --locked --release --package hvcore --target {IMAGE_TARGET} {features...}"
        )
        .run()?;
        let built = target.join(IMAGE_TARGET).join("release/hvcore");
        sh.copy_file(built, image(arm))?;
    }
    for (_, file) in ARMS {
        sh.remove_path(Path::new(BENCHES).join(file))?;
    }
    for run in 0..runs {
        step(&format!("{} of {runs} runs of each image", run + 1));
        let mut order = ARMS;
        order.rotate_left(run as usize % ARMS.len());
        if run % 2 == 1 {
            order.reverse();
        }
        let seed = (1 + run).to_string();
        for (arm, file) in order {
            let (image, file) = (image(arm), Path::new(BENCHES).join(file));
            // Figures beyond the limits of a scenario are what is asked for; a run that leaves none shows in the number of lines.
            cmd!(
                sh,
                "{elab} run demo -n 1 --seed {seed} --fast-boot --image {image} --history {file}"
            )
            .quiet()
            .ignore_stdout()
            .ignore_stderr()
            .ignore_status()
            .run()?;
        }
    }
    sh.remove_path(IMAGES)?;
    for (file, wanted) in [(ARMS[0].1, runs * 2), (ARMS[2].1, runs)] {
        let path = Path::new(BENCHES).join(file);
        let text = sh
            .read_file(&path)
            .with_context(|| format!("no run left its figures in {}", path.display()))?;
        println!(
            "{}: {} runs of {wanted}",
            path.display(),
            text.lines().count()
        );
    }
    cmd!(
        sh,
        "cargo bench --quiet --locked --package scenarios --bench gate"
    )
    .run()?;
    Ok(())
}

fn image(arm: &str) -> String {
    format!("{IMAGES}/{arm}.elf")
}
