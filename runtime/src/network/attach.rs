//! Attaching a container to its networks and detaching it, by driving the CNI executables.

use super::plan::{self, Planned};
use super::{find, lock};
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
        let added = invoker.add(list, &attachment).map_err(|error| anyhow!("{error}"));
        let added = added.and_then(|result| Ok(result.to_json(list.version.max(Version::V0_3_0))?));
        match added {
            Ok(result) => {
                if list.name != LOOPBACK {
                    states.push(AttachState { network: list.name.clone(), ifname: ifname.clone(), result });
                }
                done.push((list, attachment));
            }
            Err(error) => {
                let undone =
                    done.iter().rev().filter_map(|(list, attachment)| invoker.del(list, attachment).err());
                let mut error =
                    error.context(format!("cannot attach the container to network {}", list.name));
                for undo in undone {
                    error = error.context(format!("while taking back an attachment: {undo}; before that"));
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
            let one = |attach: &NetAttach| Ok((find(paths, &attach.network)?, attach.clone()));
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
        let ifname = attachment.ifname.clone();
        match invoker.del(list, &attachment) {
            // Without its plugin it was hardly attached.
            Err(InvokeError::NotFound { .. }) if !sure => {}
            Err(error) => errors.push(format!("network {}, interface {ifname}: {error}", list.name)),
            Ok(()) => {}
        }
    };
    // What was added is in the cache, with the configuration that it was added with.
    let mut entries =
        Cache::new(paths.results()).find_container(&spec.id).context("cannot read the cached results")?;
    entries.sort_by(|a, b| b.ifname.cmp(&a.ifname));
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
    if errors.is_empty() {
        Ok(())
    } else {
        Err(anyhow!("cannot detach the container: {}", errors.join("; ")))
    }
}
