//! Links the image with its own script: a fixed address and the headers that boot loaders look for.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rustc-link-arg-bins=-T{folder}/link.ld");
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=src/boot/entry.s");
    println!("cargo:rerun-if-changed=src/interrupts/stubs.s");
}
