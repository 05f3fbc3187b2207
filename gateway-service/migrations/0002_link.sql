-- Instances of this service. `beat` grows while one lives; the others watch it grow with clocks of their own,
-- so that nobody's clock has to agree with anybody's.
CREATE TABLE link_nodes (
  id         TEXT   PRIMARY KEY,
  beat       BIGINT NOT NULL,
  started_at BIGINT NOT NULL
);

-- The live connections of all instances. Whoever has no row here may not acknowledge.
CREATE TABLE connections (
  id               TEXT   PRIMARY KEY,
  node_id          TEXT   NOT NULL REFERENCES link_nodes (id) ON DELETE CASCADE,
  gateway_id       TEXT   NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
  organization_id  TEXT   NOT NULL,
  token_id         TEXT   NOT NULL,
  instance_id      TEXT   NOT NULL, -- empty: one of those that share what they know
  transport        TEXT   NOT NULL, -- websocket | grpc | sse
  version          TEXT   NOT NULL,
  remote_address   TEXT   NOT NULL,
  connected_at     BIGINT NOT NULL,
  heard_at         BIGINT NOT NULL, -- to within a few seconds
  sent_revision    BIGINT NOT NULL,
  applied_revision BIGINT NOT NULL
);
CREATE INDEX connections_gateway ON connections (gateway_id);
CREATE INDEX connections_node ON connections (node_id);
CREATE INDEX connections_organization ON connections (organization_id, connected_at);

-- What gateways without a stream of their own reported to another instance than the one that serves their
-- connection: that one takes it from here.
CREATE TABLE link_reports (
  connection_id TEXT   NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
  number        BIGINT NOT NULL, -- in the order of arrival
  report        BYTEA  NOT NULL,
  PRIMARY KEY (connection_id, number)
);

-- Instances of gateways that have said who they are.
CREATE TABLE gateway_instances (
  gateway_id       TEXT   NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
  instance_id      TEXT   NOT NULL,
  epoch            BIGINT NOT NULL, -- of its newest connection
  version          TEXT   NOT NULL,
  applied_revision BIGINT NOT NULL,
  first_seen_at    BIGINT NOT NULL,
  last_seen_at     BIGINT NOT NULL,
  PRIMARY KEY (gateway_id, instance_id)
);

-- What instances say that they run; those without an id share a row each.
CREATE TABLE gateway_reported (
  gateway_id        TEXT   NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
  instance_id       TEXT   NOT NULL,
  artifact_id       TEXT   NOT NULL,
  deployment_id     TEXT   NOT NULL, -- what runs; empty when nothing does
  revision          BIGINT NOT NULL, -- that was applied
  rejected_revision BIGINT NOT NULL, -- that was refused since; 0 for none
  reason            TEXT   NOT NULL,
  reported_at       BIGINT NOT NULL,
  PRIMARY KEY (gateway_id, instance_id, artifact_id)
);

-- Deliveries that failed, for those who look later.
CREATE TABLE failed_deliveries (
  id              TEXT   PRIMARY KEY,
  gateway_id      TEXT   NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
  organization_id TEXT   NOT NULL,
  instance_id     TEXT   NOT NULL,
  revision        BIGINT NOT NULL,
  type            TEXT   NOT NULL,
  artifact_id     TEXT   NOT NULL,
  deployment_id   TEXT   NOT NULL,
  reason          TEXT   NOT NULL,
  detail          TEXT   NOT NULL,
  failed_at       BIGINT NOT NULL
);
CREATE INDEX failed_deliveries_organization ON failed_deliveries (organization_id, failed_at);
CREATE INDEX failed_deliveries_gateway ON failed_deliveries (gateway_id, failed_at);

-- Up to `floor` events may be gone from the log. The counters are of all time.
ALTER TABLE gateways ADD COLUMN floor BIGINT NOT NULL DEFAULT 0;
ALTER TABLE gateways ADD COLUMN events_sent BIGINT NOT NULL DEFAULT 0;
ALTER TABLE gateways ADD COLUMN failures BIGINT NOT NULL DEFAULT 0;

-- Events of one key are performed in order, and a newer one may make an older one needless. Of deployments it
-- is the artifact's id.
ALTER TABLE gateway_events ADD COLUMN event_key TEXT NOT NULL DEFAULT '';
UPDATE gateway_events SET event_key = artifact_id;
ALTER TABLE gateway_events ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
-- Each connection knows what it has sent.
ALTER TABLE gateway_events DROP COLUMN correlation_id;
CREATE INDEX gateway_events_key ON gateway_events (gateway_id, event_key, revision);

-- The deployment that a removal names instead of the one it is about: the one that the gateway seems to have. Empty
-- where it is the same.
ALTER TABLE gateway_events ADD COLUMN named_id TEXT NOT NULL DEFAULT '';
CREATE INDEX gateway_events_named ON gateway_events (gateway_id, named_id) WHERE named_id <> '';
CREATE INDEX gateway_events_failed ON gateway_events (gateway_id, event_key, revision) WHERE state = 'failed';
