//! Containers on disk: `spec.json` and `state.json` of each, how they are listed, and how one is found by name, id or the
//! beginning of an id. While a container runs, its supervisor alone writes `state.json`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{process, release};
use crate::paths::{Paths, make_private};
use crate::spec::{PortMapping, Spec};

/// Where a container is in its life, in Docker's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, and never successfully started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited,
    /// It ended and something of it could not be taken down; a later command tries again.
    Dead,
}

impl Status {
    /// The word for lists and `inspect`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}

/// One attachment as it came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttachState {
    /// The network's name.
    pub network: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The CNI result, as the last plugin of the chain printed it.
    pub result: Value,
}

/// What became of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Where it is in its life.
    pub status: Status,
    /// The host's PID of its first process; 0 when it does not run.
    pub pid: i32,
    /// When that process started, in clock ticks since boot (field 22 of /proc/PID/stat): with the boot ID it tells the
    /// process from a later one of the same PID.
    pub pid_started: u64,
    /// The boot in which `pid` ran.
    pub boot_id: String,
    /// The PID of its supervisor; 0 when there is none.
    pub supervisor_pid: i32,
    /// When it was last started, RFC 3339.
    pub started: Option<String>,
    /// When it last ended, RFC 3339.
    pub finished: Option<String>,
    /// Its exit code, 128+signal when a signal ended it; 0 before that.
    pub exit_code: i32,
    /// Why it could not be started, or not be taken down.
    pub error: String,
    /// What the user should know of this start: a fallback that was taken.
    pub notes: Vec<String>,
    /// The file of its network namespace; none for the host's.
    pub netns: Option<PathBuf>,
    /// Its attachments, in order.
    pub attachments: Vec<AttachState>,
    /// Published ports with the host ports that were chosen.
    pub ports: Vec<PortMapping>,
    /// Whether those without a host address answer on the host's IPv6 addresses too.
    pub ports_ipv6: bool,
}

/// No container has this name or ID.
#[derive(Debug)]
pub struct NoSuchContainer(String);

impl std::fmt::Display for NoSuchContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "No such container: {}", self.0)
    }
}

impl std::error::Error for NoSuchContainer {}

/// A container: what was asked for and what became of it.
#[derive(Clone, Debug)]
pub struct Container {
    /// Where it lives.
    pub paths: Paths,
    /// What was asked for.
    pub spec: Spec,
    /// What became of it, when it was last read.
    pub state: State,
}

