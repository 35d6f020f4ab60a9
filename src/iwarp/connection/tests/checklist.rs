//! The conformance checklist: every rule that a peer can see has a test named after it, here or beside the code that
//! it is about. A number without a test, or a test that is not on the list, fails this one.

use std::collections::BTreeSet;
use std::path::Path;

/// The rules, by number. `check_NN_name` is the test.
#[rustfmt::skip]
const CHECKLIST: &[(u8, &str)] = &[
    (1, "mpa_req_key_exact_16_bytes"),
    (2, "mpa_req_parsed_from_any_fragmentation"),
    (3, "mpa_reserved_flag_bits_sent_zero_ignored_on_receive"),
    (4, "mpa_pd_length_over_512_closes"),
    (5, "mpa_pd_length_zero_means_no_data"),
    (6, "mpa_crc_on_if_either_side_sets_c"),
    (7, "mpa_crc_default_is_on"),
    (8, "mpa_marker_bit_in_request_governs_responder_tx"),
    (8, "mpa_marker_bit_in_reply_governs_initiator_tx"),
    (9, "mpa_no_markers_when_peer_m_is_zero"),
    (10, "mpa_marker_request_rejected_or_honoured"),
    (11, "mpa_r_bit_ignored_in_request"),
    (12, "mpa_reply_r_bit_surfaces_reject_with_private_data"),
    (13, "mpa_rev_unsupported_closes"),
    (14, "mpa_v2_responder_accepts_v1"),
    (15, "mpa_s1_answered_with_s1_and_s0_with_s0"),
    (16, "mpa_enhanced_header_layout_a_b_ird_c_d_ord"),
    (17, "mpa_flags_bcd_zero_and_ignored_when_a_zero"),
    (18, "mpa_responder_ord_not_above_initiator_ird"),
    (19, "mpa_initiator_ord_not_above_responder_ird"),
    (20, "mpa_insufficient_ird_terminates_2_0_06"),
    (21, "mpa_no_common_rtr_terminates_2_0_07"),
    (22, "mpa_rtr_is_first_fpdu_and_precedes_established"),
    (23, "mpa_rtr_write_and_read_produce_no_user_completion"),
    (24, "mpa_responder_holds_fpdus_until_first_fpdu_received"),
    (25, "mpa_initiator_accepts_fpdu_coalesced_with_reply"),
    (26, "mpa_two_initiators_detected"),
    (27, "mpa_request_timeout"),
    (27, "mpa_reply_timeout"),
    (28, "mpa_delayed_start_keeps_buffered_bytes"),
    (29, "mpa_private_data_limit_251_towards_siw"),
    (30, "fpdu_length_excludes_header_pad_crc"),
    (31, "fpdu_multiple_of_four_with_zero_pad"),
    (32, "fpdu_nonzero_pad_accepted"),
    (33, "fpdu_crc_little_endian_golden_vectors"),
    (34, "fpdu_crc_field_present_and_unchecked_when_off"),
    (35, "fpdu_crc_error_terminates_2_0_02_and_stops_delivery"),
    (36, "fpdu_boundaries_independent_of_tcp_segments"),
    (37, "fpdu_ulpdu_up_to_65535_received"),
    (37, "fpdu_ulpdu_sent_at_most_64768"),
    (38, "fpdu_mulpdu_formula_table"),
    (39, "fpdu_undersized_length_rejected"),
    (40, "fpdu_start_up_terminate_with_zero_crc_tolerated"),
    (41, "ddp_version_must_be_one"),
    (42, "ddp_reserved_bits_ignored"),
    (43, "ddp_msn_starts_at_one_per_queue_and_wraps"),
    (44, "ddp_mo_zero_first_then_cumulative"),
    (45, "ddp_last_flag_only_on_final_segment"),
    (46, "ddp_zero_length_message_is_one_segment"),
    (47, "ddp_stag_qn_msn_constant_across_message"),
    (48, "ddp_tagged_and_untagged_may_interleave"),
    (49, "ddp_unknown_queue_1_2_01"),
    (50, "ddp_no_buffer_1_2_02"),
    (51, "ddp_msn_out_of_range_1_2_03"),
    (52, "ddp_bad_mo_1_2_04"),
    (53, "ddp_message_too_long_1_2_05"),
    (54, "ddp_after_error_nothing_placed_or_delivered"),
    (55, "ddp_delivery_in_order_and_at_most_once"),
    (56, "rdmap_version_must_be_one_0_2_05"),
    (57, "rdmap_unknown_opcode_0_2_06"),
    (58, "rdmap_opcode_tag_bit_consistency"),
    (59, "rdmap_invalidate_field_zero_on_other_opcodes_and_ignored"),
    (60, "rdmap_write_not_surfaced_to_target_ulp"),
    (61, "rdmap_write_zero_length_skips_stag_check"),
    (62, "rdmap_read_request_is_46_bytes_qn1_mo0"),
    (63, "rdmap_read_zero_length_answered_without_source_check"),
    (64, "rdmap_read_response_copies_sink_stag_and_to"),
    (65, "rdmap_read_responses_in_request_order"),
    (66, "rdmap_read_completes_only_on_last_response_segment"),
    (67, "rdmap_ord_limit_never_exceeded"),
    (68, "rdmap_ird_overflow_terminates"),
    (68, "rdmap_ird_tolerates_next_pow2"),
    (69, "rdmap_send_consumes_one_receive_even_if_empty"),
    (70, "rdmap_solicited_event_signalled"),
    (71, "rdmap_send_inv_invalidates_before_completion"),
    (72, "rdmap_write_then_send_visibility"),
    (73, "rdmap_read_after_write_returns_new_data"),
    (74, "rdmap_completions_in_posting_order"),
    (75, "rdmap_terminate_format_rfc_nibbles_and_flags"),
    (75, "rdmap_terminate_decodes_siw_le_form"),
    (76, "rdmap_nothing_sent_after_terminate"),
    (77, "rdmap_first_error_wins"),
    (78, "mem_full_32bit_stag_match"),
    (78, "mem_bounds_overflow_safe"),
    (78, "mem_write_right_required"),
    (78, "mem_read_right_required"),
    (78, "mem_pd_mismatch"),
    (79, "mem_invalidated_stag_blocks_in_flight_segments"),
    (80, "close_graceful_drains_before_fin"),
    (80, "close_eof_mid_fpdu_is_error"),
    (80, "close_no_rst_after_terminate"),
];

/// The names of all functions in a folder that begin with `check_`.
fn checks(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            checks(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("it is text");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some((_, name)) = line.split_once("fn check_") {
                    let name = name.split('(').next().unwrap_or_default();
                    if is_test && name.starts_with(|c: char| c.is_ascii_digit()) {
                        found.insert(name.to_owned());
                    }
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn every_rule_of_the_checklist_has_its_test() {
    let numbers: BTreeSet<u8> = CHECKLIST.iter().map(|rule| rule.0).collect();
    assert_eq!(numbers, (1..=80).collect(), "80 rules");
    let listed: BTreeSet<String> =
        CHECKLIST.iter().map(|(number, name)| format!("{number:02}_{name}")).collect();
    let mut found = BTreeSet::new();
    checks(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let missing: Vec<_> = listed.difference(&found).collect();
    let unlisted: Vec<_> = found.difference(&listed).collect();
    assert!(
        missing.is_empty() && unlisted.is_empty(),
        "without a test: {missing:?}; not on the list: {unlisted:?}"
    );
}
