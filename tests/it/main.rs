//! Integration tests of the system, as one binary, one file an area: the two programs and the library against real peers,
//! which are each other, curl, Python's and nginx's servers, tshark, and peers made by hand that break the rules.

mod again;
mod broken;
mod by_hand;
mod changed;
mod cli;
mod crowd;
mod curl;
mod examples;
mod flows;
mod in_place;
mod kept;
mod meddling;
mod operations;
mod plain_servers;
mod pool;
mod program;
mod rdma;
mod safety;
mod sealed;
mod service;
mod stepping;
mod steps;
mod support;
mod tshark;
mod unread;
