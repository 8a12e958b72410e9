//! Attaching a container to its networks and detaching it, by driving the CNI executables.

use super::error::plain;
use super::plan::{self, Planned};
use super::{local, lock, missing, overlay};
use crate::paths::Paths;
use crate::spec::{NetAttach, NetMode, Spec};
use crate::state::AttachState;
use anyhow::{Context, Result, anyhow};
use cni::Version;
use cni::cache::Cache;
use cni::config::ConfList;
use cni::invoke::{Attachment, InvokeError, Invoker};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// How long a plugin may take. Ours take milliseconds; a foreign DHCP client may wait for a server.
const PATIENCE: Duration = Duration::from_secs(120);
/// The interface by which a container joins another's namespace or the host's: it makes none.
const JOINED: &str = "eth0";

/// Drives executables with these paths.
pub fn invoker(paths: &Paths) -> Invoker {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Invoker {
        path: paths.cni_bin.clone(),
        cache: Some(Cache::new(paths.results())),
        env: vec![("WEFT_ROOT".into(), text(&paths.root)), ("WEFT_RUN".into(), text(&paths.run))],
        limit: Some(PATIENCE),
        relay_stderr: false,
    }
}

/// Attaches a container, whose network namespace is at `netns`, to all that its spec names. The ports of the spec must
/// have their host ports already (see [`crate::ports::Held::ports`]).
///
/// # Errors
/// The first attachment that fails; those before it are taken back.
pub fn attach(paths: &Paths, spec: &Spec, netns: &Path) -> Result<Vec<AttachState>> {
    if let NetMode::Networks(attaches) = &spec.network {
        overlay::prepare(paths, attaches)?;
    }
    // Nobody removes a network while it is read and used.
    let _lock = lock::shared(paths)?;
    let planned = planned(paths, spec)?;
    let invoker = invoker(paths);
    let mut states = Vec::with_capacity(planned.len());
    let mut done: Vec<(&ConfList, Attachment)> = Vec::new();
    for Planned { list, ifname, capability_args } in &planned {
        let attachment = Attachment {
            container_id: spec.id.clone(),
            netns: Some(netns.to_owned()),
            ifname: ifname.clone(),
            args: Vec::new(),
            capability_args: capability_args.clone(),
        };
        let added =
            invoker.add(list, &attachment).map_err(|error| anyhow!("{}", plain(paths, &list.name, &error)));
        let added = added.and_then(|result| Ok(result.to_json(list.version.max(Version::V0_3_0))?));
        match added {
            Ok(result) => {
                if list.name != LOOPBACK {
                    states.push(AttachState { network: list.name.clone(), ifname: ifname.clone(), result });
                }
                done.push((list, attachment));
            }
            Err(error) => {
                let mut error =
                    error.context(format!("cannot attach container {} to network {}", spec.name, list.name));
                for (list, attachment) in done.iter().rev() {
                    if let Err(undo) = invoker.del(list, attachment) {
                        let undo = plain(paths, &list.name, &undo);
                        error = error.context(format!(
                            "while taking back the attachment to network {}: {undo}; before that",
                            list.name
                        ));
                    }
                }
                return Err(error);
            }
        }
    }
    Ok(states)
}

const LOOPBACK: &str = "loopback";

/// All attachments of a container, in order.
fn planned(paths: &Paths, spec: &Spec) -> Result<Vec<Planned>> {
    let single = |kind: &str, ifname: &str, capability_args: Value| -> Result<Planned> {
        let capability_args = capability_args.as_object().cloned().unwrap_or_default();
        let declared: Map<String, Value> =
            capability_args.keys().map(|key| (key.clone(), true.into())).collect();
        Ok(Planned { list: plan::single(kind, declared.into())?, ifname: ifname.into(), capability_args })
    };
    match &spec.network {
        NetMode::None => Ok(vec![single("none", "lo", json!({}))?]),
        NetMode::Host => Ok(vec![single("host", JOINED, json!({}))?]),
        NetMode::Container(id) => Ok(vec![single("container", JOINED, json!({"container": id}))?]),
        NetMode::Networks(all) => {
            let one = |attach: &NetAttach| {
                let network = local(paths, &attach.network)?;
                let network = network.with_context(|| missing(paths, &attach.network))?;
                Ok((network, attach.clone()))
            };
            let wanted = all.iter().map(one).collect::<Result<Vec<_>>>()?;
            let mut planned = vec![single(LOOPBACK, "lo", json!({}))?];
            planned.extend(plan::plan(&wanted, &spec.ports)?);
            Ok(planned)
        }
    }
}

