//! Attacks on a real rdma-httpd by clients made by hand, and on our client by servers made by hand. After each nothing is
//! corrupted, leaked or left registered, and whoever was attacked still serves (`docs/protocol.md`, section 6).

mod addresses;
mod claims;
mod hand;
mod in_place;
mod late;
mod lengths;
mod limits;
mod slow;
mod stags;
mod vanish;
mod victim;
