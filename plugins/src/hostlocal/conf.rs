//! host-local's configuration: ranges from four places, requested addresses from three.

use super::resolv;
use crate::args::{address, cidr, one_each, requested_ips, routes};
use crate::errors::Coded;
use crate::place;
use cni::Error;
use cni::config::{get, present};
use cni::request::{Command, Request};
use cni::types::{Dns, Route};
use ipam::{Range, RangeSet};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::PathBuf;

/// Where the reference plugin keeps its leases, a directory a network.
const REFERENCE_DIR: &str = "/var/lib/cni/networks";

/// A range as configurations have it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RangeConf {
    subnet: Option<String>,
    range_start: Option<String>,
    range_end: Option<String>,
    gateway: Option<String>,
}

impl RangeConf {
    fn read(&self, key: &str) -> Result<Range, Error> {
        let subnet = self.subnet.as_deref().unwrap_or_default();
        let subnet = cidr(&format!("{key}.subnet"), subnet)?;
        let optional = |name: &str, text: &Option<String>| {
            let given = text.as_deref().filter(|text| !text.is_empty());
            given.map(|text| address(&format!("{key}.{name}"), text)).transpose()
        };
        let start = optional("rangeStart", &self.range_start)?;
        let end = optional("rangeEnd", &self.range_end)?;
        let gateway = optional("gateway", &self.gateway)?;
        Range::new(subnet, start, end, gateway).coded().map_err(|error| at(key, error))
    }
}

/// Says in which key a range is wrong.
fn at(key: &str, error: Error) -> Error {
    let msg = format!("invalid {key:?} in the network configuration");
    Error { msg, details: error.to_string(), ..error }
}

fn sets(key: &str, from: Vec<Vec<RangeConf>>) -> Result<Vec<RangeSet>, Error> {
    let numbered = from.iter().enumerate();
    numbered
        .map(|(index, set)| {
            let ranges = set.iter().enumerate();
            let ranges = ranges.map(|(at, range)| range.read(&format!("{key}[{index}][{at}]")));
            let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
            RangeSet::new(ranges).coded().map_err(|error| at(&format!("{key}[{index}]"), error))
        })
        .collect()
}

/// Where the leases of a network are: known even when the rest of the configuration is wrong, as DEL needs it.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// Weft's store.
    pub store: PathBuf,
    /// The reference plugin's directory, in which it has a directory a network.
    pub base: PathBuf,
    /// Its directory of this network, whose leases are taken over.
    pub reference: PathBuf,
}

impl Dirs {
    /// By `ipam.dataDir`, or else the usual places.
    ///
    /// # Errors
    /// Code 7 when `dataDir` is no string.
    pub fn of(request: &Request) -> Result<Dirs, Error> {
        let ipam = request.conf.ipam.as_ref();
        let data_dir = ipam.map(|ipam| get::<String>(ipam, "dataDir")).transpose()?.flatten();
        let data_dir = data_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let store = data_dir.as_ref().map_or_else(Dirs::usual_store, |dir| dir.join(".weft"));
        let base = data_dir.unwrap_or_else(|| REFERENCE_DIR.into());
        Ok(Dirs { store, reference: base.join(&request.conf.name), base })
    }

    /// The store of configurations without `dataDir`.
    pub fn usual_store() -> PathBuf {
        place::root().join("ipam")
    }
}

/// What a request asks for, checked.
#[derive(Debug)]
pub struct Conf {
    /// One address is given out of each.
    pub sets: Vec<RangeSet>,
    /// Addresses that must be given.
    pub requested: Vec<IpAddr>,
    /// Addresses that are given only when requested (`reserved`, a key of Weft's own).
    pub reserved: Vec<IpAddr>,
    /// The container's routes.
    pub routes: Vec<Route>,
    /// What `resolvConf` says.
    pub dns: Dns,
}

impl Conf {
    /// Reads the request's configuration and arguments, and the file that `resolvConf` names.
    ///
    /// # Errors
    /// Code 7 for a wrong value, code 4 for wrong arguments, code 1 for more addresses than the version can say, code 5
    /// when the file cannot be read.
    pub fn of(request: &Request) -> Result<Conf, Error> {
        let missing = || Error::config("ipam", "missing", "an object with \"type\" and \"ranges\"");
        let ipam = request.conf.ipam.as_ref().ok_or_else(missing)?;
        let sets = all_sets(request, ipam)?;
        let firsts = sets.iter().filter_map(|set| Some(set.ranges().first()?.start));
        one_each(request.conf.version, firsts)?;
        let requested = requested_ips(request)?;
        requested.iter().try_for_each(|&ip| can_be_given(&request.conf.name, ip, &sets))?;
        let reserved: Vec<String> = get(ipam, "reserved")?.unwrap_or_default();
        let resolv_conf = get::<String>(ipam, "resolvConf")?.filter(|path| !path.is_empty());
        Ok(Conf {
            sets,
            requested,
            reserved: reserved.iter().map(|text| address("ipam.reserved", text)).collect::<Result<_, _>>()?,
            routes: routes(ipam)?,
            dns: resolv_conf.map(|path| resolv::read(path.as_ref())).transpose()?.unwrap_or_default(),
        })
    }
}

/// Refuses an address that no range can ever give, before the store is so much as made.
fn can_be_given(network: &str, address: IpAddr, sets: &[RangeSet]) -> Result<(), Error> {
    if sets.iter().any(|set| set.contains(address)) {
        return Ok(());
    }
    let network = network.to_owned();
    let error = match sets.iter().find_map(|set| set.range_of(address)) {
        Some(range) => ipam::Error::IsGateway { network, address, subnet: range.subnet },
        None => {
            let ranges: Vec<String> = sets.iter().map(ToString::to_string).collect();
            ipam::Error::NotInRange { network, address, ranges: ranges.join(", ") }
        }
    };
    Err(error).coded()
}

/// The ranges in the order in which their addresses appear in the result: the runtime's, the legacy one, the configured.
fn all_sets(request: &Request, ipam: &Map<String, Value>) -> Result<Vec<RangeSet>, Error> {
    let mut all = sets("runtimeConfig.ipRanges", request.conf.capability("ipRanges")?.unwrap_or_default())?;
    if present(ipam, "subnet").is_some_and(|subnet| subnet != "") {
        let legacy: RangeConf = cni::config::parse_object(ipam, "ipam")?;
        all.push(RangeSet::new(vec![legacy.read("ipam")?]).coded()?);
    }
    all.extend(sets("ipam.ranges", get(ipam, "ranges")?.unwrap_or_default())?);
    // Runtimes send no runtimeConfig with STATUS, so ranges that come by capability are not known then.
    if all.is_empty() && request.command != Command::Status {
        return Err(Error::config(
            "ipam.ranges",
            "empty",
            "at least one list with a range, as [[{\"subnet\": …}]]",
        ));
    }
    ipam::check_disjoint(&all).coded().map_err(|error| at("ipam.ranges", error))?;
    Ok(all)
}
