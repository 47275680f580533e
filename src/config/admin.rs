//! `[admin]` and `[health]`: the management API and the health listener.

use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf};

/// `[admin]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address of the management API. Default 127.0.0.1:8080.
    pub listen: SocketAddr,
    /// Default `<store>/admin-token`, generated at first start, mode 0600.
    pub token_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8080).into(), token_file: None }
    }
}

/// `[health]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Address that serves health only, for balancers. Default 127.0.0.1:8081.
    pub listen: SocketAddr,
}

impl Default for Health {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8081).into() }
    }
}
