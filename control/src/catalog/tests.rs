use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::app_file;
use crate::snapshot::{
    Check, CheckKind, Compat, Concurrency, ConcurrencyKind, Handlers, HeaderChange, Hostname,
    HttpOptions, Instance, InstanceId, NodeId, Port, ProxyProtocol, Service, TlsOptions,
    TlsVersions,
};

fn app(name: &str) -> Arc<App> {
    let text = format!(
        "app = \"{name}\"\nhostnames = [\"{name}.example\", \"*.{name}.example\"]\n\
         addresses = [\"::2\"]\n[http_service]\n[[http_service.checks]]\n[[instances]]\n\
         id = \"{name}-1\"\nnode = \"n\"\naddress = \"127.0.0.1\"\n"
    );
    let mut problems = Vec::new();
    let app = app_file::parse(Path::new("a.toml"), &text, &mut problems);
    Arc::new(app.unwrap_or_else(|| panic!("{problems:?}")))
}

/// Stores each app and closes the catalog again.
fn write(folder: &TempDir, apps: &[Arc<App>]) {
    let (catalog, loaded) = Catalog::open(folder.path()).expect("opens");
    assert_eq!(loaded.trouble, None);
    for app in apps {
        catalog.store(app.clone(), format!("{}.toml", app.name).into());
    }
}

fn read(folder: &TempDir) -> Loaded {
    let (_catalog, loaded) = Catalog::open(folder.path()).expect("opens");
    loaded
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.apps.iter().map(|stored| stored.app.name.as_str()).collect()
}

fn sql(folder: &TempDir, statements: &str) {
    let connection = Connection::open(folder.path().join(FILE)).expect("opens");
    connection.execute_batch(statements).expect("valid SQL");
}

/// Names in the folder, sorted, without SQLite's companions.
fn files(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).expect("is a folder");
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.expect("readable").file_name().into_string().ok())
        .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_stored_is_there_at_the_next_start() {
    let folder = TempDir::new().expect("a folder");
    write(&folder, &[app("a"), app("b")]);
    let loaded = read(&folder);
    let stored =
        |name: &str| Stored { app: App::clone(&app(name)), origin: format!("{name}.toml").into() };
    assert_eq!(loaded.apps, [stored("a"), stored("b")]);
    assert!(loaded.quarantined.is_empty());
}

#[test]
fn a_newer_version_replaces_and_a_removed_app_leaves_no_row() {
    let folder = TempDir::new().expect("a folder");
    write(&folder, &[app("a"), app("b")]);
    {
        let (catalog, _) = Catalog::open(folder.path()).expect("opens");
        let mut newer = App::clone(&app("a"));
        newer.revision = 7;
        newer.hostnames.pop();
        catalog.store(Arc::new(newer), "other.toml".into());
        catalog.remove(AppName::new("b"));
    }
    let loaded = read(&folder);
    assert_eq!(names(&loaded), ["a"]);
    assert_eq!((loaded.apps[0].app.revision, loaded.apps[0].app.hostnames.len()), (7, 1));
    assert_eq!(&*loaded.apps[0].origin, "other.toml");
    let connection = Connection::open(folder.path().join(FILE)).expect("opens");
    for table in ["hostname", "address", "service", "port", "instance"] {
        let apps: i64 = connection
            .query_row(&format!("SELECT count(DISTINCT app) FROM {table}"), [], |row| row.get(0))
            .expect("counts");
        assert_eq!(apps, 1, "{table}");
    }
}

#[test]
fn only_the_newest_of_many_changes_needs_to_be_written() {
    let folder = TempDir::new().expect("a folder");
    {
        let (catalog, _) = Catalog::open(folder.path()).expect("opens");
        for revision in 0..1000 {
            let mut next = App::clone(&app("a"));
            next.revision = revision;
            catalog.store(Arc::new(next), "a.toml".into());
        }
    }
    assert_eq!(read(&folder).apps[0].app.revision, 999);
}

#[test]
fn the_time_of_the_last_sync_is_kept() {
    let folder = TempDir::new().expect("a folder");
    let at = UNIX_EPOCH + Duration::from_secs(1_234_567);
    let (catalog, loaded) = Catalog::open(folder.path()).expect("opens");
    assert_eq!(loaded.synced_at, None);
    catalog.note_synced(at);
    drop(catalog);
    assert_eq!(read(&folder).synced_at, Some(at));
}

