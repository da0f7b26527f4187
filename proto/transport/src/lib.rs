//! How rooms reach each other: TLS identities, certificate authorities, retry pacing.

pub mod authority;
pub mod backoff;
pub mod channel;
pub mod gather;
pub mod loopback;
pub mod tls;
