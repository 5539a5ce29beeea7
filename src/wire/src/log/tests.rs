use super::*;
use proptest::prelude::*;

#[test]
fn base_2_0_figure_207_smart_offsets() {
    let smart = Smart {
        critical_warning: 1,
        temperature: 0x0132,
        spare: 100,
        spare_threshold: 10,
        used: 2,
        data_units_read: 3,
        data_units_written: 4,
        host_reads: 5,
        host_writes: 6,
        busy_minutes: 7,
        power_cycles: 8,
        power_on_hours: 9,
        unsafe_shutdowns: 10,
        media_errors: 11,
        error_entries: 12,
    };
    let raw = smart.encode();
    assert_eq!(raw[..6], [1, 0x32, 1, 100, 10, 2]);
    for (at, value) in (32..192).step_by(16).zip(3u8..) {
        assert_eq!(raw[at], value, "offset {at}");
    }
    assert_eq!(Smart::decode(&raw), smart);
}

#[test]
fn base_2_0_figure_205_error_entry_offsets() {
    let entry = ErrorEntry {
        count: 1,
        sqid: 2,
        cid: 3,
        status_field: 0x8004,
        location: 0xffff,
        lba: 4,
        nsid: 5,
        trtype: 3,
    };
    let raw = entry.encode();
    assert_eq!(raw[..17], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 4, 0x80, 0xff, 0xff, 4]);
    assert_eq!((raw[24], raw[29]), (5, 3));
    assert_eq!(ErrorEntry::decode(&raw), entry);
}

#[test]
fn base_2_0_figures_202_and_211_tables() {
    let mut table = [0xff; SUPPORTED_LEN];
    encode_supported(&[(SMART, 1), (RESERVATION, 3)], &mut table);
    assert_eq!((get32(&table, 8), get32(&table, 512)), (1, 3));
    assert_eq!(table.iter().map(|b| u32::from(*b)).sum::<u32>(), 4);
    let mut effects = [0xff; EFFECTS_LEN];
    encode_effects(&[(2, effect::SUPPORTED)], &[(1, 3)], &mut effects);
    assert_eq!((get32(&effects, 8), get32(&effects, 1028)), (1, 3));
    let slot = encode_firmware_slot("0.1.0");
    assert_eq!((slot[0], &slot[8..16]), (1, &b"0.1.0   "[..]));
    assert_eq!(decode_firmware_slot(&slot), "0.1.0");
}

#[test]
fn base_2_0_figure_218_ana_log() {
    let log = AnaLog {
        change_count: 7,
        groups: vec![AnaGroup {
            id: 3,
            change_count: 9,
            state: AnaState::Inaccessible,
            nsids: vec![3],
        }],
    };
    let mut raw = Vec::new();
    log.encode(&mut raw);
    let mut golden = vec![0u8; 52];
    (golden[0], golden[8]) = (7, 1);
    (golden[16], golden[20], golden[24], golden[32], golden[48]) = (3, 1, 9, 3, 3);
    assert_eq!(raw, golden);
    assert_eq!(AnaLog::decode(&raw), Ok(log));
    assert_eq!(AnaLog::decode(&raw[..51]), Err(AnaLogError::Truncated));
    raw[20..24].fill(0xff);
    assert_eq!(AnaLog::decode(&raw), Err(AnaLogError::Truncated));
    golden[32] = 5;
    assert_eq!(AnaLog::decode(&golden), Err(AnaLogError::State));
}

#[test]
fn base_2_0_figures_264_and_265_discovery_log() {
    let header = DiscoveryHeader { genctr: 5, numrec: 1 }.encode();
    assert_eq!((header[0], header[8], header[16]), (5, 1, 0));
    let entry = DiscoveryEntry {
        trtype: trtype::TCP,
        adrfam: 1,
        subtype: SubsystemType::Nvm,
        treq: 4,
        portid: 1,
        cntlid: 0xffff,
        asqsz: 32,
        eflags: 0,
        trsvcid: "4420".into(),
        traddr: "127.0.0.1".into(),
        subnqn: "nqn.2026-01.io.forebay:v".parse().unwrap(),
        tsas: 0,
    };
    let raw = entry.encode();
    assert_eq!(raw[..12], [3, 1, 2, 4, 1, 0, 0xff, 0xff, 32, 0, 0, 0]);
    assert_eq!(&raw[32..37], b"4420 ");
    assert_eq!(&raw[256..260], b"nqn.");
    assert_eq!(&raw[512..522], b"127.0.0.1 ");
    assert_eq!(DiscoveryEntry::decode(&raw), Some(entry));
    assert_eq!(DiscoveryEntry::decode(&[0xff; 1024]), None);
}

proptest! {
    #[test]
    fn any_bytes_decode(raw in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = AnaLog::decode(&raw);
        let mut padded = raw;
        padded.resize(2048, 0);
        let smart = Smart::decode(&array(&padded, 0));
        prop_assert_eq!(Smart::decode(&smart.encode()), smart);
        let entry = ErrorEntry::decode(&array(&padded, 0));
        prop_assert_eq!(ErrorEntry::decode(&entry.encode()), entry);
        if let Some(entry) = DiscoveryEntry::decode(&array(&padded, 0)) {
            prop_assert_eq!(DiscoveryEntry::decode(&entry.encode()), Some(entry));
        }
    }
}