#[test]
fn a_file_that_is_no_database_is_put_aside() {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join(FILE), vec![0x55; 10_000]).expect("written");
    let (catalog, loaded) = Catalog::open(folder.path()).expect("opens");
    assert!(loaded.apps.is_empty());
    let trouble = loaded.trouble.expect("said");
    assert!(trouble.contains("inventory.db.corrupt-1"), "{trouble}");
    assert_eq!(catalog.errors().load(Relaxed), 1);
    catalog.store(app("a"), "a.toml".into());
    drop(catalog);
    assert_eq!(names(&read(&folder)), ["a"]);
    assert_eq!(files(&folder), ["inventory.db", "inventory.db.corrupt-1"]);
}

#[test]
fn whichever_page_is_damaged_it_is_found_before_anything_is_served() {
    const PAGE: usize = 4096;
    let folder = TempDir::new().expect("a folder");
    write(&folder, &[app("a"), app("b"), app("c")]);
    let file = folder.path().join(FILE);
    let good = std::fs::read(&file).expect("readable");
    assert!(good.len() > 5 * PAGE);
    // The pages of an index among them, which reading everything does not touch.
    for page in 0..good.len() / PAGE {
        let mut bytes = good.clone();
        bytes[page * PAGE..][..PAGE].fill(0xaa);
        std::fs::write(&file, bytes).expect("written");
        let loaded = read(&folder);
        assert!(loaded.trouble.is_some() && loaded.apps.is_empty(), "page {page}");
    }
    std::fs::write(&file, good).expect("written");
    assert_eq!(names(&read(&folder)), ["a", "b", "c"]);
}

#[test]
fn a_truncated_file_is_put_aside() {
    let folder = TempDir::new().expect("a folder");
    write(&folder, &(0..200).map(|number| app(&format!("app-{number}"))).collect::<Vec<_>>());
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join(FILE));
    file.expect("opens").set_len(20_000).expect("truncated");
    assert!(read(&folder).trouble.is_some());
}

#[test]
fn a_file_of_another_version_is_put_aside() {
    let folder = TempDir::new().expect("a folder");
    write(&folder, &[app("a")]);
    sql(&folder, "PRAGMA user_version = 99");
    let trouble = read(&folder).trouble.expect("said");
    assert!(trouble.contains("schema version is 99"), "{trouble}");
}

#[test]
fn a_file_with_other_tables_is_put_aside() {
    let folder = TempDir::new().expect("a folder");
    sql(&folder, "CREATE TABLE app (something TEXT)");
    assert!(read(&folder).trouble.is_some());
    write(&folder, &[app("a")]);
    sql(&folder, "ALTER TABLE instance RENAME COLUMN node TO machine");
    assert!(read(&folder).trouble.is_some());
    assert_eq!(read(&folder).trouble, None);
}

#[test]
fn at_most_three_files_are_kept_aside() {
    let folder = TempDir::new().expect("a folder");
    for _ in 0..5 {
        std::fs::write(folder.path().join(FILE), "this is no database").expect("written");
        assert!(read(&folder).trouble.is_some());
    }
    let aside = ["inventory.db.corrupt-3", "inventory.db.corrupt-4", "inventory.db.corrupt-5"];
    assert_eq!(files(&folder)[1..], aside);
}

#[test]
fn a_row_that_does_not_decode_costs_one_app() {
    let damages = [
        "UPDATE hostname SET name = 'a b' WHERE app = 2",
        "UPDATE address SET address = 'here' WHERE app = 2",
        "UPDATE instance SET address = '' WHERE app = 2",
        "UPDATE instance SET id = 'a/b' WHERE app = 2",
        "UPDATE port SET first = 70000 WHERE app = 2",
        "UPDATE port SET first = 0 WHERE app = 2 AND position = 0",
        "UPDATE port SET last = 1 WHERE app = 2",
        "UPDATE port SET last = 500 WHERE app = 2 AND position = 0",
        "UPDATE port SET service = 9 WHERE app = 2",
        "UPDATE port SET proxy_protocol = 3 WHERE app = 2",
        "UPDATE port SET tls_options = '{}' WHERE app = 2",
        "UPDATE port SET http_options = '' WHERE app = 2",
        "UPDATE service SET checks = '[{\"kind\":\"icmp\"}]' WHERE app = 2",
        "UPDATE service SET hard_limit = -1 WHERE app = 2",
        "UPDATE app SET revision = -1 WHERE id = 2",
        "UPDATE app SET name = 'B' WHERE id = 2",
        "DELETE FROM port WHERE app = 2",
    ];
    for damage in damages {
        let folder = TempDir::new().expect("a folder");
        write(&folder, &[app("a"), app("b"), app("c")]);
        assert_eq!(names(&read(&folder)), ["a", "b", "c"]);
        sql(&folder, damage);
        let loaded = read(&folder);
        assert_eq!(names(&loaded), ["a", "c"], "{damage}");
        assert_eq!(loaded.quarantined.len(), 1, "{damage}");
        assert!(loaded.quarantined[0].0.eq_ignore_ascii_case("b"), "{:?}", loaded.quarantined);
    }
}

