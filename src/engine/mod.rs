//! The engine: accept, dispatch and deliver (MERE); pipelines and contexts have their place here (MIPRE).
//! It decides; connectors and stores are behind the traits of [`ports`].

pub mod fact;
pub mod ports;
