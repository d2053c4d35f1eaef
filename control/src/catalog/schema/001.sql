-- The inventory as this node last accepted it. Made to be read with sqlite3.
-- Children are clustered by app and in the order of the app file.

CREATE TABLE app (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    -- What the source calls the place it comes from: a file name.
    origin   TEXT NOT NULL,
    compat   TEXT NOT NULL CHECK (compat IN ('ferrule', 'fly'))
) STRICT;

-- Not unique across apps: a name can move from one app to another between two commits.
CREATE TABLE hostname (
    app      INTEGER NOT NULL REFERENCES app ON DELETE CASCADE,
    position INTEGER NOT NULL,
    name     TEXT NOT NULL,
    PRIMARY KEY (app, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE address (
    app      INTEGER NOT NULL REFERENCES app ON DELETE CASCADE,
    position INTEGER NOT NULL,
    address  TEXT NOT NULL,
    PRIMARY KEY (app, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE service (
    app           INTEGER NOT NULL REFERENCES app ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    internal_port INTEGER NOT NULL,
    concurrency   TEXT NOT NULL CHECK (concurrency IN ('requests', 'connections')),
    soft_limit    INTEGER NOT NULL,
    hard_limit    INTEGER,
    checks        TEXT NOT NULL, -- JSON
    PRIMARY KEY (app, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE port (
    app            INTEGER NOT NULL REFERENCES app ON DELETE CASCADE,
    service        INTEGER NOT NULL, -- its position
    position       INTEGER NOT NULL,
    first          INTEGER NOT NULL,
    last           INTEGER NOT NULL,
    tls            INTEGER NOT NULL,
    http           INTEGER NOT NULL,
    proxy_protocol INTEGER, -- version
    force_https    INTEGER NOT NULL,
    tls_options    TEXT NOT NULL, -- JSON
    http_options   TEXT NOT NULL, -- JSON
    PRIMARY KEY (app, service, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE instance (
    app      INTEGER NOT NULL REFERENCES app ON DELETE CASCADE,
    position INTEGER NOT NULL,
    id       TEXT NOT NULL,
    node     TEXT NOT NULL,
    address  TEXT NOT NULL,
    cordoned INTEGER NOT NULL,
    PRIMARY KEY (app, position)
) STRICT, WITHOUT ROWID;

-- synced_at: seconds since 1970 when the source had last said everything.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
