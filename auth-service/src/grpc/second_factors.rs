//! `SecondFactorService`.

use std::sync::Arc;

use proto::{
    Struct,
    auth::{
        ConfirmTotpRequest, DeletePasskeyRequest, FinishPasskeyLoginRequest,
        FinishPasskeyRegistrationRequest, GetSecondFactorsRequest, Passkey, PasskeyCeremony, RecoveryCodes,
        RegisteredPasskey, RemoveTotpRequest, RenewRecoveryCodesRequest, SecondFactors,
        StartPasskeyLoginRequest, StartPasskeyRegistrationRequest, StartPasskeyVerificationRequest,
        StartTotpRequest, TokenPair, TotpSecret, VerifySecondFactorRequest,
        second_factor_service_server::SecondFactorService, verify_second_factor_request,
    },
    time::Timestamp,
    value,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use service_kit::{AuthContext, ClientInfo, Error, Result};
use tonic::{Request, Response, async_trait};

use super::{Answer, sessions::answer};
use crate::domain::{
    second_factors::{self, Ceremony, Factors, Proof},
    sessions::Outcome,
};

/// `tollgate.auth.v1.SecondFactorService`.
#[derive(Debug)]
pub(crate) struct SecondFactorApi {
    pub(crate) factors: Arc<Factors>,
}

#[async_trait]
impl SecondFactorService for SecondFactorApi {
    async fn verify_second_factor(&self, request: Request<VerifySecondFactorRequest>) -> Answer<TokenPair> {
        let client = ClientInfo::of(&request);
        let VerifySecondFactorRequest { challenge, proof, cookie } = request.into_inner();
        let pair = self.factors.verify(&challenge.into(), decode(proof)?, &client).await?;
        Ok(answer(&Outcome::Pair(pair), cookie))
    }

    async fn start_passkey_verification(
        &self,
        request: Request<StartPasskeyVerificationRequest>,
    ) -> Answer<PasskeyCeremony> {
        let challenge = request.into_inner().challenge.into();
        ceremony(self.factors.start_passkey_verification(&challenge).await?)
    }

    async fn start_passkey_login(
        &self,
        _request: Request<StartPasskeyLoginRequest>,
    ) -> Answer<PasskeyCeremony> {
        ceremony(self.factors.start_passkey_login().await?)
    }

    async fn finish_passkey_login(&self, request: Request<FinishPasskeyLoginRequest>) -> Answer<TokenPair> {
        let client = ClientInfo::of(&request);
        let FinishPasskeyLoginRequest { ceremony, credential, cookie } = request.into_inner();
        let credential = json(credential.unwrap_or_default());
        let pair = self.factors.finish_passkey_login(&ceremony.into(), credential, &client).await?;
        Ok(answer(&Outcome::Pair(pair), cookie))
    }

    async fn get_second_factors(&self, request: Request<GetSecondFactorsRequest>) -> Answer<SecondFactors> {
        let setup = self.factors.setup(&AuthContext::of(&request)?).await?;
        Ok(Response::new(SecondFactors {
            totp: setup.totp,
            recovery_codes_left: u32::try_from(setup.recovery_codes_left).unwrap_or(0),
            passkeys: setup.passkeys.into_iter().map(passkey).collect(),
        }))
    }

    async fn start_totp(&self, request: Request<StartTotpRequest>) -> Answer<TotpSecret> {
        let totp = self.factors.start_totp(&AuthContext::of(&request)?).await?;
        let (secret, uri) = (totp.secret.expose_secret().to_owned(), totp.uri.expose_secret().to_owned());
        Ok(Response::new(TotpSecret { secret, uri }))
    }

    async fn confirm_totp(&self, request: Request<ConfirmTotpRequest>) -> Answer<RecoveryCodes> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        let code = request.into_inner().code.into();
        let codes = self.factors.confirm_totp(&caller, &code, &client).await?;
        Ok(Response::new(RecoveryCodes { codes: shown(&codes) }))
    }

    async fn remove_totp(&self, request: Request<RemoveTotpRequest>) -> Answer<()> {
        let caller = AuthContext::of(&request)?;
        self.factors.remove_totp(&caller, &ClientInfo::of(&request)).await?;
        Ok(Response::new(()))
    }

    async fn renew_recovery_codes(
        &self,
        request: Request<RenewRecoveryCodesRequest>,
    ) -> Answer<RecoveryCodes> {
        let caller = AuthContext::of(&request)?;
        let codes = self.factors.renew_recovery_codes(&caller, &ClientInfo::of(&request)).await?;
        Ok(Response::new(RecoveryCodes { codes: shown(&codes) }))
    }

    async fn start_passkey_registration(
        &self,
        request: Request<StartPasskeyRegistrationRequest>,
    ) -> Answer<PasskeyCeremony> {
        ceremony(self.factors.start_passkey_registration(&AuthContext::of(&request)?).await?)
    }

    async fn finish_passkey_registration(
        &self,
        request: Request<FinishPasskeyRegistrationRequest>,
    ) -> Answer<RegisteredPasskey> {
        let (caller, client) = (AuthContext::of(&request)?, ClientInfo::of(&request));
        let FinishPasskeyRegistrationRequest { ceremony, credential, name } = request.into_inner();
        let (ceremony, credential) = (ceremony.into(), json(credential.unwrap_or_default()));
        let finish = self.factors.finish_passkey_registration(&caller, &ceremony, credential, &name, &client);
        let (added, codes) = finish.await?;
        Ok(Response::new(RegisteredPasskey { passkey: Some(passkey(added)), recovery_codes: shown(&codes) }))
    }

    async fn delete_passkey(&self, request: Request<DeletePasskeyRequest>) -> Answer<()> {
        let caller = AuthContext::of(&request)?;
        let id = &request.get_ref().passkey_id;
        self.factors.delete_passkey(&caller, id, &ClientInfo::of(&request)).await?;
        Ok(Response::new(()))
    }
}