#[test]
fn a_full_disk_is_counted_and_costs_nothing_that_was_written_before() {
    let folder = TempDir::new().expect("a folder");
    write(&folder, &[app("a")]);
    let size = std::fs::metadata(folder.path().join(FILE)).expect("is there").len();
    let (catalog, loaded) = Catalog::open_bounded(folder.path(), size).expect("opens");
    assert_eq!(names(&loaded), ["a"]);
    let mut large = App::clone(&app("b"));
    large.instances = (0..1000)
        .map(|number| Instance {
            id: InstanceId::new(format!("b-{number}")),
            node: NodeId::new("n"),
            address: "::1".parse().expect("an address"),
            cordoned: false,
        })
        .collect();
    let errors = catalog.errors();
    catalog.store(Arc::new(large), "b.toml".into());
    wait_until(|| errors.load(Relaxed) > 0);
    // The refused version waits for its next attempt; a smaller one takes its place.
    catalog.remove(AppName::new("b"));
    drop(catalog);
    assert_eq!(names(&read(&folder)), ["a"]);
}

#[test]
fn without_a_disk_to_write_the_catalog_still_opens() {
    let folder = TempDir::new().expect("a folder");
    std::fs::create_dir(folder.path().join(FILE)).expect("a folder in the file's place");
    let (catalog, loaded) = Catalog::open(folder.path()).expect("opens");
    assert!(loaded.trouble.is_some() && loaded.apps.is_empty());
    assert_eq!(catalog.errors().load(Relaxed), 1);
    catalog.store(app("a"), "a.toml".into());
}

#[test]
fn a_storage_directory_that_cannot_be_made_is_an_error() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let error = Catalog::open(&file.join("storage")).err().expect("refused");
    assert!(matches!(error, CatalogError::Directory { .. }));
}

#[tokio::test]
async fn closing_writes_what_is_left() {
    let folder = TempDir::new().expect("a folder");
    let (catalog, _) = Catalog::open(folder.path()).expect("opens");
    for number in 0..100 {
        catalog.store(app(&format!("app-{number}")), "a.toml".into());
    }
    catalog.close(Duration::from_secs(30)).await;
    assert_eq!(read(&folder).apps.len(), 100);
}

fn wait_until(condition: impl Fn() -> bool) {
    let patience = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < patience, "waited in vain");
        std::thread::yield_now();
    }
}

fn any_http_options() -> impl Strategy<Value = HttpOptions> {
    let change = prop_oneof![
        Just(HeaderChange::Remove),
        prop::collection::vec("[ -~]{0,8}".prop_map(Arc::from), 1..3).prop_map(HeaderChange::Set),
    ];
    let headers = prop::collection::vec(("[a-z-]{1,8}".prop_map(Arc::from), change), 0..3);
    (any::<bool>(), headers, any::<bool>()).prop_map(|(h2_backend, response_headers, pristine)| {
        HttpOptions { h2_backend, response_headers, pristine }
    })
}

fn any_tls_options() -> impl Strategy<Value = TlsOptions> {
    let versions = prop_oneof![
        Just(TlsVersions::Tls12AndTls13),
        Just(TlsVersions::Tls12),
        Just(TlsVersions::Tls13)
    ];
    let alpn = prop::collection::vec("[ -~é]{1,9}".prop_map(Arc::from), 0..3);
    (alpn, versions, any::<bool>()).prop_map(|(alpn, versions, default_self_signed)| TlsOptions {
        alpn,
        versions,
        default_self_signed,
    })
}

fn any_check() -> impl Strategy<Value = Check> {
    let headers = prop::collection::vec(
        ("[a-z-]{1,8}".prop_map(Arc::from), "[ -~]{0,8}".prop_map(Arc::from)),
        0..3,
    );
    let http = ("[A-Z]{1,8}".prop_map(Arc::from), "/[!-~]{0,8}".prop_map(Arc::from), headers);
    let kind = prop_oneof![
        Just(CheckKind::Tcp),
        http.prop_map(|(method, path, headers)| CheckKind::Http { method, path, headers })
    ];
    let time = || (0..100_000_u64).prop_map(Duration::from_millis);
    (kind, time(), time(), time()).prop_map(|(kind, grace_period, interval, timeout)| Check {
        kind,
        grace_period,
        interval,
        timeout,
    })
}

