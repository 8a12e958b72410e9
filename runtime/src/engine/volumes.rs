//! Volumes: directories and files of the host that a container sees, by path or by name.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::paths::{Paths, make_private};
use crate::spec::Volume;

/// A volume whose source is there.
pub struct Mount {
    /// The path on the host.
    pub source: PathBuf,
    /// The absolute path in the container.
    pub target: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// Finds the sources, and makes those that are missing as directories, as Docker does with -v. Sorted so that a volume
/// within another one is mounted after it.
pub fn prepare(paths: &Paths, volumes: &[Volume]) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for volume in volumes {
        let source = match volume.source.starts_with('/') {
            true => PathBuf::from(&volume.source),
            false => paths.volumes().join(&volume.source),
        };
        if !source.exists() {
            // Another process may remove the directory of all volumes while it is empty.
            crate::paths::retry(|| {
                if !volume.source.starts_with('/') {
                    make_private(&paths.volumes())?;
                }
                fs::create_dir_all(&source)
            })
            .with_context(|| format!("cannot make {} for the volume", source.display()))?;
        }
        mounts.push(Mount { source, target: volume.target.clone(), read_only: volume.read_only });
    }
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_directory_under_root_and_outer_targets_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: dir.path().into(),
            run: dir.path().into(),
            config_dir: dir.path().into(),
            cni_bin: vec![],
        };
        let volume = |source: &str, target: &str| Volume {
            source: source.into(),
            target: target.into(),
            read_only: false,
        };
        let outside = dir.path().join("elsewhere");
        let asked = [volume("data", "/srv/data"), volume(outside.to_str().unwrap(), "/srv")];
        let mounts = prepare(&paths, &asked).unwrap();
        assert_eq!(mounts[0].source, outside);
        assert_eq!(mounts[1].source, dir.path().join("volumes/data"));
        assert!(mounts.iter().all(|m| m.source.is_dir()));
    }
}
