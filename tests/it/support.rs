//! What the areas share.

/// Says that a test cannot run here, and why; where everything is required to run that is a failure.
pub(crate) fn skip(name: &str, reason: &str) {
    assert!(std::env::var_os("TESTBED_REQUIRE_ALL").is_none(), "{name} cannot run here: {reason}");
    println!("SKIP {name}: {reason}");
}
