//! Load, run, observe.
