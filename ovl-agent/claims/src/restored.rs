//! A store that was set back: etcd restored from an older snapshot, or made anew.
//!
//! `c/history` names the history that the store's data is of. The first node that sees the store set back (its revision is lower
//! than before, the cluster or the history is another) writes a new name there, before anything else; so nodes that return
//! later notice it however far the store has come since. Each node then puts back what the store lacks of its part, and
//! says so in `c/back/NODE`. Until it has, what the other nodes knew of it last stays in force: its blocks and single
//! addresses, its record. So no node deletes a route because a record is missing, or claims a block that is in use.
//!
//! Two revisions tell old facts from new ones: what changed at a revision that the node had seen, and before `c/history`
//! was written, is from before; the rest was written since and is applied.

use crate::inner::{Fenced, Inner};
use crate::join::Trouble;
use crate::keys::{self, Key};
use crate::pool;
use crate::record::Read;
use crate::state::{Me, State};
use ipnetwork::IpNetwork;
use ovl_api::model::{Host, is_single};
use ovl_api::wire::{HeldRecord, Problem};
use ovl_store::{Compare, Op, Revision, Snapshot, Txn};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// This many earlier names are kept.
const NAMES: usize = 16;

/// The value of `c/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct History {
    /// The names of this history and of those before it, this one's last.
    ids: Vec<String>,
    /// The store's revision when it was seen to be set back; 0 when it had no history.
    #[serde(default)]
    set_back_to: Revision,
}

impl History {
    fn id(&self) -> &str {
        self.ids.last().map_or("", String::as_str)
    }

    fn after(before: Option<&History>, id: String, set_back_to: Revision) -> History {
        let mut ids = before.map_or_else(Vec::new, |before| before.ids.clone());
        ids.push(id);
        ids.drain(..ids.len().saturating_sub(NAMES));
        History { ids, set_back_to }
    }
}

/// The store was set back, and the view has more than the store.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    /// The store's history since.
    history: History,
    /// When that was written.
    at: Revision,
    /// The revision that the view had been at before.
    pub(crate) known: Revision,
}

impl Restored {
    /// Whether a key that changed then says what this node knew before the store was set back.
    fn is_old(&self, changed: Revision) -> bool {
        changed < self.at && changed <= self.known
    }
}

/// What the node knows of the store's history.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// The history that the view is of; while nodes have to put something back, the one before.
    pub(crate) history: Option<History>,
    /// Until all nodes have put their part back.
    pub(crate) restored: Option<Restored>,
    /// For which history each node has put its part back.
    back: HashMap<String, String>,
    /// A snapshot cannot be of the view's history.
    pub(crate) suspect: bool,
    /// The store names another history than the one that the session began with.
    pub(crate) changed: bool,
}

impl Past {
    fn current(&self) -> Option<&History> {
        self.restored.as_ref().map(|restored| &restored.history).or(self.history.as_ref())
    }
}

/// How the store's history stands to the view's.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It is the same, or the view has none.
    Same,
    /// Another node has seen that the store was set back.
    Other,
    /// The store was set back, and does not say so.
    SetBack,
    /// The store has no history yet.
    None,
}

impl Inner {
    /// Notices that the store was set back, and says so in the store. Returns whether the view has more than the store.
    pub(crate) async fn check_history(&self) -> Result<bool, Trouble> {
        let mut set_back = false;
        loop {
            let (from, to) = keys::alone(keys::HISTORY);
            let read = self.commit(Txn { then: vec![Op::Get(from, to)], ..Txn::default() }).await?;
            let entry = read.got.first().and_then(|got| got.first());
            let found = entry.and_then(|entry| serde_json::from_slice::<History>(&entry.value).ok());
            let standing = self.look(|state| state.compare_history(read.revision, found.as_ref()));
            set_back |= standing == Standing::SetBack;
            let to = match (standing, &found) {
                (Standing::Same | Standing::Other, Some(history)) => {
                    let at = entry.map_or(0, |entry| entry.changed);
                    return Ok(self.update(|state| {
                        state.past.changed = false;
                        state.begin_history(history.clone(), at, set_back)
                    }));
                }
                (Standing::None, _) | (_, None) => 0,
                (_, Some(_)) => read.revision,
            };
            self.update(|state| state.past.suspect = false);
            let id =
                crate::random::id(8).map_err(|e| crate::open::internal(format!("no random number: {e}")))?;
            let history = History::after(found.as_ref(), id, to);
            let key = keys::HISTORY.to_owned();
            let when = match entry {
                Some(entry) => Compare::Unchanged(key.clone(), entry.changed),
                None => Compare::Absent(key.clone()),
            };
            let then = vec![Op::Put(key, keys::json(&history), None)];
            self.commit(Txn { when: vec![when], then, otherwise: Vec::new() }).await?;
        }
    }

