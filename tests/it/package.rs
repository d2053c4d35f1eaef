//! The Debian package: what is in it, and what it does when it is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use tempfile::TempDir;
use tests::edge::binary;
use tests::need::{self, workspace};
use tests::process::run;

/// A package, and what is in it.
struct Package {
    file: PathBuf,
    root: PathBuf,
    folder: TempDir,
}

impl Package {
    fn build() -> Option<Self> {
        need::tool("dpkg-deb")?;
        let folder = TempDir::new().unwrap();
        let mut build = Command::new(workspace().join("config/debian/build"));
        // Compressing the debug binary would be most of the test.
        let built = run(build.arg(binary()).arg(folder.path()).arg("none"));
        assert_eq!(built.code, 0, "{}", built.stderr);
        let (file, root) = (PathBuf::from(built.stdout.trim()), folder.path().join("root"));
        let unpacked = run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&root));
        assert_eq!(unpacked.code, 0, "{}", unpacked.stderr);
        Some(Self { file, root, folder })
    }

    fn field(&self, name: &str) -> String {
        let field = run(Command::new("dpkg-deb").arg("--field").arg(&self.file).arg(name));
        assert_eq!(field.code, 0, "{}", field.stderr);
        field.stdout.trim().to_owned()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_package_has_what_a_node_needs_and_nothing_else() {
    let Some(package) = Package::build() else { return };
    assert_eq!(package.field("Package"), "ferrule");
    assert_eq!(package.field("Version"), "0.0.0");
    let contents = run(Command::new("dpkg-deb").arg("--contents").arg(&package.file)).stdout;
    let mut files = Vec::new();
    for line in contents.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields[1], "root/root", "{line}");
        assert!(matches!(fields[0], "drwxr-xr-x" | "-rw-r--r--" | "-rwxr-xr-x"), "{line}");
        let name = fields[5].trim_start_matches('.');
        if fields[0].starts_with('-') && !name.starts_with("/usr/share/doc/ferrule/examples/apps/")
        {
            files.push(name.to_owned());
        }
    }
    files.sort();
    let expected = [
        "/etc/ferrule/edge.toml",
        "/usr/bin/ferrule",
        "/usr/lib/sysctl.d/60-ferrule.conf",
        "/usr/lib/systemd/system/ferrule-announce.service",
        "/usr/lib/systemd/system/ferrule.service",
        "/usr/share/bash-completion/completions/ferrule",
        "/usr/share/doc/ferrule/README.md",
        "/usr/share/doc/ferrule/changelog.gz",
        "/usr/share/doc/ferrule/copyright",
        "/usr/share/doc/ferrule/examples/bird/README.md",
        "/usr/share/doc/ferrule/examples/bird/bird.conf",
        "/usr/share/doc/ferrule/examples/bird/ferrule-tmpfiles.conf",
        "/usr/share/doc/ferrule/examples/otel-collector.yaml",
        "/usr/share/doc/ferrule/metrics.md",
        "/usr/share/fish/vendor_completions.d/ferrule.fish",
        "/usr/share/zsh/vendor-completions/_ferrule",
    ];
    assert_eq!(files, expected);
    let sums = run(Command::new("dpkg-deb").args(["--info"]).arg(&package.file).arg("md5sums"));
    fs::write(package.root.join("sums"), sums.stdout).unwrap();
    let mut check = Command::new("md5sum");
    let check = check.args(["--quiet", "--check", "sums"]).current_dir(&package.root);
    assert!(check.status().unwrap().success());
}

#[test]
fn what_the_package_brings_works_where_it_lies() {
    let Some(package) = Package::build() else { return };
    let root = &package.root;
    // The unit names the binary of the package.
    let unit = root.join("usr/lib/systemd/system/ferrule.service");
    let text = fs::read_to_string(&unit).unwrap();
    assert!(text.contains("\nExecStart=/usr/bin/ferrule run ") && !text.contains("/usr/local"));
    let here = text.replace("=/usr/bin/ferrule", &format!("={}/usr/bin/ferrule", root.display()));
    fs::write(&unit, here).unwrap();
    if need::tool("systemd-analyze").is_some() {
        let verified = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
        assert_eq!((verified.code, verified.stderr.as_str()), (0, ""));
    }
    // Completions, as a shell loads them.
    let script = root.join("usr/share/bash-completion/completions/ferrule").display().to_string();
    let ask = "source \"$0\" && complete -p ferrule && COMP_WORDS=(ferrule sta) COMP_CWORD=1 \
               && _ferrule ferrule sta ferrule && echo \"${COMPREPLY[@]}\"";
    let completed = run(Command::new("bash").args(["--norc", "-c", ask]).arg(&script));
    assert_eq!(completed.code, 0, "{}", completed.stderr);
    assert!(
        completed.stdout.contains(" ferrule\n") && completed.stdout.ends_with("status\n"),
        "{}",
        completed.stdout
    );
    // Every setting is one that some kernel has, and has its reason above.
    let sysctl = fs::read_to_string(root.join("usr/lib/sysctl.d/60-ferrule.conf")).unwrap();
    for line in sysctl.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, _) = line.split_once(" = ").expect(line);
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        assert!(path.exists(), "{name}");
    }
    // The example is a configuration.
    let edge = root.join("etc/ferrule/edge.toml");
    for name in ["apps", "certificates"] {
        fs::create_dir(edge.with_file_name(name)).unwrap();
    }
    let checked =
        run(Command::new(root.join("usr/bin/ferrule")).arg("check").arg("--config").arg(&edge));
    assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
}

