//! Get and Set Features (NVMe Base 2.0 §5.15 and §5.27).

use super::Target;
use super::admin::{Answer, Done, place};
use super::conn::{Conn, Home};
use super::connect::KAS_MS;
use super::controller::{Controller, Settings};
use forebay_io::Buf;
use forebay_wire::feature::{self, NumberOfQueues, capability};
use forebay_wire::sqe::{GetFeatures, Select, SetFeatures};
use forebay_wire::{Sqe, Status};

/// Length of a 128-bit host identifier.
const HOST_ID_LEN: u32 = 16;

/// Features of an I/O controller, and whether each can be changed.
pub(super) const FEATURES: [(u8, bool); 9] = [
    (feature::ARBITRATION, true),
    (feature::POWER_MANAGEMENT, true),
    (feature::TEMPERATURE_THRESHOLD, true),
    (feature::ERROR_RECOVERY, true),
    (feature::VOLATILE_WRITE_CACHE, false),
    (feature::NUMBER_OF_QUEUES, true),
    (feature::ASYNC_EVENT_CONFIG, true),
    (feature::KEEP_ALIVE_TIMER, true),
    (feature::HOST_IDENTIFIER, false),
];

/// Features of a discovery controller.
pub(super) const DISCOVERY_FEATURES: [(u8, bool); 2] =
    [(feature::ASYNC_EVENT_CONFIG, true), (feature::KEEP_ALIVE_TIMER, true)];

fn known(ctrl: &Controller, fid: u8) -> Option<bool> {
    let list: &[(u8, bool)] = if ctrl.is_discovery() { &DISCOVERY_FEATURES } else { &FEATURES };
    list.iter().find(|(known, _)| *known == fid).map(|(_, changeable)| *changeable)
}

impl<B: Buf> Target<B> {
    pub(super) fn get_features(
        &self,
        conn: &mut Conn<B>,
        ctrl: &Controller,
        sqe: &Sqe,
    ) -> Result<Done, Status> {
        let get = GetFeatures::decode(sqe);
        let changeable = known(ctrl, get.fid)
            .filter(|_| get.fid != feature::VOLATILE_WRITE_CACHE || self.volatile(ctrl.home))
            .ok_or(Status::INVALID_FIELD.dnr())?;
        let value = match get.select {
            Select::Current => self.current(ctrl, &ctrl.settings, get.fid),
            // Nothing is saveable: "saved" returns the default (§5.15).
            Select::Default | Select::Saved => {
                self.current(ctrl, &self.default_settings(), get.fid)
            }
            Select::Capabilities => {
                return Ok(Done::Result(if changeable {
                    capability::CHANGEABLE.into()
                } else {
                    0
                }));
            }
            Select::Reserved => return Err(Status::INVALID_FIELD.dnr()),
        };
        if get.fid == feature::HOST_IDENTIFIER {
            // Fabrics hosts have 128-bit identifiers: EXHID must be set (§5.27.1.20).
            if get.dw11 & 1 == 0 {
                return Err(Status::HOST_ID_INCONSISTENT.dnr());
            }
            if place(sqe)? < HOST_ID_LEN {
                return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
            }
            conn.send_data(sqe.cid(), &ctrl.hostid, HOST_ID_LEN, 0);
            return Ok(Done::Answered);
        }
        Ok(Done::Result(value.into()))
    }

    fn current(&self, ctrl: &Controller, settings: &Settings, fid: u8) -> u32 {
        match fid {
            feature::ARBITRATION => settings.arbitration,
            feature::TEMPERATURE_THRESHOLD => settings.temperature.into(),
            feature::ERROR_RECOVERY => settings.error_recovery.into(),
            feature::VOLATILE_WRITE_CACHE => self.volatile(ctrl.home).into(),
            feature::NUMBER_OF_QUEUES => {
                let granted = settings.queues.saturating_sub(1);
                NumberOfQueues { nsq: granted, ncq: granted }.encode()
            }
            feature::ASYNC_EVENT_CONFIG => settings.events,
            feature::KEEP_ALIVE_TIMER => ctrl.kato,
            _ => 0,
        }
    }

    pub(super) fn set_features(&mut self, ctrl: &mut Controller, sqe: &Sqe, data: &[u8]) -> Answer {
        let set = SetFeatures::decode(sqe);
        let changeable = known(ctrl, set.fid).ok_or(Status::INVALID_FIELD.dnr())?;
        if !data.is_empty() {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if set.save {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        if set.fid == feature::VOLATILE_WRITE_CACHE && self.volatile(ctrl.home) && set.dw11 & 1 == 1
        {
            return Ok(0);
        }
        if !changeable {
            return Err(match set.fid {
                // The host identifier comes with Connect (§5.27.1.20).
                feature::HOST_IDENTIFIER => Status::COMMAND_SEQUENCE.dnr(),
                _ => Status::FEATURE_NOT_CHANGEABLE.dnr(),
            });
        }
        let raw = set.dw11.to_le_bytes();
        let low = u16::from_le_bytes([raw[0], raw[1]]);
        match set.fid {
            feature::ARBITRATION => ctrl.settings.arbitration = set.dw11,
            feature::POWER_MANAGEMENT if set.dw11 & 0x1f == 0 => {}
            // The composite sensor's upper threshold (bits 21:16 zero) is remembered.
            feature::TEMPERATURE_THRESHOLD if set.dw11 >> 16 == 0 => {
                ctrl.settings.temperature = low;
            }
            feature::TEMPERATURE_THRESHOLD => {}
            // DULBE (bit 16) is not offered.
            feature::ERROR_RECOVERY if set.dw11 >> 16 == 0 => ctrl.settings.error_recovery = low,
            feature::NUMBER_OF_QUEUES => return self.set_queues(ctrl, set.dw11),
            feature::ASYNC_EVENT_CONFIG if set.dw11 & !ctrl.events_supported() == 0 => {
                ctrl.settings.events = set.dw11;
            }
            feature::KEEP_ALIVE_TIMER => {
                ctrl.kato = set.dw11.div_ceil(KAS_MS).saturating_mul(KAS_MS);
                if let Some(silence) = ctrl.silence_max() {
                    self.wake_at(ctrl.heard + silence);
                }
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(0)
    }

    /// Number of Queues: before any I/O queue exists; both numbers may not be FFFFh (§5.27.1.5).
    fn set_queues(&self, ctrl: &mut Controller, dw11: u32) -> Answer {
        let asked = NumberOfQueues::decode(dw11);
        if asked.nsq == 0xffff || asked.ncq == 0xffff {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if !ctrl.io.is_empty() {
            return Err(Status::COMMAND_SEQUENCE.dnr());
        }
        let most = self.config.limits.io_queues.max(1);
        let queues = asked.nsq.min(asked.ncq).saturating_add(1).min(most);
        ctrl.settings.queues = queues;
        Ok(NumberOfQueues { nsq: queues - 1, ncq: queues - 1 }.encode().into())
    }

    /// Whether any namespace of the subsystem has a volatile write cache.
    pub(super) fn volatile(&self, home: Home) -> bool {
        let Home::Subsystem(at) = home else { return false };
        self.subsystem(at).is_some_and(|s| s.active().any(|n| n.config.volatile_write_cache))
    }
}
