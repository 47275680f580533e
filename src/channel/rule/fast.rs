//! The compiled form of what most rules are made of: comparisons of variables, fields and headers with constants, joined by
//! `&&`, `||` and `!`. Every operand's type is known, so that nothing here can fail; what does not fit is left to [`slow::Program`].

use super::{
    EvalError, MAX_VALUE, Subject,
    slow::Program,
    subject::{VARIABLES, Variable, bounded},
};
use crate::message::hl7::Path;
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators as op};
use regex::Regex;
use std::borrow::Cow;

/// Something that is true or false.
#[derive(Debug)]
pub(super) enum Condition {
    Constant(bool),
    Not(Box<Condition>),
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
    /// Equal, or not equal where the flag says so.
    Text(Text, Text, bool),
    Number(Comparison, Number, Number),
    /// In a list of constants.
    OneOf(Text, Box<[Box<str>]>),
    Patient(Text),
    StartsWith(Text, Text),
    EndsWith(Text, Text),
    Contains(Text, Text),
    Matches(Text, Regex),
    Interpreted(Program),
}

/// Something that is a string.
#[derive(Clone, Debug)]
pub(super) enum Text {
    Constant(Box<str>),
    Variable(Variable),
    Hl7(Path),
    /// In lower case.
    Header(Box<str>),
}

/// Something that is an integer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Constant(i64),
    Size,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Something that is a list of keys.
#[derive(Debug)]
pub(super) enum Keys {
    Texts(Box<[Text]>),
    Patients,
    Interpreted(Program),
}

impl Text {
    pub(super) fn of<'a>(&'a self, subject: &'a Subject<'_>) -> Cow<'a, str> {
        match self {
            Self::Constant(text) => Cow::Borrowed(text),
            Self::Variable(variable) => Cow::Borrowed(variable.of(subject)),
            Self::Header(name) => Cow::Borrowed(bounded(subject.http.and_then(|h| h.header(name)).unwrap_or(""))),
            Self::Hl7(path) => {
                let Some(message) = subject.hl7 else { return Cow::Borrowed("") };
                let raw = message.get(path).unwrap_or(&[]);
                match message.decode(&raw[..raw.len().min(MAX_VALUE)]) {
                    Cow::Borrowed(text) => Cow::Borrowed(bounded(text)),
                    Cow::Owned(mut text) => {
                        text.truncate(bounded(&text).len());
                        Cow::Owned(text)
                    }
                }
            }
        }
    }
}

impl Number {
    pub(super) fn of(self, subject: &Subject<'_>) -> i64 {
        match self {
            Self::Constant(n) => n,
            Self::Size => i64::try_from(subject.size).unwrap_or(i64::MAX),
        }
    }
}

impl Condition {
    /// As CEL has it, an operand of `&&` or `||` that has no value does not matter when the other one decides.
    pub(super) fn holds(&self, subject: &Subject<'_>) -> Result<bool, EvalError> {
        Ok(match self {
            Self::Constant(value) => *value,
            Self::Not(inner) => !inner.holds(subject)?,
            Self::And(left, right) => return decide(left.holds(subject), || right.holds(subject), false),
            Self::Or(left, right) => return decide(left.holds(subject), || right.holds(subject), true),
            Self::Text(left, right, negated) => (left.of(subject) == right.of(subject)) != *negated,
            Self::Number(comparison, left, right) => {
                let (left, right) = (left.of(subject), right.of(subject));
                match comparison {
                    Comparison::Equal => left == right,
                    Comparison::NotEqual => left != right,
                    Comparison::Less => left < right,
                    Comparison::LessOrEqual => left <= right,
                    Comparison::Greater => left > right,
                    Comparison::GreaterOrEqual => left >= right,
                }
            }
            Self::OneOf(text, list) => {
                let text = text.of(subject);
                list.iter().any(|one| **one == *text)
            }
            Self::Patient(text) => {
                let text = text.of(subject);
                subject.patients().iter().any(|id| *id == *text)
            }
            Self::StartsWith(text, part) => text.of(subject).starts_with(&*part.of(subject)),
            Self::EndsWith(text, part) => text.of(subject).ends_with(&*part.of(subject)),
            Self::Contains(text, part) => text.of(subject).contains(&*part.of(subject)),
            Self::Matches(text, pattern) => pattern.is_match(&text.of(subject)),
            Self::Interpreted(program) => return program.condition(subject),
        })
    }

    pub(super) fn is_fast(&self) -> bool {
        match self {
            Self::Not(inner) => inner.is_fast(),
            Self::And(left, right) | Self::Or(left, right) => left.is_fast() && right.is_fast(),
            Self::Interpreted(_) => false,
            _ => true,
        }
    }
}

/// `deciding` is the value of one operand that settles the whole.
fn decide(
    left: Result<bool, EvalError>,
    right: impl FnOnce() -> Result<bool, EvalError>,
    deciding: bool,
) -> Result<bool, EvalError> {
    match left {
        Ok(value) if value == deciding => Ok(value),
        Ok(_) => right(),
        Err(error) => match right()? {
            value if value == deciding => Ok(value),
            _ => Err(error),
        },
    }
}

impl Keys {
    pub(super) fn each(&self, subject: &Subject<'_>, mut take: impl FnMut(&str)) -> Result<(), EvalError> {
        let mut take = |key: &str| {
            if !key.is_empty() {
                take(key);
            }
        };
        match self {
            Self::Texts(texts) => texts.iter().for_each(|text| take(&text.of(subject))),
            Self::Patients => subject.patients().iter().for_each(|id| take(id)),
            Self::Interpreted(program) => program.texts(subject)?.iter().for_each(|key| take(key)),
        }
        Ok(())
    }
}

