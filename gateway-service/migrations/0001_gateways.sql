-- The registry of gateways. `head` is the newest revision of the gateway's log; whoever writes to the
-- log of a gateway updates this row first, which keeps revisions in the order of commits.
CREATE TABLE gateways (
  id                 TEXT    PRIMARY KEY,
  organization_id    TEXT    NOT NULL,
  name               TEXT    NOT NULL,
  display_name       TEXT    NOT NULL,
  description        TEXT    NOT NULL,
  vhost              TEXT    NOT NULL,
  endpoints          TEXT    NOT NULL, -- JSON: array of text
  functionality_type TEXT    NOT NULL, -- regular | ai | event
  is_critical        BOOLEAN NOT NULL,
  version            TEXT    NOT NULL,
  manifest           TEXT    NOT NULL, -- JSON as the gateway sent it; empty before the first
  head               BIGINT  NOT NULL,
  created_at         BIGINT  NOT NULL,
  updated_at         BIGINT  NOT NULL,
  UNIQUE (organization_id, name)
);

-- Tokens of gateways. A slot is taken while a token is active: at most two are.
CREATE TABLE gateway_tokens (
  id           TEXT   PRIMARY KEY,
  gateway_id   TEXT   NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
  lookup       TEXT   NOT NULL UNIQUE,
  salt         BYTEA  NOT NULL,
  hash         BYTEA  NOT NULL,
  slot         BIGINT CHECK (slot IN (1, 2)),
  created_at   BIGINT NOT NULL,
  revoked_at   BIGINT,
  last_used_at BIGINT,
  UNIQUE (gateway_id, slot),
  CHECK ((slot IS NULL) = (revoked_at IS NOT NULL))
);

-- The log of events of each gateway.
CREATE TABLE gateway_events (
  gateway_id         TEXT   NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
  revision           BIGINT NOT NULL,
  event_id           TEXT   NOT NULL UNIQUE,
  type               TEXT   NOT NULL,
  artifact_id        TEXT   NOT NULL,
  deployment_id      TEXT   NOT NULL,
  payload_json       TEXT   NOT NULL,
  -- pending: never sent; delivered: sent, not acknowledged; acked: done; failed: refused by the gateway;
  -- superseded: not acknowledged, and a newer event of the artifact was.
  state              TEXT   NOT NULL CHECK (state IN ('pending', 'delivered', 'acked', 'failed', 'superseded')),
  performed_at       BIGINT NOT NULL, -- of the newest sending
  acked_performed_at BIGINT,          -- of the sending that the gateway acknowledged
  correlation_id     TEXT   NOT NULL, -- of the newest sending; empty before the first
  sendings           BIGINT NOT NULL,
  error_code         TEXT   NOT NULL,
  created_at         BIGINT NOT NULL,
  delivered_at       BIGINT,
  acked_at           BIGINT,
  PRIMARY KEY (gateway_id, revision)
);
CREATE INDEX gateway_events_open ON gateway_events (gateway_id, revision) WHERE state IN ('pending', 'delivered');
CREATE INDEX gateway_events_artifact ON gateway_events (gateway_id, artifact_id, revision);
CREATE INDEX gateway_events_deployment ON gateway_events (gateway_id, deployment_id, revision);

-- The last `performedAt` of each artifact on each gateway: the next is later.
CREATE TABLE gateway_artifacts (
  gateway_id   TEXT   NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
  artifact_id  TEXT   NOT NULL,
  performed_at BIGINT NOT NULL,
  PRIMARY KEY (gateway_id, artifact_id)
);

-- service_kit::outbox::SCHEMA
CREATE TABLE outbox_heads (topic TEXT PRIMARY KEY, head BIGINT NOT NULL);
CREATE TABLE outbox (
  topic TEXT NOT NULL, position BIGINT NOT NULL, id TEXT NOT NULL, payload BYTEA NOT NULL,
  PRIMARY KEY (topic, position)
);
