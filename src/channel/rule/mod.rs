//! Rules: conditions on envelope and content, in CEL (Common Expression Language).
//!
//! | name | type | what |
//! |---|---|---|
//! | `protocol` | string | `mllp`, `http`, `file` |
//! | `listener` | string | name of the listener or watched folder |
//! | `client` | string | name of the sender; `anonymous` |
//! | `remote` | string | `ip:port` of the sender, or the file's name |
//! | `method`, `path`, `query` | string | HTTP request line; empty otherwise |
//! | `content_type` | string | MIME type as declared |
//! | `kind` | string | `ADT^A01`, `Patient`; empty when unknown |
//! | `resource` | string | FHIR resource type; empty otherwise |
//! | `control_id` | string | MSH-10, or the resource's id; empty when absent |
//! | `size` | int | bytes of the body, as far as known when the rule is asked |
//! | `header("name")` | string | first value of an HTTP header; empty when absent |
//! | `hl7("PID-3.1")` | string | a piece of an HL7 v2 message, escapes resolved, charset decoded; empty when absent |
//! | `patients()` | list(string) | patient identifiers, at most 16 |
//!
//! Of CEL: `== != < <= > >= && || ! in + - * / %`, `?:`, lists, `exists all exists_one filter map` over `patients()` or a list that is written
//! out, and the functions of [`check::FUNCTIONS`]. Arguments of `hl7`, `header` and `matches` are written out, so that a wrong path or
//! pattern is found when the rule is loaded.
//!
//! Work is bounded: an expression has at most [`MAX_TEXT`] bytes and a limited number of steps, a value is read up to
//! [`MAX_VALUE`] bytes, patterns are matched in linear time.
//!
//! What most rules are made of is compiled to a small tree of our own ([`fast`], tens of nanoseconds); the rest is left to the cel crate's
//! interpreter ([`slow`]). Both give the same result.

mod check;
mod fast;
mod position;
mod slow;
mod subject;

pub use subject::Subject;

use check::{Checked, Type};
use fast::{Condition, Keys};
use std::sync::Arc;

/// Longest expression, in bytes.
pub const MAX_TEXT: usize = 4096;
/// Of one value (field, header), this many bytes are seen by rules.
pub const MAX_VALUE: usize = 64 * 1024;

/// A compiled rule.
#[derive(Clone, Debug)]
pub struct Rule {
    condition: Arc<Condition>,
}

/// An expression that cannot be taken. Line and column count from 1, within the expression; columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct RuleError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// A rule that could not be decided for one message. Says nothing of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The expression gave another type than it has to.
    #[error("the expression did not give what is expected of it")]
    Type,
    /// A conversion, an index or an arithmetic operation that this message does not allow.
    #[error("the expression has no value for this message")]
    NoValue,
}

impl Rule {
    /// Compiles a condition. Fails on wrong syntax, unknown names (names the nearest), wrong types as far as they can be known,
    /// wrong HL7 paths and patterns, and on expressions that could take too long.
    pub fn compile(text: &str) -> Result<Self, RuleError> {
        let checked = Checked::new(text, &[Type::Bool], "a rule gives true or false")?;
        Ok(Self { condition: Arc::new(fast::condition(&checked.expression)) })
    }

    /// Does it hold? An error means: it does not, and should be counted.
    pub fn matches(&self, subject: &Subject<'_>) -> Result<bool, EvalError> {
        self.condition.holds(subject)
    }

    /// As [`Rule::matches`], by the cel crate's interpreter alone; the measure for the fast path.
    #[doc(hidden)]
    pub fn interpret(text: &str, subject: &Subject<'_>) -> Result<bool, EvalError> {
        let checked = Checked::new(text, &[Type::Bool], "a rule gives true or false").map_err(|_| EvalError::Type)?;
        slow::Program::whole(&checked.expression).condition(subject)
    }

    /// True when no part of it needs the interpreter.
    pub fn is_fast(&self) -> bool {
        self.condition.is_fast()
    }
}

/// A compiled expression that gives ordering keys: a string or a list of strings.
#[derive(Clone, Debug)]
pub struct KeyExpression {
    keys: Arc<Keys>,
}

impl KeyExpression {
    /// Compiles; see [`Rule::compile`].
    pub fn compile(text: &str) -> Result<Self, RuleError> {
        let checked = Checked::new(text, &[Type::Text, Type::List], "an order gives a string or a list of strings")?;
        Ok(Self { keys: Arc::new(fast::keys(&checked.expression)) })
    }

    /// Hands each key to `take`, empty ones left out.
    pub fn each(&self, subject: &Subject<'_>, take: impl FnMut(&str)) -> Result<(), EvalError> {
        self.keys.each(subject, take)
    }
}

#[cfg(test)]
mod tests;
