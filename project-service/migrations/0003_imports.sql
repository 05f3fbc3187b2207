-- APIs that gateways had before the platform knew them, under the ids that the gateways gave them.
CREATE TABLE imported_artifacts (
  gateway_id    TEXT NOT NULL,
  dpid          TEXT NOT NULL,
  api_id        TEXT NOT NULL UNIQUE REFERENCES apis (id) ON DELETE CASCADE,
  deployment_id TEXT NOT NULL REFERENCES deployments (id) ON DELETE CASCADE,
  kept          TEXT NOT NULL, -- JSON: what the gateway's artifact says and the API's document has no place for
  PRIMARY KEY (gateway_id, dpid)
);
CREATE INDEX imported_artifacts_by_deployment ON imported_artifacts (deployment_id);

-- Two APIs of one name and version cannot be on one gateway.
CREATE INDEX apis_by_name ON apis (organization_id, name);
