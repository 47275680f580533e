//! Limits that the operating system sets to this process.

use crate::telemetry::host::OpenFiles;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, and says what there is. Returns the limit in force.
/// Every connection, listener and ledger file is one; the default soft limit of 1024 is there for `select`.
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = if raised { hard } else { soft };
    OpenFiles { limit, before: soft }.emit();
    limit
}
