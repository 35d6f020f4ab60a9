//! Two connections in one process.
