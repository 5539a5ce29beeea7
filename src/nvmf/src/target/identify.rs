//! Identify (NVMe Base 2.0 §5.17).

use super::admin::place;
use super::config::NSID_MAX;
use super::conn::Conn;
use super::connect::KAS_MS;
use super::controller::{Controller, ERROR_ENTRIES};
use super::subsystem::{Namespace, Subsystem};
use super::{Home, TRANSFER_MAX, Target};
use crate::tcp::IN_CAPSULE_MAX;
use forebay_io::Buf;
use forebay_wire::identify::{
    ControllerType, IDENTIFY_LEN, IdController, IdControllerNvm, IdNamespace,
    IdNamespaceIndependent, LbaFormat, NamespaceDescriptors, anacap, cmic, cns, ctratt,
    encode_command_sets_nvm, encode_nsid_list, lpa, oncs, sgls,
};
use forebay_wire::property::VERSION_2_0;
use forebay_wire::sqe::Identify;
use forebay_wire::{DISCOVERY_NQN, NSID_ALL, Sqe, Status};

/// The NVM command set's identifier.
const CSI_NVM: u8 = 0;

impl<B: Buf> Target<B> {
    pub(super) fn identify(
        &self,
        conn: &mut Conn<B>,
        ctrl: &Controller,
        sqe: &Sqe,
    ) -> Result<(), Status> {
        let identify = Identify::decode(sqe);
        let len = u32::try_from(IDENTIFY_LEN).unwrap_or(0);
        if place(sqe)? < len {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        let mut raw = [0; IDENTIFY_LEN];
        self.identify_data(ctrl, &identify, sqe.nsid(), &mut raw)?;
        conn.send_data(sqe.cid(), &raw, len, 0);
        Ok(())
    }

    fn identify_data(
        &self,
        ctrl: &Controller,
        identify: &Identify,
        nsid: u32,
        raw: &mut [u8; IDENTIFY_LEN],
    ) -> Result<(), Status> {
        if identify.cns == cns::CONTROLLER {
            self.id_controller(ctrl).encode(raw);
            return Ok(());
        }
        let Home::Subsystem(at) = ctrl.home else { return Err(Status::INVALID_FIELD.dnr()) };
        let subsystem = self.subsystem(at).ok_or(Status::INTERNAL)?;
        let nvm = identify.csi == CSI_NVM;
        match identify.cns {
            cns::NAMESPACE => {
                if let Some(namespace) = valid_nsid(subsystem, nsid)? {
                    id_namespace(namespace).encode(raw);
                }
            }
            cns::ACTIVE_NAMESPACES => active(subsystem, nsid, raw)?,
            cns::NAMESPACE_DESCRIPTORS => descriptors(subsystem, nsid, raw)?,
            cns::CSI_NAMESPACE | cns::CSI_CONTROLLER | cns::CSI_ACTIVE_NAMESPACES if !nvm => {
                return Err(Status::INVALID_IO_COMMAND_SET.dnr());
            }
            // All of it is about protection information, which is not offered: zeroes.
            cns::CSI_NAMESPACE => {
                valid_nsid(subsystem, nsid)?;
            }
            cns::CSI_CONTROLLER => IdControllerNvm::default().encode(raw),
            cns::CSI_ACTIVE_NAMESPACES => active(subsystem, nsid, raw)?,
            cns::INDEPENDENT_NAMESPACE => {
                if let Some(namespace) = valid_nsid(subsystem, nsid)? {
                    independent(namespace).encode(raw);
                }
            }
            cns::COMMAND_SETS => encode_command_sets_nvm(raw),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(())
    }

    fn id_controller(&self, ctrl: &Controller) -> IdController {
        let limits = &self.config.limits;
        let common = IdController {
            model: self.config.model.clone(),
            firmware: self.config.firmware.clone(),
            mdts: mdts(),
            cntlid: ctrl.cntlid,
            version: VERSION_2_0,
            oaes: ctrl.events_supported() & !forebay_wire::feature::event_bit::SMART,
            ctratt: ctratt::HOST_ID_128 | ctratt::TBKAS,
            acl: 3,
            aerl: limits.async_events.saturating_sub(1),
            // One firmware slot, read only.
            frmw: 0x03,
            lpa: lpa::EXTENDED,
            elpe: u8::try_from(ERROR_ENTRIES - 1).unwrap_or(0),
            kas: u16::try_from(KAS_MS / 100).unwrap_or(1),
            sqes: 0x66,
            cqes: 0x44,
            maxcmd: limits.queue_entries,
            sgls: sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT,
            ioccsz: (64 + IN_CAPSULE_MAX) / 16,
            iorcsz: 1,
            msdbd: 1,
            ..IdController::default()
        };
        match ctrl.home {
            Home::Discovery => IdController {
                serial: "discovery".into(),
                kind: ControllerType::Discovery,
                subnqn: DISCOVERY_NQN.parse().ok(),
                dctype: 1,
                ..common
            },
            Home::Subsystem(at) => self.id_io_controller(at, common),
        }
    }

    fn id_io_controller(&self, at: usize, common: IdController) -> IdController {
        let config = self.subsystem(at).map(|subsystem| &subsystem.config);
        IdController {
            serial: config.map(|c| c.serial.clone()).unwrap_or_default(),
            subnqn: config.map(|c| c.nqn.clone()),
            kind: ControllerType::Io,
            cmic: cmic::MULTI_PORT | cmic::MULTI_CONTROLLER | cmic::ANA,
            lpa: common.lpa | lpa::SMART_PER_NAMESPACE | lpa::EFFECTS | lpa::SUPPORTED_LOGS,
            // No sensor: thresholds that are never reached.
            wctemp: 343,
            cctemp: 353,
            anatt: 10,
            anacap: anacap::OPTIMIZED
                | anacap::NON_OPTIMIZED
                | anacap::INACCESSIBLE
                | anacap::PERSISTENT_LOSS
                | anacap::CHANGE
                | anacap::GROUP_FIXED,
            anagrpmax: NSID_MAX,
            nanagrpid: NSID_MAX,
            nn: NSID_MAX,
            mnan: NSID_MAX,
            oncs: oncs::COMPARE | oncs::DSM | oncs::WRITE_ZEROES,
            fuses: 1,
            // Bits 2:1 = 10b: Flush to all namespaces is not offered.
            vwc: 0b100 | u8::from(self.volatile(Home::Subsystem(at))),
            ofcs: 1,
            ..common
        }
    }
}

/// MDTS: the power of two of 4 KiB pages in a transfer.
const fn mdts() -> u8 {
    (TRANSFER_MAX / 4096).trailing_zeros().to_le_bytes()[0]
}

/// The namespace, or none where the NSID is valid but not attached: its structure is all zeroes
/// (§5.17.2.1).
fn valid_nsid(subsystem: &Subsystem, nsid: u32) -> Result<Option<&Namespace>, Status> {
    if (1..=NSID_MAX).contains(&nsid) {
        Ok(subsystem.namespace(nsid))
    } else {
        Err(Status::INVALID_NAMESPACE.dnr())
    }
}

/// Attached namespaces above `nsid`.
fn active(subsystem: &Subsystem, nsid: u32, raw: &mut [u8; IDENTIFY_LEN]) -> Result<(), Status> {
    if nsid >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE.dnr());
    }
    encode_nsid_list(subsystem.active().map(|n| n.config.nsid).filter(|n| *n > nsid), raw);
    Ok(())
}

