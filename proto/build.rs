//! Compiles `muster/v1/*.proto` with protox (pure Rust: no protoc needed) and keeps the descriptor set for reflection.

use prost::Message;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 10] = [
        "muster/v1/common.proto",
        "muster/v1/agent_link.proto",
        "muster/v1/failover.proto",
        "muster/v1/finding.proto",
        "muster/v1/fleet.proto",
        "muster/v1/incident.proto",
        "muster/v1/local.proto",
        "muster/v1/paging.proto",
        "muster/v1/replication.proto",
        "muster/v1/silence.proto",
    ];
    println!("cargo:rerun-if-changed=muster");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("muster.fds"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Without: an rpc named Connect clashes with the generated `connect` constructor. We make channels ourselves.
        .build_transport(false)
        .bytes(".")
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
