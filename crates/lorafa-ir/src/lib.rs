//! The training-graph IR of lorafa-opt.
//!
//! # What a graph means
//!
//! A [`Graph`] is one training step, or the forward part of one. It is a directed acyclic graph
//! of *ops*; an op reads *values* and defines values, and every value is defined by exactly one
//! op and never changes. There is no control flow: a step runs every op once.
//!
//! Everything that exists before the step starts is a *parameter* ([`ops::Param`]): a weight, an
//! input, a moment of the optimizer, a table of constants. A parameter's [`Role`](ops::Role) says
//! what training does with it. Turning a matrix A from `trained` into `frozen` is all that LoRA-FA
//! is; what can be forgotten afterwards follows from the graph.
//!
//! A value has a [`TensorType`]: an element type and a shape whose dimensions are numbers or
//! expressions over symbols ([`Dim`]). Shapes live in types and attributes only: no op computes a
//! shape at run time, so once the symbols are bound to numbers every size in the graph is known.
//!
//! # Regions and saved activations
//!
//! An op belongs to the forward, backward or update [`Region`]. A value that an op of the forward
//! region defines and one of the backward region reads is a *saved activation*: it must be kept
//! in between, and is what activation memory consists of. Parameters and constants are kept
//! anyway. Which values are saved is decided by the gradient rules, each of which names what it
//! reads: the op's operand, its result, or neither ([`grad`]).
//!
//! A backward op remembers the forward op whose gradient it computes, so that a report can say
//! not only that a value is kept but what for. One that came with the model does not know.
//!
//! # Order
//!
//! [`Graph::order`] is the schedule: operands first, the forward region before the others, then by
//! the place that the op was given when it was made ([`graph::Site::seq`]), by region, and by id.
//! Imported ops keep their file's order, backward ops that are made get their forward op's place negated, so
//! gradients are computed in reverse; updates stand among them or after them.
//!
//! # Edits
//!
//! A graph is changed only through a [`Patch`], which type-checks what it adds and carries the
//! name of the rule that asked. [`Graph::verify`] checks a whole graph and lists every violation.
//! What verifies does not make later stages panic.
//!
//! # Where things are
//!
//! | to | go to |
//! |---|---|
//! | add an op, or change its type, gradient, memory or cost | its family's file in [`ops`] |
//! | print or read a graph | [`text`] |
//! | build ops in a pass | [`build`] |
//! | know what is a view | [`layout`] |
//! | run a graph slowly and exactly | [`interp`] |

pub mod adapter;
pub mod build;
pub mod dim;
pub mod dtype;
pub mod grad;
pub mod graph;
pub mod ids;
pub mod interp;
pub mod layout;
pub mod ops;
pub mod optimizer;
pub mod outputs;
pub mod patch;
pub mod text;
pub mod types;
pub mod verify;

pub use adapter::Adapter;
pub use dim::{Bindings, Dim};
pub use dtype::DType;
pub use graph::{Graph, OpData, Region, Site, Use, ValueData};
pub use ids::{OpId, ValueId, ValueMap};
pub use ops::{Op, Operator};
pub use outputs::{Output, OutputKind};
pub use patch::{Patch, PatchError};
pub use types::{Shape, TensorType};
