//! What tshark must be told to read iWARP; for the testbed's tests, too.

/// Without these tshark takes short Sends for other protocols, ports for other protocols' ports, and a connection that
/// began as HTTP for HTTP to its end.
pub(crate) const DISSECTION: [&str; 14] = [
    "-o",
    "tcp.desegment_tcp_streams:TRUE",
    "-o",
    "tcp.reassemble_out_of_order:TRUE",
    "-o",
    "tcp.try_heuristic_first:TRUE",
    "--enable-heuristic",
    "iwarp_mpa_tcp",
    "--disable-heuristic",
    "rpcrdma_iwarp",
    "--disable-heuristic",
    "smb_direct_iwarp",
    "--disable-protocol",
    "http",
];
