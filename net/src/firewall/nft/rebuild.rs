//! A table that an earlier version of Weft made: made anew, with what is in it.

use super::Nftables;
use super::base::{self, Services};
use super::element::{Element, Key, Map, Scope, Value};
use super::plan::{TRIES, push_lists};
use super::socket::{Question, generation_of, refused};
use super::table::Table;
use super::wire::{attribute, comment_of, flag, msg, text};
use crate::Result;
use std::collections::BTreeSet;

/// What a table of an earlier version lacks beside an element that it has.
pub(super) fn derived(e: &Element) -> Option<Element> {
    let map = match e.key.map {
        Map::Guarded => Map::BridgePairs,
        Map::Closed => Map::Sealed,
        _ => return None,
    };
    let key = Key::bridge(map, &text(&e.key.bytes));
    Some(Element { key, value: Value::None, tag: String::new() })
}

/// When a table is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebuild {
    /// When it lacks sets that belong to it.
    IfIncomplete,
    /// In any case: it lacks a chain.
    Always,
}

impl Nftables {
    /// Makes the table anew, in one transaction, with what is in it, if Weft made it. Returns whether it did.
    pub(super) fn rebuild(&mut self, table: Table, when: Rebuild) -> Result<bool> {
        let mut in_vain = false;
        for _ in 0..TRIES {
            let (mut generation, mut is_ours) = (0, false);
            self.socket.ask(
                &[Question::Generation, Question::Table(table)],
                |index, answer| match index {
                    0 => generation = generation_of(answer),
                    _ => {
                        let comment =
                            answer.ok().and_then(|m| attribute(m.attrs(), 6)).and_then(|u| comment_of(0, u));
                        is_ours = comment.as_deref() == Some(base::COMMENT);
                    }
                },
            )?;
            let maps = self.socket.maps(table)?;
            if !is_ours || when == Rebuild::IfIncomplete && table.is_complete(&maps) {
                return Ok(false);
            }
            if std::mem::take(&mut in_vain) {
                self.services = Services::All;
            }
            let (mut elements, mut scopes) = (Vec::<Element>::new(), BTreeSet::<Scope>::new());
            for map in maps {
                scopes.extend(map.scope());
                self.socket.elements(map, |e| elements.push(e))?;
            }
            if !scopes.is_empty() {
                scopes.insert(Scope::Tracked);
            }
            let derived: Vec<_> = elements.iter().filter_map(derived).collect();
            elements.extend(derived);
            elements.sort_by(|a, b| a.key.cmp(&b.key));
            elements.dedup_by(|a, b| a.key == b.key);
            let mut batch = self.socket.batch(table, Some(generation));
            batch.push("delete", msg::DELTABLE, 0, |_| {});
            base::push(&mut batch);
            scopes.iter().for_each(|scope| base::push_scope(&mut batch, *scope, self.services));
            let what = ("add elements to", msg::NEWSETELEM, flag::CREATE);
            push_lists(&mut batch, what, &elements, |e| &e.key, |e, w| e.write(w));
            let Err(errors) = self.socket.commit(batch)? else { return Ok(true) };
            in_vain = errors.iter().all(|(errno, _)| *errno == libc::ENOENT);
            let transient = |errno| matches!(errno, libc::ENOENT | libc::ERESTART | libc::EBUSY);
            if let Some((errno, what)) = errors.iter().find(|(errno, _)| !transient(*errno)) {
                return Err(refused(what, *errno));
            }
        }
        Err(refused(&format!("make {table} anew, which others change all the time"), libc::EBUSY))
    }
}
