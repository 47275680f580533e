//! `[http]`: the HTTP and HTTPS gateway.

use super::ServerTls;
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize};
use std::{net::SocketAddr, time::Duration};

/// `[http]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Plain HTTP, default 127.0.0.1:5001; `"off"`: not served.
    #[serde(deserialize_with = "address_or_off")]
    pub listen: Option<SocketAddr>,
    /// HTTPS, default 127.0.0.1:5000; served when `tls` is given; `"off"`: not served.
    #[serde(deserialize_with = "address_or_off")]
    pub tls_listen: Option<SocketAddr>,
    /// Certificate and key for HTTPS. Default: none.
    pub tls: Option<ServerTls>,
    /// Expect the PROXY protocol (v1 or v2) from these balancers; empty (default): from nobody.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// Addresses let in; empty (default): all.
    pub allow_ips: Vec<ipnet::IpNet>,
    /// Refuse requests without a known client. Default false.
    pub require_client: bool,
    /// Connections at the same time. Default 4096.
    pub max_connections: usize,
    /// For the whole head of a request. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Longest silence while a body arrives. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub body_idle_timeout: Duration,
    /// What a large body (over 256 KiB) must bring per second while the node waits for it. Default 4 KiB; 0: no limit.
    pub min_body_rate: ByteSize,
    /// Over which time that is measured; also the grace at the beginning. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub body_rate_window: Duration,
    /// Idle keep-alive connections. Default 75 s.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Request line and headers. Default 64 KiB.
    pub max_header_bytes: ByteSize,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: Some(([127, 0, 0, 1], 5001).into()),
            tls_listen: Some(([127, 0, 0, 1], 5000).into()),
            tls: None,
            proxy_protocol_from: vec![],
            allow_ips: vec![],
            require_client: false,
            max_connections: 4096,
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            min_body_rate: ByteSize::kib(4),
            body_rate_window: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            max_header_bytes: ByteSize::kib(64),
        }
    }
}

/// An address, or `off`: TOML has no null, and the default is to listen.
fn address_or_off<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Option<SocketAddr>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an address with port, such as \"127.0.0.1:5001\", or \"off\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "off" => Ok(None),
                _ => text.parse().map(Some).map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self)),
            }
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
            d.deserialize_any(self)
        }
    }
    d.deserialize_any(Visitor)
}
