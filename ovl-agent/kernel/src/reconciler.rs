//! What ties wanted state, dump, plan and application together.

mod accepts;
mod links;
mod restore;
mod stores;

pub use restore::Restored;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use net::firewall::overlay::OverlayTable;
use net::{Link, Netlink, Owner};
use ovl_api::model::{Delta, View};
use ovl_api::names;

use crate::apply::{Refused, apply};
use crate::dump::dump;
use crate::error::Result;
use crate::model::{HostName, Model, Touched};
use crate::objects::{Dev, Objects, RouteKey, Target};
use crate::plan::{Dumped, Op, Plan, Shown, Step, plan};
use crate::rules::{Rules, Table};
use crate::underlay::Underlay;
use crate::wanted::{Scene, Wanted};
use crate::words;
use accepts::Accepts;
use links::Containers;
use stores::Stores;

/// A route of ours on a link of which nothing is known is deleted when it was there this long ago, too: the container may
/// be so new that the view does not have it.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a full pass could not do is tried once more, after another look: links come and go meanwhile.
const TRIES: usize = 2;

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What changed, a line each: `route 10.42.3.0/26 via 10.42.3.1 on vx-… added`; a repair says what `was missing` or
    /// `was changed`. A pass that changes much names some and counts the rest.
    pub lines: Vec<String>,
    /// How many objects were added, changed or removed.
    pub changed: usize,
    /// How many of these somebody else had changed.
    pub mended: usize,
    /// What cannot be made to work with the state as it is, and was not told by an earlier pass.
    pub warnings: Vec<String>,
    /// Networks, by ID, whose state the kernel does not wholly show, with the first reason. The pass has done all else, and
    /// [`Reconciler::full`] tries again.
    pub failed: BTreeMap<String, String>,
    /// The reasons of failures that are no network's.
    pub failed_elsewhere: Vec<String>,
}

impl Changes {
    /// Nothing changed, and there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// The kernel shows everything.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.failed_elsewhere.is_empty()
    }

    /// Counts steps that were done and says them in words; true with one that mends what somebody changed.
    fn note<'a>(&mut self, done: impl Iterator<Item = (&'a Step, bool)>) {
        let (changed, mended) = (&mut self.changed, &mut self.mended);
        let counted = done.inspect(|(_, drift)| {
            *changed += 1;
            *mended += usize::from(*drift);
        });
        self.lines.extend(words::lines(counted));
    }
}

/// Brings the kernel of one network namespace to what a [`View`] wants. It blocks, and is to be made and used by one thread
/// that stays in that namespace.
pub struct Reconciler {
    netlink: Netlink,
    underlay: Underlay,
    /// Opened when there is something to filter.
    table: Option<Box<dyn Table + Send>>,
    /// What the last pass was computed from; None before the first, and after one that could not do all.
    model: Option<Model>,
    rules: Rules,
    accepts: Accepts,
    /// The store, which is closed to containers.
    stores: Stores,
    /// The last full pass believed its view: what is not in it may be taken away.
    believed: bool,
    warnings: BTreeSet<String>,
    /// All links, as of the last full pass, and the devices made since.
    links: BTreeMap<Dev, u32>,
    /// Names that containers' links had by their labels, as of the last full pass, and do not have: somebody renamed them.
    renamed: BTreeSet<String>,
    containers: Containers,
    /// The last full pass came to read the links.
    looked: bool,
    /// Routes that may have to be deleted, see [`PATIENCE`].
    suspects: BTreeMap<RouteKey, Instant>,
    /// What the last full pass could not do: the model says nothing of what the kernel shows of these networks.
    failed: BTreeMap<String, String>,
    failed_elsewhere: Vec<String>,
}

