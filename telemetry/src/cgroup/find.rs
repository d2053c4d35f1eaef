//! From `/proc/self/cgroup` and `/proc/self/mountinfo` to the directory of the memory cgroup.

use std::path::{Path, PathBuf};

use super::Version;

/// The interface, the mount point, and the directory of the process's own cgroup.
///
/// A machine may have both hierarchies mounted; memory is in version 1 if a line of its names it.
pub(super) fn directory(own: &str, mounts: &str) -> Option<(Version, PathBuf, PathBuf)> {
    v1(own, mounts).or_else(|| v2(own, mounts))
}

fn v1(own: &str, mounts: &str) -> Option<(Version, PathBuf, PathBuf)> {
    let path = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    })?;
    let mount = mounts.lines().filter_map(Mount::parse).find(|mount| {
        mount.kind == "cgroup" && mount.options.split(',').any(|option| option == "memory")
    })?;
    Some(mount.place(Version::V1, path))
}

fn v2(own: &str, mounts: &str) -> Option<(Version, PathBuf, PathBuf)> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = mounts.lines().filter_map(Mount::parse).find(|mount| mount.kind == "cgroup2")?;
    Some(mount.place(Version::V2, path))
}

/// A line of `/proc/self/mountinfo` (proc(5)):
/// `36 35 98:0 /root /point rw,noatime shared:1 - type source options`.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut what = what.split(' ');
        let (kind, _source, options) = (what.next()?, what.next()?, what.next()?);
        Some(Self { root, point, kind, options })
    }

    /// Where `path` is. In a container the mount shows a part of the hierarchy only: its root is
    /// cut off the path, and a path outside of it (another namespace's) means the mount itself.
    fn place(&self, version: Version, path: &str) -> (Version, PathBuf, PathBuf) {
        let point = PathBuf::from(self.point);
        let below = Path::new(path).strip_prefix(self.root).ok();
        let below = below.filter(|below| !below.starts_with(".."));
        let own = match below {
            Some(below) if below.as_os_str().is_empty() => point.clone(),
            Some(below) => point.join(below),
            None => point.clone(),
        };
        let own = if own.is_dir() || !point.is_dir() { own } else { point.clone() };
        (version, point, own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &str, mounts: &str, expected: Option<(Version, &str, &str)>) {
        let found = directory(own, mounts);
        let expected = expected.map(|(version, root, own)| (version, root.into(), own.into()));
        assert_eq!(found, expected, "{own}");
    }

    #[test]
    fn the_memory_controller_is_found_in_either_version() {
        let v1 = "31 23 0:28 / /nowhere ro - tmpfs tmpfs ro\n\
                  34 31 0:31 / /nowhere/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  35 31 0:32 / /nowhere/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n";
        let v2 = "30 23 0:26 / /nowhere/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = format!("{v1}{v2}");
        let own = "5:memory:/pod/one\n2:cpu,cpuacct:/x\n0::/y\n";
        let memory = Some((Version::V1, "/nowhere/memory", "/nowhere/memory/pod/one"));
        check(own, v1, memory);
        check(own, &hybrid, memory);
        let unified = Some((Version::V2, "/nowhere/unified", "/nowhere/unified/y"));
        check("2:cpu,cpuacct:/x\n0::/y\n", &hybrid, unified);
        check("0::/\n", v2, Some((Version::V2, "/nowhere/unified", "/nowhere/unified")));
        check("0::/\n", "", None);
        check("", v2, None);
    }

    #[test]
    fn a_container_sees_its_part_of_the_hierarchy() {
        let mounts = "35 31 0:32 /docker/abc /nowhere/memory ro - cgroup cgroup rw,memory\n";
        let own = "5:memory:/docker/abc/inner\n";
        check(own, mounts, Some((Version::V1, "/nowhere/memory", "/nowhere/memory/inner")));
        let other = "5:memory:/elsewhere\n";
        check(other, mounts, Some((Version::V1, "/nowhere/memory", "/nowhere/memory")));
        let mounts = "30 23 0:26 / /nowhere rw - cgroup2 cgroup2 rw\n";
        check("0::/../../b\n", mounts, Some((Version::V2, "/nowhere", "/nowhere")));
    }
}
