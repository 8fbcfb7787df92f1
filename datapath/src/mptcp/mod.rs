//! Multipath TCP of one connection (RFC 8684; what differs in RFC 6824 is in `version`): a stream
//! over one or several subflows. A plain TCP
//! connection is the same thing with one subflow under an infinite mapping.
//!
//! [`Connection`] is split by what happens to it: [`receive`] takes segments in and hands their parts
//! to `handshake`, `options`, [`signal`] and `text`; [`schedule`] decides what goes where and when; [`transmit`]
//! writes frames, for which [`path_mtu`] finds the size; [`fallback`] makes plain TCP of it, `survival` bears
//! that it has no subflow, and [`close`] ends things.

mod active_open;
pub mod address;
pub mod autotune;
pub mod close;
pub mod connection;
pub mod data;
pub mod fallback;
mod handshake;
mod options;
pub mod path_mtu;
pub mod receive;
pub mod schedule;
pub mod signal;
pub mod subflow;
mod survival;
mod text;
pub mod transmit;
mod version;

pub use connection::{Connection, Mode};
pub use subflow::{Handshake, Subflow};
pub use version::{Version, Versions};
