//! What a user meets: the program `testbed`, run for real. One file an area.

mod agent;
mod bench;
mod cli;
mod doctor;
mod exec;
mod guest;
mod judges;
mod kernel;
mod lab;
mod link;
mod run;
mod shell;
mod support;
mod topology;
mod tshark;
mod userns;
mod virtual_clock;