    /// Puts back what a store that was set back has an older value of: own blocks that another node had before.
    pub(crate) async fn overwrite_old_claims(&self, snapshot: &Snapshot, me: &Me) -> Result<(), Problem> {
        let value = keys::json(&crate::claim::claim(me));
        for entry in &snapshot.entries {
            let Read::Block(network, block, Some(claim)) = Read::of(&entry.key, Some(&entry.value)) else {
                continue;
            };
            if claim.host == me.host.name {
                continue;
            }
            let (own, old) = self.look(|state| {
                let own = state.own_block(network, block).is_some();
                (own, state.past.restored.as_ref().is_some_and(|restored| restored.is_old(entry.changed)))
            });
            if own && old {
                let txn = Txn {
                    when: vec![Compare::Unchanged(entry.key.clone(), entry.changed)],
                    then: vec![Op::Put(entry.key.clone(), value.clone(), None)],
                    otherwise: Vec::new(),
                };
                if let Fenced::Held(_) = self.commit_fenced(me, txn).await? {
                    tracing::warn!(
                        "the store was set back and named node {} for block {block} of network {network}: this node's claim \
                         was put back",
                        claim.host
                    );
                }
            }
        }
        Ok(())
    }

    /// Says that this node has put its part back, if the store was ever set back and it does not say so yet.
    pub(crate) async fn report_back(&self, snapshot: &Snapshot) -> Result<(), Problem> {
        let me = self.me()?;
        let id = self.look(|state| {
            let history = state.past.current()?;
            (history.ids.len() > 1).then(|| history.id().to_owned())
        });
        let Some(id) = id else { return Ok(()) };
        let key = keys::back(&me.host.name);
        if snapshot.entries.iter().any(|entry| entry.key == key && entry.value == id.as_bytes()) {
            return Ok(());
        }
        let then = vec![Op::Put(key, id.into_bytes(), None)];
        self.commit_fenced(&me, Txn { then, ..Txn::default() }).await.map(drop)
    }
}

impl State {
    fn compare_history(&self, revision: Revision, found: Option<&History>) -> Standing {
        // The cluster is compared with the snapshot.
        let went_back = self.past.suspect || revision < self.revision;
        match (self.past.current(), found) {
            (Some(current), Some(found)) if current.id() == found.id() => {
                if went_back {
                    Standing::SetBack
                } else {
                    Standing::Same
                }
            }
            // A name that was there before this one.
            (Some(current), Some(found)) if current.ids.iter().any(|id| id == found.id()) => {
                Standing::SetBack
            }
            (Some(_), Some(_)) => Standing::Other,
            (Some(_), None) => Standing::SetBack,
            (None, _) if went_back => Standing::SetBack,
            (None, Some(_)) => Standing::Same,
            (None, None) => Standing::None,
        }
    }

    /// Takes the history that the store names. True while the view has more than the store.
    fn begin_history(&mut self, history: History, at: Revision, set_back: bool) -> bool {
        let same = self.past.current().is_some_and(|current| current.id() == history.id());
        if same && !set_back {
            return self.past.restored.is_some();
        }
        let known = self.past.restored.as_ref().map_or(0, |restored| restored.known).max(self.revision);
        let behind = self.past.history.is_some() && known > history.set_back_to;
        self.view_changed = true;
        if set_back || behind {
            tracing::warn!(
                "the store was set back: what it lacks stays in force until each node has put its part back"
            );
            self.past.restored = Some(Restored { history, at, known });
        } else {
            self.past.restored = None;
            self.past.history = Some(history);
        }
        self.past.restored.is_some()
    }

