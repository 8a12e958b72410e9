//! A node that is started under another name than the one it is registered with.
//!
//! Its containers have addresses of blocks that are claimed in the old name, so it keeps that name while there are containers.
//! When there are none it withdraws the old record, which frees the blocks, and registers under the new name.

use crate::files::{Files, Identity, OwnFile};
use crate::inner::{Inner, lock, store_problem};
use crate::keys;
use crate::random;
use crate::record;
use crate::state::State;
use crate::token::Token;
use ovl_api::model::Host;
use ovl_api::wire::{Problem, ProblemKind};
use ovl_store::{Op, Txn};
use std::path::Path;
use std::sync::atomic::Ordering;

/// Whose the record of the old name is.
enum Old {
    /// There is none of this installation.
    Missing,
    /// This node's.
    Own,
    /// That of the node whose state directory this is a copy of, or may be.
    Original,
}

/// The name that this installation registered with last, if that is known.
pub(crate) fn name_before(identity: &Identity, own: Option<&OwnFile>, files: &Files) -> Option<String> {
    let of_own = || own.filter(|own| own.host.id == identity.id).map(|own| own.host.name.clone());
    let of_view =
        || files.view()?.hosts.into_iter().find(|host| host.id == identity.id).map(|host| host.name);
    // Earlier releases did not write it down. An epoch of 0 has never registered.
    identity.name.clone().or_else(of_own).or_else(|| if identity.epoch > 0 { of_view() } else { None })
}

impl State {
    /// Why this node has another name than the one it was started with. `wanted` is that name.
    pub(crate) fn rename_notice(&self, wanted: &str) -> Option<String> {
        let name = &self.view.me;
        if name == wanted {
            return None;
        }
        let what = format!("this node was renamed to {wanted}, and keeps the name {name}");
        Some(match (&self.rename_refused, self.locals.len()) {
            (Some(why), _) => format!("{what}: {why}"),
            (None, 0) => format!("{what} until the store answers"),
            (None, count) => format!(
                "{what} while containers are attached ({count} now): when the last one has ended, as after a drain, it takes \
                 the new name by itself; to keep the old one, start its agent with --node-name {name}"
            ),
        })
    }

    /// Takes another name for this node, which has nothing in the old one.
    fn set_name(&mut self, name: &str) {
        let before = std::mem::replace(&mut self.view.me, name.to_owned());
        self.rename_refused = None;
        self.recheck_held = true;
        self.dirty.delta.hosts.extend([before, name.to_owned()]);
        self.view_changed = true;
    }
}

impl Inner {
    /// The name that this node has in the store.
    pub(crate) fn name(&self) -> String {
        self.look(|state| state.view.me.clone())
    }

    /// Has the node take its new name, should it wait for its last container to end.
    pub(crate) fn wake_rename(&self, state: &State) {
        if state.view.me != self.conf.name && state.locals.is_empty() && state.attaching.is_empty() {
            self.wake.session.notify_one();
        }
    }

    /// Takes the name that this node was started with, when it has another one and no container.
    pub(crate) async fn rename(&self) -> Result<(), Problem> {
        let (old, new) = (self.name(), self.conf.name.clone());
        if old == new {
            return Ok(());
        }
        let refused = self.refuse_name(&new).await?;
        let (told, begun) = self.update(|state| {
            let told = (refused.is_some() && state.rename_refused != refused).then_some(&refused);
            state.rename_refused.clone_from(&refused);
            let begun = refused.is_none() && state.locals.is_empty() && state.attaching.is_empty();
            state.renaming = begun;
            if begun {
                // Nothing is given from here on, so no container comes in between.
                state.suspended = Some(format!("this node changes its name from {old} to {new}; try again"));
                state.own_changed = true;
            }
            (told.and_then(|_| state.rename_notice(&new)), begun)
        });
        if let Some(notice) = told {
            tracing::warn!("{notice}");
        }
        if !begun {
            return Ok(());
        }
        let renamed = self.take_name(&old, &new).await;
        self.update(|state| {
            state.renaming = renamed.is_ok();
            match &renamed {
                Ok(()) => state.set_name(&new),
                // What is this node's stays so as long as nothing was withdrawn.
                Err(_) if state.me.is_some() => {
                    state.suspended = None;
                    state.own_changed = true;
                }
                Err(_) => {}
            }
        });
        renamed
    }

