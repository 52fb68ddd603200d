//! What the tests of the whole share: scripted scenarios over the coordinator's machine, and a seeded world.

pub mod loss;
pub mod rng;
pub mod scenario;
pub mod world;