/// With programs that only write down how they were called, in the place of those that change a machine.
#[test]
fn installing_makes_the_user_and_the_folders_and_starts_nothing() {
    let Some(package) = Package::build() else { return };
    if !geteuid().is_root() {
        return need::skip("changing owners needs root");
    }
    let scripts = package.folder.path().join("scripts");
    let unpacked = run(Command::new("dpkg-deb").arg("--control").arg(&package.file).arg(&scripts));
    assert_eq!(unpacked.code, 0, "{}", unpacked.stderr);
    let fakes = package.folder.path().join("fakes");
    fs::create_dir(&fakes).unwrap();
    for name in ["adduser", "systemctl", "chown"] {
        let fake = fakes.join(name);
        fs::write(&fake, "#!/bin/sh\necho \"${0##*/} $*\" >>\"${0%/*}/calls\"\n").unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", fakes.display(), std::env::var("PATH").unwrap());
    let script = |name: &str, words: &[&str]| {
        let mut command = Command::new("sh");
        command.arg(scripts.join(name)).args(words);
        let done = run(command.env("DPKG_ROOT", &package.root).env("PATH", &path));
        assert_eq!(done.code, 0, "{name} {words:?}: {}", done.stderr);
        let calls = fs::read_to_string(fakes.join("calls")).unwrap_or_default();
        drop(fs::remove_file(fakes.join("calls")));
        calls
    };
    let etc = package.root.join("etc/ferrule");

    let calls = script("postinst", &["configure", ""]);
    assert!(calls.starts_with("adduser --system --group "), "{calls}");
    assert!(calls.contains("chown root:ferrule ") && !calls.contains("systemctl"), "{calls}");
    for (name, expected) in
        [("", 0o750), ("apps", 0o750), ("certificates", 0o750), ("edge.toml", 0o640)]
    {
        assert_eq!(mode(&etc.join(name)), expected, "{name}");
    }
    // An update changes no mode that somebody has set.
    fs::set_permissions(etc.join("apps"), fs::Permissions::from_mode(0o770)).unwrap();
    let calls = script("postinst", &["configure", "0.0.0"]);
    assert!(!calls.contains("chown"), "{calls}");
    assert_eq!(mode(&etc.join("apps")), 0o770);

    fs::create_dir_all(package.root.join("var/lib/ferrule")).unwrap();
    fs::write(etc.join("certificates/hello.key"), "a key").unwrap();
    for (name, words) in [("prerm", "remove"), ("postrm", "remove"), ("postrm", "purge")] {
        assert_eq!(script(name, &[words]), "", "another root has no services");
    }
    assert!(!package.root.join("var/lib/ferrule").exists());
    assert!(etc.join("certificates/hello.key").exists() && !etc.join("apps").exists());
}

/// What a machine of its own has: this one's files, with whatever is written to them in memory only.
const MACHINE: &str = "\
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root || exit 77
cp \"$1\" /mnt/root/root/ferrule.deb
mount -t proc proc /mnt/root/proc
mount -t tmpfs tmpfs /mnt/root/run
mount -t tmpfs tmpfs /mnt/root/dev
mknod -m 666 /mnt/root/dev/null c 1 3
exec chroot /mnt/root sh -exc \"$2\"
";

/// What an administrator does to it, one after the other; each line must succeed.
const LIFE: &str = "\
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
dpkg -i /root/ferrule.deb
[ \"$(dpkg-query -W -f '${Status}' ferrule)\" = 'install ok installed' ]
[ \"$(stat -c %U:%G:%a /etc/ferrule /etc/ferrule/edge.toml | tr '\\n' ' ')\" = 'root:ferrule:750 root:ferrule:640 ' ]
setpriv --reuid ferrule --regid ferrule --clear-groups ferrule check --config /etc/ferrule/edge.toml
echo '# mine' >>/etc/ferrule/edge.toml
dpkg -i --force-confold /root/ferrule.deb
tail -n 1 /etc/ferrule/edge.toml | grep -q mine
dpkg -r ferrule
[ ! -e /usr/bin/ferrule ]
[ -e /etc/ferrule/edge.toml ]
dpkg -i /root/ferrule.deb
dpkg -P ferrule
[ ! -e /etc/ferrule ]
";

#[test]
fn the_package_is_installed_updated_removed_and_purged_by_dpkg() {
    let Some(package) = Package::build() else { return };
    for name in ["unshare", "chroot", "dpkg", "adduser", "setpriv"] {
        let Some(_) = need::tool(name) else { return };
    }
    if !geteuid().is_root() {
        return need::skip("a file system of one's own needs root");
    }
    let mut machine = Command::new("unshare");
    machine.args(["--mount", "--pid", "--fork", "--net", "sh", "-ec", MACHINE, "sh"]);
    let lived = run(machine.arg(&package.file).arg(LIFE));
    if lived.code == 77 {
        return need::skip("no overlay of this machine's files can be made");
    }
    assert_eq!(lived.code, 0, "{}{}", lived.stdout, lived.stderr);
}
