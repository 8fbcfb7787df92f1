//! The engine against a model client, frame by frame, in memory and in virtual time.

#![allow(unreachable_pub)]

mod cases;
mod model;