/// Detaches a container from everything it was attached to, also when the attaching was cut off. `netns` is where its
/// network namespace is, if it still is. It may be repeated.
///
/// # Errors
/// All that failed; one failure does not stop the rest.
pub fn detach(paths: &Paths, spec: &Spec, netns: Option<&Path>) -> Result<()> {
    let invoker = invoker(paths);
    let netns = netns.filter(|path| path.exists()).map(Path::to_owned);
    let mut errors: Vec<String> = Vec::new();
    let mut del = |list: &ConfList, attachment: Attachment, sure: bool| {
        match invoker.del(list, &attachment) {
            // Without its plugin it was hardly attached.
            Err(InvokeError::NotFound { .. }) if !sure => {}
            Err(error) => {
                let text = format!("network {}: {}", list.name, plain(paths, &list.name, &error));
                // The same for each of several interfaces.
                if !errors.contains(&text) {
                    errors.push(text);
                }
            }
            Ok(()) => {}
        }
    };
    // What was added is in the cache, with the configuration that it was added with.
    let mut entries =
        Cache::new(paths.results()).find_container(&spec.id).context("cannot read the cached results")?;
    entries.sort_by(|a, b| (a.network == LOOPBACK, &b.ifname).cmp(&(b.network == LOOPBACK, &a.ifname)));
    let mut known = Vec::new();
    for entry in entries {
        if let Ok(list) = ConfList::from_slice(&entry.config) {
            known.push((entry.network.clone(), entry.ifname.clone()));
            del(&list, Attachment { netns: netns.clone(), ..entry.attachment() }, true);
        }
    }
    // An ADD that was cut off left none there.
    for Planned { list, ifname, capability_args } in
        planned(paths, spec).unwrap_or_default().into_iter().rev()
    {
        if !known.contains(&(list.name.clone(), ifname.clone())) {
            let container_id = spec.id.clone();
            let netns = netns.clone();
            del(&list, Attachment { container_id, netns, ifname, args: Vec::new(), capability_args }, false);
        }
    }
    invoker.cache.iter().for_each(|cache| cache.remove_parts(&spec.id));
    if errors.is_empty() {
        Ok(())
    } else {
        Err(anyhow!("cannot detach container {}: {}", spec.name, errors.join("; ")))
    }
}

