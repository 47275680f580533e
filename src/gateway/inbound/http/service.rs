//! One request: from its head to its response.

use super::{
    Context,
    body::OutBody,
    request::{self, Lost},
    respond,
};
use crate::{
    engine::ports::{self, Answer, Arrival, Credentials, Denied, Refusal},
    gateway::inbound::{ANONYMOUS, identify, outcome},
    message::Protocol,
    telemetry::inbound::{Cut, Outcome},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use std::{convert::Infallible, sync::Arc};

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Answers one request.
pub(super) async fn handle(request: Request<Incoming>, context: Arc<Context>) -> Result<Response<OutBody>, Infallible> {
    let busy = context.pulse.begin();
    let version = request.version();
    let mut response = answer(request, &context).await;
    if version <= Version::HTTP_11 && context.instance.draining.begun() {
        response.headers_mut().insert(header::CONNECTION, CLOSE);
    }
    response.body_mut().hold(busy);
    Ok(response)
}

async fn answer(request: Request<Incoming>, context: &Context) -> Response<OutBody> {
    let (instance, server) = (&context.instance, &context.instance.server);
    let meters = server.connections.meters();
    let (parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        let mut response = respond::error(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here", None);
        response.headers_mut().insert(header::ALLOW, ALLOW);
        return response;
    }
    if parts.method == Method::OPTIONS && parts.uri.path() == "*" {
        let mut response = respond::empty(StatusCode::NO_CONTENT);
        response.headers_mut().insert(header::ALLOW, ALLOW);
        return response;
    }
    if let Some((status, why)) = request::misframed(&parts) {
        server.cut(context.peer, Cut::BadRequest, why);
        let mut response = respond::error(status, why, None);
        // What follows on the connection cannot be told from this request's body.
        response.headers_mut().insert(header::CONNECTION, CLOSE);
        return response;
    }
    let credentials =
        Credentials { authorization: request::authorization(&parts.headers), certificate: context.certificate.clone() };
    let identified =
        identify(&*instance.intake, &server.listener, Some(context.peer), &credentials, None, server.config.require_client);
    let client = match identified.await {
        Ok(client) => client,
        Err(denied) => {
            meters.answered(match denied {
                Denied::Address => Outcome::NotAllowed,
                Denied::Busy => Outcome::Busy,
                Denied::Unauthenticated | Denied::BadCredentials => Outcome::Unauthenticated,
            });
            return respond::denied(&denied);
        }
    };
    let head = request::head(&parts);
    let body = if body.size_hint().lower() > server.max_body {
        // Not read at all, and recorded all the same: somebody will look for it.
        ports::Incoming::Refused { head: Bytes::new(), refusal: Refusal::TooLarge { limit: server.max_body } }
    } else {
        match request::body(body, &server.config, server.connections.clone()).await {
            Ok(body) => body,
            Err(lost) => {
                meters.answered(if lost == Lost::Late { Outcome::TooSlow } else { Outcome::Aborted });
                return lost_body(lost, context);
            }
        }
    };
    let anonymous = &*client == ANONYMOUS;
    let arrival = Arrival {
        client,
        protocol: Protocol::Http,
        listener: server.listener.clone(),
        remote: context.remote.clone(),
        http: Some(head),
        paced: false,
        body,
    };
    match instance.intake.accept(arrival).await {
        Answer::Accepted { id, resend } => {
            meters.answered(if resend { Outcome::Resend } else { Outcome::Accepted });
            respond::accepted(id, resend)
        }
        Answer::Response { id, response, resend } => {
            meters.answered(if resend { Outcome::Resend } else { Outcome::Response });
            respond::relayed(id, response, resend, &parts.method)
        }
        Answer::Refused { id, refusal } => {
            meters.answered(outcome(&refusal));
            let mut response = respond::refused(id, &refusal, anonymous);
            if refusal == Refusal::TooSlow {
                cut_slow(&mut response, context);
            }
            response
        }
    }
}

const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

fn lost_body(lost: Lost, context: &Context) -> Response<OutBody> {
    match lost {
        Lost::Late => {
            let mut response = respond::error(StatusCode::REQUEST_TIMEOUT, "request body not sent in time", None);
            cut_slow(&mut response, context);
            response
        }
        Lost::Broken => {
            let why = "request body broken off or not framed as HTTP says";
            let mut response = respond::error(StatusCode::BAD_REQUEST, why, None);
            response.headers_mut().insert(header::CONNECTION, CLOSE);
            response
        }
    }
}

/// The rest of the body is not waited for: the connection (HTTP/2: the stream) ends with the response.
fn cut_slow(response: &mut Response<OutBody>, context: &Context) {
    let why = "a body came more slowly than http.min_body_rate, or stood still for http.body_idle_timeout";
    context.instance.server.cut(context.peer, Cut::SlowBody, why);
    response.headers_mut().insert(header::CONNECTION, CLOSE);
}
