//! All checks with mutated seeds, for a few seconds: a little fuzzing in every test run, on the stable toolchain.
//!
//! `FUZZ_SECONDS` gives each check more time, `FUZZ_SEED` another course. An input that a check does not survive is kept in
//! the target folder and named; as a file in `corpus/` it becomes a test for ever.

#![allow(missing_docs)]

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fuzz::{CHECKS, Check};

/// Longest input that is made.
const LENGTH_MAX: usize = 4096;
/// What mutations like to write: where numbers wrap, and sizes and flags that mean something.
const NUMBERS: [u64; 12] = [
    0,
    1,
    7,
    8,
    0x10,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// The number in an environment variable.
fn setting(name: &str, usual: u64) -> u64 {
    env::var(name).map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

/// Changes an input a little, or joins it with another.
fn mutate(rng: &mut fastrand::Rng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(0..=input.len());
        match rng.u8(0..7) {
            0 if at < input.len() => input[at] ^= 1 << rng.u8(0..8),
            1 if at < input.len() => input[at] = rng.u8(..),
            2 => {
                let width = 1 << rng.usize(0..4);
                let number = NUMBERS[rng.usize(0..NUMBERS.len())].to_le_bytes();
                for (byte, new) in input[at..].iter_mut().zip(&number[..width]) {
                    *byte = *new;
                }
            }
            3 => {
                let end = (at + rng.usize(0..32)).min(input.len());
                input.drain(at..end);
            }
            4 => {
                let new: Vec<u8> = (0..rng.usize(1..32)).map(|_| rng.u8(..)).collect();
                input.splice(at..at, new);
            }
            5 => {
                let end = (at + rng.usize(0..64)).min(input.len());
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                input.truncate(at);
                input.extend_from_slice(&other[rng.usize(0..=other.len())..]);
            }
        }
    }
    input.truncate(LENGTH_MAX);
}

fn run(name: &str, check: Check, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| check(input))).is_err() {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.bin"));
        fs::write(&file, input).unwrap();
        panic!(
            "{name} did not survive the {} bytes in {}",
            input.len(),
            file.display()
        );
    }
}

fn survives_mutations(name: &str) {
    let (_, check) = *CHECKS.iter().find(|(check, _)| *check == name).unwrap();
    let seeds = corpus(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    for seed in &seeds {
        run(name, check, seed);
    }
    let mut rng = fastrand::Rng::with_seed(setting("FUZZ_SEED", 1));
    let end = Instant::now() + Duration::from_secs(setting("FUZZ_SECONDS", 2));
    // What came of seeds is a seed too, so that inputs wander away from them.
    let mut pool = seeds;
    let mut runs = 0_u64;
    while Instant::now() < end {
        let mut input = pool[rng.usize(0..pool.len())].clone();
        let other = rng.usize(0..pool.len());
        mutate(&mut rng, &mut input, &pool[other]);
        run(name, check, &input);
        runs += 1;
        match pool.len() {
            ..256 => pool.push(input),
            _ if rng.u8(..) < 8 => {
                let place = rng.usize(0..pool.len());
                pool[place] = input;
            }
            _ => {}
        }
    }
    println!("{name}: {runs} inputs");
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test] fn $name() { survives_mutations(stringify!($name)); })*

        #[test]
        fn no_check_is_left_out() {
            let tested = [$(stringify!($name)),*];
            let all = CHECKS.map(|(name, _)| name);
            assert_eq!(tested, all);
        }
    };
}

tests! { boot_information guest host_protocol instruction migration rpc saved_state virtual_disk }
