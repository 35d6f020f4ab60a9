//! rdma-sys has written by hand the structures with unions in them. Here a C compiler says whether these, and the others
//! that are used, lie in memory as the headers have them.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::process::Command;

use rdma_sys as ffi;

/// `size` of a structure, and `offset` of each of its fields, by the C name.
struct Layout {
    structure: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize)>,
}

/// Each field by its name in rdma-sys and in C, which differ where C has no name for a union.
macro_rules! layouts {
    ($($structure:ident { $($field:ident $(as $name:ident)?),* $(,)? })*) => {
        vec![$(Layout {
            structure: stringify!($structure),
            size: size_of::<ffi::$structure>(),
            fields: vec![$((layouts!(@name $field $($name)?), offset_of!(ffi::$structure, $field))),*],
        }),*]
    };
    (@name $field:ident $name:ident) => { stringify!($name) };
    (@name $field:ident) => { stringify!($field) };
}

fn ours() -> Vec<Layout> {
    layouts! {
        ibv_wc {
            wr_id, status, opcode, vendor_err, byte_len, imm_data_invalidated_rkey_union as invalidated_rkey, qp_num,
            src_qp, wc_flags, pkey_index, slid, sl, dlid_path_bits,
        }
        ibv_send_wr {
            wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data_invalidated_rkey_union as invalidate_rkey, wr,
            qp_type, bind_mw_tso_union as bind_mw,
        }
        ibv_recv_wr { wr_id, next, sg_list, num_sge }
        ibv_sge { addr, length, lkey }
        ibv_gid { raw }
        ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors }
        ibv_device { node_type, transport_type, name }
        ibv_comp_channel { context, fd, refcnt }
        ibv_device_attr { max_qp_wr, max_cqe, max_qp_rd_atom, max_qp_init_rd_atom, phys_port_cnt }
        ibv_port_attr { state, max_mtu, active_mtu, gid_tbl_len, max_msg_sz, link_layer, flags }
        ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        rdma_event_channel { fd }
        rdma_cm_id { verbs, channel, context, qp, route, ps, port_num }
        rdma_addr { src_addr_union as src_storage, dst_addr_union as dst_storage, addr }
        rdma_cm_event { id, listen_id, event, status, param }
        rdma_conn_param {
            private_data, private_data_len, responder_resources, initiator_depth, flow_control, retry_count,
            rnr_retry_count, srq, qp_num,
        }
    }
}

#[test]
fn structures_are_laid_out_as_in_c() {
    let mut program = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <rdma/rdma_cma.h>\nint main(void) {\n",
    );
    let mut expected = String::new();
    for Layout { structure, size, fields } in ours() {
        // A union in C is one in rdma-sys too.
        let kind = if structure == "ibv_gid" { "union" } else { "struct" };
        writeln!(program, "printf(\"{structure} %zu\\n\", sizeof({kind} {structure}));").unwrap();
        writeln!(expected, "{structure} {size}").unwrap();
        for (field, offset) in fields {
            writeln!(
                program,
                "printf(\"{structure}.{field} %zu\\n\", offsetof({kind} {structure}, {field}));"
            )
            .unwrap();
            writeln!(expected, "{structure}.{field} {offset}").unwrap();
        }
    }
    program.push_str("return 0; }\n");
    let directory = tempfile::tempdir().unwrap();
    let (source, binary) = (directory.path().join("layout.c"), directory.path().join("layout"));
    std::fs::write(&source, program).unwrap();
    let compiled = Command::new("cc").arg("-o").args([&binary, &source]).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&binary).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&printed.stdout), expected);
}
