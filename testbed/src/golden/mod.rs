//! Observations against what is expected: normalise, compare, accept.