impl Container {
    /// Makes a container: checks that the name is free, chooses id, name and time of creation where the spec has none,
    /// and writes it down. Nothing of it runs yet.
    pub fn create(paths: &Paths, mut spec: Spec) -> Result<Self> {
        if spec.command.is_empty() {
            bail!("a container needs a command");
        }
        let all = paths.containers();
        // The directory itself is the lock on names. It may vanish between its making and the lock, when the last
        // container is removed: then it is made again.
        let _lock = loop {
            let opened = crate::paths::retry(|| fs::create_dir_all(&all).and_then(|()| File::open(&all)));
            let dir = opened.with_context(|| format!("cannot make {}", all.display()))?;
            let lock = Flock::lock(dir, FlockArg::LockExclusive)
                .map_err(|(_, e)| anyhow::Error::new(e).context(format!("cannot lock {}", all.display())))?;
            if same_file(&lock, &all) {
                break lock;
            }
        };
        let names: BTreeMap<String, String> =
            Self::all(paths)?.into_iter().map(|c| (c.spec.name, c.spec.id)).collect();
        if spec.id.is_empty() {
            spec.id = random_hex(32)?;
        }
        if spec.name.is_empty() {
            loop {
                spec.name = format!("{}-{}", word(&WORDS_A)?, word(&WORDS_B)?);
                if names.contains_key(&spec.name) {
                    spec.name.push_str(&format!("-{}", random_hex(2)?));
                }
                if !names.contains_key(&spec.name) {
                    break;
                }
            }
        }
        if let Some(holder) = names.get(&spec.name) {
            bail!(
                "the name {:?} is already in use by container {}; remove that container, or choose another name",
                spec.name,
                holder.get(..12).unwrap_or(holder)
            );
        }
        spec.created = now();
        let container = Self { paths: paths.clone(), spec, state: State::default() };
        let dir = container.dir();
        make_private(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // The state first: a container exists when its spec does.
        let written =
            container.save_state().and_then(|()| write_json(&dir.join("spec.json"), &container.spec));
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&dir);
            return Err(error);
        }
        Ok(container)
    }

    /// Finds the container with this name, this id, or the only one whose id begins so. The name goes before the id.
    pub fn load(paths: &Paths, what: &str) -> Result<Self> {
        let mut all = Self::all(paths)?;
        if let Some(at) = all.iter().position(|c| c.spec.name == what || c.spec.id == what) {
            return Ok(all.swap_remove(at));
        }
        let is_hex =
            !what.is_empty() && what.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        let mut found: Vec<Self> =
            all.into_iter().filter(|c| is_hex && c.spec.id.starts_with(what)).collect();
        match (found.pop(), found.len()) {
            (Some(one), 0) => Ok(one),
            (Some(_), more) => {
                bail!("{what:?} is the beginning of {} containers' ids: write more of it", more + 1)
            }
            (None, _) => Err(NoSuchContainer(what.to_owned()).into()),
        }
    }

    /// The container with this full id, also when it is being removed; none when it is gone.
    pub fn by_id(paths: &Paths, id: &str) -> Result<Option<Self>> {
        let dir = paths.container(id);
        let Some(spec) = read_json::<Spec>(&dir.join("spec.json"))? else { return Ok(None) };
        let state = read_json::<State>(&dir.join("state.json"))?.unwrap_or_default();
        Ok(Some(Self { paths: paths.clone(), spec, state }))
    }

    /// All containers but those being removed, the newest first.
    pub fn all(paths: &Paths) -> Result<Vec<Self>> {
        let mut all: Vec<Self> = Self::every(paths)?.into_iter().filter(|c| !c.is_removed()).collect();
        all.iter_mut().for_each(Self::correct);
        Ok(all)
    }

    /// Corrects a state that says "running" of a container that has neither a process nor a supervisor: on a full disk its
    /// end could not be written.
    fn correct(&mut self) {
        let ended = |this: &Self| {
            this.state.status == Status::Running
                && process::find(&this.state).is_none()
                && !release::Lock::is_taken(this)
        };
        // A start may have come in between.
        if ended(self) && self.refresh().unwrap_or(false) && ended(self) {
            self.state.status = Status::Exited;
            self.state.exit_code = 128 + libc::SIGKILL;
            self.state.pid = 0;
        }
    }

    /// All containers with those being removed, the newest first. One that vanishes meanwhile is left out.
    pub fn every(paths: &Paths) -> Result<Vec<Self>> {
        let dir = paths.containers();
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("cannot read {}", dir.display()))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = match entry {
                // The last container was removed meanwhile, and the directory with it.
                Err(e) if e.kind() == ErrorKind::NotFound => break,
                other => other.with_context(|| format!("cannot read {}", dir.display()))?,
            };
            if let Some(id) = entry.file_name().to_str() {
                found.extend(Self::by_id(paths, id)?);
            }
        }
        found.sort_by(|a, b| b.spec.created.cmp(&a.spec.created).then_with(|| a.spec.id.cmp(&b.spec.id)));
        Ok(found)
    }

    /// Removes the directories that a killed `create` or `rm` left: those without a spec. A `create` that is under way has
    /// the lock on names; then nothing is done.
    pub fn sweep(paths: &Paths) -> Result<()> {
        let all = paths.containers();
        Self::sweep_run(paths);
        let leftovers = || -> Vec<PathBuf> {
            let entries = fs::read_dir(&all).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|dir| !dir.join("spec.json").exists()).collect()
        };
        if leftovers().is_empty() {
            return Ok(());
        }
        let Ok(dir) = File::open(&all) else { return Ok(()) };
        let Ok(lock) = Flock::lock(dir, FlockArg::LockExclusiveNonblock) else { return Ok(()) };
        for dir in leftovers() {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot remove {}", dir.display()));
                }
                _ => {}
            }
        }
        let _ = fs::remove_dir(&all);
        let _ = fs::remove_dir(&paths.root);
        drop(lock);
        Ok(())
    }

    /// Removes the run directories of containers that are gone. The lasting state goes last, so there is at most a lock in them.
    fn sweep_run(paths: &Paths) {
        let entries = fs::read_dir(paths.run.join("containers")).into_iter().flatten().flatten();
        for entry in entries {
            if !paths.containers().join(entry.file_name()).exists() {
                release::Lock::remove_unused(&entry.path());
            }
        }
    }

    /// The directory of its lasting state.
    pub fn dir(&self) -> PathBuf {
        self.paths.container(&self.spec.id)
    }

    /// The directory it has while it runs.
    pub fn run_dir(&self) -> PathBuf {
        self.paths.container_run(&self.spec.id)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.spec.id
    }

    /// Reads the state again. False when the container is gone.
    pub fn refresh(&mut self) -> Result<bool> {
        let Some(now) = Self::by_id(&self.paths, &self.spec.id)? else { return Ok(false) };
        self.state = now.state;
        Ok(true)
    }

    /// Writes the state down, all of it or nothing.
    pub fn save_state(&self) -> Result<()> {
        write_json(&self.dir().join("state.json"), &self.state)
    }

    /// Whether it was removed by force and is only waited for by those who share its network.
    pub fn is_removed(&self) -> bool {
        self.removed_mark().exists()
    }

    /// The file that says so. It is apart from the state because another process than the supervisor writes it.
    pub fn removed_mark(&self) -> PathBuf {
        self.dir().join("removed")
    }
}

