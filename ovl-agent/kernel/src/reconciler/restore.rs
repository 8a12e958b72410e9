//! Puts back single pieces that somebody took away, as the kernel told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Changes, Reconciler};
use crate::apply::apply;
use crate::drift::{Finder, Piece, Seen, Watched};
use crate::dump;
use crate::error::Result;
use crate::model::Model;
use crate::objects::{Dev, Objects, Target};
use crate::plan::{Op, Step, is_as_wanted};
use ovl_api::names::{self, ROUTE_PROTOCOL};

/// What [`Reconciler::restore`] did.
#[derive(Debug, Default)]
pub struct Restored {
    /// What changed.
    pub changes: Changes,
    /// The pieces that were put back.
    pub pieces: Vec<Piece>,
    /// That is not all: a full pass is needed, because of `causes`.
    pub look: bool,
    /// The pieces that only a full pass restores.
    pub causes: Vec<Piece>,
    /// Containers' links that are new, and to be looked at when the plugin has made all of them.
    pub new: Vec<Piece>,
}

impl Reconciler {
    /// What may be a piece of what the last pass left.
    pub fn watched(&self) -> Watched {
        let Some(model) = &self.model else { return Watched::default() };
        let devices = model.parts.keys().filter_map(|id| self.links.get(&*names::device(id)).copied());
        let subnets = model.parts.values().flat_map(|part| &part.network.subnets);
        Watched {
            devices: devices.collect(),
            links: self.containers.indices(),
            groups: model.parts.values().map(|part| names::group(part.network.vni)).collect(),
            subnets: subnets.map(|subnet| subnet.subnet).collect(),
            filter: self.rules.is_needed(),
            forward_chains: self.accepts.is_needed(),
            port: self.table.as_ref().map_or(0, |table| table.port()),
        }
    }

    /// A piece, for people.
    pub fn describe(&self, piece: &Piece) -> String {
        let device = |index: u32| self.links.iter().find(|(_, known)| **known == index).map(|(dev, _)| dev);
        let link = |index: u32| match (self.containers.name(index), device(index)) {
            (Some(dev), _) => format!("container's link {dev}"),
            (None, Some(dev)) => format!("device {dev}"),
            (None, None) => format!("link number {index}"),
        };
        match piece {
            Piece::Forwarding => "forwarding (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding)".to_owned(),
            Piece::ForwardChains => "the forward chains of other tables".to_owned(),
            Piece::Device(index) => link(*index),
            Piece::Filter => format!("the packet filter (nftables table inet {})", crate::rules::NAME),
            Piece::Neigh(index, ip) => format!("neighbour {ip} on {}", link(*index)),
            Piece::Forward(index, mac) => {
                format!("forwarding of {} on {}", net::mac_text(*mac), link(*index))
            }
            Piece::Route(key) => format!("route {}", key.dst),
        }
    }

