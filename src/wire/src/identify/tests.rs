use super::*;
use proptest::prelude::*;

fn controller() -> IdController {
    IdController {
        serial: "FB0001".into(),
        model: "Forebay".into(),
        firmware: "0.1.0".into(),
        cmic: cmic::MULTI_PORT | cmic::MULTI_CONTROLLER | cmic::ANA,
        mdts: 5,
        cntlid: 0x0102,
        version: crate::property::VERSION_2_0,
        oaes: 0x900,
        ctratt: ctratt::HOST_ID_128,
        kind: ControllerType::Io,
        crdt: [10, 0, 0],
        acl: 3,
        aerl: 3,
        elpe: 63,
        kas: 10,
        anatt: 10,
        anacap: 0x1f,
        anagrpmax: 1024,
        nanagrpid: 1023,
        sqes: 0x66,
        cqes: 0x44,
        maxcmd: 128,
        nn: 1024,
        oncs: oncs::COMPARE | oncs::DSM | oncs::WRITE_ZEROES,
        fuses: 1,
        vwc: 5,
        sgls: sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT,
        mnan: 1022,
        subnqn: Some("nqn.2026-01.io.forebay:v".parse().unwrap()),
        ioccsz: 516,
        iorcsz: 1,
        msdbd: 1,
        ..IdController::default()
    }
}

#[test]
fn base_2_0_figure_275_offsets() {
    let mut raw = [0; 4096];
    controller().encode(&mut raw);
    assert_eq!(&raw[4..24], b"FB0001              ");
    assert_eq!(&raw[24..32], b"Forebay ");
    assert_eq!(raw[63], b' ');
    assert_eq!(&raw[64..72], b"0.1.0   ");
    assert_eq!(raw[76], 0x0b);
    assert_eq!(raw[77..84], [5, 2, 1, 0, 0, 2, 0]);
    assert_eq!(raw[92..94], [0x00, 0x09]);
    assert_eq!(raw[111], 1);
    assert_eq!(raw[128], 10);
    assert_eq!((raw[258], raw[259], raw[262]), (3, 3, 63));
    assert_eq!(raw[320..322], [10, 0]);
    assert_eq!((raw[342], raw[343]), (10, 0x1f));
    assert_eq!(get32(&raw, 344), 1024);
    assert_eq!(get32(&raw, 348), 1023);
    assert_eq!((raw[512], raw[513]), (0x66, 0x44));
    assert_eq!(get16(&raw, 514), 128);
    assert_eq!(get32(&raw, 516), 1024);
    assert_eq!(raw[520..524], [0x0d, 0, 1, 0]);
    assert_eq!(raw[525], 5);
    assert_eq!(get32(&raw, 536), 0x0030_0001);
    assert_eq!(get32(&raw, 540), 1022);
    assert_eq!(&raw[768..772], b"nqn.");
    assert_eq!((get32(&raw, 1792), get32(&raw, 1796)), (516, 1));
    assert_eq!(raw[1803], 1);
    assert_eq!(IdController::decode(&raw), controller());
}

