//! The engine behind the socket calls that the packetdrill tool makes: a shared object that the
//! tool loads with `--so_filename`, and that `LD_PRELOAD` puts before its own `getsockopt`.
//!
//! Time is virtual. It stands still but where the tool waits, and then goes straight to the next
//! timer: what the engine sends carries the very microsecond at which it was due.

#![cfg(feature = "shim")]

mod ffi;
mod sockets;
mod stack;
