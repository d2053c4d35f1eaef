//! Apps as rows and back.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Row, TransactionBehavior, params};

use crate::names;
use crate::snapshot::{
    App, AppName, Compat, Concurrency, ConcurrencyKind, Handlers, Instance, NodeId, Port,
    ProxyProtocol, Service,
};

use super::{Loaded, Stored, options};

const DELETE_APP: &str = "DELETE FROM app WHERE name = ?1";
const INSERT_APP: &str = "INSERT INTO app (name, revision, origin, compat) VALUES (?1, ?2, ?3, ?4)";
const INSERT_HOSTNAME: &str = "INSERT INTO hostname (app, position, name) VALUES (?1, ?2, ?3)";
const INSERT_ADDRESS: &str = "INSERT INTO address (app, position, address) VALUES (?1, ?2, ?3)";
const INSERT_SERVICE: &str = "INSERT INTO service \
    (app, position, internal_port, concurrency, soft_limit, hard_limit, checks) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const INSERT_PORT: &str = "INSERT INTO port (app, service, position, first, last, tls, http, \
    proxy_protocol, force_https, tls_options, http_options) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
const INSERT_INSTANCE: &str = "INSERT INTO instance (app, position, id, node, address, cordoned) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const NOTE: &str =
    "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";

const SELECT_APPS: &str = "SELECT id, name, revision, origin, compat FROM app ORDER BY id";
const SELECT_HOSTNAMES: &str = "SELECT app, name FROM hostname ORDER BY app, position";
const SELECT_ADDRESSES: &str = "SELECT app, address FROM address ORDER BY app, position";
const SELECT_SERVICES: &str = "SELECT app, internal_port, concurrency, soft_limit, hard_limit, \
    checks FROM service ORDER BY app, position";
const SELECT_PORTS: &str = "SELECT app, service, first, last, tls, http, proxy_protocol, \
    force_https, tls_options, http_options FROM port ORDER BY app, service, position";
const SELECT_INSTANCES: &str =
    "SELECT app, id, node, address, cordoned FROM instance ORDER BY app, position";
const SELECT_NOTE: &str = "SELECT value FROM meta WHERE key = ?1";

/// Every statement there is.
pub(super) const STATEMENTS: [&str; 15] = [
    DELETE_APP,
    INSERT_APP,
    INSERT_HOSTNAME,
    INSERT_ADDRESS,
    INSERT_SERVICE,
    INSERT_PORT,
    INSERT_INSTANCE,
    NOTE,
    SELECT_APPS,
    SELECT_HOSTNAMES,
    SELECT_ADDRESSES,
    SELECT_SERVICES,
    SELECT_PORTS,
    SELECT_INSTANCES,
    SELECT_NOTE,
];

const SYNCED_AT: &str = "synced_at";

/// Prepares every statement, so that none can fail for its text later.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    for statement in STATEMENTS {
        connection.prepare_cached(statement)?;
    }
    Ok(())
}

/// Replaces the app's rows in one transaction.
pub(super) fn store(connection: &mut Connection, app: &App, origin: &str) -> rusqlite::Result<()> {
    let App { name, revision, hostnames, addresses, services, instances, compat } = app;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        transaction.prepare_cached(DELETE_APP)?.execute([name.as_str()])?;
        let revision = i64::try_from(*revision).unwrap_or(i64::MAX);
        let id = transaction.prepare_cached(INSERT_APP)?.insert(params![
            name.as_str(),
            revision,
            origin,
            compat_name(*compat)
        ])?;
        let mut insert = transaction.prepare_cached(INSERT_HOSTNAME)?;
        for (position, hostname) in numbered(hostnames) {
            insert.execute(params![id, position, hostname.to_string()])?;
        }
        let mut insert = transaction.prepare_cached(INSERT_ADDRESS)?;
        for (position, address) in numbered(addresses) {
            insert.execute(params![id, position, address.to_string()])?;
        }
        for (position, service) in numbered(services) {
            store_service(&transaction, id, position, service)?;
        }
        let mut insert = transaction.prepare_cached(INSERT_INSTANCE)?;
        for (position, instance) in numbered(instances) {
            let Instance { id: instance, node, address, cordoned } = instance;
            let (instance, node, address) = (instance.as_str(), node.as_str(), address.to_string());
            insert.execute(params![id, position, instance, node, address, cordoned])?;
        }
    }
    transaction.commit()
}