fn any_service(number: u16) -> impl Strategy<Value = Service> {
    let proxy_protocol =
        prop_oneof![Just(None), Just(Some(ProxyProtocol::V1)), Just(Some(ProxyProtocol::V2))];
    let handlers = (any::<bool>(), any::<bool>(), proxy_protocol)
        .prop_map(|(tls, http, proxy_protocol)| Handlers { tls, http, proxy_protocol });
    let first = 1 + 100 * number;
    let port = (0..99_u16, handlers, any::<bool>(), any_tls_options(), any_http_options())
        .prop_map(move |(length, handlers, force_https, tls, http)| Port {
            range: first..=first + length,
            handlers,
            force_https,
            tls,
            http,
        });
    let kind = prop_oneof![Just(ConcurrencyKind::Requests), Just(ConcurrencyKind::Connections)];
    let concurrency = (kind, any::<u32>(), any::<Option<u32>>())
        .prop_map(|(kind, soft_limit, hard_limit)| Concurrency { kind, soft_limit, hard_limit });
    (any::<u16>(), port, concurrency, prop::collection::vec(any_check(), 0..3)).prop_map(
        |(internal_port, port, concurrency, checks)| Service {
            internal_port,
            ports: vec![port],
            concurrency,
            checks,
        },
    )
}

fn any_app() -> impl Strategy<Value = App> {
    let hostname = prop_oneof![
        "[a-z]{1,9}\\.example".prop_map(|name| Hostname::Exact(name.into())),
        "[a-z]{1,9}\\.example".prop_map(|name| Hostname::Wildcard(name.into())),
    ];
    let instance = ("[a-z0-9]{1,9}", "[a-z]{1,3}", any::<std::net::IpAddr>(), any::<bool>());
    let instance = instance.prop_map(|(id, node, address, cordoned)| Instance {
        id: InstanceId::new(id),
        node: NodeId::new(node),
        address,
        cordoned,
    });
    (
        "[a-z][a-z0-9-]{0,9}",
        0..i64::MAX as u64,
        prop::collection::vec(hostname, 0..4),
        prop::collection::vec(any::<std::net::IpAddr>(), 0..3),
        (any_service(0), any_service(1)),
        prop::collection::vec(instance, 0..5),
        prop_oneof![Just(Compat::Ferrule), Just(Compat::Fly)],
    )
        .prop_map(|(name, revision, hostnames, addresses, services, instances, compat)| App {
            name: AppName::new(name),
            revision,
            hostnames,
            addresses,
            services: vec![services.0, services.1],
            instances,
            compat,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_an_app_is_it_comes_back_as_it_was(app in any_app(), origin in "\\PC{0,20}") {
        let folder = TempDir::new().expect("a folder");
        let (catalog, _) = Catalog::open(folder.path()).expect("opens");
        catalog.store(Arc::new(app.clone()), origin.as_str().into());
        drop(catalog);
        let loaded = read(&folder);
        prop_assert_eq!(&loaded.quarantined, &[]);
        prop_assert_eq!(loaded.apps, [Stored { app, origin: origin.into() }]);
    }
}

#[test]
fn a_file_that_another_process_has_open_is_shared_or_refused_and_never_put_aside() {
    let folder = TempDir::new().expect("a folder");
    let (first, _) = Catalog::open(folder.path()).expect("opens");
    first.store(app("a"), "a.toml".into());
    let (second, loaded) = Catalog::open_shared(folder.path()).expect("opens");
    assert_eq!(loaded.trouble, None);
    // Both write, and neither loses anything.
    first.store(app("b"), "b.toml".into());
    second.store(app("c"), "c.toml".into());
    drop((first, second));
    let loaded = read(&folder);
    let mut names = names(&loaded);
    names.sort(); // which of the two came first does not matter
    assert_eq!(names, ["a", "b", "c"]);

    let (_first, _) = Catalog::open(folder.path()).expect("opens");
    sql(&folder, "PRAGMA user_version = 99");
    let before = files(&folder);
    let error = Catalog::open_shared(folder.path()).err().expect("it is of another version");
    assert!(error.to_string().contains("schema version is 99"), "{error}");
    assert_eq!(files(&folder), before);
}
