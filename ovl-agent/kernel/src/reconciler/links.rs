//! Containers' links, which the plugin makes and the agent keeps as they were made: by index, for name, group and address may be
//! what another program changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use net::names::DEAD_GROUP;
use net::route::LOCAL;
use net::{Link, LinkSet};
use ovl_api::names;

use super::{Changes, Reconciler, label};
use crate::apply::forward;
use crate::drift::{Piece, Seen};
use crate::dump::shown;
use crate::error::Result;
use crate::model::Model;
use crate::objects::{AddrRole, Dev, Objects};
use crate::plan::{Dumped, Made, is_as_made};

/// The kernel puts the local route of a new IPv6 address in place in the background.
const SOON: Duration = Duration::from_millis(200);

/// The containers' links that were seen.
#[derive(Debug, Default)]
pub(super) struct Containers {
    known: BTreeMap<u32, (Dev, Made)>,
    /// The keys of `known`.
    indices: Arc<BTreeSet<u32>>,
    /// Those that are down and to be brought up.
    down: BTreeSet<u32>,
    /// Those that the last whole pass found down, and that may be on their way in or out.
    passing: BTreeSet<u32>,
}

impl Containers {
    pub(super) fn indices(&self) -> Arc<BTreeSet<u32>> {
        self.indices.clone()
    }

    pub(super) fn name(&self, index: u32) -> Option<&Dev> {
        self.known.get(&index).map(|(dev, _)| dev)
    }

    /// Of these endpoints, those links are known that are there.
    fn learn(&mut self, links: &[Link], model: &Model) {
        let mut known = std::mem::take(&mut self.known);
        for link in links.iter().filter(|link| is_in_service(link)) {
            let old = known.remove(&link.index);
            // The kernel takes no alias with a new link: one without is still being made.
            let found = old.or_else(|| label(link).map(|_| (link.name.as_str().into(), made(link))));
            let is_endpoint = |(dev, _): &(Dev, Made)| model.endpoints.contains_key(&**dev);
            self.known.extend(found.filter(is_endpoint).map(|found| (link.index, found)));
        }
        self.indices = Arc::new(self.known.keys().copied().collect());
    }

    fn insert(&mut self, index: u32, dev: Dev, made: Made) {
        self.known.insert(index, (dev, made));
        Arc::make_mut(&mut self.indices).insert(index);
    }

    fn forget(&mut self, index: u32) {
        self.known.remove(&index);
        Arc::make_mut(&mut self.indices).remove(&index);
    }

    /// Notes how the links were made, and which are to be brought up.
    fn mark(&mut self, dumped: &mut Dumped, wanted: &Objects) {
        self.passing.clear();
        for (_, shown) in dumped.links.iter_mut().filter(|(dev, _)| wanted.links.contains_key(*dev)) {
            shown.made = self.known.get(&shown.index).map(|(_, made)| made.clone());
            shown.left_down = !shown.up && self.down.contains(&shown.index);
            if !shown.up && !shown.left_down {
                self.passing.insert(shown.index);
            }
        }
    }
}

fn is_in_service(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && link.group != DEAD_GROUP
}

fn made(link: &Link) -> Made {
    let (mac, mtu) = (link.mac, link.mtu.unwrap_or(0));
    Made { mac, mtu, alias: link.alias.clone().unwrap_or_default() }
}

