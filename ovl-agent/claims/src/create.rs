//! Creating networks: name, VNI and subnets are claimed in one transaction.
//!
//! Two creations whose subnets overlap share no key, so every creation also rewrites `c/subnets` on the condition that
//! nobody did since it read the networks.

use crate::inner::{Fenced, Inner, store_problem};
use crate::keys;
use crate::record::MAX_RECORD;
use crate::state::Me;
use crate::validate;
use ipnetwork::IpNetwork;
use ovl_api::model::{Network, Subnet, overlap};
use ovl_api::names::MAX_VNI;
use ovl_api::wire::{NetworkCreate, Problem, ProblemKind};
use ovl_store::{Compare, Error, KeyValue, Op, Txn, range_end};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A network is created, or not, within this time.
const PATIENCE: Duration = Duration::from_millis(2800);
/// VNIs that the agent chooses begin here; lower ones are left to those who choose themselves.
const FIRST_VNI: u32 = 4096;

/// The IPv4 subnets that are chosen from when none is given, in this order: 10.160.0.0/16 to 10.223.0.0/16, then
/// 10.64.0.0/16 to 10.95.0.0/16. They keep clear of what Kubernetes distributions and home routers take.
fn choices() -> impl Iterator<Item = IpNetwork> {
    let net = |second: u8| ipnetwork::Ipv4Network::new([10, second, 0, 0].into(), 16).map(IpNetwork::V4);
    (160..224).chain(64..96).filter_map(move |second| net(second).ok())
}

/// The IPv6 subnet of a network for which none was given: unique local (RFC 4193), its 40 random bits and the lower part of
/// the subnet ID from the network's ID.
fn unique_local(id: &str) -> Option<IpNetwork> {
    let number = u64::from_str_radix(id, 16).ok()? & 0xffff_ffff_ffff;
    let (global, subnet) = (number >> 8, number & 0xff);
    let prefix = (0xfd << 56) | (global << 16) | subnet;
    ipnetwork::Ipv6Network::new((u128::from(prefix) << 64).into(), 64).map(IpNetwork::V6).ok()
}

/// What the store holds that a new network must not collide with.
/// Room for what a network's record gets later.
const MARGIN: usize = 1024;

struct Others {
    networks: Vec<Network>,
    vnis: BTreeSet<u32>,
    /// The names of their networks.
    named: BTreeMap<u32, String>,
    guard: Option<i64>,
}

