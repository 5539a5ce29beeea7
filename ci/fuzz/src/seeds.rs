//! The corpus, made of real encodings: conversations of the real initiator with the real target,
//! structures of a real cache device, configuration as it is exported.

use crate::chunks::{Chunk, put};
use crate::initiator::{Host, SUBMIT, digests, discovery_output, new_discovery};
use crate::rpc::support::words;
use crate::target::World;
use forebay_cache::format::BLOCK;
use forebay_cache::format::device::{HEADER_COPY_OFFSET, SUPERS_OFFSET};
use forebay_io::{Duration, Instant};
use forebay_wire::identify::{IDENTIFY_LEN, IdController, IdNamespace, NamespaceDescriptors};
use forebay_wire::log::{AnaGroup, AnaLog, AnaState, Smart};
use std::collections::BTreeMap;

/// Longest file.
pub const FILE_MAX: usize = 4096;

/// A corpus: target and file name, bytes.
pub type Corpus = BTreeMap<(&'static str, String), Vec<u8>>;

fn add(corpus: &mut Corpus, target: &'static str, name: &str, bytes: Vec<u8>) {
    assert!(bytes.len() <= FILE_MAX, "{target}/{name} has {} bytes", bytes.len());
    corpus.insert((target, name.to_owned()), bytes);
}

/// Every file of the corpus.
#[must_use]
pub fn corpus() -> Corpus {
    let mut corpus = Corpus::new();
    conversations(&mut corpus);
    discovery(&mut corpus);
    wire(&mut corpus);
    storage(&mut corpus);
    texts(&mut corpus);
    corpus
}

/// What one side said in a conversation, as inputs.
#[derive(Default)]
struct Tape {
    to_target: Vec<u8>,
    to_host: Vec<u8>,
    /// PDUs one by one, for the decoders alone.
    pdus: Vec<(bool, Vec<u8>)>,
}

/// Splits what was sent into PDUs.
fn pdus(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while let Some(len) = bytes.get(4..8).and_then(|raw| raw.first_chunk()) {
        let len = (u32::from_le_bytes(*len) as usize).min(bytes.len());
        let (pdu, rest) = bytes.split_at(len);
        all.push(pdu);
        bytes = rest;
    }
    all
}

impl Tape {
    /// Carries bytes to and fro until nothing moves.
    fn settle(&mut self, host: &mut Host, world: &mut World) {
        let mut moved = true;
        while moved {
            moved = false;
            for queue in [0u16, 1] {
                let flags = u8::try_from(queue).expect("0 or 1");
                for pdu in pdus(&host.output(queue)) {
                    moved = true;
                    put(&mut self.to_target, flags, pdu);
                    self.pdus.push((false, pdu.to_vec()));
                    let answer = world.chunk(&Chunk { flags, bytes: pdu.to_vec() });
                    for pdu in pdus(&answer) {
                        put(&mut self.to_host, flags, pdu);
                        self.pdus.push((true, pdu.to_vec()));
                        host.bytes(queue, pdu);
                    }
                }
            }
            if !moved {
                // The host may be waiting for the controller to get ready.
                host.wait(Duration::from_millis(10));
                moved = [0, 1].iter().any(|queue| host.has_output(*queue));
            }
        }
    }

    fn submit(&mut self, what: u8, host: &mut Host, world: &mut World) {
        put(&mut self.to_host, SUBMIT | what, &[]);
        host.submit(what);
        self.settle(host, world);
    }
}

fn conversations(corpus: &mut Corpus) {
    let operations: [(&str, &[u8]); 6] = [
        ("read", &[0]),
        ("write", &[1]),
        ("write-r2t", &[2]),
        ("flush", &[3, 3, 3]),
        ("ranges", &[0x40, 0x41]),
        ("mixed", &[3, 0x40, 1, 0]),
    ];
    for (select, name, what) in
        (0..4).flat_map(|select| operations.map(|(name, what)| (select, name, what)))
    {
        let mut host = Host::new(digests(select));
        let (mut world, mut tape) = (World::new(), Tape::default());
        tape.settle(&mut host, &mut world);
        for what in what {
            tape.submit(*what, &mut host, &mut world);
        }
        let mut to_host = vec![select];
        to_host.append(&mut tape.to_host);
        let file = format!("{name}-{select}");
        add(corpus, "target", &file, tape.to_target);
        add(corpus, "initiator", &file, to_host);
        if select != 3 {
            continue;
        }
        for (at, (to_host, pdu)) in tape.pdus.iter().enumerate() {
            let digests = if pdu.len() == 128 { 0 } else { 0x30 };
            let select = 2 | digests | if *to_host { 0x40 } else { 0 };
            let mut bytes = vec![select];
            bytes.extend_from_slice(&pdu[..pdu.len().min(160)]);
            let kind = pdu[0];
            if at < 4 || !corpus.contains_key(&("wire", format!("pdu-{kind}"))) {
                add(corpus, "wire", &format!("pdu-{kind}"), bytes);
            }
            if kind == 4 && pdu.len() >= 72 {
                let opcode = pdu[8];
                let fctype = if opcode == 0x7f { pdu[12] } else { 0 };
                let mut bytes = vec![0];
                bytes.extend_from_slice(&pdu[8..72]);
                add(corpus, "wire", &format!("command-{opcode:02x}-{fctype:02x}"), bytes);
                if opcode == 0x7f && fctype == 1 {
                    let from = if digests == 0 { 72 } else { 76 };
                    let mut bytes = vec![7];
                    bytes.extend_from_slice(&pdu[from..from + 1024]);
                    add(corpus, "wire", "connect-data", bytes);
                }
            }
        }
    }
}

fn discovery(corpus: &mut Corpus) {
    let mut now = Instant(1_000_000_000);
    let (mut host, mut world) = (new_discovery(now), World::new());
    let mut tape = Tape::default();
    for _ in 0..64 {
        for pdu in pdus(&discovery_output(&mut host)) {
            put(&mut tape.to_target, 0, pdu);
            let answer = world.chunk(&Chunk { flags: 0, bytes: pdu.to_vec() });
            for pdu in pdus(&answer) {
                put(&mut tape.to_host, 0, pdu);
                host.handle_bytes(pdu, now).expect("the real target");
            }
        }
        now = now + Duration::from_millis(10);
        host.handle_timeout(now).expect("in time");
    }
    assert_eq!(host.result().map(<[_]>::len), Some(2), "the log is read");
    add(corpus, "target", "discovery", tape.to_target);
    add(corpus, "discovery", "two-entries", tape.to_host);
}

fn wire(corpus: &mut Corpus) {
    let mut select = |target: &'static str, name: &str, select: u8, raw: &[u8]| {
        let mut bytes = vec![select];
        bytes.extend_from_slice(&raw[..raw.len().min(FILE_MAX - 1)]);
        add(corpus, target, name, bytes);
    };
    let mut raw = Box::new([0; IDENTIFY_LEN]);
    IdController { mdts: 5, cntlid: 7, maxcmd: 128, ioccsz: 516, ..Default::default() }
        .encode(&mut raw);
    select("wire", "identify-controller", 5, &raw[..]);
    let mut raw = Box::new([0; IDENTIFY_LEN]);
    IdNamespace { nsze: 2048, ncap: 2048, nuse: 2048, ..Default::default() }.encode(&mut raw);
    select("wire", "identify-namespace", 5, &raw[..512]);
    let mut raw = Box::new([0; IDENTIFY_LEN]);
    NamespaceDescriptors { uuid: Some([7; 16]), ..Default::default() }.encode(&mut raw);
    select("wire", "identify-descriptors", 5, &raw[..64]);
    select("wire", "log-smart", 6, &Smart::default().encode());
    let group = AnaGroup { id: 1, change_count: 3, state: AnaState::Optimized, nsids: vec![1, 2] };
    let mut out = Vec::new();
    AnaLog { change_count: 9, groups: vec![group.clone(), group] }.encode(&mut out);
    select("wire", "log-ana", 6, &out);
    select("wire", "property-cap", 7, &0x0020_0120_1e01_03ff_u64.to_le_bytes());
    select("wire", "property-cc", 7, &0x0046_0061_u32.to_le_bytes());
}