fn descriptors(
    subsystem: &Subsystem,
    nsid: u32,
    raw: &mut [u8; IDENTIFY_LEN],
) -> Result<(), Status> {
    let namespace = subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE.dnr())?;
    let ids = NamespaceDescriptors {
        eui64: None,
        nguid: Some(namespace.config.nguid),
        uuid: Some(namespace.config.uuid.0),
        csi: Some(CSI_NVM),
    };
    ids.encode(raw);
    Ok(())
}

fn id_namespace(namespace: &Namespace) -> IdNamespace {
    let config = &namespace.config;
    // Zero-based, and only stated where there is a preference (NSFEAT bit 4).
    let preferred = u16::try_from(config.optimal_io >> config.block_size.shift()).unwrap_or(0);
    let stated = preferred > 1;
    let unit = preferred.saturating_sub(1);
    IdNamespace {
        nsze: config.blocks,
        ncap: config.blocks,
        nuse: config.blocks,
        nsfeat: if stated { 1 << 4 } else { 0 },
        nmic: 1,
        // Deallocated blocks read zeroes or what they held; Write Zeroes takes DEAC (bit 3).
        dlfeat: 1 << 3,
        // NOIOB stays 0: Linux would split every command at such a boundary.
        noiob: 0,
        nvmcap: u128::from(config.blocks) << config.block_size.shift(),
        npwg: unit,
        npwa: unit,
        npdg: unit,
        npda: unit,
        nows: unit,
        anagrpid: config.nsid,
        nsattr: u8::from(config.read_only),
        nguid: config.nguid,
        formats: vec![LbaFormat { data_shift: config.block_size.shift(), ..LbaFormat::default() }],
        ..IdNamespace::default()
    }
}

fn independent(namespace: &Namespace) -> IdNamespaceIndependent {
    let config = &namespace.config;
    IdNamespaceIndependent {
        // Bit 5: this namespace has no volatile write cache.
        nsfeat: if config.volatile_write_cache { 0 } else { 1 << 5 },
        nmic: 1,
        rescap: 0,
        anagrpid: config.nsid,
        nsattr: u8::from(config.read_only),
        nstat: 1,
    }
}
