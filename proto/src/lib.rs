//! The contract of Tollgate and nothing else: generated gRPC and JSON code, the descriptors, and the
//! policies read from them.
//!
//! Everything that a front door needs to know of an RPC (who may call it, where it lies in REST, how
//! long it may take) is an option in the `.proto` files. This crate never opens a socket.

pub mod buffers;
pub mod codec;
pub mod docs;
pub mod policy;
pub mod time;

pub use pbjson_types::{ListValue, Struct, Value, value};
pub use policy::{Access, Contract, HttpBinding, MethodPolicy, Proof};

/// Every file of the contract, compiled, with comments and extension options.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The same without comments.
const BARE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bare_descriptors.bin"));

#[allow(missing_docs, reason = "generated")]
#[allow(
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code is not written to the house's lints"
)]
mod generated {
    pub mod google {
        pub mod api {
            include!(concat!(env!("OUT_DIR"), "/google.api.rs"));
            include!(concat!(env!("OUT_DIR"), "/google.api.serde.rs"));
        }
    }
    pub mod tollgate {
        pub mod common {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/tollgate.common.v1.rs"));
                include!(concat!(env!("OUT_DIR"), "/tollgate.common.v1.serde.rs"));
            }
        }
        pub mod auth {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/tollgate.auth.v1.rs"));
                include!(concat!(env!("OUT_DIR"), "/tollgate.auth.v1.serde.rs"));
            }
        }
        pub mod project {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/tollgate.project.v1.rs"));
                include!(concat!(env!("OUT_DIR"), "/tollgate.project.v1.serde.rs"));
            }
        }
        pub mod gateway {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/tollgate.gateway.v1.rs"));
                include!(concat!(env!("OUT_DIR"), "/tollgate.gateway.v1.serde.rs"));
            }
        }
    }
}

pub use generated::tollgate::{
    auth::v1 as auth, common::v1 as common, gateway::v1 as gateway, project::v1 as project,
};
pub use generated::{google, tollgate};
