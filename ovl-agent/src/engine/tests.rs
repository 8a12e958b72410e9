//! The engine with a local store, in a network namespace of its own.
