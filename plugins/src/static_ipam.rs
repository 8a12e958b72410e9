//! static: an IPAM plugin that gives out the addresses that its configuration names, and keeps no account of them.

use crate::args::{address, cidr, one_each, routes};
use cni::config::{get, present};
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::{AddResult, Dns, IpConfig, Route};
use cni::{Error, code};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Map;
use std::net::IpAddr;

/// The plugin.
pub struct Static;

#[derive(Deserialize)]
struct Address {
    address: String,
    gateway: Option<String>,
}

/// What a request asks for, checked.
pub struct Conf {
    ips: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

fn ip(address: IpNetwork, gateway: Option<IpAddr>) -> IpConfig {
    IpConfig { interface: None, address, gateway }
}

/// `ips` of `args.cni` or of `runtimeConfig`, which take the place of the configured addresses.
fn replacing(from: &Map<String, serde_json::Value>, key: &str) -> Result<Vec<IpConfig>, Error> {
    let given: Vec<String> = get(from, "ips")?.unwrap_or_default();
    given.iter().map(|text| Ok(ip(cidr(key, text)?, None))).collect()
}

impl Conf {
    /// Reads the request's configuration and arguments.
    ///
    /// # Errors
    /// Code 7 for a wrong value, code 4 for wrong arguments, code 1 for more addresses than the version can say.
    pub fn of(request: &Request) -> Result<Conf, Error> {
        let none = || Error::config("ipam", "missing", "an object with \"type\" and \"addresses\"");
        let ipam = request.conf.ipam.as_ref().ok_or_else(none)?;
        let mut ips = Vec::new();
        for each in get::<Vec<Address>>(ipam, "addresses")?.unwrap_or_default() {
            let gateway = each.gateway.filter(|gateway| !gateway.is_empty());
            let gateway = gateway.map(|gateway| address("ipam.addresses.gateway", &gateway)).transpose()?;
            ips.push(ip(cidr("ipam.addresses.address", &each.address)?, gateway));
        }
        let list = |key| request.args.get(key).unwrap_or_default().split(',').map(str::trim);
        for text in list("IP").filter(|text| !text.is_empty()) {
            ips.push(ip(cidr("CNI_ARGS IP", text).map_err(argument)?, None));
        }
        for text in list("GATEWAY").filter(|text| !text.is_empty()) {
            let gateway = address("CNI_ARGS GATEWAY", text).map_err(argument)?;
            ips.iter_mut()
                .filter(|ip| ip.address.contains(gateway))
                .for_each(|ip| ip.gateway = Some(gateway));
        }
        for (from, key) in
            [(&request.conf.args_cni, "args.cni.ips"), (&request.conf.runtime_config, "runtimeConfig.ips")]
        {
            let given = replacing(from, key)?;
            if !given.is_empty() {
                ips = given;
            }
        }
        one_each(request.conf.version, ips.iter().map(|ip| ip.address.ip()))?;
        let dns = present(ipam, "dns");
        let dns = dns.map_or(Ok(Dns::default()), |dns| {
            let result = serde_json::json!({ "dns": dns });
            AddResult::from_json_as(&result, cni::Version::CURRENT).map(|result| result.dns).map_err(
                |error| Error::new(code::INVALID_CONFIG, "invalid \"ipam.dns\"").details(error.details),
            )
        })?;
        Ok(Conf { ips, routes: routes(ipam)?, dns })
    }

    /// The result of an ADD.
    pub fn result(&self) -> AddResult {
        AddResult {
            interfaces: Vec::new(),
            ips: self.ips.clone(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
        }
    }

    /// Whether `prevResult` has every address.
    ///
    /// # Errors
    /// Code 100, naming the address that is missing.
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        let result = request.conf.require_prev_result()?;
        for ip in &self.ips {
            if !result.ips.iter().any(|each| each.address == ip.address) {
                let msg = format!("prevResult does not have the address {}", ip.address);
                return Err(Error::new(code::PLUGIN, msg));
            }
        }
        Ok(())
    }
}

/// What is wrong in an argument is wrong in the environment.
fn argument(error: Error) -> Error {
    Error::environment(&["CNI_ARGS"], error.details)
}

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn about(&self) -> String {
        crate::about("static")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        request.args.only(&["IP", "GATEWAY", "MAC"])?;
        let result = Conf::of(request)?.result();
        result.check_version(request.conf.version)?;
        Ok(result)
    }

    /// No account is kept, so there is nothing to give back.
    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request)?.check(request)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request).map(drop)
    }
}
