//! Several devices as one: operations go to them in turn.

use forebay_io::{Completion, Device, DeviceInfo, Op};

/// Connections to one device, used in turn.
pub struct Fan<D> {
    first: D,
    others: Vec<D>,
    next: usize,
}

impl<D> Fan<D> {
    /// The first, and more of the same.
    #[must_use]
    pub const fn new(first: D, others: Vec<D>) -> Self {
        Self { first, others, next: 0 }
    }

    /// The one whose turn it is.
    fn turn(&mut self) -> &mut D {
        let at = self.next;
        self.next = if at < self.others.len() { at + 1 } else { 0 };
        match at.checked_sub(1).and_then(|at| self.others.get_mut(at)) {
            Some(other) => other,
            None => &mut self.first,
        }
    }
}

impl<D: Device> Device for Fan<D> {
    type Buf = D::Buf;

    fn info(&self) -> &DeviceInfo {
        self.first.info()
    }

    fn submit(&mut self, mut op: Op<D::Buf>) -> Result<(), Op<D::Buf>> {
        for _ in 0..=self.others.len() {
            match self.turn().submit(op) {
                Ok(()) => return Ok(()),
                Err(back) => op = back,
            }
        }
        Err(op)
    }

    fn poll(&mut self, done: &mut Vec<Completion<D::Buf>>) -> usize {
        let first = self.first.poll(done);
        self.others.iter_mut().fold(first, |sum, device| sum + device.poll(done))
    }

    fn in_flight(&self) -> usize {
        self.others.iter().fold(self.first.in_flight(), |sum, device| sum + device.in_flight())
    }
}
