//! The words on the wire: what the rooms say to each other and to clients.
//!
//! Nothing here does I/O, and nothing here knows another room.

pub mod codec;
pub mod fence;
pub mod gvk;
pub mod meta;
pub mod object;
pub mod quantity;
pub mod selector;
pub mod status;

/// The etcd v3 wire protocol.
pub mod etcd {
    /// Services and messages of the client port.
    #[allow(clippy::all, missing_docs, unreachable_pub)]
    mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub use etcdserverpb::*;

    pub use super::{authpb, mvccpb};

    /// Locks that the server keeps.
    #[allow(clippy::all, missing_docs, unreachable_pub)]
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }

    /// Elections that the server holds.
    #[allow(clippy::all, missing_docs, unreachable_pub)]
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }

    /// An encoded `FileDescriptorSet` of every service of the client port.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.bin"));
}

/// Users and roles of the etcd v3 wire protocol.
#[allow(clippy::all, missing_docs, unreachable_pub)]
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// Keys, values and events of the etcd v3 wire protocol.
#[allow(clippy::all, missing_docs, unreachable_pub)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// The gRPC health check.
#[allow(clippy::all, missing_docs, unreachable_pub)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// What members of the store say to each other.
#[allow(clippy::all, missing_docs, unreachable_pub)]
pub mod raft {
    tonic::include_proto!("quorate.raft.v1");
}

/// The Container Runtime Interface, `runtime.v1`: how the node agent speaks to containerd.
#[allow(clippy::all, missing_docs, unreachable_pub)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}
