//! Who listens to what.

use super::{
    conn::{Conn, Sink},
    resource::Resource,
};
use std::{collections::HashMap, rc::Rc};

struct Group {
    name: Rc<Resource>,
    /// Slots of its connections.
    members: Vec<u32>,
}

/// The resources with at least one connection.
#[derive(Default)]
pub(super) struct Groups {
    all: HashMap<Resource, Group>,
    total: usize,
    /// Connections that hyper carries.
    pub carried: usize,
}

impl Groups {
    /// Connections with a place.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Resources with at least one connection.
    pub fn resources(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Connections to one resource.
    pub fn of(&self, resource: &Resource) -> usize {
        self.all.get(resource).map_or(0, |g| g.members.len())
    }

    /// The slots of those who listen to a resource.
    pub fn members(&self, resource: &Resource) -> Vec<u32> {
        self.all.get(resource).map(|g| g.members.clone()).unwrap_or_default()
    }

    /// The resources that have everything of the log.
    pub fn whole_log(&self) -> Vec<Rc<Resource>> {
        let whole = |r: &Resource| matches!(r, Resource::Transactions | Resource::Domain(_));
        self.all.values().filter(|g| whole(&g.name)).map(|g| g.name.clone()).collect()
    }

    /// The resource's name, in memory once.
    pub fn name(&self, resource: &Resource) -> Rc<Resource> {
        self.all.get(resource).map_or_else(|| Rc::new(resource.clone()), |g| g.name.clone())
    }

    /// Adds a connection; its place.
    pub fn add(&mut self, conn: &Conn, slot: u32) -> u32 {
        self.total += 1;
        self.carried += usize::from(matches!(conn.sink, Sink::Body(_)));
        let name = conn.resource.clone();
        let group = self.all.entry((*name).clone()).or_insert_with(|| Group { name, members: Vec::new() });
        group.members.push(slot);
        group.members.len() as u32 - 1
    }

    /// Takes a connection out; who got its place, and that place.
    pub fn remove(&mut self, conn: &Conn) -> Option<(u32, u32)> {
        let group = self.all.get_mut(&*conn.resource)?;
        self.total -= 1;
        self.carried -= usize::from(matches!(conn.sink, Sink::Body(_)));
        group.members.swap_remove(conn.place as usize);
        let moved = group.members.get(conn.place as usize).map(|slot| (*slot, conn.place));
        if group.members.is_empty() {
            self.all.remove(&*conn.resource);
        }
        moved
    }
}
