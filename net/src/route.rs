//! Routes: added, removed, listed, and the one that the kernel would take towards an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{Emitable, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
};

use crate::addr::{family_of, ip_of};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::link::Link;
use crate::netlink::Netlink;
use crate::socket::{Outgoing, emit};
use crate::wire::{self, u32_of};

/// The table of ordinary routes (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;
/// RTN_UNICAST: an ordinary route.
pub const UNICAST: u8 = 1;
/// RTN_LOCAL: an address of this host.
pub const LOCAL: u8 = 2;
/// RTN_UNREACHABLE: what goes there is refused at once.
pub const UNREACHABLE: u8 = 7;
/// RT_SCOPE_UNIVERSE: through a gateway.
pub const SCOPE_UNIVERSE: u8 = 0;
/// RT_SCOPE_LINK: directly on the link.
pub const SCOPE_LINK: u8 = 253;

/// IP version 4 or 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Everything of this family: 0.0.0.0/0 or ::/0.
    pub fn default_net(self) -> IpNetwork {
        match self {
            Family::V4 => IpNetwork::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)).with_prefix_zero(),
            Family::V6 => IpNetwork::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)).with_prefix_zero(),
        }
    }

    fn netlink(self) -> AddressFamily {
        match self {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        }
    }
}

trait PrefixZero {
    fn with_prefix_zero(self) -> IpNetwork;
}

impl PrefixZero for IpNetwork {
    fn with_prefix_zero(self) -> IpNetwork {
        // A length of 0 is valid in both families.
        IpNetwork::new(self.ip(), 0).unwrap_or(self)
    }
}

/// A route. For the fields that are options, None means when adding "as the kernel or `ip route` would choose"; what the
/// kernel shows has them filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination; 0.0.0.0/0 or ::/0 is the default route.
    pub dst: IpNetwork,
    /// The next router.
    pub gw: Option<IpAddr>,
    /// The index of the link by which it leaves.
    pub oif: Option<u32>,
    /// The source address of the host's own packets.
    pub src: Option<IpAddr>,
    /// The metric: the lowest wins.
    pub priority: Option<u32>,
    /// The table; None: main.
    pub table: Option<u32>,
    /// RT_SCOPE_*; None: link without a gateway, else universe.
    pub scope: Option<u8>,
    /// RTN_*: [`UNICAST`], [`UNREACHABLE`] …
    pub kind: u8,
    /// RTPROT_*: who made it (2 the kernel, 3 an administrator's tool).
    pub protocol: u8,
    /// The MTU towards the destination, in bytes.
    pub mtu: Option<u32>,
    /// The TCP segment size that is announced there, in bytes.
    pub advmss: Option<u32>,
    /// The gateway is on the link, though no address says so.
    pub onlink: bool,
    /// It has several next hops (ECMP), of which `gw` and `oif` are the first; only ever read.
    pub multipath: bool,
}

impl Route {
    /// An ordinary route to `dst`, with nothing special.
    pub fn to(dst: IpNetwork) -> Route {
        Route {
            dst,
            gw: None,
            oif: None,
            src: None,
            priority: None,
            table: None,
            scope: None,
            kind: UNICAST,
            protocol: RouteProtocol::Boot.into(),
            mtu: None,
            advmss: None,
            onlink: false,
            multipath: false,
        }
    }

    /// The route to `dst` through a router on a link.
    pub fn via(dst: IpNetwork, gw: IpAddr, oif: u32) -> Route {
        Route { gw: Some(gw), oif: Some(oif), ..Route::to(dst) }
    }

    /// True for the default route.
    pub fn is_default(&self) -> bool {
        self.dst.prefix() == 0
    }