    /// Withdraws the old record, if that is this node's, and notes the new name on disk.
    async fn take_name(&self, old: &str, new: &str) -> Result<(), Problem> {
        match self.find_old(old).await? {
            Old::Own => {
                self.disown();
                self.remove_node(old, true).await?;
                self.set_identity(|identity| identity.name = Some(new.to_owned()))?;
                tracing::info!("this node has the name {new} now; the record of {old} was withdrawn");
            }
            Old::Missing => self.set_identity(|identity| identity.name = Some(new.to_owned()))?,
            Old::Original => {
                let id = random::id(16)
                    .map_err(|e| crate::files::trouble("read", Path::new("/dev/urandom"), &e))?;
                let name = Some(new.to_owned());
                self.set_identity(|identity| {
                    *identity = Identity { id, epoch: 0, name, place: None, machine: None }
                })?;
                tracing::warn!(
                    "this node becomes one of its own under the name {new}: its state directory is that of {old}, which may live \
                     elsewhere; if {old} is gone for good, run `ovl-agent node rm {old}`"
                );
            }
        }
        self.disown();
        self.renewed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Why this node cannot have a name: another one has it.
    async fn refuse_name(&self, name: &str) -> Result<Option<String>, Problem> {
        let (host, live) = self.read_host(name).await?;
        let id = lock(&self.identity).id.clone();
        let other = host.filter(|host| host.id != id);
        Ok(other.filter(|other| live.is_some() || !self.may_replace(other)).map(|other| {
            format!(
                "another node is registered as {name} (VTEP {}); start this one's agent with another --node-name, or, when that \
                 node is gone for good, run `ovl-agent node rm {name}`",
                other.vtep
            )
        }))
    }

    /// Whose the record is that this node has in its old name.
    async fn find_old(&self, old: &str) -> Result<Old, Problem> {
        let (host, live) = self.read_host(old).await?;
        let id = lock(&self.identity).id.clone();
        let registered = self.look(|state| state.me.is_some());
        let Some(host) = host.filter(|host| host.id == id) else { return Ok(Old::Missing) };
        // Its machine is known by its address alone: the ID may have been copied with the disk.
        let is_here = registered || self.has_address(&host);
        match live {
            Some(live) if is_here && live.vtep == host.vtep => {
                let seconds = self.conf.liveness.as_secs();
                let message = format!(
                    "the session that this node had as {old} has not ended yet, which takes {seconds} s at most: then it takes \
                     the name {}",
                    self.conf.name
                );
                Err(Problem::new(ProblemKind::NotReady, message))
            }
            None if is_here => Ok(Old::Own),
            _ => Ok(Old::Original),
        }
    }

    /// A node's record, and the token of an agent that has the name at another place.
    async fn read_host(&self, name: &str) -> Result<(Option<Host>, Option<Token>), Problem> {
        let get = |key: String| {
            let (from, to) = keys::alone(&key);
            Op::Get(from, to)
        };
        let txn = Txn { then: vec![get(keys::host(name)), get(keys::live(name))], ..Txn::default() };
        let done = self.commit(txn).await.map_err(|error| store_problem(&error))?;
        let first = |index: usize| done.got.get(index).and_then(|got| got.first());
        let host = first(0).and_then(|entry| record::read(&entry.value).ok());
        Ok((host, Token::of_other(first(1), &self.place)))
    }

    pub(crate) fn set_identity(&self, change: impl FnOnce(&mut Identity)) -> Result<(), Problem> {
        let mut identity = lock(&self.identity);
        change(&mut identity);
        self.files.save_identity(&identity)
    }

    /// Has nothing be this node's own any more.
    fn disown(&self) {
        self.update(|state| {
            if state.me.is_some() {
                state.disown();
            }
        });
    }
}
