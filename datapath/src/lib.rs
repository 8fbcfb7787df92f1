//! The datapath of `mpxd`: wire formats, TCP, Multipath TCP, the engine that joins them, and the
//! ports that bring frames.
//!
//! Everything below [`engine`] is sans-IO: time, entropy and frames come in as arguments.
//! Dependencies point one way: `wire <- tcp <- mptcp <- engine <- worker -> port`.

pub mod app;
pub mod buffer;
pub mod crypto;
pub mod engine;
pub mod memory;
pub mod mesh;
pub mod metrics;
pub mod mptcp;
pub mod port;
pub mod rand;
pub mod seq;
pub mod steering;
pub mod tcp;
pub mod time;
pub mod wheel;
pub mod wire;
pub mod worker;
