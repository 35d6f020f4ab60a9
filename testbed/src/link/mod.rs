//! The user-space link emulator, and netem where the kernel has it.