impl Reconciler {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub fn new(underlay: Underlay) -> Result<Reconciler> {
        Ok(Reconciler {
            netlink: Netlink::open()?,
            underlay,
            table: None,
            model: None,
            rules: Rules::default(),
            accepts: Accepts::default(),
            stores: Stores::default(),
            believed: true,
            warnings: BTreeSet::new(),
            links: BTreeMap::new(),
            renamed: BTreeSet::new(),
            containers: Containers::default(),
            looked: false,
            suspects: BTreeMap::new(),
            failed: BTreeMap::new(),
            failed_elsewhere: Vec::new(),
        })
    }

    /// With a packet filter of one's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_table(underlay: Underlay, table: Box<dyn Table + Send>) -> Result<Reconciler> {
        Ok(Reconciler { table: Some(table), ..Reconciler::new(underlay)? })
    }

    /// The underlay as it was last seen: its MTU may change.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// False when the last full pass looked at the links, and the host's end of this container's was not among them, nor was
    /// one that had been it before somebody renamed it.
    pub fn has_link(&self, veth: &str) -> bool {
        !self.looked || self.links.contains_key(veth) || self.renamed.contains(veth)
    }

    /// All that cannot be made to work with the state as it is, whether it was told before or not.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.iter().cloned().collect()
    }

    /// Reads all that the kernel shows, and mends what differs from the view. Nothing is done while the view does not have this
    /// host, which is not registered then.
    ///
    /// # Errors
    /// When the kernel cannot be asked. What it refuses is in [`Changes::failed`], not an error.
    pub fn full(&mut self, view: &View) -> Result<Changes> {
        self.whole(view, true)
    }

    /// As [`Self::full`], but deletes nothing, and puts nothing in the place of another: for a view that is the one last seen,
    /// because the store has not been read since the agent's start. What later deltas say is deleted.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn mend(&mut self, view: &View) -> Result<Changes> {
        self.whole(view, false)
    }

    fn whole(&mut self, view: &View, believed: bool) -> Result<Changes> {
        let mut changes = Changes::default();
        self.looked = false;
        let Some(model) = Model::of(view) else { return Ok(changes) };
        let before = self.model.take();
        self.believed = believed;
        self.forward(&model, before.is_some(), &mut changes);
        let links = self.netlink.links()?;
        let expected = before.as_ref().map(|model| self.scene(model).everything().objects);
        if let Some(link) = links.iter().find(|link| link.name == self.underlay.name) {
            self.underlay.link = link.index;
            if !link.loopback {
                self.underlay.mtu = link.mtu.unwrap_or(self.underlay.mtu);
            }
        } else {
            changes.failed_elsewhere.push(format!(
                "the underlay's interface {} is gone; start the agent again once there is another",
                self.underlay.name
            ));
        }
        let Wanted { objects: wanted, warnings } = self.scene(&model).everything();
        self.look_for_stores(&links, &mut changes);
        let rules = self.rules_of(&model);
        if let Some(table) = &mut self.table {
            table.forget();
        }
        self.filter(rules, before.is_some(), &mut changes);
        self.accept_forwarded(&model, before.is_some(), &mut changes);

        let mut links = Some(links);
        for tries in 1..=TRIES {
            let mut all = match links.take() {
                Some(links) => links,
                None => self.netlink.links()?,
            };
            self.recognise(&mut all, &model, &mut changes)?;
            let mut dumped = dump(&mut self.netlink, &all, &wanted, &self.underlay.name)?;
            self.complete(&mut dumped, &wanted)?;
            self.renamed =
                all.iter().filter_map(label).filter(|(name, is)| name != is).map(|(name, _)| name).collect();
            self.looked = true;
            self.links = all.into_iter().map(|link| (link.name.into(), link.index)).collect();
            let mut steps = plan(&wanted, &dumped);
            self.spare_newcomers(&mut steps, view, expected.as_ref(), &dumped);
            if !believed {
                steps.retain(only_adds);
            }
            drop(dumped);
            let refused = apply(&mut self.netlink, &mut self.links, &steps)?;
            let failed: BTreeSet<usize> = refused.iter().map(|(number, _)| *number).collect();
            let done = steps.iter().enumerate().filter(|(number, _)| !failed.contains(number));
            let drift =
                |step: &Step| expected.as_ref().is_some_and(|expected| !asked(step, expected, &wanted));
            changes.note(done.map(|(_, step)| (step, drift(step))));
            let refused = self.without_leavers(refused, &steps, &model)?;
            if refused.is_empty() || tries == TRIES {
                tell(&mut changes, &steps, refused, &model);
                break;
            }
        }
        self.brought_up();
        changes.warnings.extend(words::new_ones(&warnings, &self.warnings));
        self.warnings = warnings;
        self.failed.clone_from(&changes.failed);
        self.failed_elsewhere.clone_from(&changes.failed_elsewhere);
        self.model = Some(model);
        Ok(changes)
    }

    /// Applies what changed since the last pass, without reading anything: the cost is the delta's. Becomes [`Self::full`], or
    /// [`Self::mend`] when the last whole pass was that, when there was none yet, when `delta.all`, when this host itself
    /// changed, and when the kernel refuses something. A network that the last whole pass could not make is left to the next
    /// one, and told as failed until then.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn delta(&mut self, view: &View, delta: &Delta) -> Result<Changes> {
        let Some(mut model) = self.model.take() else { return self.whole(view, self.believed) };
        let known = model.touched(view, delta);
        // What is there of a network that failed is not known, so it cannot be taken away by memory.
        let known = known.filter(|touched| !touched.whole.iter().any(|id| self.failed.contains_key(id)));
        let Some(mut touched) = known else {
            self.model = Some(model);
            return self.whole(view, self.believed);
        };
        touched.local.retain(|id| !self.failed.contains_key(id));
        touched.remote.retain(|(id, _)| !self.failed.contains_key(id));
        let mut changes = Changes::default();
        let old = self.scene(&model).pieces(&touched);
        let remembered = self.remembered(&old.objects, &model);
        let had_part = have_part(&touched, &model);
        let nets_changed = model.update(view, delta, &touched);
        let new = self.scene(&model).pieces(&touched);
        let parts_changed = !touched.whole.is_empty() || have_part(&touched, &model) != had_part;
        if !delta.hosts.is_empty() || nets_changed || parts_changed {
            let rules = self.rules_of(&model);
            self.filter(rules, false, &mut changes);
        }
        self.accept_other_networks(&model, &mut changes);
        let steps = plan(&new.objects, &remembered);
        let refused = apply(&mut self.netlink, &mut self.links, &steps)?;
        let failed: BTreeSet<usize> = refused.iter().map(|(number, _)| *number).collect();
        let done = steps.iter().enumerate().filter(|(number, _)| !failed.contains(number));
        changes.note(done.map(|(_, step)| (step, false)));
        self.model = Some(model);
        if !refused.is_empty() || !changes.is_complete() {
            // Something is not as it was left: look.
            let mended = self.whole(view, self.believed)?;
            changes.lines.extend(mended.lines);
            let changed = changes.changed + mended.changed;
            return Ok(Changes { lines: changes.lines, changed, ..mended });
        }
        changes.warnings.extend(words::new_ones(&new.warnings, &self.warnings));
        self.warnings.retain(|warning| !old.warnings.contains(warning));
        self.warnings.extend(new.warnings);
        changes.failed.clone_from(&self.failed);
        changes.failed_elsewhere.clone_from(&self.failed_elsewhere);
        Ok(changes)
    }

    fn scene<'a>(&'a self, model: &'a Model) -> Scene<'a> {
        Scene { model, underlay: &self.underlay }
    }

    /// Without what was refused because a container's link went, or came, since it was looked at: no fault of its network, and
    /// of nobody else who waits for this pass.
    fn without_leavers(
        &mut self,
        refused: Vec<Refused>,
        steps: &[Step],
        model: &Model,
    ) -> Result<Vec<Refused>> {
        let mut left = Vec::new();
        for (number, error) in refused {
            let dev = steps.get(number).and_then(|step| dev_of(&step.op));
            let container = dev.filter(|dev| model.endpoints.contains_key(&***dev));
            let goes = match container {
                Some(dev) => error.is_down() || error.is_missing() || self.usable_container(dev)?.is_none(),
                None => false,
            };
            if !goes {
                left.push((number, error));
            }
        }
        Ok(left)
    }

    /// What is there when the last pass left just that, and the devices of the networks of `model` beside.
    fn remembered(&self, objects: &Objects, model: &Model) -> Dumped {
        let mut dumped = Dumped::showing(objects);
        let up = Shown { up: true, ..Shown::default() };
        let devices = model.parts.keys().map(|id| names::device(id).into());
        for dev in devices.chain([self.underlay.name.as_str().into()]) {
            dumped.links.entry(dev).or_insert_with(|| up.clone());
        }
        dumped
    }

    /// Has the packet filter let pass what the rules say, before there is anything to pass.
    fn filter(&mut self, rules: Rules, mending: bool, changes: &mut Changes) {
        let believed = self.believed;
        let outcome = match (!rules.is_needed(), believed) {
            (true, true) => self.unfilter(),
            (true, false) => Ok(false),
            (false, _) => {
                self.table().and_then(|table| if believed { table.apply(&rules) } else { table.add(&rules) })
            }
        };
        match outcome {
            Ok(true) => {
                let drift = mending && rules == self.rules;
                let what = if drift { "was changed: restored" } else { "changed" };
                changes.lines.push(format!("packet filter (nftables table inet weft-overlay) {what}"));
                changes.changed += 1;
                changes.mended += usize::from(drift);
            }
            Ok(false) => {}
            Err(error) => changes.failed_elsewhere.push(error.to_string()),
        }
        self.rules = rules;
    }

    fn table(&mut self) -> net::Result<&mut Box<dyn Table + Send>> {
        let table = match self.table.take() {
            Some(table) => table,
            None => Box::new(OverlayTable::open()?),
        };
        Ok(self.table.insert(table))
    }

    /// No network has a part here, and there is no other node.
    fn unfilter(&mut self) -> net::Result<bool> {
        match self.table() {
            // Without nftables there is no table.
            Err(net::Error::Unsupported(_)) => Ok(false),
            Err(error) => Err(error),
            Ok(table) => table.remove().map(|()| false),
        }
    }

    /// Takes deletions of containers' routes out of the steps that may be too early. A container that is known, or was, is no
    /// newcomer: its address may be another host's now.
    fn spare_newcomers(
        &mut self,
        steps: &mut Plan,
        view: &View,
        expected: Option<&Objects>,
        dumped: &Dumped,
    ) {
        let known = |dev: &Dev| {
            let device = dumped.links.get(dev).is_some_and(|shown| shown.vxlan.is_some());
            let before = expected.is_some_and(|expected| expected.links.contains_key(dev));
            device || before || view.links.contains(&**dev) || **dev == *self.underlay.name
        };
        let now = Instant::now();
        let suspects = std::mem::take(&mut self.suspects);
        steps.retain(|step| match &step.op {
            Op::DelRoute(key, Target::Dev { dev, .. }) if !known(dev) => {
                let since = *suspects.get(key).unwrap_or(&now);
                self.suspects.insert(*key, since);
                now.duration_since(since) >= PATIENCE
            }
            _ => true,
        });
    }
}