fn store_service(
    connection: &Connection,
    app: i64,
    position: i64,
    service: &Service,
) -> rusqlite::Result<()> {
    let Service { internal_port, ports, concurrency, checks } = service;
    let Concurrency { kind, soft_limit, hard_limit } = concurrency;
    let kind = match kind {
        ConcurrencyKind::Requests => "requests",
        ConcurrencyKind::Connections => "connections",
    };
    let checks = options::checks_to_json(checks);
    connection.prepare_cached(INSERT_SERVICE)?.execute(params![
        app,
        position,
        internal_port,
        kind,
        soft_limit,
        hard_limit,
        checks
    ])?;
    let mut insert = connection.prepare_cached(INSERT_PORT)?;
    for (number, port) in numbered(ports) {
        let Port { range, handlers, force_https, tls, http } = port;
        let proxy_protocol = handlers.proxy_protocol.map(|version| match version {
            ProxyProtocol::V1 => 1,
            ProxyProtocol::V2 => 2,
        });
        insert.execute(params![
            app,
            position,
            number,
            range.start(),
            range.end(),
            handlers.tls,
            handlers.http,
            proxy_protocol,
            force_https,
            options::tls_to_json(tls),
            options::http_to_json(http)
        ])?;
    }
    Ok(())
}

/// Deletes the app's rows; the schema deletes its children.
pub(super) fn remove(connection: &Connection, name: &AppName) -> rusqlite::Result<()> {
    connection.prepare_cached(DELETE_APP)?.execute([name.as_str()]).map(drop)
}

pub(super) fn note_synced(connection: &Connection, at: SystemTime) -> rusqlite::Result<()> {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    connection.prepare_cached(NOTE)?.execute(params![SYNCED_AT, seconds]).map(drop)
}

/// Reads everything. An app with a row that does not decode is left out and named.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Loaded> {
    let mut apps = Partials::default();
    apps.read(connection)?;
    let mut loaded = Loaded::default();
    for Partial { name, stored } in apps.list {
        match stored.and_then(whole) {
            Ok(stored) => loaded.apps.push(stored),
            Err(problem) => {
                tracing::warn!(app = name, problem, "a row of the catalog does not decode");
                loaded.quarantined.push((name, problem));
            }
        }
    }
    let mut note = connection.prepare_cached(SELECT_NOTE)?;
    let mut rows = note.query([SYNCED_AT])?;
    if let Some(row) = rows.next()? {
        let seconds = u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default();
        loaded.synced_at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    }
    Ok(loaded)
}

/// What an app must have beyond rows that decode.
fn whole(stored: Stored) -> Result<Stored, String> {
    let mut ports: Vec<_> = stored.app.ports().map(|(_, _, port)| port.range.clone()).collect();
    ports.sort_by_key(|range| *range.start());
    if ports.is_empty() {
        return Err("it has no port".to_owned());
    }
    if ports.windows(2).any(|pair| pair[0].end() >= pair[1].start()) {
        return Err("its ports overlap".to_owned());
    }
    Ok(stored)
}

/// Apps while their rows come in.
#[derive(Default)]
struct Partials {
    list: Vec<Partial>,
    by_id: HashMap<i64, usize>,
    /// There are few nodes and many instances: each name is kept once.
    nodes: HashMap<String, NodeId>,
}

struct Partial {
    name: String,
    /// What is wrong with the first row that does not decode.
    stored: Result<Stored, String>,
}

impl Partials {
    fn read(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(SELECT_APPS)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
            self.by_id.insert(id, self.list.len());
            let stored = app(&name, row);
            self.list.push(Partial { name, stored });
        }
        self.children(connection, SELECT_HOSTNAMES, |app, row| {
            app.hostnames.push(parsed(row, 1, names::hostname)?);
            Ok(())
        })?;
        self.children(connection, SELECT_ADDRESSES, |app, row| {
            app.addresses.push(parsed(row, 1, str::parse)?);
            Ok(())
        })?;
        self.children(connection, SELECT_SERVICES, |app, row| {
            app.services.push(service(row)?);
            Ok(())
        })?;
        self.children(connection, SELECT_PORTS, |app, row| {
            let position = usize::try_from(column::<i64>(row, 1)?).unwrap_or(usize::MAX);
            let service = app.services.get_mut(position).ok_or("a port has no service")?;
            service.ports.push(port(row)?);
            Ok(())
        })?;
        let mut nodes = std::mem::take(&mut self.nodes);
        self.children(connection, SELECT_INSTANCES, |app, row| {
            app.instances.push(instance(row, &mut nodes)?);
            Ok(())
        })
    }

    /// Adds each row of `statement` to its app; the first column is the app's id.
    fn children(
        &mut self,
        connection: &Connection,
        statement: &str,
        mut add: impl FnMut(&mut App, &Row<'_>) -> Result<(), String>,
    ) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(statement)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let Some(index) = self.by_id.get(&row.get(0)?) else { continue };
            let partial = &mut self.list[*index];
            if let Ok(stored) = &mut partial.stored
                && let Err(problem) = add(&mut stored.app, row)
            {
                partial.stored = Err(problem);
            }
        }
        Ok(())
    }
}

