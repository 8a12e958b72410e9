//! Reading results of every version. Unknown keys are passed over, `null` is the same as absent.

use super::{AddResult, Dns, Interface, IpConfig, Route};
use crate::config::present as field;
use crate::error::Error;
use crate::version::Version;
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use std::net::IpAddr;

type Object = Map<String, Value>;

fn wrong(path: &str, value: &Value, expected: &str) -> Error {
    Error::decode("the result", format!("{path} is {value}, expected {expected}"))
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Object, Error> {
    value.as_object().ok_or_else(|| wrong(path, value, "an object"))
}

/// A string; the empty one means unset, as everywhere in results.
fn text(object: &Object, key: &str, path: &str) -> Result<Option<String>, Error> {
    match field(object, key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(other) => Err(wrong(&format!("{path}.{key}"), other, "a string")),
    }
}

fn number<T: TryFrom<u64>>(object: &Object, key: &str, path: &str) -> Result<Option<T>, Error> {
    let Some(value) = field(object, key) else { return Ok(None) };
    let number = value.as_u64().and_then(|number| T::try_from(number).ok());
    number.map(Some).ok_or_else(|| wrong(&format!("{path}.{key}"), value, "a number that is in range"))
}

/// A number for which 0 means unset.
fn positive(object: &Object, key: &str, path: &str) -> Result<Option<u32>, Error> {
    Ok(number::<u32>(object, key, path)?.filter(|&number| number != 0))
}

fn address(object: &Object, key: &str, path: &str) -> Result<Option<IpAddr>, Error> {
    let Some(value) = text(object, key, path)? else { return Ok(None) };
    let parsed = value.parse();
    parsed.map(Some).map_err(|_| wrong(&format!("{path}.{key}"), &value.into(), "an IP address"))
}

fn cidr(object: &Object, key: &str, path: &str) -> Result<IpNetwork, Error> {
    let value = text(object, key, path)?.unwrap_or_default();
    parse_cidr(&value).ok_or_else(|| {
        wrong(&format!("{path}.{key}"), &value.into(), "an address with a prefix, as 10.1.2.3/24")
    })
}

/// Reads "10.1.2.3/24". The prefix must be there and be a number: `IpNetwork` alone would take "10.1.2.3" as a /32.
fn parse_cidr(text: &str) -> Option<IpNetwork> {
    let (ip, prefix) = text.split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    IpNetwork::new(ip.parse().ok()?, prefix.parse().ok()?).ok()
}

fn list<T>(
    parent: &Object,
    key: &str,
    path: &str,
    read: impl Fn(&Object, &str) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let Some(value) = field(parent, key) else { return Ok(Vec::new()) };
    let items = value.as_array().ok_or_else(|| wrong(&path, value, "a list"))?;
    let numbered = items.iter().enumerate();
    numbered
        .map(|(index, item)| {
            let path = format!("{path}[{index}]");
            read(object(item, &path)?, &path)
        })
        .collect()
}

fn strings(parent: &Object, key: &str, path: &str) -> Result<Vec<String>, Error> {
    let Some(value) = field(parent, key) else { return Ok(Vec::new()) };
    let read = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    };
    read(value).ok_or_else(|| wrong(&format!("{path}.{key}"), value, "a list of strings"))
}

fn interface(from: &Object, path: &str) -> Result<Interface, Error> {
    Ok(Interface {
        name: text(from, "name", path)?.unwrap_or_default(),
        mac: text(from, "mac", path)?,
        mtu: positive(from, "mtu", path)?,
        sandbox: text(from, "sandbox", path)?,
        socket_path: text(from, "socketPath", path)?,
        pci_id: text(from, "pciID", path)?,
    })
}

fn ip(from: &Object, path: &str) -> Result<IpConfig, Error> {
    Ok(IpConfig {
        interface: number(from, "interface", path)?,
        address: cidr(from, "address", path)?,
        gateway: address(from, "gateway", path)?,
    })
}

fn route(from: &Object, path: &str) -> Result<Route, Error> {
    Ok(Route {
        dst: cidr(from, "dst", path)?,
        gw: address(from, "gw", path)?,
        mtu: positive(from, "mtu", path)?,
        advmss: positive(from, "advmss", path)?,
        priority: positive(from, "priority", path)?,
        table: number(from, "table", path)?,
        scope: number(from, "scope", path)?,
    })
}

impl Dns {
    /// Reads the `dns` object of a result or a configuration; `path` names it in errors.
    pub(crate) fn read(value: &Value, path: &str) -> Result<Dns, Error> {
        let from = object(value, path)?;
        Ok(Dns {
            nameservers: strings(from, "nameservers", path)?,
            domain: text(from, "domain", path)?,
            search: strings(from, "search", path)?,
            options: strings(from, "options", path)?,
        })
    }
}

impl AddResult {
    /// Reads a result in the version that its `cniVersion` names; without one it is 0.1.0.
    ///
    /// # Errors
    /// Code 1 for a version that is not known, code 6 for what is not a result.
    pub fn from_json(value: &Value) -> Result<AddResult, Error> {
        AddResult::from_json_or(value, Version::DEFAULT)
    }

    /// Reads a result in the version that its `cniVersion` names, or else in `version`: what a plugin prints, or
    /// `prevResult` holds, need not repeat the configuration's version.
    ///
    /// # Errors
    /// Code 1 for a version that is not known, code 6 for what is not a result.
    pub fn from_json_or(value: &Value, version: Version) -> Result<AddResult, Error> {
        let own = text(object(value, "it")?, "cniVersion", "it")?;
        AddResult::from_json_as(value, own.map_or(Ok(version), |text| text.parse())?)
    }

    /// Reads a result as one of this version, whatever its `cniVersion` says.
    ///
    /// # Errors
    /// Code 6 for what is not a result of that version.
    pub fn from_json_as(value: &Value, version: Version) -> Result<AddResult, Error> {
        let from = object(value, "it")?;
        let dns = field(from, "dns").map_or(Ok(Dns::default()), |dns| Dns::read(dns, "dns"))?;
        if version >= Version::V0_3_0 {
            return Ok(AddResult {
                interfaces: list(from, "interfaces", "", interface)?,
                ips: list(from, "ips", "", ip)?,
                routes: list(from, "routes", "", route)?,
                dns,
            });
        }
        let mut result = AddResult { dns, ..AddResult::default() };
        for key in ["ip4", "ip6"] {
            let Some(value) = field(from, key) else { continue };
            let from = object(value, key)?;
            result.ips.push(IpConfig {
                interface: None,
                address: cidr(from, "ip", key)?,
                gateway: address(from, "gateway", key)?,
            });
            result.routes.extend(list(from, "routes", key, route)?);
        }
        Ok(result)
    }
}
