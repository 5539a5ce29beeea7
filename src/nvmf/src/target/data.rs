//! Writes whose data arrived by H2CData.

use super::conn::{Conn, Kind, State};
use super::io::submit;
use super::{Env, Target};
use forebay_io::{Buf, Payload, RequestOp};
use forebay_wire::Status;

impl<B: Buf> Target<B> {
    /// All data of a command has arrived.
    pub(super) fn data_complete(&mut self, conn: &mut Conn<B>, at: u16, env: &mut impl Env<B>) {
        let slot = conn.slot(at);
        let (kind, nsid) = (slot.kind, slot.nsid);
        if matches!(kind, Kind::FusedCompare | Kind::FusedWrite) {
            slot.state = State::Whole;
            return self.fused_whole(conn, at, env);
        }
        if let Some(status) = slot.failed {
            return conn.finish(at, status);
        }
        let Some(buf) = slot.buf.take() else {
            return conn.finish(at, Status::INTERNAL);
        };
        // The namespace may have gone while the data was on its way.
        let Some(volume) = self.namespace_of(conn.home, nsid).map(|n| n.config.volume) else {
            return conn.finish(at, Status::INVALID_NAMESPACE.dnr());
        };
        match kind {
            Kind::Dsm => self.deallocate(conn, at, volume, buf.as_slice(), env.io()),
            Kind::Compare => {
                submit(conn, at, RequestOp::Compare, volume, Payload::Owned(buf), env.io());
            }
            _ => submit(conn, at, RequestOp::Write, volume, Payload::Owned(buf), env.io()),
        }
    }
}
