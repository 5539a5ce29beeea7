use super::*;
use proptest::prelude::*;

#[test]
fn base_2_0_4_1_2_1_sgl_descriptors() {
    let in_capsule = Sgl::InCapsule { offset: 0, len: 4096 };
    assert_eq!(in_capsule.encode(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x01]);
    let transport = Sgl::Transport { len: 0x0002_0000 };
    assert_eq!(transport.encode(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x5a]);
    let keyed = Sgl::Keyed { address: 0x1122, len: 0x03_0201, key: 0x0706_0504, invalidate: true };
    assert_eq!(keyed.encode(), [0x22, 0x11, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0x4f]);
    assert_eq!(Sgl::decode(&keyed.encode()), keyed);
}

#[test]
fn nvm_1_0_3_2_4_read_of_eight_blocks() {
    let sqe = ReadWrite { slba: 0x0102_0304_0506, blocks: 8, fua: true, ..ReadWrite::default() }
        .encode(Sqe::new(nvm::READ, 0x1234, 1))
        .with_sgl(Sgl::Transport { len: 4096 });
    let mut golden = [0u8; 64];
    golden[..8].copy_from_slice(&[0x02, 0x40, 0x34, 0x12, 1, 0, 0, 0]);
    golden[33] = 0x10;
    golden[39] = 0x5a;
    golden[40..48].copy_from_slice(&[6, 5, 4, 3, 2, 1, 0, 0]);
    golden[48..52].copy_from_slice(&[7, 0, 0, 0x40]);
    assert_eq!(sqe.as_bytes(), &golden);
    assert_eq!(sqe.psdt(), Psdt::Sgl);
    assert_eq!(sqe.with_fuse(Fuse::Second).as_bytes()[1], 0x42);
}

#[test]
fn base_2_0_5_16_get_log_page_uses_both_halves_of_numd() {
    // 0x0002_0003 + 1 dwords: NUMDL = 3, NUMDU = 2.
    let log = GetLogPage {
        lid: 0x70,
        len: (0x0002_0003 + 1) * 4,
        offset: 0x1_0000_0400,
        rae: true,
        lsp: 1,
        lsi: 9,
        csi: 2,
        index_offset: true,
    };
    let sqe = log.encode(Sqe::new(admin::GET_LOG_PAGE, 0, 0));
    assert_eq!(sqe.cdw(10), 0x0003_8170);
    assert_eq!(sqe.cdw(11), 0x0009_0002);
    assert_eq!((sqe.cdw(12), sqe.cdw(13)), (0x400, 1));
    assert_eq!(sqe.cdw(14), 0x0280_0000);
    assert_eq!(GetLogPage::decode(&sqe), log);
    let most = GetLogPage { len: 1 << 34, ..GetLogPage::default() };
    let sqe = most.encode(Sqe::new(admin::GET_LOG_PAGE, 0, 0));
    assert_eq!((sqe.cdw(10), sqe.cdw(11)), (0xffff_0000, 0xffff));
    assert_eq!(GetLogPage::decode(&sqe).len, 1 << 34);
}

#[test]
fn base_2_0_admin_dwords() {
    let base = Sqe::new(0, 0, 0);
    let sqe = Identify { cns: 5, cntid: 0x0102, cnssid: 0x0304, csi: 6 }.encode(base);
    assert_eq!((sqe.cdw(10), sqe.cdw(11)), (0x0102_0005, 0x0600_0304));
    let sqe = SetFeatures { fid: 7, save: true, dw11: 0x0003_0003 }.encode(base);
    assert_eq!((sqe.cdw(10), sqe.cdw(11)), (0x8000_0007, 0x0003_0003));
    let sqe = GetFeatures { fid: 0x0b, select: Select::Capabilities, dw11: 0 }.encode(base);
    assert_eq!(sqe.cdw(10), 0x30b);
    let sqe = Abort { sqid: 1, cid: 0xabcd }.encode(base);
    assert_eq!(sqe.cdw(10), 0xabcd_0001);
    let dsm = DatasetManagement { ranges: 256, deallocate: true, ..Default::default() };
    let sqe = dsm.encode(base);
    assert_eq!((sqe.cdw(10), sqe.cdw(11)), (255, 4));
    assert_eq!(DatasetManagement::decode(&sqe), dsm);
}

#[test]
fn dwords_beyond_the_command_do_not_exist() {
    let sqe = Sqe::new(1, 2, 3);
    assert_eq!(sqe.cdw(16), 0);
    assert_eq!(sqe.with_cdw(16, 1), sqe);
}

proptest! {
    #[test]
    fn any_64_bytes_decode_and_views_round_trip(raw in proptest::collection::vec(any::<u8>(), 64)) {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(&raw);
        let sqe = Sqe::from_bytes(&bytes);
        prop_assert_eq!(sqe.as_bytes(), &bytes);
        let _ = format!("{sqe:?}");
        let rw = ReadWrite::decode(&sqe);
        prop_assert_eq!(ReadWrite::decode(&rw.encode(sqe)), rw);
        let dsm = DatasetManagement::decode(&sqe);
        prop_assert_eq!(DatasetManagement::decode(&dsm.encode(sqe)), dsm);
        let id = Identify::decode(&sqe);
        prop_assert_eq!(Identify::decode(&id.encode(sqe)), id);
        let log = GetLogPage::decode(&sqe);
        prop_assert_eq!(GetLogPage::decode(&log.encode(sqe)), log);
        let get = GetFeatures::decode(&sqe);
        prop_assert_eq!(GetFeatures::decode(&get.encode(sqe)), get);
        let set = SetFeatures::decode(&sqe);
        prop_assert_eq!(SetFeatures::decode(&set.encode(sqe)), set);
        let abort = Abort::decode(&sqe);
        prop_assert_eq!(Abort::decode(&abort.encode(sqe)), abort);
        let sgl = sqe.sgl();
        prop_assert_eq!(Sgl::decode(&sgl.encode()), sgl);
        for fuse in [Fuse::Normal, Fuse::First, Fuse::Second, Fuse::Reserved] {
            prop_assert_eq!(sqe.with_fuse(fuse).fuse(), fuse);
        }
    }
}
