//! Entity references.
//!
//! An id is never reused within a graph, and its `Display` is its spelling in the text form.

use std::fmt;

macro_rules! entity {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) u32);

        impl $name {
            /// The number in the id's spelling.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

entity! {
    /// An operation of a graph, spelled `op3`.
    OpId, "op"
}
entity! {
    /// A value of a graph, spelled `v7`.
    ValueId, "v"
}

/// A dense side table from values to `T`, with a default for values never written.
#[derive(Clone, Debug)]
pub struct ValueMap<T> {
    entries: Vec<T>,
    default: T,
}

impl<T: Clone> ValueMap<T> {
    /// A table that answers `default` for every value.
    pub fn new(default: T) -> Self {
        Self {
            entries: Vec::new(),
            default,
        }
    }

    /// The entry of `value`.
    pub fn get(&self, value: ValueId) -> &T {
        self.entries.get(value.index()).unwrap_or(&self.default)
    }

    /// The entry of `value`, to change.
    pub fn get_mut(&mut self, value: ValueId) -> &mut T {
        if self.entries.len() <= value.index() {
            self.entries.resize(value.index() + 1, self.default.clone());
        }
        &mut self.entries[value.index()]
    }

    /// Writes the entry of `value`.
    pub fn set(&mut self, value: ValueId, entry: T) {
        *self.get_mut(value) = entry;
    }
}
