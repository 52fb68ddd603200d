//! Hands the linker the layout of the program as it is shipped: what is used stands together (`layout/used.ld`).

use std::env::var;

/// What `[profile.agent]` sets, and no other profile: the rest is built for other ends, and quickly.
const OPT_LEVEL_SHIPPED: &str = "z";

fn main() {
    println!("cargo::rerun-if-changed=layout/used.ld");
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found == value);
    // The script is for linkers that know `INSERT`: ld.lld and GNU ld.
    if is("OPT_LEVEL", OPT_LEVEL_SHIPPED) && is("CARGO_CFG_TARGET_OS", "linux") {
        let folder = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/layout/used.ld");
    }
}
