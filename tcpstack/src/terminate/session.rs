//! A terminated connection: the client's endpoint, the upstream's once dialled, and what moves between them.

use std::net::SocketAddr;
use std::time::Duration;

use sluice_config::Service;
use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, ServiceId};

use super::endpoint::{self, Endpoint};
use super::liveness::Patience;
use crate::net::Lower;
use crate::proxy::{self, Addresses, Evidence, Header, ReadError};
use crate::record::EndCause;
use crate::stack::Side;
use crate::stack::dial::Lease;

/// How long what a resetting peer had sent may take to reach the other side before that side is reset too.
const DELIVERY: Duration = Duration::from_secs(5);

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `connect = "on-data"`: nothing dialled yet.
    Waiting,
    /// A SYN is on its way to an upstream.
    Dialing { until: Micros },
    /// Both ends are connected.
    Relaying,
    /// `from` was reset; what it had sent is still on its way to the other side.
    Delivering { from: Side, until: Micros },
}

/// One connection of a client to a service.
pub(crate) struct Session {
    pub(crate) service: ServiceId,
    pub(crate) client: Endpoint,
    pub(crate) upstream: Option<Dialled>,
    pub(crate) phase: Phase,
    /// Whether the client's first octets are looked at for a PROXY header.
    pub(crate) greeting: Greeting,
    /// The client, where a proxy named it.
    pub(crate) named: Option<SocketAddr>,
    /// The source that the session counts for, if any.
    pub(crate) counted: Option<Addr>,
    /// PROXY header, none when raw.
    pub(crate) header: Option<Header>,
    pub(crate) header_sent: usize,
    pub(crate) opened: Micros,
    pub(crate) connected: Option<Micros>,
    /// When payload last moved, or a side closed.
    pub(crate) moved: Micros,
    pub(crate) to_upstream: u64,
    pub(crate) to_client: u64,
    /// Upstreams tried, by index.
    pub(crate) tried: u64,
    /// The moment the wheel will wake this session.
    pub(crate) wakes: Option<Micros>,
    /// In the list of sessions to serve this turn.
    pub(crate) dirty: bool,
    /// It is one of a spliced service's that fell back.
    pub(crate) fell_back: bool,
    client_closed: bool,
    upstream_closed: bool,
}

/// What a session expects of the client's first octets.
pub(crate) enum Greeting {
    /// A PROXY header: the sender is trusted to name the client.
    Expected(Box<Evidence>),
    /// Anything but one: the sender is not.
    Forbidden,
    /// Nothing any more.
    Over,
}

/// The upstream's endpoint and what it occupies.
pub(crate) struct Dialled {
    pub(crate) endpoint: Endpoint,
    /// Index into the service's upstreams.
    pub(crate) index: u16,
    pub(crate) lease: Lease,
    /// Its flow's hash.
    pub(crate) hash: u64,
}

/// What one round of relaying found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relayed {
    /// Nothing special.
    Goes,
    /// The session is over.
    Over(EndCause),
}

impl Session {
    pub(crate) fn new(
        service: ServiceId,
        client: Endpoint,
        greeting: Greeting,
        header: Option<Header>,
        now: Micros,
    ) -> Session {
        let counted = match greeting {
            Greeting::Expected(_) => None,
            Greeting::Forbidden | Greeting::Over => Some(client.leg.key.src),
        };
        Session {
            service,
            client,
            upstream: None,
            phase: Phase::Waiting,
            greeting,
            named: None,
            counted,
            header,
            header_sent: 0,
            opened: now,
            connected: None,
            moved: now,
            to_upstream: 0,
            to_client: 0,
            tried: 0,
            wakes: None,
            dirty: false,
            fell_back: false,
            client_closed: false,
            upstream_closed: false,
        }
    }

    /// Puts the session, which has this index, on the list of those to serve, once.
    pub(crate) fn mark(&mut self, index: u32, dirty: &mut Vec<u32>) {
        if !self.dirty {
            self.dirty = true;
            dirty.push(index);
        }
    }