#[test]
fn nvm_1_0_figure_97_offsets() {
    let namespace = IdNamespace {
        nsze: 0x0102,
        ncap: 0x0304,
        nuse: 0x0506,
        nsfeat: 0x12,
        flbas: 1,
        nmic: 1,
        dlfeat: 9,
        nawun: 7,
        nawupf: 8,
        nacwu: 3,
        noiob: 8,
        nvmcap: 1 << 40,
        npwg: 7,
        npwa: 6,
        npdg: 5,
        npda: 4,
        nows: 31,
        anagrpid: 9,
        nsattr: 1,
        nguid: [0xaa; 16],
        eui64: [0xbb; 8],
        formats: vec![
            LbaFormat { data_shift: 9, performance: 1, ..LbaFormat::default() },
            LbaFormat { data_shift: 12, ..LbaFormat::default() },
        ],
        ..IdNamespace::default()
    };
    let mut raw = [0; 4096];
    namespace.encode(&mut raw);
    assert_eq!((get64(&raw, 0), get64(&raw, 8), get64(&raw, 16)), (0x0102, 0x0304, 0x0506));
    assert_eq!(raw[24..27], [0x12, 1, 1]);
    assert_eq!((raw[30], raw[33]), (1, 9));
    assert_eq!((get16(&raw, 34), get16(&raw, 36), get16(&raw, 38)), (7, 8, 3));
    assert_eq!(get16(&raw, 46), 8);
    assert_eq!(raw[53], 1);
    assert_eq!((get16(&raw, 64), get16(&raw, 72)), (7, 31));
    assert_eq!((get32(&raw, 92), raw[99]), (9, 1));
    assert_eq!((raw[104], raw[119], raw[120], raw[127]), (0xaa, 0xaa, 0xbb, 0xbb));
    assert_eq!(raw[128..136], [0, 0, 9, 1, 0, 0, 12, 0]);
    assert_eq!(IdNamespace::decode(&raw), namespace);
    assert_eq!(namespace.block_size(), Some(4096));
    assert_eq!(IdNamespace { flbas: 2, ..namespace }.block_size(), None);
}

#[test]
fn base_2_0_figure_277_descriptors() {
    let ids = NamespaceDescriptors {
        nguid: Some([1; 16]),
        uuid: Some([2; 16]),
        csi: Some(0),
        ..NamespaceDescriptors::default()
    };
    let mut raw = [0; 4096];
    ids.encode(&mut raw);
    assert_eq!(raw[..5], [2, 16, 0, 0, 1]);
    assert_eq!(raw[20..25], [3, 16, 0, 0, 2]);
    assert_eq!(raw[40..46], [4, 1, 0, 0, 0, 0]);
    assert_eq!(NamespaceDescriptors::decode(&raw), ids);
    assert_eq!(DescriptorList::new(&raw).count(), 3);
}

#[test]
fn lists_and_small_structures() {
    let mut raw = [0xff; 4096];
    encode_nsid_list([1, 7, 0x0102_0304].into_iter(), &mut raw);
    assert_eq!(raw[..16], [1, 0, 0, 0, 7, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
    assert_eq!(nsid_list(&raw).collect::<Vec<_>>(), [1, 7, 0x0102_0304]);
    encode_nsid_list(1..=2000, &mut raw);
    assert_eq!(nsid_list(&raw).count(), 1024);
    encode_command_sets_nvm(&mut raw);
    assert_eq!(get64(&raw, 0), 1);
    assert!(raw[8..].iter().all(|b| *b == 0));
    let nvm = IdControllerNvm { vsl: 1, wzsl: 2, wusl: 3, dmrl: 4, dmrsl: 5, dmsl: 6 };
    nvm.encode(&mut raw);
    assert_eq!(raw[..9], [1, 2, 3, 4, 5, 0, 0, 0, 6]);
    assert_eq!(IdControllerNvm::decode(&raw), nvm);
    let independent = IdNamespaceIndependent {
        nsfeat: 0x20,
        nmic: 1,
        rescap: 0,
        anagrpid: 3,
        nsattr: 1,
        nstat: 1,
    };
    independent.encode(&mut raw);
    assert_eq!(raw[..15], [0x20, 1, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(IdNamespaceIndependent::decode(&raw), independent);
}

proptest! {
    #[test]
    fn any_4096_bytes_decode_and_what_is_kept_round_trips(
        raw in proptest::collection::vec(any::<u8>(), 4096)
    ) {
        let mut bytes = [0; 4096];
        bytes.copy_from_slice(&raw);
        let mut again = [0; 4096];
        let controller = IdController::decode(&bytes);
        controller.encode(&mut again);
        prop_assert_eq!(IdController::decode(&again), controller);
        let namespace = IdNamespace::decode(&bytes);
        namespace.encode(&mut again);
        prop_assert_eq!(IdNamespace::decode(&again), namespace);
        let ids = NamespaceDescriptors::decode(&bytes);
        ids.encode(&mut again);
        prop_assert_eq!(NamespaceDescriptors::decode(&again), ids);
        let _ = nsid_list(&bytes).count();
    }
}
