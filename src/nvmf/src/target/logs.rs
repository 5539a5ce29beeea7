//! Log pages (NVMe Base 2.0 §5.16).

use super::admin::place;
use super::conn::{Conn, Gate};
use super::controller::{CHANGED_MAX, Controller};
use super::features::{DISCOVERY_FEATURES, FEATURES};
use super::subsystem::Subsystem;
use super::{Home, TRANSFER_MAX, Target};
use crate::tcp::widen;
use forebay_io::{Buf, Instant};
use forebay_wire::log::{
    self, ANA_GROUP_LEN, ANA_HEADER_LEN, AnaGroup, AnaLog, AnaState, DiscoveryHeader,
    ENTRY_SUPPORTED, RESERVATION_LEN, SUPPORTED_LEN, Smart, effect,
};
use forebay_wire::sqe::{GetLogPage, admin, nvm};
use forebay_wire::{NSID_ALL, Sqe, Status};

// The whole ANA log must fit one transfer, or Linux switches ANA off.
const _: () = assert!(
    16 + 36 * (super::config::NSID_MAX as u64) <= TRANSFER_MAX as u64
        && ANA_HEADER_LEN == 16
        && ANA_GROUP_LEN + 4 == 36
);

/// Log pages of an I/O controller.
const LOGS: [u8; 9] = [
    log::SUPPORTED,
    log::ERROR,
    log::SMART,
    log::FIRMWARE_SLOT,
    log::CHANGED_NAMESPACES,
    log::EFFECTS,
    log::ANA,
    log::FEATURES,
    log::RESERVATION,
];

/// Log pages of a discovery controller.
const DISCOVERY_LOGS: [u8; 2] = [log::ERROR, log::DISCOVERY];

/// The largest ANA log: header, a descriptor for each group, an identifier for each namespace.
const ANA_LEN_MAX: usize = 16 + 32 * 1024 + 4 * 1024;

/// Bit 0 of the log specific parameter of the ANA log: groups only.
const RETURN_GROUPS_ONLY: u8 = 1;

