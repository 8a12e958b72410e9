//! A model of the kernel, for plans that no kernel sees.

use std::net::IpAddr;

use net::Vxlanning;
use ovl_kernel::objects::*;
use ovl_kernel::plan::*;

/// A kernel that holds what [`Dumped`] shows.
#[derive(Debug, Clone, Default)]
pub struct Kernel(pub Dumped);

impl Kernel {
    pub fn sort(&mut self) {
        self.0.addrs.sort();
        self.0.neighs.sort();
        self.0.forwards.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.0.routes.sort_by_key(|(key, _)| *key);
    }

    fn clear(&mut self, dev: &Dev) {
        let lost: Vec<IpAddr> =
            self.0.addrs.iter().filter(|((on, _), _)| on == dev).map(|((_, net), _)| net.ip()).collect();
        self.0.addrs.retain(|((on, _), _)| on != dev);
        self.0.neighs.retain(|((on, _), _)| on != dev);
        self.0.forwards.retain(|((on, _), _)| on != dev);
        self.0.routes.retain(|(_, target)| match target {
            Target::Dev { dev: on, src, .. } => on != dev && src.is_none_or(|src| !lost.contains(&src)),
            _ => true,
        });
    }

    /// The link must be there to have something set on it.
    fn on(&self, dev: &Dev) {
        assert!(self.0.links.get(dev).is_some_and(|link| link.up), "{dev} is not there, or down");
    }

    pub fn does(&mut self, op: &Op) {
        let kernel = &mut self.0;
        match op {
            Op::DeleteDevice(dev) => {
                assert!(kernel.links[dev].ours, "{dev} is not ours to delete");
                kernel.links.remove(dev);
                self.clear(dev);
            }
            Op::CreateDevice(dev, device) => {
                let vni = |link: &Shown| link.vxlan.map(|vxlan| vxlan.vni);
                if kernel.links.contains_key(dev) {
                    return; // refused
                }
                assert!(kernel.links.values().all(|link| vni(link) != Some(device.vni)), "two with a VNI");
                kernel.links.insert(dev.clone(), shown(device));
            }
            Op::ChangeDevice(dev, device, change) => {
                let link = kernel.links.get_mut(dev).unwrap();
                let vxlan = link.vxlan;
                *link = Shown { ..shown(device) };
                assert_eq!(vxlan.unwrap().vni, device.vni);
                if change.mac {
                    kernel.neighs.retain(|((on, _), _)| on != dev);
                }
            }
            Op::ChangeLink(dev, change) => {
                let link = kernel.links.get_mut(dev).unwrap();
                link.group = change.group.unwrap_or(link.group);
                link.up |= change.up;
            }
            Op::Set(dev, _) => drop(kernel.links[dev].clone()),
            Op::SetAddr(dev, net, role) => {
                self.on(dev);
                let key = (dev.clone(), *net);
                self.0.addrs.retain(|(found, _)| *found != key);
                self.0.addrs.push((key, *role));
            }
            Op::SetNeigh(dev, ip, mac) => {
                self.on(dev);
                let key = (dev.clone(), *ip);
                self.0.neighs.retain(|(found, _)| *found != key);
                self.0.neighs.push((key, *mac));
            }
            Op::SetForward(dev, mac, forward) => {
                self.on(dev);
                let key = (dev.clone(), *mac);
                replace_first(&mut self.0.forwards, key, forward.clone());
            }
            Op::SetRoute(key, target) => {
                if let Some(dev) = target.dev() {
                    self.on(dev);
                }
                if let Target::Dev { src: Some(src), .. } = target {
                    let has = self.0.addrs.iter().any(|((_, net), _)| net.ip() == *src);
                    assert!(has, "the source {src} is no address of the host");
                }
                replace_first(&mut self.0.routes, *key, target.clone());
            }
            Op::DelRoute(key, target) => kernel.routes.retain(|route| *route != (*key, target.clone())),
            Op::DelForward(dev, mac, forward) => {
                kernel.forwards.retain(|entry| *entry != ((dev.clone(), *mac), forward.clone()));
            }
            Op::DelNeigh(dev, ip) => kernel.neighs.retain(|(key, _)| *key != (dev.clone(), *ip)),
            Op::DelAddr(dev, net) => {
                assert!(kernel.links[dev].vxlan.is_some(), "an address of another's link");
                kernel.addrs.retain(|(key, _)| *key != (dev.clone(), *net));
            }
        }
        self.sort();
    }

    pub fn does_all(&mut self, plan: &Plan) {
        plan.iter().for_each(|step| self.does(&step.op));
    }
}

/// As the kernel does it: the first of several with that key.
fn replace_first<K: Ord, V: PartialEq>(list: &mut Vec<(K, V)>, key: K, value: V) {
    match list.iter_mut().find(|(found, _)| *found == key) {
        Some(entry) => entry.1 = value,
        None => list.push((key, value)),
    }
}

pub fn shown(device: &Device) -> Shown {
    let vxlan =
        Vxlanning { vni: device.vni, local: Some(device.local), port: device.port, ..Vxlanning::default() };
    Shown {
        index: 0,
        vxlan: Some(vxlan),
        up: true,
        group: device.group,
        mac: Some(device.mac),
        mtu: device.mtu,
        alias: device.alias.clone(),
        ours: true,
        ..Shown::default()
    }
}
