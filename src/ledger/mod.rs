//! The ledger: an append-only log of facts and bodies, and the views folded from it. The only user of rusqlite.
