//! Links the unwinder into `platctrl-shim` instead of loading `libgcc_s.so`.
//!
//! There is a shim for each program on a machine, so its private memory counts: a shared library
//! costs each process the pages that its loading writes to, and for this one they are a
//! twentieth of the shim. `-static-libgcc` has no say where a crate names the library itself, as
//! Rust's standard library does; a linker script of that name, found first, has.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return Ok(());
    }
    let dir = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    fs::write(
        Path::new(&dir).join("libgcc_s.so"),
        "INPUT(-lgcc_eh -lgcc)\n",
    )?;
    println!(
        "cargo::rustc-link-arg-bin=platctrl-shim=-L{}",
        Path::new(&dir).display()
    );
    Ok(())
}