fn storage(corpus: &mut Corpus) {
    // The parts of the image that are recovered from, each with its CRC made right (1) or not.
    let image = crate::recovery::sound_image();
    let mut counts = BTreeMap::new();
    for (at, block) in image.chunks(BLOCK).enumerate() {
        let offset = (at * BLOCK) as u64;
        let end = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let (target, name, select) = match block.get(..8) {
            _ if offset == HEADER_COPY_OFFSET => continue,
            Some(b"FOREBAY\0") => ("superblock", "header", 3),
            Some(b"FBYSUPER") => ("superblock", "superblock", 1),
            Some(b"FBYBATCH") => ("segment", "batch", 1),
            Some(b"FBYFOOT\0") => ("segment", "footer", 1),
            Some(b"FBYFREE\0") => ("segment", "mark", 1),
            _ => continue,
        };
        assert!(offset < SUPERS_OFFSET || target == "segment" || name == "superblock");
        let count = counts.entry(name).or_insert(0);
        *count += 1;
        let mut bytes = vec![select];
        bytes.extend_from_slice(&block[..end.min(FILE_MAX - 1)]);
        add(corpus, target, &format!("{name}-{count}"), bytes);
    }
    let edit = |kind: u8, block: u8, at: u16, bytes: [u8; 8]| {
        let mut edit = vec![kind, block];
        edit.extend_from_slice(&at.to_le_bytes());
        edit.extend_from_slice(&bytes);
        edit
    };
    add(corpus, "recovery", "sound", Vec::new());
    ordered_journals(corpus, edit);
    for block in 0..24 {
        let name = format!("field-{block}");
        add(corpus, "recovery", &name, edit(7, block, 64, [1, 0, 0, 0, 0, 0, 0, 0]));
    }
    let edits = [edit(4, 6, 0, [7; 8]), edit(5, 9, 512, [0; 8]), edit(6, 11, 0, [0; 8])].concat();
    add(corpus, "recovery", "copied-torn-unreadable", edits);
}

