//! Valid commands as hosts send them.

use super::*;

/// A valid admin command as hosts send them.
pub(super) fn admin_command(rng: &mut Rng, link: &mut Link) -> Vec<u8> {
    let cid = link.next_cid();
    let with = |opcode, nsid| Sqe::new(opcode, cid, nsid);
    let sqe = match rng.below(10) {
        0..3 => {
            let kinds = [
                cns::NAMESPACE,
                cns::CONTROLLER,
                cns::ACTIVE_NAMESPACES,
                cns::CSI_NAMESPACE,
                cns::NAMESPACE_DESCRIPTORS,
                cns::CSI_CONTROLLER,
                cns::INDEPENDENT_NAMESPACE,
            ];
            let identify = Identify { cns: rng.pick(&kinds), ..Identify::default() };
            let sqe = identify.encode(with(admin::IDENTIFY, 1 + rng.small(2)));
            sqe.with_sgl(Sgl::Transport { len: 4096 })
        }
        3 => {
            let len = rng.pick(&[4, 64, 512, 4096, 36 << 10]);
            let lid = rng.pick(&[0, 1, 2, 3, 4, 5, 0x0c, 0x12, 0x70]);
            let get = GetLogPage { lid, len: len.into(), ..GetLogPage::default() };
            get.encode(with(admin::GET_LOG_PAGE, 0xffff_ffff)).with_sgl(Sgl::Transport { len })
        }
        4 => {
            let fid = rng.pick(&[1, 2, 4, 5, 6, 7, 0x0a, 0x0b, 0x0f, 0x81]);
            let get = GetFeatures { fid, ..GetFeatures::default() };
            get.encode(with(admin::GET_FEATURES, 0))
        }
        5 => {
            let (fid, dw11) = rng.pick(&[
                (feature::NUMBER_OF_QUEUES, 0x0003_0003),
                (feature::ASYNC_EVENT_CONFIG, 0x900),
                (feature::KEEP_ALIVE_TIMER, 5000),
            ]);
            SetFeatures { fid, save: false, dw11 }.encode(with(admin::SET_FEATURES, 0))
        }
        6 => {
            let abort = Abort { sqid: rng.pick(&[0, 1, 1, 2]), cid: link.cid.wrapping_sub(1) };
            abort.encode(with(admin::ABORT, 0))
        }
        7 => with(admin::ASYNC_EVENT_REQUEST, 0),
        8 => with(admin::KEEP_ALIVE, 0),
        _ => {
            let offset = rng.pick(&[property::CAP, property::VS, property::CC, property::CSTS]);
            PropertyGet { wide: offset == property::CAP, offset }.encode(cid)
        }
    };
    capsule(&sqe, &[], link.params.digests)
}

/// Valid I/O commands as hosts send them: one, or the two of a fused pair.
pub(super) fn io_commands(rng: &mut Rng, link: &mut Link) -> Vec<Vec<u8>> {
    let digests = link.params.digests;
    let nsid = 1 + rng.small(2);
    let size = if nsid == 2 { 4096 } else { 512 };
    let blocks = if rng.one_in(24) { TRANSFER_MAX / size } else { 1 + rng.small(8192 / size) };
    let len = blocks * size;
    let slba = rng.next() % (BLOCKS - u64::from(blocks) + 1);
    let rw = ReadWrite { slba, blocks, fua: rng.one_in(4), ..ReadWrite::default() };
    let inline = len <= 8192 && rng.one_in(2);
    let fill = rng.byte() & 1;
    let with_data = |sqe: Sqe, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap();
        if inline {
            capsule(&sqe.with_sgl(Sgl::InCapsule { offset: 0, len }), data, digests)
        } else {
            capsule(&sqe.with_sgl(Sgl::Transport { len }), &[], digests)
        }
    };
    let mut new = |opcode| Sqe::new(opcode, link.next_cid(), nsid);
    let data = vec![fill; len as usize];
    match rng.below(12) {
        0..2 => {
            let sqe = rw.encode(new(nvm::READ)).with_sgl(Sgl::Transport { len });
            vec![capsule(&sqe, &[], digests)]
        }
        2..6 => vec![with_data(rw.encode(new(nvm::WRITE)), &data)],
        6 => vec![with_data(rw.encode(new(nvm::COMPARE)), &data)],
        7 | 8 => {
            let first = rw.encode(new(nvm::COMPARE)).with_fuse(Fuse::First);
            let second = rw.encode(new(nvm::WRITE)).with_fuse(Fuse::Second);
            vec![with_data(first, &data), with_data(second, &data)]
        }
        9 => {
            let ranges = u16::from(rng.byte()) + 1;
            let dsm = DatasetManagement { ranges, deallocate: true, ..Default::default() };
            let range = dsm::Range { blocks: 1, slba, attributes: 0 };
            let data = range.encode().repeat(usize::from(ranges));
            vec![with_data(dsm.encode(new(nvm::DATASET_MANAGEMENT)), &data)]
        }
        10 => vec![capsule(&rw.encode(new(nvm::WRITE_ZEROES)), &[], digests)],
        _ => vec![capsule(&new(nvm::FLUSH), &[], digests)],
    }
}
