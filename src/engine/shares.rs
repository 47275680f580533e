//! Places that are few, and who holds them: no one sender may have more than half of them, so that a slow or
//! ill-meaning one never keeps all others out.

use super::directory::network;
use crate::channel::client::ANONYMOUS;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

/// Who holds a place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A client, wherever it sends from.
    Client(Arc<str>),
    /// A sender without an identity (IPv6: all of its /64).
    Address(IpAddr),
    /// Without either: a watched folder.
    Listener(Arc<str>),
}

impl Holder {
    /// The client where it is known; else the address of `remote` (`ip:port`), else the listener.
    pub fn of(client: &Arc<str>, remote: &str, listener: &Arc<str>) -> Self {
        if &**client != ANONYMOUS {
            return Self::Client(client.clone());
        }
        match remote.parse::<SocketAddr>() {
            Ok(address) => Self::address(address.ip()),
            Err(_) => Self::Listener(listener.clone()),
        }
    }

    /// A sender known by its address only.
    pub fn address(ip: IpAddr) -> Self {
        Self::Address(network(ip))
    }
}

/// How many of `all` places one holder may have: half of them, one at least.
pub fn share(all: usize) -> usize {
    all.div_ceil(2).max(1)
}

/// See the module.
pub struct Shares {
    all: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    /// Only those who hold a place: never more entries than places.
    by: HashMap<Holder, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// All are taken.
    Full,
    /// The holder has its share.
    Share,
}

impl Shares {
    /// `all` places (one at least).
    pub fn new(all: usize) -> Self {
        Self { all: all.max(1), held: Mutex::default() }
    }

    /// A place for `holder`, free again when the result is dropped.
    pub fn take(&self, holder: Holder) -> Result<Place<'_>, NoPlace> {
        let mut held = self.lock();
        if held.by.get(&holder).is_some_and(|n| *n >= share(self.all)) {
            return Err(NoPlace::Share);
        }
        if held.all >= self.all {
            return Err(NoPlace::Full);
        }
        held.all += 1;
        *held.by.entry(holder.clone()).or_default() += 1;
        Ok(Place { of: self, holder })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// One place.
pub struct Place<'a> {
    of: &'a Shares,
    holder: Holder,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = self.of.lock();
        held.all -= 1;
        if let Some(n) = held.by.get_mut(&self.holder) {
            *n -= 1;
            if *n == 0 {
                held.by.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_half_and_places_come_back() {
        let shares = Shares::new(3);
        let of = |client: &str, remote: &str| Holder::of(&client.into(), remote, &"http".into());
        let a = || of("anonymous", "10.0.0.1:77");
        let held: Vec<_> = (0..2).map(|_| shares.take(a()).expect("its share")).collect();
        assert_eq!(shares.take(of("anonymous", "10.0.0.1:78")).err(), Some(NoPlace::Share), "another port is no other sender");
        let other = shares.take(of("lab", "10.0.0.1:79")).expect("a client is somebody else");
        assert_eq!(shares.take(of("anonymous", "10.0.0.2:1")).err(), Some(NoPlace::Full));
        drop(held);
        assert!(shares.take(a()).is_ok());
        drop(other);
        assert!(shares.lock().by.is_empty());
        assert!(Shares::new(1).take(a()).is_ok(), "one place is for whoever comes");
    }
}
