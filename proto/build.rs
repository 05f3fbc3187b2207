//! Compiles the contract: `.proto` → descriptors → gRPC code, JSON code and the codec table.
//! protox does it in Rust: no system protoc is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor};

const FILES: &[&str] = &[
    "google/api/annotations.proto",
    "google/api/httpbody.proto",
    "tollgate/common/v1/policy.proto",
    "tollgate/common/v1/page.proto",
    "tollgate/auth/v1/auth.proto",
    "tollgate/auth/v1/session.proto",
    "tollgate/auth/v1/second_factor.proto",
    "tollgate/auth/v1/access_token.proto",
    "tollgate/auth/v1/device.proto",
    "tollgate/auth/v1/provider.proto",
    "tollgate/auth/v1/audit.proto",
    "tollgate/auth/v1/internal.proto",
    "tollgate/project/v1/organization.proto",
    "tollgate/project/v1/project.proto",
    "tollgate/project/v1/api_model.proto",
    "tollgate/project/v1/api.proto",
    "tollgate/project/v1/deployment.proto",
    "tollgate/gateway/v1/gateway.proto",
    "tollgate/gateway/v1/link.proto",
    "tollgate/gateway/v1/internal.proto",
    "tollgate/gateway/v1/operations.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=google");
    println!("cargo:rerun-if-changed=tollgate");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    // The bytes keep extension options (policies, HTTP rules), which prost's own types drop.
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let descriptors = compiler.encode_file_descriptor_set();
    fs::write(out.join("descriptors.bin"), &descriptors)?;
    // Every process keeps these; comments and where they stand would take 1.7 MB of each.
    compiler.include_source_info(false);
    fs::write(out.join("bare_descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let set = prost_reflect::prost_types::FileDescriptorSet::decode(descriptors.as_slice())?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .emit_rerun_if_changed(false)
        // Transport-specific `connect` constructors are not needed: channels come from service-kit.
        .build_transport(false)
        .codec_path("crate::buffers::SmallBuffers")
        .extern_path(".google.protobuf.Timestamp", "crate::time::Timestamp")
        .extern_path(".google.protobuf.Struct", "::pbjson_types::Struct")
        // One deployment frame is far larger than a heartbeat; boxing costs more than it saves here.
        .type_attribute(
            "tollgate.gateway.v1.GatewayFrame.frame",
            "#[allow(clippy::large_enum_variant, reason = \"frames are short-lived\")]",
        )
        .compile_fds(set)?;

    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .out_dir(&out)
        .emit_fields()
        .build(&[".tollgate", ".google.api.HttpBody"])?;

    let pool = DescriptorPool::decode(descriptors.as_slice())?;
    fs::write(out.join("codec_table.rs"), codec_table(&pool))?;
    Ok(())
}

/// A `match` from a message's full name to its typed JSON codec, for every request and response.
fn codec_table(pool: &DescriptorPool) -> String {
    let mut names: Vec<MessageDescriptor> = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .flat_map(|method| [method.input(), method.output()])
        .filter(|message| !message.full_name().starts_with("google.protobuf."))
        .collect();
    names.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    names.dedup_by(|a, b| a.full_name() == b.full_name());

    let mut table = String::from("match name {\n");
    for message in names {
        let name = message.full_name();
        let path = name.replace('.', "::");
        table.push_str(&format!("    {name:?} => Some(Codec::of::<crate::{path}>()),\n"));
    }
    table.push_str("    _ => None,\n}\n");
    table
}
