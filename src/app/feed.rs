//! The ledger as the live feed reads it.

use crate::{
    admin::feed::{Facts, Journal, Wake},
    engine::fact::Seq,
    ledger::Ledger,
};

impl Journal for Ledger {
    fn committed(&self) -> Seq {
        Ledger::committed(self)
    }

    fn after(&self, seq: Seq, most: usize) -> Result<Facts, String> {
        let read = self.facts_after(seq, most).map_err(|e| e.to_string())?;
        Ok(Facts { facts: read.facts, from: read.from, at: read.at })
    }

    fn parties(&self, home: Seq) -> Option<(String, String)> {
        // What cannot be read was told where it was found; its events have no names.
        let accepted = self.accepted_at(home).ok().flatten()?;
        Some((accepted.channel, accepted.envelope.client.to_string()))
    }

    fn on_commit(&self, wake: Wake) {
        Ledger::on_commit(self, wake);
    }
}
