-- Organizations, members, projects, APIs. Ids are UUID text, times Unix milliseconds.

CREATE TABLE organizations (
  id         TEXT PRIMARY KEY,
  handle     TEXT NOT NULL UNIQUE,
  name       TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);

CREATE TABLE memberships (
  organization_id TEXT NOT NULL REFERENCES organizations (id),
  user_id         TEXT NOT NULL,
  role            TEXT NOT NULL, -- owner, admin, developer, viewer, consumer
  created_at      BIGINT NOT NULL,
  PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX memberships_by_user ON memberships (user_id);

CREATE TABLE projects (
  id              TEXT PRIMARY KEY,
  organization_id TEXT NOT NULL REFERENCES organizations (id),
  name            TEXT NOT NULL,
  description     TEXT NOT NULL,
  created_by      TEXT NOT NULL,
  created_at      BIGINT NOT NULL,
  updated_at      BIGINT NOT NULL,
  UNIQUE (organization_id, name)
);

-- The columns are what queries need; `document` is the whole API as JSON, without its private keys.
CREATE TABLE apis (
  id                TEXT PRIMARY KEY,
  organization_id   TEXT NOT NULL REFERENCES organizations (id),
  project_id        TEXT NOT NULL REFERENCES projects (id),
  name              TEXT NOT NULL,
  context           TEXT NOT NULL,
  version           TEXT NOT NULL,
  life_cycle_status TEXT NOT NULL,
  type              TEXT NOT NULL,
  document          TEXT NOT NULL,
  created_by        TEXT NOT NULL,
  created_at        BIGINT NOT NULL,
  updated_at        BIGINT NOT NULL,
  UNIQUE (project_id, name, context, version)
);
CREATE INDEX apis_by_organization ON apis (organization_id);

-- The private keys of an API, all in one value that is encrypted for this API.
CREATE TABLE api_private_keys (
  api_id TEXT PRIMARY KEY REFERENCES apis (id) ON DELETE CASCADE,
  sealed BYTEA NOT NULL
);

-- The OpenAPI document that an API was imported from, byte for byte.
CREATE TABLE api_definitions (
  api_id     TEXT PRIMARY KEY REFERENCES apis (id) ON DELETE CASCADE,
  media_type TEXT NOT NULL,
  document   BYTEA NOT NULL
);
