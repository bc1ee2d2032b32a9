//! The text form, `.lir`.
//!
//! ```text
//! graph @one_linear {
//!   param %x : f32[4,8] input
//!   param %w : f32[8,8] frozen {digest=9c1f…}
//!   v2 = matmul %x, %w {trans_b} : f32[4,8] @layers.0.q_proj
//!   …
//! backward:
//!   v9 = matmul v8, %w : f32[4,8] @layers.0.q_proj of v2
//!   …
//!   out "loss" = v7 loss
//!   out "grad::w" = v12 gradient %w
//!   adapter "layers.0.q_proj" {a=%a, b=%b, rank=2, scale=2.0, x=%x, xa=v4}
//! }
//! ```
//!
//! One op a line in schedule order, with its type; attributes sorted, those at their default left
//! out; `@` the module; `of` the forward op whose gradient it computes; `;` starts a comment.
//! Reading what was printed and printing it again gives the same text.

mod lines;
mod parse;
mod print;

pub(crate) use lines::parse_name;
pub use lines::parse_type;
pub use parse::{ParseError, parse, parse_op};
pub use print::{OpDisplay, ValueDisplay};