/// The present, RFC 3339 in UTC with nanoseconds, as Docker writes it.
pub fn now() -> String {
    rfc3339(time::OffsetDateTime::now_utc())
}

/// A time in UTC, RFC 3339 with always nine digits of a second, so that such texts sort by time.
pub fn rfc3339(at: time::OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.nanosecond()
    )
}

/// Whether the open file is still the one at `path`.
pub(crate) fn same_file(open: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    matches!((open.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if a.dev() == b.dev() && a.ino() == b.ino())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let value = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Some(value))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(value)?;
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&temporary, path));
        let Err(error) = written else { return Ok(()) };
        let _ = fs::remove_file(&temporary);
        match error.kind() {
            // On a full disk there is room in the blocks that the file has already.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => overwrite(path, text).map_err(|_| error),
            _ => Err(error),
        }
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces the text of a file in place, in one write, when it fits into the blocks that the file has. What is left of a
/// longer text becomes white space.
fn overwrite(path: &Path, mut text: Vec<u8>) -> std::io::Result<()> {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let file = File::options().write(true).open(path)?;
    let meta = file.metadata()?;
    if text.len() as u64 > meta.blocks() * 512 {
        return Err(ErrorKind::StorageFull.into());
    }
    text.resize(text.len().max(usize::try_from(meta.len()).unwrap_or(0)), b' ');
    file.write_all_at(&text, 0)
}

fn random(bytes: &mut [u8]) -> Result<()> {
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(bytes)).context("cannot read /dev/urandom")
}

fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    random(&mut buffer)?;
    Ok(buffer.iter().map(|b| format!("{b:02x}")).collect())
}

fn word(words: &[&'static str]) -> Result<&'static str> {
    let mut byte = [0; 2];
    random(&mut byte)?;
    Ok(words[usize::from(u16::from_le_bytes(byte)) % words.len()])
}

const WORDS_A: [&str; 24] = [
    "amber", "bold", "brisk", "calm", "clear", "copper", "crisp", "dusky", "early", "fleet", "gentle",
    "golden", "grey", "keen", "light", "lively", "mellow", "nimble", "plain", "quiet", "silver", "steady",
    "swift", "warm",
];
const WORDS_B: [&str; 24] = [
    "bobbin", "canvas", "cord", "cotton", "damask", "felt", "fibre", "flax", "heddle", "jute", "knot",
    "linen", "loom", "needle", "pick", "reed", "ribbon", "selvage", "shuttle", "spool", "thread", "twill",
    "warp", "yarn",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> Paths {
        Paths { root: dir.join("root"), run: dir.join("run"), config_dir: dir.join("net.d"), cni_bin: vec![] }
    }

    fn named(name: &str, id: &str) -> Spec {
        Spec { name: name.into(), id: id.into(), command: vec!["true".into()], ..Default::default() }
    }

    #[test]
    fn a_container_is_found_by_name_id_and_the_beginning_of_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let first = format!("abcd{}", "0".repeat(60));
        let second = format!("abce{}", "0".repeat(60));
        Container::create(&paths, named("one", &first)).unwrap();
        Container::create(&paths, named("two", &second)).unwrap();
        for what in ["one", &first, "abcd"] {
            assert_eq!(Container::load(&paths, what).unwrap().spec.name, "one");
        }
        assert!(Container::load(&paths, "abc").unwrap_err().to_string().contains("2 containers"));
        assert_eq!(Container::load(&paths, "none").unwrap_err().to_string(), "No such container: none");
        assert!(Container::load(&paths, "").is_err());
    }

    #[test]
    fn a_name_is_used_once() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let first = Container::create(&paths, named("one", "")).unwrap();
        assert_eq!(first.id().len(), 64);
        let error = Container::create(&paths, named("one", "")).unwrap_err().to_string();
        assert!(error.contains("already in use") && error.contains(first.spec.short_id()), "{error}");
        let unnamed = Container::create(&paths, named("", "")).unwrap();
        assert!(!unnamed.spec.name.is_empty());
    }

    #[test]
    fn a_removed_container_is_not_listed_and_its_name_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let first = Container::create(&paths, named("one", "")).unwrap();
        fs::write(first.removed_mark(), "").unwrap();
        assert!(Container::all(&paths).unwrap().is_empty());
        assert_eq!(Container::every(&paths).unwrap().len(), 1);
        Container::create(&paths, named("one", "")).unwrap();
    }

    #[test]
    fn the_state_reads_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let mut container = Container::create(&paths, named("one", "")).unwrap();
        container.state.status = Status::Running;
        container.state.pid = 7;
        container.save_state().unwrap();
        let read = Container::by_id(&paths, container.id()).unwrap().unwrap();
        assert_eq!(read.state, container.state);
    }

    #[test]
    fn times_sort_as_text() {
        let at = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20.000000000Z");
    }
}
