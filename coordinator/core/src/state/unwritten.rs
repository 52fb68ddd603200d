//! Parts of State that are not written and are nothing that is known: what makes looking things up quicker, and what the
//! machine is to do next. States that differ in these alone are equal.

use super::FewSet;
use muster_common::time::Timestamp;
use std::ops::{Deref, DerefMut};

/// A time that is remembered beside what it is looked up in. Not part of what is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known(pub(crate) Option<Timestamp>);

impl PartialEq for Known {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Known {}

/// Cause keys that are to be looked at. Not part of what is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Touched(pub(crate) FewSet<String>);

impl PartialEq for Touched {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Deref for Touched {
    type Target = FewSet<String>;
    fn deref(&self) -> &FewSet<String> {
        &self.0
    }
}

impl DerefMut for Touched {
    fn deref_mut(&mut self) -> &mut FewSet<String> {
        &mut self.0
    }
}