/// Withdraws a container's published ports and leaves its attachments: others share its network namespace, and the ports are
/// free for the next container. It may be repeated.
///
/// # Errors
/// All that failed; one failure does not stop the rest.
pub fn unpublish(paths: &Paths, spec: &Spec, netns: Option<&Path>) -> Result<()> {
    const PORTS: &str = "portMappings";
    // The result stays in the cache, for the DEL of the whole attachment.
    let invoker = Invoker { cache: None, ..invoker(paths) };
    let netns = netns.filter(|path| path.exists()).map(Path::to_owned);
    let entries = Cache::new(paths.results()).find_container(&spec.id);
    let mut errors: Vec<String> = Vec::new();
    for entry in entries.context("cannot read the cached results")? {
        let Ok(mut list) = ConfList::from_slice(&entry.config) else { continue };
        list.plugins.retain(|plugin| {
            plugin.get("capabilities").and_then(|all| all.get(PORTS)?.as_bool()) == Some(true)
        });
        if !entry.capability_args.contains_key(PORTS) || list.plugins.is_empty() {
            continue;
        }
        let attachment = Attachment { netns: netns.clone(), ..entry.attachment() };
        if let Err(error) = invoker.del(&list, &attachment) {
            errors.push(format!("network {}: {}", list.name, plain(paths, &list.name, &error)));
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(anyhow!("cannot withdraw the published ports of container {}: {}", spec.name, errors.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PortMapping;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A host with networks `one` and `two` of a plugin each, which note verb, interface and capabilities.
    fn host(dir: &Path, kinds: [&str; 2]) -> Paths {
        let paths = Paths {
            root: dir.join("root"),
            run: dir.join("run"),
            config_dir: dir.join("net.d"),
            cni_bin: vec![dir.join("cni")],
        };
        fs::create_dir_all(&paths.config_dir).unwrap();
        fs::create_dir_all(dir.join("cni")).unwrap();
        for (name, kind) in ["one", "two"].iter().zip(kinds) {
            let list = json!({"cniVersion": "1.1.0", "name": name, "plugins": [
                {"type": kind, "capabilities": {"portMappings": true, "ips": true}}]});
            fs::write(paths.config_dir.join(format!("{name}.conflist")), list.to_string()).unwrap();
        }
        for (kind, end) in [("loopback", "exit 0"), ("good", "exit 0"), ("bad", "exit 1")] {
            let script = format!(
                "#!/bin/sh\nports=$(grep -c hostPort)\n\
                 echo \"$CNI_COMMAND {kind} $CNI_IFNAME $ports\" >> {}\n\
                 [ $CNI_COMMAND = ADD ] || exit 0\n\
                 echo '{{\"cniVersion\": \"1.1.0\", \"ips\": []}}'\n{end}\n",
                dir.join("calls").display()
            );
            let path = dir.join("cni").join(kind);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        paths
    }

    fn spec() -> Spec {
        let attach = |network: &str, ifname: &str| NetAttach {
            network: network.into(),
            ifname: ifname.into(),
            ..NetAttach::default()
        };
        let ports = vec![PortMapping { host_port: 8080, container_port: 80, ..PortMapping::default() }];
        let network = NetMode::Networks(vec![attach("one", "eth0"), attach("two", "eth1")]);
        Spec { id: "abc".into(), network, ports, ..Spec::default() }
    }

    fn calls(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join("calls")).unwrap_or_default();
        let _ = fs::remove_file(dir.join("calls"));
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn attachments_are_made_in_order_and_undone_with_what_they_were_made_with() {
        let dir = tempfile::tempdir().unwrap();
        let paths = host(dir.path(), ["good", "good"]);
        let states = attach(&paths, &spec(), Path::new("/proc/self/ns/net")).unwrap();
        let names: Vec<_> =
            states.iter().map(|state| (state.network.as_str(), state.ifname.as_str())).collect();
        assert_eq!(names, [("one", "eth0"), ("two", "eth1")]);
        assert_eq!(calls(dir.path()), ["ADD loopback lo 0", "ADD good eth0 1", "ADD good eth1 0"]);
        // The networks' files are not needed any more.
        fs::remove_dir_all(&paths.config_dir).unwrap();
        detach(&paths, &spec(), None).unwrap();
        assert_eq!(calls(dir.path()), ["DEL good eth1 0", "DEL good eth0 1", "DEL loopback lo 0"]);
        assert_eq!(fs::read_dir(paths.results()).map_or(0, Iterator::count), 0);
        detach(&paths, &spec(), None).unwrap();
    }

    #[test]
    fn when_one_fails_those_before_it_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths = host(dir.path(), ["good", "bad"]);
        let error = attach(&paths, &spec(), Path::new("/proc/self/ns/net")).unwrap_err();
        assert!(format!("{error:#}").contains("network two"), "{error:#}");
        let all = calls(dir.path());
        assert_eq!(all[..3], ["ADD loopback lo 0", "ADD good eth0 1", "ADD bad eth1 0"]);
        assert_eq!(all[3..], ["DEL bad eth1 0", "DEL good eth0 1", "DEL loopback lo 0"]);
        assert_eq!(fs::read_dir(paths.results()).map_or(0, Iterator::count), 0);
    }

    #[test]
    fn an_attachment_that_was_cut_off_is_undone_by_the_networks_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths = host(dir.path(), ["good", "good"]);
        detach(&paths, &spec(), None).unwrap();
        assert_eq!(calls(dir.path()), ["DEL good eth1 0", "DEL good eth0 1", "DEL loopback lo 0"]);
    }

    #[test]
    fn a_container_joins_another_by_the_plugin_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = host(dir.path(), ["good", "good"]);
        let joined = |network| planned(&paths, &Spec { network, ..spec() }).unwrap().remove(0);
        let container = joined(NetMode::Container("xyz".into()));
        assert_eq!(container.list.plugins[0]["type"], "container");
        assert_eq!(container.list.plugins[0]["capabilities"], json!({"container": true}));
        assert_eq!(container.capability_args["container"], "xyz");
        assert_eq!(joined(NetMode::Host).list.name, "host");
        assert_eq!(
            (joined(NetMode::None).list.name, joined(NetMode::None).ifname),
            ("none".into(), "lo".into())
        );
    }
}
