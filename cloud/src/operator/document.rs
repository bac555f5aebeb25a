//! The OpenAPI document, made of the handlers and checked in as `openapi.json`.

use super::{events, images, instances, servers, tenants};
use bixi_api::operator as words;
use utoipa::OpenApi;

/// The operator's interface of a Bixi cloud.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Bixi operator API",
        description = "What ECS hides from tenants. Every path but this document's needs `authorization: Bearer TOKEN`."
    ),
    paths(
        servers::cloud,
        servers::list,
        servers::show,
        servers::change,
        servers::remove,
        servers::join_token,
        servers::schedule,
        tenants::list,
        tenants::create,
        tenants::change,
        tenants::remove,
        tenants::keys,
        tenants::create_key,
        tenants::remove_key,
        images::list,
        images::create,
        images::put,
        images::remove,
        instances::list,
        instances::show,
        instances::power,
        instances::ledger,
        instances::console,
        instances::tasks,
        instances::task,
        instances::cancel,
        events::events,
    ),
    components(schemas(
        words::CloudDescription,
        words::ServerDescription,
        words::ServerChange,
        words::JoinTokenDescription,
        words::ScheduleQuestion,
        words::ScheduleAnswer,
        words::ScheduleVerdict,
        words::TenantDescription,
        words::TenantCreate,
        words::TenantChange,
        words::QuotaDescription,
        words::AccessKeyDescription,
        words::ImageCreate,
        words::ImageDescription,
        words::ImageFileDescription,
        words::InstanceDescription,
        words::PowerRequest,
        words::TaskDescription,
        words::EventDescription,
        words::LedgerDescription,
    ))
)]
struct Document;

/// The document's text.
pub fn document() -> String {
    let mut text = Document::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_that_is_checked_in_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("BIXI_WRITE_OPENAPI").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(
            kept == document(),
            "openapi.json is old: run this test with BIXI_WRITE_OPENAPI=1 and look at the difference"
        );
    }
}
