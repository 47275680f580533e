//! Presets: the tuning for one hardware tier, written down once in `presets/*.json`, and what follows from it: which
//! tier fits a machine ([`detect`]), what capacity a site needs ([`plan`]), and the settings of the programs around the
//! node ([`render`]). Pure: data and text in, data and text out.
//!
//! The numbers are those of the vertical-scaling guide for hospital management systems; what it does not give is derived (`presets/README.md`).

pub mod detect;
pub mod plan;
pub mod planning;
pub mod render;
mod tier;

pub use detect::{Machine, detect};
pub use planning::planning;
pub use tier::{Capacity, Cgroup, Cloud, Consul, Hardware, Phase, Rabbitmq, Range, System, Tier, Unknown, Vm, find, tiers};
