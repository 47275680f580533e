//! What goes wrong in a cluster, one after the other at random moments, each as long as told, and put right again.

use super::{Cluster, Machine};
use crate::harness::node::Node;
use crate::harness::{Rng, wait_until};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// kill -9 of a node, started again a moment later.
    NodeKilled,
    /// kill -9 of one broker, started again a moment later; the next trouble waits until it is a member again.
    BrokerKilled,
    /// One broker's machine without its cable.
    BrokerCut,
    /// One node reaches no broker; senders and Consul reach it.
    NodeCut,
    /// kill -9 of Consul's leader, started again when there is another.
    LeaderKilled,
    /// No Consul server.
    ConsulAway,
}

impl Trouble {
    pub const ALL: [Self; 6] =
        [Self::NodeKilled, Self::BrokerKilled, Self::BrokerCut, Self::NodeCut, Self::LeaderKilled, Self::ConsulAway];
}

/// How long it lasts.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Of brokers and nodes from the network.
    pub cut: Duration,
    /// Of all Consul servers.
    pub away: Duration,
    /// Between two troubles: from, to.
    pub calm: (Duration, Duration),
    /// Probability that a node is killed while another trouble lasts.
    pub also: f64,
}

impl Default for Storm {
    fn default() -> Self {
        Self {
            cut: Duration::from_secs(20),
            away: Duration::from_secs(30),
            calm: (Duration::from_secs(1), Duration::from_secs(5)),
            also: 0.5,
        }
    }
}

/// What was done, how often.
pub type Told = BTreeMap<Trouble, u32>;

struct Weather<'a> {
    cluster: &'a mut Cluster,
    /// `nodes[i]` runs on the machine of the same name.
    nodes: &'a mut [Node],
    rng: &'a mut Rng,
    storm: Storm,
    begin: Instant,
    told: Told,
}

impl Storm {
    /// Goes through these troubles in a random order. Prints what it does; panics when something does not come back.
    pub fn run(self, cluster: &mut Cluster, nodes: &mut [Node], rng: &mut Rng, troubles: &[Trouble]) -> Told {
        let mut troubles = troubles.to_vec();
        rng.shuffle(&mut troubles);
        let mut weather = Weather { cluster, nodes, rng, storm: self, begin: Instant::now(), told: Told::new() };
        for trouble in troubles {
            let (from, to) = (self.calm.0.as_millis() as u64, self.calm.1.as_millis() as u64);
            std::thread::sleep(Duration::from_millis(weather.rng.range(from, to)));
            weather.one(trouble);
        }
        println!("chaos: {:?} in {:.0?}", weather.told, weather.begin.elapsed());
        weather.told
    }
}

impl Weather<'_> {
    fn one(&mut self, trouble: Trouble) {
        *self.told.entry(trouble).or_default() += 1;
        let brokers = self.cluster.brokers.all.len();
        let which = self.rng.range(0, brokers as u64) as usize;
        match trouble {
            Trouble::NodeKilled => self.kill_node(None),
            Trouble::BrokerKilled => {
                self.say(&format!("r{} killed", which + 1));
                self.cluster.brokers.all[which].kill9();
                std::thread::sleep(Duration::from_millis(self.rng.range(500, 4000)));
                let took = self.cluster.brokers.all[which].start();
                self.member_again(which);
                self.say(&format!("r{} ready {took:.1?} after its start", which + 1));
            }
            Trouble::BrokerCut => {
                self.say(&format!("r{} without its cable", which + 1));
                self.cluster.brokers.all[which].machine.cut();
                self.last(self.storm.cut, None);
                self.cluster.brokers.all[which].machine.heal();
                self.member_again(which);
                self.say(&format!("r{} a member again", which + 1));
            }
            Trouble::NodeCut => {
                let node = self.rng.range(0, self.nodes.len() as u64) as usize;
                self.say(&format!("{} reaches no broker", self.nodes[node].setup.name));
                let machine = self.machine(node);
                machine.cut_from(&self.cluster.brokers.all.iter().map(|b| &b.machine).collect::<Vec<_>>());
                self.last(self.storm.cut, Some(node));
                machine.heal_from();
                self.say(&format!("{} healed", self.nodes[node].setup.name));
            }
            Trouble::LeaderKilled => {
                let leader = self.cluster.servers.kill_leader();
                self.say(&format!("c{}, which led, killed", leader + 1));
                self.cluster.servers.wait_formed(Duration::from_secs(60));
                self.cluster.servers.all[leader].spawn();
                self.cluster.servers.wait_formed(Duration::from_secs(60));
                self.say("Consul has another leader");
            }
            Trouble::ConsulAway => {
                self.say("no Consul server");
                self.cluster.servers.kill_all();
                self.last(self.storm.away, None);
                self.cluster.servers.spawn_all();
                self.cluster.servers.wait_formed(Duration::from_secs(60));
                self.say("Consul is back");
            }
        }
    }

    fn say(&self, what: &str) {
        println!("chaos +{:.1} s: {what}", self.begin.elapsed().as_secs_f64());
    }

    /// Lets a trouble last; another node may be killed meanwhile.
    fn last(&mut self, time: Duration, spared: Option<usize>) {
        let end = Instant::now() + time;
        if self.rng.chance(self.storm.also) {
            let half = time.as_millis() as u64 / 2;
            std::thread::sleep(Duration::from_millis(self.rng.range(0, half)));
            self.kill_node(spared);
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    fn kill_node(&mut self, spared: Option<usize>) {
        let candidates: Vec<_> = (0..self.nodes.len()).filter(|n| Some(*n) != spared).collect();
        if candidates.is_empty() {
            return;
        }
        let node = candidates[self.rng.range(0, candidates.len() as u64) as usize];
        let name = self.nodes[node].setup.name.clone();
        self.say(&format!("{name} killed"));
        self.nodes[node].kill9();
        std::thread::sleep(Duration::from_millis(self.rng.range(0, 3000)));
        let took = self.nodes[node].start();
        self.say(&format!("{name} ready {took:.1?} after its start"));
    }

    fn machine(&self, node: usize) -> Machine {
        self.cluster.net.machine(&self.nodes[node].setup.name)
    }

    fn member_again(&self, which: usize) {
        let all = &self.cluster.brokers.all;
        let formed = wait_until(Duration::from_secs(90), || all.iter().all(|b| b.members() == all.len()));
        assert!(formed, "{}", all[which].log_tail(40));
    }
}