    /// Reads the body of a message; None when it is no route of IPv4 or IPv6.
    pub(crate) fn parse(body: &[u8]) -> Option<Route> {
        let header = RouteHeader::parse(body).ok()?;
        let family = match header.address_family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        let mut route = Route::to(family.default_net());
        route.kind = header.kind.into();
        route.protocol = header.protocol.into();
        route.scope = Some(header.scope.into());
        route.table = Some(header.table.into());
        route.onlink = header.flags.contains(RouteFlags::Onlink);
        for (kind, value) in wire::attributes(body.get(header.buffer_len()..)?) {
            match kind {
                libc::RTA_DST => {
                    route.dst = IpNetwork::new(ip_of(value)?, header.destination_prefix_length).ok()?;
                }
                libc::RTA_GATEWAY => route.gw = ip_of(value),
                libc::RTA_OIF => route.oif = u32_of(value),
                libc::RTA_PREFSRC => route.src = ip_of(value),
                libc::RTA_PRIORITY => route.priority = u32_of(value),
                libc::RTA_TABLE => route.table = u32_of(value),
                libc::RTA_METRICS => {
                    route.mtu = wire::find(value, RTAX_MTU).and_then(u32_of);
                    route.advmss = wire::find(value, RTAX_ADVMSS).and_then(u32_of);
                }
                // Several routers: the first (struct rtnexthop: length, flags, hops, index, attributes).
                libc::RTA_MULTIPATH => {
                    let length = wire::u16_of(value)?.into();
                    route.multipath = value.len() > length;
                    route.oif = value.get(4..).and_then(u32_of);
                    let gw = value.get(8..length).and_then(|hop| wire::find(hop, libc::RTA_GATEWAY));
                    route.gw = gw.and_then(ip_of);
                }
                _ => {}
            }
        }
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family_of(self.dst.ip());
        header.destination_prefix_length = self.dst.prefix();
        header.table = self.table.unwrap_or(MAIN_TABLE).try_into().unwrap_or(0);
        header.protocol = self.protocol.into();
        header.kind = self.kind.into();
        let direct = self.gw.is_none() && self.kind == UNICAST && self.dst.is_ipv4();
        header.scope = self.scope.unwrap_or(if direct { SCOPE_LINK } else { SCOPE_UNIVERSE }).into();
        header.flags.set(RouteFlags::Onlink, self.onlink);
        let attributes = &mut message.attributes;
        if self.dst.prefix() > 0 {
            attributes.push(RouteAttribute::Destination(self.dst.network().into()));
        }
        attributes.extend(self.gw.map(|gw| RouteAttribute::Gateway(gw.into())));
        attributes.extend(self.oif.map(RouteAttribute::Oif));
        attributes.extend(self.src.map(|src| RouteAttribute::PrefSource(src.into())));
        attributes.extend(self.priority.map(RouteAttribute::Priority));
        if self.table.is_some_and(|table| table > 255) {
            attributes.extend(self.table.map(RouteAttribute::Table));
        }
        let metrics: Vec<_> =
            self.mtu.map(RouteMetric::Mtu).into_iter().chain(self.advmss.map(RouteMetric::Advmss)).collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }
}

/// RTAX_* of linux/rtnetlink.h.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// Which routes to list; what is None does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of this family; None: both.
    pub family: Option<Family>,
    /// In this table. Without it all tables, the kernel's own (local, 255) among them.
    pub table: Option<u32>,
    /// Leaving by the link with this index.
    pub oif: Option<u32>,
    /// Made by this protocol (RTPROT_*).
    pub protocol: Option<u8>,
}

