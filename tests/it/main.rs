//! Integration tests of the system, as one binary: one file an area.

mod support;
mod tshark;
