//! What the small machine is made of: Debian's kernel and busybox, downloaded and unpacked but not installed, and the test programs
//! `fsx` and `pjdfstest`, built from their crates. All of it is kept with cargo's other products, so it is made once.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Programs, their versions, and where they come from: the registry that cargo uses.
const TOOLS: [&str; 2] = ["fsx@0.3.2", "pjdfstest@0.2.2"];
/// For which no libraries are needed at run time.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the parts are.
pub struct System {
    pub kernel: PathBuf,
    pub modules: PathBuf,
    pub busybox: PathBuf,
    pub tools: PathBuf,
}

impl System {
    /// Makes what is not there yet.
    pub fn get() -> Self {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-client");
        std::fs::create_dir_all(&cache).expect("directory");
        let system = cache.join("system");
        if !system.is_dir() {
            unpack(&cache, &system);
        }
        let tools = cache.join("tools");
        if !tools.join("bin/pjdfstest").is_file() {
            build_tools(&cache, &tools);
        }
        let versions = std::fs::read_dir(system.join("lib/modules")).expect("unpacked");
        let version = versions.flatten().next().expect("one kernel").file_name();
        let kernel = format!("vmlinuz-{}", version.to_string_lossy());
        Self {
            kernel: system.join("boot").join(kernel),
            modules: system.join("lib/modules").join(version),
            busybox: system.join("bin/busybox"),
            tools: tools.join("bin"),
        }
    }
}

/// `apt` in a state of its own: the machine's sources and keys are used, its packages are left alone, and no root is needed.
fn unpack(cache: &Path, system: &Path) {
    const SCRIPT: &str = r#"set -e
        rm -rf apt new; mkdir -p apt/lists/partial apt/cache/archives/partial new; : > apt/status
        cat > apt/apt.conf <<END
Dir::State "$PWD/apt"; Dir::State::lists "$PWD/apt/lists"; Dir::State::status "$PWD/apt/status"; Dir::Cache "$PWD/apt/cache";
APT::Architecture "amd64"; APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "3";
END
        export APT_CONFIG="$PWD/apt/apt.conf" LC_ALL=C
        apt-get -qq update
        kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
        cd apt; apt-get -qq download "$kernel" busybox-static; cd ..
        for deb in apt/*.deb; do dpkg-deb -x "$deb" new; done
        version=$(basename new/lib/modules/*)
        depmod -b new "$version" 2>/dev/null || new/bin/busybox depmod -b "$PWD/new" "$version"
        rm -rf apt"#;
    let mut sh = Command::new("sh");
    succeed(
        sh.args(["-c", SCRIPT]).current_dir(cache),
        "cannot fetch Debian's kernel and busybox",
    );
    std::fs::rename(cache.join("new"), system).expect("rename");
}

fn build_tools(cache: &Path, tools: &Path) {
    let mut cargo = Command::new("cargo");
    cargo
        .args([
            "install", "--quiet", "--locked", "--target", TARGET, "--root",
        ])
        .arg(tools)
        .args(TOOLS)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", cache.join("build"))
        .current_dir(cache);
    succeed(&mut cargo, "cannot build fsx and pjdfstest");
    std::fs::remove_dir_all(cache.join("build")).expect("built there");
}

fn succeed(command: &mut Command, what: &str) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        output.status.success(),
        "{what}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