impl Batch {
    /// Adds a route; refused with EEXIST when there is one to the same destination with the same metric.
    pub fn route_add(&mut self, route: &Route) -> &mut Batch {
        self.route(route, "add", libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route beside those that there are to the same destination.
    pub fn route_append(&mut self, route: &Route) -> &mut Batch {
        self.route(route, "append", libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND)
    }

    /// Adds a route, in the place of the one to the same destination with the same metric.
    pub fn route_replace(&mut self, route: &Route) -> &mut Batch {
        self.route(route, "set", libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route.
    pub fn route_del(&mut self, route: &Route) -> &mut Batch {
        self.route(route, "remove", libc::RTM_DELROUTE, 0)
    }

    fn route(&mut self, route: &Route, verb: &str, kind: u16, flags: u16) -> &mut Batch {
        let mut message = route.message();
        if kind == libc::RTM_DELROUTE && route.scope.is_none() {
            // RT_SCOPE_NOWHERE: of any scope.
            message.header.scope = 255.into();
        }
        let gw = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
        let oif = route.oif.map(|oif| format!(" on {}", self.name_of(oif))).unwrap_or_default();
        self.push(format!("{verb} route to {}{gw}{oif}", route.dst), kind, flags, |bytes| {
            emit(bytes, &message)
        })
    }
}

impl Netlink {
    /// The routes that the filter lets through; the kernel picks them. Cached ones are left out.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        for family in [Family::V4, Family::V6] {
            if filter.family.is_some_and(|wanted| wanted != family) {
                continue;
            }
            match self.routes_of(family, filter) {
                // The kernel says ENOENT for a table that no route is in, EAFNOSUPPORT without IPv6.
                Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => {}
                routes => found.extend(routes?),
            }
        }
        Ok(found)
    }

    fn routes_of(&mut self, family: Family, filter: RouteFilter) -> Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.netlink();
        message.header.protocol = filter.protocol.unwrap_or(0).into();
        message.attributes.extend(filter.table.map(RouteAttribute::Table));
        message.attributes.extend(filter.oif.map(RouteAttribute::Oif));
        let mut body = Vec::new();
        emit(&mut body, &message);
        self.channel.strict();
        self.channel.dump("list the routes", libc::RTM_GETROUTE, &body, |kind, body| {
            let cached = RouteHeader::parse(body).ok()?.flags.contains(RouteFlags::Cloned);
            let route = Route::parse(body).filter(|_| kind == libc::RTM_NEWROUTE && !cached)?;
            let table = filter.table.is_none_or(|table| route.table == Some(table));
            let oif = filter.oif.is_none_or(|oif| route.oif == Some(oif));
            let protocol = filter.protocol.is_none_or(|protocol| route.protocol == protocol);
            (table && oif && protocol).then_some(route)
        })
    }

    /// The route that the kernel would take towards an address (`ip route get`): its `oif` is the link. None when the
    /// address cannot be reached.
    pub fn route_towards(&mut self, ip: IpAddr) -> Result<Option<Route>> {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(ip);
        message.header.destination_prefix_length = prefix;
        message.attributes.push(RouteAttribute::Destination(ip.into()));
        let mut out = Outgoing::new();
        out.lookup(libc::RTM_GETROUTE, 0, |bytes| emit(bytes, &message));
        let answers = self.channel.exchange(out)?;
        let what = || format!("look up the route towards {ip}");
        match answers.refusal(0) {
            Some(refusal)
                if matches!(refusal.errno, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES) =>
            {
                Ok(None)
            }
            Some(refusal) => Err(Error::Kernel { what: what(), refusal: refusal.clone() }),
            None => {
                let route = answers.reply(0).and_then(Route::parse);
                let route =
                    route.ok_or_else(|| Error::Decode { what: what(), why: "it is no route".into() })?;
                // For IPv6 the kernel answers with its "unreachable" route instead of an error.
                Ok((route.kind != UNREACHABLE).then_some(route))
            }
        }
    }

    /// The default route of the main table with the lowest metric.
    pub fn default_route(&mut self, family: Family) -> Result<Option<Route>> {
        let filter = RouteFilter { family: Some(family), table: Some(MAIN_TABLE), ..RouteFilter::default() };
        let routes = self.routes(filter)?.into_iter();
        let usable =
            routes.filter(|route| route.is_default() && route.kind == UNICAST && route.oif.is_some());
        Ok(usable.min_by_key(|route| route.priority.unwrap_or(0)))
    }

    /// The link of the default route, of IPv4 before IPv6; its MTU is what the outside world takes.
    pub fn default_link(&mut self) -> Result<Option<Link>> {
        for family in [Family::V4, Family::V6] {
            if let Some(index) = self.default_route(family)?.and_then(|route| route.oif) {
                return self.link_at(index);
            }
        }
        Ok(None)
    }
}