fn decode(proof: Option<verify_second_factor_request::Proof>) -> Result<Proof> {
    use verify_second_factor_request::Proof as Sent;
    match proof {
        Some(Sent::TotpCode(code)) => Ok(Proof::Totp(code.into())),
        Some(Sent::RecoveryCode(code)) => Ok(Proof::RecoveryCode(code.into())),
        Some(Sent::Passkey(credential)) => Proof::passkey(json(credential)),
        None => Err(Error::field("proof", "must be one of totpCode, recoveryCode and passkey")),
    }
}

fn ceremony(ceremony: Ceremony) -> Answer<PasskeyCeremony> {
    let options = serde_json::from_value(ceremony.options).map_err(Error::internal)?;
    let secret = ceremony.secret.map(|secret| secret.expose_secret().to_owned()).unwrap_or_default();
    Ok(Response::new(PasskeyCeremony { ceremony: secret, options: Some(options) }))
}

fn passkey(passkey: second_factors::Passkey) -> Passkey {
    Passkey {
        id: passkey.id,
        name: passkey.name,
        created_at: Some(Timestamp::from_unix_ms(passkey.created_at)),
        last_used_at: passkey.last_used_at.map(Timestamp::from_unix_ms),
    }
}

fn shown(codes: &[SecretString]) -> Vec<String> {
    codes.iter().map(|code| code.expose_secret().to_owned()).collect()
}

/// A struct as JSON. Its numbers are all floating: whole ones become integers, as they were.
fn json(fields: Struct) -> Value {
    Value::Object(fields.fields.into_iter().map(|(name, value)| (name, json_of(value.kind))).collect())
}

fn json_of(kind: Option<value::Kind>) -> Value {
    match kind {
        None | Some(value::Kind::NullValue(_)) => Value::Null,
        Some(value::Kind::BoolValue(is)) => is.into(),
        Some(value::Kind::StringValue(text)) => text.into(),
        Some(value::Kind::StructValue(fields)) => json(fields),
        Some(value::Kind::ListValue(list)) => {
            list.values.into_iter().map(|value| json_of(value.kind)).collect()
        }
        // A cast to an integer keeps within its bounds.
        Some(value::Kind::NumberValue(number)) if number.fract() == 0.0 => (number as i64).into(),
        Some(value::Kind::NumberValue(number)) => number.into(),
    }
}
