//! `/openapi.json`, from the handlers themselves.

use super::{alerts, channels, clients, cluster, delivery, feed::door, peers, stats, status, tasks, transactions};
use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

#[derive(OpenApi)]
#[openapi(
    info(title = "hie management API", description = "Resource names and shapes follow OpenHIM's; what OpenHIM has no word for is under `hie`. Lists take filterLimit and filterPage. Errors are {\"error\", \"hint\"}. GET of a resource has an ETag and answers If-None-Match with 304; PUT and DELETE of channels and clients take If-Match."),
    paths(
        status::heartbeat, status::live, status::ready, status::metrics, status::status, status::drain, cluster::show, document,
        transactions::list, transactions::search, transactions::show, transactions::body,
        delivery::rerun, delivery::requeue, delivery::discard, delivery::routes, delivery::pause, delivery::resume,
        tasks::create, tasks::list, tasks::show, tasks::cancel,
        channels::list, channels::create, channels::get, channels::update, channels::remove,
        clients::list, clients::create, clients::get, clients::update, clients::remove,
        door::events, stats::sse, stats::system,
        alerts::list, alerts::test,
        peers::list, peers::file,
    ),
    modifiers(&Schemes),
    security(("token" = []), ("basic" = []))
)]
struct Document;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        for (name, scheme) in [("token", HttpAuthScheme::Bearer), ("basic", HttpAuthScheme::Basic)] {
            components.add_security_scheme(name, SecurityScheme::Http(Http::new(scheme)));
        }
    }
}

#[utoipa::path(get, path = "/openapi.json", tag = "node", responses((status = 200, description = "this document")))]
/// This document.
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
