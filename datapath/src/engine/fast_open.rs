//! Text in a SYN (RFC 7413 §4.2.2): whether it is taken, and which cookie the answer brings.

use super::Engine;
use crate::mptcp::Mode;
use crate::tcp::fast_open::{FastOpen, Validity};
use crate::time::Instant;
use crate::wire::frame::Segment;
use crate::wire::tcp::FastOpenCookie;
use std::ops::Range;

/// What becomes of a SYN's request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Admission {
    /// The connection is opened before its handshake is over.
    opens: bool,
    /// For the SYN/ACK.
    cookie: Option<FastOpenCookie>,
}

impl Engine {
    /// Opens connection `index`, which has just been entered, to its app if the SYN may do that
    /// (RFC 7413 §4.2.2). Returns what of the payload is to be offered in place.
    pub(super) fn open_early(
        &mut self,
        now: Instant,
        service: usize,
        index: usize,
        segment: &Segment<'_>,
    ) -> Range<usize> {
        let connection = &self.connections[index];
        if connection.mode == Mode::Pending && connection.version.has_key_in_syn() {
            // RFC 6824, version 0, knows nothing of text in a SYN.
            return 0..0;
        }
        let admission = self.admit_fast_open(now, service, segment);
        let connection = &mut self.connections[index];
        let Some((subflow, state)) = connection.subflows.iter_mut().next() else {
            return 0..0;
        };
        state.cookie_due = admission.cookie;
        if !admission.opens {
            return 0..0;
        }
        self.services[service].fast_opens.begin();
        connection.set_allowance(self.memory.allowance());
        connection.open_early(subflow, now, segment, &mut self.metrics)
    }

    /// RFC 7413 §4.2.2, steps 1 to 4. Whatever it says, the handshake goes on as ever.
    fn admit_fast_open(
        &mut self,
        now: Instant,
        service: usize,
        segment: &Segment<'_>,
    ) -> Admission {
        let service = &mut self.services[service];
        let client = segment.src;
        let mut admission = Admission::default();
        let cookie = segment.tcp.options.fast_open;
        match (service.config.fast_open, &cookie) {
            (FastOpen::Off, _) | (FastOpen::On, None) => return admission,
            (FastOpen::WithoutCookies, None) if segment.payload.is_empty() => return admission,
            _ => {}
        }
        if !service
            .fast_opens
            .admits(now, self.config.fast_open_pending_max)
        {
            self.metrics.fast_open_overflow += 1;
            return admission;
        }
        if service.config.fast_open == FastOpen::WithoutCookies {
            admission.opens = true;
            self.metrics.fast_open_passive += 1;
            return admission;
        }
        let cookie = cookie.unwrap_or_default();
        if cookie.is_request() {
            self.metrics.fast_open_cookie_requests += 1;
            admission.cookie = Some(self.fast_open_cookies.issue(now, client));
            return admission;
        }
        let validity = self.fast_open_cookies.judge(now, client, &cookie);
        admission.opens = validity != Validity::Bad;
        if admission.opens {
            self.metrics.fast_open_passive += 1;
            self.metrics.fast_open_ageing += u64::from(validity == Validity::Ageing);
        } else {
            self.metrics.fast_open_passive_fail += 1;
        }
        if validity != Validity::Good {
            admission.cookie = Some(self.fast_open_cookies.issue(now, client));
        }
        admission
    }
}