impl Reconciler {
    /// The containers' links that the last whole pass found down: those that still are a moment later are not on their way in or
    /// out, which [`Self::restore`] finds.
    pub fn passing(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.containers.passing)
    }

    /// Has the host forward, if it is to.
    pub(super) fn forward(&self, model: &Model, drift: bool, changes: &mut Changes) {
        if model.parts.is_empty() {
            return;
        }
        let scene = self.scene(model);
        match forward(model.parts.values().any(|part| scene.has_ipv6(part))) {
            Ok(keys) => {
                let what = if drift { "was 0: restored" } else { "was 0: changed to 1" };
                changes.changed += keys.len();
                changes.mended += if drift { keys.len() } else { 0 };
                changes
                    .lines
                    .extend(keys.iter().map(|key| format!("setting {} {what}", key.replace('/', "."))));
            }
            Err(error) => {
                changes.failed_elsewhere.push(format!("the host does not forward packets: {error}"))
            }
        }
    }

    /// Gives containers' links their names back, and learns which links there are.
    pub(super) fn recognise(
        &mut self,
        links: &mut [Link],
        model: &Model,
        changes: &mut Changes,
    ) -> Result<()> {
        let names: BTreeSet<String> = links.iter().map(|link| link.name.clone()).collect();
        for link in links.iter_mut().filter(|link| is_in_service(link)) {
            let known = self.containers.name(link.index).map(|dev| dev.to_string());
            let name = known.or_else(|| label(link).map(|(name, _)| name));
            let name = name.filter(|name| *name != link.name && !names.contains(name));
            let Some((name, endpoint)) = name.and_then(|name| model.endpoints.get_key_value(&name)) else {
                continue;
            };
            match self.rename(link.index, name) {
                Ok(()) => {
                    changes.changed += 1;
                    changes.mended += 1;
                    changes.lines.push(format!("container's link {name} was named {}: restored", link.name));
                    link.name.clone_from(name);
                }
                Err(error) if error.is_missing() => {}
                Err(error) => drop(changes.failed.insert(endpoint.network.clone(), error.to_string())),
            }
        }
        self.recognise_devices(links, &names, model, changes);
        self.containers.learn(links, model);
        Ok(())
    }

    /// Gives the networks' devices their names back: by the index that the last pass saw, or by group and label.
    fn recognise_devices(
        &mut self,
        links: &mut [Link],
        names: &BTreeSet<String>,
        model: &Model,
        changes: &mut Changes,
    ) {
        for (id, part) in &model.parts {
            let name = names::device(id);
            if names.contains(&name) {
                continue;
            }
            let known = self.links.get(&*name).copied();
            let (group, alias) =
                (names::group(part.network.vni), format!("{}{}", names::DEVICE_ALIAS, part.network.name));
            let is_it = |link: &&mut Link| {
                let labelled = link.group == group && link.alias.as_deref() == Some(&*alias);
                link.kind.as_deref() == Some("vxlan") && (known == Some(link.index) || labelled)
            };
            let Some(link) = links.iter_mut().find(is_it) else { continue };
            match self.rename(link.index, &name) {
                Ok(()) => {
                    changes.changed += 1;
                    changes.mended += 1;
                    changes.lines.push(format!("VXLAN device {name} was named {}: restored", link.name));
                    link.name = name;
                }
                Err(error) if error.is_missing() => {}
                Err(error) => drop(changes.failed.insert(id.clone(), error.to_string())),
            }
        }
    }

    fn rename(&mut self, index: u32, name: &str) -> net::Result<()> {
        let set = LinkSet { name: Some(name), ..LinkSet::default() };
        match self.netlink.set(index, &set) {
            // Before Linux 6.2 a link that is up has to be taken down for that.
            Err(error) if error.is_busy() => {
                let up = |up| LinkSet { up: Some(up), ..LinkSet::default() };
                self.netlink.set(index, &up(false))?;
                self.netlink.set(index, &set)?;
                self.netlink.set(index, &up(true))
            }
            done => done,
        }
    }

    /// Notes what a dump does not say: how containers' links were made, and which addresses have no local route.
    pub(super) fn complete(&mut self, dumped: &mut Dumped, wanted: &Objects) -> Result<()> {
        self.containers.mark(dumped, wanted);
        for ((dev, net), role) in &mut dumped.addrs {
            let up = dumped.links.get(dev).is_some_and(|shown| shown.up);
            if up && wanted.devices.contains_key(dev) && !self.is_local(net.ip())? {
                *role = AddrRole::Cut;
            }
        }
        Ok(())
    }

    /// The kernel takes packets for an address of its own.
    pub(super) fn is_local(&mut self, ip: IpAddr) -> Result<bool> {
        let local = self.netlink.route_towards(ip)?.is_some_and(|route| route.kind == LOCAL);
        Ok(local || (ip.is_ipv6() && self.netlink.wait_until_local([ip], SOON)?))
    }

    /// The whole pass has brought up what was to be.
    pub(super) fn brought_up(&mut self) {
        self.containers.down.clear();
    }

    /// Looks at a link that may be a container's; true when a whole pass has something to do about it, None for a new one that is
    /// to be looked at again when its container is attached.
    pub(super) fn look_at_container(
        &mut self,
        index: u32,
        seen: &Seen,
        model: &Model,
        wanted: &Objects,
    ) -> Result<Option<bool>> {
        let link = self.netlink.link_at(index)?.filter(is_in_service);
        let Some(link) = link else {
            self.containers.forget(index);
            return Ok(Some(false));
        };
        let Some((dev, known)) = self.containers.known.get(&index) else {
            let named = label(&link).map(|(name, _)| name).unwrap_or_default();
            let names = [link.name.as_str(), &named];
            let Some((dev, _)) = names.iter().find_map(|name| model.endpoints.get_key_value(*name)) else {
                return Ok(Some(false));
            };
            self.links.insert(dev.as_str().into(), index);
            if label(&link).is_none() {
                return Ok(None);
            }
            let mut made = made(&link);
            if let Seen::New { mac, mtu } = seen {
                (made.mac, made.mtu) = (*mac, *mtu);
            }
            self.containers.insert(index, dev.as_str().into(), made);
            return Ok(None);
        };
        let Some(group) = wanted.links.get(dev) else { return Ok(Some(false)) };
        if *link.name != **dev {
            return Ok(Some(true));
        }
        let (dev, mut shown) = (dev.clone(), shown(&link));
        shown.made = Some(known.clone());
        if !shown.up {
            self.containers.down.insert(index);
        }
        if *seen == Seen::Down {
            return Ok(Some(true));
        }
        let mut addrs = wanted.addrs.keys().filter(|(on, _)| *on == dev).map(|(_, net)| *net).peekable();
        if !is_as_made(*group, addrs.peek().is_some(), &shown) {
            return Ok(Some(true));
        }
        let there = if addrs.peek().is_some() { self.netlink.addrs(Some(index))? } else { Vec::new() };
        Ok(Some(!addrs.all(|net| there.iter().any(|addr| addr.net == net))))
    }

    /// That the host forwards was changed.
    pub(super) fn restore_forwarding(&mut self, model: &Model, restored: &mut super::Restored) {
        let before = restored.changes.changed;
        self.forward(model, true, &mut restored.changes);
        restored.pieces.extend((restored.changes.changed > before).then_some(Piece::Forwarding));
        restored.look |= !restored.changes.is_complete();
    }
}