fn ordered_journals(corpus: &mut Corpus, edit: impl Fn(u8, u8, u16, [u8; 8]) -> Vec<u8>) {
    let one = [1, 0, 0, 0, 0, 0, 0, 0];
    for (name, expect) in [("sound", 0), ("looked-at", 1), ("outdated", 2)] {
        add(corpus, "journal", name, vec![expect]);
    }
    let mut put = |name: &str, edits: &[u8]| {
        add(corpus, "journal", name, [&[0], edits].concat());
    };
    put("blank", &edit(7, 0, 0, one));
    put("torn-header", &edit(0, 0, 40, one));
    // Fields of the headers and of the table, with right CRCs.
    for (at, field) in [14u16, 32, 40, 48, 56, 64, 72, 80].into_iter().enumerate() {
        put(&format!("header-{at}"), &edit(3, 0, field, one));
    }
    for (at, field) in [12u16, 16, 24, 32, 40, 44].into_iter().enumerate() {
        put(&format!("table-{at}"), &edit(3, 2, field, one));
    }
    put("rotten-data", &edit(0, 4, 100, one));
    put("unreadable-table", &edit(6, 2, 0, one));
}

fn texts(corpus: &mut Corpus) {
    for (at, request) in words::REQUESTS.iter().enumerate() {
        add(corpus, "rpc", &format!("request-{at}"), request.as_bytes().to_vec());
    }
    let file = "[node]\nname = \"n\"\nstate_dir = \"/var/lib/forebay\"\n\
        [[listen]]\naddress = \"127.0.0.1\"\n[[cache]]\ndevice = \"mem:?size=1G\"\n\
        [[volume]]\nname = \"db\"\nbacking = \"uring:/dev/sdb\"\nmode = \"write-back\"\n\
        [[volume]]\nname = \"w\"\nbacking = \"mem:?size=1G\"\nmode = \"write-around\"\n\
        dirty_max = \"1G\"\ndirty_age_max = \"3s\"\nhosts = []\nblock_size = 4096\n\
        [security]\nhosts = [\"nqn.2014-08.org.nvmexpress:uuid:1\"]\n";
    let parsed = forebay_control::config::parse("seed", file).expect("a right file");
    add(corpus, "config", "written", file.as_bytes().to_vec());
    add(corpus, "config", "exported", forebay_control::config::export(&parsed).into_bytes());
    let uris = [
        "uring:/dev/nvme0n1",
        "uring:/srv/cache%20one.img?size=8G",
        "mem:?size=1G&block_size=4096",
        "nvmf+tcp://192.0.2.1:4420/nqn.2026-01.io.forebay:v?nsid=1&queues=2",
        "slow:mem:?size=1G&read_us=5000&write_us=8000&flush_us=1&jitter=10%&seed=7",
        "fault:slow:uring:/tmp/x?size=64M&read_us=1",
    ];
    for (at, uri) in uris.iter().enumerate() {
        add(corpus, "uri", &format!("uri-{at}"), uri.as_bytes().to_vec());
    }
}
