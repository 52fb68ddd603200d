//! Simulation, scenarios and suites; see the modules.