    /// The endpoint of `side`, once there is one.
    pub(crate) fn endpoint(&mut self, side: Side) -> Option<&mut Endpoint> {
        match side {
            Side::Client => Some(&mut self.client),
            Side::Upstream => self.upstream.as_mut().map(|dialled| &mut dialled.endpoint),
        }
    }

    /// Whether the client has said anything, or that it has nothing to say.
    pub(crate) fn client_spoke(&self) -> bool {
        self.to_upstream > 0 || self.client.socket().can_recv() || self.client.drained()
    }

    /// Moves payload both ways, the PROXY header first, and closes what the other side has closed.
    pub(crate) fn relay(&mut self, now: Micros) -> Relayed {
        let Some(Dialled { endpoint: upstream, .. }) = &mut self.upstream else { return Relayed::Goes };
        let client = &mut self.client;

        let header_done = match &self.header {
            None => true,
            Some(header) => {
                let rest = header.as_slice().get(self.header_sent..).unwrap_or_default();
                if !rest.is_empty() {
                    let sent = upstream.socket_mut().send_slice(rest).unwrap_or(0);
                    self.header_sent = self.header_sent.saturating_add(sent);
                }
                self.header_sent >= header.as_slice().len()
            }
        };
        let speaks = matches!(self.greeting, Greeting::Over);
        if header_done && speaks && !upstream.reset {
            let moved = endpoint::relay(client, upstream);
            self.to_upstream = self.to_upstream.saturating_add(moved);
            if moved > 0 {
                self.moved = now;
            }
            if client.drained() && !self.upstream_closed {
                upstream.close();
                self.upstream_closed = true;
                self.moved = now;
            }
        }
        if !client.reset {
            let moved = endpoint::relay(upstream, client);
            self.to_client = self.to_client.saturating_add(moved);
            if moved > 0 {
                self.moved = now;
            }
            if upstream.drained() && !self.client_closed {
                client.close();
                self.client_closed = true;
                self.moved = now;
            }
        }

        if let Phase::Delivering { from, until } = self.phase {
            let (dead, alive) = match from {
                Side::Client => (&self.client, &*upstream),
                Side::Upstream => (&*upstream, &self.client),
            };
            let delivered = dead.socket().recv_queue() == 0 && alive.socket().send_queue() == 0;
            if delivered || alive.reset || alive.finished() || now >= until {
                return Relayed::Over(reset_by(from));
            }
            return Relayed::Goes;
        }
        if client.reset || upstream.reset {
            let from = if client.reset { Side::Client } else { Side::Upstream };
            self.phase = Phase::Delivering { from, until: now.after(DELIVERY) };
            let (dead, alive) = if client.reset { (&*client, &*upstream) } else { (&*upstream, &*client) };
            if dead.socket().recv_queue() == 0 && alive.socket().send_queue() == 0 {
                return Relayed::Over(reset_by(from));
            }
            return Relayed::Goes;
        }
        if client.finished() && upstream.finished() {
            return Relayed::Over(EndCause::Closed);
        }
        Relayed::Goes
    }

    /// The client's octets that nobody has read yet, as far as they lie together; those of its first segment do.
    fn unread(&mut self) -> &[u8] {
        let socket = self.client.socket_mut();
        let len = socket.recv_queue();
        socket.peek(len).unwrap_or_default()
    }

    /// Looks whether a sender who is not to send a PROXY header sends one.
    ///
    /// # Errors
    /// [`EndCause::ProxyHeader`] when it does.
    pub(crate) fn refuse_header(&mut self) -> Result<(), EndCause> {
        match proxy::begins_header(self.unread()) {
            Some(true) => return Err(EndCause::ProxyHeader),
            Some(false) => self.greeting = Greeting::Over,
            // What does not go on is no header.
            None if self.client.finished_sending() => self.greeting = Greeting::Over,
            None => {}
        }
        Ok(())
    }

    /// Takes the expected PROXY header off the client's octets; none while it has not come whole.
    ///
    /// # Errors
    /// [`EndCause::ProxyHeader`] when there is none to come.
    pub(crate) fn take_header(&mut self) -> Result<Option<Option<Addresses>>, EndCause> {
        let all_there = self.client.finished_sending();
        let (len, addresses) = match proxy::read(self.unread()) {
            Ok(header) => (header.len, header.addresses),
            Err(ReadError::Incomplete) if !all_there => return Ok(None),
            Err(_) => return Err(EndCause::ProxyHeader),
        };
        let _: Result<(), _> = self.client.socket_mut().recv(|octets| (len.min(octets.len()), ()));
        Ok(Some(addresses))
    }

