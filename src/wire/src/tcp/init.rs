//! Connection initialization (NVMe/TCP Transport 1.0 §3.6.2.2 and §3.6.2.3).

use super::{Digests, Fatal, Fes, MAXH2CDATA_MIN, PduKind};
use crate::field::{get16, get32, put16, put32};

/// Length of ICReq and ICResp in bytes.
pub const IC_LEN: usize = 128;
/// Largest alignment value.
const PDA_MAX: u8 = 31;

/// The host's request. PDU format version is always 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IcReq {
    /// Alignment of data in PDUs to the host, dwords, zero-based, at most 31.
    pub hpda: u8,
    /// Digests wished for.
    pub digests: Digests,
    /// R2Ts that may be outstanding for a command, zero-based.
    pub maxr2t: u32,
}

/// The controller's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcResp {
    /// Alignment of data in PDUs to the controller, dwords, zero-based, at most 31.
    pub cpda: u8,
    /// Digests in use.
    pub digests: Digests,
    /// Most data bytes in one H2CData PDU.
    pub maxh2cdata: u32,
}

fn common(kind: PduKind) -> [u8; IC_LEN] {
    let mut raw = [0; IC_LEN];
    raw[0] = kind.byte();
    raw[2] = 128;
    put32(&mut raw, 4, 128);
    raw
}

fn check(raw: &[u8; IC_LEN], kind: PduKind) -> Result<(), Fatal> {
    if raw[0] != kind.byte() {
        return Err(Fatal::field(0));
    }
    if raw[2] != 128 {
        return Err(Fatal::field(2));
    }
    if get32(raw, 4) != 128 {
        return Err(Fatal::field(4));
    }
    if get16(raw, 8) != 0 {
        return Err(Fatal { fes: Fes::UnsupportedParameter, fei: 8 });
    }
    if raw[10] > PDA_MAX {
        return Err(Fatal { fes: Fes::UnsupportedParameter, fei: 10 });
    }
    Ok(())
}

impl IcReq {
    /// The 128 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; IC_LEN] {
        let mut raw = common(PduKind::IcReq);
        put16(&mut raw, 8, 0);
        raw[10] = self.hpda;
        raw[11] = self.digests.encode();
        put32(&mut raw, 12, self.maxr2t);
        raw
    }

    /// From the 128 bytes.
    ///
    /// # Errors
    /// A wrong common header, an unknown format version, an alignment beyond 31.
    pub fn decode(raw: &[u8; IC_LEN]) -> Result<Self, Fatal> {
        check(raw, PduKind::IcReq)?;
        Ok(Self { hpda: raw[10], digests: Digests::decode(raw[11]), maxr2t: get32(raw, 12) })
    }
}

impl IcResp {
    /// The 128 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; IC_LEN] {
        let mut raw = common(PduKind::IcResp);
        raw[10] = self.cpda;
        raw[11] = self.digests.encode();
        put32(&mut raw, 12, self.maxh2cdata);
        raw
    }

    /// From the 128 bytes.
    ///
    /// # Errors
    /// As for [`IcReq::decode`]; also where MAXH2CDATA is below 4096.
    pub fn decode(raw: &[u8; IC_LEN]) -> Result<Self, Fatal> {
        check(raw, PduKind::IcResp)?;
        let maxh2cdata = get32(raw, 12);
        if maxh2cdata < MAXH2CDATA_MIN {
            return Err(Fatal { fes: Fes::UnsupportedParameter, fei: 12 });
        }
        Ok(Self { cpda: raw[10], digests: Digests::decode(raw[11]), maxh2cdata })
    }
}