    /// A snapshot was applied although it lacks what was in force: on a user's word.
    pub(crate) fn accept_restored(&mut self) {
        if let Some(restored) = self.past.restored.take() {
            self.past.history = Some(restored.history);
            self.view_changed = true;
        }
    }

    /// The history that the store names, as the watch or a snapshot has it.
    pub(crate) fn note_history(&mut self, history: Option<&History>) {
        let (Some(history), current) = (history, self.past.current()) else { return };
        self.past.changed |= current.is_none_or(|current| current.id() != history.id());
    }

    /// A node says for which history it has put its part back.
    pub(crate) fn note_back(&mut self, name: &str, id: Option<String>) {
        match id {
            Some(id) => self.past.back.insert(name.to_owned(), id),
            None => self.past.back.remove(name),
        };
        self.release_restored(name);
    }

    /// Applies what was not, because it concerns this node and it had to put its part back.
    pub(crate) fn release_restored(&mut self, name: &str) {
        // The rest of a snapshot says what there is.
        if self.replacing || !self.is_back(name) {
            return;
        }
        let concerns = |key: &String| match Key::parse(key) {
            Key::Host(host) => host == name,
            Key::Block(network, block) => self.is_owner(name, network, block),
            Key::Single(network, address) => self.is_owner(name, network, pool::alone(address)),
            _ => false,
        };
        let held = self.held.iter().filter(|(key, held)| held.restored && concerns(key));
        let (missing, there): (Vec<_>, Vec<_>) = held.partition(|(_, held)| held.deleted);
        self.recheck_held |= !there.is_empty();
        let missing: Vec<String> = missing.into_iter().map(|(key, _)| key.clone()).collect();
        missing.iter().for_each(|key| self.apply(key, None, self.revision));
    }

    fn is_owner(&self, name: &str, network: &str, block: IpNetwork) -> bool {
        self.view.owners.get(&(network.to_owned(), block)).is_some_and(|owner| owner == name)
    }

    /// Whether what the store says of a node's part is all there is.
    fn is_back(&self, name: &str) -> bool {
        self.past.restored.as_ref().is_none_or(|restored| {
            self.past.back.get(name).is_some_and(|id| id == restored.history.id())
                || self.view.hosts.get(name).is_some_and(|host| host.removed)
        })
    }

    /// Why what a store that was set back says of a key, or that it lacks it, is not applied.
    pub(crate) fn outlasts(&self, read: &Read<'_>, changed: Revision) -> Option<String> {
        let restored = self.past.restored.as_ref()?;
        let (network, range, claim) = match read {
            Read::Host(name, Some(host)) => return self.outlasts_host(restored, name, host, changed),
            Read::Block(network, block, claim) => (*network, *block, claim.as_ref()),
            Read::Single(network, address, single) => {
                (*network, pool::alone(*address), single.as_ref().map(|single| &single.claim))
            }
            _ => return None,
        };
        let entry = (network.to_owned(), range);
        let owner = self.view.owners.get(&entry)?;
        let applies = match claim {
            Some(claim) => claim.host == *owner || !restored.is_old(changed),
            // That it is removed now, the watch says, unless it has not been there since the store was set back.
            None if self.replacing => self.returning.contains(&entry),
            None => !self.is_kept(read),
        };
        if applies || self.is_back(owner) {
            return None;
        }
        let is = match claim {
            Some(claim) => format!("names node {}", claim.host),
            None => "does not have it".to_owned(),
        };
        Some(format!(
            "{range} is node {owner}'s; the store was set back and {is}, and node {owner} has not put it back yet (a node that \
             is gone: `ovl-agent accept`)"
        ))
    }

    fn outlasts_host(
        &self,
        restored: &Restored,
        name: &str,
        host: &Host,
        changed: Revision,
    ) -> Option<String> {
        let before = self.view.hosts.get(name).filter(|before| *before != host)?;
        (name != self.view.me && restored.is_old(changed) && !self.is_back(name)).then(|| {
            format!(
                "the node's VTEP is {}, epoch {}; the store was set back to an older record, and the node has not put it back yet",
                before.vtep, before.epoch
            )
        })
    }

