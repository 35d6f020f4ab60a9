//! How bytes get registered: the strategies `static`, `dynamic`, `cache` and `sendfile`.
