//! Bytes that nobody sane would send, to everything that takes bytes from outside: seeds, changed at random. A bounded number with
//! fixed seeds here, on the stable compiler; `nfs-sr/fuzz` goes on from there with coverage as its guide.

mod targets;

use std::time::{Duration, Instant};

use fastrand::Rng;
use rstest::rstest;

/// Numbers that sit at the edges of what fields hold.
const EDGES: [u32; 10] = [
    0,
    1,
    2,
    3,
    255,
    4096,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    u32::MAX,
];

fn change(random: &mut Rng, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..random.usize(1..5) {
        let at = random.usize(0..input.len().max(1)).min(input.len());
        match random.u8(0..8) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(0..8),
            1 if at < input.len() => input[at] = random.u8(..),
            // Fields are words at multiples of four, seen from the mark of a record or the start of a structure.
            2 | 3 if at + 4 <= input.len() => {
                let at = at / 4 * 4 + usize::from(random.u8(0..4) == 0);
                if let Some(word) = input.get_mut(at..at + 4) {
                    word.copy_from_slice(&EDGES[random.usize(0..EDGES.len())].to_be_bytes());
                }
            }
            4 => input.truncate(at),
            5 => {
                let piece: Vec<u8> = (0..random.usize(0..64)).map(|_| random.u8(..)).collect();
                input.splice(at..at, piece);
            }
            6 => {
                let other = &others[random.usize(0..others.len())];
                let from = random.usize(0..other.len().max(1)).min(other.len());
                let to = (from + random.usize(0..200)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let end = (at + random.usize(0..64)).min(input.len());
                input.drain(at..end);
            }
        }
    }
}

/// How long each target is tried for. `NFS_FUZZ_SECONDS` says otherwise.
fn patience() -> Duration {
    let seconds = std::env::var("NFS_FUZZ_SECONDS");
    let seconds = seconds.ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

#[rstest]
fn no_bytes_break_it(
    #[values(
        "rpc",
        "messages",
        "server",
        "vhd",
        "repository",
        "journals",
        "heartbeats"
    )]
    name: &str,
) {
    let (_, target) = targets::TARGETS
        .into_iter()
        .find(|(known, _)| *known == name)
        .expect("a target");
    let seeds = targets::seeds(name);
    seeds.iter().for_each(|seed| target(seed));
    // For the fuzzers, which would take long to find them.
    if let Some(corpus) = std::env::var_os("NFS_FUZZ_CORPUS") {
        let corpus = std::path::Path::new(&corpus).join(name);
        std::fs::create_dir_all(&corpus).expect("directory");
        for (i, seed) in seeds.iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{i}")), seed).expect("write");
        }
    }
    let (begun, mut tried) = (Instant::now(), 0u64);
    while begun.elapsed() < patience() && (tried < 50_000 || patience() > Duration::from_secs(5)) {
        let mut random = Rng::with_seed(tried);
        let mut input = seeds[random.usize(0..seeds.len())].clone();
        change(&mut random, &mut input, &seeds);
        let done = std::panic::catch_unwind(|| target(&input));
        assert!(
            done.is_ok(),
            "{name}, input {tried}: {:02x?}",
            &input[..input.len().min(4096)]
        );
        tried += 1;
    }
    println!("{name}: {tried} inputs");
    assert!(tried >= 200, "{name}: only {tried} inputs");
}
