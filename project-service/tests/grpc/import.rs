use proto::{
    google::api::HttpBody,
    project::{Api, GetApiRequest, GetDefinitionRequest, ImportApiRequest, ListApisRequest},
};
use tonic::{Code, Response, Status};

use crate::harness::{Service, User, fields, refused};

const YAML: &[u8] = include_bytes!("../fixtures/pets-3.0.yaml");
const JSON: &[u8] = include_bytes!("../fixtures/pets-3.0.json");
const V31: &[u8] = include_bytes!("../fixtures/orders-3.1.yaml");

fn request(project: &str, document: &[u8]) -> ImportApiRequest {
    let body = HttpBody { data: document.to_vec(), ..HttpBody::default() };
    ImportApiRequest { project_id: project.to_owned(), definition: Some(body), ..ImportApiRequest::default() }
}

async fn import(
    service: &Service,
    user: &User,
    project: &str,
    document: &[u8],
) -> Result<Response<Api>, Status> {
    user.apis(service).import_api(request(project, document)).await
}

#[tokio::test]
async fn a_document_becomes_an_api_and_is_kept() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let documents = [
            (YAML, 8, "application/yaml", "Pets Co. public API"),
            (JSON, 5, "application/json", "Pets"),
            (V31, 2, "application/yaml", "Orders"),
        ];
        for (document, operations, media_type, name) in documents {
            let made = import(&service, &owner, &project, document).await.unwrap().into_inner();
            let read = GetApiRequest { api_id: made.id.clone() };
            let read = owner.apis(&service).get_api(read).await.unwrap().into_inner();
            assert_eq!(made, read);
            assert_eq!((read.name.as_str(), read.operations.len()), (name, operations));
            assert_eq!(read.project_id, project);
            let kept = GetDefinitionRequest { api_id: made.id };
            let kept = owner.apis(&service).get_definition(kept).await.unwrap().into_inner();
            assert_eq!((kept.content_type.as_str(), kept.data.as_slice()), (media_type, document));
        }
        let again = refused(import(&service, &owner, &project, JSON).await, Code::AlreadyExists);
        assert_eq!(again.reason(), "API_EXISTS");
        let named = ImportApiRequest {
            name: "Mine".to_owned(),
            context: "mine".to_owned(),
            version: "v9".to_owned(),
            ..request(&project, JSON)
        };
        let named = owner.apis(&service).import_api(named).await.unwrap().into_inner();
        assert_eq!((&*named.name, &*named.context, &*named.version), ("Mine", "/mine", "v9"));
    })
    .await;
}

#[tokio::test]
async fn bad_documents_change_nothing() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let nonsense = vec![b'['; 10 * 1024 * 1024];
        let huge = vec![b' '; 10 * 1024 * 1024 + 1];
        let documents: [(&[u8], &str); 7] = [
            (b"", "definition"),
            (b"\xff\xfe", "definition"),
            (&nonsense, "definition"),
            (&huge, "definition"),
            (b"swagger: '2.0'", "definition.swagger"),
            (
                b"openapi: 3.0.0\ninfo: {title: X, version: 1}\npaths: {/a: {get: []}}",
                "definition.paths./a.get",
            ),
            (b"{\"openapi\": \"3.0.0\", \"info\": {\"title\": 1}}", "definition.info.title"),
        ];
        for (document, field) in documents {
            let error = refused(import(&service, &owner, &project, document).await, Code::InvalidArgument);
            assert_eq!(fields(&error), [field]);
        }
        let bad_name = ImportApiRequest { name: "a/b".to_owned(), ..request(&project, JSON) };
        let error = refused(owner.apis(&service).import_api(bad_name).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["name"]);
        let error = refused(import(&service, &owner, "", JSON).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["projectId"]);
        refused(import(&service, &service.user(), &project, JSON).await, Code::NotFound);
        let list = ListApisRequest { project_id: project.clone(), ..ListApisRequest::default() };
        assert_eq!(owner.apis(&service).list_apis(list).await.unwrap().into_inner().count, 0);
    })
    .await;
}