fn app(name: &str, row: &Row<'_>) -> Result<Stored, String> {
    let app = App {
        name: names::app(name)?,
        revision: u64::try_from(column::<i64>(row, 2)?).map_err(|error| error.to_string())?,
        hostnames: Vec::new(),
        addresses: Vec::new(),
        services: Vec::new(),
        instances: Vec::new(),
        compat: parsed(row, 4, |name| match name {
            "ferrule" => Ok(Compat::Ferrule),
            "fly" => Ok(Compat::Fly),
            _ => Err("is not a compat"),
        })?,
    };
    Ok(Stored { app, origin: column::<Arc<str>>(row, 3)? })
}

fn service(row: &Row<'_>) -> Result<Service, String> {
    let kind = parsed(row, 2, |name| match name {
        "requests" => Ok(ConcurrencyKind::Requests),
        "connections" => Ok(ConcurrencyKind::Connections),
        _ => Err("is not a kind of concurrency"),
    })?;
    let (soft_limit, hard_limit) = (column(row, 3)?, column(row, 4)?);
    Ok(Service {
        internal_port: column(row, 1)?,
        ports: Vec::new(),
        concurrency: Concurrency { kind, soft_limit, hard_limit },
        checks: parsed(row, 5, options::checks_from_json)?,
    })
}

fn port(row: &Row<'_>) -> Result<Port, String> {
    let range = column::<u16>(row, 2)?..=column(row, 3)?;
    if range.is_empty() || *range.start() == 0 {
        return Err("a range of ports is empty".to_owned());
    }
    let proxy_protocol = match column::<Option<u8>>(row, 6)? {
        None => None,
        Some(1) => Some(ProxyProtocol::V1),
        Some(2) => Some(ProxyProtocol::V2),
        Some(version) => return Err(format!("PROXY protocol {version} does not exist")),
    };
    Ok(Port {
        range,
        handlers: Handlers { tls: column(row, 4)?, http: column(row, 5)?, proxy_protocol },
        force_https: column(row, 7)?,
        tls: parsed(row, 8, options::tls_from_json)?,
        http: parsed(row, 9, options::http_from_json)?,
    })
}

fn instance(row: &Row<'_>, nodes: &mut HashMap<String, NodeId>) -> Result<Instance, String> {
    let node = parsed(row, 2, |name| match nodes.get(name) {
        Some(node) => Ok(node.clone()),
        None => names::node(name).inspect(|node| {
            nodes.insert(name.to_owned(), node.clone());
        }),
    })?;
    Ok(Instance {
        id: parsed(row, 1, names::instance)?,
        node,
        address: parsed(row, 3, str::parse)?,
        cordoned: column(row, 4)?,
    })
}

fn column<T: rusqlite::types::FromSql>(row: &Row<'_>, index: usize) -> Result<T, String> {
    row.get(index).map_err(|error| error.to_string())
}

/// A text column that `parse` understands.
fn parsed<T, E: fmt::Display>(
    row: &Row<'_>,
    index: usize,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, String> {
    let text = row.get_ref(index).ok().and_then(|value| value.as_str().ok());
    let text = text.ok_or_else(|| format!("column {index} is not text"))?;
    parse(text).map_err(|error| {
        let shown: String = text.chars().take(60).collect();
        format!("{shown:?}: {error}")
    })
}

fn compat_name(compat: Compat) -> &'static str {
    match compat {
        Compat::Ferrule => "ferrule",
        Compat::Fly => "fly",
    }
}

fn numbered<T>(items: &[T]) -> impl Iterator<Item = (i64, &T)> {
    (0_i64..).zip(items)
}
