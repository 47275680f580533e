//! Why the brokers are away, in words that tell the operator what to do. No credential stands in any of them.

use lapin::{Error, ErrorKind, protocol::AMQPErrorKind};
use std::{fmt, io, sync::Arc};

/// What is wrong and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Arc<str>);

impl Reason {
    pub(super) fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who was asked for what, for the texts.
pub(super) struct Asked<'a> {
    pub broker: &'a str,
    pub vhost: &'a str,
    pub user: &'a str,
    pub tls: bool,
}

impl Asked<'_> {
    /// The host has no address.
    pub(super) fn unknown_host(&self, error: &io::Error) -> Reason {
        Reason::new(format!("the broker {} has no address ({error}); correct transport.urls or the name service", self.broker))
    }

    /// No TCP connection.
    pub(super) fn unreachable(&self, error: &io::Error) -> Reason {
        let todo = match error.kind() {
            io::ErrorKind::ConnectionRefused => "nothing listens there: start the broker, or correct the port in transport.urls",
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "there is no way to it: look at the network",
            _ => "look at the network, and at transport.urls",
        };
        Reason::new(format!("the broker {} cannot be reached ({error}); {todo}", self.broker))
    }

    /// The time to connect is over; `step` is what was waited for.
    pub(super) fn silent(&self, step: &str) -> Reason {
        Reason::new(format!(
            "the broker {} does not answer in time ({step}); look whether it hangs, is cut off from its cluster, or a firewall drops packets",
            self.broker
        ))
    }

    /// No TLS.
    pub(super) fn tls(&self, error: &io::Error) -> Reason {
        use rustls::{CertificateError as Bad, Error as Tls};
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Tls>());
        let todo = match inner {
            Some(Tls::InvalidCertificate(Bad::UnknownIssuer)) => {
                "its certificate is not of an authority that is trusted: name the authority's file as transport.ca".to_owned()
            }
            Some(Tls::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
                "its certificate is for another name: correct transport.urls, or write the name as transport.server_name".into()
            }
            Some(Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
                "its certificate has expired: renew it, or set the clock".into()
            }
            Some(Tls::InvalidCertificate(_)) => "its certificate cannot be accepted".into(),
            Some(Tls::AlertReceived(_)) => {
                "it refuses us: if it asks for a client certificate, name ours as transport.cert and transport.key".into()
            }
            Some(Tls::InvalidMessage(_)) => "no TLS is spoken there: use amqp://, or the port for TLS (usually 5671)".into(),
            _ => "look whether TLS is spoken there (usually port 5671), and at the broker's log".into(),
        };
        Reason::new(format!("no TLS with the broker {}: {todo} ({error})", self.broker))
    }

    /// lapin's error while connecting.
    pub(super) fn refused(&self, error: &Error) -> Reason {
        if let ErrorKind::ProtocolError(e) = error.kind() {
            let (code, said) = (e.get_id(), e.get_message().as_str());
            let lower = said.to_lowercase();
            // 403 access-refused, 530 not-allowed, 320 connection-forced (AMQP 0-9-1, 1.1).
            return match code {
                403 if lower.contains("login was refused") => Reason::new(format!(
                    "the broker {} refuses user \"{}\": the user or the password is wrong; correct transport.user or the file \
                     transport.password_file, or set it there with rabbitmqctl change_password",
                    self.broker, self.user
                )),
                530 if lower.contains("limit") => self.limit(said),
                530 if lower.contains("not found") => Reason::new(format!(
                    "the broker {} has no virtual host \"{}\"; correct transport.vhost, or make it with rabbitmqctl add_vhost",
                    self.broker, self.vhost
                )),
                403 if lower.contains("exchange") => Reason::new(format!(
                    "the broker {} does not let user \"{}\" publish; allow it to configure, write and read \"hie\\..*\", and to write \
                     \"amq\\.default\" (the default exchange), with rabbitmqctl set_permissions ({said})",
                    self.broker, self.user
                )),
                403 | 530 => Reason::new(format!(
                    "the broker {} does not let user \"{}\" use the virtual host \"{}\"; correct transport.vhost, or allow it with \
                     rabbitmqctl set_permissions ({said})",
                    self.broker, self.user, self.vhost
                )),
                320 => Reason::new(format!(
                    "the broker {} ends connections ({said}); it is being stopped, or its cluster is cut",
                    self.broker
                )),
                541 => Reason::new(format!(
                    "the broker {} has an internal error ({said}); look at its log and the virtual host's state",
                    self.broker
                )),
                _ => Reason::new(format!("the broker {} refuses the connection: {code} {said}", self.broker)),
            };
        }
        match error.kind() {
            // With TLS 1.3 a refusal of our certificate, or of none, comes after the handshake (RFC 8446, 4.4.2.4).
            ErrorKind::IOError(e) if e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => self.tls(e),
            ErrorKind::IOError(_) | ErrorKind::InvalidConnectionState(_) if self.tls => Reason::new(format!(
                "the broker {} ended the connection while greeting; look at its log: it may ask for a client certificate (transport.cert and \
                 transport.key), a limit of connections (connection_max) may be reached, or it is no AMQP port",
                self.broker
            )),
            ErrorKind::IOError(_) | ErrorKind::InvalidConnectionState(_) => Reason::new(format!(
                "the broker {} ended the connection while greeting; look at its log: a limit of connections (connection_max) may be reached, \
                 the port may be another protocol's (AMQP is usually 5672), or it wants TLS (amqps://, usually 5671)",
                self.broker
            )),
            ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => Reason::new(format!(
                "what answers at {} speaks no AMQP 0-9-1, or wants TLS (amqps://); AMQP is usually port 5672, with TLS 5671 (15672 is the \
                 management)",
                self.broker
            )),
            _ => Reason::new(format!("no connection with the broker {}: {error}", self.broker)),
        }
    }

    fn limit(&self, said: &str) -> Reason {
        Reason::new(format!(
            "the broker {} allows no more connections ({said}); raise the limit with rabbitmqctl set_vhost_limits or set_user_limits, or end \
             connections that nobody needs",
            self.broker
        ))
    }

    /// A connection that stood has ended.
    pub(super) fn lost(&self, error: Option<&Error>) -> Reason {
        match error.map(Error::kind) {
            Some(ErrorKind::ProtocolError(e)) if matches!(e.kind(), AMQPErrorKind::Hard(_)) && e.get_id() == 320 => {
                Reason::new(format!(
                    "the broker {} ended the connection ({}); it is being stopped, its cluster is cut, or an operator closed it",
                    self.broker,
                    e.get_message()
                ))
            }
            Some(ErrorKind::ProtocolError(e)) if matches!(e.kind(), AMQPErrorKind::Hard(_)) => {
                Reason::new(format!("the broker {} ended the connection: {} {}", self.broker, e.get_id(), e.get_message()))
            }
            Some(ErrorKind::MissingHeartbeatError) => Reason::new(format!(
                "the broker {} is silent: no heartbeat came; look whether it hangs or the network is cut",
                self.broker
            )),
            _ => Reason::new(format!(
                "the connection with the broker {} broke; look whether the broker runs and the network is whole",
                self.broker
            )),
        }
    }

    /// It takes nothing more for want of memory or disk.
    pub(super) fn blocked(&self, said: &str) -> Reason {
        // "low on memory", "low on disk", "low on memory & disk" (RabbitMQ).
        Reason::new(format!(
            "the broker {} takes no messages: it is {said}; free memory or disk on the broker, or raise vm_memory_high_watermark or lower \
             disk_free_limit",
            self.broker
        ))
    }
}

/// The broker's own words about a channel or a request that failed, with its code; lapin's where there are none.
pub(super) fn said(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(e) => format!("{} {}", e.get_id(), e.get_message()),
        ErrorKind::InvalidConnectionState(_) | ErrorKind::IOError(_) => "the connection with the broker broke".into(),
        _ => error.to_string(),
    }
}

/// The broker's code of a failed request: 404 no such queue, 406 precondition, 403 no permission.
pub(super) fn code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(e) => Some(e.get_id()),
        _ => None,
    }
}