    fn is_kept(&self, read: &Read<'_>) -> bool {
        let key = match read {
            Read::Block(network, block, _) => keys::block(network, *block),
            Read::Single(network, address, _) => keys::single(network, *address),
            _ => return false,
        };
        self.held.get(&key).is_some_and(|held| held.restored)
    }

    /// The store has all that the view has, once nothing is held back for that reason.
    pub(crate) fn end_restored(&mut self) {
        if self.replacing || self.past.changed || self.held.values().any(|held| held.restored) {
            return;
        }
        if let Some(restored) = self.past.restored.take() {
            tracing::info!("the store has all again that it had before it was set back");
            self.past.history = Some(restored.history);
            self.view_changed = true;
        }
    }

    /// This node's record as it counts, and the least epoch: one that a store has again since it was set back, of an earlier
    /// epoch, an earlier installation or a removal that was over, is written anew.
    pub(crate) fn since_set_back(
        &self,
        found: Option<(Host, Revision)>,
        id: &str,
    ) -> (Option<(Host, Revision)>, u64) {
        let is_old = |changed| self.past.restored.as_ref().is_some_and(|restored| restored.is_old(changed));
        let me = self.me.as_ref().filter(|me| me.host.id == id);
        match (found, me) {
            (Some((host, changed)), Some(me)) if is_old(changed) => {
                let other = host.removed || host.id != me.host.id;
                let host = if other { Host { epoch: 0, ..me.host.clone() } } else { host };
                (Some((host, changed)), me.host.epoch)
            }
            (found, _) => (found, 0),
        }
    }

    /// Another node's claim that was written before the store was set back, on what is a third one's since.
    pub(crate) fn is_overtaken(&self, network: &str, range: IpNetwork, changed: Revision) -> bool {
        let owner = self.view.owners.get(&(network.to_owned(), range));
        self.past.restored.as_ref().is_some_and(|restored| restored.is_old(changed))
            && owner.is_some_and(|owner| *owner != self.view.me)
    }

    /// The node that another than this one's view has as the owner of an address.
    fn other_owner(&self, network: &str, address: IpAddr) -> Option<(IpNetwork, &str)> {
        let block = pool::block_of(&self.subnet_of(network, address)?, address);
        let owner = |range| Some((range, self.view.owners.get(&(network.to_owned(), range))?.as_str()));
        owner(pool::alone(address)).or_else(|| owner(block)).filter(|(_, owner)| *owner != self.view.me)
    }

    /// Which other node has one of these addresses now, for the log.
    pub(crate) fn other_owner_text(&self, network: &str, addresses: &[IpAddr]) -> String {
        let owner = addresses.iter().find_map(|at| self.other_owner(network, *at));
        owner.map_or_else(String::new, |(range, owner)| {
            format!("; node {owner} and this one have containers in {range}")
        })
    }

    /// The blocks in which containers of this node are cut off, because another node claimed them, for people.
    pub(crate) fn taken_blocks(&self) -> Vec<HeldRecord> {
        let mut taken: BTreeMap<String, (IpNetwork, &str, Vec<&str>)> = BTreeMap::new();
        for local in self.locals.values() {
            let endpoint = &local.endpoint;
            if self.view.endpoints.contains_key(&endpoint.veth) {
                continue;
            }
            for (range, owner) in
                endpoint.addresses.iter().filter_map(|at| self.other_owner(&endpoint.network, *at))
            {
                let network = &endpoint.network;
                let single = is_single(range);
                let key =
                    if single { keys::single(network, range.ip()) } else { keys::block(network, range) };
                taken.entry(key).or_insert((range, owner, Vec::new())).2.push(&endpoint.container);
            }
        }
        let me = &self.view.me;
        let record = |(key, (range, owner, containers)): (String, (IpNetwork, &str, Vec<&str>))| HeldRecord {
            key,
            why: format!(
                "nodes {me} and {owner} have containers in {range}, which is node {owner}'s: {} of this node {} cut off",
                containers.join(", "),
                if containers.len() == 1 { "is" } else { "are" }
            ),
        };
        taken.into_iter().map(record).collect()
    }
}
