//! What a user meets: the program `testbed`, run for real. One file an area.

mod bench;
mod doctor;
mod lab;
mod topology;
