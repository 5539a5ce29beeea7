//! How many connections may exist before they belong to a subsystem, in all and for one address.

use core::fmt;
use core::net::IpAddr;
use std::collections::BTreeMap;

/// Caps on connections whose handshake is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// In all.
    pub total: u32,
    /// From one address.
    pub per_address: u32,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        // A host connects one queue for each of its CPUs, all at once.
        Self { total: 512, per_address: 256 }
    }
}

/// Why a connection is not admitted: close it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// Too many in all.
    Total,
    /// Too many from its address.
    PerAddress,
}

impl fmt::Display for NotAdmitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Total => "too many connections wait for their Connect command",
            Self::PerAddress => {
                "too many connections from this address wait for their Connect command"
            }
        })
    }
}

impl core::error::Error for NotAdmitted {}

/// Counts connections from accept to the end of their handshake. Its memory is bounded by the
/// total.
#[derive(Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    total: u32,
    by_address: BTreeMap<IpAddr, u32>,
}

impl Admission {
    /// Nothing is admitted yet.
    #[must_use]
    pub const fn new(limits: AdmissionLimits) -> Self {
        Self { limits, total: 0, by_address: BTreeMap::new() }
    }

    /// A connection from `address` was accepted; on success call [`Admission::release`] when its
    /// handshake ends, however it does.
    ///
    /// # Errors
    /// A cap is reached; nothing is counted.
    pub fn admit(&mut self, address: IpAddr) -> Result<(), NotAdmitted> {
        if self.total >= self.limits.total {
            return Err(NotAdmitted::Total);
        }
        let held = self.by_address.get(&address).copied().unwrap_or(0);
        if held >= self.limits.per_address {
            return Err(NotAdmitted::PerAddress);
        }
        self.by_address.insert(address, held + 1);
        self.total += 1;
        Ok(())
    }

    /// The handshake of a connection from `address` has ended.
    pub fn release(&mut self, address: IpAddr) {
        if let Some(held) = self.by_address.get_mut(&address) {
            *held -= 1;
            self.total -= 1;
            if *held == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    /// Connections whose handshake is not done.
    #[must_use]
    pub const fn waiting(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    #[test]
    fn caps_hold_in_all_and_for_one_address() {
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
        let mut admission = Admission::new(AdmissionLimits { total: 3, per_address: 2 });
        assert_eq!((admission.admit(a), admission.admit(a)), (Ok(()), Ok(())));
        assert_eq!(admission.admit(a), Err(NotAdmitted::PerAddress));
        assert_eq!(admission.admit(b), Ok(()));
        assert_eq!(admission.admit(c), Err(NotAdmitted::Total));
        admission.release(c);
        assert_eq!(admission.waiting(), 3, "one that was never admitted is not released");
        admission.release(a);
        assert_eq!((admission.admit(c), admission.waiting()), (Ok(()), 3));
        for address in [a, b, c] {
            admission.release(address);
        }
        assert_eq!((admission.waiting(), admission.by_address.len()), (0, 0));
    }
}
