//! What every fabric promises, as one battery of tests: run as it is, it tries soft on this machine; `guest` boots a
//! User-Mode Linux guest and runs this very program in it, over soft, siw and rxe.

#![cfg(feature = "verbs")]

mod addresses;
mod battery;
mod by_hand;
mod connections;
mod cut;
mod files;
mod guest;
mod interoperation;
mod judge;
mod killed;
#[path = "../../../tests/it/meddling.rs"]
mod meddling;
mod replies;
mod support;