/// The name that a container's link was given, by its label, and the one it has.
fn label(link: &Link) -> Option<(String, &str)> {
    let owner = link.alias.as_deref().and_then(Owner::parse_alias)?;
    Some((owner.host_veth(), &link.name))
}

/// Of each network and host that a delta touches, whether the host has a part in it.
fn have_part(touched: &Touched, model: &Model) -> Vec<bool> {
    let has = |(id, host): &(String, HostName)| {
        model.parts.get(id).is_some_and(|part| part.hosts.contains_key(host))
    };
    touched.remote.iter().map(has).collect()
}

/// True when a step takes nothing away. A device of a network with containers here may be made anew or changed: what that
/// is to be follows from this host.
fn only_adds(step: &Step) -> bool {
    match step.op {
        Op::DeleteDevice(_) => step.replaces,
        Op::CreateDevice(..) | Op::ChangeDevice(..) | Op::ChangeLink(..) | Op::Set(..) => true,
        Op::SetAddr(..) | Op::SetNeigh(..) | Op::SetForward(..) | Op::SetRoute(..) => !step.replaces,
        Op::DelRoute(..) | Op::DelForward(..) | Op::DelNeigh(..) | Op::DelAddr(..) => false,
    }
}

/// True when a step follows from a change of what is wanted, not from a change that somebody made in the kernel.
fn asked(step: &Step, expected: &Objects, wanted: &Objects) -> bool {
    fn differs<K: Ord, V: PartialEq>(key: &K, a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> bool {
        a.get(key) != b.get(key)
    }
    match &step.op {
        Op::DeleteDevice(dev) | Op::CreateDevice(dev, _) | Op::ChangeDevice(dev, ..) => {
            differs(dev, &expected.devices, &wanted.devices)
        }
        Op::ChangeLink(dev, _) => differs(dev, &expected.links, &wanted.links),
        Op::Set(dev, _) => {
            differs(dev, &expected.devices, &wanted.devices) || differs(dev, &expected.links, &wanted.links)
        }
        Op::SetAddr(dev, net, _) | Op::DelAddr(dev, net) => {
            differs(&(dev.clone(), *net), &expected.addrs, &wanted.addrs)
        }
        Op::SetNeigh(dev, ip, _) | Op::DelNeigh(dev, ip) => {
            differs(&(dev.clone(), *ip), &expected.neighs, &wanted.neighs)
        }
        Op::SetForward(dev, mac, _) | Op::DelForward(dev, mac, _) => {
            differs(&(dev.clone(), *mac), &expected.forwards, &wanted.forwards)
        }
        Op::SetRoute(key, _) | Op::DelRoute(key, _) => differs(key, &expected.routes, &wanted.routes),
    }
}

/// Says what was refused, and whose it was.
fn tell(changes: &mut Changes, steps: &[Step], refused: Vec<Refused>, model: &Model) {
    for (number, error) in refused {
        match steps.get(number).and_then(|step| network_of(&step.op, model)) {
            Some(id) => drop(changes.failed.entry(id).or_insert_with(|| error.to_string())),
            None => changes.failed_elsewhere.push(error.to_string()),
        }
    }
}

/// The ID of the network that a step is about.
fn network_of(op: &Op, model: &Model) -> Option<String> {
    let of_dev = |dev: &Dev| match dev.strip_prefix("vx-") {
        Some(id) => model.parts.contains_key(id).then(|| id.to_owned()),
        None => model.endpoints.get(&**dev).map(|endpoint| endpoint.network.clone()),
    };
    let dev = dev_of(op).and_then(of_dev);
    match op {
        Op::SetRoute(key, _) | Op::DelRoute(key, _) => dev.or_else(|| {
            let covers = |subnet: &ovl_api::model::Subnet| subnet.subnet.contains(key.dst.network());
            let part = model.parts.iter().find(|(_, part)| part.network.subnets.iter().any(covers));
            part.map(|(id, _)| id.clone())
        }),
        _ => dev,
    }
}

/// The link that a step is about.
fn dev_of(op: &Op) -> Option<&Dev> {
    match op {
        Op::DeleteDevice(dev)
        | Op::CreateDevice(dev, _)
        | Op::ChangeDevice(dev, ..)
        | Op::ChangeLink(dev, _)
        | Op::Set(dev, _)
        | Op::SetAddr(dev, ..)
        | Op::DelAddr(dev, _)
        | Op::SetNeigh(dev, ..)
        | Op::DelNeigh(dev, _)
        | Op::SetForward(dev, ..)
        | Op::DelForward(dev, ..) => Some(dev),
        Op::SetRoute(_, target) | Op::DelRoute(_, target) => target.dev(),
    }
}
