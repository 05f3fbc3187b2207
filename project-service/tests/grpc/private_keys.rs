use proto::project::{Api, CreateApiRequest, GetApiRequest, ListApisRequest, UpdateApiRequest};
use service_kit::{db::Database, seal::Sealer};
use sqlx::Row as _;

use crate::{
    api_model::full_api,
    harness::{Service, User},
};
use project_service::domain::apis::PrivateKeys;

/// Every table of the database as text, byte columns as hexadecimal and as they are.
async fn dump(service: &Service) -> String {
    match service.open_database().await {
        Database::Sqlite(pool) => {
            let file: String =
                sqlx::query("PRAGMA database_list").fetch_one(pool.read()).await.unwrap().get("file");
            let mut all = Vec::new();
            for part in ["", "-wal"] {
                all.extend(std::fs::read(format!("{file}{part}")).unwrap_or_default());
            }
            String::from_utf8_lossy(&all).into_owned()
        }
        Database::Postgres(pool) => {
            let tables: Vec<String> = sqlx::query_scalar(
                "SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema()",
            )
            .fetch_all(pool.read())
            .await
            .unwrap();
            let mut all = String::new();
            for table in tables {
                let rows = sqlx::AssertSqlSafe(format!("SELECT t::text FROM \"{table}\" t"));
                for row in sqlx::query_scalar::<_, String>(rows).fetch_all(pool.read()).await.unwrap() {
                    all.push_str(&row);
                }
            }
            all
        }
    }
}

fn pem(canary: &str) -> String {
    format!("-----BEGIN PRIVATE KEY-----\n{canary}\n-----END PRIVATE KEY-----\n")
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The private keys of an API as they are stored: of the API, and of its first endpoint.
async fn stored(service: &Service, id: &str) -> (String, String) {
    let stores = service.stores().await;
    let sealed = stores.apis.sealed_keys(id).await.unwrap();
    let sealer = Sealer::load_or_create(&service.folder.path().join("at-rest.key")).unwrap();
    let mut api = stores.apis.api(id).await.unwrap().unwrap().api;
    PrivateKeys::open(&sealer, id, sealed.as_deref()).unwrap().put_into(&mut api);
    let endpoint = api.backend_services.first().map(|backend| &backend.endpoints[0]);
    let key = |mtls: Option<&proto::project::Mtls>| mtls.map_or_else(String::new, |m| m.client_key.clone());
    (key(api.mtls.as_ref()), key(endpoint.and_then(|endpoint| endpoint.mtls.as_ref())))
}

async fn update(service: &Service, user: &User, id: &str, api: Api) -> Api {
    let change = UpdateApiRequest { api_id: id.to_owned(), api: Some(api) };
    user.apis(service).update_api(change).await.unwrap().into_inner()
}

#[tokio::test]
async fn private_keys_are_in_no_answer_and_in_no_table() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let canary = "Q0FOQVJZLW9mLWEtcHJpdmF0ZS1rZXk";
        let new = CreateApiRequest { project_id: project.clone(), api: Some(full_api(&pem(canary))) };
        let mut client = owner.apis(&service);
        let made = client.create_api(new).await.unwrap().into_inner();
        let get = GetApiRequest { api_id: made.id.clone() };
        let list = ListApisRequest { project_id: project, ..Default::default() };
        let answers = [
            format!("{made:?}"),
            format!("{:?}", client.get_api(get).await.unwrap()),
            format!("{:?}", client.list_apis(list).await.unwrap()),
            format!("{:?}", update(&service, &owner, &made.id, full_api(&pem(canary))).await),
        ];
        for answer in answers {
            assert!(answer.contains("client_key: \"\"") && !answer.contains(canary), "{answer}");
        }
        let dump = dump(&service).await;
        assert!(dump.contains("Pet Store"), "the dump holds what is not secret");
        assert!(!dump.contains(canary) && !dump.contains(&hex(canary)), "a table holds the key");
        assert_eq!(stored(&service, &made.id).await, (pem(canary), pem(canary)));
    })
    .await;
}

#[tokio::test]
async fn an_empty_key_keeps_the_stored_one_at_the_same_place() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let (old, new) = (pem("b2xk"), pem("bmV3"));
        let create = CreateApiRequest { project_id: project, api: Some(full_api(&old)) };
        let id = owner.apis(&service).create_api(create).await.unwrap().into_inner().id;

        // Left out everywhere: kept, also when the endpoint stands elsewhere in the lists.
        let mut api = full_api("");
        api.backend_services.swap(0, 1);
        update(&service, &owner, &id, api).await;
        let mut api = full_api("");
        api.backend_services.truncate(1);
        api.operations.clear();
        update(&service, &owner, &id, api.clone()).await;
        assert_eq!(stored(&service, &id).await, (old.clone(), old.clone()));

        // A new key at one place leaves the other.
        api.mtls.as_mut().unwrap().client_key.clone_from(&new);
        update(&service, &owner, &id, api.clone()).await;
        assert_eq!(stored(&service, &id).await, (new.clone(), old.clone()));

        // Another URL is another place: a key must not follow to a host that it was not given for.
        api.mtls.as_mut().unwrap().client_key.clear();
        api.backend_services[0].endpoints[0].url = "https://elsewhere.example".to_owned();
        update(&service, &owner, &id, api.clone()).await;
        assert_eq!(stored(&service, &id).await, (new, String::new()));

        // Without the part there is no key, and none comes back with it.
        api.mtls = None;
        update(&service, &owner, &id, api).await;
        assert!(service.stores().await.apis.sealed_keys(&id).await.unwrap().is_none());
        update(&service, &owner, &id, full_api("")).await;
        assert_eq!(stored(&service, &id).await, (String::new(), String::new()));
    })
    .await;
}
