//! The names of work completions' statuses (`enum ibv_wc_status` of infiniband/verbs.h).

/// Success.
pub(super) const SUCCESS: u32 = 0;
/// The work was thrown away, since the queue pair had failed or was disconnected.
pub(super) const FLUSHED: u32 = 5;

const NAMES: [&str; 24] = [
    "IBV_WC_SUCCESS",
    "IBV_WC_LOC_LEN_ERR",
    "IBV_WC_LOC_QP_OP_ERR",
    "IBV_WC_LOC_EEC_OP_ERR",
    "IBV_WC_LOC_PROT_ERR",
    "IBV_WC_WR_FLUSH_ERR",
    "IBV_WC_MW_BIND_ERR",
    "IBV_WC_BAD_RESP_ERR",
    "IBV_WC_LOC_ACCESS_ERR",
    "IBV_WC_REM_INV_REQ_ERR",
    "IBV_WC_REM_ACCESS_ERR",
    "IBV_WC_REM_OP_ERR",
    "IBV_WC_RETRY_EXC_ERR",
    "IBV_WC_RNR_RETRY_EXC_ERR",
    "IBV_WC_LOC_RDD_VIOL_ERR",
    "IBV_WC_REM_INV_RD_REQ_ERR",
    "IBV_WC_REM_ABORT_ERR",
    "IBV_WC_INV_EECN_ERR",
    "IBV_WC_INV_EEC_STATE_ERR",
    "IBV_WC_FATAL_ERR",
    "IBV_WC_RESP_TIMEOUT_ERR",
    "IBV_WC_GENERAL_ERR",
    "IBV_WC_TM_ERR",
    "IBV_WC_TM_RNDV_INCOMPLETE",
];

/// A status's name.
pub(super) fn name(status: u32) -> &'static str {
    usize::try_from(status).ok().and_then(|at| NAMES.get(at)).copied().unwrap_or("an unknown status")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdma_sys::ibv_wc_status as s;

    #[test]
    fn the_names_are_those_of_the_header() {
        for (status, expected) in [
            (s::IBV_WC_SUCCESS, "IBV_WC_SUCCESS"),
            (s::IBV_WC_WR_FLUSH_ERR, "IBV_WC_WR_FLUSH_ERR"),
            (s::IBV_WC_REM_ACCESS_ERR, "IBV_WC_REM_ACCESS_ERR"),
            (s::IBV_WC_RETRY_EXC_ERR, "IBV_WC_RETRY_EXC_ERR"),
            (s::IBV_WC_TM_RNDV_INCOMPLETE, "IBV_WC_TM_RNDV_INCOMPLETE"),
            (99, "an unknown status"),
        ] {
            assert_eq!(name(status), expected);
        }
        assert_eq!((s::IBV_WC_SUCCESS, s::IBV_WC_WR_FLUSH_ERR), (SUCCESS, FLUSHED));
    }
}
