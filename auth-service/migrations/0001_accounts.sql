-- People, how they prove who they are, and their sessions. Times are Unix milliseconds.

CREATE TABLE users (
  id TEXT PRIMARY KEY,
  email TEXT NOT NULL,                  -- as it was given
  email_canonical TEXT NOT NULL UNIQUE, -- lower case: what is compared
  name TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);

CREATE TABLE credentials (
  user_id TEXT PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
  password_hash TEXT NOT NULL,          -- PHC string, argon2id
  changed_at BIGINT NOT NULL
);

-- Failed logins by e-mail address, whether or not there is an account behind it.
CREATE TABLE login_throttles (
  key TEXT PRIMARY KEY,                 -- SHA-256 of the canonical address, hex
  failures BIGINT NOT NULL,
  locked_until BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE INDEX login_throttles_by_age ON login_throttles (updated_at);

CREATE TABLE sessions (
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  created_at BIGINT NOT NULL,
  last_used_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,           -- no refresh moves this
  ended_at BIGINT,
  end_reason TEXT                       -- LOGOUT, REFRESH_REUSED
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- Used tokens stay until their session expires: by them a stolen one is noticed.
CREATE TABLE refresh_tokens (
  hash BYTEA PRIMARY KEY,               -- SHA-256 of the token
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  used_at BIGINT
);
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);

CREATE TABLE signing_keys (
  kid TEXT PRIMARY KEY,                 -- RFC 7638 thumbprint
  sealed_key BYTEA NOT NULL,            -- PKCS#8, encrypted under the key at rest
  active BOOLEAN NOT NULL,              -- the one that signs
  created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX signing_keys_one_active ON signing_keys (active) WHERE active;
