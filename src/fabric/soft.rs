//! User-space iWARP over tokio: drives [`crate::iwarp`] with TCP sockets.
