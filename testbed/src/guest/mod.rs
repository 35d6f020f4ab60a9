//! Where the agent runs: on this machine's kernel, later in a UML or QEMU guest.