impl Inner {
    /// [`crate::Node::create_network`].
    pub(crate) async fn create(
        &self,
        ask: &NetworkCreate,
        created: String,
        taken: &[(IpNetwork, String)],
    ) -> Result<Network, Problem> {
        let subnets = validate::network(ask)?;
        check_taken(&subnets, taken)?;
        let id = crate::random::id(6).map_err(|e| crate::open::internal(format!("no random number: {e}")))?;
        let draft = Network {
            id,
            name: ask.name.clone(),
            vni: ask.vni.unwrap_or(0),
            subnets,
            mtu: ask.mtu,
            encap: ask.encap,
            internal: ask.internal,
            labels: ask.labels.clone(),
            options: ask.options.clone(),
            created,
            removing: false,
        };
        if crate::keys::json(&draft).len() > MAX_RECORD - MARGIN {
            let message =
                format!("--label and --opt: too long, {} bytes are allowed in all", MAX_RECORD - MARGIN);
            return Err(Problem::invalid("--label", message));
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let made = tokio::time::timeout_at(deadline, self.claim_network(ask, draft, taken)).await;
        made.unwrap_or_else(|_| {
            let store = self.conf.kv.describe();
            Err(Problem::new(
                ProblemKind::Store,
                format!(
                    "the store does not answer ({store}): it is not known whether the network {} was made",
                    ask.name
                ),
            ))
        })
    }

    async fn claim_network(
        &self,
        ask: &NetworkCreate,
        draft: Network,
        taken: &[(IpNetwork, String)],
    ) -> Result<Network, Problem> {
        let mut unknown = None;
        loop {
            let others = match self.read_networks().await {
                Ok(others) => others,
                Err(error) => return Err(unknown.unwrap_or_else(|| store_problem(&error))),
            };
            if let Some(made) = others.networks.iter().find(|network| network.id == draft.id) {
                return Ok(made.clone());
            }
            let me = self.me()?;
            let network = choose(ask, draft.clone(), &others, taken)?;
            let key = keys::network(&network.name);
            let txn = insertion(&network, others.guard);
            match self.commit_fenced(&me, txn).await {
                Ok(Fenced::Held(done)) => {
                    self.learn(&key, Some(&keys::json(&network)), done.revision);
                    tracing::info!("network {} ({}) was created", network.name, network.id);
                    return Ok(network);
                }
                // Somebody else created one.
                Ok(Fenced::Not(_)) => {
                    tokio::time::sleep(crate::random::jitter(Duration::from_millis(10))).await;
                }
                Err(problem) if problem.kind != ProblemKind::Store => return Err(problem),
                Err(problem) => {
                    // It may have been done: the next look tells, and a second try holds only when it was not.
                    let message = format!(
                        "{}: it is not known whether the network {} was made",
                        problem.message, network.name
                    );
                    unknown = Some(Problem::new(ProblemKind::Store, message));
                }
            }
        }
    }

    /// Puts a network back that the store lost; false when it cannot be, because of another.
    pub(crate) async fn put_network(&self, network: &Network, me: &Me) -> Result<bool, Problem> {
        let others = self.read_networks().await.map_err(|error| store_problem(&error))?;
        let overlaps = |other: &Network| {
            let pairs = other.subnets.iter().flat_map(|a| network.subnets.iter().map(move |b| (a, b)));
            pairs.into_iter().any(|(a, b)| overlap(a.subnet, b.subnet))
        };
        if others.networks.iter().any(|other| other.id != network.id && overlaps(other)) {
            return Ok(false);
        }
        let mut txn = insertion(network, others.guard);
        if others.named.get(&network.vni).is_some_and(|name| *name == network.name) {
            // The VNI is still its own.
            let vni = keys::vni(network.vni);
            txn.when.retain(|when| *when != Compare::Absent(vni.clone()));
        }
        match self.commit_fenced(me, txn).await? {
            Fenced::Held(done) => {
                self.learn(&keys::network(&network.name), Some(&keys::json(network)), done.revision);
                Ok(true)
            }
            Fenced::Not(_) => Ok(false),
        }
    }

    async fn read_networks(&self) -> Result<Others, Error> {
        let range = |prefix: &str| Op::Get(prefix.to_owned(), range_end(prefix));
        let (from, to) = keys::alone(keys::SUBNETS);
        let then = vec![range(keys::NETWORKS), range("c/vnis/"), Op::Get(from, to)];
        let done = self.commit(Txn { then, ..Txn::default() }).await?;
        let mut got = done.got.into_iter();
        let mut next = || got.next().unwrap_or_default();
        let (networks, vnis, guard) = (next(), next(), next());
        let read = |entry: &KeyValue| crate::record::read(&entry.value).ok();
        let vni = |entry: &KeyValue| entry.key.rsplit('/').next()?.parse().ok();
        let mut networks: Vec<Network> = networks.iter().filter_map(read).collect();
        // A record that cannot be understood, or was deleted in use, has its last valid value.
        networks.extend(self.look(|state| {
            let held = state.view.networks.values();
            held.filter(|network| state.held.contains_key(&keys::network(&network.name)))
                .cloned()
                .collect::<Vec<_>>()
        }));
        Ok(Others {
            networks,
            named: vnis
                .iter()
                .filter_map(|entry| Some((vni(entry)?, String::from_utf8(entry.value.clone()).ok()?)))
                .collect(),
            vnis: vnis.iter().filter_map(vni).collect(),
            guard: guard.first().map(|guard| guard.changed),
        })
    }
}

/// The transaction that makes a network.
fn insertion(network: &Network, guard: Option<i64>) -> Txn {
    let (name, vni) = (keys::network(&network.name), keys::vni(network.vni));
    let guarded = match guard {
        Some(changed) => Compare::Unchanged(keys::SUBNETS.to_owned(), changed),
        None => Compare::Absent(keys::SUBNETS.to_owned()),
    };
    Txn {
        when: vec![Compare::Absent(name.clone()), Compare::Absent(vni.clone()), guarded],
        then: vec![
            Op::Put(name, keys::json(network), None),
            Op::Put(vni, network.name.clone().into_bytes(), None),
            Op::Put(keys::SUBNETS.to_owned(), network.id.clone().into_bytes(), None),
        ],
        otherwise: Vec::new(),
    }
}

fn check_taken(subnets: &[Subnet], taken: &[(IpNetwork, String)]) -> Result<(), Problem> {
    for subnet in subnets {
        // The words name the subnet, address or route.
        if let Some((_, what)) = taken.iter().find(|(net, _)| overlap(*net, subnet.subnet)) {
            return Err(overlaps(subnet.subnet, what));
        }
    }
    Ok(())
}

fn overlaps(subnet: IpNetwork, other: &str) -> Problem {
    let message = format!("--subnet {subnet} overlaps {other}");
    Problem { kind: ProblemKind::Taken, field: Some("--subnet".to_owned()), message }
}

/// Completes a network with what was not asked for, so that it collides with nothing.
fn choose(
    ask: &NetworkCreate,
    mut network: Network,
    others: &Others,
    taken: &[(IpNetwork, String)],
) -> Result<Network, Problem> {
    if others.networks.iter().any(|other| other.name == network.name) {
        let message = format!("a network named {} exists already", network.name);
        return Err(Problem { kind: ProblemKind::Taken, field: Some("name".to_owned()), message });
    }
    let theirs =
        || others.networks.iter().flat_map(|other| other.subnets.iter().map(move |s| (other, s.subnet)));
    for subnet in &network.subnets {
        if let Some((other, net)) = theirs().find(|(_, net)| overlap(*net, subnet.subnet)) {
            return Err(overlaps(subnet.subnet, &format!("{net} of the network {}", other.name)));
        }
    }
    let is_free = |net: IpNetwork| {
        !theirs().any(|(_, other)| overlap(other, net))
            && !taken.iter().any(|(other, _)| overlap(*other, net))
    };
    if ask.subnets.is_empty() {
        let chosen = choices().find(|net| is_free(*net)).ok_or_else(|| {
            let message = "no IPv4 subnet is left to choose from; give one with --subnet";
            Problem {
                kind: ProblemKind::Full,
                field: Some("--subnet".to_owned()),
                message: message.to_owned(),
            }
        })?;
        network.subnets.push(validate::complete(chosen, None, ask.block_size)?);
    }
    if ask.ipv6 && network.subnet(true).is_none() {
        let chosen = unique_local(&network.id).filter(|net| is_free(*net)).ok_or_else(|| {
            let message = "the IPv6 subnet that was chosen is taken; try again, or give one with --subnet";
            Problem {
                kind: ProblemKind::Taken,
                field: Some("--subnet".to_owned()),
                message: message.to_owned(),
            }
        })?;
        network.subnets.push(validate::complete(chosen, None, None)?);
    }
    network.vni = choose_vni(ask.vni, &network.id, others)?;
    Ok(network)
}

/// The VNI asked for, or the first free one from a place that the network's ID says: another overlay on the same underlay
/// that counts from 1 is not likely to have it.
fn choose_vni(asked: Option<u32>, id: &str, others: &Others) -> Result<u32, Problem> {
    if let Some(vni) = asked {
        if others.vnis.contains(&vni) {
            let owner = others.networks.iter().find(|network| network.vni == vni);
            let owner = owner.map_or_else(String::new, |network| format!(" by the network {}", network.name));
            let message = format!("--opt vni={vni} is taken{owner}");
            return Err(Problem { kind: ProblemKind::Taken, field: Some("--opt vni".to_owned()), message });
        }
        return Ok(vni);
    }
    let span = MAX_VNI - FIRST_VNI + 1;
    let start = u64::from_str_radix(id, 16).unwrap_or(0) % u64::from(span);
    // Both are below 2^24.
    let candidate = |step: u32| FIRST_VNI + (start as u32 + step) % span;
    let free = (0..span).map(candidate).find(|vni| !others.vnis.contains(vni));
    free.ok_or_else(|| {
        let message = "--opt vni: all VNIs are taken".to_owned();
        Problem { kind: ProblemKind::Full, field: Some("--opt vni".to_owned()), message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_local_subnets_come_from_the_id() {
        assert_eq!(unique_local("0123456789ab").unwrap().to_string(), "fd01:2345:6789:ab::/64");
        assert_eq!(unique_local("ffffffffff00").unwrap().to_string(), "fdff:ffff:ffff::/64");
    }

    #[test]
    fn a_chosen_vni_is_the_next_free_one() {
        let mut others =
            Others { networks: Vec::new(), vnis: BTreeSet::new(), named: BTreeMap::new(), guard: None };
        let first = choose_vni(None, "000000000000", &others).unwrap();
        assert_eq!(first, FIRST_VNI);
        others.vnis.insert(first);
        assert_eq!(choose_vni(None, "000000000000", &others).unwrap(), FIRST_VNI + 1);
        assert_eq!(choose_vni(Some(first), "0", &others).unwrap_err().kind, ProblemKind::Taken);
    }
}
