//! One-time passwords (RFC 6238: SHA-1, 6 digits, 30 seconds). A step counts once, and one before or after
//! the clock's is good too.

use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result, opaque::random};
use totp_rs::{Builder, Totp};

use super::{Added, Factors, MAX_TRIES_A_STEP, TotpUse};
use crate::domain::audit::Action;

const STEP: u64 = 30;
const SKEW: u16 = 1;
const SECRET: usize = 20;
/// What authenticator applications show beside the address.
const ISSUER: &str = "Tollgate";

/// A new secret, for its owner's eyes only.
#[derive(Debug)]
pub(crate) struct NewTotp {
    /// base32.
    pub(crate) secret: SecretString,
    /// `otpauth://`.
    pub(crate) uri: SecretString,
}

impl Factors {
    /// Makes a secret in place of one that was not confirmed. ALREADY_EXISTS (`TOTP_EXISTS`) when one was.
    pub(crate) async fn start_totp(&self, caller: &AuthContext) -> Result<NewTotp> {
        let owner = self.owner(caller).await?;
        let secret = random::<SECRET>();
        let context = context(&owner.id);
        let sealed = self.shared.sealer.seal(&context, &secret).map_err(Error::internal)?;
        if !self.shared.stores.second_factors.put_totp(&owner.id, &sealed).await? {
            return Err(totp_exists());
        }
        let totp = rules(&secret, &owner.email)?;
        let uri = totp.to_url().map_err(Error::internal)?;
        Ok(NewTotp { secret: totp.secret().to_base32().into(), uri: uri.into() })
    }

    /// Turns one-time passwords on with a first code, which is used up by it. New recovery codes when this
    /// is the account's first second factor. INVALID_ARGUMENT when the code is not right now.
    pub(crate) async fn confirm_totp(
        &self,
        caller: &AuthContext,
        code: &SecretString,
        client: &ClientInfo,
    ) -> Result<Vec<SecretString>> {
        let (store, user_id) = (&self.shared.stores.second_factors, caller.user_id());
        let Some(totp) = store.totp(user_id).await? else {
            return Err(Error::new(
                Kind::FailedPrecondition,
                "TOTP_NOT_STARTED",
                "there is no secret to confirm; ask for one first",
            ));
        };
        if totp.confirmed {
            return Err(totp_exists());
        }
        let wrong = || Error::field("code", "must be the one-time password of now; wait for the next one");
        let (step, current) = (self.right_step(user_id, &totp, code)?, self.current_step());
        let Some(step) = step else {
            store.count_wrong_totp(user_id, current).await?;
            return Err(wrong());
        };
        let what = "One-time passwords were turned on for your Tollgate account.";
        let notice = self.notice(caller, Action::TotpAdd, what, client).await?;
        let using = TotpUse { user_id, sealed_secret: &totp.sealed_secret, step, current };
        let mut codes = self.no_codes();
        loop {
            match store.confirm_totp(&using, &codes.stored, &notice).await? {
                Added::NeedsCodes => codes = self.new_codes().await?,
                added @ (Added::First | Added::Further) => {
                    self.shared.mail_nudge.now();
                    tracing::info!(user_id, "one-time passwords turned on");
                    return Ok(codes.shown_if(added));
                }
                Added::Taken | Added::Full => return Err(wrong()),
            }
        }
    }

    /// Turns one-time passwords off. Doing it again is fine.
    pub(crate) async fn remove_totp(&self, caller: &AuthContext, client: &ClientInfo) -> Result<()> {
        let what = "One-time passwords were turned off for your Tollgate account.";
        let notice = self.notice(caller, Action::TotpRemove, what, client).await?;
        if self.shared.stores.second_factors.remove_totp(caller.user_id(), &notice).await? {
            self.shared.mail_nudge.now();
            tracing::info!(user_id = caller.user_id(), "one-time passwords turned off");
        }
        Ok(())
    }

    /// The step that a code is right for now; nothing when it is for none, or too many were tried in this
    /// one. Whether the step was used before is for the store to say.
    pub(super) fn right_step(
        &self,
        user_id: &str,
        totp: &super::Totp,
        code: &SecretString,
    ) -> Result<Option<i64>> {
        if totp.tried_step == self.current_step() && totp.tries >= MAX_TRIES_A_STEP {
            return Ok(None);
        }
        let secret =
            self.shared.sealer.open(&context(user_id), &totp.sealed_secret).map_err(Error::internal)?;
        let step = rules(&secret, "")?.check(code.expose_secret(), self.now_s());
        Ok(step.and_then(|step| i64::try_from(step).ok()))
    }

    /// The step that the clock is in.
    pub(super) fn current_step(&self) -> i64 {
        i64::try_from(self.now_s() / STEP).unwrap_or(i64::MAX)
    }

    fn now_s(&self) -> u64 {
        u64::try_from(self.shared.clock.now_ms() / 1_000).unwrap_or(0)
    }
}

fn rules(secret: &[u8], account: &str) -> Result<Totp> {
    Builder::new()
        .with_secret(secret)
        .with_skew(SKEW)
        .with_step_duration(STEP)
        .with_issuer(Some(ISSUER))
        .with_account_name(account)
        .build()
        .map_err(|error| Error::internal(anyhow::anyhow!("{error}")))
}

fn context(user_id: &str) -> String {
    format!("totp:{user_id}")
}

fn totp_exists() -> Error {
    Error::new(Kind::AlreadyExists, "TOTP_EXISTS", "one-time passwords are on already; remove them first")
}

#[cfg(test)]
mod tests {
    use super::rules;

    /// RFC 6238, appendix B, SHA-1: the last six of eight digits.
    #[test]
    fn the_vectors_of_the_standard_hold() {
        let totp = rules(b"12345678901234567890", "").unwrap();
        for (time, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(totp.generate(time).to_string(), code);
            let step = time / 30;
            // One step before and after its own, and no further.
            for now in step.saturating_sub(3)..=step + 3 {
                let right = now.abs_diff(step) <= 1;
                assert_eq!(totp.check(code, now * 30), right.then_some(step), "{code} at {now}");
                assert_eq!(totp.check(code, now * 30 + 29), right.then_some(step), "{code} at {now}");
            }
        }
    }

    #[test]
    fn only_six_digits_are_a_code() {
        let totp = rules(b"12345678901234567890", "").unwrap();
        for text in ["", "28708", "2870820", "+87082", " 287082", "287 082", "94287082", "２８７０８２"]
        {
            assert_eq!(totp.check(text, 59), None, "{text}");
        }
    }

    #[test]
    fn the_uri_is_for_every_application() {
        let uri = rules(&[7; 20], "jane+x@example.com").unwrap().to_url().unwrap();
        assert!(uri.starts_with("otpauth://totp/Tollgate:jane%2Bx%40example.com?secret="), "{uri}");
        assert!(uri.contains("issuer=Tollgate"), "{uri}");
    }
}
