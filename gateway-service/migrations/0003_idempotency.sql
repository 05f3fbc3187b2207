-- The idempotency keys of callers, as service_kit::idempotency::SCHEMA has them.
CREATE TABLE idempotency_keys (
  principal TEXT NOT NULL, key_hash BYTEA NOT NULL, method TEXT NOT NULL, fingerprint BYTEA NOT NULL,
  owner TEXT NOT NULL, performed BOOLEAN NOT NULL, outcome BYTEA,
  created_at BIGINT NOT NULL, lease_until BIGINT NOT NULL, expires_at BIGINT NOT NULL,
  PRIMARY KEY (principal, key_hash)
);
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);