impl<B: Buf> Target<B> {
    pub(super) fn log_page(
        &self,
        conn: &mut Conn<B>,
        ctrl: &mut Controller,
        sqe: &Sqe,
        now: Instant,
    ) -> Result<(), Status> {
        let get = GetLogPage::decode(sqe);
        let known: &[u8] = if ctrl.is_discovery() { &DISCOVERY_LOGS } else { &LOGS };
        if !known.contains(&get.lid) {
            return Err(Status::INVALID_LOG_PAGE.dnr());
        }
        let place = place(sqe)?;
        let len = u32::try_from(get.len)
            .ok()
            .filter(|len| *len <= TRANSFER_MAX)
            .ok_or(Status::INVALID_FIELD.dnr())?;
        if place < len {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        if get.index_offset || !get.offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let page = self.page(ctrl, &get, sqe.nsid(), now)?;
        // An offset beyond the page is an error (§5.16); the end itself is not.
        let offset = usize::try_from(get.offset).map_err(|_| Status::INVALID_FIELD.dnr())?;
        let rest = match page.get(offset..) {
            Some(rest) => rest,
            // Hosts read the ANA log in pieces up to the size that Identify permits, not the present one.
            None if get.lid == log::ANA && offset <= ANA_LEN_MAX => &[],
            None => return Err(Status::INVALID_FIELD.dnr()),
        };
        conn.send_data(sqe.cid(), &rest[..rest.len().min(widen(len))], len, 0);
        if !get.rae {
            read(ctrl, get.lid);
        }
        Ok(())
    }

    fn page(
        &self,
        ctrl: &Controller,
        get: &GetLogPage,
        nsid: u32,
        now: Instant,
    ) -> Result<Vec<u8>, Status> {
        let subsystem = match ctrl.home {
            Home::Subsystem(at) => self.subsystem(at),
            Home::Discovery => None,
        };
        Ok(match get.lid {
            log::SUPPORTED => table(LOGS.iter().map(|lid| (*lid, ENTRY_SUPPORTED))),
            log::FEATURES => feature_table(ctrl),
            log::ERROR => ctrl.errors.iter().flat_map(|entry| entry.encode()).collect(),
            log::SMART => self.smart(ctrl, subsystem, nsid, now)?.encode().to_vec(),
            log::FIRMWARE_SLOT => log::encode_firmware_slot(&self.config.firmware).to_vec(),
            log::CHANGED_NAMESPACES => changed(ctrl),
            log::EFFECTS => effects(),
            log::ANA => subsystem.map(|s| ana(ctrl, s, get.lsp)).unwrap_or_default(),
            log::RESERVATION => vec![0; RESERVATION_LEN],
            log::DISCOVERY => self.discovery_page(ctrl),
            _ => return Err(Status::INVALID_LOG_PAGE.dnr()),
        }
        .padded(get.lid))
    }

    fn smart(
        &self,
        ctrl: &Controller,
        subsystem: Option<&Subsystem>,
        nsid: u32,
        now: Instant,
    ) -> Result<Smart, Status> {
        let Some(subsystem) = subsystem else { return Err(Status::INVALID_LOG_PAGE.dnr()) };
        let all = nsid == 0 || nsid == NSID_ALL;
        if !all && subsystem.namespace(nsid).is_none() {
            return Err(Status::INVALID_NAMESPACE.dnr());
        }
        let mut smart = Smart {
            // No sensor: room temperature, so that no host raises an alarm.
            temperature: 298,
            spare: 100,
            spare_threshold: 10,
            power_cycles: 1,
            power_on_hours: u128::from(now.since(self.started).as_secs() / 3600),
            error_entries: ctrl.error_count.into(),
            ..Smart::default()
        };
        let (mut read, mut written) = (0u128, 0u128);
        for namespace in subsystem.active().filter(|n| all || n.config.nsid == nsid) {
            let counters = &namespace.counters;
            let sectors = u32::from(namespace.config.block_size.shift()) - 9;
            read += u128::from(counters.blocks_read) << sectors;
            written += u128::from(counters.blocks_written) << sectors;
            smart.host_reads += u128::from(counters.reads);
            smart.host_writes += u128::from(counters.writes);
            smart.media_errors += u128::from(counters.errors);
        }
        // Thousands of 512-byte units, rounded up (Figure 207).
        smart.data_units_read = read.div_ceil(1000);
        smart.data_units_written = written.div_ceil(1000);
        Ok(smart)
    }

    /// The discovery log as this host may see it.
    fn discovery_page(&self, ctrl: &Controller) -> Vec<u8> {
        let visible = || self.discovery.iter().filter(|r| r.hosts.allows(&ctrl.hostnqn));
        let numrec = u64::try_from(visible().count()).unwrap_or(0);
        let header = DiscoveryHeader { genctr: self.discovery_generation, numrec };
        let mut page = header.encode().to_vec();
        for record in visible() {
            if record.entry.traddr.is_empty() {
                let mut entry = record.entry.clone();
                entry.adrfam = ctrl.local.adrfam;
                entry.traddr.clone_from(&ctrl.local.traddr);
                if entry.trsvcid.is_empty() {
                    entry.trsvcid.clone_from(&ctrl.local.trsvcid);
                }
                page.extend_from_slice(&entry.encode());
            } else {
                page.extend_from_slice(&record.entry.encode());
            }
        }
        page
    }
}

/// Pages whose size is fixed, whatever they hold.
trait Padded {
    fn padded(self, lid: u8) -> Self;
}

impl Padded for Vec<u8> {
    fn padded(mut self, lid: u8) -> Self {
        let least = match lid {
            log::ERROR => super::controller::ERROR_ENTRIES * log::ERROR_ENTRY_LEN,
            log::CHANGED_NAMESPACES => 4 * CHANGED_MAX,
            _ => 0,
        };
        if self.len() < least {
            self.resize(least, 0);
        }
        self
    }
}

/// Reading a page clears the notice that names it.
fn read(ctrl: &mut Controller, lid: u8) {
    match lid {
        log::CHANGED_NAMESPACES => {
            ctrl.changed.clear();
            ctrl.namespace_notice.read();
        }
        log::ANA => ctrl.ana_notice.read(),
        log::DISCOVERY => ctrl.discovery_notice.read(),
        _ => {}
    }
}

fn table(entries: impl Iterator<Item = (u8, u32)>) -> Vec<u8> {
    let mut raw = [0; SUPPORTED_LEN];
    let entries: Vec<_> = entries.collect();
    log::encode_supported(&entries, &mut raw);
    raw.to_vec()
}

fn feature_table(ctrl: &Controller) -> Vec<u8> {
    // Bit 21: controller scope (Figure 256).
    let value = ENTRY_SUPPORTED | 1 << 21;
    let list: &[(u8, bool)] = if ctrl.is_discovery() { &DISCOVERY_FEATURES } else { &FEATURES };
    table(list.iter().map(|(fid, _)| (*fid, value)))
}

/// Changed namespaces; more than fit are "all" (§5.16.1.5).
fn changed(ctrl: &Controller) -> Vec<u8> {
    if ctrl.changed.len() > CHANGED_MAX {
        return NSID_ALL.to_le_bytes().to_vec();
    }
    ctrl.changed.iter().flat_map(|nsid| nsid.to_le_bytes()).collect()
}

fn effects() -> Vec<u8> {
    let (plain, content) = (effect::SUPPORTED, effect::SUPPORTED | effect::CONTENT);
    let admin_commands = [
        (admin::GET_LOG_PAGE, plain),
        (admin::IDENTIFY, plain),
        (admin::ABORT, plain),
        (admin::SET_FEATURES, plain),
        (admin::GET_FEATURES, plain),
        (admin::ASYNC_EVENT_REQUEST, plain),
        (admin::KEEP_ALIVE, plain),
    ];
    let io_commands = [
        (nvm::FLUSH, plain),
        (nvm::WRITE, content),
        (nvm::READ, plain),
        (nvm::COMPARE, plain),
        (nvm::WRITE_ZEROES, content),
        (nvm::DATASET_MANAGEMENT, content),
    ];
    let mut raw = [0; log::EFFECTS_LEN];
    log::encode_effects(&admin_commands, &io_commands, &mut raw);
    raw.to_vec()
}

/// Every namespace is its own group. A held controller reports all of them inaccessible.
fn ana(ctrl: &Controller, subsystem: &Subsystem, lsp: u8) -> Vec<u8> {
    let held = ctrl.gate() == Gate::Held;
    let groups = subsystem.active().map(|namespace| AnaGroup {
        id: namespace.config.nsid,
        change_count: namespace.ana_changes + ctrl.ana_changes,
        state: if held { AnaState::Inaccessible } else { namespace.config.ana },
        nsids: if lsp & RETURN_GROUPS_ONLY == 0 { vec![namespace.config.nsid] } else { vec![] },
    });
    let log =
        AnaLog { change_count: subsystem.ana_changes + ctrl.ana_changes, groups: groups.collect() };
    let mut raw = Vec::new();
    log.encode(&mut raw);
    raw
}
