//! The workflows of continuous integration: their form, who may do what, and that what they call is there.
//!
//! The forms below are the parts of GitHub's and GitLab's schemas that are used here. A key that is none of them is refused, because
//! either service ignores or refuses it only when it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_yaml_ng::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// docs.github.com, "Workflow syntax for GitHub Actions".
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Workflow {
    name: String,
    on: BTreeMap<String, Value>,
    permissions: BTreeMap<String, String>,
    #[serde(default, rename = "concurrency")]
    _concurrency: Option<Value>,
    #[serde(default, rename = "env")]
    _env: BTreeMap<String, String>,
    jobs: BTreeMap<String, Job>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Job {
    #[serde(default, rename = "name")]
    _name: Option<String>,
    runs_on: String,
    timeout_minutes: u32,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default, rename = "if")]
    _condition: Option<String>,
    #[serde(default)]
    strategy: Strategy,
    steps: Vec<Step>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Strategy {
    #[serde(default, rename = "fail-fast")]
    _fail_fast: Option<bool>,
    #[serde(default)]
    matrix: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Step {
    #[serde(default, rename = "if")]
    _condition: Option<String>,
    #[serde(default)]
    uses: Option<String>,
    #[serde(default)]
    run: Option<String>,
    #[serde(default, rename = "with")]
    _with: BTreeMap<String, Value>,
    #[serde(default, rename = "env")]
    _env: BTreeMap<String, String>,
}

/// docs.gitlab.com, "CI/CD YAML syntax reference". What is none of its own keys is a job.
#[derive(Debug, Deserialize)]
struct GitLab {
    stages: Vec<String>,
    default: Value,
    variables: BTreeMap<String, String>,
    #[serde(flatten)]
    jobs: BTreeMap<String, GitLabJob>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLabJob {
    stage: String,
    script: Vec<String>,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    parallel: Option<Value>,
    #[serde(default)]
    rules: Vec<BTreeMap<String, String>>,
    #[serde(default)]
    artifacts: Option<Value>,
}

fn workflows() -> Vec<(String, String, Workflow)> {
    let folder = root().join(".github/workflows");
    let mut all: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let workflow = serde_yaml_ng::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (name, text, workflow)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(all.len() >= 2);
    all
}

#[test]
fn jobs_follow_one_another_end_and_may_only_read() {
    for (file, _, workflow) in workflows() {
        assert!(
            !workflow.name.is_empty() && !workflow.on.is_empty(),
            "{file}"
        );
        let only_reading = workflow.permissions.values().all(|may| may == "read");
        assert!(only_reading && !workflow.permissions.is_empty(), "{file}");
        for (name, job) in &workflow.jobs {
            for before in &job.needs {
                assert!(
                    workflow.jobs.contains_key(before),
                    "{file}: {name} needs {before}"
                );
            }
            // GitHub ends jobs after 360 minutes.
            assert!((1..360).contains(&job.timeout_minutes), "{file}: {name}");
            assert!(
                !job.runs_on.contains("latest"),
                "{file}: {name}: a runner of one version"
            );
            for step in &job.steps {
                assert!(
                    step.uses.is_some() != step.run.is_some(),
                    "{file}: {name}: {step:?}"
                );
                if let Some(action) = &step.uses {
                    let version = action.split_once('@').map(|(_, version)| version);
                    assert!(
                        version.is_some_and(|version| version.starts_with('v')),
                        "{action}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_a_step_refers_to_is_there() {
    for (file, text, workflow) in workflows() {
        for (name, job) in &workflow.jobs {
            let one =
                serde_yaml_ng::from_str::<Value>(&text).unwrap()["jobs"][name.as_str()].clone();
            let one = serde_yaml_ng::to_string(&one).unwrap();
            for part in one.split("matrix.").skip(1) {
                let word: String = part
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                assert!(
                    job.strategy.matrix.contains_key(&word),
                    "{file}: {name}: matrix.{word}"
                );
            }
            for run in job.steps.iter().filter_map(|step| step.run.as_deref()) {
                // What comes from outside reaches a shell only as a variable, or its author could write commands.
                assert!(!run.contains("${{"), "{file}: {name}: {run}");
                callable(run);
            }
        }
    }
}

#[test]
fn the_gitlab_pipeline_calls_the_same() {
    let text = std::fs::read_to_string(root().join("ci/gitlab.yml")).unwrap();
    let pipeline: GitLab = serde_yaml_ng::from_str(&text).unwrap();
    assert!(pipeline.default.is_mapping() && !pipeline.variables.is_empty());
    for (name, job) in &pipeline.jobs {
        assert!(pipeline.stages.contains(&job.stage), "{name}");
        for before in &job.needs {
            assert!(pipeline.jobs.contains_key(before), "{name} needs {before}");
        }
        for line in &job.script {
            callable(line);
        }
        let bounded = job.timeout.is_some() || job.rules.is_empty();
        assert!(
            bounded && job.parallel.is_some() == text_of(job).contains("CI_NODE"),
            "{name}"
        );
        assert!(
            job.artifacts.is_some() || name == "quick",
            "{name} keeps what it found"
        );
    }
}

fn text_of(job: &GitLabJob) -> String {
    job.script.join("\n")
}

/// Each line is a command of ours that is there, and that takes its first words.
fn callable(script: &str) {
    for line in script.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            ["cargo", "xtask", "setup" | "dist"] => {}
            ["cargo", "xtask", "ci", set, ..] => {
                assert!(["quick", "full", "nightly"].contains(set), "{line}");
            }
            [program, ..] if program.starts_with("ci/") => {
                let path = root().join(program);
                let checked = Command::new("sh").arg("-n").arg(&path).status().unwrap();
                assert!(checked.success(), "{line}");
                use std::os::unix::fs::PermissionsExt;
                let mode = path.metadata().unwrap().permissions().mode();
                assert!(mode & 0o111 != 0, "{} can be run", path.display());
            }
            _ => panic!("a step calls only `cargo xtask` and programs of ci/: {line}"),
        }
    }
}

#[test]
fn a_set_that_is_none_is_wrong_usage() {
    for arguments in [&["ci"][..], &["ci", "weekly"], &["ci", "quick", "--shard"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("ci SET"));
    }
}

#[test]
fn a_machine_without_kvm_goes_on() {
    // As a runner without the device, or one whose user may not open it up, has it.
    let status = Command::new(root().join("ci/kvm-for-everyone"))
        .env("DEVICE", "/no/such/device")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_containerfile_sets_up_as_a_person_does() {
    let text = std::fs::read_to_string(root().join("ci/Containerfile")).unwrap();
    let instructions: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with(' ') && !line.is_empty())
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(instructions.first(), Some(&"FROM"));
    let known = ["FROM", "COPY", "RUN", "WORKDIR", "ENV", "USER"];
    for one in &instructions {
        assert!(known.contains(one), "{one}");
    }
    assert!(
        text.contains("cargo xtask setup"),
        "the one list of packages is the program's"
    );
}

/// Where GitHub's own linter is, it judges too; the forms above hold on every machine.
#[test]
fn actionlint_finds_nothing_where_it_is_installed() {
    match Command::new("actionlint").current_dir(root()).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}");
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
}

/// A bundle's container needs what the bundle says that it needs, and its steps can be read by a shell.
#[test]
fn the_containers_have_what_programs_ask_for() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let packages = |text: &str, after: &str| -> Vec<String> {
        let (_, list) = text.split_once(after).unwrap();
        let list = list.split(['\n', '&']).next().unwrap();
        list.split_whitespace().map(str::to_owned).collect()
    };
    let container = read("ci/bundle.Containerfile");
    assert_eq!(
        packages(&container, "--yes "),
        packages(&read("ci/src/dist.rs"), "sudo apt-get install ")
    );
    for text in [container, read("ci/Containerfile")] {
        let steps: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("RUN "))
            .collect();
        assert!(!steps.is_empty());
        for step in steps {
            let read = Command::new("sh").args(["-nc", step]).status().unwrap();
            assert!(read.success(), "{step}");
        }
    }
}

/// What the machine that nests runs: a program that a shell can read, and a scenario.
#[test]
fn the_lane_of_nested_virtualization_is_whole() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let program = root().join("ci/nested/run");
    let read_by_shell = Command::new("sh").arg("-n").arg(program).status().unwrap();
    assert!(read_by_shell.success());
    let program = read("ci/nested/run");
    assert!(program.contains("elab run move.toml"));
    // That it is right, `elab check` says in its own tests.
    assert!(read("ci/nested/move.toml").contains("migrate = "));
}

/// What a campaign's pods run, with a program in the place of elab that tells how it was called.
#[test]
fn each_pod_of_a_campaign_runs_its_own_share() {
    let text = std::fs::read_to_string(root().join("ci/kubernetes.yaml")).unwrap();
    let job: Value = serde_yaml_ng::from_str(&text).unwrap();
    let (spec, pod) = (&job["spec"], &job["spec"]["template"]["spec"]);
    assert_eq!(spec["completionMode"], "Indexed");
    assert_eq!(spec["backoffLimit"], 0, "nothing is tried again unseen");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let container = &pod["containers"][0];
    assert_eq!(
        container["securityContext"]["allowPrivilegeEscalation"],
        false
    );
    let shards = spec["completions"].as_u64().unwrap();
    let told = container["env"].as_sequence().unwrap();
    let told = told.iter().find(|one| one["name"] == "SHARDS").unwrap();
    assert_eq!(told["value"], shards.to_string().as_str());
    let folder = std::env::temp_dir().join(format!("elab-campaign-{}", std::process::id()));
    let script = container["args"][0].as_str().unwrap();
    for index in [0, shards - 1] {
        let output = Command::new("sh")
            .args(["-euc", script])
            .env("JOB_COMPLETION_INDEX", index.to_string())
            .env("SHARDS", shards.to_string())
            .env("CAMPAIGN", &folder)
            .env("ELAB", "/bin/echo")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let share = format!("--shard {}/{shards} ", index + 1);
        assert!(said.starts_with("run ") && said.contains(&share), "{said}");
        assert!(folder.join(format!("shard-{index}")).is_dir());
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