    /// How long each end may be silent, client and upstream; the latter once there is one that has accepted.
    fn patience(&self, settings: &Service) -> (Patience, Option<(&Endpoint, Patience)>) {
        let Service { timeouts, keepalive, .. } = settings;
        let upstream =
            self.upstream.as_ref().filter(|_| self.phase == Phase::Relaying).map(|dialled| &dialled.endpoint);
        let patience = |idle, keepalive, other: Option<&Endpoint>| Patience {
            unacknowledged: timeouts.unacknowledged,
            idle,
            keepalive,
            other_spoke: other.map(|other| other.live.spoke_at()),
        };
        let client = patience(timeouts.client_idle, keepalive.client, upstream);
        let theirs = patience(timeouts.upstream_idle, keepalive.upstream, Some(&self.client));
        (client, upstream.map(|upstream| (upstream, theirs)))
    }

    /// Asks each end that is to be asked by now whether it is there; when to look again.
    pub(crate) fn ask<N: Lower>(&mut self, settings: &Service, now: Micros, net: &mut N) -> Option<Micros> {
        let mut next: Option<Micros> = None;
        for side in [Side::Client, Side::Upstream] {
            // The one's answer may be the other's question, but not in the same moment.
            let (client, upstream) = self.patience(settings);
            let patience = match side {
                Side::Client => client,
                Side::Upstream => match upstream {
                    Some((_, patience)) => patience,
                    None => continue,
                },
            };
            let Some(endpoint) = self.endpoint(side).filter(|endpoint| !endpoint.finished()) else { continue };
            if endpoint.live.ask_at(&patience).is_some_and(|at| now >= at) {
                endpoint.ask(now, net);
            }
            next = [next, endpoint.live.ask_at(&patience)].into_iter().flatten().min();
        }
        next
    }

    /// The first limit this session would break, and when, if nothing more is heard.
    pub(crate) fn deadline(&self, settings: &Service) -> Option<(Micros, EndCause)> {
        let timeouts = &settings.timeouts;
        let mut first: Option<(Micros, EndCause)> = None;
        let mut consider = |at: Micros, cause| {
            if first.is_none_or(|(sooner, _)| at < sooner) {
                first = Some((at, cause));
            }
        };
        let (client, upstream) = self.patience(settings);
        // Whoever has closed and acknowledged our close has nothing left to say: it may be silent while the other end still reads.
        if !self.client.finished() {
            if let Some(at) = self.client.live.idle_at(&client) {
                consider(at, EndCause::ClientIdle);
            }
            if let Some(at) = self.client.live.gone_at(&client) {
                consider(at, EndCause::ClientTimeout);
            }
        }
        if let Greeting::Expected(_) = self.greeting {
            consider(self.opened.after(timeouts.connect), EndCause::ProxyHeader);
        }
        if !timeouts.first_data.is_zero() && !self.client_spoke() {
            consider(self.opened.after(timeouts.first_data), EndCause::FirstData);
        }
        if let Some((upstream, patience)) = upstream.filter(|(upstream, _)| !upstream.finished()) {
            if let Some(at) = upstream.live.idle_at(&patience) {
                consider(at, EndCause::UpstreamIdle);
            }
            if let Some(at) = upstream.live.gone_at(&patience) {
                consider(at, EndCause::UpstreamTimeout);
            }
        }
        if let (Some(Dialled { endpoint: upstream, .. }), Some(limit)) = (&self.upstream, timeouts.half_closed)
            && (self.client_closed || self.upstream_closed)
        {
            let moved = self.moved.max(self.client.progress).max(upstream.progress);
            consider(moved.after(limit), EndCause::HalfClosed);
        }
        first
    }
}

fn reset_by(side: Side) -> EndCause {
    match side {
        Side::Client => EndCause::ClientReset,
        Side::Upstream => EndCause::UpstreamReset,
    }
}
