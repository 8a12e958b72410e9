//! Printing results in every version: what a version cannot say is left out. Keys come in the reference plugins' order,
//! empty lists are omitted, and below 1.0.0 `dns` is printed even when it says nothing.

use super::{AddResult, Dns, Interface, IpConfig, Route};
use crate::error::{Error, code};
use crate::version::Version;
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// Inserts what is set.
fn put<T: Into<Value>>(object: &mut Object, key: &str, value: Option<T>) {
    if let Some(value) = value {
        object.insert(key.into(), value.into());
    }
}

fn put_list(object: &mut Object, key: &str, list: Vec<Value>) {
    put(object, key, Some(list).filter(|list| !list.is_empty()));
}

fn strings(list: &[String]) -> Vec<Value> {
    list.iter().map(|text| text.as_str().into()).collect()
}

fn set(number: Option<u32>) -> Option<u32> {
    number.filter(|&number| number != 0)
}

fn interface(from: &Interface, version: Version) -> Value {
    let newer = version >= Version::V1_1_0;
    let mut to = Object::new();
    to.insert("name".into(), from.name.as_str().into());
    put(&mut to, "mac", from.mac.as_deref());
    put(&mut to, "mtu", set(from.mtu).filter(|_| newer));
    put(&mut to, "sandbox", from.sandbox.as_deref());
    put(&mut to, "socketPath", from.socket_path.as_deref().filter(|_| newer));
    put(&mut to, "pciID", from.pci_id.as_deref().filter(|_| newer));
    to.into()
}

fn ip(from: &IpConfig, version: Version) -> Value {
    let mut to = Object::new();
    if version < Version::V1_0_0 {
        to.insert("version".into(), if from.address.is_ipv4() { "4" } else { "6" }.into());
    }
    put(&mut to, "interface", from.interface);
    to.insert("address".into(), from.address.to_string().into());
    put(&mut to, "gateway", from.gateway.map(|gateway| gateway.to_string()));
    to.into()
}

fn route(from: &Route) -> Value {
    let mut to = Object::new();
    to.insert("dst".into(), from.dst.to_string().into());
    put(&mut to, "gw", from.gw.map(|gw| gw.to_string()));
    // The specification has these since 1.1.0; the reference prints and reads them in every version.
    put(&mut to, "mtu", set(from.mtu));
    put(&mut to, "advmss", set(from.advmss));
    put(&mut to, "priority", set(from.priority));
    put(&mut to, "table", from.table);
    put(&mut to, "scope", from.scope);
    to.into()
}

impl Dns {
    /// The `dns` object of a result or a configuration.
    pub fn to_json(&self) -> Value {
        let mut to = Object::new();
        put_list(&mut to, "nameservers", strings(&self.nameservers));
        put(&mut to, "domain", self.domain.as_deref().filter(|domain| !domain.is_empty()));
        put_list(&mut to, "search", strings(&self.search));
        put_list(&mut to, "options", strings(&self.options));
        to.into()
    }
}

impl AddResult {
    /// `ip4` or `ip6` of the versions below 0.3.0: the first address of the family, and its routes.
    fn family(&self, ipv4: bool) -> Option<Value> {
        let first = self.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4)?;
        let mut to = Object::new();
        to.insert("ip".into(), first.address.to_string().into());
        put(&mut to, "gateway", first.gateway.map(|gateway| gateway.to_string()));
        let routes = self.routes.iter().filter(|route| route.dst.is_ipv4() == ipv4);
        put_list(&mut to, "routes", routes.map(route).collect());
        Some(to.into())
    }

    /// Whether [`AddResult::to_json`] can say this result in `version`. A plugin asks before it makes anything.
    ///
    /// # Errors
    /// Code 1 for a result without an address in a version below 0.3.0.
    pub fn check_version(&self, version: Version) -> Result<(), Error> {
        if version < Version::V0_3_0 && self.ips.is_empty() {
            return Err(Error::new(
                code::INCOMPATIBLE_VERSION,
                format!("CNI {version} cannot express a result without an IP address"),
            )
            .details("set cniVersion to 0.3.0 or newer, or configure an ipam plugin"));
        }
        Ok(())
    }

    /// The result as a document of `version`; what that version cannot say is left out.
    ///
    /// # Errors
    /// As [`AddResult::check_version`].
    pub fn to_json(&self, version: Version) -> Result<Value, Error> {
        self.check_version(version)?;
        let mut to = Object::new();
        to.insert("cniVersion".into(), version.as_str().into());
        if version < Version::V0_3_0 {
            put(&mut to, "ip4", self.family(true));
            put(&mut to, "ip6", self.family(false));
        } else {
            put_list(
                &mut to,
                "interfaces",
                self.interfaces.iter().map(|each| interface(each, version)).collect(),
            );
            put_list(&mut to, "ips", self.ips.iter().map(|each| ip(each, version)).collect());
            put_list(&mut to, "routes", self.routes.iter().map(route).collect());
        }
        if version < Version::V1_0_0 || !self.dns.is_empty() {
            to.insert("dns".into(), self.dns.to_json());
        }
        Ok(to.into())
    }
}