    /// Puts back the pieces that the last pass wanted and that are not as it left them. What is not wanted any more, or is as
    /// wanted after all, costs nothing; a device that is not as it should be is left to a full pass, as is what was left by a
    /// pass that was not to take anything away.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn restore(&mut self, pieces: &BTreeMap<Piece, Seen>) -> Result<Restored> {
        let mut restored = Restored::default();
        let Some(model) = self.model.take() else { return Ok(restored) };
        let outcome = self.restore_by(&model, pieces, &mut restored);
        self.model = Some(model);
        outcome.map(|()| restored)
    }

    fn restore_by(
        &mut self,
        model: &Model,
        pieces: &BTreeMap<Piece, Seen>,
        restored: &mut Restored,
    ) -> Result<()> {
        let unknown = self.failed.clone();
        let mut finder = Finder::new(model, &self.links, &unknown);
        pieces.keys().for_each(|piece| finder.find(piece));
        for index in pieces.keys().filter_map(Piece::device) {
            let dev = self.containers.name(index);
            let known = dev.and_then(|dev| model.endpoints.get_key_value(&**dev));
            finder.containers.extend(known.map(|(veth, _)| veth.as_str()));
        }
        let scene = self.scene(model);
        let mut wanted = scene.pieces(&finder.touched).objects;
        scene.containers(finder.containers.iter().copied(), &mut wanted);

        let mut steps = Vec::new();
        for (piece, seen) in pieces {
            let on = |index: &u32| match finder.device(*index) {
                Some((_, dev)) => Ok(Some(dev)),
                None => Err(*index),
            };
            let op = match piece {
                Piece::Forwarding => {
                    self.restore_forwarding(model, restored);
                    None
                }
                Piece::Device(index) => {
                    let look = match on(index) {
                        Ok(Some(dev)) => {
                            Some(*seen == Seen::Down || !self.is_device_right(&dev, *index, &wanted)?)
                        }
                        _ => self.look_at_container(*index, seen, model, &wanted)?,
                    };
                    restored.new.extend(look.is_none().then_some(*piece));
                    restored.causes.extend((look == Some(true)).then_some(*piece));
                    None
                }
                Piece::Filter => {
                    self.restore_filter(model, restored);
                    None
                }
                Piece::ForwardChains => {
                    let before = restored.changes.changed;
                    self.accept_forwarded(model, true, &mut restored.changes);
                    restored.pieces.extend((restored.changes.changed > before).then_some(*piece));
                    None
                }
                Piece::Neigh(index, ip) => {
                    let dev = match on(index) {
                        Ok(dev) => dev,
                        Err(index) => self.container_with(index, *ip, &wanted)?,
                    };
                    let dev = dev.map(|dev| (dev, *ip));
                    let found = dev.and_then(|key| wanted.neighs.get_key_value(&key));
                    let found = found.filter(|(_, mac)| *seen != Seen::Neigh(Some(**mac)));
                    found.map(|((dev, ip), mac)| Op::SetNeigh(dev.clone(), *ip, *mac))
                }
                Piece::Forward(index, mac) => {
                    let key = on(index).ok().flatten().map(|dev| (dev, *mac));
                    let found = key.and_then(|key| wanted.forwards.get_key_value(&key));
                    let found = found.filter(|(_, forward)| *seen != Seen::Forward((*forward).clone()));
                    found.map(|((dev, mac), forward)| Op::SetForward(dev.clone(), *mac, forward.clone()))
                }
                Piece::Route(key) => match wanted.routes.get(key) {
                    Some(target) if self.is_usable(target, &wanted)? && !self.is_route(seen, target) => {
                        Some(Op::SetRoute(*key, target.clone()))
                    }
                    _ => None,
                },
            };
            steps.extend(op.map(|op| (*piece, Step { op, replaces: *seen != Seen::Gone })));
        }
        if !self.believed || !restored.causes.is_empty() {
            restored.causes.extend(steps.iter().map(|(piece, _)| *piece));
        }
        restored.look |= !restored.causes.is_empty();
        if restored.look {
            return Ok(());
        }
        let (pieces, steps): (Vec<Piece>, Vec<Step>) = steps.into_iter().unzip();
        let refused = apply(&mut self.netlink, &mut self.links, &steps)?;
        let failed: BTreeSet<usize> = refused.iter().map(|(number, _)| *number).collect();
        let done = |number: &usize| !failed.contains(number);
        restored
            .changes
            .note(steps.iter().enumerate().filter(|(number, _)| done(number)).map(|(_, step)| (step, true)));
        for (number, piece) in pieces.into_iter().enumerate() {
            let to = if done(&number) { &mut restored.pieces } else { &mut restored.causes };
            to.push(piece);
        }
        restored.look |= !refused.is_empty();
        Ok(())
    }

    /// The device is there, and is as it should be, with its addresses.
    fn is_device_right(&mut self, dev: &Dev, index: u32, wanted: &Objects) -> Result<bool> {
        let Some(device) = wanted.devices.get(dev) else { return Ok(true) };
        let link = self.netlink.link(dev)?.filter(|link| link.index == index);
        if !link.is_some_and(|link| is_as_wanted(device, &dump::shown(&link))) {
            return Ok(false);
        }
        let addrs = self.netlink.addrs(Some(index))?;
        // One more address can bring a route that goes before those to the blocks.
        if addrs.iter().any(|addr| !wanted.addrs.contains_key(&(dev.clone(), addr.net))) {
            return Ok(false);
        }
        for ((_, net), role) in wanted.addrs.iter().filter(|((on, _), _)| on == dev) {
            let there = addrs.iter().any(|addr| addr.net == *net && dump::role(addr) == *role);
            if !there || !self.is_local(net.ip())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn restore_filter(&mut self, model: &Model, restored: &mut Restored) {
        let rules = self.rules_of(model);
        if !rules.is_needed() {
            return;
        }
        if let Some(table) = &mut self.table {
            table.forget();
        }
        let before = restored.changes.changed;
        self.filter(rules, true, &mut restored.changes);
        restored.pieces.extend((restored.changes.changed > before).then_some(Piece::Filter));
        restored.look |= !restored.changes.is_complete();
    }

    /// The container's link with that index, if the neighbour is one of it.
    fn container_with(&mut self, index: u32, ip: IpAddr, wanted: &Objects) -> Result<Option<Dev>> {
        let Some((dev, _)) =
            wanted.neighs.keys().find(|(dev, of)| *of == ip && wanted.links.contains_key(dev))
        else {
            return Ok(None);
        };
        Ok(self.usable_container(dev)?.filter(|found| *found == index).map(|_| dev.clone()))
    }

    /// A container's link may be on its way in or out: then its pieces are not wanted.
    pub(super) fn usable_container(&mut self, dev: &Dev) -> Result<Option<u32>> {
        let link = self.netlink.link(dev)?.filter(|link| link.up && link.kind.as_deref() == Some("veth"));
        let index = link.map(|link| link.index);
        if let Some(index) = index {
            self.links.insert(dev.clone(), index);
        }
        Ok(index)
    }

    fn is_usable(&mut self, target: &Target, wanted: &Objects) -> Result<bool> {
        match target.dev().filter(|dev| wanted.links.contains_key(*dev)) {
            Some(dev) => Ok(self.usable_container(dev)?.is_some()),
            None => Ok(true),
        }
    }

    /// The route that was told of is the one that is wanted.
    fn is_route(&self, seen: &Seen, target: &Target) -> bool {
        let Seen::Route(route) = seen else { return false };
        let index = target.dev().and_then(|dev| self.links.get(dev)).copied();
        route.protocol == ROUTE_PROTOCOL
            && (index.is_none() || route.oif == index)
            && dump::target(route, target.dev()) == *target
    }
}
