//! Multipath TCP of one connection (RFC 8684): a stream over one or several subflows. A plain TCP
//! connection is the same thing with one subflow under an infinite mapping.
//!
//! [`Connection`] is split by direction: [`receive`] takes segments in, [`transmit`] writes frames,
//! [`schedule`] decides what goes where and when, [`close`] ends things.

pub mod close;
pub mod connection;
pub mod data;
pub mod receive;
pub mod schedule;
pub mod subflow;
pub mod transmit;

pub use connection::{Connection, Mode};
pub use subflow::{Handshake, Subflow};
