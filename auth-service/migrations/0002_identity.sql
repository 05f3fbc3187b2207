-- What identity needs beyond accounts and logins. Times are Unix milliseconds.

ALTER TABLE users ADD COLUMN email_verified_at BIGINT;
ALTER TABLE users ADD COLUMN disabled_at BIGINT;

ALTER TABLE sessions ADD COLUMN client_id TEXT NOT NULL DEFAULT 'tollgate-web';
ALTER TABLE sessions ADD COLUMN scope TEXT NOT NULL DEFAULT '*';
ALTER TABLE sessions ADD COLUMN amr TEXT NOT NULL DEFAULT 'pwd';          -- RFC 8176 names, separated by spaces
ALTER TABLE sessions ADD COLUMN authenticated_at BIGINT NOT NULL DEFAULT 0; -- the last proof of who the owner is
ALTER TABLE sessions ADD COLUMN address TEXT NOT NULL DEFAULT '';         -- of the last use
ALTER TABLE sessions ADD COLUMN device TEXT NOT NULL DEFAULT '';          -- User-Agent of the last use
UPDATE sessions SET authenticated_at = created_at;

-- With a grace for repeats, the successor of a used token, sealed.
ALTER TABLE refresh_tokens ADD COLUMN successor BYTEA;

-- Sessions, and opaque tokens, whose access tokens are dead before they expire.
CREATE TABLE revocation_heads (id BIGINT PRIMARY KEY, head BIGINT NOT NULL);
INSERT INTO revocation_heads (id, head) VALUES (1, 0);
CREATE TABLE revocations (
  position BIGINT PRIMARY KEY,          -- in the order of commits
  session_id TEXT NOT NULL,             -- the `sid` of the tokens
  expires_at BIGINT NOT NULL            -- when all of them have expired by themselves
);
CREATE INDEX revocations_by_session ON revocations (session_id);

-- Signing keys follow each other: a key signs from `activates_at` until the next one does.
DROP INDEX signing_keys_one_active;
ALTER TABLE signing_keys DROP COLUMN active;
ALTER TABLE signing_keys ADD COLUMN generation BIGINT NOT NULL DEFAULT 1;
ALTER TABLE signing_keys ADD COLUMN activates_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE signing_keys ADD COLUMN revoked_at BIGINT;
CREATE UNIQUE INDEX signing_keys_by_generation ON signing_keys (generation);

-- What waits to be used once: links, challenges, ceremonies, logins at a provider.
CREATE TABLE pending (
  hash BYTEA PRIMARY KEY,               -- SHA-256 of the secret that its owner holds
  kind TEXT NOT NULL,
  user_id TEXT REFERENCES users (id) ON DELETE CASCADE,
  payload BYTEA NOT NULL,               -- what the kind says; sealed where it is secret
  tries BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL
);
CREATE INDEX pending_by_user ON pending (user_id, kind);
CREATE INDEX pending_by_expiry ON pending (expires_at);

-- Devices that have logged in before: guesses of strangers do not delay them.
CREATE TABLE known_devices (
  hash BYTEA PRIMARY KEY,               -- SHA-256 of the device token
  user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  created_at BIGINT NOT NULL,
  last_used_at BIGINT NOT NULL
);
CREATE INDEX known_devices_by_user ON known_devices (user_id);

CREATE TABLE totp (
  user_id TEXT PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
  sealed_secret BYTEA NOT NULL,
  confirmed_at BIGINT,                  -- NULL until a first code was right
  last_step BIGINT NOT NULL,            -- the last step that a code was taken of: each counts once
  tried_step BIGINT NOT NULL,
  tries BIGINT NOT NULL                 -- wrong codes in `tried_step`
);

CREATE TABLE recovery_codes (
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  hash TEXT NOT NULL,                   -- PHC string, argon2id
  used_at BIGINT
);
CREATE INDEX recovery_codes_by_user ON recovery_codes (user_id);

CREATE TABLE passkeys (
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  credential_id TEXT NOT NULL UNIQUE,   -- base64url
  name TEXT NOT NULL,
  document TEXT NOT NULL,               -- the public key and its counter, as JSON
  created_at BIGINT NOT NULL,
  last_used_at BIGINT
);
CREATE INDEX passkeys_by_user ON passkeys (user_id);

-- Accounts at OpenID Connect providers.
CREATE TABLE identities (
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  provider TEXT NOT NULL,
  subject TEXT NOT NULL,
  email TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  UNIQUE (provider, subject)
);
CREATE INDEX identities_by_user ON identities (user_id);

CREATE TABLE device_grants (
  device_hash BYTEA PRIMARY KEY,        -- SHA-256 of the device code
  user_code TEXT NOT NULL UNIQUE,
  client_id TEXT NOT NULL,
  scope TEXT NOT NULL,
  address TEXT NOT NULL,
  status TEXT NOT NULL,                 -- PENDING, APPROVED, DENIED
  user_id TEXT REFERENCES users (id) ON DELETE CASCADE,
  session_id TEXT,                      -- the session that approved: the grant ends with it
  polled_at BIGINT NOT NULL,
  poll_interval BIGINT NOT NULL,        -- milliseconds
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL
);
CREATE INDEX device_grants_by_expiry ON device_grants (expires_at);

CREATE TABLE service_accounts (
  id TEXT PRIMARY KEY,
  organization_id TEXT NOT NULL,
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  created_by TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  UNIQUE (organization_id, name)
);

-- Opaque tokens: personal ones (kind `pat`) and keys of service accounts (kind `svc`).
CREATE TABLE opaque_tokens (
  id TEXT PRIMARY KEY,                  -- also the `sid` of the access tokens that it is exchanged for
  kind TEXT NOT NULL,
  owner_id TEXT NOT NULL,               -- a user or a service account
  lookup TEXT NOT NULL UNIQUE,          -- the id in the token's text
  salt BYTEA NOT NULL,
  hash BYTEA NOT NULL,                  -- SHA-256 of salt and secret
  name TEXT NOT NULL,
  scopes TEXT NOT NULL,                 -- separated by spaces
  created_by TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  last_used_at BIGINT,                  -- to the minute
  revoked_at BIGINT
);
CREATE INDEX opaque_tokens_by_owner ON opaque_tokens (owner_id);

-- The audit log: a chain of hashes for each account and each organization.
CREATE TABLE audit_heads (
  chain TEXT PRIMARY KEY,               -- user:ID, organization:ID, system, nobody:0 to nobody:f
  sequence BIGINT NOT NULL,
  hash BYTEA NOT NULL,
  exported BIGINT NOT NULL              -- the sequence of the last head that was exported
);
CREATE INDEX audit_heads_to_export ON audit_heads (chain) WHERE exported < sequence;
CREATE TABLE audit_events (
  chain TEXT NOT NULL,
  sequence BIGINT NOT NULL,             -- from 1 without gaps
  at BIGINT NOT NULL,
  body TEXT NOT NULL,                   -- the event as canonical JSON: what is hashed
  hash BYTEA NOT NULL,                  -- SHA-256 of the hash before it and `body`
  PRIMARY KEY (chain, sequence)
);

-- Mail to send, and memberships of service accounts to tell project-service.
CREATE TABLE outbox_heads (topic TEXT PRIMARY KEY, head BIGINT NOT NULL);
CREATE TABLE outbox (
  topic TEXT NOT NULL, position BIGINT NOT NULL, id TEXT NOT NULL, payload BYTEA NOT NULL,
  PRIMARY KEY (topic, position)
);
