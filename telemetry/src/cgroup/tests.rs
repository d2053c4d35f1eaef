use tempfile::TempDir;

use super::*;

const MIB: u64 = 1 << 20;

fn write(directory: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(directory).unwrap();
    for (name, text) in files {
        fs::write(directory.join(name), text).unwrap();
    }
}

#[test]
fn version_2_is_read_at_the_level_with_the_lowest_limit() {
    let root = TempDir::new().unwrap();
    let (pod, own) = (root.path().join("pod"), root.path().join("pod/container"));
    write(
        &pod,
        &[
            ("memory.max", "268435456\n"),
            ("memory.current", "104857600\n"),
            ("memory.stat", "anon 1\nfile 2\ninactive_file 1048576\nactive_file 2097152\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 9\noom_kill 9\noom_group_kill 0\n"),
        ],
    );
    write(
        &own,
        &[
            ("memory.max", "max\n"),
            ("memory.current", "52428800\n"),
            ("memory.peak", "73400320\n"),
            ("memory.stat", "inactive_file 0\nactive_file 0\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n"),
        ],
    );
    let cgroup = Cgroup::open(Version::V2, root.path(), &own).unwrap();
    assert_eq!((cgroup.limit(), cgroup.usage()), (Some(256 * MIB), Some(100 * MIB)));
    assert_eq!((cgroup.cache(), cgroup.peak()), (Some(3 * MIB), Some(70 * MIB)));
    assert_eq!(cgroup.events(), Some(Events { max: 3, oom: 2, oom_kill: 1 }));
    // What changes is seen through the kept descriptors.
    fs::write(pod.join("memory.current"), "209715200\n").unwrap();
    assert_eq!(cgroup.usage(), Some(200 * MIB));
}

#[test]
fn version_1_is_read_the_same_way() {
    let root = TempDir::new().unwrap();
    let own = root.path().join("a");
    let files = [
        ("memory.limit_in_bytes", "268435456\n"),
        ("memory.usage_in_bytes", "104857600\n"),
        ("memory.max_usage_in_bytes", "157286400\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
        (
            "memory.stat",
            "inactive_file 7\nactive_file 7\ntotal_inactive_file 1048576\ntotal_active_file 0\n",
        ),
    ];
    write(&own, &files);
    write(root.path(), &[("memory.limit_in_bytes", "9223372036854771712\n")]);
    let cgroup = Cgroup::open(Version::V1, root.path(), &own).unwrap();
    assert_eq!((cgroup.limit(), cgroup.usage()), (Some(256 * MIB), Some(100 * MIB)));
    assert_eq!((cgroup.cache(), cgroup.peak()), (Some(MIB), Some(150 * MIB)));
    assert_eq!(cgroup.events(), Some(Events { oom_kill: 4, ..Events::default() }));
}

#[test]
fn without_a_limit_usage_is_that_of_the_own_level() {
    let root = TempDir::new().unwrap();
    let own = root.path().join("a");
    for (directory, usage) in [(root.path(), "2\n"), (&own, "1\n")] {
        let limit = "9223372036854771712\n";
        write(directory, &[("memory.limit_in_bytes", limit), ("memory.usage_in_bytes", usage)]);
    }
    let cgroup = Cgroup::open(Version::V1, root.path(), &own).unwrap();
    assert_eq!((cgroup.limit(), cgroup.usage()), (None, Some(1)));
    assert_eq!((cgroup.peak(), cgroup.events(), cgroup.cache()), (None, None, None));
}

#[test]
fn the_machines_own_cgroup_can_be_read_where_there_is_one() {
    let Some(cgroup) = Cgroup::find() else {
        eprintln!("skipped: this machine has no memory controller");
        return;
    };
    assert!(cgroup.identity() > 0);
    assert!(cgroup.usage().is_some_and(|usage| usage > 0), "{cgroup:?}");
}
