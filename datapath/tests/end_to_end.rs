//! The engine against a model client, frame by frame, in memory and in virtual time.

#![allow(unreachable_pub)]

mod cases;
#[allow(dead_code, reason = "the simulator uses the rest")]
mod model;
