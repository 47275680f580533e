//! Alerts by mail: SMTP (RFC 5321) with STARTTLS or TLS; a plain text that says what is wrong and what to do next.

use super::{secret, timestamp};
use crate::{
    alert::{
        Alert, Notice,
        ports::{NotSent, Receiver},
    },
    config::{self, MailTls},
    telemetry::alert::RecipientRefused,
};
use futures_util::future::BoxFuture;
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    address::Envelope,
    message::{Mailbox, header},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
        extension::ClientId,
    },
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// One mail server with its recipients.
pub(super) struct Mail {
    host: String,
    port: u16,
    tls: Tls,
    login: Option<(String, PathBuf)>,
    from: Mailbox,
    to: Vec<Mailbox>,
    /// How the node calls itself.
    hello: String,
    name: String,
    timeout: Duration,
    resolved: bool,
}

impl Mail {
    pub fn new(index: usize, config: &config::Mail, node: &str) -> Result<Self, String> {
        let (host, port) = config.server().ok_or("smtp is no mail server; write \"host:port\"")?;
        let address = |text: &str| text.parse::<Mailbox>().map_err(|e| format!("\"{text}\" is no mail address: {e}"));
        let tls = match config.tls {
            MailTls::None => Tls::None,
            MailTls::Starttls => Tls::Required(parameters(host, config.ca.as_deref())?),
            MailTls::Tls => Tls::Wrapper(parameters(host, config.ca.as_deref())?),
        };
        let hello: String = node.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).take(63).collect();
        Ok(Self {
            host: host.to_owned(),
            port,
            tls,
            login: config.username.clone().zip(config.password_file.clone()),
            from: address(&config.from)?,
            to: config.to.iter().map(|to| address(to)).collect::<Result<_, _>>()?,
            hello: if hello.is_empty() { "hie".into() } else { hello },
            name: format!("{host}:{port} ({index})"),
            timeout: config.timeout,
            resolved: config.resolved,
        })
    }

    fn message(&self, notice: &Notice) -> Result<Message, NotSent> {
        let mut builder = Message::builder()
            .from(self.from.clone())
            .subject(notice.subject())
            // The same again for the same notification: where a lost answer made a second mail, it can be told.
            .message_id(Some(format!("<{}@{}>", notice.id, self.hello)))
            .header(Automatic)
            .header(header::ContentType::TEXT_PLAIN);
        for to in &self.to {
            builder = builder.to(to.clone());
        }
        builder.body(text(notice)).map_err(|e| NotSent(format!("the mail cannot be written: {e}")))
    }

    async fn post(&self, notice: &Notice) -> Result<(), NotSent> {
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(self.host.as_str())
            .port(self.port)
            .tls(self.tls.clone())
            .hello_name(ClientId::Domain(self.hello.clone()))
            .timeout(Some(self.timeout));
        if let Some((user, file)) = &self.login {
            transport = transport.credentials(Credentials::new(user.clone(), secret(file)?));
        }
        let (transport, bytes) = (transport.build(), self.message(notice)?.formatted());
        let (mut told, mut refused) = (0, None);
        // One after the other: a recipient that is refused must not keep the others from being told.
        for to in &self.to {
            let envelope = Envelope::new(Some(self.from.email.clone()), vec![to.email.clone()])
                .map_err(|e| NotSent(format!("the mail cannot be addressed: {e}")))?;
            let error = match tokio::time::timeout(self.timeout, transport.send_raw(&envelope, &bytes)).await {
                Ok(Ok(_)) => {
                    told += 1;
                    continue;
                }
                Ok(Err(error)) => reason(&error),
                Err(_) => format!("no answer within {:?}", self.timeout),
            };
            RecipientRefused { receiver: &self.name, error: &error }.emit();
            refused = Some(NotSent(error));
        }
        match refused {
            // Sent again, it would come again to those who have it.
            Some(error) if told == 0 => Err(error),
            _ => Ok(()),
        }
    }
}

/// Trusts the given authorities only, else the public roots.
fn parameters(host: &str, ca: Option<&Path>) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned());
    let wrong = |why: String| match ca {
        Some(path) => format!("`ca` {}: {why}; it must be a PEM file of the authorities to trust", path.display()),
        None => why,
    };
    if let Some(path) = ca {
        let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?.collect();
        let all = all.map_err(|e| wrong(e.to_string()))?;
        if all.is_empty() {
            return Err(wrong("no certificate in it".into()));
        }
        builder = builder.certificate_store(CertificateStore::None);
        for der in all {
            let certificate = Certificate::from_der(der.to_vec()).map_err(|e| wrong(e.to_string()))?;
            builder = builder.add_root_certificate(certificate);
        }
    } else {
        builder = builder.certificate_store(CertificateStore::WebpkiRoots);
    }
    builder.build_rustls().map_err(|e| wrong(e.to_string()))
}

/// What went wrong, without what the server repeats of the mail: its code, or the innermost cause.
fn reason(error: &lettre::transport::smtp::Error) -> String {
    if let Some(code) = error.status() {
        return format!("the mail server answered {code}");
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string().chars().take(200).collect()
}

impl Receiver for Mail {
    fn kind(&self) -> &'static str {
        "mail"
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn resolved(&self) -> bool {
        self.resolved
    }

    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Result<(), NotSent>> {
        Box::pin(self.post(notice))
    }
}

/// `Auto-Submitted: auto-generated` (RFC 3834): out-of-office replies stay away.
#[derive(Clone)]
struct Automatic;

impl header::Header for Automatic {
    fn name() -> header::HeaderName {
        header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> header::HeaderValue {
        header::HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

fn text(notice: &Notice) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "Node {} (domain {})\n", notice.node, notice.domain);
    if notice.test {
        out.push_str("This is a test: alerts arrive here. Nothing is wrong.\n");
    }
    let mut part = |title: &str, alerts: &[Alert]| {
        if alerts.is_empty() {
            return;
        }
        let _ = writeln!(out, "{title}");
        for alert in alerts {
            let _ =
                writeln!(out, "\n  {} {}: {}", alert.severity.as_str().to_uppercase(), alert.rule.alert_name(), alert.summary);
            let _ = write!(out, "  since {}", timestamp(alert.since_ms));
            match alert.ended_ms {
                Some(ended) => drop(writeln!(out, ", over at {}", timestamp(ended))),
                None => drop(writeln!(out, "\n  {}", alert.advice())),
            }
        }
        out.push('\n');
    };
    part("WRONG NOW", &notice.firing);
    part("OVER", &notice.resolved);
    if notice.more > 0 {
        let _ = writeln!(out, "{} more: hie alert list", notice.more);
    }
    out
}
