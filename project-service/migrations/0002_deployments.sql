-- Revisions and deployments. A deployment is desired state: what each gateway is to run, and what it reported.

-- A frozen API: its document and its sealed private keys as they were. Numbers have no gaps.
CREATE TABLE revisions (
  id          TEXT PRIMARY KEY,
  api_id      TEXT NOT NULL REFERENCES apis (id) ON DELETE CASCADE,
  number      BIGINT NOT NULL,
  description TEXT NOT NULL,
  document    TEXT NOT NULL,
  sealed_keys BYTEA,
  created_by  TEXT NOT NULL,
  created_at  BIGINT NOT NULL,
  UNIQUE (api_id, number)
);

CREATE TABLE deployments (
  id                   TEXT PRIMARY KEY,
  api_id               TEXT NOT NULL REFERENCES apis (id) ON DELETE CASCADE,
  revision_id          TEXT NOT NULL REFERENCES revisions (id) ON DELETE CASCADE,
  gateway_id           TEXT NOT NULL,
  name                 TEXT NOT NULL,
  vhost                TEXT NOT NULL, -- empty: the gateway's default
  display_on_devportal BOOLEAN NOT NULL,
  is_current           BOOLEAN NOT NULL, -- the newest of its API on its gateway
  is_desired           BOOLEAN NOT NULL, -- whether the gateway is to run it, or to have it gone
  status               TEXT NOT NULL, -- PENDING, DELIVERED, DEPLOYED, FAILED, UNDEPLOYING, UNDEPLOYED
  status_reason        TEXT NOT NULL,
  deployed_at          BIGINT NOT NULL, -- when the deployment was asked for
  requested_at         BIGINT NOT NULL, -- when it was asked for, or asked to be undone
  success_at           BIGINT -- when the gateway last acknowledged it with success
);
CREATE UNIQUE INDEX deployments_current ON deployments (api_id, gateway_id) WHERE is_current;
CREATE INDEX deployments_by_gateway ON deployments (gateway_id, api_id);
CREATE INDEX deployments_by_revision ON deployments (revision_id);

-- service_kit::outbox::SCHEMA
CREATE TABLE outbox_heads (topic TEXT PRIMARY KEY, head BIGINT NOT NULL);
CREATE TABLE outbox (
  topic TEXT NOT NULL, position BIGINT NOT NULL, id TEXT NOT NULL, payload BYTEA NOT NULL,
  PRIMARY KEY (topic, position)
);
