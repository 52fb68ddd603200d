//! Which incident a finding belongs to.