// === from the checked expression ===

/// Compiles an expression that has been checked; what does not fit is interpreted.
pub(super) fn condition(expression: &IdedExpr) -> Condition {
    simple_condition(expression).unwrap_or_else(|| Condition::Interpreted(Program::new(expression)))
}

pub(super) fn keys(expression: &IdedExpr) -> Keys {
    if let Some(text) = text(expression) {
        return Keys::Texts([text].into());
    }
    match &expression.expr {
        Expr::List(list) => match list.elements.iter().map(text).collect::<Option<Vec<_>>>() {
            Some(texts) => Keys::Texts(texts.into()),
            None => Keys::Interpreted(Program::new(expression)),
        },
        _ if is_patients(expression) => Keys::Patients,
        _ => Keys::Interpreted(Program::new(expression)),
    }
}

/// As [`condition`], `None` where it does not fit (parts of `&&`, `||` and `!` may still be interpreted).
pub(super) fn simple_condition(expression: &IdedExpr) -> Option<Condition> {
    let call = match &expression.expr {
        Expr::Literal(LiteralValue::Boolean(value)) => return Some(Condition::Constant(*value.inner())),
        Expr::Call(call) => call,
        _ => return None,
    };
    if let Some((text, pattern)) = as_match(call) {
        return Some(Condition::Matches(text, pattern));
    }
    match (call.func_name.as_str(), &call.target, &call.args[..]) {
        (op::LOGICAL_NOT, None, [inner]) => Some(Condition::Not(Box::new(condition(inner)))),
        (op::LOGICAL_AND, None, [left, right]) => Some(Condition::And(Box::new(condition(left)), Box::new(condition(right)))),
        (op::LOGICAL_OR, None, [left, right]) => Some(Condition::Or(Box::new(condition(left)), Box::new(condition(right)))),
        (op::IN, None, [item, list]) => {
            let item = text(item)?;
            match &list.expr {
                _ if is_patients(list) => Some(Condition::Patient(item)),
                Expr::List(list) => {
                    let constants = list.elements.iter().map(constant).collect::<Option<Vec<_>>>()?;
                    Some(Condition::OneOf(item, constants.into()))
                }
                _ => None,
            }
        }
        ("startsWith", Some(target), [part]) => Some(Condition::StartsWith(text(target)?, text(part)?)),
        ("endsWith", Some(target), [part]) => Some(Condition::EndsWith(text(target)?, text(part)?)),
        ("contains", Some(target), [part]) => Some(Condition::Contains(text(target)?, text(part)?)),
        (name, None, [left, right]) => {
            let comparison = comparison(name)?;
            if let (Some(left), Some(right)) = (number(left), number(right)) {
                return Some(Condition::Number(comparison, left, right));
            }
            match comparison {
                Comparison::Equal => Some(Condition::Text(text(left)?, text(right)?, false)),
                Comparison::NotEqual => Some(Condition::Text(text(left)?, text(right)?, true)),
                _ => None,
            }
        }
        _ => None,
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        op::EQUALS => Comparison::Equal,
        op::NOT_EQUALS => Comparison::NotEqual,
        op::LESS => Comparison::Less,
        op::LESS_EQUALS => Comparison::LessOrEqual,
        op::GREATER => Comparison::Greater,
        op::GREATER_EQUALS => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

/// `x.matches("pattern")` and `matches(x, "pattern")`.
fn as_match(call: &CallExpr) -> Option<(Text, Regex)> {
    let (subject, pattern) = match (call.func_name.as_str(), &call.target, &call.args[..]) {
        ("matches", Some(target), [pattern]) => (&**target, pattern),
        ("matches", None, [subject, pattern]) => (subject, pattern),
        _ => return None,
    };
    Some((text(subject)?, self::pattern(&constant(pattern)?).ok()?))
}

/// A pattern within the bounds of rules.
pub(super) fn pattern(text: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(text).size_limit(256 * 1024).dfa_size_limit(256 * 1024).nest_limit(32).build()
}

/// A string written out.
pub(super) fn constant(expression: &IdedExpr) -> Option<Box<str>> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner().into()),
        _ => None,
    }
}

pub(super) fn text(expression: &IdedExpr) -> Option<Text> {
    if let Some(text) = constant(expression) {
        return Some(Text::Constant(text));
    }
    match &expression.expr {
        Expr::Ident(name) => VARIABLES.iter().find(|(n, _)| n == name).map(|(_, v)| Text::Variable(*v)),
        Expr::Call(CallExpr { func_name, target: None, args }) => match (func_name.as_str(), &args[..]) {
            ("hl7", [path]) => Path::parse(&constant(path)?).ok().map(Text::Hl7),
            ("header", [name]) => Some(Text::Header(constant(name)?.to_ascii_lowercase().into())),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn number(expression: &IdedExpr) -> Option<Number> {
    match &expression.expr {
        Expr::Literal(LiteralValue::Int(n)) => Some(Number::Constant(*n.inner())),
        Expr::Ident(name) if name == "size" => Some(Number::Size),
        _ => None,
    }
}

pub(super) fn is_patients(expression: &IdedExpr) -> bool {
    matches!(&expression.expr, Expr::Call(CallExpr { func_name, target: None, args }) if func_name == "patients" && args.is_empty())
}
